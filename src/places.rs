//! Folders that a start makes, or makes files in, looked at without making anything.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, statfs};
use nix::unistd::{AccessFlags, access};

/// Whether files can be made in this folder; in its nearest parent that is there, when it is to be made.
pub(crate) fn can_hold(folder: &Path) -> anyhow::Result<()> {
    let there = nearest(folder)?;
    let shown = there.display();
    if !there.is_dir() {
        anyhow::ensure!(there != absolute(folder)?, "{shown} is not a folder");
        let folder = folder.display();
        anyhow::bail!("{folder} cannot be made: {shown} is not a folder; choose another place");
    }
    access(&there, AccessFlags::W_OK | AccessFlags::X_OK).with_context(|| {
        format!(
            "{shown} cannot be written to by this user; let the service's user write there, or choose another folder"
        )
    })?;
    // Permissions say nothing of these: not even root makes a file there.
    let kind = statfs(&there).map(|found| found.filesystem_type());
    anyhow::ensure!(
        !matches!(kind, Ok(PROC_SUPER_MAGIC | SYSFS_MAGIC)),
        "{shown} is the kernel's own, which keeps no files; choose another folder"
    );
    Ok(())
}

/// Without `.`, and from the root on, so that one can be compared with another.
pub(crate) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
}

fn nearest(path: &Path) -> anyhow::Result<PathBuf> {
    let path = absolute(path)?;
    for place in path.ancestors() {
        match place.try_exists() {
            Ok(true) => return Ok(place.to_owned()),
            Ok(false) => {}
            // A parent of it is a file.
            Err(error) if error.kind() == ErrorKind::NotADirectory => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("{} cannot be looked at", place.display()));
            }
        }
    }
    anyhow::bail!("{} is no path", path.display())
}
