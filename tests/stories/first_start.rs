//! A bare machine: nothing is set up, and the service runs; it ends when asked, and finds everything as it was.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{
    Device, MqttVersion, Options, Service, device_json, eventually, image_metadata,
};

/// The longest that an end may take (issue: "Ctrl-C ends it cleanly within 5 s").
const END_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of an image that no socket holds.
const LARGE: usize = 32 * 1024 * 1024;

matrix!(nothing_is_set_up_and_it_runs: sqlite_gateway);
matrix!(an_end_and_a_second_start_change_nothing);
matrix!(one_folder_is_for_one_process: sqlite_gateway);

async fn nothing_is_set_up_and_it_runs(options: Options) {
    let service = Service::start(options.without("RATE_LIMIT_API")).await;
    let screen = service.log().lines().join("\n").to_lowercase();
    let ready = service.ready();
    let mqtt = ready.mqtt.as_deref().unwrap();
    for said in [&ready.http, mqtt, "admin.key", "development mode", "curl"] {
        assert!(
            screen.contains(said),
            "the first screen says {said:?}: {screen}"
        );
    }
    assert!(
        !screen.contains(service.key()),
        "the key itself is a secret"
    );
    assert!(ready.admin_key_file.ends_with("admin.key"));
    every_secret_is_private(&service.data_dir());

    let admin = service.admin();
    for path in ["/health", "/health/", "/health/ready", "/health/live"] {
        let plain = admin.client().get(admin.url(path)).send().await.unwrap();
        assert_eq!(plain.status(), 200, "{path}");
    }
    assert_eq!(admin.health().await["status"], "healthy");
    let stranger = admin
        .client()
        .get(admin.url("/api/v1/ota/campaigns"))
        .send()
        .await
        .unwrap();
    assert_eq!(stranger.status(), 401);
    let internal = admin
        .client()
        .get(admin.url("/api/v1/ota/campaigns"))
        .header("X-Internal-Call", "true");
    assert_eq!(
        internal.send().await.unwrap().status(),
        401,
        "X-Internal-Call is no credential"
    );
    let by_key = admin
        .client()
        .get(admin.url("/api/v1/ota/campaigns"))
        .header("X-API-Key", service.key());
    assert_eq!(by_key.send().await.unwrap().status(), 200);
}

/// Files are for their owner alone, and so are folders.
fn every_secret_is_private(folder: &Path) {
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            every_secret_is_private_or_empty(&path);
        } else {
            assert_eq!(mode, 0o600, "{} has mode {mode:o}", path.display());
            seen += 1;
        }
    }
    assert!(
        seen > 1,
        "the folder holds at least the admin key and the database"
    );
    let mode = fs::metadata(folder).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700, "{} has mode {mode:o}", folder.display());
}

fn every_secret_is_private_or_empty(folder: &Path) {
    if fs::read_dir(folder)
        .unwrap()
        .any(|entry| entry.unwrap().file_type().unwrap().is_file())
    {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o077;
            assert_eq!(mode, 0, "{} is open to others", entry.path().display());
        }
    }
}

fn files_in(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

/// An upload of which more never comes.
async fn unending_upload(service: &Service) -> TcpStream {
    let mut stream = TcpStream::connect(&service.ready().http).await.unwrap();
    let head = format!(
        "POST /api/v1/ota/firmware HTTP/1.1\r\nHost: x\r\nX-API-Key: {}\r\nContent-Length: 100000000\r\n\
         Content-Type: multipart/form-data; boundary=b\r\n\r\n\
         --b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\n\r\nhalf an image",
        service.key()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let folder = service.data_dir().join("storage/tmp");
    eventually("the upload is under way", async || {
        (files_in(&folder) == 1)
            .then_some(())
            .ok_or_else(String::new)
    })
    .await;
    stream
}

/// A download that has begun, and is not read.
async fn unread_download(service: &Service, firmware: &str) -> TcpStream {
    let path = format!("/api/v1/ota/firmware/{firmware}/download");
    let grant = service.admin().get(&path).await.expect(200);
    let http = &service.ready().http;
    let path = grant["url"]
        .as_str()
        .unwrap()
        .split_once(http.as_str())
        .unwrap()
        .1;
    let mut stream = TcpStream::connect(http).await.unwrap();
    let ask = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
    stream
}

async fn an_end_and_a_second_start_change_nothing(options: Options) {
    let mut service = Service::start(options).await;
    let admin = service.admin();
    let credentials = service.register(device_json("frame-1")).await;
    let firmware = admin.image("2.1.0").await;
    let campaign = admin
        .create_campaign(json!({ "name": "n", "firmware_id": firmware }))
        .await;
    let trust = admin.get("/api/v1/ota/trust/root").await.expect(200);
    let image = admin
        .get(&format!("/api/v1/ota/firmware/{firmware}"))
        .await
        .expect(200);
    let read = admin.campaign(&campaign).await;
    let (key, ready) = (service.key().to_owned(), service.ready().clone());
    let metadata = image_metadata("3.0.0");
    let large = admin.upload(&metadata, "a.bin", vec![7; LARGE]).await;
    let large = large.expect(201)["firmware_id"].to_string();

    // What could hold it up: a connected device, a client that has opened a connection and says nothing, an upload that
    // never ends, and a download that nobody reads.
    let upload = unending_upload(&service).await;
    let download = unread_download(&service, large.trim_matches('"')).await;
    let device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    let silent = TcpStream::connect(&ready.http).await.unwrap();
    let asked = Instant::now();
    service.signal(Signal::SIGINT);
    let status = service.ended().await;
    assert_eq!(status.code(), Some(0), "ended with {status}");
    assert!(asked.elapsed() < END_WITHIN, "took {:?}", asked.elapsed());
    drop((device, silent, upload, download));

    service.start_again().await;
    assert_eq!(service.key(), key);
    assert_eq!(*service.ready(), ready);
    assert_eq!(admin.get("/api/v1/ota/trust/root").await.expect(200), trust);
    assert_eq!(
        admin
            .get(&format!("/api/v1/ota/firmware/{firmware}"))
            .await
            .expect(200),
        image
    );
    let list = admin.get("/api/v1/ota/firmware").await.expect(200);
    assert_eq!(list["firmware"].as_array().unwrap().len(), 2);
    assert_eq!(files_in(&service.data_dir().join("storage/tmp")), 0);
    assert_eq!(admin.campaign(&campaign).await, read);
    Device::connect(&service, MqttVersion::V5, &credentials)
        .await
        .leave()
        .await;
    // The terminal is closed.
    service.signal(Signal::SIGHUP);
    let status = service.ended().await;
    assert_eq!(status.code(), Some(0), "ended with {status}");
}

async fn one_folder_is_for_one_process(options: Options) {
    let service = Service::start(options).await;
    let mut second = service.command(&service.data_dir());
    for port in ["HTTP_ADDR", "MQTT_ADDR", "MQTT_BUS_ADDR"] {
        second.env(format!("DEVICE_OTA_{port}"), "127.0.0.1:0");
    }
    let output = tokio::task::spawn_blocking(move || second.output().unwrap())
        .await
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("in use"), "{said}");
    assert!(said.contains("DATA_DIR"), "names the setting: {said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(
        service.admin().health().await["status"],
        "healthy",
        "the first one goes on"
    );
}
