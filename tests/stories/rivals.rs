//! Campaigns that want the same devices: priority, then age.

use serde_json::{Value, json};

use crate::harness::{Admin, Device, MqttVersion, Options, Service, Trust, device_json};

matrix!(the_other_one_waits_and_says_so: sqlite_gateway, postgres_gateway);

/// What waits says for which campaign.
async fn waits_for(admin: &Admin, campaign: &str, other: &str, device: &str) {
    let reason = why(admin, campaign, device).await;
    assert_eq!(reason["code"], "other_update", "{reason}");
    assert_eq!(reason["campaign"], other, "{reason}");
}

async fn why(admin: &Admin, campaign: &str, device: &str) -> Value {
    let path = format!("/api/v1/ota/campaigns/{campaign}/devices/{device}/why");
    admin.get(&path).await.expect(200)["reasons"][0].clone()
}

async fn ends(admin: &Admin, campaign: &str) -> Value {
    let done = |campaign: &Value| campaign["status"] == "completed";
    admin.campaign_becomes(campaign, "completed", done).await;
    admin.campaign(campaign).await
}

async fn the_other_one_waits_and_says_so(options: Options) {
    let service = Service::start(options).await;
    let admin = &service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let credentials = admin
        .register(&["frame-1", "frame-2"].map(device_json))
        .await;
    service.knows(&credentials[1].username).await;
    let start = async |version: &str, more: Value| {
        let mut spec = json!({
            "name": version, "firmware_id": admin.image(version).await, "deployment_strategy": "immediate",
        });
        for (name, value) in more.as_object().unwrap() {
            spec[name] = value.clone();
        }
        admin.start_campaign(spec).await
    };
    let urgent = start(
        "2.2.0",
        json!({"priority": "high", "max_concurrent_updates": 1}),
    )
    .await;
    let usual = start("2.1.0", json!({})).await;
    let mut one = Device::connect(&service, MqttVersion::V5, &credentials[0]).await;
    one.check("2.0.0", "boot").await;
    let offer = one.offer(&trust).await;
    let mut two = Device::connect(&service, MqttVersion::V311, &credentials[1]).await;
    two.refusal("2.0.0", "of this device comes first").await;
    waits_for(admin, &usual, &urgent, "frame-2").await;
    assert_eq!(why(admin, &urgent, "frame-2").await["code"], "no_slot");
    one.complete(&offer).await;
    let offer = two.offer(&trust).await;
    assert_eq!(offer.release["version"], "2.2.0");
    two.complete(&offer).await;
    // What comes last is older than what they run by now: they are not asked to refuse it.
    let ended = ends(admin, &usual).await;
    assert_eq!(ended["cancelled_devices"], 2, "{ended:#}");
    let reason = why(admin, &usual, "frame-1").await;
    assert_eq!(reason["because"], "newer_installed", "{reason}");
    ends(admin, &urgent).await;

    let older = start("2.3.0", json!({"max_concurrent_updates": 1})).await;
    let first = one.offer(&trust).await;
    let younger = start("2.4.0", json!({})).await;
    two.refusal("2.2.0", "of this device comes first").await;
    waits_for(admin, &younger, &older, "frame-2").await;
    one.complete(&first).await;
    for device in [&mut two, &mut one] {
        let offer = device.offer(&trust).await;
        device.complete(&offer).await;
    }
    let last = two.offer(&trust).await;
    assert_eq!(last.release["version"], "2.4.0");
    two.complete(&last).await;
    for campaign in [&older, &younger] {
        let ended = ends(admin, campaign).await;
        assert_eq!(ended["completed_devices"], 2, "{ended:#}");
    }
}
