//! Where things are in the folder, and which names may be.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::name::is_name;

/// Digits of a name that are its folder: 256 folders keep each one short.
const FOLDER_DIGITS: usize = 2;

/// The folders, and a number for each temporary.
#[derive(Debug)]
pub(super) struct Layout {
    objects: PathBuf,
    temporaries: PathBuf,
    notes: PathBuf,
    /// Held as long as the folder is in use.
    _lock: File,
    next_temporary: AtomicU64,
}

impl Layout {
    /// Makes the folders where they are missing.
    pub(super) fn create(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let layout = Self {
            objects: root.join("objects"),
            temporaries: root.join("tmp"),
            notes: root.join("unrecorded"),
            _lock: lock(root)?,
            next_temporary: AtomicU64::new(0),
        };
        for folder in [&layout.objects, &layout.temporaries, &layout.notes] {
            fs::create_dir_all(folder)?;
        }
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

    /// Moves a file that is on the disk to its name; an object that is already there is kept. Before that it is noted down
    /// that nobody has recorded it.
    pub(super) fn install(&self, temporary: &Path, object: &Path) -> io::Result<()> {
        let folder = object.parent().unwrap_or(&self.objects);
        if let Some(name) = object.file_name() {
            File::create(self.notes.join(name))?;
            sync_folder(&self.notes)?;
        }
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

    /// Forgets that nobody has recorded the object, if that was noted.
    pub(super) fn settle(&self, name: &str) -> io::Result<()> {
        if !is_name(name) {
            return Ok(());
        }
        match fs::remove_file(self.notes.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Names of objects of which nobody has said that they are recorded.
    pub(super) fn unrecorded(&self) -> io::Result<Vec<String>> {
        names_in(&self.notes)
    }

    /// Names of all objects.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for folder in fs::read_dir(&self.objects)? {
            names.extend(names_in(&folder?.path())?);
        }
        Ok(names)
    }
}

/// Two processes would sweep away what the other one is writing.
fn lock(root: &Path) -> io::Result<File> {
    let path = root.join("in-use.lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(io::Error::other(format!(
            "{} is in use by another device-ota; end it, or choose another folder",
            root.display()
        ))),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The names of objects among the files of a folder.
fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        if let Ok(name) = entry?.file_name().into_string()
            && is_name(&name)
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// Makes the entries of a folder durable.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
