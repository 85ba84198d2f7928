//! A PostgreSQL server that is spoken to over TLS alone, as those in a cloud are.

use std::fs::read_to_string;
use std::path::Path;

use device_ota_store::testing::{PrivateServer, run_sql};
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{
    Authority, Certified, Device, MqttVersion, Options, Service, Trust, device_json,
};

matrix!(a_device_is_updated_over_tls_to_the_database: sqlite_gateway);
matrix!(a_server_that_is_not_to_be_believed_is_not: sqlite_gateway);

/// A server by the certificate that `house` has signed for it, with an empty database for whom it has signed for.
async fn server(house: &Authority, own: &Certified) -> PrivateServer {
    let text = |file: &Path| read_to_string(file).unwrap();
    let server =
        PrivateServer::start_with_tls(&text(&own.cert), &text(&own.key), &text(&house.file));
    let url = format!("{}?sslmode=require", server.url());
    run_sql(&url, "CREATE DATABASE certified").await.unwrap();
    server
}

async fn a_device_is_updated_over_tls_to_the_database(options: Options) {
    let folder = TempDir::new().unwrap();
    let house = Authority::new(folder.path(), "house");
    let server = server(&house, &house.server("database")).await;
    let ca = house.file.display();
    let url = format!("{}?sslmode=verify-full&sslrootcert={ca}", server.url());
    let service = Service::start(options.clone().with("DATABASE_URL", &url)).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    admin.image("2.0.0").await;
    let new = admin.image("2.1.0").await;
    let credentials = service.register(device_json("frame-1")).await;
    let mut device = Device::connect(&service, MqttVersion::V5, &credentials).await;
    device.check("2.0.0", "boot").await;

    // What is cut off is connected to in the same way again.
    server.stop();
    server.start_again();
    admin.is_ready(true).await;
    let path = "/api/v1/ota/devices/frame-1/update";
    let made = admin.post(path, json!({ "firmware_id": new })).await;
    let update = made.expect(201)["update_id"].as_str().unwrap().to_owned();
    let offer = device.offer(&trust).await;
    device.complete(&offer).await;
    admin.update_becomes(&update, "completed").await;

    // A certificate of one's own, where the server asks for it.
    let own = house.device("device-ota");
    let url = url.replace("/postgres?", "/certified?");
    let (cert, key) = (own.cert.display(), own.key.display());
    let url = format!("{url}&sslcert={cert}&sslkey={key}");
    let other = Service::start(options.with("DATABASE_URL", &url)).await;
    other.admin().get("/health/ready").await.expect(200);
}

async fn a_server_that_is_not_to_be_believed_is_not(options: Options) {
    let service = Service::start(options).await;
    let house = Authority::new(service.scratch(), "house");
    let other = Authority::new(service.scratch(), "other");
    let server = server(&house, &house.server("database")).await;
    let (house, other) = (house.file.display(), other.file.display());
    let elsewhere = server.url().replace("127.0.0.1", "127.0.0.2");
    let none = service.scratch().join("none");
    for (url, says) in [
        (format!("{}?sslmode=disable", server.url()), "no encryption"),
        (
            format!("{}?sslmode=verify-full&sslrootcert={other}", server.url()),
            "UnknownIssuer",
        ),
        // An authority that is named is asked, as by libpq.
        (
            format!("{}?sslmode=require&sslrootcert={other}", server.url()),
            "UnknownIssuer",
        ),
        (
            format!("{elsewhere}?sslmode=verify-full&sslrootcert={house}"),
            "not valid for",
        ),
        (
            format!("{}?dbname=certified", server.url()),
            "requires a valid client certificate",
        ),
    ] {
        let (ended_well, said) = service.said(&none, &[("DATABASE_URL", &url)], &[]).await;
        assert!(
            !ended_well && said.contains("DATABASE_URL"),
            "{url}: {said}"
        );
        assert!(said.contains(says), "{url}: {said}");
        assert_eq!(said.matches(says).count(), 1, "said once: {said}");
    }
}
