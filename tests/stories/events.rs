//! Server-sent events: what happens reaches whoever listens, in order, also after a while away, and nobody listens for
//! longer than they may.

use std::time::{Duration, Instant};

use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use crate::harness::Device;
use crate::harness::{
    Admin, MqttVersion, Options, Service, Trust, device_json, eventually, within,
};

matrix!(a_stream_tells_what_happens_and_only_what_is_wanted: sqlite_gateway, postgres_gateway);
matrix!(who_comes_back_misses_nothing: sqlite_gateway, postgres_gateway);
matrix!(a_stream_ends_with_its_credential: sqlite_gateway);
matrix!(streams_are_counted: sqlite_gateway);
matrix!(a_stream_ends_with_the_service: sqlite_gateway);
matrix!(a_stream_that_cannot_be_is_refused: sqlite_gateway);
matrix!(a_device_that_stays_away_is_told_of_once);

const EVENTS: &str = "/api/v1/ota/events";

/// One frame of a stream, in the words of the standard (WHATWG HTML, 9.2).
#[derive(Debug)]
pub struct Frame {
    id: i64,
    pub event: String,
    pub data: Value,
}

/// A client of a stream.
pub struct Listener {
    response: Response,
    text: String,
}

impl Listener {
    /// Opens a stream that must be given, and waits for its first sign of life.
    pub async fn open(request: RequestBuilder) -> Self {
        let response = request.send().await.expect("the service answers");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut listener = Self {
            response,
            text: String::new(),
        };
        assert!(
            listener
                .block()
                .await
                .expect("a first block")
                .starts_with(':')
        );
        listener
    }

    /// The next block of lines; `None` at the end of the stream.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(block);
            }
            let piece = within("the stream goes on", self.response.chunk()).await;
            let piece = piece.ok().flatten()?;
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }

    /// The next frame that is an event.
    pub async fn frame(&mut self) -> Frame {
        loop {
            let block = self.block().await.expect("the stream goes on");
            let field = |name: &str| {
                block
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                    .map(ToOwned::to_owned)
            };
            if let (Some(event), Some(data)) = (field("event"), field("data")) {
                return Frame {
                    id: field("id").unwrap().parse().unwrap(),
                    event,
                    data: serde_json::from_str(&data).unwrap(),
                };
            }
        }
    }

    async fn ended(mut self) {
        while self.block().await.is_some() {}
    }
}

pub fn request(service: &Service, key: &str, query: &str) -> RequestBuilder {
    let admin = service.admin();
    admin
        .client()
        .get(admin.url(&format!("{EVENTS}{query}")))
        .bearer_auth(key)
}

async fn viewer(admin: &Admin, name: &str) -> (String, String) {
    let made = admin
        .post(
            "/api/v1/ota/keys",
            json!({ "name": name, "roles": ["viewer"] }),
        )
        .await
        .expect(201);
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    (text("key_id"), text("secret"))
}

async fn a_stream_tells_what_happens_and_only_what_is_wanted(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let (_, key) = viewer(&admin, "wall").await;
    let credentials = service.register(device_json("frame-1")).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let mut all = Listener::open(request(&service, &key, "")).await;
    let mut campaigns = Listener::open(request(&service, &key, "?type=campaign.*")).await;
    let mut device = Listener::open(request(&service, &key, "?device_id=frame-1")).await;

    let firmware = admin.image("2.1.0").await;
    let campaign = admin
        .start_campaign(
            json!({ "name": "seen", "firmware_id": firmware, "deployment_strategy": "immediate" }),
        )
        .await;
    let mut end = Device::connect(&service, MqttVersion::V311, &credentials).await;
    end.check("2.0.0", "boot").await;
    let offer = end.offer(&trust).await;
    end.complete(&offer).await;

    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "campaign.completed") {
        let frame = all.frame().await;
        assert_eq!(frame.data["id"], frame.id);
        assert_eq!(frame.data["event_type"], frame.event.as_str());
        assert_eq!(frame.data["source"], "ota_service");
        assert!(frame.data["timestamp"].is_string() && frame.data["data"].is_object());
        seen.push(frame.event);
    }
    assert_eq!(
        seen,
        [
            "firmware.uploaded",
            "campaign.created",
            "campaign.started",
            "update.completed",
            "campaign.completed"
        ]
    );
    let mut told = Vec::new();
    for _ in 0..3 {
        let frame = campaigns.frame().await;
        assert_eq!(frame.data["data"]["campaign_id"], campaign.as_str());
        told.push(frame.event);
    }
    assert_eq!(
        told,
        ["campaign.created", "campaign.started", "campaign.completed"]
    );
    let frame = device.frame().await;
    assert_eq!(frame.event, "update.completed");
    assert_eq!(frame.data["data"]["device_id"], "frame-1");
    let one = format!("?campaign_id={campaign}&type=update.completed,update.failed");
    let again = request(&service, &key, &one).header("Last-Event-ID", "0");
    assert_eq!(Listener::open(again).await.frame().await.id, frame.id);
}

async fn who_comes_back_misses_nothing(options: Options) {
    let mut service = Service::start(options).await;
    let admin = service.admin();
    let key = service.key().to_owned();
    let mut listener = Listener::open(request(&service, &key, "")).await;
    let firmware = admin.image("2.1.0").await;
    let first = listener.frame().await;
    assert_eq!(first.event, "firmware.uploaded");
    drop(listener);
    let spec = |n: u32| json!({ "name": format!("c{n}"), "firmware_id": firmware });
    for n in 0..300 {
        admin.create_campaign(spec(n)).await;
    }
    service.stop().await;
    service.start_again().await;
    let resumed = || request(&service, &key, "").header("Last-Event-ID", first.id.to_string());
    let mut listener = Listener::open(resumed()).await;
    let mut last = first.id;
    for n in 0..300 {
        let frame = listener.frame().await;
        assert_eq!(frame.data["data"]["name"], format!("c{n}"));
        assert!(frame.id > last, "in order");
        last = frame.id;
    }
    admin.create_campaign(spec(300)).await;
    assert_eq!(listener.frame().await.data["data"]["name"], "c300");

    // A place that is none of this outbox.
    let stray = request(&service, &key, "").header("Last-Event-ID", "999999");
    let mut listener = Listener::open(stray).await;
    let gap = listener.frame().await;
    assert_eq!(
        (gap.event.as_str(), gap.data),
        (
            "gap",
            json!({ "last_event_id": 999_999, "resumes_after": first.id - 1 })
        )
    );
    assert_eq!(listener.frame().await.id, first.id);
}

async fn a_stream_ends_with_its_credential(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let (id, key) = viewer(&admin, "wall").await;
    let listener = Listener::open(request(&service, &key, "")).await;
    let mut stays = Listener::open(request(&service, service.key(), "")).await;
    admin
        .delete(&format!("/api/v1/ota/keys/{id}"))
        .await
        .expect(200);
    listener.ended().await;
    // The other one is told that it is there, with its place.
    let sign = stays.block().await.unwrap();
    assert!(sign.starts_with(": beat\nid: "), "{sign}");
    admin.image("2.1.0").await;
    assert_eq!(stays.frame().await.event, "firmware.uploaded");
}

async fn streams_are_counted(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let mut open = Vec::new();
    for n in 0..8 {
        let (_, key) = viewer(&admin, &format!("wall {n}")).await;
        for _ in 0..8 {
            open.push(Listener::open(request(&service, &key, "")).await);
        }
        if n == 0 {
            let refused = admin_of(&service, &key).get(EVENTS).await.refused(429);
            assert_eq!(refused["code"], "too_many_streams");
        }
    }
    let refused = admin.get(EVENTS).await.refused(503);
    insta::assert_json_snapshot!(refused, { ".request_id" => "[id]" }, @r#"
    {
      "code": "streams_exhausted",
      "detail": "all 64 event streams are taken; try again later",
      "request_id": "[id]"
    }
    "#);
    open.pop();
    eventually("a place is free again", async || {
        let answer = request(&service, service.key(), "").send().await.unwrap();
        match answer.status().as_u16() {
            200 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}

fn admin_of(service: &Service, key: &str) -> Admin {
    Admin::new(&service.ready().http, key)
}

async fn a_stream_ends_with_the_service(options: Options) {
    let mut service = Service::start(options).await;
    let listener = Listener::open(request(&service, service.key(), "")).await;
    let began = Instant::now();
    service.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5));
    listener.ended().await;
    assert!(
        !service
            .log()
            .lines()
            .iter()
            .any(|line| line.contains("cutting connections")),
        "it ended by itself"
    );
}

async fn a_stream_that_cannot_be_is_refused(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    for (query, says) in [
        (
            "?type=campaign.begun",
            "type: \"campaign.begun\" is neither",
        ),
        ("?type=", "type: \"\" is neither"),
        ("?campaign_id=x", "x"),
        ("?since=1", "\"since\" is not a query parameter"),
    ] {
        let refused = admin.get(&format!("{EVENTS}{query}")).await.refused(400);
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{query}: {detail}");
    }
    let get = || admin.client().get(admin.url(EVENTS));
    let refused = admin.send(get().header("Last-Event-ID", "yesterday")).await;
    assert_eq!(refused.refused(400)["code"], "invalid_last_event_id");
    assert_eq!(get().send().await.unwrap().status(), 401);
    let head = admin.client().head(admin.url(EVENTS));
    admin.send(head).await.expect(200);
}

async fn a_device_that_stays_away_is_told_of_once(options: Options) {
    let service = Service::start(options.with("OFFLINE_AFTER_SECONDS", "1")).await;
    let admin = service.admin();
    let [first, second] = [
        service.register(device_json("frame-1")).await,
        service.register(device_json("frame-2")).await,
    ];
    let mut listener = Listener::open(request(&service, service.key(), "?type=device.*")).await;
    let leave = async |credentials| {
        let mut device = Device::connect(&service, MqttVersion::V311, credentials).await;
        device.check("2.0.0", "boot").await;
        // A broker tells nobody of a connection that was closed in order.
        let farewell = json!({ "online": false, "reason": "shutdown" });
        device.report("status", &farewell).await;
        device.leave().await;
    };
    // One that is deleted, and one that stays away.
    let mut deleted = Device::connect(&service, MqttVersion::V311, &second).await;
    deleted.check("2.0.0", "boot").await;
    admin
        .delete("/api/v1/ota/devices/frame-2")
        .await
        .expect(200);
    drop(deleted);
    leave(&first).await;
    let told = listener.frame().await;
    assert_eq!(told.event, "device.offline");
    let data = &told.data["data"];
    assert_eq!(data["device_id"], "frame-1");
    assert!(
        data["last_seen"].as_str() <= data["offline_since"].as_str(),
        "{data}"
    );
    // Once: what is told next is the next absence.
    leave(&first).await;
    let again = listener.frame().await;
    assert_eq!(again.data["data"]["device_id"], "frame-1");
    assert!(again.data["data"]["offline_since"].as_str() > data["offline_since"].as_str());
}
