//! A fleet of simulated devices takes an image in rings: healthy, with faults that it must get over, and with faults
//! that must bring it back to its old version.

use std::path::{Path, PathBuf};

use clap::Parser as _;
use device_sim::cli::Cli;
use device_sim::fleet::{Fleet, Summary, Unwatched, Verdict};
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::harness::{Options, Service, eventually, image};

matrix!(a_healthy_fleet_ends_on_the_new_version);
matrix!(five_hundred_devices_end_on_the_new_version: sqlite_gateway);
matrix!(a_fleet_prepares_and_flips: sqlite_gateway);
matrix!(a_fleet_gets_over_what_networks_do);
matrix!(a_failing_fleet_flips_back_to_the_image_it_still_has: sqlite_gateway, postgres_gateway, sqlite_mosquitto, postgres_mosquitto, sqlite_nats);
matrix!(a_failing_fleet_downloads_the_image_it_no_longer_has: sqlite_gateway, postgres_mosquitto);

/// A fleet's command line against a service, without its name.
pub fn arguments(service: &Service, devices: usize, more: &[&str]) -> Vec<String> {
    let at = (
        service.admin().url(""),
        service.mqtt(),
        service.key().to_owned(),
    );
    let mut arguments = arguments_at(at, devices, more);
    arguments.extend(service.fleet_flags());
    arguments
}

/// The same against an HTTP and an MQTT address, with an admin's key.
pub fn arguments_at(
    (http, mqtt, key): (String, String, String),
    devices: usize,
    more: &[&str],
) -> Vec<String> {
    let devices = devices.to_string();
    let common = [
        "device-sim",
        "--http",
        &http,
        "--mqtt",
        &mqtt,
        "--admin-key",
        &key,
        "--devices",
        &devices,
        "--reboot-time",
        "100ms",
        "--install-time",
        "50ms",
        "--heartbeat",
        "2s",
        "--check-interval",
        "5s",
        "--timeout",
        "100s",
        "--quiet",
    ];
    common
        .iter()
        .chain(more)
        .map(|&text| text.to_owned())
        .collect()
}

/// Runs a fleet to its end, on threads of its own as if it were a process of its own; a story that is over before
/// it does not wait for it.
pub async fn run(arguments: Vec<String>) -> Summary {
    let (sender, summary) = oneshot::channel();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let _ends_with_the_story = stop.drop_guard();
    std::thread::spawn(move || {
        let config = Cli::parse_from(arguments).into_config().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let summary = runtime.block_on(Fleet::run(config, &mut Unwatched, stopped));
        let _ = sender.send(summary.unwrap());
    });
    summary.await.expect("the fleet comes to an end")
}

/// A file with an image.
pub fn image_file(folder: &Path, version: &str) -> PathBuf {
    let file = folder.join(format!("image-{version}.bin"));
    std::fs::write(&file, image(version)).unwrap();
    file
}

async fn a_healthy_fleet_ends_on_the_new_version(options: Options) {
    rolled_out(options, 60).await;
}

async fn five_hundred_devices_end_on_the_new_version(options: Options) {
    rolled_out(options, 500).await;
}

async fn rolled_out(options: Options, devices: usize) {
    let service = Service::start(options).await;
    let file = image_file(service.scratch(), "2.0.0");
    let rollout = [
        "--rollout",
        file.to_str().unwrap(),
        "--to-version",
        "2.0.0",
        "--chunks",
        "20%",
    ];
    let summary = run(arguments(&service, devices, &rollout)).await;
    assert_eq!(summary.verdict, Verdict::Good, "{summary:#?}");
    assert_eq!(summary.by_version.get("2.0.0"), Some(&devices));
    counters_are_those_of(&service, &summary, "completed", devices).await;
}

async fn a_fleet_prepares_and_flips(options: Options) {
    let service = Service::start(options).await;
    let file = image_file(service.scratch(), "2.0.0");
    let rollout = [
        "--rollout",
        file.to_str().unwrap(),
        "--to-version",
        "2.0.0",
        "--strategy",
        "blue_green",
    ];
    let summary = run(arguments(&service, 40, &rollout)).await;
    assert_eq!(summary.verdict, Verdict::Good, "{summary:#?}");
    assert_eq!(summary.by_version.get("2.0.0"), Some(&40));
    counters_are_those_of(&service, &summary, "completed", 40).await;
    let list = service.admin().get("/api/v1/ota/campaigns").await;
    let campaign = &list.expect(200)["campaigns"][0];
    assert_eq!(campaign["deployment_strategy"], "blue_green");
}

/// The campaign's numbers as the service counts them.
async fn counters_are_those_of(
    service: &Service,
    summary: &Summary,
    status: &str,
    completed: usize,
) {
    let list = service
        .admin()
        .get("/api/v1/ota/campaigns")
        .await
        .expect(200);
    let campaign = &list["campaigns"][0];
    assert_eq!(campaign["status"], status, "{summary:#?}");
    assert_eq!(campaign["completed_devices"], completed, "{campaign:#}");
    assert_eq!(campaign["pending_devices"], 0);
    assert_eq!(campaign["in_progress_devices"], 0);
}

async fn a_fleet_gets_over_what_networks_do(options: Options) {
    let service = Service::start(options).await;
    let file = image_file(service.scratch(), "2.0.0");
    let rollout = [
        "--rollout",
        file.to_str().unwrap(),
        "--to-version",
        "2.0.0",
        "--seed",
        "11",
        "--chunks",
        "30%",
        "--repeat",
        "20%",
        "--reorder",
        "20%",
        "--drop-connection",
        "30%",
    ];
    let summary = run(arguments(&service, 50, &rollout)).await;
    assert_eq!(summary.verdict, Verdict::Good, "{summary:#?}");
    assert_eq!(summary.by_version.get("2.0.0"), Some(&50));
    counters_are_those_of(&service, &summary, "completed", 50).await;
}

async fn a_failing_fleet_flips_back_to_the_image_it_still_has(options: Options) {
    let service = Service::start(options).await;
    let old = image_file(service.scratch(), "1.0.0");
    rolled_back(
        &service,
        &["--image", old.to_str().unwrap(), "--chunks", "0"],
    )
    .await;
    let fetched = old_image_downloads(&service).await;
    assert_eq!(
        fetched, 0,
        "the old image was fetched although it is still in a slot"
    );
}

async fn a_failing_fleet_downloads_the_image_it_no_longer_has(options: Options) {
    let service = Service::start(options).await;
    rolled_back(&service, &["--chunks", "0"]).await;
    assert!(
        old_image_downloads(&service).await > 0,
        "without the old image it must be fetched"
    );
}

async fn old_image_downloads(service: &Service) -> u64 {
    let list = service
        .admin()
        .get("/api/v1/ota/firmware")
        .await
        .expect(200);
    let images = list["firmware"].as_array().unwrap();
    let old = images.iter().filter(|image| image["version"] == "1.0.0");
    old.map(|image| image["download_count"].as_u64().unwrap())
        .sum()
}

/// Devices that fail, and so many of them that the threshold is passed when some have succeeded already.
const FAILING_FLEET: usize = 40;

/// A rollout of which so many fail that it is rolled back.
async fn rolled_back(service: &Service, more: &[&str]) {
    let admin = service.admin();
    admin.image("1.0.0").await;
    let firmware = admin.image("2.0.0").await;
    let spec = json!({
        "name": "a bad image", "firmware_id": firmware, "deployment_strategy": "immediate",
        "max_concurrent_updates": 12, "auto_rollback": true, "failure_threshold_percent": 10,
        "failure_min_samples": 12, "max_retries": 0,
    });
    let campaign = admin.create_campaign(spec).await;
    let mut flags = vec![
        "--campaign",
        &campaign,
        "--seed",
        "3",
        "--fail",
        "health=40%",
    ];
    flags.extend(more);
    let fleet = tokio::spawn(run(arguments(service, FAILING_FLEET, &flags)));
    eventually("the fleet is registered", async || {
        let list = admin.get("/api/v1/ota/devices?limit=200").await.expect(200);
        let known = list["devices"].as_array().unwrap().len();
        if known == FAILING_FLEET {
            Ok(())
        } else {
            Err(format!("{known} devices"))
        }
    })
    .await;
    admin.act(&campaign, "start").await.expect(200);
    let summary = fleet.await.unwrap();
    assert_eq!(summary.violations, 0, "{summary:#?}");
    let ended = admin.campaign(&campaign).await;
    assert_eq!(ended["status"], "rolled_back", "{summary:#?}");
    assert_eq!(
        summary.by_version.get("1.0.0"),
        Some(&FAILING_FLEET),
        "{summary:#?}"
    );
    let log = admin.rollbacks_of(&campaign).await;
    assert_eq!(
        log.len() as u64,
        ended["completed_devices"],
        "one for each that was updated: {ended:#}"
    );
    assert!(!log.is_empty(), "some had succeeded");
    for entry in &log {
        let versions = (&entry["from_version"], &entry["to_version"]);
        assert_eq!(versions, (&json!("2.0.0"), &json!("1.0.0")), "{entry:#}");
        assert_eq!(
            (&entry["status"], &entry["success"]),
            (&json!("completed"), &json!(true)),
            "{entry:#}"
        );
    }
}
