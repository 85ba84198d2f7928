//! S3: a bucket that all processes of the service share, under `objects/<sha256>`, and a local folder before it.
//!
//! Uploads arrive in the folder, whether or not the bucket can be reached, and are handed over from there: written in parts,
//! read back, compared. Reads look in the folder first, where an object is until it has been let go. The folder is this
//! process's own; what lies in it is known to nobody else.

mod bucket;
mod error;
mod mark;
mod upload;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_domain::firmware::Storage;
use device_ota_engine::ports::{ObjectError, ObjectStream, ObjectWriter, Objects};
use jiff::Timestamp;

use crate::LocalFolder;
use bucket::Bucket;
pub use error::S3Error;
use upload::Notes;

/// Where a bucket is and what opens it.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Settings {
    /// `http://host:port` or `https://host`, as this process reaches it.
    pub endpoint: String,
    /// The same as clients reach it; `None`: they do not, and every byte goes through this process.
    pub public_endpoint: Option<String>,
    /// The bucket; it is made when it is not there.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// Who asks.
    pub access_key: String,
    /// What proves it.
    pub secret_key: String,
}

impl fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Settings")
            .field("endpoint", &self.endpoint)
            .field("public_endpoint", &self.public_endpoint)
            .field("bucket", &self.bucket)
            .field("region", &self.region)
            .field("access_key", &self.access_key)
            .field("secret_key", &format_args!("<hidden>"))
            .finish()
    }
}

impl S3Settings {
    /// Says what of it cannot be used, without asking anybody.
    pub fn check(&self) -> Result<(), S3Error> {
        Bucket::new(self).map(drop)
    }
}

/// Objects in a bucket, and in a local folder until they are there.
#[derive(Debug, Clone)]
pub struct S3Store {
    folder: LocalFolder,
    bucket: Arc<Bucket>,
    notes: Arc<Notes>,
    /// Which bucket it has to be; not said yet where it has never been reached.
    id: Arc<OnceLock<String>>,
}

impl S3Store {
    /// Opens the folder and makes the bucket where it is missing. A server that cannot be reached is no error: uploads wait in
    /// the folder for it. One that refuses is.
    pub async fn open(path: impl AsRef<Path>, settings: &S3Settings) -> Result<Self, OpenError> {
        Self::opened(path.as_ref(), settings, OnceLock::new()).await
    }

    /// The same with a bucket that was [claimed](Self::claim) before. One that is there and is another one, or none, is refused.
    pub async fn open_again(
        path: impl AsRef<Path>,
        settings: &S3Settings,
        id: String,
    ) -> Result<Self, OpenError> {
        Self::opened(path.as_ref(), settings, id.into()).await
    }

    async fn opened(
        path: &Path,
        settings: &S3Settings,
        id: OnceLock<String>,
    ) -> Result<Self, OpenError> {
        let store = Self {
            bucket: Arc::new(Bucket::new(settings)?),
            folder: LocalFolder::open(path)?,
            notes: Arc::new(Notes::open(path)?),
            id: Arc::new(id),
        };
        match store.is_there().await {
            Err(error) if error.is_refusal() => return Err(error.into()),
            Err(error) => tracing::warn!(%error, "images stay in the local folder until then"),
            Ok(()) => {}
        }
        Ok(store)
    }

    /// Makes this the bucket of a database, so that it is known again; answers what it is called from now on: `id`, unless it has
    /// an id already. To be done by one process at a time.
    pub async fn claim(&self, id: &str) -> Result<String, S3Error> {
        let mark = self.bucket.mark().await?;
        if mark.is_none() {
            self.bucket.set_mark(id).await?;
        }
        let mark = mark.unwrap_or_else(|| id.to_owned());
        Ok(self.id.get_or_init(|| mark).clone())
    }

    /// Sees to it that the right bucket is there; it is made where nobody has claimed one.
    async fn is_there(&self) -> Result<(), S3Error> {
        match self.id.get() {
            None => self.bucket.make().await,
            Some(id) => self.bucket.is(id).await,
        }
    }

    /// Whether the bucket has this object, with the bytes of its name.
    async fn has(&self, name: &str, size: u64) -> Result<bool, ObjectError> {
        Ok(self.bucket.size(name).await? == Some(size)
            && self.bucket.digest(name, size).await? == name)
    }
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The local folder.
    #[error(transparent)]
    Folder(#[from] std::io::Error),
    /// The bucket.
    #[error(transparent)]
    Bucket(#[from] S3Error),
}

#[async_trait]
impl Objects for S3Store {
    async fn create(&self) -> Result<Box<dyn ObjectWriter>, ObjectError> {
        self.folder.create().await
    }

    async fn open(&self, name: &str, range: Range<u64>) -> Result<ObjectStream, ObjectError> {
        match self.folder.open(name, range.clone()).await {
            Err(ObjectError::Missing(_)) if crate::name::is_name(name) => {
                self.bucket.open(name, range).await
            }
            here => here,
        }
    }

    async fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, ObjectError> {
        match self.folder.read(name, offset, length).await {
            Err(ObjectError::Missing(_)) if crate::name::is_name(name) => {
                self.bucket.read(name, offset, length).await
            }
            here => here,
        }
    }

    async fn remove(&self, name: &str) -> Result<(), ObjectError> {
        self.folder.remove(name).await
    }

    async fn recorded(&self, name: &str) -> Result<(), ObjectError> {
        self.folder.recorded(name).await
    }

    async fn unrecorded(&self) -> Result<Vec<String>, ObjectError> {
        self.folder.unrecorded().await
    }

    fn storage(&self) -> Storage {
        Storage::S3
    }

    async fn waiting(&self) -> Result<Vec<String>, ObjectError> {
        self.folder.names().await
    }

    async fn hand_over(&self, name: &str) -> Result<(), ObjectError> {
        let Some(size) = self.folder.size(name).await? else {
            // Let go before: then it is there.
            return match self.bucket.size(name).await? {
                Some(_) => Ok(()),
                None => Err(ObjectError::Missing(name.to_owned())),
            };
        };
        self.is_there().await?;
        self.notes.clear(&self.bucket, name).await?;
        if self.has(name, size).await? {
            return Ok(());
        }
        let bytes = self.folder.open(name, 0..size).await?;
        upload::put(&self.bucket, &self.notes, name, bytes, size).await?;
        if self.has(name, size).await? {
            Ok(())
        } else {
            Err(self.bucket.damaged().into())
        }
    }

    async fn let_go(&self, name: &str) -> Result<(), ObjectError> {
        self.folder.remove(name).await
    }

    async fn link(
        &self,
        name: &str,
        file_name: &str,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Option<String>, ObjectError> {
        Ok(self.bucket.link(name, file_name, now, lifetime).await?)
    }

    async fn ping(&self) -> Result<(), ObjectError> {
        self.folder.ping().await?;
        Ok(self.bucket.ping().await?)
    }
}
