//! The whole fleet prepares, holds, and flips when a person says so; and flips back without another download.

use device_sim::fleet::Verdict;
use serde_json::{Value, json};

use crate::fleet::{arguments, run};
use crate::harness::{Admin, Device, MqttVersion, Options, Service, Trust, device_json};

matrix!(a_fleet_prepares_and_flips_though_the_service_is_killed_in_between: sqlite_gateway, postgres_gateway, postgres_mosquitto);
matrix!(a_device_holds_until_it_is_told_and_flips_back: sqlite_gateway, postgres_mosquitto);

const FLEET: u64 = 24;

/// A campaign of everybody whose last stage waits for a person.
fn spec(firmware: &str, more: &Value) -> Value {
    let mut spec = json!({
        "name": "all at once", "firmware_id": firmware, "deployment_strategy": "blue_green",
        "max_concurrent_updates": 8,
        "stages": [{"percent": 100, "gate": {"min_success_percent": 100, "manual": true}}],
    });
    let fields = spec.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    spec
}

async fn holds(admin: &Admin, campaign: &str, devices: u64) -> Value {
    admin
        .campaign_becomes(campaign, "prepared", |c| c["staged_devices"] == devices)
        .await
}

async fn a_fleet_prepares_and_flips_though_the_service_is_killed_in_between(options: Options) {
    let mut service = Service::start(options.with("LEASE_SECONDS", "10")).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    let devices = usize::try_from(FLEET).unwrap();
    let until = ["--until", "2.1.0", "--manufacturer", "Acme"];
    let fleet = tokio::spawn(run(arguments(&service, devices, &until)));
    let all = |body: &Value| body["count"] == FLEET;
    crate::harness::eventually("the fleet is registered", async || {
        let list = admin.get("/api/v1/ota/devices?limit=100").await.expect(200);
        all(&list)
            .then_some(())
            .ok_or_else(|| list["count"].to_string())
    })
    .await;
    let campaign = admin.start_campaign(spec(&firmware, &json!({}))).await;
    // In the middle of the preparation, before the flip, and in its middle.
    admin
        .campaign_becomes(&campaign, "half prepared", |c| {
            c["staged_devices"].as_u64() >= Some(FLEET / 2)
        })
        .await;
    service.kill();
    service.start_again().await;
    let seen = holds(&admin, &campaign, FLEET).await;
    assert_eq!(seen["completed_devices"], 0, "{seen:#}");
    assert_eq!(seen["in_progress_devices"], 0, "they hold no slot");
    service.kill();
    service.start_again().await;
    let seen = holds(&admin, &campaign, FLEET).await;
    assert_eq!(seen["waits"][0]["code"], "gate_manual", "{seen:#}");
    admin.act(&campaign, "advance").await.expect(200);
    admin
        .campaign_becomes(&campaign, "half flipped", |c| {
            c["completed_devices"].as_u64() >= Some(FLEET / 4)
        })
        .await;
    service.kill();
    service.start_again().await;
    let summary = fleet.await.unwrap();
    assert_eq!(summary.violations, 0, "{summary:#?}");
    assert_eq!(summary.verdict, Verdict::Good, "{summary:#?}");
    assert_eq!(summary.by_version.get("2.1.0"), Some(&devices));
    let ended = admin
        .campaign_becomes(&campaign, "completed", |c| c["status"] == "completed")
        .await;
    assert_eq!(ended["completed_devices"], FLEET, "{ended:#}");
    assert_eq!(ended["staged_devices"], 0);
}

async fn a_device_holds_until_it_is_told_and_flips_back(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    admin.image("2.0.0").await;
    let firmware = admin.image("2.1.0").await;
    let names = ["frame-1", "frame-2"];
    let credentials = admin.register(&names.map(device_json)).await;
    service.knows(&credentials[1].username).await;
    let half =
        json!({"stages": [{"percent": 100, "gate": {"min_success_percent": 50, "manual": true}}]});
    let campaign = admin.start_campaign(spec(&firmware, &half)).await;
    let mut one = Device::connect(&service, MqttVersion::V5, &credentials[0]).await;
    one.check("2.0.0", "boot").await;
    let offer = one.offer(&trust).await;
    assert_eq!(offer.assignment["mode"], "stage");
    for (seq, phase) in (1..).zip([
        "accepted",
        "downloading",
        "verifying",
        "installing",
        "staged",
    ]) {
        one.report("progress", &offer.progress(seq, phase, &json!({})))
            .await;
    }
    holds(&admin, &campaign, 1).await;
    let update = admin.update(offer.text("update_id")).await;
    assert_eq!(
        (
            &update["status"],
            &update["why"]["code"],
            &update["why"]["stage"]
        ),
        (&json!("staged"), &json!("stage_closed"), &json!("activate"))
    );
    let why = format!("/api/v1/ota/campaigns/{campaign}/devices/frame-1/why");
    let why = admin.get(&why).await.expect(200);
    assert_eq!(why["reasons"][1]["code"], "gate_manual", "{why}");
    let listed = format!("/api/v1/ota/campaigns/{campaign}/devices?state=staged");
    assert_eq!(admin.get(&listed).await.expect(200)["count"], 1);
    let reply = one.check("2.0.0", "poll").await;
    assert_eq!(reply["offer"], false, "it waits: {reply}");

    // Half of them is enough. Who holds is told to flip, who comes late goes all the way.
    admin.act(&campaign, "advance").await.expect(200);
    let command = serde_json::from_slice(&one.message("down/command").await).unwrap();
    let command = trust.open(&command, "command", "dispatch");
    assert_eq!(command["command"], "activate");
    assert_eq!(command["update_id"], offer.text("update_id"));
    let done = json!({ "version": "2.1.0" });
    one.report("progress", &offer.progress(6, "rebooting", &json!({})))
        .await;
    one.report("progress", &offer.progress(7, "completed", &done))
        .await;
    let mut late = Device::connect(&service, MqttVersion::V311, &credentials[1]).await;
    late.check("2.0.0", "boot").await;
    let to_late = late.offer(&trust).await;
    assert_eq!(to_late.assignment["mode"], "install");
    late.complete(&to_late).await;
    admin
        .campaign_becomes(&campaign, "completed", |c| c["status"] == "completed")
        .await;

    let path = format!("/api/v1/ota/campaigns/{campaign}/rollback");
    admin
        .post(&path, json!({ "reason": "it flickers" }))
        .await
        .expect(200);
    for device in [&mut one, &mut late] {
        device.check("2.1.0", "poll").await;
        let back = device.offer(&trust).await;
        assert_eq!(back.text("action"), "rollback");
        assert_eq!(back.assignment["mode"], "install");
        device.complete(&back).await;
    }
    admin
        .campaign_becomes(&campaign, "rolled back", |c| c["status"] == "rolled_back")
        .await;
}
