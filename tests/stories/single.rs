//! One device by itself: updated, withdrawn, tried again and taken back by an admin, with what subscribers hear of it.

use serde_json::{Value, json};

use crate::bus::Subscriber;
use crate::harness::{
    Admin, Credentials, Device, MqttVersion, Offer, Options, Service, Trust, device_json,
    eventually,
};

matrix!(one_device_is_updated_withdrawn_tried_again_and_taken_back: sqlite_gateway, postgres_mosquitto);
matrix!(what_is_asked_twice_at_once_is_one_update: sqlite_gateway, postgres_gateway);
matrix!(several_devices_are_updated_by_one_request: sqlite_gateway, postgres_gateway);
matrix!(several_devices_are_taken_back_by_one_request: sqlite_gateway, postgres_gateway);

/// A service with one device's firmware of two versions, and a subscriber to its events.
struct Bench {
    service: Service,
    admin: Admin,
    trust: Trust,
    new: String,
    subscriber: Subscriber,
}

impl Bench {
    async fn start(options: Options) -> Self {
        let service = Service::start(options).await;
        let admin = service.admin();
        let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
        admin.image("2.0.0").await;
        let new = admin.image("2.1.0").await;
        let subscriber = Subscriber::start(&service, "#").await;
        Self {
            service,
            admin,
            trust,
            new,
            subscriber,
        }
    }

    /// Asks for the new version on frame-1; the update's id.
    async fn update(&self) -> String {
        let request = json!({ "firmware_id": self.new, "max_retries": 0, "priority": "high" });
        let path = "/api/v1/ota/devices/frame-1/update";
        let made = self.admin.post(path, request).await.expect(201);
        assert_eq!(
            (&made["status"], &made["from_version"], &made["to_version"]),
            (&json!("scheduled"), &json!("2.0.0"), &json!("2.1.0"))
        );
        assert_eq!(
            (&made["campaign_id"], &made["priority"]),
            (&Value::Null, &json!("high"))
        );
        made["update_id"].as_str().unwrap().to_owned()
    }

    async fn ask(&self, update: &str, what: &str) -> (u16, Value) {
        let path = format!("/api/v1/ota/updates/{update}/{what}");
        let answer = self.admin.post(&path, json!({})).await;
        (answer.status, answer.body)
    }

    /// The next event of one of these kinds must be of that kind and that update.
    async fn hears(&mut self, kind: &str, update: &str) -> Value {
        loop {
            let event = self.subscriber.event().await.1;
            let said = event["event_type"].as_str().unwrap();
            if said.starts_with("update.") || said.starts_with("rollback.") {
                assert_eq!(
                    (said, &event["data"]["update_id"]),
                    (kind, &json!(update)),
                    "{event:#}"
                );
                assert_eq!(event["data"]["device_id"], "frame-1");
                return event;
            }
        }
    }

    async fn device(&self, credentials: &Credentials) -> Device {
        let mut device = Device::connect(&self.service, MqttVersion::V311, credentials).await;
        device.check("2.0.0", "boot").await;
        device
    }
}

/// Takes the offer up to a phase; the `seq` of the next report.
async fn takes(device: &mut Device, offer: &Offer, phases: &[&str]) -> u32 {
    let mut seq = 1;
    for phase in phases {
        let report = offer.progress(seq, phase, &json!({}));
        device.report("progress", &report).await;
        seq += 1;
    }
    seq
}

async fn one_device_is_updated_withdrawn_tried_again_and_taken_back(options: Options) {
    let mut bench = Bench::start(options).await;
    let credentials = bench.service.register(device_json("frame-1")).await;
    withdrawn_while_it_waits(&mut bench).await;
    let mut device = bench.device(&credentials).await;
    withdrawn_while_its_battery_is_low(&mut bench, &mut device).await;
    withdrawn_while_it_downloads(&mut bench, &mut device).await;
    fails_and_is_tried_again(&mut bench, &mut device).await;
    taken_back(&mut bench, &mut device).await;
}

async fn withdrawn_while_it_waits(bench: &mut Bench) {
    let update = bench.update().await;
    let event = bench.hears("update.scheduled", &update).await;
    assert_eq!(event["data"]["trigger"], "manual");
    let (status, body) = bench.ask(&update, "cancel").await;
    assert_eq!((status, &body["status"]), (200, &json!("cancelled")));
    bench.hears("update.cancelled", &update).await;
    for what in ["cancel", "retry"] {
        let (status, body) = bench.ask(&update, what).await;
        assert_eq!(
            (status, &body["code"]),
            (409, &json!("wrong_state")),
            "{body:#}"
        );
    }
}

async fn withdrawn_while_its_battery_is_low(bench: &mut Bench, device: &mut Device) {
    let image = format!("/api/v1/ota/firmware/{}", bench.new);
    let asks = async |percent: Value| {
        let change = json!({ "min_battery_percent": percent });
        bench.admin.put(&image, change).await.expect(200);
    };
    asks(json!(30)).await;
    let heartbeat = |percent: u8| json!({ "version": "2.0.0", "battery": { "percent": percent } });
    device.report("heartbeat", &heartbeat(12)).await;
    // A broker acknowledges before the service has heard.
    eventually("the service has heard of the battery", async || {
        let device = bench.admin.get("/api/v1/ota/devices/frame-1").await;
        let device = device.expect(200);
        let heard = device["battery_percent"] == 12.0;
        heard.then_some(()).ok_or_else(|| device.to_string())
    })
    .await;
    let update = bench.update().await;
    let path = format!("/api/v1/ota/updates/{update}");
    let shown = bench.admin.get(&path).await.expect(200);
    assert_eq!(
        (&shown["status"], &shown["why"]["detail"]),
        (
            &json!("scheduled"),
            &json!("the device's battery is at 12 % and must be at 30 %")
        )
    );
    assert_eq!(bench.ask(&update, "cancel").await.0, 200);
    asks(Value::Null).await;
    device.report("heartbeat", &heartbeat(90)).await;
    bench.hears("update.scheduled", &update).await;
    bench.hears("update.cancelled", &update).await;
}

async fn withdrawn_while_it_downloads(bench: &mut Bench, device: &mut Device) {
    let update = bench.update().await;
    bench.hears("update.scheduled", &update).await;
    let offer = device.offer(&bench.trust).await;
    assert_eq!(offer.text("update_id"), update);
    let seq = takes(device, &offer, &["accepted", "downloading"]).await;
    // A broker acknowledges before the service has heard.
    bench.admin.update_becomes(&update, "downloading").await;
    let (status, body) = bench.ask(&update, "cancel").await;
    assert_eq!(
        (status, &body["status"], &body["cancel_requested"]),
        (200, &json!("downloading"), &json!(true))
    );
    let command: Value = serde_json::from_slice(&device.message("down/command").await).unwrap();
    let command = bench.trust.open(&command, "command", "dispatch");
    assert_eq!(
        (&command["command"], &command["update_id"]),
        (&json!("cancel"), &json!(update))
    );
    let report = offer.progress(seq, "cancelled", &json!({}));
    device.report("progress", &report).await;
    bench.admin.update_becomes(&update, "cancelled").await;
    bench.hears("update.cancelled", &update).await;
}

async fn fails_and_is_tried_again(bench: &mut Bench, device: &mut Device) {
    let update = bench.update().await;
    bench.hears("update.scheduled", &update).await;
    let offer = device.offer(&bench.trust).await;
    let phases = ["accepted", "downloading", "verifying", "installing"];
    let seq = takes(device, &offer, &phases).await;
    bench.admin.update_becomes(&update, "installing").await;
    for what in ["cancel", "retry"] {
        let (status, body) = bench.ask(&update, what).await;
        assert_eq!(
            (status, &body["code"]),
            (409, &json!("wrong_state")),
            "{body:#}"
        );
    }
    let error = json!({ "error": { "code": "install_failed", "message": "no space in slot b" } });
    let report = offer.progress(seq, "failed", &error);
    device.report("progress", &report).await;
    let failed = bench.admin.update_becomes(&update, "failed").await;
    assert_eq!(
        (&failed["error_code"], &failed["error_message"]),
        (&json!("install_failed"), &json!("no space in slot b"))
    );
    let event = bench.hears("update.failed", &update).await;
    assert_eq!(event["data"]["error"]["code"], "install_failed");

    let (status, body) = bench.ask(&update, "retry").await;
    assert_eq!(
        (status, &body["status"], &body["retry_count"]),
        (200, &json!("scheduled"), &json!(1))
    );
    let again = device.offer(&bench.trust).await;
    assert_eq!(
        (again.text("update_id"), &again.assignment["attempt"]),
        (update.as_str(), &json!(2))
    );
    device.complete(&again).await;
    bench.admin.update_becomes(&update, "completed").await;
    bench.hears("update.completed", &update).await;
    assert_eq!(bench.ask(&update, "retry").await.0, 409);
    history_is_told(&bench.admin, &update).await;
}

/// Newest first, what was withdrawn included, each with how long it took.
async fn history_is_told(admin: &Admin, newest: &str) {
    let path = "/api/v1/ota/devices/frame-1/updates";
    let history = admin.get(path).await.expect(200);
    let updates = history["updates"].as_array().unwrap();
    let statuses: Vec<_> = updates.iter().map(|update| &update["status"]).collect();
    let withdrawn = "cancelled";
    assert_eq!(statuses, ["completed", withdrawn, withdrawn, withdrawn]);
    assert_eq!(updates[0]["update_id"], newest);
    assert_eq!(updates[0]["to_version"], "2.1.0");
    let took = updates[0]["duration_seconds"].as_f64();
    assert!(took.is_some_and(|seconds| seconds >= 0.0), "{history:#}");
    assert_eq!(updates[3]["duration_seconds"], Value::Null);
    assert_eq!(history["success_rate"], 100.0);
}

async fn taken_back(bench: &mut Bench, device: &mut Device) {
    device.check("2.1.0", "boot").await;
    let path = "/api/v1/ota/devices/frame-1/rollback";
    let never = json!({ "to_version": "1.0.0", "reason": "it flickers" });
    let refused = bench.admin.post(path, never).await.refused(409);
    assert_eq!(refused["code"], "never_installed");
    let request = json!({ "to_version": "2.0.0", "reason": "it flickers" });
    let made = bench.admin.post(path, request).await.expect(200);
    let update = made["update_id"].as_str().unwrap().to_owned();
    assert_eq!(
        (&made["trigger"], &made["reason"], &made["from_version"]),
        (&json!("manual"), &json!("it flickers"), &json!("2.1.0"))
    );
    assert_eq!(
        (&made["status"], &made["success"], &made["completed_at"]),
        (&json!("in_progress"), &json!(false), &Value::Null)
    );
    let again = json!({ "to_version": "2.0.0" });
    let refused = bench.admin.post(path, again).await.refused(409);
    assert_eq!(refused["code"], "already_requested");
    let event = bench.hears("rollback.initiated", &update).await;
    for (field, value) in [
        ("from_version", "2.1.0"),
        ("to_version", "2.0.0"),
        ("trigger", "manual"),
    ] {
        assert_eq!(event["data"][field], value, "{event:#}");
    }
    let offer = device.offer(&bench.trust).await;
    assert_eq!(
        (offer.text("action"), &offer.release["version"]),
        ("rollback", &json!("2.0.0"))
    );
    device.complete(&offer).await;
    bench.admin.update_becomes(&update, "completed").await;
    bench.hears("rollback.completed", &update).await;
    let path = "/api/v1/ota/rollbacks?device_id=frame-1";
    let log = bench.admin.get(path).await.expect(200);
    assert_eq!(log["count"], 1);
    assert_eq!(
        (
            &log["rollbacks"][0]["rollback_id"],
            &log["rollbacks"][0]["success"]
        ),
        (&made["rollback_id"], &json!(true))
    );
    let path = "/api/v1/ota/devices/frame-1";
    let shown = bench.admin.get(path).await.expect(200);
    assert_eq!(shown["firmware_version"], "2.0.0");
}

async fn several_devices_are_updated_by_one_request(options: Options) {
    let bench = Bench::start(options).await;
    let names = ["frame-1", "frame-2"];
    let credentials = bench.admin.register(&names.map(device_json)).await;
    bench.service.knows("frame-2").await;
    let request = json!({
        "device_ids": ["frame-1", "nobody", "frame-2"], "firmware_id": bench.new, "max_retries": 1,
    });
    let path = "/api/v1/ota/devices/bulk/update";
    let made = bench.admin.post(path, request).await.expect(201);
    assert_eq!(
        (&made["count"], &made["succeeded"], &made["failed"]),
        (&json!(3), &json!(2), &json!(1))
    );
    let results = made["results"].as_array().unwrap();
    assert_eq!(
        (&results[1]["device_id"], &results[1]["code"]),
        (&json!("nobody"), &json!("not_found"))
    );
    for (credentials, result) in credentials.iter().zip([&results[0], &results[2]]) {
        assert_eq!(result["device_id"], credentials.username.as_str());
        let mut device = bench.device(credentials).await;
        let offer = device.offer(&bench.trust).await;
        assert_eq!(result["update_id"], offer.text("update_id"));
        device.complete(&offer).await;
        bench
            .admin
            .update_becomes(offer.text("update_id"), "completed")
            .await;
    }
}

async fn several_devices_are_taken_back_by_one_request(options: Options) {
    let bench = Bench::start(options).await;
    let entries = ["frame-1", "frame-2", "other"].map(|name| {
        let mut entry = device_json(name);
        entry["groups"] = json!([if name == "other" { "attic" } else { "lobby" }]);
        entry
    });
    let credentials = bench.admin.register(&entries).await;
    bench.service.knows("other").await;
    // Each says that it has moved on from what it was registered with.
    for credentials in &credentials[..2] {
        let heartbeat = json!({ "device_id": credentials.username, "version": "2.0.5" });
        let url = bench.admin.url("/api/v1/heartbeat");
        let heard = bench.admin.client().post(url).json(&heartbeat);
        let heard = heard.basic_auth(&credentials.username, Some(&credentials.password));
        assert_eq!(heard.send().await.unwrap().status(), 200);
    }
    let path = "/api/v1/ota/devices/bulk/rollback";
    let request = json!({ "group": "lobby", "to_version": "2.0.0", "reason": "it flickers" });
    let made = bench.admin.post(path, request.clone()).await.expect(201);
    let told = |made: &Value| {
        let results = made["results"].as_array().unwrap().iter();
        let told = results.map(|result| {
            let of = |field: &str| result[field].as_str().unwrap_or("-").to_owned();
            [of("device_id"), of("status"), of("code")].join(" ")
        });
        told.collect::<Vec<_>>()
    };
    assert_eq!(told(&made), ["frame-1 scheduled -", "frame-2 scheduled -"]);
    assert_eq!(
        (&made["succeeded"], &made["failed"]),
        (&json!(2), &json!(0))
    );
    let log = bench.admin.get("/api/v1/ota/rollbacks").await.expect(200);
    let log = log["rollbacks"].as_array().unwrap();
    let reasons = log.iter().filter(|entry| entry["reason"] == "it flickers");
    assert_eq!(reasons.count(), 2);

    // What is wrong with one harms no other.
    let request = json!({ "device_ids": ["frame-1", "nobody", "other"], "to_version": "2.0.0" });
    let made = bench.admin.post(path, request).await.expect(200);
    assert_eq!(
        told(&made),
        [
            "frame-1 error already_requested",
            "nobody error not_found",
            "other error already_installed"
        ]
    );
    for (refused, status) in [
        (json!({ "to_version": "2.0.0" }), 400),
        (json!({ "to_version": "2.0.0", "device_ids": [] }), 400),
        (
            json!({ "to_version": "2.0.0", "device_ids": ["other"], "group": "attic" }),
            400,
        ),
        (json!({ "to_version": "2.0.0", "group": "" }), 400),
        (json!({ "group": "attic" }), 400),
        (json!({ "to_version": "2.0.0", "group": "cellar" }), 404),
    ] {
        bench.admin.post(path, refused).await.refused(status);
    }
    let many: Vec<_> = (0..99).map(|n| device_json(&format!("more-{n}"))).collect();
    let many: Vec<_> = many
        .into_iter()
        .map(|mut entry| {
            entry["groups"] = json!(["lobby"]);
            entry
        })
        .collect();
    bench.admin.register(&many).await;
    let request = json!({ "group": "lobby", "to_version": "2.0.0" });
    let refused = bench.admin.post(path, request).await.refused(400);
    assert_eq!(refused["code"], "too_many_devices");
}

async fn what_is_asked_twice_at_once_is_one_update(options: Options) {
    let bench = Bench::start(options).await;
    bench.service.register(device_json("frame-1")).await;
    let request = json!({ "firmware_id": bench.new });
    let path = "/api/v1/ota/devices/frame-1/update";
    let ask = || bench.admin.post(path, request.clone());
    let answers = tokio::join!(ask(), ask(), ask(), ask());
    let answers = [answers.0, answers.1, answers.2, answers.3];
    let made: Vec<_> = answers.iter().filter(|a| a.status == 201).collect();
    assert_eq!(made.len(), 1, "{answers:#?}");
    let update = made[0].body["update_id"].as_str().unwrap().to_owned();
    for refused in answers.iter().filter(|a| a.status != 201) {
        assert_eq!(refused.status, 409);
        assert_eq!(refused.body["code"], "already_requested");
        let detail = refused.body["detail"].as_str().unwrap();
        assert!(detail.contains(&update), "{detail}");
    }

    // The same of a list that names a device twice: each entry is told by itself.
    bench.ask(&update, "cancel").await;
    let request = json!({ "firmware_id": bench.new, "device_ids": ["frame-1", "frame-1"] });
    let path = "/api/v1/ota/devices/bulk/update";
    let made = bench.admin.post(path, request).await.expect(201);
    assert_eq!(
        (&made["succeeded"], &made["failed"]),
        (&json!(1), &json!(1))
    );
    let results = made["results"].as_array().unwrap();
    let refused: Vec<_> = results.iter().filter(|r| r["success"] == false).collect();
    assert_eq!(refused[0]["code"], "already_requested", "{made:#}");
    assert_eq!(bench.admin.updates_of("frame-1").await.len(), 2);
}
