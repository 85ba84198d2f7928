//! The local folder: `<path>/objects/<aa>/<sha256>` for objects, `<path>/tmp/` for what is being written, and in
//! `<path>/unrecorded/` a note of each object of which nobody has said yet that a row names it.
//!
//! An object appears by one rename of a file that is already on the disk, so a crash leaves either the whole object
//! or a temporary, and temporaries are swept when the folder is opened. One process owns a folder at a time, by a lock.

mod layout;
mod reader;
mod temporary;
mod writer;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_engine::ports::{ObjectError, ObjectStream, ObjectWriter, Objects};

use layout::Layout;
use temporary::Temporary;
use writer::Writer;

/// Objects in a folder of this machine.
#[derive(Debug, Clone)]
pub struct LocalFolder {
    layout: Arc<Layout>,
}

impl LocalFolder {
    /// Opens the folder, makes it when it is not there, and removes what a crash left half written. An error when another
    /// process has it.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let layout = Layout::create(path.as_ref())?;
        let swept = layout.sweep()?;
        if swept > 0 {
            tracing::info!(
                objects.swept = swept,
                "removed half-written objects of an earlier run"
            );
        }
        Ok(Self {
            layout: Arc::new(layout),
        })
    }

    /// Bytes of an object; `None` when it is not here.
    pub(crate) async fn size(&self, name: &str) -> Result<Option<u64>, ObjectError> {
        let name = name.to_owned();
        self.blocking(move |layout| {
            let Some(path) = layout.object(&name) else {
                return Ok(None);
            };
            match std::fs::metadata(path) {
                Ok(found) => Ok(Some(found.len())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(failed(error)),
            }
        })
        .await
    }

    /// Names of all objects here.
    pub(crate) async fn names(&self) -> Result<Vec<String>, ObjectError> {
        self.blocking(|layout| layout.names().map_err(failed)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layout) -> Result<T, ObjectError> + Send + 'static,
    ) -> Result<T, ObjectError> {
        let layout = Arc::clone(&self.layout);
        blocking(move || work(&layout)).await
    }
}

#[async_trait]
impl Objects for LocalFolder {
    async fn create(&self) -> Result<Box<dyn ObjectWriter>, ObjectError> {
        let temporary = self
            .blocking(|layout| Temporary::create(layout).map_err(failed))
            .await?;
        Ok(Box::new(Writer::new(Arc::clone(&self.layout), temporary)))
    }

    async fn open(&self, name: &str, range: Range<u64>) -> Result<ObjectStream, ObjectError> {
        let name = name.to_owned();
        let reader = self
            .blocking(move |layout| reader::Reader::open(layout, &name, range))
            .await?;
        Ok(reader.into_stream())
    }

    async fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, ObjectError> {
        let name = name.to_owned();
        self.blocking(move |layout| reader::read_at(layout, &name, offset, length))
            .await
    }

    async fn remove(&self, name: &str) -> Result<(), ObjectError> {
        let name = name.to_owned();
        self.blocking(move |layout| {
            let Some(path) = layout.object(&name) else {
                return Ok(());
            };
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
                _ => layout.settle(&name).map_err(failed),
            }
        })
        .await
    }

    async fn recorded(&self, name: &str) -> Result<(), ObjectError> {
        let name = name.to_owned();
        self.blocking(move |layout| layout.settle(&name).map_err(failed))
            .await
    }

    async fn unrecorded(&self) -> Result<Vec<String>, ObjectError> {
        self.blocking(|layout| layout.unrecorded().map_err(failed))
            .await
    }

    async fn ping(&self) -> Result<(), ObjectError> {
        self.blocking(|layout| {
            let mut temporary = Temporary::create(layout).map_err(failed)?;
            temporary
                .write_all(&[Bytes::from_static(b"ping")])
                .map_err(failed)
        })
        .await
    }
}

/// Runs work that may wait for the disk where that harms nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ObjectError> + Send + 'static,
) -> Result<T, ObjectError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|gone| ObjectError::Unavailable(Box::new(gone)))?
}

/// What an error of the file system means to the engine.
fn failed(error: io::Error) -> ObjectError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ObjectError::Full(error)
        }
        _ => ObjectError::Unavailable(Box::new(error)),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_folder_is_one_processs_own() {
        let folder = tempfile::tempdir().unwrap();
        let first = LocalFolder::open(folder.path()).unwrap();
        let error = LocalFolder::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        drop(first);
        LocalFolder::open(folder.path()).unwrap();
    }

    #[test]
    fn what_a_full_file_system_says_is_that_the_store_is_full() {
        let mut full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = failed(full.write_all(b"image").unwrap_err());
        assert!(matches!(error, ObjectError::Full(_)), "{error:?}");
    }
}
