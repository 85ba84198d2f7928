//! The service is killed at any moment, as by a power cut, and starts again on what it has kept.

use std::time::Duration;

use device_sim::fleet::Verdict;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use crate::fleet::{arguments, image_file, run};
use crate::harness::{
    Admin, Device, Event, MqttEnd, MqttVersion, Options, Service, Trust, device_json, eventually,
};

matrix!(a_rollout_survives_kills_at_any_moment);
matrix!(a_rollback_survives_kills_at_any_moment);
matrix!(what_was_acknowledged_is_there_after_the_kill);

/// Kills in one rollout.
const KILLS: u64 = 3;
const FLEET: usize = 40;

async fn a_rollout_survives_kills_at_any_moment(options: Options) {
    let mut service = Service::start(options.with("LEASE_SECONDS", "10")).await;
    let file = image_file(service.scratch(), "2.0.0");
    let rollout = [
        "--rollout",
        file.to_str().unwrap(),
        "--to-version",
        "2.0.0",
        "--seed",
        "5",
        "--speed",
        "400000",
        "--connect-rate",
        "100",
    ];
    let fleet = tokio::spawn(run(arguments(&service, FLEET, &rollout)));
    let admin = service.admin();
    let campaign = started(&admin).await;
    let mut random = StdRng::seed_from_u64(23);
    for kill in 1..=KILLS {
        // Somewhere in the kill's own part of the rollout, and some milliseconds beside any event.
        let share = kill * FLEET as u64 / (KILLS + 2);
        let seen =
            |campaign: &serde_json::Value| campaign["completed_devices"].as_u64() >= Some(share);
        admin.campaign_becomes(&campaign, "on its way", seen).await;
        tokio::time::sleep(Duration::from_micros(random.random_range(0..100_000))).await;
        service.kill();
        service.start_again().await;
    }
    let summary = fleet.await.unwrap();
    assert_eq!(summary.violations, 0, "{summary:#?}");
    assert_eq!(summary.verdict, Verdict::Good, "{summary:#?}");
    let campaign = admin.campaign(&campaign).await;
    assert_eq!(campaign["status"], "completed");
    assert_eq!(campaign["completed_devices"], FLEET, "{campaign:#}");
    assert_eq!(summary.by_version.get("2.0.0"), Some(&FLEET));
}

/// The campaign that the fleet has started.
pub async fn started(admin: &Admin) -> String {
    eventually("the fleet has started its campaign", async || {
        let list = admin.get("/api/v1/ota/campaigns").await.expect(200);
        match list["campaigns"][0]["campaign_id"].as_str() {
            Some(id) if list["campaigns"][0]["status"] == "in_progress" => Ok(id.to_owned()),
            _ => Err(list.to_string()),
        }
    })
    .await
}

async fn a_rollback_survives_kills_at_any_moment(options: Options) {
    let mut service = Service::start(options.with("LEASE_SECONDS", "10")).await;
    let admin = service.admin();
    // Devices have to fetch it again, which takes a second.
    admin.image("1.0.0").await;
    let file = image_file(service.scratch(), "2.0.0");
    let mut rollout = vec!["--rollout", file.to_str().unwrap(), "--to-version", "2.0.0"];
    rollout.extend(["--seed", "7", "--speed", "200000", "--connect-rate", "100"]);
    let fleet = tokio::spawn(run(arguments(&service, FLEET, &rollout)));
    let campaign = started(&admin).await;
    let some_are_done =
        |campaign: &serde_json::Value| campaign["completed_devices"].as_u64() >= Some(8);
    admin
        .campaign_becomes(&campaign, "on its way", some_are_done)
        .await;
    service.kill();
    service.start_again().await;
    let reason = json!({ "reason": "for a test" });
    let path = format!("/api/v1/ota/campaigns/{campaign}/rollback");
    admin.post(&path, reason).await.expect(200);
    service.kill();
    service.start_again().await;
    let goes_back = |campaign: &serde_json::Value| {
        campaign["status"] == "rolling_back"
            && campaign["rollback"]["in_flight"].as_u64() >= Some(1)
    };
    admin
        .campaign_becomes(&campaign, "on its way back", goes_back)
        .await;
    service.kill();
    service.start_again().await;
    let summary = fleet.await.unwrap();
    assert_eq!(summary.violations, 0, "{summary:#?}");
    assert_eq!(summary.verdict, Verdict::Good, "{summary:#?}");
    assert_eq!(summary.by_version.get("1.0.0"), Some(&FLEET));
    let ended = admin.campaign(&campaign).await;
    assert_eq!(ended["status"], "rolled_back", "{ended:#}");
    let log = admin.rollbacks_of(&campaign).await;
    assert_eq!(log.len() as u64, ended["completed_devices"], "{ended:#}");
    assert!(log.iter().all(|entry| entry["status"] == "completed"));
}

async fn what_was_acknowledged_is_there_after_the_kill(options: Options) {
    let mut service = Service::start(options).await;
    let admin = service.admin();
    let credentials = service.register(device_json("frame-1")).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let spec = json!({ "name": "n", "firmware_id": firmware, "deployment_strategy": "immediate" });
    admin.start_campaign(spec).await;
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    device
        .report("progress", &offer.progress(1, "accepted", &json!({})))
        .await;
    let mut seq: u64 = 1;
    for _ in 0..KILLS {
        // A stream of reports, a progress and a heartbeat by turns, several on their way at a time, and the end in the
        // midst of it. Acknowledgements come in the order of what they are for.
        let (mut sent, mut acknowledged) = (0_u64, 0_u64);
        while acknowledged < 120 {
            while sent < acknowledged + 8 {
                sent += 1;
                let number = seq + sent.div_ceil(2);
                let (kind, report) = if sent.is_multiple_of(2) {
                    let metrics = json!({ "number": number });
                    (
                        "heartbeat",
                        json!({ "version": "2.0.0", "metrics": metrics }),
                    )
                } else {
                    let more =
                        json!({ "bytes_done": number, "bytes_total": 200_000, "percent": 0.1 });
                    let seq = u32::try_from(number).unwrap();
                    ("progress", offer.progress(seq, "downloading", &more))
                };
                let topic = device.topic(&format!("up/{kind}"));
                device.link().publish(&topic, report.to_string());
            }
            match device.link().event().await {
                Event::Acknowledged(true) => acknowledged += 1,
                Event::Message { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        service.kill();
        drop(device);
        service.start_again().await;
        let (progress, heartbeat) = (seq + acknowledged.div_ceil(2), seq + acknowledged / 2);
        let shown = bytes_done(&service, offer.text("update_id"), progress).await;
        assert!(
            shown >= progress,
            "acknowledged up to {progress}, kept up to {shown}"
        );
        heartbeat_is_kept(&service, heartbeat).await;
        seq += sent.div_ceil(2);
        assert!(shown <= seq);
        device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    }
    let reply = device.check("2.0.0", "reconnect").await;
    assert!(reply["nonce"].is_string());
    let done = offer.progress(
        u32::try_from(seq + 1).unwrap(),
        "completed",
        &json!({ "version": "2.1.0" }),
    );
    device.report("progress", &done).await;
    admin
        .update_becomes(offer.text("update_id"), "completed")
        .await;
}

/// The device has no connection any more, so what is shown later was there, or with the broker.
async fn heartbeat_is_kept(service: &Service, wanted: u64) {
    let admin = service.admin();
    eventually("every acknowledged heartbeat is kept", async || {
        let read = admin.get("/api/v1/heartbeat/frame-1?limit=200").await;
        let body = read.expect(200);
        let kept = body["heartbeats"].as_array().unwrap();
        let numbers = kept
            .iter()
            .filter_map(|kept| kept["metrics"]["number"].as_f64());
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let wanted = wanted as f64;
        let missing = (1..=60).map(|back| wanted - f64::from(back) + 1.0);
        let numbers: Vec<_> = numbers.collect();
        match missing.filter(|n| *n > 1.0 && !numbers.contains(n)).count() {
            0 => Ok(()),
            missing => Err(format!(
                "{missing} of those up to {wanted} are missing: {numbers:?}"
            )),
        }
    })
    .await;
}

/// What the service knows of the download. An external broker has acknowledged by itself, and hands over what the
/// service has not taken yet as soon as it is back.
async fn bytes_done(service: &Service, update: &str, wanted: u64) -> u64 {
    let admin = service.admin();
    match service.options().end {
        MqttEnd::Gateway => admin.update(update).await["bytes_done"].as_u64().unwrap(),
        MqttEnd::Mosquitto | MqttEnd::Nats => {
            eventually(
                "the broker hands over what it has acknowledged",
                async || {
                    let shown = admin.update(update).await["bytes_done"].as_u64().unwrap();
                    if shown >= wanted {
                        Ok(shown)
                    } else {
                        Err(format!("{shown} of {wanted}"))
                    }
                },
            )
            .await
        }
    }
}
