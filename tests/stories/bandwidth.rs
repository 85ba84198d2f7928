//! Budgets of bandwidth: the devices of a site share a line, and another site has its own.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::harness::{Device, MqttVersion, Options, Service, Trust, device_json, eventually};

matrix!(a_site_gets_one_image_after_the_other: sqlite_gateway, postgres_gateway);

async fn why(service: &Service, campaign: &str, device: &str) -> Value {
    let path = format!("/api/v1/ota/campaigns/{campaign}/devices/{device}/why");
    service.admin().get(&path).await.expect(200)["reasons"][0].clone()
}

/// An image has 200,000 bytes.
async fn a_site_gets_one_image_after_the_other(options: Options) {
    let options = options.with("BANDWIDTH_OF_TAGS", "site=1000,floor=1000000000");
    let service = Service::start(options.with("BANDWIDTH_OF_GROUPS", "lab=1")).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let names = ["a-1", "a-2", "b-1", "a-3", "none"];
    let devices = names.map(|name| {
        let mut device = device_json(name);
        if let Some((site, _)) = name.split_once('-') {
            device["tags"] = json!({ "site": site });
        }
        device
    });
    let credentials = admin.register(&devices).await;
    service.knows(&credentials[4].username).await;
    let spec = json!({
        "name": "over thin lines", "firmware_id": firmware, "deployment_strategy": "immediate",
        "target_devices": ["a-1", "a-2", "b-1", "none"], "bandwidth_bytes_per_second": 1_000_000_000,
    });
    let mut wrong = spec.clone();
    wrong["bandwidth_bytes_per_second"] = json!(0);
    let refused = admin
        .post("/api/v1/ota/campaigns", wrong)
        .await
        .refused(400);
    assert!(
        refused["detail"]
            .as_str()
            .unwrap()
            .starts_with("bandwidth_bytes_per_second must be 1"),
        "{refused}"
    );
    let campaign = admin.start_campaign(spec).await;
    let seen = admin.campaign(&campaign).await;
    assert_eq!(seen["bandwidth_bytes_per_second"], 1_000_000_000);
    let mut one = Device::connect(&service, MqttVersion::V5, &credentials[0]).await;
    one.check("2.0.0", "boot").await;
    let offer = one.offer(&trust).await;
    let mut two = Device::connect(&service, MqttVersion::V311, &credentials[1]).await;
    two.refusal(
        "2.0.0",
        "it waits for bandwidth; the next offer can go out at",
    )
    .await;
    for at in [2, 4] {
        let mut other = Device::connect(&service, MqttVersion::V5, &credentials[at]).await;
        other.check("2.0.0", "boot").await;
        let offer = other.offer(&trust).await;
        other.complete(&offer).await;
    }
    // That its download is done makes room for nobody: the budget is of bytes a second.
    one.complete(&offer).await;
    let reason = why(&service, &campaign, "a-2").await;
    assert_eq!(reason["code"], "bandwidth", "{reason}");
    let next: Timestamp = reason["next"].as_str().unwrap().parse().unwrap();
    let started: Timestamp = seen["started_at"].as_str().unwrap().parse().unwrap();
    assert!(next.duration_since(started).as_secs() >= 200, "{reason}");

    // A single device of the site has no other way round it.
    let mut three = Device::connect(&service, MqttVersion::V5, &credentials[3]).await;
    three.check("2.0.0", "boot").await;
    let asked = json!({ "firmware_id": firmware });
    let asked = admin
        .post("/api/v1/ota/devices/a-3/update", asked)
        .await
        .expect(201);
    let update = asked["update_id"].as_str().unwrap();
    eventually("it says what it waits for", async || {
        let why = admin.update(update).await["why"]["code"].clone();
        (why == "bandwidth")
            .then_some(())
            .ok_or_else(|| why.to_string())
    })
    .await;
}
