//! Where images are: in a folder, or in a bucket that the database knows again.

use std::sync::Arc;

use anyhow::Context as _;
use device_ota_engine::ports::clock::random;
use device_ota_engine::ports::{Entropy, Objects, Store};
use device_ota_objects::{LocalFolder, OpenError, S3Settings, S3Store};

use crate::config::Config;

/// Under which name all replicas know which bucket has their images.
const BUCKET: &str = "bucket";

/// Opens it. A bucket that is not the one of this database is refused; one that cannot be reached is not.
pub(crate) async fn open(
    config: &Config,
    store: &dyn Store,
    entropy: &dyn Entropy,
) -> anyhow::Result<Arc<dyn Objects>> {
    let Some(settings) = &config.s3 else {
        let folder = LocalFolder::open(&config.storage_path).context("STORAGE_BASE_PATH")?;
        return Ok(Arc::new(folder));
    };
    let new = hex::encode(random::<16>(entropy));
    if let Some(id) = known(store, &new).await? {
        return again(config, settings, id).await;
    }
    let bucket = S3Store::open(&config.storage_path, settings).await;
    let bucket = bucket.map_err(named)?;
    match first(&bucket, store, &new).await? {
        // Another replica was faster. The folder is one process's, and one opening's.
        Some(id) => {
            drop(bucket);
            again(config, settings, id).await
        }
        None => Ok(Arc::new(bucket)),
    }
}

async fn again(
    config: &Config,
    settings: &S3Settings,
    id: String,
) -> anyhow::Result<Arc<dyn Objects>> {
    let bucket = S3Store::open_again(&config.storage_path, settings, id).await;
    Ok(Arc::new(bucket.map_err(named)?))
}

/// Which bucket has the images of this database, when one has been claimed.
async fn known(store: &dyn Store, new: &str) -> anyhow::Result<Option<String>> {
    // Not committed: only looked at.
    let id = store.begin().await?.shared_key(BUCKET, new).await?;
    Ok(Some(id).filter(|id| id != new))
}

/// Claims the bucket for this database, which no other replica can do meanwhile; answers which one another has claimed before.
async fn first(bucket: &S3Store, store: &dyn Store, new: &str) -> anyhow::Result<Option<String>> {
    let mut tx = store.begin().await?;
    let id = tx.shared_key(BUCKET, new).await?;
    if id != new {
        return Ok(Some(id));
    }
    let claimed = match bucket.claim(new).await {
        Ok(claimed) => claimed,
        Err(error) if error.is_refusal() => return Err(named(error)),
        // It is claimed by the next start that reaches it.
        Err(error) => {
            tracing::warn!(%error, "which bucket it is, is not known yet");
            return Ok(None);
        }
    };
    if claimed != new {
        tx.forget_shared_key(BUCKET).await?;
        tx.shared_key(BUCKET, &claimed).await?;
    }
    tx.commit().await?;
    Ok(None)
}

/// With the setting that it is about.
fn named(error: impl Into<OpenError>) -> anyhow::Error {
    match error.into() {
        OpenError::Folder(error) => anyhow::Error::new(error).context("STORAGE_BASE_PATH"),
        OpenError::Bucket(error) => {
            let setting = if error.is_of_another_bucket() {
                "STORAGE_S3_BUCKET"
            } else {
                "STORAGE_S3_ENDPOINT"
            };
            anyhow::Error::new(error).context(setting)
        }
    }
}
