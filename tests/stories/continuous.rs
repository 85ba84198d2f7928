//! Continuous campaigns: devices that come to be meant are taken in, and are let go when they no longer are.

use serde_json::{Value, json};

use crate::harness::{
    Device, MqttVersion, Options, Service, Trust, device_json, eventually, in_seconds,
};

matrix!(a_campaign_goes_on_for_those_who_come: sqlite_gateway, postgres_gateway);

async fn why(service: &Service, campaign: &str, device: &str) -> Value {
    let path = format!("/api/v1/ota/campaigns/{campaign}/devices/{device}/why");
    service.admin().get(&path).await.expect(200)["reasons"][0].clone()
}

async fn a_campaign_goes_on_for_those_who_come(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let mut first = device_json("first");
    first["groups"] = json!(["shop"]);
    let credentials = admin.register(&[first, device_json("other")]).await;
    let spec = json!({
        "name": "for every shop", "firmware_id": firmware, "deployment_strategy": "immediate",
        "target_groups": ["shop"], "continuous": true, "schedule": {"end_at": in_seconds(3_600)},
    });
    let campaign = admin.start_campaign(spec).await;
    let seen = admin.campaign(&campaign).await;
    assert_eq!(
        (&seen["continuous"], &seen["total_devices"]),
        (&json!(true), &json!(1))
    );
    assert_eq!(seen["draft"]["continuous"], true);
    let mut one = Device::connect(&service, MqttVersion::V5, &credentials[0]).await;
    one.check("2.0.0", "boot").await;
    let offer = one.offer(&trust).await;
    one.complete(&offer).await;
    let waits = |c: &Value| c["waits"][0]["code"] == "newcomers";
    let done = admin.campaign_becomes(&campaign, "at rest", waits).await;
    assert_eq!(
        (&done["status"], &done["completed_devices"]),
        (&json!("in_progress"), &json!(1))
    );

    // A device is moved into the group, another one comes new.
    let mut new = device_json("new");
    new["groups"] = json!(["shop"]);
    let newer = admin.register(&[new]).await;
    let other = "/api/v1/ota/devices/other";
    admin
        .put(other, json!({"groups": ["shop"]}))
        .await
        .expect(200);
    let all = |c: &Value| c["total_devices"] == 3 && c["target_device_count"] == 3;
    admin
        .campaign_becomes(&campaign, "of three devices", all)
        .await;
    let mut two = Device::connect(&service, MqttVersion::V311, &newer[0]).await;
    two.check("2.0.0", "boot").await;
    let offer = two.offer(&trust).await;
    two.complete(&offer).await;

    // The other one is taken out again before it was there to be offered anything.
    admin.put(other, json!({"groups": []})).await.expect(200);
    let reason = eventually("it is let go", async || {
        let reason = why(&service, &campaign, "other").await;
        (reason["code"] == "cancelled")
            .then_some(reason.clone())
            .ok_or_else(|| reason.to_string())
    })
    .await;
    assert_eq!(reason["because"], "not_meant", "{reason}");
    let update = &admin.updates_of("other").await[0];
    assert_eq!(
        (&update["status"], &update["error_code"]),
        (&json!("cancelled"), &json!("not_meant"))
    );
    let done = admin.campaign_becomes(&campaign, "at rest", waits).await;
    assert_eq!(
        (&done["completed_devices"], &done["cancelled_devices"]),
        (&json!(2), &json!(1))
    );
    admin.act(&campaign, "cancel").await.expect(200);
}
