//! The audit trail: nothing is changed without a record, and no record without being noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::{
    Admin, Device, MqttVersion, Offer, Options, Service, SmallDisk, Trust, device_json, eventually,
    image, image_metadata, in_seconds,
};

matrix!(every_change_leaves_a_record_with_it: sqlite_gateway, postgres_gateway);
matrix!(what_is_refused_or_changes_nothing_leaves_none: sqlite_gateway, postgres_gateway);
matrix!(what_the_service_decides_is_told_too: sqlite_gateway, postgres_gateway);
matrix!(records_are_found_by_what_they_say: sqlite_gateway, postgres_gateway);
matrix!(whoever_changes_the_trail_is_found_out: sqlite_gateway, postgres_gateway);
matrix!(a_kill_leaves_the_chain_whole: sqlite_gateway, postgres_gateway);
matrix!(a_database_at_rest_is_verified_where_nobody_may_write: sqlite_gateway);
matrix!(a_trail_is_verified_without_a_touch: sqlite_gateway, postgres_gateway);

/// Where images are: the paths of both requirement documents.
const FAMILIES: [&str; 2] = ["/api/v1/ota", "/api/v1"];
const AUDIT: &str = "/api/v1/ota/audit";
const KEYS: &str = "POST /api/v1/ota/keys";
const CAMPAIGNS: &str = "POST /api/v1/ota/campaigns";
const CAMPAIGN: &str = "/api/v1/ota/campaigns/{campaign_id}";
const DEVICE: &str = "/api/v1/ota/devices/{device_id}";
const UPDATE: &str = "/api/v1/ota/updates/{update_id}";

/// Operations that change something, as the document knows them, and leave no record; and why.
const UNRECORDED: [(&str, &str); 5] = [
    ("POST /api/v1/ota/campaigns/dry-run", "it changes nothing"),
    ("POST /api/v1/heartbeat", "a device tells of itself"),
    (
        "POST /api/v1/ota/permits",
        "recorded; it needs a signed permit, and `permits` has one",
    ),
    (
        "POST /api/v1/ota/webhooks/{webhook_id}/dead-letters/{number}/retry",
        "recorded; it needs a receiver, and `webhooks` has one",
    ),
    (
        "DELETE /api/v1/ota/webhooks/{webhook_id}/dead-letters/{number}",
        "recorded; the same",
    ),
];

/// An admin whose every change is looked up in the trail.
struct Trail {
    service: Service,
    admin: Admin,
    called: BTreeSet<String>,
    requests: u32,
}

impl Trail {
    async fn start(options: Options) -> Self {
        let service = Service::start(options).await;
        let admin = service.admin();
        Self {
            service,
            admin,
            called: BTreeSet::new(),
            requests: 0,
        }
    }

    /// Calls an operation, which must leave a record of each of these acts; answers its body and the records.
    async fn tells(
        &mut self,
        by: &Admin,
        operation: &str,
        id: &str,
        body: Option<Value>,
        acts: &[&str],
    ) -> (Value, Vec<Value>) {
        let (method, template) = operation.split_once(' ').unwrap();
        let levels = template.split('/');
        let filled = levels.map(|level| if level.starts_with('{') { id } else { level });
        let path = filled.collect::<Vec<_>>().join("/");
        let request = by.client().request(method.parse().unwrap(), by.url(&path));
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        self.sends(by, operation, request, acts).await
    }

    async fn sends(
        &mut self,
        by: &Admin,
        operation: &str,
        request: reqwest::RequestBuilder,
        acts: &[&str],
    ) -> (Value, Vec<Value>) {
        self.requests += 1;
        self.called.insert(operation.to_owned());
        let id = format!("request-{}", self.requests);
        let answer = by.send(request.header("X-Request-Id", &id)).await;
        assert!(
            answer.status < 300,
            "{operation}: {} {:#}",
            answer.status,
            answer.body
        );
        let records = records(&self.admin, &format!("request_id={id}&limit=200")).await;
        let told: Vec<&str> = records
            .iter()
            .map(|record| record["action"].as_str().unwrap())
            .collect();
        assert_eq!(told, acts, "{operation}: {records:#?}");
        for record in &records {
            assert_eq!(record["request_id"], id.as_str());
            assert_eq!(record["peer"], "127.0.0.1");
        }
        (answer.body, records)
    }

    /// An image that must be new, by the paths of one family; its id.
    async fn uploads(&mut self, family: &str, version: &str) -> String {
        let file = Part::bytes(image(version)).file_name("image.bin");
        let form = Form::new()
            .text("metadata", image_metadata(version).to_string())
            .part("file", file);
        let admin = self.admin.clone();
        let path = format!("{family}/firmware");
        let request = admin.client().post(admin.url(&path));
        let (body, records) = self
            .sends(
                &admin,
                &format!("POST {path}"),
                request.multipart(form),
                &["firmware.uploaded"],
            )
            .await;
        assert_eq!(records[0]["entity_id"], body["firmware_id"]);
        assert_eq!(records[0]["after"]["version"], version);
        text(&body, "firmware_id")
    }

    /// A key with a role; its id and a client that uses it.
    async fn key(&mut self, name: &str, role: &str) -> (String, Admin) {
        let admin = self.admin.clone();
        let spec = json!({ "name": name, "roles": [role] });
        let (made, records) = self
            .tells(&admin, KEYS, "", Some(spec), &["key.created"])
            .await;
        assert_eq!(
            records[0]["after"],
            json!({"name": name, "subject": name, "roles": [role], "expires_at": null})
        );
        let client = Admin::new(&self.service.ready().http, &text(&made, "secret"));
        (text(&made, "key_id"), client)
    }
}

fn text(body: &Value, field: &str) -> String {
    body[field].as_str().unwrap().to_owned()
}

/// Records, newest first.
async fn records(admin: &Admin, query: &str) -> Vec<Value> {
    let list = admin.get(&format!("{AUDIT}?{query}")).await.expect(200);
    list["audit"].as_array().unwrap().clone()
}

/// Number and hash of the newest record.
async fn newest(admin: &Admin) -> (i64, String) {
    match records(admin, "limit=1").await.first() {
        Some(record) => (record["number"].as_i64().unwrap(), text(record, "hash")),
        None => (0, String::new()),
    }
}

/// Verifies the trail; whether it is whole, and what is said of it.
fn verify(service: &Service, more: &[&str]) -> (bool, String) {
    let mut command: Command = service.command(&service.data_dir());
    let output = command
        .args(["audit", "verify"])
        .args(more)
        .output()
        .unwrap();
    let said =
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    let code = output.status.code().unwrap();
    assert!(code == 0 || code == 1, "{code}: {said}");
    (code == 0, said)
}

async fn every_change_leaves_a_record_with_it(options: Options) {
    let mut trail = Trail::start(options).await;
    let admin = trail.admin.clone();
    let mut secrets = vec![trail.service.key().to_owned()];
    let old = trail.uploads(FAMILIES[0], "2.0.0").await;
    let new = trail.uploads(FAMILIES[0], "2.1.0").await;
    secrets.extend(of_devices(&mut trail, &old, &new).await);
    of_proposals(&mut trail, &new).await;
    of_campaigns(&mut trail, &new).await;
    of_images(&mut trail).await;
    let shares = json!({ "canary": 1, "early": 25, "broad": 75, "production": 100 });
    let shares = json!({ "rings": shares });
    let put = "PUT /api/v1/rings";
    let (_, told) = trail
        .tells(&admin, put, "", Some(shares), &["rings.changed"])
        .await;
    assert_eq!(
        (&told[0]["before"], &told[0]["after"]),
        (&json!({ "canary": 5.0 }), &json!({ "canary": 1.0 }))
    );
    let (key, _) = trail.key("left", "viewer").await;
    let revoke = "DELETE /api/v1/ota/keys/{key_id}";
    let (_, told) = trail
        .tells(&admin, revoke, &key, None, &["key.revoked"])
        .await;
    assert_eq!(told[0]["before"], json!({ "revoked_at": null }));

    secrets.push(of_webhooks(&mut trail).await);
    let document = admin.get("/openapi.json").await.expect(200);
    let mut changing = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let methods = ["post", "put", "patch", "delete"].into_iter();
        let there = methods.filter(|method| item.get(method).is_some());
        changing.extend(there.map(|method| format!("{} {path}", method.to_uppercase())));
    }
    trail
        .called
        .extend(UNRECORDED.map(|(operation, _)| operation.to_owned()));
    assert_eq!(
        trail.called, changing,
        "each operation that changes something is called here and leaves its record, or is named in UNRECORDED with a reason"
    );
    let all = admin.get(&format!("{AUDIT}?limit=200")).await.expect(200);
    for secret in secrets {
        assert!(!all.to_string().contains(&secret));
    }
    let (number, hash) = newest(&admin).await;
    let (whole, said) = verify(&trail.service, &[]);
    assert!(whole, "{said}");
    assert_eq!(
        said,
        format!("{number} records, all as they were written\n{hash}\n")
    );
}

/// Answers a secret.
async fn of_webhooks(trail: &mut Trail) -> String {
    let admin = trail.admin.clone();
    let hooks = "/api/v1/ota/webhooks";
    let mut spec =
        json!({ "url": "https://hooks.invalid/T0/known-to-the-receiver", "status": "paused" });
    let post = format!("POST {hooks}");
    let (made, told) = trail
        .tells(&admin, &post, "", Some(spec.clone()), &["webhook.created"])
        .await;
    assert_eq!(told[0]["entity_id"], made["webhook_id"]);
    let url = spec["url"].as_str().unwrap();
    assert_eq!(told[0]["after"]["origin"], "https://hooks.invalid");
    let sha256 = hex::encode(Sha256::digest(url));
    assert_eq!(told[0]["after"]["url_sha256"], sha256.as_str());
    assert!(!told[0].to_string().contains("known-to-the-receiver"));
    let id = text(&made, "webhook_id");
    spec["event_types"] = json!(["campaign.*"]);
    let put = format!("PUT {hooks}/{{webhook_id}}");
    let (_, told) = trail
        .tells(&admin, &put, &id, Some(spec), &["webhook.changed"])
        .await;
    assert_eq!(
        (&told[0]["before"], &told[0]["after"]),
        (
            &json!({ "event_types": [] }),
            &json!({ "event_types": ["campaign.*"] })
        )
    );
    let delete = format!("DELETE {hooks}/{{webhook_id}}");
    trail
        .tells(&admin, &delete, &id, None, &["webhook.deleted"])
        .await;
    text(&made, "secret")
}

/// Answers secrets.
async fn of_devices(trail: &mut Trail, old: &str, new: &str) -> Vec<String> {
    let admin = trail.admin.clone();
    let devices =
        json!({ "devices": [device_json("one"), device_json("two"), device_json("one")] });
    let acts = ["device.registered", "device.registered"];
    let (made, told) = trail
        .tells(&admin, "POST /api/v1/ota/devices", "", Some(devices), &acts)
        .await;
    assert_eq!(
        (&told[0]["entity_id"], &told[1]["entity_id"]),
        (&json!("two"), &json!("one"))
    );
    assert_eq!(told[0]["subject"], "admin");
    assert_eq!(told[0]["authentication"], "admin_key");
    assert_eq!(told[0]["roles"], json!(["admin"]));
    let secret = |entry: &Value| text(&entry["mqtt"], "password");
    let mut secrets = vec![secret(&made["devices"][0]), secret(&made["devices"][1])];

    let change = Some(json!({ "ring": "early", "hw_revision": "A" }));
    let put = format!("PUT {DEVICE}");
    let (_, told) = trail
        .tells(&admin, &put, "one", change, &["device.changed"])
        .await;
    assert_eq!(
        (&told[0]["before"], &told[0]["after"]),
        (&json!({ "ring": null }), &json!({ "ring": "early" })),
        "what was changed, and nothing else"
    );
    let renew = format!("POST {DEVICE}/credentials");
    let (made, _) = trail
        .tells(&admin, &renew, "one", None, &["device.credentials"])
        .await;
    let credentials = crate::harness::Credentials {
        username: "one".to_owned(),
        password: text(&made["mqtt"], "password"),
    };
    secrets.push(credentials.password.clone());
    let request = json!({ "firmware_id": new, "max_retries": 0 });
    let update = format!("POST {DEVICE}/update");
    let (made, told) = trail
        .tells(
            &admin,
            &update,
            "two",
            Some(request.clone()),
            &["update.created"],
        )
        .await;
    assert_eq!(told[0]["after"]["device_id"], "two");
    let id = text(&made, "update_id");
    let cancel = format!("POST {UPDATE}/cancel");
    let (_, told) = trail
        .tells(&admin, &cancel, &id, None, &["update.cancelled"])
        .await;
    assert_eq!(
        (&told[0]["before"], &told[0]["after"]),
        (
            &json!({ "status": "scheduled" }),
            &json!({ "status": "cancelled" })
        )
    );
    let bulk = json!({ "device_ids": ["two", "nobody"], "firmware_id": new });
    let operation = "POST /api/v1/ota/devices/bulk/update";
    trail
        .tells(&admin, operation, "", Some(bulk), &["update.created"])
        .await;
    // It says that it has moved on from what it was registered with, and so there is something to go back to.
    let heartbeat = json!({ "device_id": "two", "version": "2.0.5" });
    let request_url = admin.url("/api/v1/heartbeat");
    let heard = admin.client().post(request_url).json(&heartbeat);
    let heard = heard.basic_auth("two", Some(&secrets[1])).send().await;
    assert_eq!(heard.unwrap().status(), 200);
    several_back(trail, &cancel).await;
    let back = json!({ "to_version": "2.0.0", "reason": "it flickers" });
    let roll_back = format!("POST {DEVICE}/rollback");
    let (_, told) = trail
        .tells(&admin, &roll_back, "two", Some(back), &["update.rollback"])
        .await;
    assert_eq!(told[0]["after"]["reason"], "it flickers");
    assert_eq!(told[0]["after"]["firmware_id"], old);

    let (made, _) = trail
        .tells(&admin, &update, "one", Some(request), &["update.created"])
        .await;
    let id = text(&made, "update_id");
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let mut device = Device::connect(&trail.service, MqttVersion::V311, &credentials).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    fails(&mut device, &offer).await;
    admin.update_becomes(&id, "failed").await;
    let retry = format!("POST {UPDATE}/retry");
    trail
        .tells(&admin, &retry, &id, None, &["update.retried"])
        .await;
    let delete = format!("DELETE {DEVICE}");
    // Its update and its rollback wait, and end with it.
    let acts = ["device.deleted", "update.cancelled", "update.cancelled"];
    let (_, told) = trail.tells(&admin, &delete, "two", None, &acts).await;
    assert_eq!(told[0]["before"]["device_model"], "SF-100");
    assert_eq!(told[0]["after"], Value::Null);
    secrets
}

/// Takes several devices back, and withdraws it.
async fn several_back(trail: &mut Trail, cancel: &str) {
    let admin = trail.admin.clone();
    let all_back = json!({ "device_ids": ["two", "nobody"], "to_version": "2.0.0" });
    let operation = "POST /api/v1/ota/devices/bulk/rollback";
    let (made, _) = trail
        .tells(&admin, operation, "", Some(all_back), &["update.rollback"])
        .await;
    let again = text(&made["results"][0], "update_id");
    trail
        .tells(&admin, cancel, &again, None, &["update.cancelled"])
        .await;
}

async fn fails(device: &mut Device, offer: &Offer) {
    let accepted = offer.progress(1, "accepted", &json!({}));
    device.report("progress", &accepted).await;
    let error = json!({ "error": { "code": "install_failed", "message": "no space" } });
    let failed = offer.progress(2, "failed", &error);
    device.report("progress", &failed).await;
}

async fn of_proposals(trail: &mut Trail, firmware: &str) {
    let admin = trail.admin.clone();
    let (key, approver) = trail.key("security", "approver").await;
    let mut draft = json!({ "name": "n", "firmware_id": firmware, "requires_approval": true });
    let (made, told) = trail
        .tells(
            &admin,
            CAMPAIGNS,
            "",
            Some(draft.clone()),
            &["campaign.created"],
        )
        .await;
    assert_eq!(told[0]["after"]["name"], "n");
    assert_eq!(told[0]["before"], Value::Null);
    let id = text(&made, "campaign_id");
    draft["name"] = json!("m");
    let (_, told) = trail
        .tells(
            &admin,
            &format!("PUT {CAMPAIGN}"),
            &id,
            Some(draft),
            &["campaign.updated"],
        )
        .await;
    for (state, name, revision) in [("before", "n", 0), ("after", "m", 1)] {
        let state = &told[0][state];
        assert_eq!(
            (&state["name"], &state["revision"]),
            (&json!(name), &json!(revision))
        );
        assert_eq!(state["firmware_id"], Value::Null, "it stayed the same");
    }
    let approve = format!("POST {CAMPAIGN}/approve");
    let path = approver.url(&CAMPAIGN.replace("{campaign_id}", &id));
    let request = approver.client().post(format!("{path}/approve"));
    let request = request
        .header("If-Match", "\"1\"")
        .json(&json!({ "comment": "looked at" }));
    let (_, told) = trail
        .sends(&approver, &approve, request, &["campaign.approved"])
        .await;
    assert_eq!(told[0]["subject"], "security");
    assert_eq!(told[0]["authentication"], format!("api_key:{key}"));
    assert!(
        told[0]["after"].to_string().contains("looked at"),
        "{told:#?}"
    );
    let reject = format!("POST {CAMPAIGN}/reject");
    trail
        .tells(&approver, &reject, &id, None, &["campaign.rejected"])
        .await;
    trail
        .tells(
            &admin,
            &format!("DELETE {CAMPAIGN}"),
            &id,
            None,
            &["campaign.deleted"],
        )
        .await;
}

async fn of_campaigns(trail: &mut Trail, firmware: &str) {
    let admin = trail.admin.clone();
    // Later, so that no stage opens by itself meanwhile.
    let schedule = json!({ "start_at": in_seconds(86_400) });
    let draft = json!({ "name": "n", "firmware_id": firmware, "schedule": schedule });
    let (made, _) = trail
        .tells(&admin, CAMPAIGNS, "", Some(draft), &["campaign.created"])
        .await;
    let id = text(&made, "campaign_id");
    let early = Some(json!({ "stage": "early", "force": true }));
    for (what, body, act, status) in [
        ("start", None, "campaign.started", "in_progress"),
        ("pause", None, "campaign.paused", "paused"),
        ("resume", None, "campaign.resumed", "in_progress"),
        ("advance", early, "campaign.advanced", ""),
        ("cancel", None, "campaign.cancelled", "cancelled"),
        ("rollback", None, "campaign.rollback", "rolling_back"),
    ] {
        let operation = format!("POST {CAMPAIGN}/{what}");
        let (_, told) = trail.tells(&admin, &operation, &id, body, &[act]).await;
        let after = &told[0]["after"];
        if what == "advance" {
            assert_eq!(after["state"]["open_stage"], 1, "{after}");
        } else {
            assert_eq!(after["status"], status);
        }
        assert_eq!(told[0]["entity_id"], id.as_str());
    }
}

async fn of_images(trail: &mut Trail) {
    let admin = trail.admin.clone();
    for (family, version) in FAMILIES.into_iter().zip(["3.0.0", "3.1.0"]) {
        let id = trail.uploads(family, version).await;
        let image = format!("{family}/firmware/{{firmware_id}}");
        let change = json!({ "description": "for all" });
        let put = format!("PUT {image}");
        let (_, told) = trail
            .tells(&admin, &put, &id, Some(change), &["firmware.changed"])
            .await;
        assert_eq!(
            (&told[0]["before"], &told[0]["after"]),
            (
                &json!({ "description": null }),
                &json!({ "description": "for all" })
            )
        );
        let deploy = format!("POST {image}/deploy");
        for (ring, acts) in [
            ("canary", &["campaign.started", "campaign.created"][..]),
            ("early", &["campaign.promoted"]),
        ] {
            let ring = Some(json!({ "ring": ring }));
            trail.tells(&admin, &deploy, &id, ring, acts).await;
        }
        let path = format!("{family}/firmware/{id}?force=true");
        let request = admin.client().delete(admin.url(&path));
        let acts = ["firmware.deprecated", "campaign.cancelled"];
        let delete = format!("DELETE {image}");
        let (_, told) = trail.sends(&admin, &delete, request, &acts).await;
        assert_eq!(told[0]["entity_id"], id.as_str());
        assert_eq!(told[0]["before"], json!({ "deprecated_at": null }));
        assert_eq!(told[1]["after"]["status"], "cancelled");
    }
}

async fn what_is_refused_or_changes_nothing_leaves_none(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    admin.register(&[device_json("one")]).await;
    let viewer = json!({ "name": "v", "roles": ["viewer"] });
    let made = admin.post("/api/v1/ota/keys", viewer).await.expect(201);
    let reader = Admin::new(&service.ready().http, &text(&made, "secret"));
    let key = format!("/api/v1/ota/keys/{}", text(&made, "key_id"));
    let campaign = admin
        .create_campaign(json!({ "name": "n", "firmware_id": firmware }))
        .await;
    let (before, _) = newest(&admin).await;

    reader.act(&campaign, "start").await.refused(403);
    reader.get(AUDIT).await.refused(403);
    admin.act(&campaign, "resume").await.refused(409);
    let wrong = json!({ "name": "" });
    admin
        .post("/api/v1/ota/campaigns", wrong)
        .await
        .refused(400);
    let metadata = image_metadata("2.1.0");
    let again = admin.upload(&metadata, "image.bin", image("2.1.0"));
    assert!(again.await.status < 300, "the same image once more");
    let exists = admin.post("/api/v1/ota/devices", device_json("one")).await;
    assert_eq!(exists.expect(201)["devices"][0]["status"], "exists");
    let same = json!({ "hw_revision": "A" });
    admin.put("/api/v1/ota/devices/one", same).await.expect(200);
    let same = json!({ "is_beta": false });
    let image = format!("/api/v1/firmware/{firmware}");
    admin.put(&image, same).await.expect(200);
    assert_eq!(newest(&admin).await.0, before);
    admin.delete(&key).await.expect(200);
    admin.delete(&key).await.expect(200);
    assert_eq!(newest(&admin).await.0, before + 1, "a key is revoked once");
}

async fn what_the_service_decides_is_told_too(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let credentials = service.register(device_json("one")).await;
    let firmware = admin.image("2.1.0").await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    device.check("2.0.0", "boot").await;
    let spec = json!({
        "name": "n", "firmware_id": firmware, "deployment_strategy": "immediate", "max_retries": 0,
    });
    let campaign = admin.start_campaign(spec).await;
    let offer = device.offer(&trust).await;
    fails(&mut device, &offer).await;
    let told = eventually("the rollback is told", async || {
        let found = records(&admin, "subject=ota_service&action=campaign.rollback").await;
        found.into_iter().next().ok_or_else(|| "nothing".to_owned())
    })
    .await;
    assert_eq!(told["entity_id"], campaign.as_str());
    assert_eq!(told["authentication"], "service");
    assert_eq!(
        (&told["request_id"], &told["peer"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(told["before"]["status"], "in_progress");
    assert!(
        told["after"]["state"].to_string().contains("failure rate"),
        "{told:#}"
    );
}

async fn records_are_found_by_what_they_say(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let devices: Vec<_> = (0..5).map(|n| device_json(&format!("d{n}"))).collect();
    admin.register(&devices).await;
    let firmware = admin.image("2.1.0").await;
    let arguments = ["keys", "create", "--name", "cron", "--role", "viewer"];
    let mut command = service.command(&service.data_dir());
    assert!(command.args(arguments).output().unwrap().status.success());
    let (number, _) = newest(&admin).await;
    assert_eq!(number, 7);
    let count = async |query: &str| records(&admin, query).await.len();
    assert_eq!(count("subject=device-ota%20keys").await, 1);
    assert_eq!(count("subject=admin&entity=device").await, 5);
    assert_eq!(count("action=device.registered&limit=2&offset=4").await, 1);
    assert_eq!(count(&format!("entity_id={firmware}")).await, 1);
    assert_eq!(count("entity_id=d3&entity=device").await, 1);
    assert_eq!(count("entity_id=d3&entity=campaign").await, 0);
    assert_eq!(count("from=2001-01-01T00:00:00Z").await, 7);
    assert_eq!(count("to=2001-01-01T00:00:00Z").await, 0);
    let list = records(&admin, "").await;
    assert_eq!(list[0]["authentication"], "command_line");
    let numbers: Vec<_> = list.iter().map(|r| r["number"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [7, 6, 5, 4, 3, 2, 1]);
    for (later, earlier) in list.iter().zip(&list[1..]) {
        assert_eq!(later["prev"], earlier["hash"]);
    }
    for wrong in [
        "action=key.eaten",
        "entity=cake",
        "from=yesterday",
        "colour=red",
    ] {
        admin.get(&format!("{AUDIT}?{wrong}")).await.refused(400);
    }
}

async fn whoever_changes_the_trail_is_found_out(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let devices: Vec<_> = (0..6).map(|n| device_json(&format!("d{n}"))).collect();
    admin.register(&devices).await;
    let (number, remembered) = newest(&admin).await;
    assert_eq!(number, 6);
    for refused in [
        "UPDATE audit_log SET subject = 'somebody else' WHERE number = 3",
        "DELETE FROM audit_log WHERE number = 6",
        "UPDATE audit_head SET number = 5",
        "DELETE FROM audit_head",
    ] {
        let complaint = service.tamper(refused).await.unwrap_err();
        assert!(complaint.contains("audit log"), "{refused}: {complaint}");
    }
    let expect = |hash: &str| verify(&service, &["--expect", hash]);
    assert!(expect(&remembered).0);
    let (whole, said) = expect(&"1".repeat(64));
    assert!(!whole && said.contains("was written anew"), "{said}");
    let mut command = service.command(&service.data_dir());
    let mistyped = command
        .args(["audit", "verify", "--expect", "abc"])
        .output();
    let mistyped = mistyped.unwrap();
    assert_eq!(
        mistyped.status.code(),
        Some(2),
        "that says nothing of the trail"
    );
    let said = String::from_utf8(mistyped.stderr).unwrap();
    assert!(said.contains("this is no hash"), "{said}");

    // Whoever owns the database can put the guards away, and is found out all the same.
    service.without_audit_guards().await;
    let broken = async |sql: &str| {
        service.tamper(sql).await.unwrap();
        let (whole, said) = verify(&service, &[]);
        assert!(!whole, "{sql}: {said}");
        said
    };
    let said = broken("UPDATE audit_log SET subject = 'somebody else' WHERE number = 3").await;
    assert_eq!(said.matches("record 3 was changed").count(), 1, "{said}");
    service
        .tamper("UPDATE audit_log SET subject = 'admin' WHERE number = 3")
        .await
        .unwrap();
    assert!(verify(&service, &[]).0, "as it was");
    let said = broken("DELETE FROM audit_log WHERE number = 6").await;
    assert!(said.contains("records 6 to 6 are missing"), "{said}");
    let said = broken("DELETE FROM audit_log WHERE number = 2").await;
    assert!(said.contains("record 2 is missing"), "{said}");
}

async fn a_trail_is_verified_without_a_touch(options: Options) {
    let mut service = Service::start(options).await;
    service.admin().register(&[device_json("one")]).await;
    // Also what a power cut has left behind is read as it is.
    service.kill();
    assert!(verify(&service, &[]).0);
    // As a version would leave it whose last migration is not there yet.
    let older =
        "DELETE FROM _sqlx_migrations WHERE version = (SELECT MAX(version) FROM _sqlx_migrations)";
    service.tamper(older).await.unwrap();
    for _ in 0..2 {
        let (whole, said) = verify(&service, &[]);
        assert!(!whole && said.contains("of an older version"), "{said}");
    }
    let nowhere = service.scratch().join("nowhere");
    let mut command = service.command(&nowhere);
    command.env(
        "DEVICE_OTA_DATABASE_URL",
        format!("sqlite://{}/x.db", nowhere.display()),
    );
    let output = command.args(["audit", "verify"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("x.db: there is no database"), "{said}");
    assert!(!nowhere.exists(), "nothing is made");
}

/// Every file of a folder, with what is in it.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

async fn a_database_at_rest_is_verified_where_nobody_may_write(options: Options) {
    let disk = SmallDisk::mount(24);
    let file = disk.path().join("device-ota.db");
    let url = format!("sqlite://{}", file.display());
    let mut service = Service::start(options.with("DATABASE_URL", url)).await;
    service.admin().register(&[device_json("one")]).await;
    service.stop().await;
    let before = contents(disk.path());
    assert_eq!(
        before.len(),
        1,
        "the service has tidied up: {:?}",
        before.keys()
    );
    let (whole, said) = verify(&service, &[]);
    assert!(whole, "{said}");
    assert_eq!(contents(disk.path()), before, "nothing is left beside it");
    disk.read_only();
    let hash = said.lines().nth(1).unwrap();
    let (whole, said) = verify(&service, &["--expect", hash]);
    assert!(whole, "{said}");
}

async fn a_kill_leaves_the_chain_whole(options: Options) {
    const KILLS: usize = 3;
    const BUSY: usize = 4;
    let mut service = Service::start(options).await;
    let admin = service.admin();
    let mut random = StdRng::seed_from_u64(41);
    for kill in 1..=KILLS {
        let busy: Vec<_> = (0..BUSY)
            .map(|_| {
                let admin = admin.clone();
                tokio::spawn(async move {
                    let key = json!({ "name": "k", "roles": ["viewer"] });
                    // Until the service is gone.
                    while admin.try_post("/api/v1/ota/keys", &key).await.is_ok() {}
                })
            })
            .collect();
        let due = i64::try_from(kill * 20).unwrap();
        eventually("keys are made", async || {
            let (number, _) = newest(&admin).await;
            if number >= due {
                Ok(())
            } else {
                Err(number.to_string())
            }
        })
        .await;
        // Some milliseconds beside any event.
        tokio::time::sleep(Duration::from_micros(random.random_range(0..20_000))).await;
        service.kill();
        for task in busy {
            task.await.unwrap();
        }
        service.start_again().await;
        let (whole, said) = verify(&service, &[]);
        assert!(whole, "{said}");
    }
    let (recorded, _) = newest(&admin).await;
    let mut made = 0;
    loop {
        let page = format!("/api/v1/ota/keys?limit=200&offset={made}");
        let list = admin.get(&page).await.expect(200);
        made += list["count"].as_i64().unwrap();
        if list["count"] == 0 {
            break;
        }
    }
    assert_eq!(
        made, recorded,
        "each key with its record, and each record with its key"
    );
}
