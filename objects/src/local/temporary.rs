//! A file that goes away unless it becomes an object.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::layout::Layout;

/// A file in `tmp/`; dropped, it is removed. All its methods wait for the disk.
#[derive(Debug)]
pub(super) struct Temporary {
    file: File,
    path: PathBuf,
    installed: bool,
}

impl Temporary {
    /// A new, empty file.
    pub(super) fn create(layout: &Layout) -> io::Result<Self> {
        let path = layout.temporary();
        let file = File::create_new(&path)?;
        Ok(Self {
            file,
            path,
            installed: false,
        })
    }

    /// Appends the pieces.
    pub(super) fn write_all(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        pieces
            .iter()
            .try_for_each(|piece| self.file.write_all(piece))
    }

    /// A second handle, to write it to the disk while more is appended.
    pub(super) fn second_handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Makes it durable under the object's path.
    pub(super) fn install(mut self, layout: &Layout, object: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        layout.install(&self.path, object)?;
        self.installed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.installed {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // The sweep at the next start takes it away.
            tracing::warn!(file.path = %self.path.display(), %error, "a half-written object stays behind");
        }
    }
}
