//! One update, taken by a stock MQTT client that knows nothing but the protocol document.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::{
    Credentials, Device, MqttEnd, MqttVersion, Offer, Options, Service, Trust, device_json,
    eventually, image,
};

matrix!(mqtt_3_takes_a_whole_update: sqlite_gateway, postgres_gateway, sqlite_mosquitto, postgres_mosquitto, sqlite_nats);
matrix!(mqtt_5_takes_a_whole_update: sqlite_gateway, postgres_mosquitto);
matrix!(an_image_comes_in_chunks_where_there_is_no_http: sqlite_gateway, sqlite_mosquitto);
matrix!(the_answer_to_a_check_says_why_there_is_no_offer: sqlite_gateway);
matrix!(a_lie_about_the_version_is_a_failure: sqlite_gateway);
matrix!(the_old_version_after_the_restart_is_a_failure: sqlite_gateway, postgres_gateway);

async fn mqtt_3_takes_a_whole_update(options: Options) {
    a_whole_update(options, MqttVersion::V311).await;
}

async fn mqtt_5_takes_a_whole_update(options: Options) {
    a_whole_update(options, MqttVersion::V5).await;
}

/// A service with one connected device whose last heartbeat is known, an image of version 2.1.0, and a started
/// campaign for it.
struct Scene {
    service: Service,
    trust: Trust,
    credentials: Credentials,
    device: Device,
    campaign: String,
}

async fn scene(options: Options, version: MqttVersion, battery: f64) -> Scene {
    let service = Service::start(options).await;
    let admin = service.admin();
    let credentials = service.register(device_json("frame-1")).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let spec = json!({
        "name": "by hand", "firmware_id": firmware, "target_devices": ["frame-1"], "deployment_strategy": "immediate",
        "requires": { "min_battery_percent": 50 }, "max_retries": 0,
    });
    let mut device = Device::connect(&service, version, &credentials).await;
    device.report("heartbeat", &heartbeat(battery)).await;
    eventually("the heartbeat is known", async || {
        let seen = admin.get("/api/v1/ota/devices/frame-1").await.expect(200);
        if seen["battery_percent"] == battery {
            Ok(())
        } else {
            Err(seen.to_string())
        }
    })
    .await;
    let campaign = admin.start_campaign(spec).await;
    Scene {
        service,
        trust,
        credentials,
        device,
        campaign,
    }
}

async fn a_whole_update(options: Options, version: MqttVersion) {
    // The device is not fit: the update waits, and says why to the device and to the administrator.
    let Scene {
        service,
        trust,
        mut device,
        campaign,
        ..
    } = scene(options, version, 10.0).await;
    let admin = service.admin();
    let update_id = admin.updates_of("frame-1").await[0]["update_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let waiting = eventually("the update says why it waits", async || {
        let update = admin.update(&update_id).await;
        if update["why"].to_string().contains("battery") {
            Ok(update)
        } else {
            Err(update.to_string())
        }
    })
    .await;
    assert_eq!(waiting["status"], "scheduled");
    let reply = device.check("2.0.0", "poll").await;
    assert_eq!(reply["offer"], false, "{reply}");
    assert!(reply["next_check_s"].is_u64(), "{reply}");
    let time = trust.open(&reply["time"], "time", "dispatch");
    assert_eq!(
        time["nonce"], reply["nonce"],
        "the time answers this very check"
    );
    assert!(!device.has_offer());

    // It is fit: the very next answer says that an offer follows, and it does.
    device.report("heartbeat", &heartbeat(90.0)).await;
    let reply = device.check("2.0.0", "poll").await;
    assert_eq!(reply["offer"], true, "{reply}");
    let offer = device.offer(&trust).await;
    the_offer_says_all_that_a_device_needs(&offer, &update_id, &campaign);
    let bytes = download(&offer).await;
    assert_eq!(bytes, image("2.1.0"));
    take_it(&service, &mut device, &offer, bytes.len()).await;

    let done = admin.update_becomes(&update_id, "completed").await;
    assert_eq!(done["progress_percentage"], 100.0);
    let campaign = admin
        .campaign_becomes(&campaign, "completed", |c| c["status"] == "completed")
        .await;
    assert_eq!(campaign["completed_devices"], 1);
    assert_eq!(
        admin.get("/api/v1/ota/devices/frame-1").await.expect(200)["firmware_version"],
        "2.1.0"
    );
    let reply = device.check("2.1.0", "poll").await;
    assert_eq!(reply["offer"], false, "nothing is left: {reply}");
    assert!(!device.has_offer());
    device.leave().await;
}

async fn the_answer_to_a_check_says_why_there_is_no_offer(options: Options) {
    let mut scene = scene(options, MqttVersion::V311, 10.0).await;
    scene.device.refusal("2.0.0", "battery").await;
}

fn heartbeat(battery: f64) -> Value {
    json!({
        "version": "2.0.0", "slot": "a", "confirmed": true, "battery": { "percent": battery, "charging": false },
        "device_model": "SF-100", "of_a_newer_protocol": { "is": "ignored" },
    })
}

fn the_offer_says_all_that_a_device_needs(offer: &Offer, update_id: &str, campaign: &str) {
    assert_eq!(offer.text("update_id"), update_id);
    assert_eq!(offer.text("campaign_id"), campaign);
    let digest = hex::encode(Sha256::digest(&offer.release_payload));
    assert_eq!(
        offer.text("release_sha256"),
        digest,
        "the assignment is for this very release"
    );
    insta::allow_duplicates! {
        insta::assert_json_snapshot!(offer.release, {
            ".issued_at" => "[time]", ".sha256" => "[digest]", ".firmware_id" => "[id]",
        }, @r#"
        {
          "device_model": "SF-100",
          "firmware_id": "[id]",
          "format": "bin",
          "hw_revisions": [],
          "issued_at": "[time]",
          "kind": "feature",
          "manufacturer": "Acme",
          "name": "Smart Frame Firmware",
          "security_version": 0,
          "sha256": "[digest]",
          "size": 200000,
          "version": "2.1.0"
        }
        "#);
        insta::assert_json_snapshot!(offer.assignment, {
            ".update_id" => "[id]", ".campaign_id" => "[id]", ".release_sha256" => "[digest]", ".nonce" => "[nonce]",
            ".urls" => "[urls]", ".urls_expire_at" => "[time]", ".not_before" => "[time]", ".expires_at" => "[time]",
        }, @r#"
        {
          "action": "update",
          "attempt": 1,
          "campaign_id": "[id]",
          "device_id": "frame-1",
          "expires_at": "[time]",
          "mode": "install",
          "nonce": "[nonce]",
          "release_sha256": "[digest]",
          "requires": {
            "min_battery_percent": 50
          },
          "seq": 1,
          "timeouts": {
            "download_s": 3600,
            "install_s": 3600,
            "total_s": 3600
          },
          "update_id": "[id]",
          "urls": "[urls]",
          "urls_expire_at": "[time]"
        }
        "#);
    }
}

/// Fetches the image as the offer says: an absolute URL, no header, in two ranges.
async fn download(offer: &Offer) -> Vec<u8> {
    let url = offer.assignment["urls"][0].as_str().unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut bytes = Vec::new();
    for range in ["bytes=0-99999", "bytes=100000-"] {
        let part = client.get(url).header("Range", range).send().await.unwrap();
        assert_eq!(part.status(), 206);
        bytes.extend(part.bytes().await.unwrap());
    }
    assert_eq!(offer.release["size"], bytes.len());
    assert_eq!(
        offer.release["sha256"],
        hex::encode(Sha256::digest(&bytes)).as_str()
    );
    bytes
}

/// Reports each phase, and sees after each acknowledgement that the report is already in the database.
async fn take_it(service: &Service, device: &mut Device, offer: &Offer, size: usize) {
    let steps = [
        ("accepted", json!({ "version": "2.0.0" }), None),
        (
            "downloading",
            json!({
                "percent": 40.0, "bytes_done": size * 2 / 5, "bytes_total": size, "speed_bps": 125_000,
            }),
            Some("downloading"),
        ),
        ("verifying", json!({}), Some("verifying")),
        ("installing", json!({}), Some("installing")),
        ("rebooting", json!({}), Some("rebooting")),
    ];
    for (seq, (phase, more, shown)) in (1..).zip(steps) {
        device
            .report("progress", &offer.progress(seq, phase, &more))
            .await;
        if let Some(shown) = shown {
            is_shown(service, offer, shown).await;
        }
        if shown == Some("downloading") {
            let update = service.admin().update(offer.text("update_id")).await;
            assert_eq!(
                (&update["download_speed"], &update["download_progress"]),
                (&json!(125_000), &json!(40.0)),
                "{update:#}"
            );
        }
    }
    // A report that is late says nothing new.
    let late = json!({ "error": { "code": "internal", "message": "late" } });
    device
        .report("progress", &offer.progress(2, "failed", &late))
        .await;
    is_shown(service, offer, "rebooting").await;
    let reply = device.check("2.1.0", "boot").await;
    assert!(reply["nonce"].is_string());
    device
        .report(
            "progress",
            &offer.progress(6, "completed", &json!({ "version": "2.1.0" })),
        )
        .await;
    is_shown(service, offer, "completed").await;
}

/// The gateway acknowledges after the commit, so one look must do; an external broker acknowledges by itself.
async fn is_shown(service: &Service, offer: &Offer, phase: &str) {
    let (admin, id) = (service.admin(), offer.text("update_id").to_owned());
    match service.options().end {
        MqttEnd::Gateway => {
            let update = admin.update(&id).await;
            assert_eq!(
                update["current_phase"], phase,
                "acknowledged before the commit? {update:#}"
            );
        }
        MqttEnd::Mosquitto | MqttEnd::Nats => {
            eventually(&format!("the update shows {phase}"), async || {
                let update = admin.update(&id).await;
                if update["current_phase"] == phase {
                    Ok(())
                } else {
                    Err(update.to_string())
                }
            })
            .await;
        }
    }
}

async fn an_image_comes_in_chunks_where_there_is_no_http(options: Options) {
    let Scene {
        service: _service,
        trust,
        mut device,
        ..
    } = scene(options, MqttVersion::V311, 90.0).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    device
        .report("progress", &offer.progress(1, "accepted", &json!({})))
        .await;
    let size = usize::try_from(offer.release["size"].as_u64().unwrap()).unwrap();
    let mut bytes = Vec::new();
    for request in 1_u32.. {
        let ask = json!({
            "request": request, "sha256": offer.release["sha256"], "offset": bytes.len(), "length": 32_768, "count": 2,
        });
        device.report("chunk", &ask).await;
        for _ in 0..2 {
            if bytes.len() < size {
                let chunk = device
                    .message(&format!("down/chunk/{request}/{}", bytes.len()))
                    .await;
                assert_eq!(chunk.len(), 32_768.min(size - bytes.len()));
                bytes.extend(chunk);
            }
        }
        if bytes.len() == size {
            break;
        }
    }
    assert_eq!(bytes, image("2.1.0"));
}

async fn a_lie_about_the_version_is_a_failure(options: Options) {
    let Scene {
        service,
        trust,
        campaign,
        mut device,
        ..
    } = scene(options, MqttVersion::V311, 90.0).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    device
        .report("progress", &offer.progress(1, "accepted", &json!({})))
        .await;
    device
        .report(
            "progress",
            &offer.progress(2, "completed", &json!({ "version": "9.9.9" })),
        )
        .await;
    let admin = service.admin();
    let update = admin
        .update_becomes(offer.text("update_id"), "failed")
        .await;
    assert_eq!(update["error_code"], "version_mismatch");
    let campaign = admin
        .campaign_becomes(&campaign, "ended", |c| c["failed_devices"] == 1)
        .await;
    assert_eq!(campaign["completed_devices"], 0);
}

async fn the_old_version_after_the_restart_is_a_failure(options: Options) {
    let Scene {
        service,
        trust,
        credentials,
        mut device,
        ..
    } = scene(options, MqttVersion::V311, 90.0).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    for (seq, phase) in (1..).zip([
        "accepted",
        "downloading",
        "verifying",
        "installing",
        "rebooting",
    ]) {
        device
            .report("progress", &offer.progress(seq, phase, &json!({})))
            .await;
    }
    device.leave().await;
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    let mut beat = heartbeat(90.0);
    beat["boot_id"] = json!("the-second-boot");
    device.report("heartbeat", &beat).await;
    device.check("2.0.0", "boot").await;
    let update = service
        .admin()
        .update_becomes(offer.text("update_id"), "failed")
        .await;
    assert_eq!(update["error_code"], "reverted");
}
