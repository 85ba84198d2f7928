//! The data folder: made private, locked for one process, its secrets written so that a crash leaves all or nothing.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use device_ota_engine::ports::Entropy;
use device_ota_engine::ports::clock::random;

/// The folder, locked while this lives.
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the folder if it is missing, and locks it. Refused while another process has it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("DATA_DIR: {} cannot be made", path.display()))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("DATA_DIR: {} cannot be written", lock_path.display()))?;
        lock.try_lock().with_context(|| {
            format!(
                "DATA_DIR: {} is in use by another device-ota; end it, or choose another folder",
                path.display()
            )
        })?;
        let path = fs::canonicalize(path)?;
        Ok(Self { path, _lock: lock })
    }

    /// A path inside.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The folder's name among all of them, made at the first start and kept.
    pub(crate) fn name(&self, entropy: &dyn Entropy) -> anyhow::Result<String> {
        let (name, _) = self.private("instance.id", || Ok(hex::encode(random::<8>(entropy))))?;
        Ok(name.trim().to_owned())
    }

    /// The content of a private file, made by `make` if it is missing; and whether it was made now.
    pub(crate) fn private(
        &self,
        name: &str,
        make: impl FnOnce() -> anyhow::Result<String>,
    ) -> anyhow::Result<(String, bool)> {
        let path = self.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok((text, false)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = make()?;
                write_private(&path, text.as_bytes())?;
                Ok((text, true))
            }
            Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
        }
    }
}

/// Writes a file that only its owner may read: beside its place, to the disk, then into its place.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    write(path, content).with_context(|| format!("{} cannot be written", path.display()))
}

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = folder.join(name);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

/// Takes a file away, on the disk too.
pub(crate) fn remove_private(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::remove_file(path)
        .and_then(|()| File::open(folder)?.sync_all())
        .with_context(|| format!("{} cannot be removed", path.display()))
}
