//! Maintenance windows: outside of them nothing is offered, and it is told when the next one opens.

use serde_json::{Value, json};

use crate::harness::{Device, MqttVersion, Options, Service, Trust, device_json, in_seconds};

matrix!(a_window_is_kept_by_the_clock_of_each_device: sqlite_gateway, postgres_gateway);

const HOUR: i64 = 3_600;

/// The time of day, by UTC, so many seconds from now.
fn time_of_day(seconds: i64) -> String {
    let time = in_seconds(seconds);
    time.split('T').nth(1).unwrap().chars().take(5).collect()
}

async fn a_window_is_kept_by_the_clock_of_each_device(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let mut devices = ["frame-1", "frame-2"].map(device_json);
    devices[1]["tags"] = json!({"time_zone": "Pacific/Kiritimati"});
    let credentials = admin.register(&devices).await;
    service.knows(&credentials[1].username).await;
    let spec = |windows: Value| {
        json!({
            "name": "at night", "firmware_id": firmware, "deployment_strategy": "immediate", "windows": windows,
        })
    };
    let wrong = json!([{"start": "22:00", "duration_minutes": 60, "time_zone": "Mars/Olympus"}]);
    let refused = admin
        .post("/api/v1/ota/campaigns", spec(wrong))
        .await
        .refused(400);
    assert_eq!(
        refused["detail"],
        "windows: time_zone \"Mars/Olympus\" is none; use device, or a name as Europe/Berlin"
    );

    // Closed for everybody, for hours.
    let later = json!([{"days": [], "start": time_of_day(6 * HOUR), "duration_minutes": 60, "time_zone": "UTC"}]);
    let campaign = admin.start_campaign(spec(later.clone())).await;
    let seen = admin.campaign(&campaign).await;
    assert_eq!(seen["windows"], later);
    assert_eq!(seen["waits"][0]["code"], "window", "{seen:#}");
    let mut one = Device::connect(&service, MqttVersion::V5, &credentials[0]).await;
    one.refusal("2.0.0", "the next maintenance window opens at")
        .await;
    let why = format!("/api/v1/ota/campaigns/{campaign}/devices/frame-1/why");
    let why = admin.get(&why).await.expect(200);
    let opens = why["reasons"][0]["opens"].as_str().unwrap();
    assert!(opens.contains(&time_of_day(6 * HOUR)), "{why}");
    admin.act(&campaign, "cancel").await.expect(200);

    // Open now where no tag says otherwise; on the other side of the date line it is another time of day.
    let now =
        json!([{"start": time_of_day(-HOUR), "duration_minutes": 120, "time_zone": "device"}]);
    let campaign = admin.start_campaign(spec(now)).await;
    let mut two = Device::connect(&service, MqttVersion::V311, &credentials[1]).await;
    two.refusal("2.0.0", "the next maintenance window opens at")
        .await;
    one.check("2.0.0", "poll").await;
    let offer = one.offer(&trust).await;
    one.complete(&offer).await;
    let why = format!("/api/v1/ota/campaigns/{campaign}/devices/frame-2/why");
    let why = admin.get(&why).await.expect(200);
    assert_eq!(why["reasons"][0]["code"], "window", "{why}");

    // What is bad is taken back at any hour.
    let path = format!("/api/v1/ota/campaigns/{campaign}/rollback");
    admin.image("2.0.0").await;
    admin
        .post(&path, json!({ "reason": "it flickers" }))
        .await
        .expect(200);
    let offer = one.offer(&trust).await;
    assert_eq!(offer.text("action"), "rollback");
}
