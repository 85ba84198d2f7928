//! Failures of one kind stop a campaign, each in its own way.

use serde_json::json;

use crate::harness::{Device, MqttVersion, Options, Service, Trust, device_json, eventually};

matrix!(rejections_cancel_and_timeouts_pause: sqlite_gateway, postgres_gateway);

async fn rejections_cancel_and_timeouts_pause(options: Options) {
    // Nobody is called late before the service has listened for a lease.
    let options = options
        .with("LEASE_SECONDS", "4")
        .with("RATE_LIMIT_HEARTBEAT", "off");
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let names = ["frame-1", "frame-2", "frame-3", "frame-4"];
    let credentials = admin.register(&names.map(device_json)).await;
    service.knows(&credentials[3].username).await;
    let spec = |name: &str, device: &[&str]| {
        json!({
            "name": name, "firmware_id": firmware, "target_devices": device, "deployment_strategy": "immediate",
            "failure_threshold_percent": 100, "max_retries": 0, "timeout_minutes": 0.05,
            "abort": [
                {"on": "rejected", "percent": 20, "min_samples": 2, "action": "cancel"},
                {"on": "timed_out", "percent": 20, "action": "pause"},
            ],
        })
    };
    let wrong = json!({"name": "n", "firmware_id": firmware, "abort": [{"on": "any", "percent": 101, "action": "pause"}]});
    let refused = admin.post("/api/v1/ota/campaigns", wrong).await;
    assert_eq!(
        refused.refused(400)["detail"],
        "abort.percent must be 0 to 100"
    );

    let campaign = admin.start_campaign(spec("refused", &names[..3])).await;
    let read = admin.campaign(&campaign).await;
    assert_eq!(read["abort"][0]["on"], "rejected");
    assert_eq!(read["draft"]["abort"], read["abort"]);
    let mut devices = Vec::new();
    for credentials in &credentials[..2] {
        let mut device = Device::connect(&service, MqttVersion::V5, credentials).await;
        device.check("2.0.0", "boot").await;
        let offer = device.offer(&trust).await;
        devices.push((device, offer));
    }
    let (device, offer) = &mut devices[0];
    device.complete(offer).await;
    let (device, offer) = &mut devices[1];
    let error = json!({ "error": { "code": "wrong_target", "message": "for another board" } });
    device
        .report("progress", &offer.progress(1, "rejected", &error))
        .await;
    let ended = admin
        .campaign_becomes(&campaign, "cancelled", |c| c["status"] == "cancelled")
        .await;
    assert_eq!(
        ended["status_reason"],
        "rejection rate 50.0 % of 2 results is above the limit of 20 %"
    );
    assert_eq!(
        ended["failures"],
        json!({"failed": 0, "rejected": 1, "timed_out": 0})
    );
    let seen = admin
        .campaign_becomes(&campaign, "settled", |c| c["cancelled_devices"] == 1)
        .await;
    assert_eq!(
        seen["completed_devices"], 1,
        "what completed stays: {seen:#}"
    );
    let trail = format!("/api/v1/ota/audit?entity_id={campaign}&action=campaign.cancelled");
    let trail = admin.get(&trail).await.expect(200);
    assert_eq!(trail["audit"][0]["subject"], "ota_service", "{trail:#}");

    // A device that is there, and does nothing with what it has taken.
    let campaign = admin.start_campaign(spec("late", &names[3..])).await;
    let mut mute = Device::connect(&service, MqttVersion::V311, &credentials[3]).await;
    mute.check("2.0.0", "boot").await;
    let offer = mute.offer(&trust).await;
    mute.report("progress", &offer.progress(1, "accepted", &json!({})))
        .await;
    let paused = eventually("it is stopped by time", async || {
        mute.report("heartbeat", &json!({ "version": "2.0.0" }))
            .await;
        let seen = admin.campaign(&campaign).await;
        let paused = seen["status"] == "paused";
        paused.then(|| seen.clone()).ok_or_else(|| seen.to_string())
    })
    .await;
    assert_eq!(paused["failures"]["timed_out"], 1, "{paused:#}");
    let reason = paused["status_reason"].as_str().unwrap();
    assert!(
        reason.starts_with("timeout rate 100.0 % of 1 results"),
        "{reason}"
    );
}
