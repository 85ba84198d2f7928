//! A full disk: an upload is refused in good order, nothing of it stays, and the service goes on.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::harness::{Options, Service, device_json, image_metadata};

matrix!(an_upload_to_a_full_disk_is_refused_and_leaves_nothing: sqlite_gateway, postgres_gateway);

/// A file system of two megabytes; unmounted with the test.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m,mode=0700", "device-ota-test"])
            .arg(folder.path())
            .status()
            .expect("mount is installed");
        assert!(
            mounted.success(),
            "this story mounts a small disk, and so must run as root"
        );
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Every file on it.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![self.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let list = if entry.file_type().unwrap().is_dir() {
                    &mut folders
                } else {
                    &mut files
                };
                list.push(entry.path());
            }
        }
        files
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

async fn an_upload_to_a_full_disk_is_refused_and_leaves_nothing(options: Options) {
    let disk = SmallDisk::mount();
    let path = disk.path().display().to_string();
    let options = options
        .with("STORAGE_BASE_PATH", path)
        .expecting_error("space");
    let service = Service::start(options).await;
    let admin = service.admin();
    let before = disk.files();
    let answer = admin
        .upload(
            &image_metadata("2.1.0"),
            "image.bin",
            vec![7; 5 * 1024 * 1024],
        )
        .await;
    let body = answer.refused(503);
    insta::allow_duplicates! { insta::assert_json_snapshot!(body, { ".request_id" => "[id]" }, @r#"
    {
      "code": "storage_unavailable",
      "detail": "the firmware store is full; free some space and upload again",
      "request_id": "[id]"
    }
    "#) }
    assert_eq!(disk.files(), before, "nothing of it is left");
    let list = admin.get("/api/v1/ota/firmware").await.expect(200);
    assert_eq!(list["firmware"], json!([]));

    // What fits is taken, so the space of the failed upload is free again.
    admin
        .upload(&image_metadata("2.1.0"), "image.bin", vec![7; 1024 * 1024])
        .await
        .expect(201);
    service.register(device_json("frame-1")).await;
    assert_eq!(admin.get("/health").await.status, 200);
}
