//! How fast campaigns go: their rates, and the limit of the whole service.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::harness::{Device, MqttVersion, Options, Service, Trust, device_json, eventually};

matrix!(a_rate_lets_one_go_and_tells_the_others_when: sqlite_gateway, postgres_gateway);
matrix!(the_whole_service_has_a_limit: sqlite_gateway, postgres_gateway);

async fn why(service: &Service, campaign: &str, device: &str) -> Value {
    let path = format!("/api/v1/ota/campaigns/{campaign}/devices/{device}/why");
    service.admin().get(&path).await.expect(200)["reasons"][0].clone()
}

async fn a_rate_lets_one_go_and_tells_the_others_when(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let credentials = admin
        .register(&["frame-1", "frame-2"].map(device_json))
        .await;
    service.knows(&credentials[1].username).await;
    let spec = json!({
        "name": "slowly", "firmware_id": firmware, "deployment_strategy": "immediate", "rate": {"per_minute": 1},
    });
    let mut wrong = spec.clone();
    wrong["rate"]["factor"] = json!(2);
    let refused = admin
        .post("/api/v1/ota/campaigns", wrong)
        .await
        .refused(400);
    assert!(
        refused["detail"]
            .as_str()
            .unwrap()
            .starts_with("rate: give per_minute"),
        "{refused}"
    );
    let campaign = admin.start_campaign(spec).await;
    assert_eq!(
        admin.campaign(&campaign).await["rate"],
        json!({"per_minute": 1})
    );

    let mut one = Device::connect(&service, MqttVersion::V5, &credentials[0]).await;
    one.check("2.0.0", "boot").await;
    let offer = one.offer(&trust).await;
    let mut two = Device::connect(&service, MqttVersion::V311, &credentials[1]).await;
    two.refusal("2.0.0", "the campaign's rate lets the next offer go out at")
        .await;
    one.complete(&offer).await;
    let reason = why(&service, &campaign, "frame-2").await;
    assert_eq!(reason["code"], "rate", "{reason}");
    let next: Timestamp = reason["next"].as_str().unwrap().parse().unwrap();
    let seen = admin.campaign(&campaign).await;
    let started: Timestamp = seen["started_at"].as_str().unwrap().parse().unwrap();
    let after = next.duration_since(started).as_secs();
    assert!(after >= 60, "a minute after the first: {seen:#}");
    assert_eq!(seen["waits"][0]["code"], "rate", "{seen:#}");
    // What was written down about it is no change of the campaign.
    let path = format!("/api/v1/ota/campaigns/{campaign}/pause");
    let revision = format!("\"{}\"", seen["revision"]);
    let pause = admin
        .client()
        .post(admin.url(&path))
        .header("If-Match", revision);
    admin.send(pause).await.expect(200);
}

async fn the_whole_service_has_a_limit(options: Options) {
    let service = Service::start(options.with("MAX_CONCURRENT_UPDATES", "1")).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let names = ["frame-1", "frame-2", "frame-3"];
    let credentials = admin.register(&names.map(device_json)).await;
    service.knows(&credentials[2].username).await;
    let mut campaigns = Vec::new();
    for name in &names[..2] {
        let spec = json!({
            "name": name, "firmware_id": firmware, "deployment_strategy": "immediate", "target_devices": [name],
        });
        campaigns.push(admin.start_campaign(spec).await);
    }
    let mut one = Device::connect(&service, MqttVersion::V5, &credentials[0]).await;
    one.check("2.0.0", "boot").await;
    let offer = one.offer(&trust).await;
    let mut two = Device::connect(&service, MqttVersion::V5, &credentials[1]).await;
    two.refusal("2.0.0", "all slots of the whole service are taken")
        .await;
    assert_eq!(
        why(&service, &campaigns[1], "frame-2").await["code"],
        "no_room"
    );

    // A single device has no other way round it.
    let mut three = Device::connect(&service, MqttVersion::V5, &credentials[2]).await;
    three.check("2.0.0", "boot").await;
    let asked = admin
        .post(
            "/api/v1/ota/devices/frame-3/update",
            json!({ "firmware_id": firmware }),
        )
        .await
        .expect(201);
    let update = asked["update_id"].as_str().unwrap();
    eventually("it says what it waits for", async || {
        let why = admin.update(update).await["why"]["code"].clone();
        (why == "no_room")
            .then_some(())
            .ok_or_else(|| why.to_string())
    })
    .await;
    one.complete(&offer).await;
    // Whoever is first: one after the other.
    let (offer, first, second) = tokio::select! {
        offer = two.offer(&trust) => (offer, &mut two, &mut three),
        offer = three.offer(&trust) => (offer, &mut three, &mut two),
    };
    first.complete(&offer).await;
    let offer = second.offer(&trust).await;
    second.complete(&offer).await;
    admin
        .campaign_becomes(&campaigns[1], "completed", |c| c["status"] == "completed")
        .await;
    admin.update_becomes(update, "completed").await;
}
