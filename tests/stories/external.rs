//! A broker of the operator's own: it restarts in the midst of a rollout, it is spoken to over TLS, and it is told when it
//! cannot be believed.

use std::path::Path;

use device_sim::fleet::Verdict;
use serde_json::Value;
use tempfile::TempDir;

use crate::fleet::{arguments, image_file, run};
use crate::harness::{Authority, Options, Service, eventually, within};
use crate::kill::started;

matrix!(a_rollout_survives_a_restart_of_the_broker: postgres_mosquitto, postgres_nats);
matrix!(devices_and_service_speak_tls_to_the_broker: sqlite_mosquitto);
matrix!(a_broker_that_cannot_be_believed_is_told_and_tried_again: sqlite_mosquitto);

const FLEET: usize = 24;

async fn a_rollout_survives_a_restart_of_the_broker(options: Options) {
    let mut service = Service::start(options.with("LEASE_SECONDS", "10")).await;
    rolled_out_over_a_restart(&mut service, &[]).await;
}

async fn devices_and_service_speak_tls_to_the_broker(options: Options) {
    let folder = TempDir::new().unwrap();
    let house = Authority::new(folder.path(), "house");
    let options = secured(options, &house).with("LEASE_SECONDS", "10");
    let mut service = Service::start(options).await;
    let screen = service.log().lines().join("\n");
    assert!(screen.contains("mqtts://127.0.0.1:"), "{screen}");
    let ca = house.file.display().to_string();
    rolled_out_over_a_restart(&mut service, &["--ca", &ca]).await;
}

/// mosquitto and the service show certificates of the house; the service's authority has signed for nobody else.
fn secured(options: Options, house: &Authority) -> Options {
    let folder = house.file.parent().unwrap();
    let own = Authority::new(folder, "service-ca");
    let broker = house.server("broker");
    options.with_secured_broker(house, &broker, (&own.device("device-ota"), &own))
}

/// A rollout in whose midst the broker ends, and comes back with what it has kept.
async fn rolled_out_over_a_restart(service: &mut Service, more: &[&str]) {
    let file = image_file(service.scratch(), "2.0.0");
    let mut flags = vec!["--rollout", file.to_str().unwrap(), "--to-version", "2.0.0"];
    flags.extend(["--strategy", "immediate", "--seed", "5"]);
    flags.extend(["--speed", "200000", "--connect-rate", "20"]);
    flags.extend(more);
    let fleet = tokio::spawn(run(arguments(service, FLEET, &flags)));
    let admin = service.admin();
    let campaign = started(&admin).await;
    let some_are_done = |campaign: &Value| campaign["completed_devices"].as_u64() >= Some(3);
    admin
        .campaign_becomes(&campaign, "on its way", some_are_done)
        .await;
    let before = links(service).await;
    service.broker().stop();
    service.broker().start_again().await;
    eventually("the link comes back", async || {
        let now = links(service).await;
        (now > before)
            .then_some(())
            .ok_or_else(|| format!("{now} connections"))
    })
    .await;
    let summary = fleet.await.unwrap();
    assert_eq!(summary.violations, 0, "{summary:#?}");
    assert_eq!(summary.verdict, Verdict::Good, "{summary:#?}");
    assert_eq!(summary.by_version.get("2.0.0"), Some(&FLEET));
    let campaign = admin.campaign(&campaign).await;
    assert_eq!(campaign["completed_devices"], FLEET, "{campaign:#}");
}

/// How often reports were begun to be received.
async fn links(service: &Service) -> u64 {
    let health = service.admin().get("/health/detailed").await;
    let links = &health.body["counters"]["mqtt_link"]["connected"];
    links.as_u64().unwrap_or_default()
}

/// Until the service says this of its broker.
async fn says(service: &Service, wanted: &str) {
    eventually(&format!("the service says {wanted}"), async || {
        let health = service.admin().get("/health/detailed").await;
        let broker = &health.body["components"]["mqtt_broker"];
        if broker.to_string().contains(wanted) {
            Ok(())
        } else {
            Err(broker.to_string())
        }
    })
    .await;
}

/// Until the log warns of the broker in these words, too.
async fn warns(service: &Service, wanted: &'static str) {
    let said = service.log().find(|line| {
        let told = line.contains("the broker cannot be reached") && line.contains(wanted);
        told.then_some(())
    });
    within("the log says it", said).await.unwrap();
}

async fn again(service: &mut Service) {
    service.broker().stop();
    service.broker().start_again().await;
}

async fn a_broker_that_cannot_be_believed_is_told_and_tried_again(options: Options) {
    let folder = TempDir::new().unwrap();
    let house = Authority::new(folder.path(), "house");
    let strangers = TempDir::new().unwrap();
    let stranger = Authority::new(strangers.path(), "house");
    let mut service = Service::start(secured(options, &house)).await;
    let good = std::fs::read(&house.file).unwrap();
    let put = |content: &[u8]| std::fs::write(&house.file, content).unwrap();

    // Another authority of the same name; the file is read anew for each connection.
    put(&std::fs::read(&stranger.file).unwrap());
    again(&mut service).await;
    says(&service, "of an authority that is not trusted").await;
    warns(&service, "MQTT_BROKER_CA names one").await;
    // No authorities at all; which file it is, the log says to those who may read it.
    put(b"nothing");
    says(&service, "the log says why").await;
    warns(&service, "MQTT_BROKER_CA: ").await;
    put(&good);
    service.is_linked().await;

    // An expired certificate, and one for other names.
    house.server_until("broker", 2001);
    again(&mut service).await;
    says(&service, "has expired").await;
    house.device("broker");
    again(&mut service).await;
    says(&service, "is for other names than the host").await;
    house.server("broker");
    again(&mut service).await;
    service.is_linked().await;

    // The broker does not know who has signed for us.
    stranger_signs_for_us(folder.path());
    again(&mut service).await;
    says(&service, "does not take our certificate").await;
}

/// In place of the service's own certificate and key.
fn stranger_signs_for_us(folder: &Path) {
    let strangers = TempDir::new().unwrap();
    let signed = Authority::new(strangers.path(), "service-ca").device("device-ota");
    std::fs::copy(&signed.cert, folder.join("device-ota.cert.pem")).unwrap();
    std::fs::copy(&signed.key, folder.join("device-ota.key.pem")).unwrap();
}
