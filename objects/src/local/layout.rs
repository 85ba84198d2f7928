//! Where things are in the folder, and which names may be.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::name::is_name;

/// Digits of a name that are its folder: 256 folders keep each one short.
const FOLDER_DIGITS: usize = 2;

/// The two folders, and a number for each temporary.
#[derive(Debug)]
pub(super) struct Layout {
    objects: PathBuf,
    temporaries: PathBuf,
    next_temporary: AtomicU64,
}

impl Layout {
    /// Makes the folders where they are missing.
    pub(super) fn create(root: &Path) -> io::Result<Self> {
        let layout = Self {
            objects: root.join("objects"),
            temporaries: root.join("tmp"),
            next_temporary: AtomicU64::new(0),
        };
        fs::create_dir_all(&layout.objects)?;
        fs::create_dir_all(&layout.temporaries)?;
        sync_folder(root)?;
        Ok(layout)
    }

    /// Removes every temporary; answers how many.
    pub(super) fn sweep(&self) -> io::Result<u64> {
        let mut swept = 0;
        for entry in fs::read_dir(&self.temporaries)? {
            fs::remove_file(entry?.path())?;
            swept += 1;
        }
        Ok(swept)
    }

    /// A path for a new temporary, never given twice.
    pub(super) fn temporary(&self) -> PathBuf {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        self.temporaries.join(number.to_string())
    }

    /// Where the object of that name is; `None` when it is no name, so that no path leads out of the folder.
    pub(super) fn object(&self, name: &str) -> Option<PathBuf> {
        is_name(name).then(|| {
            self.objects
                .join(name.get(..FOLDER_DIGITS).unwrap_or_default())
                .join(name)
        })
    }

    /// Moves a file that is on the disk to its name; an object that is already there is kept.
    pub(super) fn install(&self, temporary: &Path, object: &Path) -> io::Result<()> {
        let folder = object.parent().unwrap_or(&self.objects);
        if object.try_exists()? {
            return fs::remove_file(temporary);
        }
        if !folder.try_exists()? {
            fs::create_dir_all(folder)?;
            sync_folder(&self.objects)?;
        }
        fs::rename(temporary, object)?;
        sync_folder(folder)
    }

    /// Names of all objects.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for folder in fs::read_dir(&self.objects)? {
            for entry in fs::read_dir(folder?.path())? {
                if let Ok(name) = entry?.file_name().into_string()
                    && is_name(&name)
                {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }
}

/// Makes the entries of a folder durable.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
