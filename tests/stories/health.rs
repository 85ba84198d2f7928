//! Devices that complete their update and do not stay well: they count as failed, and take their campaign back.

use serde_json::{Value, json};

use crate::harness::{
    Admin, Credentials, Device, MqttVersion, Options, Service, Trust, device_json,
};

matrix!(a_canary_that_falls_back_in_its_soak_takes_the_campaign_back: sqlite_gateway, postgres_gateway);

matrix!(a_fleet_that_runs_hotter_than_before_goes_back: sqlite_gateway, postgres_gateway);

matrix!(a_completed_campaign_goes_back_when_its_devices_fall_silent: sqlite_gateway, postgres_gateway);

async fn update_of(admin: &Admin, campaign: &str, device: &str) -> Value {
    let path = format!("/api/v1/ota/updates?campaign_id={campaign}&device_id={device}");
    let list = admin.get(&path).await.expect(200);
    let updates = list["updates"].as_array().unwrap();
    let update = updates.iter().find(|update| update["action"] == "update");
    update.unwrap().clone()
}

/// An image for a device of the ring `canary` and one of `production`, which run another, and the devices' credentials.
async fn a_canary_and_the_rest(service: &Service) -> (String, Vec<Credentials>) {
    let admin = service.admin();
    admin.image("2.0.0").await;
    let firmware = admin.image("2.1.0").await;
    let mut devices = vec![device_json("canary"), device_json("rest")];
    devices[0]["ring"] = json!("canary");
    devices[1]["ring"] = json!("production");
    let credentials = admin.register(&devices).await;
    service.knows(&credentials[1].username).await;
    (firmware, credentials)
}

async fn a_canary_that_falls_back_in_its_soak_takes_the_campaign_back(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let (firmware, credentials) = a_canary_and_the_rest(&service).await;
    let spec = json!({
        "name": "shows later", "firmware_id": firmware, "deployment_strategy": "canary",
        "stages": [{"ring": "canary", "gate": {"soak_seconds": 3600}}],
        "health": {"watch_seconds": 60, "max_restarts": 9},
    });
    let campaign = admin.start_campaign(spec).await;
    let read = admin.campaign(&campaign).await;
    let health =
        json!({"watch_seconds": 60, "silent_seconds": null, "max_restarts": 9, "criteria": []});
    assert_eq!(
        (&read["health"], &read["draft"]["health"]),
        (&health, &health)
    );
    let mut canary = Device::connect(&service, MqttVersion::V5, &credentials[0]).await;
    canary.check("2.0.0", "boot").await;
    let offer = canary.offer(&trust).await;
    canary.complete(&offer).await;
    let soaks = |c: &Value| c["waits"][0]["code"] == "gate_soak";
    admin.campaign_becomes(&campaign, "soaking", soaks).await;
    let seen = update_of(&admin, &campaign, "canary").await;
    assert!(seen["watched_until"].is_string(), "{seen:#}");

    // It restarts into what it ran before, and says so more than once.
    for reason in ["boot", "reconnect"] {
        canary.check("2.0.0", reason).await;
    }
    let back = |c: &Value| c["status"] == "rolling_back";
    let seen = admin.campaign_becomes(&campaign, "going back", back).await;
    assert_eq!(
        seen["status_reason"],
        "failure rate 100.0 % of 1 results is above the threshold of 10 %; 1 had completed and regressed"
    );
    let offer = canary.offer(&trust).await;
    canary.complete(&offer).await;
    let over = |c: &Value| c["status"] == "rolled_back";
    let seen = admin.campaign_becomes(&campaign, "rolled back", over).await;
    let counts = ["completed", "regressed", "failed", "cancelled"];
    let counts = counts.map(|of| seen[format!("{of}_devices")].as_u64().unwrap());
    assert_eq!(counts, [1, 1, 0, 1]);
    assert_eq!(seen["failure_rate_percent"], 100.0);
    assert_eq!(seen["failures"]["failed"], 1);
    assert_eq!(seen["rollback_trigger"], "failure_threshold");
    assert_eq!(seen["stages"][0]["regressed"], 1);

    let seen = update_of(&admin, &campaign, "canary").await;
    assert_eq!(
        (&seen["status"], &seen["error_code"], &seen["watched_until"]),
        (&json!("completed"), &json!("reverted"), &Value::Null)
    );
    assert!(seen["regressed_at"].is_string(), "{seen:#}");
    let why = format!("/api/v1/ota/campaigns/{campaign}/devices/canary/why");
    let why = admin.get(&why).await.expect(200);
    let codes = why["reasons"].as_array().unwrap().iter();
    let codes: Vec<_> = codes.map(|reason| &reason["code"]).collect();
    assert!(codes.contains(&&json!("regressed")), "{why:#}");
    let statistics = format!("/api/v1/ota/stats/campaigns/{campaign}");
    let statistics = admin.get(&statistics).await.expect(200);
    assert_eq!(statistics["regressed_updates"], 1, "{statistics:#}");
    assert_eq!(statistics["completed_updates"], 1, "{statistics:#}");
    let wrong = json!({"name": "n", "firmware_id": firmware, "health": {"silent_seconds": 0}});
    let refused = admin.post("/api/v1/ota/campaigns", wrong).await;
    assert_eq!(
        refused.refused(400)["detail"],
        "health.silent_seconds must be 1 to 2592000"
    );
}

async fn a_completed_campaign_goes_back_when_its_devices_fall_silent(options: Options) {
    // Nobody is called silent before the service has listened for a lease.
    let service = Service::start(options.with("LEASE_SECONDS", "2")).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    admin.image("2.0.0").await;
    let firmware = admin.image("2.1.0").await;
    let names = ["stays", "leaves"];
    let credentials = admin.register(&names.map(device_json)).await;
    service.knows(&credentials[1].username).await;
    let spec = json!({
        "name": "silent", "firmware_id": firmware, "deployment_strategy": "immediate",
        "health": {"silent_seconds": 1},
        "abort": [{"on": "timed_out", "percent": 20, "action": "rollback"}], "failure_threshold_percent": 100,
    });
    let campaign = admin.start_campaign(spec).await;
    let mut devices = Vec::new();
    for credentials in &credentials {
        let mut device = Device::connect(&service, MqttVersion::V311, credentials).await;
        device.check("2.0.0", "boot").await;
        let offer = device.offer(&trust).await;
        device.complete(&offer).await;
        devices.push(device);
    }
    let done = |c: &Value| c["status"] == "completed";
    admin.campaign_becomes(&campaign, "completed", done).await;
    let leaves = devices.pop().unwrap();
    leaves.leave().await;
    let back = |c: &Value| c["status"] == "rolling_back";
    let seen = admin.campaign_becomes(&campaign, "going back", back).await;
    assert_eq!(
        (&seen["failures"]["timed_out"], &seen["regressed_devices"]),
        (&json!(1), &json!(1)),
        "{seen:#}"
    );
    let seen = update_of(&admin, &campaign, "leaves").await;
    assert_eq!(seen["error_code"], "device_lost", "{seen:#}");
    let stays = &mut devices[0];
    stays.check("2.1.0", "poll").await;
    let offer = stays.offer(&trust).await;
    stays.complete(&offer).await;
    let taken = |c: &Value| c["rollback"]["completed"] == 1;
    admin.campaign_becomes(&campaign, "taken back", taken).await;
}

async fn a_fleet_that_runs_hotter_than_before_goes_back(options: Options) {
    let service = Service::start(options.with("HEALTH_SECONDS", "1")).await;
    let admin = service.admin();
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let (firmware, credentials) = a_canary_and_the_rest(&service).await;
    let mut canary = Device::connect(&service, MqttVersion::V5, &credentials[0]).await;
    canary.check("2.0.0", "boot").await;
    let beat = |version, degrees| json!({"version": version, "metrics": {"degrees": degrees}});
    canary.report("heartbeat", &beat("2.0.0", 40)).await;
    let criterion = json!({"metric": "metrics.degrees", "compare": "before", "max_increase": {"percent": 50}, "action": "rollback"});
    let wrong = json!({"name": "n", "firmware_id": firmware, "health": {"criteria": [criterion, {"metric": "degrees"}]}});
    let refused = admin.post("/api/v1/ota/campaigns", wrong).await;
    let detail = refused.refused(400)["detail"].to_string();
    assert!(
        detail.contains("health.criteria.metric must be errors"),
        "{detail}"
    );
    let mut criterion = criterion;
    criterion["min_samples"] = json!(1);
    let spec = json!({
        "name": "hot", "firmware_id": firmware, "deployment_strategy": "canary",
        "stages": [{"ring": "canary", "gate": {"soak_seconds": 3600}}],
        "health": {"criteria": [criterion]},
    });
    let campaign = admin.start_campaign(spec).await;
    let offer = canary.offer(&trust).await;
    canary.complete(&offer).await;
    canary.report("heartbeat", &beat("2.1.0", 55)).await;
    let read = |c: &Value| c["health_figures"][0]["now"] == 55.0;
    let seen = admin.campaign_becomes(&campaign, "read", read).await;
    let figure = &seen["health_figures"][0];
    assert_eq!(
        (&figure["base"], &figure["samples"], &figure["breached"]),
        (&json!(40.0), &json!(1), &json!(false)),
        "{seen:#}"
    );
    canary.report("heartbeat", &beat("2.1.0", 85)).await;
    let back = |c: &Value| c["status"] == "rolling_back";
    let seen = admin.campaign_becomes(&campaign, "going back", back).await;
    assert_eq!(
        seen["status_reason"],
        "metrics.degrees of devices after their update is 70.00, of the same devices before their update 40.00 (1 devices): more than 50 % above"
    );
    assert_eq!(seen["health_figures"][0]["breached"], true);
    let offer = canary.offer(&trust).await;
    canary.complete(&offer).await;
    let over = |c: &Value| c["status"] == "rolled_back";
    admin.campaign_becomes(&campaign, "rolled back", over).await;
}
