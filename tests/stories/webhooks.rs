//! Webhooks: a receiver of the test's own gets what it asked for, in order and signed; one that is dead, slow or gone harms
//! nobody else, and nothing is sent within the house unless somebody said so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::harness::{Admin, Options, Service, eventually, within};

matrix!(events_come_in_order_and_signed: sqlite_gateway, postgres_gateway);
matrix!(who_is_dead_or_slow_delays_nobody_else: sqlite_gateway, postgres_gateway);
matrix!(who_is_away_for_a_while_misses_nothing: sqlite_gateway);
matrix!(a_redirect_is_not_followed_and_gone_is_gone: sqlite_gateway);
matrix!(nothing_is_sent_within_the_house: sqlite_gateway);
matrix!(a_paused_webhook_goes_on_where_it_stopped: sqlite_gateway, postgres_gateway);
matrix!(a_webhook_that_cannot_be_is_refused: sqlite_gateway);

const WEBHOOKS: &str = "/api/v1/ota/webhooks";
/// A receiver that takes a request and never answers.
const SILENCE: u16 = 0;

/// One request as it came.
#[derive(Debug)]
pub struct Request {
    headers: BTreeMap<String, String>,
    body: String,
}

impl Request {
    pub fn event(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn kind(&self) -> String {
        self.event()["event_type"].as_str().unwrap().to_owned()
    }

    /// Checks the signature as the specification says (Standard Webhooks, *Verifying*).
    fn assert_signed(&self, secret: &str) {
        let key = BASE64
            .decode(secret.strip_prefix("whsec_").unwrap())
            .unwrap();
        let (id, time) = (
            &self.headers["webhook-id"],
            &self.headers["webhook-timestamp"],
        );
        let signed = format!("{id}.{time}.{}", self.body);
        let expected = format!("v1,{}", BASE64.encode(hmac_sha256(&key, signed.as_bytes())));
        assert_eq!(self.headers["webhook-signature"], expected);
        assert_eq!(*id, format!("evt_{}", self.event()["id"]));
        let happened: jiff::Timestamp =
            self.event()["timestamp"].as_str().unwrap().parse().unwrap();
        let later = time.parse::<i64>().unwrap() - happened.as_second();
        assert!((0..60).contains(&later), "{later}");
    }
}

/// RFC 2104, for keys that are no longer than a block.
fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let pad = |with: u8| {
        let mut block = [with; 64];
        for (byte, key) in block.iter_mut().zip(key) {
            *byte ^= key;
        }
        block
    };
    let inner = Sha256::new()
        .chain_update(pad(0x36))
        .chain_update(message)
        .finalize();
    Sha256::new()
        .chain_update(pad(0x5c))
        .chain_update(inner)
        .finalize()
        .to_vec()
}

/// A receiver: answers each request with the status that it is told, and passes it on.
pub struct Receiver {
    port: u16,
    status: Arc<AtomicU16>,
    requests: mpsc::UnboundedReceiver<Request>,
}

impl Receiver {
    pub async fn start(status: u16, location: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let status = Arc::new(AtomicU16::new(status));
        let (sender, requests) = mpsc::unbounded_channel();
        let (answers, location) = (status.clone(), location.to_owned());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(
                    stream,
                    sender.clone(),
                    answers.clone(),
                    location.clone(),
                ));
            }
        });
        Self {
            port,
            status,
            requests,
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    pub async fn next(&mut self) -> Request {
        within("the receiver gets a request", self.requests.recv())
            .await
            .unwrap()
    }

    fn has_nothing(&mut self) -> bool {
        self.requests.try_recv().is_err()
    }
}

async fn serve(
    stream: TcpStream,
    requests: mpsc::UnboundedSender<Request>,
    status: Arc<AtomicU16>,
    location: String,
) {
    let mut stream = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        if line != "\r\n" {
            lines.push(line.trim_end().to_owned());
            continue;
        }
        assert_eq!(lines.remove(0), "POST /hook HTTP/1.1");
        let headers: BTreeMap<String, String> = lines
            .drain(..)
            .map(|line| {
                let (name, value) = line.split_once(": ").unwrap();
                (name.to_ascii_lowercase(), value.to_owned())
            })
            .collect();
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        let status = status.load(Ordering::SeqCst);
        let body = String::from_utf8(body).unwrap();
        let _ = requests.send(Request { headers, body });
        if status == SILENCE {
            std::future::pending::<()>().await;
        }
        let head =
            format!("HTTP/1.1 {status} x\r\nlocation: {location}\r\ncontent-length: 2\r\n\r\nok");
        stream.write_all(head.as_bytes()).await.unwrap();
    }
}

/// Makes a webhook; answers its path and its secret.
pub async fn hook(admin: &Admin, url: &str, types: &[&str]) -> (String, String) {
    let made = admin
        .post(WEBHOOKS, json!({ "url": url, "event_types": types }))
        .await
        .expect(201);
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    (format!("{WEBHOOKS}/{}", text("webhook_id")), text("secret"))
}

pub async fn campaign(admin: &Admin, firmware: &str, name: &str) -> String {
    admin
        .create_campaign(json!({ "name": name, "firmware_id": firmware }))
        .await
}

async fn becomes(admin: &Admin, path: &str, field: &str, wanted: &Value) -> Value {
    eventually(&format!("{field} of {path} is {wanted}"), async || {
        let webhook = admin.get(path).await.expect(200);
        if webhook[field] == *wanted {
            Ok(webhook)
        } else {
            Err(webhook.to_string())
        }
    })
    .await
}

fn open(options: Options) -> Options {
    options.with("WEBHOOK_ALLOW_PRIVATE", "true")
}

async fn events_come_in_order_and_signed(options: Options) {
    let service = Service::start(open(options)).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    let mut receiver = Receiver::start(200, "").await;
    let made = admin
        .post(
            WEBHOOKS,
            json!({ "url": receiver.url(), "event_types": ["campaign.*", "update.failed"] }),
        )
        .await
        .expect(201);
    insta::allow_duplicates! { insta::assert_json_snapshot!(made, {
        ".webhook_id" => "[id]", ".url" => "[url]", ".secret" => "[secret]", ".created_at" => "[time]",
        ".updated_at" => "[time]", ".last_event_id" => "[event]",
    }, @r#"
    {
      "campaign_id": null,
      "created_at": "[time]",
      "created_by": "admin",
      "event_types": [
        "campaign.*",
        "update.failed"
      ],
      "failure": null,
      "last_delivered_at": null,
      "last_event_id": "[event]",
      "reason": null,
      "revision": 0,
      "secret": "[secret]",
      "status": "active",
      "updated_at": "[time]",
      "url": "[url]",
      "webhook_id": "[id]"
    }
    "#) }
    let secret = made["secret"].as_str().unwrap();
    let path = format!("{WEBHOOKS}/{}", made["webhook_id"].as_str().unwrap());
    let mut told = Vec::new();
    for n in 0..3 {
        let id = campaign(&admin, &firmware, &format!("c{n}")).await;
        admin.act(&id, "cancel").await.expect(200);
        told.extend([("campaign.created", id.clone()), ("campaign.cancelled", id)]);
    }
    let (_, id) = told[0].clone();
    let mut ids = Vec::new();
    for (kind, campaign) in told {
        let request = receiver.next().await;
        request.assert_signed(secret);
        assert_eq!(request.headers["content-type"], "application/json");
        let event = request.event();
        assert_eq!(event["event_type"], kind);
        assert_eq!(event["source"], "ota_service");
        assert_eq!(event["data"]["campaign_id"], campaign);
        ids.push(event["id"].as_i64().unwrap());
    }
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    becomes(&admin, &path, "last_event_id", &json!(ids.last())).await;
    let list = admin.get(WEBHOOKS).await.expect(200);
    assert_eq!(list["count"], 1);
    assert!(list["webhooks"][0]["last_delivered_at"].is_string());
    assert!(!list.to_string().contains(secret), "it was shown once");
    // Another type, and another campaign, are nobody's business here.
    admin.image("2.2.0").await;
    let spec = json!({ "url": receiver.url(), "campaign_id": id });
    admin.put(&path, spec).await.expect(200);
    campaign(&admin, &firmware, "another").await;
    admin
        .delete(&format!("/api/v1/ota/campaigns/{id}"))
        .await
        .expect(200);
    assert_eq!(receiver.next().await.kind(), "campaign.deleted");
}

async fn who_is_dead_or_slow_delays_nobody_else(options: Options) {
    let service = Service::start(open(options).with("WEBHOOK_TRIES", "2")).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    let mut dead = Receiver::start(500, "").await;
    let mut slow = Receiver::start(SILENCE, "").await;
    let mut well = Receiver::start(204, "").await;
    let (path, secret) = hook(&admin, &dead.url(), &["campaign.*"]).await;
    hook(&admin, &slow.url(), &[]).await;
    hook(&admin, &well.url(), &[]).await;
    for name in ["first", "second"] {
        campaign(&admin, &firmware, name).await;
    }
    for name in ["first", "second"] {
        assert_eq!(well.next().await.event()["data"]["name"], name);
    }
    assert_eq!(slow.next().await.event()["data"]["name"], "first");
    assert!(slow.has_nothing(), "the second waits for the first");
    for name in ["first", "second"] {
        let tries = [dead.next().await, dead.next().await];
        for request in &tries {
            request.assert_signed(&secret);
            assert_eq!(request.event()["data"]["name"], name);
        }
        assert_eq!(
            tries[0].headers["webhook-id"],
            tries[1].headers["webhook-id"]
        );
    }
    let letters_path = format!("{path}/dead-letters");
    let letters = eventually("both are laid aside", async || {
        let letters = admin.get(&letters_path).await.expect(200);
        if letters["count"] == 2 {
            Ok(letters)
        } else {
            Err(letters.to_string())
        }
    })
    .await;
    let [second, first] = [0, 1].map(|n| &letters["dead_letters"][n]);
    assert_eq!(first["event"]["data"]["name"], "first");
    assert_eq!(
        (&first["tries"], &first["error"]),
        (&json!(2), &json!("it answered 500 Internal Server Error"))
    );
    let retry = format!("{letters_path}/{}/retry", first["number"]);
    let refused = admin.post(&retry, json!({})).await.refused(409);
    assert_eq!(refused["code"], "not_delivered");
    dead.next().await;
    dead.answer(200);
    admin.post(&retry, json!({})).await.expect(200);
    assert_eq!(dead.next().await.event()["data"]["name"], "first");
    admin.post(&retry, json!({})).await.refused(404);
    let discard = format!("{letters_path}/{}", second["number"]);
    admin.delete(&discard).await.expect(200);
    assert_eq!(admin.get(&letters_path).await.expect(200)["count"], 0);
    let id = path.rsplit('/').next().unwrap();
    let audit = format!("/api/v1/ota/audit?entity_id={id}");
    let records = admin.get(&audit).await.expect(200);
    let acts = [0, 1, 2].map(|n| records["audit"][n]["action"].as_str().unwrap());
    assert_eq!(
        acts,
        ["webhook.discarded", "webhook.retried", "webhook.created"]
    );
    campaign(&admin, &firmware, "third").await;
    assert_eq!(dead.next().await.event()["data"]["name"], "third");
    becomes(&admin, &path, "failure", &Value::Null).await;
}

async fn who_is_away_for_a_while_misses_nothing(options: Options) {
    let service = Service::start(open(options).with("WEBHOOK_TRIES", "1")).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    let mut receiver = Receiver::start(503, "").await;
    let (path, _) = hook(&admin, &receiver.url(), &["campaign.*"]).await;
    campaign(&admin, &firmware, "first").await;
    for _ in 0..3 {
        assert_eq!(receiver.next().await.event()["data"]["name"], "first");
    }
    let told = |text: &'static str| {
        let line = service
            .log()
            .find(move |line| line.contains(text).then(|| line.to_owned()));
        within(text, line)
    };
    let waits = "an event waits for its webhook";
    let line = told(waits).await.unwrap();
    assert!(line.contains("\"WARN\"") && line.contains("503"), "{line}");
    let webhook = admin.get(&path).await.expect(200);
    assert_eq!(
        (&webhook["status"], &webhook["failure"]["tries"]),
        (&json!("active"), &json!(0)),
        "{webhook}"
    );
    receiver.answer(200);
    campaign(&admin, &firmware, "second").await;
    let mut names = Vec::new();
    while names.last().is_none_or(|last| last != "second") {
        names.push(receiver.next().await.event()["data"]["name"].clone());
    }
    names.dedup();
    assert_eq!(names, ["first", "second"]);
    let line = told("a webhook takes events again").await.unwrap();
    assert!(line.contains("\"INFO\""), "{line}");
    let lines = service.log().lines();
    let lines = lines.iter().filter(|line| line.contains(waits));
    assert_eq!(lines.count(), 1, "however often it was tried");
    let letters = admin.get(&format!("{path}/dead-letters")).await.expect(200);
    assert_eq!(letters["count"], 0);
}

async fn a_redirect_is_not_followed_and_gone_is_gone(options: Options) {
    let service = Service::start(open(options).with("WEBHOOK_TRIES", "1")).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    let mut elsewhere = Receiver::start(200, "").await;
    let mut receiver = Receiver::start(307, &elsewhere.url()).await;
    let (path, _) = hook(&admin, &receiver.url(), &["campaign.*"]).await;
    campaign(&admin, &firmware, "first").await;
    receiver.next().await;
    let letters = eventually("it is laid aside", async || {
        let letters = admin.get(&format!("{path}/dead-letters")).await.expect(200);
        if letters["count"] == 1 {
            Ok(letters)
        } else {
            Err(letters.to_string())
        }
    })
    .await;
    assert_eq!(
        letters["dead_letters"][0]["error"],
        "it answered 307 Temporary Redirect"
    );
    assert!(elsewhere.has_nothing());

    let mut others = Receiver::start(200, "").await;
    hook(&admin, &others.url(), &["webhook.disabled"]).await;
    receiver.answer(410);
    campaign(&admin, &firmware, "second").await;
    let webhook = becomes(&admin, &path, "status", &json!("disabled")).await;
    assert_eq!(webhook["reason"], "it answered 410 Gone");
    let told = others.next().await.event();
    assert_eq!(told["data"]["webhook_id"], webhook["webhook_id"]);
    assert!(
        !told.to_string().contains(&receiver.url()),
        "viewers read events"
    );
    assert_eq!(told["data"]["reason"], "it answered 410 Gone");
    let id = webhook["webhook_id"].as_str().unwrap();
    let audit = format!("/api/v1/ota/audit?entity_id={id}&action=webhook.disabled");
    let record = &admin.get(&audit).await.expect(200)["audit"][0];
    assert_eq!(
        (&record["subject"], &record["authentication"]),
        (&json!("ota_service"), &json!("service"))
    );
    assert_eq!(
        (
            &record["before"]["status"],
            &record["after"]["status"],
            &record["after"]["reason"]
        ),
        (
            &json!("active"),
            &json!("disabled"),
            &json!("it answered 410 Gone")
        )
    );
    // Made active again, it gets what it has not taken.
    receiver.next().await;
    receiver.answer(200);
    let spec = json!({ "url": receiver.url(), "event_types": ["campaign.*"], "status": "active" });
    let active = admin.put(&path, spec).await.expect(200);
    assert_eq!(
        (&active["status"], &active["reason"]),
        (&json!("active"), &Value::Null)
    );
    assert_eq!(receiver.next().await.event()["data"]["name"], "second");
}

async fn nothing_is_sent_within_the_house(options: Options) {
    let service = Service::start(options.with("WEBHOOK_TRIES", "1")).await;
    let admin = service.admin();
    let mut receiver = Receiver::start(200, "").await;
    let refused = admin
        .post(WEBHOOKS, json!({ "url": receiver.url() }))
        .await
        .refused(400);
    insta::assert_json_snapshot!(refused, { ".request_id" => "[id]" }, @r#"
    {
      "code": "invalid_webhook",
      "detail": "url: it is an address within the house, and WEBHOOK_ALLOW_PRIVATE is off",
      "request_id": "[id]"
    }
    "#);
    // A name says nothing of where it leads, until somebody goes there.
    let named = format!("http://localhost:{}/hook", receiver.port);
    let (path, _) = hook(&admin, &named, &[]).await;
    admin.image("2.1.0").await;
    let error = eventually("it is laid aside", async || {
        let letters = admin.get(&format!("{path}/dead-letters")).await.expect(200);
        match letters["dead_letters"][0]["error"].as_str() {
            Some(error) => Ok(error.to_owned()),
            None => Err(letters.to_string()),
        }
    })
    .await;
    assert!(error.contains("within the house"), "{error}");
    assert!(receiver.has_nothing());
}

async fn a_paused_webhook_goes_on_where_it_stopped(options: Options) {
    let mut service = Service::start(open(options)).await;
    let admin = service.admin();
    let firmware = admin.image("2.1.0").await;
    let mut receiver = Receiver::start(200, "").await;
    let (path, secret) = hook(&admin, &receiver.url(), &[]).await;
    let spec = |status: &str| json!({ "url": receiver.url(), "status": status });
    let (paused, active) = (spec("paused"), spec("active"));
    campaign(&admin, &firmware, "c0").await;
    assert_eq!(receiver.next().await.event()["data"]["name"], "c0");
    // What is changed between an answer and its record is sent once more.
    eventually("its delivery is written down", async || {
        let webhook = admin.get(&path).await.expect(200);
        let at = &webhook["last_delivered_at"];
        if at.is_string() {
            Ok(())
        } else {
            Err(webhook.to_string())
        }
    })
    .await;
    assert_eq!(
        admin.put(&path, paused).await.expect(200)["status"],
        "paused"
    );
    for n in 1..100 {
        campaign(&admin, &firmware, &format!("c{n}")).await;
    }
    service.stop().await;
    service.start_again().await;
    assert!(receiver.has_nothing());
    admin.put(&path, active).await.expect(200);
    for n in 1..100 {
        let request = receiver.next().await;
        request.assert_signed(&secret);
        assert_eq!(request.event()["data"]["name"], format!("c{n}"));
    }
    assert_eq!(admin.delete(&path).await.expect(200)["status"], "active");
    admin.get(&path).await.refused(404);
    admin
        .get(&format!("{path}/dead-letters"))
        .await
        .refused(404);
    let other = Receiver::start(200, "").await;
    hook(&admin, &other.url(), &[]).await;
    campaign(&admin, &firmware, "after").await;
    let mut other = other;
    assert_eq!(other.next().await.event()["data"]["name"], "after");
    assert!(receiver.has_nothing(), "it was deleted");
}

async fn a_webhook_that_cannot_be_is_refused(options: Options) {
    let service = Service::start(open(options)).await;
    let admin = service.admin();
    let url = "http://127.0.0.1:9/";
    for (body, says) in [
        (json!({}), "url"),
        (
            json!({ "url": "ftp://example.com" }),
            "url: it must be an address such as",
        ),
        (
            json!({ "url": "https://u:p@example.com" }),
            "url: it must hold no password",
        ),
        (
            json!({ "url": format!("{url}{}", "x".repeat(2_048)) }),
            "url: at most 2048 bytes",
        ),
        (
            json!({ "url": url, "event_types": ["campaign.begun"] }),
            "\"campaign.begun\" is neither",
        ),
        (
            json!({ "url": url, "event_types": vec!["campaign.*"; 33] }),
            "event_types: at most 32",
        ),
        (json!({ "url": url, "campaign_id": "x" }), "campaign_id"),
        (
            json!({ "url": url, "secret": "whsec_AAAA" }),
            "secret: it must be whsec_",
        ),
        (json!({ "url": url, "status": "disabled" }), "status"),
        (json!({ "url": url, "colour": "red" }), "colour"),
    ] {
        let refused = admin.post(WEBHOOKS, body.clone()).await.refused(400);
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{body}: {detail}");
    }
    let own = format!("whsec_{}", BASE64.encode([7; 32]));
    let spec = json!({ "url": url, "secret": own, "status": "paused" });
    let made = admin.post(WEBHOOKS, spec.clone()).await.expect(201);
    assert_eq!(made["secret"], own.as_str());
    for _ in 1..64 {
        admin.post(WEBHOOKS, spec.clone()).await.expect(201);
    }
    let refused = admin.post(WEBHOOKS, spec.clone()).await.refused(409);
    assert_eq!(refused["code"], "too_many_webhooks");
    // One that waits for what nobody has made would wait for ever.
    let nobody = json!({ "url": url, "campaign_id": "camp_0000000000000000" });
    let path = format!("{WEBHOOKS}/{}", made["webhook_id"].as_str().unwrap());
    for answer in [
        admin.post(WEBHOOKS, nobody.clone()).await,
        admin.put(&path, nobody).await,
    ] {
        let refused = answer.refused(404);
        assert_eq!(
            refused["detail"],
            "campaign camp_0000000000000000 does not exist"
        );
    }
    let unknown = format!("{WEBHOOKS}/wh_0000000000000000");
    admin.get(&unknown).await.refused(404);
    admin.put(&unknown, spec).await.refused(404);
    admin.delete(&unknown).await.refused(404);
    let number = format!(
        "{WEBHOOKS}/{}/dead-letters/1",
        made["webhook_id"].as_str().unwrap()
    );
    admin.delete(&number).await.refused(404);
    let key = admin
        .post(
            "/api/v1/ota/keys",
            json!({ "name": "n", "roles": ["operator", "viewer"] }),
        )
        .await
        .expect(201);
    let operator = Admin::new(&service.ready().http, key["secret"].as_str().unwrap());
    operator.get(WEBHOOKS).await.refused(403);
}
