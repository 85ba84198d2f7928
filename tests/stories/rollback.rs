//! The threshold: too many failures stop a campaign by itself and bring the updated devices back.

use serde_json::json;

use crate::harness::{Device, MqttVersion, Options, Service, Trust, device_json, eventually};

matrix!(failures_stop_the_campaign_and_bring_the_updated_back);
matrix!(a_rollback_whose_device_is_gone_ends_and_is_tried_again_when_it_returns: sqlite_gateway, postgres_mosquitto);

const DEVICES: usize = 10;

async fn failures_stop_the_campaign_and_bring_the_updated_back(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    admin.image("2.0.0").await;
    let firmware = admin.image("2.1.0").await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let entries: Vec<_> = (0..DEVICES)
        .map(|n| device_json(&format!("frame-{n}")))
        .collect();
    let credentials = admin.register(&entries).await;
    service.knows(&credentials.last().unwrap().username).await;
    let campaign = admin
        .start_campaign(json!({
            "name": "a bad image", "firmware_id": firmware, "deployment_strategy": "immediate",
            "max_concurrent_updates": 4, "auto_rollback": true, "failure_threshold_percent": 10,
            "failure_min_samples": 4, "max_retries": 0,
        }))
        .await;
    // Only those that show themselves are offered anything: four at a time, and four there are.
    let (early, late) = credentials.split_at(4);
    let mut four = Vec::new();
    for credentials in early {
        four.push(Device::connect(&service, MqttVersion::V311, credentials).await);
    }
    let mut offers = Vec::new();
    for device in &mut four {
        device
            .report("heartbeat", &json!({ "version": "2.0.0" }))
            .await;
        device.check("2.0.0", "boot").await;
    }
    for device in &mut four {
        offers.push(device.offer(&trust).await);
    }
    for (device, offer) in four.iter_mut().zip(&offers).take(2) {
        device.complete(offer).await;
    }
    for (device, offer) in four.iter_mut().zip(&offers).skip(2) {
        device.fail(offer).await;
    }

    // It stops by itself. What was updated is offered its old version again, signed like everything else.
    let seen = admin
        .campaign_becomes(&campaign, "rolling back", |c| {
            c["rollback_trigger"].is_string()
        })
        .await;
    assert_eq!(seen["failed_devices"], 2);
    for device in four.iter_mut().take(2) {
        device.check("2.1.0", "poll").await;
        let offer = device.offer(&trust).await;
        assert_eq!(offer.text("action"), "rollback");
        assert_eq!(offer.release["version"], "2.0.0");
        device.complete(&offer).await;
    }
    let ended = admin
        .campaign_becomes(&campaign, "rolled back", |c| c["status"] == "rolled_back")
        .await;
    assert_eq!(ended["cancelled_devices"], 6, "{ended:#}");
    assert_eq!(ended["pending_devices"], 0);
    assert_eq!(ended["in_progress_devices"], 0);
    for credentials in late {
        let mut device = Device::connect(&service, MqttVersion::V311, credentials).await;
        let reply = device.check("2.0.0", "poll").await;
        assert_eq!(reply["offer"], false, "what waited is cancelled: {reply}");
    }

    let mut log = admin.rollbacks_of(&campaign).await;
    log.sort_by_key(|entry| entry["device_id"].to_string());
    assert_eq!(log.len(), 2, "one for each that was updated: {log:#?}");
    insta::allow_duplicates! { insta::assert_json_snapshot!(log.first(), {
        ".rollback_id" => "[id]", ".update_id" => "[id]", ".campaign_id" => "[id]",
        ".started_at" => "[time]", ".completed_at" => "[time]",
    }, @r#"
    {
      "campaign_id": "[id]",
      "completed_at": "[time]",
      "device_id": "frame-0",
      "error_message": null,
      "from_version": "2.1.0",
      "reason": "failure rate 50.0 % of 4 results is above the threshold of 10 %",
      "rollback_id": "[id]",
      "started_at": "[time]",
      "status": "completed",
      "success": true,
      "to_version": "2.0.0",
      "trigger": "failure_threshold",
      "update_id": "[id]"
    }
    "#) }
    for name in ["frame-0", "frame-1"] {
        let device = admin
            .get(&format!("/api/v1/ota/devices/{name}"))
            .await
            .expect(200);
        assert_eq!(device["firmware_version"], "2.0.0");
    }
}

async fn a_rollback_whose_device_is_gone_ends_and_is_tried_again_when_it_returns(options: Options) {
    // Some four seconds for a rollback, of which the service listens one before it calls anybody silent.
    let options = options
        .with("ROLLBACK_TIMEOUT_HOURS", "0.001")
        .with("LEASE_SECONDS", "1");
    let service = Service::start(options).await;
    let admin = service.admin();
    admin.image("2.0.0").await;
    let firmware = admin.image("2.1.0").await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let credentials = service.register(device_json("frame-1")).await;
    let campaign = admin
        .start_campaign(
            json!({ "name": "gone", "firmware_id": firmware, "deployment_strategy": "immediate" }),
        )
        .await;
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    device.complete(&offer).await;
    let completed = admin
        .campaign_becomes(&campaign, "completed", |c| c["status"] == "completed")
        .await;
    let goodbye = json!({ "online": false, "reason": "shutdown" });
    device.report("status", &goodbye).await;
    device.leave().await;
    eventually("the service knows that the device is gone", async || {
        let device = admin.get("/api/v1/ota/devices/frame-1").await.expect(200);
        let gone = device["online"] == false;
        gone.then_some(()).ok_or_else(|| device.to_string())
    })
    .await;

    let path = format!("/api/v1/ota/campaigns/{campaign}/rollback");
    let reason = json!({ "reason": "it flickers" });
    admin.post(&path, reason).await.expect(200);
    let ended = admin
        .campaign_becomes(&campaign, "rolled back", |c| c["status"] == "rolled_back")
        .await;
    assert_eq!(ended["rollback"]["failed"], 1);
    assert!(ended["started_at"].is_string());
    assert_eq!(ended["started_at"], completed["started_at"]);
    let log = admin.rollbacks_of(&campaign).await;
    assert_eq!(log[0]["status"], "failed");
    assert_eq!(
        log[0]["error_message"],
        "not done within its time: it was never offered"
    );

    // It comes back on the bad version. Nobody has forgotten it, and an admin tries once more.
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    device.check("2.1.0", "boot").await;
    let update = log[0]["update_id"].as_str().unwrap();
    let path = format!("/api/v1/ota/updates/{update}/retry");
    admin.post(&path, json!({})).await.expect(200);
    let offer = device.offer(&trust).await;
    assert_eq!(offer.text("action"), "rollback");
    device.complete(&offer).await;
    let ended = admin
        .campaign_becomes(&campaign, "rolled back after all", |c| {
            c["status"] == "rolled_back" && c["rollback"]["completed"] == 1
        })
        .await;
    assert_eq!(ended["rollback"]["failed"], 0);
}
