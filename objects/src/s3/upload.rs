//! An object on its way to the bucket: in parts, of which a few are in memory at a time.
//!
//! The id of an upload in parts is noted in a file before the first part is sent, so that whatever ends the process, the next
//! attempt takes back what this one left there.

use std::io;
use std::path::{Path, PathBuf};

use device_ota_engine::ports::{ObjectError, ObjectStream};
use futures_util::stream::FuturesOrdered;
use futures_util::{StreamExt as _, TryStreamExt as _};
use minio::s3::segmented_bytes::SegmentedBytes;
use minio::s3::types::UploadId;
use tokio::fs;

use super::bucket::Bucket;

/// Bytes of a part: 60 parts for the largest image.
pub(super) const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Parts that are on their way at once: as much memory as an upload takes. While one waits for its answer, the other is sent.
const PARTS_AT_ONCE: usize = 2;

/// Where the ids of uploads under way are noted.
#[derive(Debug)]
pub(super) struct Notes {
    folder: PathBuf,
}

impl Notes {
    /// Makes the folder where it is missing.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let folder = root.join("uploads");
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// Takes back what an earlier attempt left in the bucket, if it left anything.
    pub(super) async fn clear(&self, bucket: &Bucket, name: &str) -> Result<(), ObjectError> {
        match fs::read_to_string(self.folder.join(name)).await {
            Ok(noted) => {
                if let Ok(upload) = UploadId::new(noted)
                    && let Err(error) = bucket.abort(name, &upload).await
                {
                    if error.code().is_none() {
                        return Err(error.into());
                    }
                    // It is over, in the words of this server; or parts stay, and no later attempt will do better.
                    tracing::warn!(%error, "what an earlier upload may have left is left to the server");
                }
                self.forget(name).await
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    async fn note(&self, name: &str, upload: &UploadId) -> Result<(), ObjectError> {
        let noted = fs::write(self.folder.join(name), upload.as_str()).await;
        noted.map_err(failed)
    }

    async fn forget(&self, name: &str) -> Result<(), ObjectError> {
        let removed = fs::remove_file(self.folder.join(name)).await;
        removed.map_err(failed)
    }
}

/// Writes the bytes to the bucket; leaves the object or nothing there.
pub(super) async fn put(
    bucket: &Bucket,
    notes: &Notes,
    name: &str,
    mut bytes: ObjectStream,
    size: u64,
) -> Result<(), ObjectError> {
    if size <= PART_BYTES {
        let whole = next_part(&mut bytes).await?;
        return Ok(bucket.put(name, whole).await?);
    }
    let upload = bucket.begin(name).await?;
    notes.note(name, &upload).await?;
    let done = put_parts(bucket, name, &upload, bytes).await;
    if done.is_err()
        && let Err(error) = bucket.abort(name, &upload).await
    {
        // The note stays, and with it the next attempt's knowledge.
        tracing::debug!(%error, object.name = name, "parts of an upload stay for now");
        return done;
    }
    notes.forget(name).await?;
    done
}

async fn put_parts(
    bucket: &Bucket,
    name: &str,
    upload: &UploadId,
    mut bytes: ObjectStream,
) -> Result<(), ObjectError> {
    let (mut under_way, mut sent) = (FuturesOrdered::new(), Vec::new());
    let done = async {
        for number in 1.. {
            if under_way.len() == PARTS_AT_ONCE {
                sent.extend(under_way.try_next().await?);
            }
            let part = next_part(&mut bytes).await?;
            if part.is_empty() {
                break;
            }
            under_way.push_back(bucket.put_part(name, upload, number, part));
        }
        while let Some(part) = under_way.try_next().await? {
            sent.push(part);
        }
        Ok(())
    };
    if let Err(error) = done.await {
        // A part that came after the upload was taken back would stay.
        while under_way.next().await.is_some() {}
        return Err(error);
    }
    Ok(bucket.complete(name, upload, sent).await?)
}

/// The next bytes, [`PART_BYTES`] of them or what is left. The pieces of the local folder divide a part without a rest.
async fn next_part(bytes: &mut ObjectStream) -> Result<SegmentedBytes, ObjectError> {
    let mut part = SegmentedBytes::new();
    while (part.len() as u64) < PART_BYTES
        && let Some(piece) = bytes.try_next().await?
    {
        part.append(piece);
    }
    Ok(part)
}

fn failed(error: io::Error) -> ObjectError {
    ObjectError::Unavailable(Box::new(error))
}
