//! A disk of the test's own, which may be full, or closed to whoever writes.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system; unmounted with the test.
pub struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    pub fn mount(megabytes: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "device-ota-test", "-o"])
            .arg(format!("size={megabytes}m,mode=0700"))
            .arg(folder.path())
            .status()
            .expect("mount is installed");
        assert!(
            mounted.success(),
            "this story mounts a small disk, and so must run as root"
        );
        Self { folder }
    }

    /// Takes all the room that is left; whoever deletes the file gives it back.
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        let filled = std::io::copy(&mut std::io::repeat(0), &mut file).unwrap_err();
        assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
        path
    }

    /// From now on nothing is written to it.
    pub fn read_only(&self) {
        let mounted = Command::new("mount")
            .args(["-o", "remount,ro"])
            .arg(self.path())
            .status()
            .expect("mount is installed");
        assert!(mounted.success());
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .status();
    }
}
