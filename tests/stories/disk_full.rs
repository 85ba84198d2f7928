//! Room for no more: an upload is refused in good order, nothing of it stays, and the service goes on. The room is made small
//! by a limit on the size of files, which needs no rights; what a file system says when it is full is in the tests of `objects`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{
    Device, MqttVersion, Options, Service, SmallDisk, device_json, eventually, image_metadata,
};

matrix!(an_upload_to_a_full_disk_is_refused_and_leaves_nothing: sqlite_gateway, postgres_gateway);
matrix!(a_log_that_cannot_be_written_harms_nothing: sqlite_gateway);
matrix!(nobody_is_sent_to_a_service_whose_database_takes_no_writes: sqlite_gateway);

/// The shell counts in blocks of 512 bytes: eight mebibytes, more than the database is. The signal that comes with the
/// limit would end the process.
const SMALL_FILES: &str = "trap '' XFSZ; ulimit -f 16384";

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

async fn an_upload_to_a_full_disk_is_refused_and_leaves_nothing(options: Options) {
    let storage = tempfile::tempdir().unwrap();
    let options = options
        .after(SMALL_FILES)
        .with("STORAGE_BASE_PATH", storage.path().display().to_string())
        .expecting_error("too large");
    let service = Service::start(options).await;
    let admin = service.admin();
    let before = files(storage.path());
    let large = vec![7; 9 * 1024 * 1024];
    let metadata = image_metadata("2.1.0");
    let answer = admin.upload(&metadata, "image.bin", large).await;
    let body = answer.refused(503);
    insta::allow_duplicates! { insta::assert_json_snapshot!(body, { ".request_id" => "[id]" }, @r#"
    {
      "code": "storage_unavailable",
      "detail": "the firmware store is full; free some space and upload again",
      "request_id": "[id]"
    }
    "#) }
    assert_eq!(files(storage.path()), before, "nothing of it is left");
    let list = admin.get("/api/v1/ota/firmware").await.expect(200);
    assert_eq!(list["firmware"], json!([]));

    // What fits is taken.
    let small = vec![7; 1024 * 1024];
    let answer = admin.upload(&metadata, "image.bin", small).await;
    answer.expect(201);
    service.register(device_json("frame-1")).await;
    assert_eq!(admin.get("/health").await.status, 200);
}

async fn a_log_that_cannot_be_written_harms_nothing(options: Options) {
    let mut service = Service::start(options.after("exec 2> /dev/full")).await;
    // It is logged, and the secret is told this once.
    let credentials = service.register(device_json("frame-1")).await;
    let device = Device::connect(&service, MqttVersion::V5, &credentials).await;
    let image = service.admin().image("2.1.0").await;
    let path = format!("/api/v1/ota/firmware/{image}");
    service.admin().delete(&path).await.expect(200);
    device.leave().await;
    service.stop().await;
}

async fn nobody_is_sent_to_a_service_whose_database_takes_no_writes(options: Options) {
    let disk = SmallDisk::mount(24);
    let database = disk.path().join("device-ota.db");
    let url = format!("sqlite://{}", database.display());
    let service = Service::start(options.with("DATABASE_URL", url)).await;
    let admin = service.admin();
    assert_eq!(admin.get("/health/ready").await.status, 200);
    let filler = disk.fill();
    // Some still find room in the files that there are.
    let crowd = |first: usize| -> Vec<Value> {
        let device = |n| {
            let mut device = device_json(&format!("frame-{n}"));
            device["tags"] = json!({ "note": "x".repeat(128), "more": "y".repeat(128) });
            device
        };
        (first..first + 1_000).map(device).collect()
    };
    let mut taken = 0;
    let refused = loop {
        let devices = json!({ "devices": crowd(taken) });
        let answer = admin.post("/api/v1/ota/devices", devices).await;
        if answer.status != 201 {
            break answer.refused(503);
        }
        taken += 1_000;
        assert!(taken < 100_000, "the disk is never full");
    };
    let why = "the database takes no writes: its disk is full; free some space";
    assert_eq!(refused["detail"], why);
    let not_ready = eventually("the service is not ready", async || {
        let ready = admin.get("/health/ready").await; // as it was a second ago
        (ready.status == 503)
            .then_some(ready.body)
            .ok_or_else(String::new)
    })
    .await;
    insta::assert_json_snapshot!(not_ready, { ".version" => "[version]" }, @r#"
    {
      "detail": "the database takes no writes: its disk is full; free some space",
      "service": "ota_service",
      "status": "not_ready",
      "version": "[version]"
    }
    "#);
    let detailed = admin.get("/health/detailed").await;
    assert_eq!(detailed.status, 503);
    let part = &detailed.body["components"]["database"];
    assert_eq!(*part, json!({ "status": "unhealthy", "detail": why }));
    assert_eq!(
        admin.get("/health/live").await.status,
        200,
        "a new start would not help"
    );

    std::fs::remove_file(filler).unwrap();
    admin.is_ready(true).await; // though nobody writes
    service.register(device_json("frame-late")).await;
}
