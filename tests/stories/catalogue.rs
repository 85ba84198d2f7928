//! Every event of the catalogue happens once here, through the real service, and is told as `docs/events.md` shows it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::events::{Listener, request};
use crate::harness::{
    Admin, Device, MqttVersion, Options, Service, Trust, device_json, eventually, within,
};

matrix!(every_event_of_the_catalogue_is_told_as_it_is_shown: sqlite_gateway, postgres_gateway);

const OTA: &str = "/api/v1/ota";

/// The events of the catalogue, each with its payload as the document shows it.
fn catalogue() -> BTreeMap<String, Value> {
    let document = include_str!("../../docs/events.md");
    let shown = document.split("```json\n").skip(1);
    let shown = shown.map(|text| text.split("```").next().unwrap());
    let events = shown.map(|text| serde_json::from_str::<Value>(text).unwrap());
    events
        .map(|event| (event["event_type"].as_str().unwrap().to_owned(), event))
        .collect()
}

fn names(value: &Value) -> BTreeSet<&String> {
    value.as_object().unwrap().keys().collect()
}

/// A service with two images of what frames run, and what every act needs.
struct Stage {
    service: Service,
    admin: Admin,
    trust: Trust,
    old: String,
    new: String,
}

impl Stage {
    async fn device(&self, id: &str, version: &str) -> Device {
        let mut entry = device_json(id);
        entry["firmware_version"] = version.into();
        let credentials = self.service.register(entry).await;
        let mut device = Device::connect(&self.service, MqttVersion::V311, &credentials).await;
        device.check(version, "boot").await;
        device
    }

    /// Starts a campaign for these devices alone.
    async fn campaign(&self, name: &str, devices: &[&str], more: Value) -> String {
        let mut spec = json!({
            "name": name, "firmware_id": self.new, "deployment_strategy": "immediate", "max_retries": 0,
            "target_devices": devices,
        });
        let fields = spec.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        self.admin.start_campaign(spec).await
    }

    async fn becomes(&self, campaign: &str, status: &str) {
        let is = |c: &Value| c["status"] == status;
        self.admin.campaign_becomes(campaign, status, is).await;
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.admin.post(&format!("{OTA}/{path}"), body).await;
        assert!(answer.status < 300, "{path}: {:#}", answer.body);
        answer.body
    }
}

async fn every_event_of_the_catalogue_is_told_as_it_is_shown(options: Options) {
    let options = options
        .with("OFFLINE_AFTER_SECONDS", "1")
        .with("WEBHOOK_ALLOW_PRIVATE", "true");
    let service = Service::start(options).await;
    let admin = service.admin();
    let stage = Stage {
        trust: Trust::from_root(&admin.get(&format!("{OTA}/trust/root")).await.expect(200)),
        old: admin.image("2.0.0").await,
        new: admin.image("2.1.0").await,
        admin,
        service,
    };
    before_a_start(&stage).await;
    there_and_back(&stage).await;
    stages(&stage).await;
    failures(&stage).await;
    one_device(&stage).await;
    a_webhook_ends(&stage).await;
    assert_told(&stage).await;
}

/// An image is taken out of use; campaigns are made, changed, judged, deleted.
async fn before_a_start(stage: &Stage) {
    let admin = &stage.admin;
    let spare = admin.image("2.0.9").await;
    admin
        .delete(&format!("{OTA}/firmware/{spare}"))
        .await
        .expect(200);
    let (_, approver) = crate::identity::key(&stage.service, "security", "approver").await;
    for verdict in ["approve", "reject"] {
        let draft = json!({"name": verdict, "firmware_id": stage.new, "requires_approval": true});
        let campaign = admin.create_campaign(draft.clone()).await;
        let path = format!("{OTA}/campaigns/{campaign}");
        let seen = admin.put(&path, draft).await.expect(200);
        let url = approver.url(&format!("{path}/{verdict}"));
        let request = approver.client().post(url);
        let request = request.header("If-Match", format!("\"{}\"", seen["revision"]));
        let said = json!({"comment": "after the audit"});
        approver.send(request.json(&said)).await.expect(200);
        if verdict == "reject" {
            admin.delete(&path).await.expect(200);
        }
    }
}

/// A campaign is paused, goes on, brings its device the new version and takes it back.
async fn there_and_back(stage: &Stage) {
    let mut device = stage.device("there", "2.0.0").await;
    let campaign = stage.campaign("there", &["there"], json!({})).await;
    for order in ["pause", "resume"] {
        stage.admin.act(&campaign, order).await.expect(200);
    }
    let offer = device.offer(&stage.trust).await;
    device.complete(&offer).await;
    stage.becomes(&campaign, "completed").await;
    stage.admin.act(&campaign, "rollback").await.expect(200);
    device.check("2.1.0", "poll").await;
    let offer = device.offer(&stage.trust).await;
    device.complete(&offer).await;
    stage.becomes(&campaign, "rolled_back").await;
}

/// A stage is opened by force, a deployment promoted, a campaign cancelled.
async fn stages(stage: &Stage) {
    let admin = &stage.admin;
    for id in ["waits-1", "waits-2"] {
        stage.service.register(device_json(id)).await;
    }
    let gate = json!({"deployment_strategy": "staged", "stages": [{"count": 1, "gate": {"manual": true}}, {"percent": 100}]});
    let campaign = stage
        .campaign("by hand", &["waits-1", "waits-2"], gate)
        .await;
    let force = json!({"stage": "100%", "force": true});
    stage
        .post(&format!("campaigns/{campaign}/advance"), force)
        .await;
    admin.act(&campaign, "cancel").await.expect(200);
    let mut late = device_json("late");
    late["firmware_version"] = "1.0.0".into();
    late["ring"] = "production".into();
    stage.service.register(late).await;
    for ring in ["canary", "early"] {
        let ring = json!({ "ring": ring });
        stage
            .post(&format!("firmware/{}/deploy", stage.old), ring)
            .await;
    }
}

/// A device fails and takes its campaign with it; another completes and falls back; another has nothing to go back to.
async fn failures(stage: &Stage) {
    let mut device = stage.device("fails", "2.0.0").await;
    let back = json!({"auto_rollback": true, "failure_threshold_percent": 10});
    let campaign = stage.campaign("fails", &["fails"], back).await;
    let offer = device.offer(&stage.trust).await;
    device.fail(&offer).await;
    stage.becomes(&campaign, "rolled_back").await;

    let mut device = stage.device("relapses", "2.0.0").await;
    let alone = json!({"failure_threshold_percent": 100});
    let campaign = stage.campaign("relapses", &["relapses"], alone).await;
    let offer = device.offer(&stage.trust).await;
    device.complete(&offer).await;
    stage.becomes(&campaign, "completed").await;
    device.check("2.0.0", "boot").await;

    let mut device = stage.device("one-way", "1.9.9").await;
    let campaign = stage.campaign("one way", &["one-way"], json!({})).await;
    let offer = device.offer(&stage.trust).await;
    device.complete(&offer).await;
    stage.becomes(&campaign, "completed").await;
    stage.admin.act(&campaign, "rollback").await.expect(200);
    stage.becomes(&campaign, "rolled_back").await;
}

/// An update and a rollback of one device that is away, both withdrawn.
async fn one_device(stage: &Stage) {
    let mut device = stage.device("single", "2.1.0").await;
    let goodbye = json!({"online": false, "reason": "shutdown"});
    device.report("status", &goodbye).await;
    device.leave().await;
    eventually("the service knows that it is gone", async || {
        let path = format!("{OTA}/devices/single");
        let device = stage.admin.get(&path).await.expect(200);
        let gone = device["online"] == false;
        gone.then_some(()).ok_or_else(|| device.to_string())
    })
    .await;
    let forward = json!({"firmware_id": stage.new, "force_update": true});
    let update = stage.post("devices/single/update", forward).await;
    let change = json!({"firmware_version": "2.0.0"});
    let path = format!("{OTA}/devices/single");
    stage.admin.put(&path, change).await.expect(200);
    let back = json!({"to_version": "2.0.0", "reason": "it flickers"});
    let rollback = stage.post("devices/single/rollback", back).await;
    for made in [&update, &rollback] {
        let id = made["update_id"].as_str().unwrap();
        stage.post(&format!("updates/{id}/cancel"), json!({})).await;
    }
}

/// A receiver says that it is gone for good.
async fn a_webhook_ends(stage: &Stage) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    stage.post("webhooks", json!({ "url": url })).await;
    stage.admin.image("2.0.8").await;
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut some = [0; 1_024];
    assert!(stream.read(&mut some).await.unwrap() > 0);
    let gone = b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(gone).await.unwrap();
}

/// Reads the events from the first on until each type has come, and compares it with what is shown of it.
async fn assert_told(stage: &Stage) {
    let key = stage.service.key();
    let from_the_first = request(&stage.service, key, "").header("Last-Event-ID", "0");
    let mut listener = Listener::open(from_the_first).await;
    let mut shown = catalogue();
    assert_eq!(shown.len(), 28, "types of the catalogue");
    while !shown.is_empty() {
        let missing: Vec<_> = shown.keys().cloned().collect();
        let frame = within(&format!("one of {missing:?} is told"), listener.frame()).await;
        let Some(example) = shown.remove(&frame.event) else {
            continue;
        };
        let (told, what) = (&frame.data, &frame.event);
        assert_eq!(names(told), names(&example), "{what}");
        assert_eq!(told["event_type"], what.as_str());
        assert_eq!(told["source"], "ota_service");
        assert_eq!(told["timestamp"], told["data"]["timestamp"], "{what}");
        assert_eq!(names(&told["data"]), names(&example["data"]), "{what}");
        let (family, _) = what.split_once('.').unwrap();
        let must: &[&str] = match family {
            "firmware" => &[
                "firmware_id",
                "version",
                "device_model",
                "is_security_update",
            ],
            "campaign" => &["campaign_id", "name", "target_device_count", "by"],
            "update" | "rollback" => &["update_id", "device_id", "from_version", "to_version"],
            "device" => &["device_id", "last_seen", "offline_since"],
            _ => &["webhook_id", "reason"],
        };
        for field in must {
            assert!(!told["data"][field].is_null(), "{what}: {field}: {told:#}");
        }
    }
}
