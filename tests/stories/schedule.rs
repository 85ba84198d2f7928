//! Campaigns that offer from one time on and until another.

use serde_json::json;

use crate::harness::{Device, MqttVersion, Options, Service, Trust, device_json, in_seconds};

matrix!(a_campaign_begins_and_ends_when_its_schedule_says: sqlite_gateway, postgres_gateway);

async fn a_campaign_begins_and_ends_when_its_schedule_says(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let credentials = admin
        .register(&[device_json("frame-1"), device_json("frame-2")])
        .await;
    service.knows(&credentials.last().unwrap().username).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let scheduled = |schedule| {
        json!({
            "name": "at night", "firmware_id": firmware, "deployment_strategy": "scheduled",
            "schedule": schedule,
        })
    };
    let mut device = Device::connect(&service, MqttVersion::V5, &credentials[0]).await;

    let early = scheduled(json!({"start_at": in_seconds(86_400)}));
    let early = admin.start_campaign(early).await;
    let reply = device.check("2.0.0", "boot").await;
    assert_eq!(reply["offer"], false, "{reply}");
    let seen = admin.campaign(&early).await;
    assert_eq!(seen["status"], "in_progress");
    assert_eq!(seen["waits"][0]["code"], "scheduled");
    let path = format!("/api/v1/ota/campaigns/{early}/devices/frame-1/why");
    let why = admin.get(&path).await.expect(200);
    assert_eq!(why["reasons"][0]["code"], "scheduled", "{why}");
    admin.act(&early, "cancel").await.expect(200);

    let timed = scheduled(json!({"start_at": in_seconds(1)}));
    let timed = admin.start_campaign(timed).await;
    let offer = device.offer(&trust).await;
    device.complete(&offer).await;

    // Frame-2 is never there, and is not waited for when the time is over.
    let ends = json!({
        "name": "this evening", "firmware_id": firmware, "deployment_strategy": "immediate",
        "target_devices": ["frame-2"], "schedule": {"end_at": in_seconds(5)},
    });
    let ends = admin.start_campaign(ends).await;
    let seen = admin
        .campaign_becomes(&ends, "over", |campaign| campaign["status"] == "completed")
        .await;
    assert_eq!(seen["cancelled_devices"], 1);
    admin.act(&timed, "cancel").await.expect(200);

    let late = scheduled(json!({"start_at": in_seconds(-60), "end_at": in_seconds(-30)}));
    let late = admin.post("/api/v1/ota/campaigns", late).await.expect(201);
    let late = late["campaign_id"].as_str().unwrap();
    let refused = admin.act(late, "start").await.refused(409);
    assert_eq!(refused["code"], "schedule_over");
}
