//! An image comes in: right, wrong, too large, broken off, at five hundred megabytes; and goes out again in ranges.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use md5::Md5;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::harness::{
    Device, MqttVersion, Options, Service, Trust, device_json, eventually, image, image_metadata,
    in_seconds, within,
};

matrix!(the_documented_curl_command_uploads_a_real_binary: sqlite_gateway, postgres_gateway);
matrix!(the_same_again_is_the_same_record_and_other_bytes_are_a_conflict: sqlite_gateway, postgres_gateway);
matrix!(what_is_wrong_with_a_file_is_told_and_nothing_stays: sqlite_gateway, postgres_gateway);
matrix!(what_is_too_large_is_told_as_soon_as_it_is_known: sqlite_gateway);
matrix!(a_client_that_breaks_off_leaves_nothing: sqlite_gateway, postgres_gateway);
matrix!(a_link_serves_ranges_to_anyone_who_has_it_and_no_forgery: sqlite_gateway, postgres_gateway);
matrix!(a_download_counts_once_and_a_device_gets_what_it_is_offered: sqlite_gateway, postgres_gateway);
matrix!(memory_stays_flat_while_the_largest_image_comes_in: sqlite_gateway);

const FIRMWARE: &str = "/api/v1/ota/firmware";
const MIB: u64 = 1024 * 1024;
/// The largest image (PRD, E1-US1).
const LARGEST: u64 = 500_000_000;

/// A service whose images lie in a folder of their own.
async fn with_storage(options: Options) -> (Service, tempfile::TempDir) {
    let storage = tempfile::tempdir().unwrap();
    let path = storage.path().display().to_string();
    (
        Service::start(options.with("STORAGE_BASE_PATH", path)).await,
        storage,
    )
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        for entry in entries.map_while(Result::ok) {
            let list = if entry.path().is_dir() {
                &mut folders
            } else {
                &mut files
            };
            if entry.file_name() != "in-use.lock" {
                list.push(entry.path());
            }
        }
    }
    files
}

/// The upload as the PRD writes it; status and body.
async fn curl(service: &Service, metadata: &Value, file: &Path, more: &[&str]) -> (u16, Value) {
    let output = Command::new("curl")
        .args([
            "-sS",
            "-X",
            "POST",
            &service.admin().url(FIRMWARE),
            "-w",
            "\n%{http_code}",
        ])
        .args(["-H", &format!("Authorization: Bearer {}", service.key())])
        .args([
            "-F",
            &format!("metadata={metadata}"),
            "-F",
            &format!("file=@{}", file.display()),
        ])
        .args(more)
        .output()
        .await
        .expect("curl is installed");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    assert_ne!(
        status,
        "000",
        "no answer: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    (
        status.parse().unwrap(),
        serde_json::from_str(body).unwrap_or_else(|_| panic!("{text}")),
    )
}

async fn nothing_stays(service: &Service, storage: &Path) {
    let list = service.admin().get(FIRMWARE).await.expect(200);
    assert_eq!(list["firmware"], json!([]));
    eventually("the storage folder is empty", async || {
        match files(storage) {
            files if files.is_empty() => Ok(()),
            files => Err(format!("{files:?}")),
        }
    })
    .await;
}

async fn the_documented_curl_command_uploads_a_real_binary(options: Options) {
    let (service, storage) = with_storage(options).await;
    let file = service.scratch().join("firmware_v2.1.0.bin");
    std::fs::copy("/bin/bash", &file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let metadata = json!({
        "name": "Smart Frame Firmware", "version": "2.1.0", "device_model": "SF-100", "manufacturer": "Acme",
        "description": "Bug fixes and performance improvements", "is_security_update": false,
    });
    let (status, body) = curl(&service, &metadata, &file, &[]).await;
    assert_eq!(status, 201, "{body:#}");
    assert_eq!(body["file_size"], bytes.len());
    assert_eq!(
        body["checksum_md5"],
        hex::encode(Md5::digest(&bytes)).as_str()
    );
    assert_eq!(
        body["checksum_sha256"],
        hex::encode(Sha256::digest(&bytes)).as_str()
    );
    let id = hex::encode(Sha256::digest("Smart Frame Firmware:2.1.0:SF-100"));
    assert_eq!(
        body["firmware_id"].as_str(),
        id.get(..32),
        "made from name, version and model"
    );
    insta::allow_duplicates! { insta::assert_json_snapshot!(body, {
        ".created_at" => "[time]", ".updated_at" => "[time]", ".checksum_md5" => "[md5]",
        ".checksum_sha256" => "[sha256]", ".file_size" => "[size]",
    }, @r#"
    {
      "checksum_md5": "[md5]",
      "checksum_sha256": "[sha256]",
      "created_at": "[time]",
      "created_by": "admin",
      "deprecated_at": null,
      "description": "Bug fixes and performance improvements",
      "device_model": "SF-100",
      "download_count": 0,
      "file_size": "[size]",
      "file_url": "/api/v1/firmware/770987aca3a746dfa5bef4f8b0e59f22/download",
      "firmware_id": "770987aca3a746dfa5bef4f8b0e59f22",
      "format": "bin",
      "hw_revisions": [],
      "is_beta": false,
      "is_security_update": false,
      "manufacturer": "Acme",
      "min_battery_percent": null,
      "min_free_storage_bytes": null,
      "name": "Smart Frame Firmware",
      "release_notes": null,
      "security_version": 0,
      "status": "active",
      "storage": "local",
      "success_rate": 0.0,
      "updated_at": "[time]",
      "version": "2.1.0"
    }
    "#) }
    let read = service
        .admin()
        .get(&format!(
            "{FIRMWARE}/{}",
            body["firmware_id"].as_str().unwrap()
        ))
        .await
        .expect(200);
    assert_eq!(read, body);
    assert_eq!(files(storage.path()).len(), 1);
    service
        .admin()
        .get(&format!("{FIRMWARE}/ffffffffffffffffffffffffffffffff"))
        .await
        .refused(404);
}

async fn the_same_again_is_the_same_record_and_other_bytes_are_a_conflict(options: Options) {
    let (service, storage) = with_storage(options).await;
    let admin = service.admin();
    let first = admin
        .upload(&image_metadata("2.1.0"), "a.bin", image("2.1.0"))
        .await
        .expect(201);
    let again = admin
        .upload(&image_metadata("2.1.0"), "a.bin", image("2.1.0"))
        .await
        .expect(200);
    assert_eq!(again, first);
    admin
        .upload(&image_metadata("2.1.0"), "a.bin", image("other"))
        .await
        .refused(409);
    let list = admin
        .get(&format!("{FIRMWARE}?device_model=SF-100"))
        .await
        .expect(200);
    assert_eq!(list["firmware"], json!([first]));
    assert_eq!((&list["count"], &list["offset"]), (&json!(1), &json!(0)));
    eventually("one object, and nothing half-made", async || {
        let files = files(storage.path());
        if files.len() == 1 {
            Ok(())
        } else {
            Err(format!("{files:?}"))
        }
    })
    .await;
}

async fn what_is_wrong_with_a_file_is_told_and_nothing_stays(options: Options) {
    let (service, storage) = with_storage(options).await;
    let admin = service.admin();
    for field in ["checksum_sha256", "checksum_md5"] {
        let mut metadata = image_metadata("2.1.0");
        metadata[field] = json!("0".repeat(if field == "checksum_md5" { 32 } else { 64 }));
        let told = admin
            .upload(&metadata, "a.bin", image("2.1.0"))
            .await
            .refused(422);
        assert!(
            told["detail"].as_str().unwrap().contains("checksum"),
            "{told}"
        );
    }
    let good = image_metadata("2.1.0");
    for name in [
        "firmware.exe",
        "firmware",
        "firmware.bin.txt",
        "../firmware.sh",
    ] {
        admin.upload(&good, name, image("2.1.0")).await.refused(400);
    }
    admin.upload(&good, "a.bin", Vec::new()).await.refused(400);
    admin
        .upload(&json!({ "name": "n" }), "a.bin", image("2.1.0"))
        .await
        .refused(400);
    nothing_stays(&service, storage.path()).await;

    // With its true checksums the same file is taken.
    let mut metadata = good;
    metadata["checksum_sha256"] = json!(hex::encode(Sha256::digest(image("2.1.0"))));
    metadata["checksum_md5"] = json!(hex::encode(Md5::digest(image("2.1.0"))));
    admin
        .upload(&metadata, "a.tar.gz", image("2.1.0"))
        .await
        .expect(201);
}

/// The head of an upload by hand; the body begins with the metadata and the file's own head.
fn head(service: &Service, length: &str, file_name: &str) -> String {
    let first = format!(
        "--b\r\nContent-Disposition: form-data; name=\"metadata\"\r\n\r\n{}\r\n\
         --b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{file_name}\"\r\n\r\n",
        image_metadata("2.1.0")
    );
    let body = if length.starts_with("Transfer") {
        format!("{:x}\r\n{first}\r\n", first.len())
    } else {
        first
    };
    format!(
        "POST {FIRMWARE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Type: multipart/form-data; boundary=b\r\n{length}\r\n\r\n{body}",
        service.key()
    )
}

/// The first line of what comes back, while the request is still open.
async fn first_line(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(line).unwrap()
}

async fn what_is_too_large_is_told_as_soon_as_it_is_known(options: Options) {
    let (service, storage) = with_storage(options).await;
    // The length is said at once, and so is the answer: not one byte of the file has gone.
    let long = format!("Content-Length: {}", LARGEST + 10 * MIB);
    let wrong_suffix = "Content-Length: 100000".to_owned();
    for (length, name) in [(long, "a.bin"), (wrong_suffix, "a.exe")] {
        let mut stream = TcpStream::connect(&service.ready().http).await.unwrap();
        stream
            .write_all(head(&service, &length, name).as_bytes())
            .await
            .unwrap();
        let line = within("the answer comes before the file", first_line(&mut stream)).await;
        assert!(
            line.starts_with("HTTP/1.1 400"),
            "{length} {name}: {line:?}"
        );
    }

    // A length that nobody says is known at the byte too many.
    let stream = TcpStream::connect(&service.ready().http).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let head = head(&service, "Transfer-Encoding: chunked", "a.bin");
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    let sender = tokio::spawn(async move {
        writer.write_all(head.as_bytes()).await.unwrap();
        let mut chunk = format!("{MIB:x}\r\n").into_bytes();
        chunk.resize(chunk.len() + usize::try_from(MIB).unwrap(), 7);
        chunk.extend(b"\r\n");
        while counted.load(Ordering::Relaxed) < 2 * LARGEST
            && writer.write_all(&chunk).await.is_ok()
        {
            counted.fetch_add(MIB, Ordering::Relaxed);
        }
    });
    let line = within("the answer comes before the end", first_line(&mut reader)).await;
    assert!(line.starts_with("HTTP/1.1 400"), "{line:?}");
    let sent = sent.load(Ordering::Relaxed);
    assert!(
        sent < LARGEST + 64 * MIB,
        "{sent} bytes had gone before the answer came"
    );
    sender.abort();
    drop((sender.await, reader));
    nothing_stays(&service, storage.path()).await;
}

async fn a_client_that_breaks_off_leaves_nothing(options: Options) {
    let (service, storage) = with_storage(options).await;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(&service.ready().http).await.unwrap();
        stream
            .write_all(head(&service, "Content-Length: 5000000", "a.bin").as_bytes())
            .await
            .unwrap();
        stream.write_all(&vec![7; 3_000_000]).await.unwrap();
        eventually("some of it is on the disk", async || {
            let seen = files(storage.path());
            if seen.is_empty() {
                Err("nothing".to_owned())
            } else {
                Ok(())
            }
        })
        .await;
        drop(stream);
        nothing_stays(&service, storage.path()).await;
    }
    service.admin().image("2.1.0").await;
}

async fn a_link_serves_ranges_to_anyone_who_has_it_and_no_forgery(options: Options) {
    let (service, _storage) = with_storage(options).await;
    let admin = service.admin();
    let id = admin.image("2.1.0").await;
    let bytes = image("2.1.0");
    let grant = admin
        .get(&format!("{FIRMWARE}/{id}/download"))
        .await
        .expect(200);
    insta::allow_duplicates! { insta::assert_json_snapshot!(grant, {
        ".url" => "[url]", ".expires_at" => "[time]", ".checksum_md5" => "[md5]", ".checksum_sha256" => "[sha256]",
    }, @r#"
    {
      "checksum_md5": "[md5]",
      "checksum_sha256": "[sha256]",
      "expires_at": "[time]",
      "file_size": 200000,
      "firmware_id": "770987aca3a746dfa5bef4f8b0e59f22",
      "url": "[url]",
      "version": "2.1.0"
    }
    "#) }
    let url = grant["url"].as_str().unwrap();
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(30))
        .build()
        .unwrap();

    let whole = client.get(url).send().await.unwrap();
    assert_eq!(whole.status(), 200);
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    let tag = whole.headers()["etag"].clone();
    assert_eq!(whole.bytes().await.unwrap(), bytes);
    let known = client.get(url).header("If-None-Match", tag.clone()).send();
    let known = known.await.unwrap();
    assert_eq!(known.status(), 304);
    assert!(known.bytes().await.unwrap().is_empty());
    let other = client.get(url).header("If-Match", "\"other\"").send();
    assert_eq!(other.await.unwrap().status(), 412);
    let head = client.head(url).send().await.unwrap();
    assert_eq!(
        (head.status().as_u16(), &head.headers()["content-length"]),
        (200, &"200000".parse().unwrap())
    );
    assert_eq!(head.headers()["etag"], tag);

    for (range, from, to) in [
        ("bytes=100-199", 100, 200),
        ("bytes=199990-", 199_990, 200_000),
        ("bytes=-5", 199_995, 200_000),
    ] {
        let part = client
            .get(url)
            .header("Range", range)
            .header("If-Range", tag.clone())
            .send()
            .await
            .unwrap();
        assert_eq!(part.status(), 206, "{range}");
        let said = format!("bytes {from}-{}/200000", to - 1);
        assert_eq!(part.headers()["content-range"], said.as_str());
        assert_eq!(
            Some(part.bytes().await.unwrap().as_ref()),
            bytes.get(from..to)
        );
    }
    let beyond = client
        .get(url)
        .header("Range", "bytes=200000-")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (beyond.status().as_u16(), &beyond.headers()["content-range"]),
        (416, &"bytes */200000".parse().unwrap())
    );
    let other = client
        .get(url)
        .header("Range", "bytes=0-1")
        .header("If-Range", "\"other\"")
        .send()
        .await
        .unwrap();
    assert_eq!(other.status(), 200, "another image's rest is of no use");

    the_time_of_a_link_cannot_be_changed(&client, url).await;
}

async fn a_download_counts_once_and_a_device_gets_what_it_is_offered(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let (id, other) = (admin.image("2.1.0").await, admin.image("2.2.0").await);
    let credentials = service.register(device_json("frame-1")).await;
    let path = format!("{FIRMWARE}/{id}/download");
    let basic = |path: &str| {
        let request = admin.client().get(admin.url(path));
        request.basic_auth(&credentials.username, Some(&credentials.password))
    };
    let refused = basic(&path).send().await.unwrap();
    assert_eq!(refused.status(), 403);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["code"], "no_offer");

    // Two links that were asked for count as two, however often they are followed; a look at the head is none.
    let (before, grant, after) = (
        in_seconds(3_599),
        admin.get(&path).await.expect(200),
        in_seconds(3_601),
    );
    let expires = grant["expires_at"].as_str().unwrap();
    let [before, expires, after] =
        [&before, expires, &after].map(|time| time.parse::<jiff::Timestamp>().unwrap());
    assert!(before <= expires && expires <= after, "one hour: {expires}");
    admin.get(&path).await.expect(200);
    let of_a_person = grant["url"].as_str().unwrap();
    for _ in 0..3 {
        let read = admin.client().get(of_a_person).send().await.unwrap();
        assert_eq!(read.bytes().await.unwrap(), image("2.1.0"));
    }
    let head = admin.client().head(admin.url(&path));
    assert_eq!(admin.send(head).await.status, 200);

    // A device gets a link to what it is offered, and to nothing else.
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    device.check("2.0.0", "boot").await;
    let update = json!({ "firmware_id": id });
    let update_path = "/api/v1/ota/devices/frame-1/update";
    admin.post(update_path, update).await.expect(201);
    let offer = device.offer(&trust).await;
    let granted = basic(&path).send().await.unwrap();
    assert_eq!(granted.status(), 200);
    let granted: Value = granted.json().await.unwrap();
    assert_eq!(granted["firmware_id"], id.as_str());
    let link = granted["url"].as_str().unwrap();
    let read = admin.client().get(link).send().await.unwrap();
    assert_eq!(read.bytes().await.unwrap(), image("2.1.0"));
    let refused = basic(&format!("{FIRMWARE}/{other}/download"));
    assert_eq!(refused.send().await.unwrap().status(), 403);

    // Its offer's own link counts when the device begins with it, not for each range; and so do chunks.
    let url = offer.assignment["urls"][0].as_str().unwrap();
    for range in ["bytes=0-99999", "bytes=100000-"] {
        let read = admin.client().get(url).header("Range", range);
        assert_eq!(read.send().await.unwrap().status(), 206);
    }
    let sha256 = &offer.release["sha256"];
    let ask = json!({ "request": 1, "sha256": sha256, "offset": 0, "length": 1_024, "count": 2 });
    device.report("chunk", &ask).await;
    device.message("down/chunk/1/1024").await;
    let counted = eventually("every download is counted", async || {
        let read = admin.get(&format!("{FIRMWARE}/{id}")).await.expect(200);
        match read["download_count"].as_u64() {
            Some(count) if count >= 5 => Ok(count),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(counted, 5, "three links, and the device began twice");

    // A device that is deleted keeps no link; whoever else asked for one does.
    admin
        .delete("/api/v1/ota/devices/frame-1")
        .await
        .expect(200);
    for link in [url, link] {
        let refused = admin.client().get(link).send().await.unwrap();
        assert_eq!(refused.status(), 403);
        let refused: Value = refused.json().await.unwrap();
        assert_eq!(refused["code"], "download_refused");
    }
    let read = admin.client().get(of_a_person).send().await.unwrap();
    assert_eq!(read.status(), 200);
}

/// Whatever digit or letter of the link's last part is another, the link is none.
async fn the_time_of_a_link_cannot_be_changed(client: &reqwest::Client, url: &str) {
    let (path, proof) = url.rsplit_once('/').unwrap();
    for (at, byte) in proof
        .bytes()
        .enumerate()
        .filter(|(_, byte)| byte.is_ascii_alphanumeric())
    {
        let mut forged = proof.as_bytes().to_vec();
        // Far enough from what it was to be seen even in the last digit of a base64 text.
        forged.splice(at..=at, [if byte == b'h' { b'1' } else { b'h' }]);
        let forged = format!("{path}/{}", String::from_utf8(forged).unwrap());
        let status = client.get(&forged).send().await.unwrap().status().as_u16();
        assert!(
            [400, 401, 403, 404].contains(&status),
            "{status} for {forged}, forged from {url}"
        );
    }
}

async fn memory_stays_flat_while_the_largest_image_comes_in(options: Options) {
    let (service, _storage) = with_storage(options).await;
    service.admin().image("2.0.0").await;
    let file = service.scratch().join("large.bin");
    std::fs::File::create(&file)
        .unwrap()
        .set_len(LARGEST)
        .unwrap();
    let before = service.peak_memory();
    let (status, body) = curl(&service, &image_metadata("2.1.0"), &file, &[]).await;
    assert_eq!(status, 201, "{body:#}");
    assert_eq!(body["file_size"], LARGEST);
    let growth = service.peak_memory() - before;
    assert!(growth < 64 * MIB, "grew by {} MiB", growth / MIB);
}
