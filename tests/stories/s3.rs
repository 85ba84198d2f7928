//! Images in a bucket: uploaded, rolled out, downloaded; the server away, the service killed, the settings changed.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use device_ota_objects::testing::{BUCKET, S3Server};
use device_sim::fleet::Verdict;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::fleet;
use crate::harness::{
    Admin, Device, MqttVersion, Options, Service, Trust, device_json, eventually, image_metadata,
};

matrix!(an_image_in_the_bucket_is_rolled_out_and_downloaded: sqlite_gateway, postgres_mosquitto);
matrix!(a_fleet_without_http_has_its_image_from_a_bucket_far_away: sqlite_gateway);
matrix!(links_lead_to_the_service_where_clients_do_not_reach_the_server: sqlite_gateway);
matrix!(memory_stays_flat_while_an_image_goes_to_the_bucket: sqlite_gateway);
matrix!(a_server_that_is_away_is_made_up_for: sqlite_gateway, postgres_gateway);
matrix!(a_kill_in_the_middle_of_the_move_loses_nothing: sqlite_gateway, postgres_gateway);
matrix!(images_of_the_folder_move_to_the_bucket_and_do_not_go_back_unseen: sqlite_gateway);
matrix!(who_is_refused_by_the_server_is_told_so_and_does_not_start: sqlite_gateway);
matrix!(another_bucket_is_refused_and_none_is_made: sqlite_gateway, postgres_gateway);
matrix!(an_image_that_does_not_get_there_is_told_of: sqlite_gateway);

const FIRMWARE: &str = "/api/v1/ota/firmware";
/// Three parts.
const LARGE: usize = 20 * 1024 * 1024;

/// Bytes in which every position tells itself from its neighbours.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    (0_u32..)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(LARGE)
        .collect()
});

fn large() -> Vec<u8> {
    BYTES.clone()
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// With a bucket, whose links go to clients.
fn on(server: &S3Server, options: Options) -> Options {
    let settings = server.settings();
    options
        .with("STORAGE_TYPE", "s3")
        .with("STORAGE_S3_ENDPOINT", &settings.endpoint)
        .with("STORAGE_S3_PUBLIC_ENDPOINT", settings.endpoint)
        .with("STORAGE_S3_BUCKET", settings.bucket)
        .with("STORAGE_S3_ACCESS_KEY", settings.access_key)
        .with("STORAGE_S3_SECRET_KEY", settings.secret_key)
}

async fn upload(admin: &Admin, version: &str, bytes: Vec<u8>) -> Value {
    let metadata = image_metadata(version);
    admin
        .upload(&metadata, "image.bin", bytes)
        .await
        .expect(201)
}

/// Images in the local folder.
fn here(service: &Service) -> Vec<String> {
    let folder = service.data_dir().join("storage/objects");
    let entries = |folder: &Path| {
        std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path())
    };
    entries(&folder)
        .flat_map(|folder| entries(&folder).collect::<Vec<_>>())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect()
}

async fn is_moved(admin: &Admin, firmware: &Value) -> Value {
    let path = format!("{FIRMWARE}/{}", firmware["firmware_id"].as_str().unwrap());
    eventually("the image is moved to the bucket", async || {
        let answer = admin.try_get(&path).await;
        let read = answer.map_err(|error| error.to_string())?.body;
        if read["storage"] == "s3" {
            Ok(read)
        } else {
            Err(read.to_string())
        }
    })
    .await
}

async fn link(admin: &Admin, firmware: &Value) -> String {
    let id = firmware["firmware_id"].as_str().unwrap();
    let grant = admin.get(&format!("{FIRMWARE}/{id}/download")).await;
    grant.expect(200)["url"].as_str().unwrap().to_owned()
}

/// What a link serves, to anybody, with the range if there is one.
async fn fetch(admin: &Admin, url: &str, range: Option<&str>) -> (u16, Vec<u8>) {
    let mut request = admin.client().get(url);
    if let Some(range) = range {
        request = request.header("Range", range);
    }
    let response = request.send().await.unwrap();
    (
        response.status().as_u16(),
        response.bytes().await.unwrap().to_vec(),
    )
}

async fn an_image_in_the_bucket_is_rolled_out_and_downloaded(options: Options) {
    let server = S3Server::start().await;
    let service = Service::start(on(&server, options)).await;
    let admin = service.admin();
    let firmware = upload(&admin, "2.1.0", large()).await;
    assert_eq!(firmware["storage"], "s3", "{firmware:#}");
    let object = server.object(&sha256(&large()));
    assert!(std::fs::read(&object).unwrap() == large());
    assert_eq!(server.unfinished(), [] as [String; 0]);
    assert_eq!(here(&service), [] as [String; 0]);
    assert_eq!(admin.health().await["status"], "healthy");

    // A link that is asked for leads to the server, for an hour, and counts when it is given out.
    let url = link(&admin, &firmware).await;
    assert!(
        url.starts_with(&format!("{}/{BUCKET}/", server.endpoint())),
        "{url}"
    );
    assert!(url.contains("X-Amz-Expires=3600"), "{url}");
    assert!(fetch(&admin, &url, None).await == (200, large()));
    let part = fetch(&admin, &url, Some("bytes=8388600-8388699")).await;
    assert!(part == (206, large()[8_388_600..8_388_700].to_vec()));
    let longer = url.replace("X-Amz-Expires=3600", "X-Amz-Expires=7200");
    assert_eq!(fetch(&admin, &longer, None).await.0, 403);

    // A device is offered a link of the service, which counts when it begins; chunks come through the service as well.
    let credentials = service.register(device_json("frame-1")).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    device.check("2.0.0", "boot").await;
    let id = firmware["firmware_id"].as_str().unwrap();
    let spec =
        json!({ "name": "from the bucket", "firmware_id": id, "deployment_strategy": "immediate" });
    let campaign = admin.start_campaign(spec).await;
    let offer = device.offer(&trust).await;
    let offered = offer.assignment["urls"][0].as_str().unwrap();
    assert!(offered.starts_with(&admin.url("")), "{offered}");
    assert!(fetch(&admin, offered, None).await == (200, large()));
    let part = fetch(&admin, offered, Some("bytes=8388600-8388699")).await;
    assert!(part == (206, large()[8_388_600..8_388_700].to_vec()));
    let ask = json!({
        "request": 1, "sha256": offer.release["sha256"], "offset": 8_388_600, "length": 1_024, "count": 1,
    });
    device.report("chunk", &ask).await;
    let chunk = device.message("down/chunk/1/8388600").await;
    assert!(chunk == large()[8_388_600..8_389_624]);
    device.complete(&offer).await;
    admin
        .campaign_becomes(&campaign, "completed", |c| c["status"] == "completed")
        .await;
    let counted = eventually("both downloads are counted", async || {
        let read = admin.get(&format!("{FIRMWARE}/{id}")).await.expect(200);
        match read["download_count"].as_u64() {
            Some(count) if count >= 2 => Ok(count),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(counted.await, 2, "one link, and the device began once");
    device.leave().await;
}

async fn a_fleet_without_http_has_its_image_from_a_bucket_far_away(options: Options) {
    let server = S3Server::start().await;
    let service = Service::start(on(&server, options)).await;
    let file = service.scratch().join("image.bin");
    std::fs::write(&file, &large()[..1_500_000]).unwrap();
    server.is_far(Duration::from_millis(40));
    let rollout = [
        "--rollout",
        file.to_str().unwrap(),
        "--to-version",
        "2.0.0",
        "--strategy",
        "immediate",
        "--chunks",
        "100%",
    ];
    let summary = fleet::run(fleet::arguments(&service, 30, &rollout)).await;
    assert_eq!(summary.verdict, Verdict::Good, "{summary:#?}");
    assert_eq!(summary.by_version.get("2.0.0"), Some(&30), "{summary:#?}");
    let here = here(&service);
    assert_eq!(here, [] as [String; 0], "the image came from the bucket");
}

async fn links_lead_to_the_service_where_clients_do_not_reach_the_server(options: Options) {
    let server = S3Server::start().await;
    let options = on(&server, options).without("STORAGE_S3_PUBLIC_ENDPOINT");
    let service = Service::start(options).await;
    let admin = service.admin();
    let firmware = upload(&admin, "2.1.0", b"an image".to_vec()).await;
    assert_eq!(firmware["storage"], "s3");
    let url = link(&admin, &firmware).await;
    assert!(url.starts_with(&admin.url("")), "{url}");
    assert_eq!(fetch(&admin, &url, None).await, (200, b"an image".to_vec()));
}

async fn memory_stays_flat_while_an_image_goes_to_the_bucket(options: Options) {
    let server = S3Server::start().await;
    let service = Service::start(on(&server, options)).await;
    let admin = service.admin();
    upload(&admin, "2.0.0", b"warm".to_vec()).await;
    let before = service.peak_memory();
    let size = 120 * 1024 * 1024;
    let bytes = large().repeat(size / LARGE);
    let firmware = upload(&admin, "2.1.0", bytes).await;
    assert_eq!(firmware["storage"], "s3");
    let grown = service.peak_memory() - before;
    assert!(grown < 64 * 1024 * 1024, "{grown} bytes for {size}");
}

async fn a_server_that_is_away_is_made_up_for(options: Options) {
    let mut server = S3Server::start().await;
    let mut service = Service::start(on(&server, options)).await;
    let admin = service.admin();
    let first = upload(&admin, "2.1.0", b"before".to_vec()).await;
    assert_eq!(first["storage"], "s3");

    server.stop().await;
    let second = upload(&admin, "2.2.0", large()).await;
    assert_eq!(second["storage"], "local", "{second:#}");
    assert_eq!(here(&service), [sha256(&large())]);
    // What is here is served from here; that of what is not, is told, and the rest of the service goes on.
    let url = link(&admin, &second).await;
    assert!(url.starts_with(&admin.url("")), "{url}");
    assert!(fetch(&admin, &url, None).await == (200, large()));
    let health = eventually("it is told that the server is away", async || {
        let health = admin.health().await;
        if health["status"] == "degraded" {
            Ok(health)
        } else {
            Err(health.to_string())
        }
    })
    .await;
    let told = health["components"]["storage"]["detail"].as_str().unwrap();
    assert!(
        told.contains(&server.endpoint()) && told.contains("cannot be reached"),
        "{told}"
    );

    // Also a start does not wait for it.
    service.stop().await;
    service.start_again().await;
    assert!(fetch(&admin, &url, None).await == (200, large()));

    server.start_again().await;
    is_moved(&admin, &second).await;
    assert!(std::fs::read(server.object(&sha256(&large()))).unwrap() == large());
    assert_eq!(server.unfinished(), [] as [String; 0]);
    eventually("nothing is left in the folder", async || {
        let left = here(&service);
        left.is_empty().then_some(()).ok_or(format!("{left:?}"))
    })
    .await;
    assert!(
        fetch(&admin, &url, None).await == (200, large()),
        "the same link"
    );
    let direct = link(&admin, &second).await;
    assert!(direct.starts_with(&server.endpoint()), "{direct}");
    assert!(fetch(&admin, &direct, None).await == (200, large()));
    assert_eq!(admin.health().await["status"], "healthy");
}

async fn a_kill_in_the_middle_of_the_move_loses_nothing(options: Options) {
    let server = S3Server::start().await;
    let mut service = Service::start(on(&server, options)).await;
    let admin = service.admin();
    server.hold(true);
    let uploading = tokio::spawn({
        let admin = admin.clone();
        async move {
            let metadata = image_metadata("2.1.0");
            admin.try_upload(&metadata, "image.bin", large()).await
        }
    });
    server.parts(2).await;
    service.kill();
    assert!(uploading.await.unwrap().is_err(), "nobody was told of it");
    assert!(!server.unfinished().is_empty(), "parts are left");
    assert!(!server.object(&sha256(&large())).exists());

    // And once more, by itself.
    service.start_again().await;
    server.parts(4).await;
    service.kill();
    server.hold(false);
    service.start_again().await;
    let list = admin.get(FIRMWARE).await.expect(200);
    assert_eq!(list["count"], 1, "{list:#}");
    is_moved(&admin, &list["firmware"][0]).await;
    assert!(std::fs::read(server.object(&sha256(&large()))).unwrap() == large());
    assert_eq!(server.unfinished(), [] as [String; 0]);
    // Whoever was not answered asks again.
    let metadata = image_metadata("2.1.0");
    let again = admin.upload(&metadata, "image.bin", large()).await;
    assert_eq!(again.expect(200)["storage"], "s3");
}

async fn images_of_the_folder_move_to_the_bucket_and_do_not_go_back_unseen(options: Options) {
    let server = S3Server::start().await;
    let mut service = Service::start(options.clone()).await;
    let admin = service.admin();
    let firmware = upload(&admin, "2.1.0", b"an image".to_vec()).await;
    assert_eq!(firmware["storage"], "local");
    service.stop().await;
    service.reconfigure(on(&server, options.clone()));
    service.start_again().await;
    is_moved(&admin, &firmware).await;
    let url = link(&admin, &firmware).await;
    assert_eq!(fetch(&admin, &url, None).await, (200, b"an image".to_vec()));

    service.stop().await;
    service.reconfigure(options);
    let output = service.command(&service.data_dir()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("STORAGE_TYPE: images lie in a bucket"),
        "{said}"
    );
}

async fn who_is_refused_by_the_server_is_told_so_and_does_not_start(options: Options) {
    let server = S3Server::start().await;
    let mut service = Service::start(on(&server, options.clone())).await;
    service.stop().await;
    service.reconfigure(on(&server, options).with("STORAGE_S3_SECRET_KEY", "of-another"));
    let output = service.command(&service.data_dir()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("STORAGE_S3_ENDPOINT"), "{said}");
    assert!(said.contains("look at the access key"), "{said}");
    assert!(!said.contains("of-another"), "{said}");
}

async fn another_bucket_is_refused_and_none_is_made(options: Options) {
    let server = S3Server::start().await;
    let mut service = Service::start(on(&server, options.clone())).await;
    let firmware = upload(&service.admin(), "2.1.0", b"an image".to_vec()).await;
    service.stop().await;
    // Mistyped; and one that is there, of another database.
    let mistyped = || on(&server, options.clone()).with("STORAGE_S3_BUCKET", "firmwaer");
    let refusal = async |service: &mut Service| {
        service.reconfigure(mistyped());
        let (started, said) = service.said(&service.data_dir(), &[], &[]).await;
        assert!(!started, "{said}");
        said
    };
    let said = refusal(&mut service).await;
    assert!(said.contains("there is no such bucket"), "{said}");
    assert!(said.contains("STORAGE_S3_BUCKET: S3 at "), "{said}");
    let made = server
        .object("")
        .ancestors()
        .nth(2)
        .unwrap()
        .join("firmwaer");
    assert!(!made.exists(), "it is not made");
    std::fs::create_dir(&made).unwrap();
    let said = refusal(&mut service).await;
    assert!(said.contains("not marked as its own"), "{said}");
    std::fs::write(made.join("device-ota-id"), "0".repeat(32)).unwrap();
    let said = refusal(&mut service).await;
    assert!(said.contains("another database's"), "{said}");

    // One that everything was copied to is the same.
    let old = made.with_file_name(BUCKET);
    let copied = [
        "device-ota-id".to_owned(),
        format!("objects/{}", sha256(b"an image")),
    ];
    std::fs::create_dir(made.join("objects")).unwrap();
    for object in copied {
        std::fs::copy(old.join(&object), made.join(&object)).unwrap();
    }
    service.start_again().await;
    let admin = service.admin();
    let url = link(&admin, &firmware).await;
    assert!(url.contains("/firmwaer/"), "{url}");
    assert_eq!(fetch(&admin, &url, None).await, (200, b"an image".to_vec()));
}

async fn an_image_that_does_not_get_there_is_told_of(options: Options) {
    let mut server = S3Server::start().await;
    let service = Service::start(on(&server, options)).await;
    let admin = service.admin();
    server.stop().await;
    let firmware = upload(&admin, "2.1.0", b"an image".to_vec()).await;
    assert_eq!(firmware["storage"], "local");
    // The server answers again, and what gets there is not what it should be.
    let name = sha256(b"an image");
    let folder = service
        .data_dir()
        .join("storage/objects")
        .join(name.split_at(2).0);
    std::fs::write(folder.join(&name), b"an_image").unwrap();
    server.start_again().await;
    let health = eventually("it is told why the image waits", async || {
        let health = admin.health().await;
        match health["components"]["storage"]["detail"].as_str() {
            Some(told) if told.contains("read back is not what was uploaded") => Ok(health),
            _ => Err(health.to_string()),
        }
    })
    .await;
    assert_eq!(health["status"], "degraded");
    let told = health["components"]["storage"]["detail"].as_str().unwrap();
    assert!(
        told.contains("images that wait in the local folder: 1"),
        "{told}"
    );
    let metrics = admin.figures().await;
    assert!(metrics.contains("device_ota_images_waiting 1"), "{metrics}");

    std::fs::write(folder.join(&name), b"an image").unwrap();
    is_moved(&admin, &firmware).await;
    eventually("all is well again", async || {
        let health = admin.health().await;
        (health["status"] == "healthy")
            .then_some(())
            .ok_or(health.to_string())
    })
    .await;
}
