//! Stages that wait for a person.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Device, MqttVersion, Options, Service, Trust, device_json};

matrix!(a_stage_waits_for_a_person_and_opens_once: sqlite_gateway, postgres_gateway);

matrix!(a_few_devices_go_first_and_the_dry_run_names_them: sqlite_gateway, postgres_gateway);

/// Administrators who ask at once.
const MANY: usize = 6;

async fn a_stage_waits_for_a_person_and_opens_once(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let mut devices = Vec::new();
    for ring in ["canary", "early", "broad"] {
        let mut device = device_json(ring);
        device["ring"] = json!(ring);
        devices.push(device);
    }
    let credentials = admin.register(&devices).await;
    service.knows(&credentials.last().unwrap().username).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let spec = json!({
        "name": "by hand", "firmware_id": firmware, "deployment_strategy": "canary",
        "stages": [{"ring": "canary", "gate": {"manual": true}}, {"ring": "early", "gate": {"manual": true}}],
    });
    let campaign = admin.create_campaign(spec).await;
    let path = format!("/api/v1/ota/campaigns/{campaign}/advance");
    let refused = admin.act(&campaign, "advance").await.refused(409);
    assert_eq!(refused["code"], "wrong_state", "{refused}");
    admin.act(&campaign, "start").await.expect(200);

    // The canary has not answered: what is missing is told, and nobody can be in its place.
    let refused = admin.act(&campaign, "advance").await.refused(409);
    assert_eq!(refused["code"], "nothing_waits", "{refused}");
    let mut canary = Device::connect(&service, MqttVersion::V5, &credentials[0]).await;
    let offer = canary.offer(&trust).await;
    canary.complete(&offer).await;
    let seen = admin
        .campaign_becomes(&campaign, "waiting for a person", |campaign| {
            campaign["waits"][0]["code"] == "gate_manual"
        })
        .await;
    assert_eq!(seen["waits"][0]["stage"], "early");
    let why = format!("/api/v1/ota/campaigns/{campaign}/devices/early/why");
    let why = admin.get(&why).await.expect(200);
    assert_eq!(why["reasons"][1]["code"], "gate_manual", "{why}");

    let wrong = admin.post(&path, json!({"stage": "100%"})).await;
    assert_eq!(wrong.refused(409)["code"], "wrong_stage");
    let wrong = admin.post(&path, json!({"stage": "late"})).await;
    assert_eq!(wrong.refused(400)["code"], "invalid_stage");
    let wrong = admin.post(&path, json!({"force": true})).await;
    assert_eq!(wrong.refused(400)["code"], "invalid_stage");
    let stale = admin
        .client()
        .post(admin.url(&path))
        .header("If-Match", "\"0\"");
    assert_eq!(
        admin.send(stale).await.refused(409)["code"],
        "changed_meanwhile"
    );
    let (_, viewer) = crate::identity::key(&service, "watch", "viewer").await;
    viewer.post(&path, json!({})).await.refused(403);

    // However many ask, one stage opens.
    let answers = join_all((0..MANY).map(|_| admin.act(&campaign, "advance"))).await;
    let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    let mut one = vec![200];
    one.extend([409; MANY - 1]);
    assert_eq!(statuses, one);
    let seen = admin.campaign(&campaign).await;
    let open: Vec<_> = seen["stages"].as_array().unwrap().iter().collect();
    assert_eq!(
        (&open[1]["open"], &open[2]["open"]),
        (&json!(true), &json!(false))
    );
    let mut early = Device::connect(&service, MqttVersion::V311, &credentials[1]).await;
    let mut broad = Device::connect(&service, MqttVersion::V311, &credentials[2]).await;
    let to_early = early.offer(&trust).await;
    assert_eq!(broad.check("2.0.0", "poll").await["offer"], false);

    // By force the last stage does not wait for the one before it; by name, that happens once.
    let force = json!({"stage": "100%", "force": true});
    admin.post(&path, force.clone()).await.expect(200);
    assert_eq!(
        admin.post(&path, force).await.refused(409)["code"],
        "wrong_stage"
    );
    let refused = admin.act(&campaign, "advance").await.refused(409);
    assert_eq!(refused["code"], "nothing_waits", "{refused}");
    let offer = broad.offer(&trust).await;
    broad.complete(&offer).await;
    early.complete(&to_early).await;
    admin
        .campaign_becomes(&campaign, "completed", |c| c["status"] == "completed")
        .await;
}

async fn a_few_devices_go_first_and_the_dry_run_names_them(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let mut devices: Vec<Value> = (0..30)
        .map(|n| device_json(&format!("frame-{n:02}")))
        .collect();
    for lab in devices.iter_mut().take(3) {
        lab["tags"] = json!({"site": "lab"});
    }
    admin.register(&devices).await;
    let firmware = admin.image("2.1.0").await;
    let spec = json!({
        "name": "a few first", "firmware_id": firmware, "deployment_strategy": "canary",
        "stages": [
            {"devices": ["frame-20", "frame-21"]},
            {"filter": {"field": "tags.site", "op": "eq", "value": "lab"}},
            {"count": 7, "gate": {"manual": true, "soak_seconds": 60}},
        ],
    });
    let asked = admin
        .post("/api/v1/ota/campaigns/dry-run?limit=200", spec.clone())
        .await;
    let run = asked.expect(200);
    let numbers = |body: &Value| -> Vec<(String, u64)> {
        let stages = body["stages"].as_array().unwrap().iter();
        let number = |stage: &Value| {
            let name = stage["name"].as_str().unwrap().to_owned();
            (name, stage["devices"].as_u64().unwrap())
        };
        stages.map(number).collect()
    };
    let seen = numbers(&run);
    assert_eq!(
        (seen[0].clone(), seen[1].clone()),
        (("named devices".to_owned(), 2), ("filter".to_owned(), 3))
    );
    let (first, rest) = (seen[2].1, seen[3].1);
    assert!(
        (2..=7).contains(&first),
        "the first seven, but those that have gone before: {seen:?}"
    );
    assert_eq!(first + rest, 25);
    assert_eq!(run["stages"][2]["count"], 7);
    let named = |stage: &str| -> Vec<String> {
        let targets = run["targets"].as_array().unwrap().iter();
        let of_it = targets.filter(|target| target["stage"] == stage);
        of_it
            .map(|target| target["device_id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(named("named devices"), ["frame-20", "frame-21"]);
    assert_eq!(named("filter"), ["frame-00", "frame-01", "frame-02"]);

    // What was said is what is done.
    let campaign = admin.start_campaign(spec).await;
    assert_eq!(numbers(&admin.campaign(&campaign).await), seen);
    for device in named("7 devices") {
        let why = format!("/api/v1/ota/campaigns/{campaign}/devices/{device}/why");
        let why = admin.get(&why).await.expect(200);
        assert_eq!(why["reasons"][0]["stage"], "7 devices", "{why}");
    }
    let wrong =
        json!({"name": "n", "firmware_id": firmware, "stages": [{"count": 5, "percent": 5}]});
    let wrong = admin
        .post("/api/v1/ota/campaigns", wrong)
        .await
        .refused(400);
    assert!(
        wrong["detail"]
            .as_str()
            .unwrap()
            .starts_with("stages: each has one of"),
        "{wrong}"
    );
}
