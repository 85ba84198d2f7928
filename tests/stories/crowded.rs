//! What lasts as long as a client likes has its bounds: uploads and downloads at once, and what is told beyond them.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::harness::{Admin, Options, Service, eventually, image, image_metadata, within};

matrix!(one_who_uploads_leaves_room_for_others: sqlite_gateway, postgres_gateway);
matrix!(slow_readers_leave_room_for_others: sqlite_gateway);

const FIRMWARE: &str = "/api/v1/ota/firmware";
/// More than lies between two ends of a connection.
const LARGE: usize = 48 * 1024 * 1024;

/// A request under way, and what was answered so far.
struct Open {
    stream: BufReader<TcpStream>,
    status: u16,
}

impl Open {
    async fn send(service: &Service, head: &str) -> Self {
        let stream = TcpStream::connect(&service.ready().http).await.unwrap();
        let mut stream = BufReader::new(stream);
        let head = format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut line = String::new();
        within("there is an answer", stream.read_line(&mut line))
            .await
            .unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        Self { stream, status }
    }

    /// An upload that has begun and sends nothing of its body.
    async fn upload(service: &Service, key: &str) -> Self {
        let head = format!(
            "POST {FIRMWARE} HTTP/1.1\r\nAuthorization: Bearer {key}\r\nExpect: 100-continue\r\n\
             Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000"
        );
        Self::send(service, &head).await
    }

    /// The whole of a refusal: when to come back, and the body.
    async fn refused(mut self) -> (u64, Value) {
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let wait = head
            .lines()
            .find_map(|line| line.strip_prefix("retry-after: "))
            .unwrap_or_else(|| panic!("no Retry-After: {answer}"));
        (wait.parse().unwrap(), serde_json::from_str(body).unwrap())
    }
}

async fn uploader(service: &Service, name: &str) -> String {
    let spec = json!({ "name": name, "roles": ["uploader"] });
    let made = service.admin().post("/api/v1/ota/keys", spec).await;
    made.expect(201)["secret"].as_str().unwrap().to_owned()
}

async fn one_who_uploads_leaves_room_for_others(options: Options) {
    let service = Service::start(options).await;
    let mut keys = Vec::new();
    for subject in ["a", "b", "c"] {
        keys.push(uploader(&service, subject).await);
    }
    let [first, .., last] = keys.as_slice() else {
        unreachable!("three keys were made")
    };
    let mut held = Vec::new();
    for key in keys.iter().take(2) {
        for _ in 0..8 {
            let open = Open::upload(&service, key).await;
            assert_eq!(open.status, 100, "it is asked for its body");
            held.push(open);
        }
        if key == first {
            let refused = Open::upload(&service, key).await;
            assert_eq!(refused.status, 429);
            let (wait, body) = refused.refused().await;
            assert!((1..=60).contains(&wait), "{wait}");
            assert_eq!(body["code"], "uploads_busy");
        }
    }
    let refused = Open::upload(&service, last).await;
    assert_eq!(refused.status, 503);
    let (_, body) = refused.refused().await;
    assert_eq!(body["code"], "uploads_busy");

    // One that goes away makes room, and the others keep theirs.
    held.pop();
    let other = Admin::new(&service.ready().http, last);
    let body = eventually("there is room again", async || {
        let answer = other
            .upload(&image_metadata("2.1.0"), "a.bin", image("2.1.0"))
            .await;
        match answer.status {
            201 => Ok(answer.body),
            503 => Err(answer.body.to_string()),
            other => panic!("{other} {:#}", answer.body),
        }
    })
    .await;
    assert_eq!(body["created_by"], "c");
    assert_eq!(held.len(), 15);
}

async fn slow_readers_leave_room_for_others(options: Options) {
    // Half of an address's connections may be downloads.
    let service = Service::start(options.with("HTTP_CONNECTIONS_PER_ADDRESS", "8")).await;
    let admin = service.admin();
    let metadata = image_metadata("2.1.0");
    let made = admin.upload(&metadata, "a.bin", vec![7; LARGE]).await;
    let id = made.expect(201)["firmware_id"].as_str().unwrap().to_owned();
    let granted = admin.get(&format!("{FIRMWARE}/{id}/download")).await;
    let url = granted.expect(200)["url"].as_str().unwrap().to_owned();
    let (_, path) = url.split_once(&service.ready().http).unwrap();
    let get = format!("GET {path} HTTP/1.1");
    let mut held = Vec::new();
    for _ in 0..4 {
        let open = Open::send(&service, &get).await;
        assert_eq!(open.status, 200);
        held.push(open);
    }
    let refused = Open::send(&service, &get).await;
    assert_eq!(refused.status, 503);
    let (wait, body) = refused.refused().await;
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(body["code"], "downloads_busy");
    let looked = Open::send(&service, &format!("HEAD {path} HTTP/1.1")).await;
    assert_eq!(looked.status, 200, "what has no body needs no seat");
    admin.get(FIRMWARE).await.expect(200);

    held.pop();
    let range = format!("{get}\r\nRange: bytes=0-9");
    eventually("there is room again", async || {
        match Open::send(&service, &range).await.status {
            206 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}
