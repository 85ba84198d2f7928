//! The document against the real routes, over a real database and a real folder.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod limits;
mod refusals;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use device_ota_domain::webhook::NotTaken;
use device_ota_domain::{DeviceId, Role, Roles};
use device_ota_engine::keyring::Keyring;
use device_ota_engine::ports::poster::{Letter, Poster};
use device_ota_engine::ports::{Clock, Delivery, Downlink, Entropy};
use device_ota_engine::{Engine, Grants, Parts, Settings, Webhooks};
use device_ota_objects::LocalFolder;
use device_ota_protocol::keys::Keypair;
use device_ota_protocol::objects::{self, Root};
use device_ota_protocol::topics::Down;
use device_ota_store::testing::SqliteDatabase;
use http::Method;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::access::is_open;
use crate::openapi::tests::table;
use crate::{Access, Api, Cors, Http, RateLimits, Seats};

/// Noon of a day, until somebody turns the clock; every random byte the same; no device connected.
#[derive(Default)]
struct World {
    seconds_later: AtomicI64,
}

impl Clock for World {
    fn now(&self) -> Timestamp {
        let later = self.seconds_later.load(Ordering::SeqCst);
        Timestamp::from_second(1_766_052_000 + later).unwrap()
    }
}

impl Entropy for World {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

#[async_trait]
impl Downlink for World {
    async fn send(&self, _: &DeviceId, _: &Down, _: bytes::Bytes) -> Delivery {
        Delivery::NotConnected
    }

    async fn disconnect(&self, _: &DeviceId) {}
}

#[async_trait]
impl Poster for World {
    fn check(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    async fn post(&self, _: Letter<'_>) -> Result<(), NotTaken> {
        Err(NotTaken::Gone)
    }
}

fn keyring() -> Keyring {
    let [root, release, dispatch] = [1, 2, 3].map(|seed| Keypair::from_seed([seed; 32]));
    let expires = Timestamp::from_second(2_000_000_000).unwrap();
    let statement = Root::single(
        1,
        expires,
        root.public(),
        release.public(),
        dispatch.public(),
    );
    Keyring::new(
        vec![objects::seal(&statement, &root).unwrap()],
        Some(release),
        dispatch,
    )
    .unwrap()
}

struct Served {
    world: Arc<World>,
    addr: SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    _database: SqliteDatabase,
    _objects: tempfile::TempDir,
}

async fn serve() -> Served {
    serve_to(Roles::ADMIN).await
}

/// Serves; [`KEY`] opens for somebody with these roles.
async fn serve_to(roles: Roles) -> Served {
    serve_within(roles, RateLimits::default()).await
}

/// The same within limits.
async fn serve_within(roles: Roles, limits: RateLimits) -> Served {
    let (database, folder) = (SqliteDatabase::new(), tempfile::tempdir().unwrap());
    let world = Arc::new(World::default());
    let (engine, _work) = Engine::new(Parts {
        store: Arc::new(database.open().await),
        objects: Arc::new(LocalFolder::open(folder.path()).unwrap()),
        downlink: world.clone(),
        sinks: Vec::new(),
        device_service: None,
        clock: world.clone(),
        entropy: world.clone(),
        keyring: keyring(),
        grants: Grants::new([7; 32]),
        settings: Settings::default(),
    });
    let api = Api {
        engine: engine.clone(),
        webhooks: Arc::new(Webhooks::new(engine.clone(), world.clone(), 1)),
        access: Access::key_of("someone", roles, Sha256::digest(b"key").into())
            .known_to(engine.clone()),
        limits,
        seats: Seats::default(),
        cors: Cors::default(),
        version: "0.0.0",
        run_id: "run".to_owned(),
        components: Arc::new(Vec::new),
    };
    let http = Http::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (addr, shutdown) = (http.local_addr(), CancellationToken::new());
    let task = tokio::spawn(http.serve(api, shutdown.clone()));
    Served {
        world,
        addr,
        shutdown,
        task,
        _database: database,
        _objects: folder,
    }
}

impl Served {
    /// Status, and the rest of the answer.
    async fn ask(&self, method: &str, path: &str, header: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(self.addr).await.unwrap();
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let mut stream = tokio::io::BufReader::new(stream);
        // To the end, or to the head of an answer that has none.
        while stream.read_line(&mut answer).await.unwrap() > 0 {
            if answer.ends_with("\r\n\r\n") && answer.contains(": text/event-stream\r\n") {
                break;
            }
        }
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    /// Sends a body of this type; answers the status and the body.
    async fn send(&self, method: &str, path: &str, header: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let rest = format!("{header}\r\ncontent-length: {length}\r\n\r\n{body}");
        let (status, answer) = self.ask(method, path, &rest).await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        (status, body.to_owned())
    }

    /// Registers a device; answers the header that it signs in with.
    async fn device(&self, id: &str) -> String {
        let device = format!(r#"{{"device_id":"{id}","device_model":"M"}}"#);
        let (status, answer) = self
            .send("POST", "/api/v1/ota/devices", &json(KEY), &device)
            .await;
        assert_eq!(status, 201, "{answer}");
        let (_, rest) = answer.split_once(r#""password":""#).unwrap();
        let (secret, _) = rest.split_once('"').unwrap();
        let basic = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            format!("{id}:{secret}"),
        );
        format!("authorization: Basic {basic}")
    }

    /// Uploads an image; answers its id.
    async fn image(&self) -> String {
        let metadata = r#"{"name":"n","version":"1.0.0","device_model":"M","manufacturer":"A"}"#;
        let form = format!(
            "--X\r\ncontent-disposition: form-data; name=\"metadata\"\r\n\r\n{metadata}\r\n\
             --X\r\ncontent-disposition: form-data; name=\"file\"; filename=\"f.bin\"\r\n\r\nimage\r\n--X--\r\n"
        );
        let kind = format!("{KEY}\r\ncontent-type: multipart/form-data; boundary=X");
        let (status, answer) = self
            .send("POST", "/api/v1/ota/firmware", &kind, &form)
            .await;
        assert_eq!(status, 201, "{answer}");
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        answer["firmware_id"].as_str().unwrap().to_owned()
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

const KEY: &str = "x-api-key: key";

/// The header of a request that carries JSON, behind another one.
fn json(header: &str) -> String {
    format!("{header}\r\ncontent-type: application/json")
}

/// The path with this in place of each parameter.
fn filled(template: &str, value: &str) -> String {
    let levels = template.split('/');
    let fill = |level: &str| {
        if level.starts_with('{') {
            value.to_owned()
        } else {
            level.to_owned()
        }
    };
    levels.map(fill).collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn every_path_takes_the_methods_that_are_documented_and_no_other() {
    let served = serve().await;
    for (template, methods) in table() {
        let path = filled(template, "none");
        let allow = methods
            .iter()
            .map(Method::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
            let (status, answer) = served.ask(method, &path, KEY).await;
            if methods.iter().any(|known| known == method) {
                assert!(
                    status != 405 && status != 500 && !answer.contains("unknown_path"),
                    "{method} {path}: {answer}"
                );
            } else {
                assert_eq!(status, 405, "{method} {path}: {answer}");
                assert!(
                    answer.contains(&format!("allow: {allow}\r\n")),
                    "{method} {path}: {answer}"
                );
            }
        }
    }
    served.end().await;
}

#[tokio::test]
async fn no_closed_path_lets_anybody_in_without_a_key() {
    let served = serve().await;
    for (template, methods) in table() {
        let path = filled(template, "none");
        for method in methods {
            for header in ["x-internal-call: true", "x-api-key: wrong"] {
                let (status, answer) = served.ask(method.as_str(), &path, header).await;
                assert_eq!(status == 401, !is_open(&path), "{method} {path}: {answer}");
            }
        }
    }
    served.end().await;
}

/// The role that a route asks for: reading for reads, running things for the rest, but for what is named here.
fn role_of(method: &str, template: &str) -> Role {
    match (method, template) {
        (_, path)
            if path.starts_with("/api/v1/ota/keys") || path.starts_with("/api/v1/ota/webhooks") =>
        {
            Role::Admin
        }
        (_, "/api/v1/ota/audit")
        | ("PUT", "/api/v1/rings")
        | ("POST", "/api/v1/ota/permits")
        | ("DELETE", "/api/v1/ota/campaigns/{campaign_id}" | "/api/v1/ota/devices/{device_id}") => {
            Role::Admin
        }
        ("GET" | "HEAD", _) => Role::Viewer,
        (_, "/api/v1/ota/firmware" | "/api/v1/firmware")
        | (
            "PUT" | "DELETE",
            "/api/v1/ota/firmware/{firmware_id}" | "/api/v1/firmware/{firmware_id}",
        ) => Role::Uploader,
        (
            _,
            "/api/v1/ota/campaigns/{campaign_id}/approve"
            | "/api/v1/ota/campaigns/{campaign_id}/reject",
        ) => Role::Approver,
        _ => Role::Operator,
    }
}

#[tokio::test]
async fn every_closed_path_asks_for_its_role_and_for_no_other() {
    let each = Role::ALL.map(|role| Roles::from_iter([role]));
    for roles in each.into_iter().chain([Roles::NONE]) {
        let served = serve_to(roles).await;
        for (template, methods) in table() {
            // For devices alone, which have no roles.
            if is_open(template) || template == "/api/v1/heartbeat" {
                continue;
            }
            for method in methods {
                let path = filled(template, "none");
                let (status, answer) = served.ask(method.as_str(), &path, KEY).await;
                let role = role_of(method.as_str(), template);
                assert_eq!(
                    status != 403,
                    roles.allow(role),
                    "{roles:?} {method} {path}: {answer}"
                );
                if status == 403 && method != Method::HEAD {
                    assert!(
                        answer.contains(&format!("this needs the role {role}; ")),
                        "{answer}"
                    );
                }
            }
        }
        served.end().await;
    }
}

/// What a device may do beside reading what is open to everybody.
const DEVICES_TOO: &[&str] = &[
    "/api/v1/heartbeat",
    "/api/v1/ota/firmware/{firmware_id}/download",
    "/api/v1/firmware/{firmware_id}/download",
];

#[tokio::test]
async fn a_device_may_do_nothing_but_what_is_named() {
    let served = serve().await;
    let header = served.device("d:1").await;
    for (template, methods) in table() {
        if is_open(template) {
            continue;
        }
        for method in methods {
            let path = filled(template, "none");
            let (status, answer) = served.ask(method.as_str(), &path, &header).await;
            let named = DEVICES_TOO.contains(&template);
            assert_eq!(status == 403, !named, "{method} {path}: {answer}");
        }
    }
    served.end().await;
}

#[tokio::test]
async fn an_id_that_cannot_be_one_is_not_found_whatever_the_path() {
    let served = serve().await;
    for (template, methods) in table() {
        if !template.contains('{') {
            continue;
        }
        let expected = if template.contains("/objects/") {
            403
        } else {
            404
        };
        let path = filled(template, "a%2Fb");
        let method = methods.first().unwrap();
        let (status, answer) = served.ask(method.as_str(), &path, KEY).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
    }
    served.end().await;
}

#[tokio::test]
async fn lists_are_empty_before_anything_is_there() {
    let served = serve().await;
    for (path, plural) in [
        ("firmware", "firmware"),
        ("devices", "devices"),
        ("campaigns", "campaigns"),
        ("updates", "updates"),
        ("rollbacks", "rollbacks"),
        ("permits", "permits"),
        ("keys", "keys"),
        ("webhooks", "webhooks"),
        ("audit", "audit"),
    ] {
        let (_, answer) = served.ask("GET", &format!("/api/v1/ota/{path}"), KEY).await;
        let expected =
            format!(r#"{{"{plural}":[],"count":0,"limit":50,"offset":0,"filters":{{}}}}"#);
        assert!(answer.ends_with(&expected), "{answer}");
    }
    served.end().await;
}

#[tokio::test]
async fn the_document_is_there_for_everybody_and_sent_once() {
    let served = serve().await;
    for (path, kind) in [
        ("/openapi.json", "application/json"),
        ("/docs", "text/html; charset=utf-8"),
    ] {
        let (status, answer) = served.ask("GET", path, "accept: */*").await;
        assert_eq!(status, 200, "{answer}");
        assert!(
            answer.contains(&format!("content-type: {kind}\r\n")),
            "{answer}"
        );
        assert!(answer.contains("cache-control: public, max-age=60\r\n"));
        let etag = answer
            .split("etag: ")
            .nth(1)
            .unwrap()
            .split("\r\n")
            .next()
            .unwrap();
        let known = format!("if-none-match: \"other\", W/{etag}");
        let (status, answer) = served.ask("GET", path, &known).await;
        assert_eq!(status, 304, "{answer}");
        assert!(
            answer.ends_with("\r\n\r\n") && !answer.contains("\r\ncontent-type"),
            "{answer}"
        );
    }
    let (_, answer) = served.ask("GET", "/docs", "accept: */*").await;
    let policy = "content-security-policy: default-src 'none'; script-src 'sha256-";
    assert!(answer.contains(policy), "{answer}");
    served.end().await;
}
