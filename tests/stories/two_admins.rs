//! Two administrators at once: of several that want the same step, one takes it and the others are told.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{
    Admin, Answer, Device, MqttVersion, Options, Service, device_json, image, image_metadata,
};

matrix!(exactly_one_takes_each_step: sqlite_gateway, postgres_gateway);
matrix!(one_image_uploaded_by_many_is_one_record: sqlite_gateway, postgres_gateway);
matrix!(start_and_cancel_at_once_leave_one_truth: sqlite_gateway, postgres_gateway);
matrix!(what_several_change_of_one_device_all_holds: sqlite_gateway, postgres_gateway);
matrix!(whatever_is_asked_of_one_device_at_once_is_answered: sqlite_gateway, postgres_gateway);
matrix!(who_has_not_seen_the_last_change_is_told: sqlite_gateway, postgres_gateway);
matrix!(what_a_device_says_is_no_change_of_an_admins: sqlite_gateway);
matrix!(each_change_of_a_webhook_is_told_from_the_one_before: sqlite_gateway, postgres_gateway);

/// Administrators at a time.
const MANY: usize = 8;

/// Sends the same request many times at once; the statuses, sorted.
async fn all_at_once(admin: &Admin, campaign: &str, action: &str) -> Vec<u16> {
    let answers = join_all((0..MANY).map(|_| admin.act(campaign, action))).await;
    let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    statuses
}

async fn campaign_for_one(service: &Service) -> String {
    let admin = service.admin();
    service.register(device_json("frame-1")).await;
    let firmware = admin.image("2.1.0").await;
    admin
        .create_campaign(
            json!({ "name": "n", "firmware_id": firmware, "deployment_strategy": "immediate" }),
        )
        .await
}

async fn exactly_one_takes_each_step(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let campaign = campaign_for_one(&service).await;
    let mut one = vec![200];
    one.extend([409; MANY - 1]);
    for (action, status) in [
        ("start", "in_progress"),
        ("pause", "paused"),
        ("resume", "in_progress"),
        ("cancel", "cancelled"),
    ] {
        assert_eq!(
            all_at_once(&admin, &campaign, action).await,
            one,
            "{action}"
        );
        assert_eq!(admin.campaign(&campaign).await["status"], status);
    }
    let counted = admin.campaign(&campaign).await;
    assert_eq!(
        counted["cancelled_devices"], 1,
        "targets were made once: {counted:#}"
    );
    assert_eq!(counted["total_devices"], 1);
    assert_eq!(admin.updates_of("frame-1").await.len(), 1);
}

async fn start_and_cancel_at_once_leave_one_truth(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let campaign = campaign_for_one(&service).await;
    admin.act(&campaign, "start").await.expect(200);
    let (pause, cancel) = tokio::join!(
        admin.act(&campaign, "pause"),
        admin.act(&campaign, "cancel")
    );
    // A pause may come before the cancellation, not after it; the cancellation may come at any time.
    assert_eq!(cancel.status, 200, "{:#}", cancel.body);
    assert!([200, 409].contains(&pause.status), "{:#}", pause.body);
    assert_eq!(admin.campaign(&campaign).await["status"], "cancelled");
    admin
        .act("camp_0000000000000000", "start")
        .await
        .refused(404);
}

async fn one_image_uploaded_by_many_is_one_record(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let metadata = image_metadata("2.1.0");
    let uploads = (0..MANY).map(|_| admin.upload(&metadata, "image.bin", image("2.1.0")));
    let mut answers = join_all(uploads).await;
    answers.sort_by_key(|answer| answer.status);
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    let mut expected = vec![200; MANY - 1];
    expected.push(201);
    assert_eq!(statuses, expected);
    let ids: Vec<&Value> = answers
        .iter()
        .map(|answer| &answer.body["firmware_id"])
        .collect();
    assert!(
        ids.windows(2).all(|pair| pair.first() == pair.last()),
        "{ids:?}"
    );
    let list = admin.get("/api/v1/ota/firmware").await.expect(200);
    assert_eq!(list["firmware"].as_array().unwrap().len(), 1);

    // Different bytes at once: one of them is the image, and the other is told.
    let (one, other) = (image("a"), image("b"));
    let metadata = image_metadata("3.0.0");
    let (one, other) = tokio::join!(
        admin.upload(&metadata, "i.bin", one),
        admin.upload(&metadata, "i.bin", other)
    );
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409]);
}

/// What the trail tells of an act, oldest first: the states before and after.
async fn told(admin: &Admin, act: &str) -> Vec<(Value, Value)> {
    let path = format!("/api/v1/ota/audit?action={act}&limit=200");
    let list = admin.get(&path).await.expect(200);
    let records = list["audit"].as_array().unwrap();
    let states = |record: &Value| (record["before"].clone(), record["after"].clone());
    records.iter().rev().map(states).collect()
}

async fn what_several_change_of_one_device_all_holds(options: Options) {
    const ROUNDS: usize = 10;
    let service = Service::start(options).await;
    let admin = service.admin();
    service.register(device_json("frame-1")).await;
    let path = "/api/v1/ota/devices/frame-1";
    let mut state = admin.get(path).await.expect(200);
    for round in 0..ROUNDS {
        let text = json!(format!("{round}"));
        let changes = json!({
            "device_type": text, "manufacturer": text, "hw_revision": text, "firmware_version": text,
            "groups": [text], "tags": { "round": text },
        });
        let fields = changes.as_object().unwrap().iter();
        let each = fields.map(|(field, value)| admin.put(path, json!({ field: value })));
        for answer in join_all(each).await {
            answer.expect(200);
        }
        let device = admin.get(path).await.expect(200);
        for (field, value) in changes.as_object().unwrap() {
            assert_eq!(
                &device[field], value,
                "{field} of round {round}: {device:#}"
            );
        }
    }
    let records = told(&admin, "device.changed").await;
    assert_eq!(records.len(), 6 * ROUNDS);
    for (before, after) in records {
        for (field, was) in before.as_object().unwrap() {
            assert_eq!(
                &state[field], was,
                "{field}: each record begins where the last ended"
            );
            state[field] = after[field].clone();
        }
    }
}

/// Nobody waits for somebody who waits for them, and nothing is left open of a device that is gone.
async fn whatever_is_asked_of_one_device_at_once_is_answered(options: Options) {
    const ROUNDS: usize = 12;
    let service = Service::start(options).await;
    let admin = service.admin();
    let firmware = [admin.image("2.1.0").await, admin.image("2.2.0").await];
    for round in 0..ROUNDS {
        let name = format!("frame-{round}");
        service.register(device_json(&name)).await;
        let path = format!("/api/v1/ota/devices/{name}");
        let post =
            async |what: &str, body: Value| admin.post(&format!("{path}/{what}"), body).await;
        let update = async |n: usize| post("update", json!({ "firmware_id": firmware[n] })).await;
        let before = [update(0).await, update(1).await].map(|answer| answer.expect(201));
        let retried = before[0]["update_id"].as_str().unwrap();
        let act = async |what: &str| {
            let path = format!("/api/v1/ota/updates/{retried}/{what}");
            admin.post(&path, json!({})).await
        };
        let answers = tokio::join!(
            update(0),
            act("cancel"),
            admin.put(&path, json!({ "device_model": "SF-200" })),
            act("retry"),
            post("credentials", json!({})),
            admin.put(&path, json!({ "tags": { "floor": "2" } })),
            admin.delete(&path),
            update(1),
        );
        let answers = Vec::from(<[Answer; 8]>::from(answers));
        assert_eq!(answers[6].status, 200, "it is deleted: {answers:#?}");
        let mut made = Vec::from(before.clone());
        for answer in answers {
            let (status, body) = (answer.status, answer.body);
            assert!([200, 201, 404, 409].contains(&status), "{status}: {body:#}");
            made.extend((status == 201).then_some(body));
        }
        for update in made.iter().filter_map(|body| body["update_id"].as_str()) {
            let left = admin.get(&format!("/api/v1/ota/updates/{update}")).await;
            assert_eq!(left.expect(200)["status"], "cancelled");
        }
    }
}

async fn each_change_of_a_webhook_is_told_from_the_one_before(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let spec = |n: usize| json!({ "url": format!("https://{n}.invalid/"), "status": "paused" });
    let path = "/api/v1/ota/webhooks";
    let made = admin.post(path, spec(0)).await.expect(201);
    let path = format!("{path}/{}", made["webhook_id"].as_str().unwrap());
    for round in 0..5 {
        let each = (1..=MANY).map(|n| admin.put(&path, spec(round * MANY + n)));
        for answer in join_all(each).await {
            answer.expect(200);
        }
    }
    let mut origin = json!("https://0.invalid");
    for (before, after) in told(&admin, "webhook.changed").await {
        assert_eq!(before["origin"], origin);
        origin = after["origin"].clone();
    }
    // Of several that delete it, one does, and it is told once.
    let each = join_all((0..MANY).map(|_| admin.delete(&path))).await;
    let mut statuses: Vec<_> = each.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    let mut one = vec![200];
    one.extend([404; MANY - 1]);
    assert_eq!(statuses, one);
    let deleted = told(&admin, "webhook.deleted").await;
    assert_eq!(deleted.len(), 1);
    assert_eq!(deleted[0].0["origin"], origin);
}

/// What a resource is tagged with, which is its `revision`.
async fn tag_of(service: &Service, path: &str) -> String {
    let admin = service.admin();
    let request = admin.client().get(admin.url(path));
    let request = request.bearer_auth(service.key());
    let response = request.send().await.unwrap();
    let tag = response.headers()["etag"].to_str().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    assert_eq!(tag, format!("\"{}\"", body["revision"]), "{path}");
    tag
}

async fn who_has_not_seen_the_last_change_is_told(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let campaign = campaign_for_one(&service).await;
    let draft = admin.campaign(&campaign).await["draft"].clone();
    let hook = json!({ "url": "https://1.invalid/", "status": "paused" });
    let made = admin.post("/api/v1/ota/webhooks", hook.clone()).await;
    let made = made.expect(201);
    let rings = |canary: u32| json!({ "rings": { "canary": canary, "early": 25, "broad": 75, "production": 100 } });
    let webhook = format!(
        "/api/v1/ota/webhooks/{}",
        made["webhook_id"].as_str().unwrap()
    );
    let device = "/api/v1/ota/devices/frame-1";
    for (path, one, other) in [
        ("/api/v1/rings", rings(6), rings(7)),
        (
            device,
            json!({ "tags": { "floor": "1" } }),
            json!({ "tags": { "floor": "2" } }),
        ),
        (
            &webhook,
            hook.clone(),
            json!({ "url": "https://2.invalid/", "status": "paused" }),
        ),
        (
            &format!("/api/v1/ota/campaigns/{campaign}"),
            draft.clone(),
            draft,
        ),
    ] {
        let with = async |method: reqwest::Method, tag: &str, body: Option<&Value>| {
            let mut request = admin.client().request(method, admin.url(path));
            if let Some(body) = body {
                request = request.json(body);
            }
            admin.send(request.header("If-Match", tag)).await
        };
        let put = async |tag: &str, body| with(reqwest::Method::PUT, tag, Some(body)).await;
        let seen = tag_of(&service, path).await;
        put(&seen, &one).await.expect(200);
        let now = tag_of(&service, path).await;
        assert_ne!(now, seen, "{path}");
        let refused = put(&seen, &other).await.refused(409);
        assert_eq!(refused["code"], "changed_meanwhile", "{path}: {refused:#}");
        put("\"x\"", &other).await.refused(400);
        admin.put(path, other.clone()).await.expect(200); // who names none changes whatever there is
        if path != "/api/v1/rings" {
            with(reqwest::Method::DELETE, &now, None).await.refused(409);
            let last = tag_of(&service, path).await;
            with(reqwest::Method::DELETE, &last, None).await.expect(200);
        }
    }
    // Registered again, it is another device than the one that somebody has seen.
    service.register(device_json("frame-1")).await;
    let old = admin.client().delete(admin.url(device));
    admin
        .send(old.header("If-Match", "\"0\""))
        .await
        .refused(409);
}

async fn what_a_device_says_is_no_change_of_an_admins(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let credentials = service.register(device_json("frame-1")).await;
    let path = "/api/v1/ota/devices/frame-1";
    let seen = tag_of(&service, path).await;
    let mut device = Device::connect(&service, MqttVersion::V5, &credentials).await;
    device.check("2.0.1", "boot").await;
    let shown = admin.get(path).await.expect(200);
    assert_eq!(shown["firmware_version"], "2.0.1");
    assert_eq!(tag_of(&service, path).await, seen);
    let request = admin.client().put(admin.url(path));
    let request = request.json(&json!({ "tags": { "floor": "2" } }));
    admin
        .send(request.header("If-Match", seen))
        .await
        .expect(200);
}
