//! Whom a campaign means: filters, dry runs, and the reasons of each device, from before the start to the end.

use serde_json::{Value, json};

use crate::harness::{
    Admin, Device, MqttVersion, Options, Service, Trust, device_json, eventually,
};

matrix!(a_dry_run_names_the_devices_that_the_campaign_then_means: sqlite_gateway, postgres_gateway);
matrix!(a_filter_that_is_none_is_refused_by_its_place: sqlite_gateway);
matrix!(who_is_named_and_not_there_is_told: sqlite_gateway, postgres_gateway);
matrix!(each_device_is_told_why_it_is_or_is_not_offered: sqlite_gateway, postgres_gateway);

const CAMPAIGNS: &str = "/api/v1/ota/campaigns";

fn device(id: &str, change: &Value) -> Value {
    let mut device = device_json(id);
    for (field, value) in change.as_object().unwrap() {
        device[field] = value.clone();
    }
    device
}

fn ids(list: &Value) -> Vec<&str> {
    let id = |entry: &'_ Value| entry["device_id"].as_str().is_some();
    let entries = list.as_array().unwrap();
    assert!(entries.iter().all(id), "{list}");
    entries
        .iter()
        .filter_map(|entry| entry["device_id"].as_str())
        .collect()
}

async fn lobby(admin: &Admin) -> String {
    admin
        .register(&[
            device("a-lobby", &json!({"groups": ["lobby"], "ring": "canary"})),
            device(
                "b-lobby",
                &json!({"groups": ["lobby"], "firmware_version": "2.1.0"}),
            ),
            device(
                "c-old",
                &json!({"firmware_version": "1.9.0", "ring": "early"}),
            ),
            device(
                "d-older",
                &json!({"firmware_version": "1.10.0", "tags": {"site": "lab"}, "ring": "broad"}),
            ),
            device("e-other", &json!({"device_model": "XL-5"})),
            device("f-plain", &json!({"ring": "production"})),
        ])
        .await;
    admin.image("2.1.0").await
}

async fn a_dry_run_names_the_devices_that_the_campaign_then_means(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let firmware = lobby(&admin).await;
    let draft = json!({
        "name": "lobby and old ones", "firmware_id": firmware, "target_groups": ["lobby"],
        "target_devices": ["e-other", "nobody", "f-plain"],
        "target_filters": {"all": [
            {"field": "firmware_version", "op": "semver", "value": ">=1.2, <2"},
            {"not": {"field": "tags.site", "op": "eq", "value": "lab"}},
        ]},
    });
    let path = format!("{CAMPAIGNS}/dry-run");
    let mut found = admin.post(&path, draft.clone()).await.expect(200);
    assert_eq!(found["firmware"]["firmware_id"], json!(firmware));
    found.as_object_mut().unwrap().remove("firmware");
    let target = |id: &str, stage: &str, version: &str| {
        json!({
            "device_id": id, "stage": stage, "firmware_version": version, "online": false, "last_seen": null,
            "waits_for_campaign": null,
        })
    };
    let left_out = |id: &str, code: &str, detail: &str| json!({"device_id": id, "code": code, "detail": detail});
    let stage = |name: &str, percent: f64, devices: u64| json!({"name": name, "percent": percent, "count": null, "devices": devices});
    assert_eq!(
        found,
        json!({
            "target_device_count": 3,
            "stages": [
                stage("canary", 5.0, 1), stage("early", 25.0, 1), stage("broad", 75.0, 0), stage("production", 100.0, 1),
            ],
            "left_out": {
                "count": 3,
                "by_reason": {"unknown_device": 1, "wrong_model": 1, "already_installed": 1},
                "named": [
                    left_out("e-other", "wrong_model", "the device is of another model than the firmware"),
                    left_out("nobody", "unknown_device", "the device is not registered"),
                ],
                "devices": [],
            },
            "no_way_back": [
                {"firmware_version": "2.0.0", "devices": 2}, {"firmware_version": "1.9.0", "devices": 1},
            ],
            "targets": [
                target("a-lobby", "canary", "2.0.0"),
                target("c-old", "early", "1.9.0"),
                target("f-plain", "production", "2.0.0"),
            ],
            "count": 3, "limit": 50, "offset": 0, "filters": {},
        })
    );
    let early = admin
        .post(&format!("{path}?stage=early&limit=1"), draft.clone())
        .await
        .expect(200);
    assert_eq!(ids(&early["targets"]), ["c-old"]);
    assert_eq!(early["filters"], json!({"stage": "early"}));
    admin
        .post(&format!("{path}?stage=none"), draft.clone())
        .await
        .refused(400);
    left_out_are_listed_by_reason(&admin, &path, &draft).await;
    let list = admin.get(CAMPAIGNS).await.expect(200);
    assert_eq!(list["count"], 0, "a dry run leaves nothing");

    let id = admin.create_campaign(draft.clone()).await;
    let campaign = admin.campaign(&id).await;
    assert_eq!(campaign["target_device_count"], 3);
    assert_eq!(campaign["left_out"], found["left_out"]["by_reason"]);
    assert_eq!(campaign["target_filters"], draft["target_filters"]);
    let targets = format!("{CAMPAIGNS}/{id}/targets");
    let again = admin.get(&targets).await.expect(200);
    assert_eq!(
        (&again["targets"], &again["stages"]),
        (&found["targets"], &found["stages"])
    );
    admin.act(&id, "start").await.expect(200);
    let refused = admin.get(&targets).await.refused(409);
    assert_eq!(refused["code"], "wrong_state");
    let devices = admin
        .get(&format!("{CAMPAIGNS}/{id}/devices"))
        .await
        .expect(200);
    let mut meant = ids(&devices["devices"]);
    meant.sort_unstable();
    assert_eq!(meant, ["a-lobby", "c-old", "f-plain"]);
    let waiting = json!({
        "name": "another", "firmware_id": admin.image("2.2.0").await, "target_devices": ["a-lobby"],
    });
    let waiting = admin.post(&path, waiting).await.expect(200);
    assert_eq!(waiting["targets"][0]["waits_for_campaign"], json!(id));
}

async fn left_out_are_listed_by_reason(admin: &Admin, path: &str, draft: &Value) {
    for (reason, device) in [
        ("already_installed", "b-lobby"),
        ("wrong_model", "e-other"),
        ("unknown_device", "nobody"),
    ] {
        let asked = format!("{path}?left_out={reason}");
        let page = admin.post(&asked, draft.clone()).await.expect(200);
        assert_eq!(ids(&page["left_out"]["devices"]), [device]);
        assert_eq!(
            (&page["targets"], &page["count"], &page["filters"]),
            (&json!([]), &json!(1), &json!({"left_out": reason}))
        );
        assert_eq!(
            page["target_device_count"], 3,
            "the numbers are of the whole"
        );
        let beyond = format!("{asked}&offset=1");
        let page = admin.post(&beyond, draft.clone()).await.expect(200);
        assert_eq!(page["left_out"]["devices"], json!([]));
    }
    for asked in ["left_out=not_meant", "left_out=wrong_model&stage=early"] {
        let asked = format!("{path}?{asked}");
        admin.post(&asked, draft.clone()).await.refused(400);
    }
}

async fn a_filter_that_is_none_is_refused_by_its_place(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    let leaf = json!({"field": "online", "op": "eq", "value": true});
    let wrong = json!({"any": [leaf, {"field": "battery_percent", "op": "prefix", "value": "2"}]});
    let draft = json!({"name": "c", "firmware_id": firmware, "target_filters": wrong});
    for path in [CAMPAIGNS.to_owned(), format!("{CAMPAIGNS}/dry-run")] {
        let refused = admin.post(&path, draft.clone()).await.refused(400);
        assert_eq!(
            refused["detail"],
            "target_filters.any[1].op: battery_percent takes eq, ne, in, lt, le, gt, ge, exists, not \"prefix\""
        );
        assert_eq!(refused["code"], "invalid_campaign");
    }
}

/// The codes of the reasons, most decisive first.
async fn why(admin: &Admin, campaign: &str, device: &str) -> Vec<Value> {
    let path = format!("{CAMPAIGNS}/{campaign}/devices/{device}/why");
    let body = admin.get(&path).await.expect(200);
    assert_eq!(
        (&body["campaign_id"], &body["device_id"]),
        (&json!(campaign), &json!(device))
    );
    body["reasons"].as_array().unwrap().clone()
}

fn codes(reasons: &[Value]) -> Vec<&str> {
    assert!(reasons.iter().all(|reason| reason["detail"].is_string()));
    reasons
        .iter()
        .filter_map(|reason| reason["code"].as_str())
        .collect()
}

async fn each_device_is_told_why_it_is_or_is_not_offered(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let canary = device("canary-0", &json!({"ring": "canary"}));
    let later = device("later-0", &json!({"ring": "early"}));
    let other = device("other-0", &json!({"device_model": "XL-5"}));
    let credentials = admin.register(&[canary, later, other]).await;
    service.knows(&credentials[0].username).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let spec = json!({
        "name": "why", "firmware_id": firmware, "deployment_strategy": "staged", "requires_approval": false,
        "stages": [{"ring": "canary", "gate": {"min_success_percent": 100, "soak_seconds": 86400}}],
    });
    let id = admin.create_campaign(spec).await;
    assert_eq!(codes(&why(&admin, &id, "canary-0").await), ["not_started"]);
    let not_meant = why(&admin, &id, "other-0").await;
    assert_eq!(codes(&not_meant), ["not_target", "not_started"]);
    assert_eq!(not_meant[0]["because"], "not_meant");
    admin
        .get(&format!("{CAMPAIGNS}/{id}/devices/nobody/why"))
        .await
        .refused(404);

    admin.act(&id, "start").await.expect(200);
    assert_eq!(codes(&why(&admin, &id, "canary-0").await), ["offline"]);
    let closed = why(&admin, &id, "later-0").await;
    assert_eq!(codes(&closed), ["stage_closed", "gate_samples", "offline"]);
    assert_eq!(
        (&closed[0]["stage"], &closed[1]["need"]),
        (&json!("100%"), &json!(1))
    );
    assert_eq!(codes(&why(&admin, &id, "other-0").await), ["not_target"]);

    let mut device = Device::connect(&service, MqttVersion::V311, &credentials[0]).await;
    device.follows("2.0.0").await;
    let offer = device.offer(&trust).await;
    let offered = why(&admin, &id, "canary-0").await;
    assert_eq!(codes(&offered), ["in_flight"]);
    assert_eq!(
        (&offered[0]["action"], &offered[0]["attempt"]),
        (&json!("update"), &json!(1))
    );
    admin.act(&id, "pause").await.expect(200);
    assert_eq!(
        codes(&why(&admin, &id, "later-0").await),
        ["paused", "offline"]
    );
    admin.act(&id, "resume").await.expect(200);
    device.complete(&offer).await;
    admin
        .campaign_becomes(&id, "through its canary", |c| c["completed_devices"] == 1)
        .await;
    assert_eq!(codes(&why(&admin, &id, "canary-0").await), ["completed"]);
    // The soak begins with the pass after the result.
    eventually("the soak is told", async || {
        let soaks = why(&admin, &id, "later-0").await;
        let told = codes(&soaks) == ["stage_closed", "gate_soak", "offline"];
        told.then_some(()).ok_or(format!("{soaks:?}"))
    })
    .await;

    let new = device_json("new-0");
    admin.register(&[new]).await;
    assert_eq!(codes(&why(&admin, &id, "new-0").await), ["too_late"]);
    admin.act(&id, "cancel").await.expect(200);
    assert_eq!(codes(&why(&admin, &id, "later-0").await), ["cancelled"]);
}

async fn who_is_named_and_not_there_is_told(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    let draft =
        |names: Value| json!({"name": "typo", "firmware_id": firmware, "target_devices": names});
    let made = admin
        .post(CAMPAIGNS, draft(json!(["frame-1", "frmae-2"])))
        .await;
    let made = made.expect(201);
    assert_eq!(
        (&made["target_device_count"], &made["left_out"]),
        (&json!(0), &json!({"unknown_device": 2}))
    );
    let id = made["campaign_id"].as_str().unwrap();
    let refused = admin.act(id, "start").await.refused(409);
    assert_eq!(refused["code"], "no_devices");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("2 unknown_device"), "{detail}");
    assert_eq!(admin.campaign(id).await["status"], "created");

    admin.register(&[device_json("frame-1")]).await;
    let path = format!("{CAMPAIGNS}/{id}");
    let changed = admin.put(&path, draft(json!(["frame-1", "frmae-2"]))).await;
    assert_eq!(
        changed.expect(200)["left_out"],
        json!({"unknown_device": 1})
    );
    let started = admin.act(id, "start").await.expect(200);
    assert_eq!(started["total_devices"], 1);
    let everybody = json!({"name": "nobody", "firmware_id": firmware, "target_groups": ["lab"]});
    let nobody = admin.create_campaign(everybody).await;
    let refused = admin.act(&nobody, "start").await.refused(409);
    assert_eq!(refused["code"], "no_devices");
}
