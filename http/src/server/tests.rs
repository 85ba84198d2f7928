//! The server over real connections, with routes that do nothing but what a story needs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use warp::Filter as _;
use warp::Reply as _;

use super::*;
use crate::access::Access;
use crate::cors::Cors;
use crate::errors::recover;
use crate::limits::RateLimits;

struct Served {
    addr: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

/// `GET /health` answers, `GET /health/ready` does not, `POST /api/v1/ota/firmware` answers without reading.
fn serve() -> Served {
    serve_with(Bounds {
        connections: 100,
        of_address: 100,
    })
}

/// The same, with as many connections.
fn serve_with(bounds: Bounds) -> Served {
    let health = warp::get()
        .and(warp::path!("health"))
        .map(|| "fine".into_response());
    let never = warp::get()
        .and(warp::path!("health" / "ready"))
        .then(std::future::pending::<Response>);
    let unread = warp::post()
        .and(warp::path!("api" / "v1" / "ota" / "firmware"))
        .map(|| "unread".into_response());
    let routes = health
        .or(never)
        .unify()
        .or(unread)
        .unify()
        .recover(recover)
        .unify()
        .boxed();
    let access = Access::admin_key(Sha256::digest(b"key").into());
    let gate = Gate::new(
        TowerToHyperService::new(warp::service(routes)),
        access,
        RateLimits::default(),
        Cors::default(),
        Arc::default(),
        "run".to_owned(),
    );
    let http = Http::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (addr, shutdown) = (http.local_addr(), CancellationToken::new());
    let task = tokio::spawn(serve_gate(
        http.listener,
        None,
        gate,
        bounds,
        shutdown.clone(),
    ));
    Served {
        addr,
        shutdown,
        task,
    }
}

impl Served {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Sends a request that ends its connection, and reads the whole answer without its date.
    async fn ask(&self, head: &str, body: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream
            .write_all(format!("{head}\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
            .lines()
            .filter(|line| !line.starts_with("date:"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn an_address_has_no_more_connections_than_its_places() {
    let served = serve_with(Bounds {
        connections: 100,
        of_address: 2,
    });
    let idle = [served.connect().await, served.connect().await];
    let mut refused = served.connect().await;
    // Whether it is closed before or after the request is sent, nothing is answered.
    let _ = refused
        .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    let mut answer = Vec::new();
    let read = refused.read_to_end(&mut answer).await;
    assert!(read.is_err() || answer.is_empty(), "{answer:?}");
    drop(idle);
    // The server notices by itself that they are gone.
    let comes_in = async {
        loop {
            let mut stream = served.connect().await;
            let head = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            let mut answer = String::new();
            if stream.write_all(head).await.is_ok()
                && stream.read_to_string(&mut answer).await.is_ok()
                && answer.starts_with("HTTP/1.1 200")
            {
                return;
            }
        }
    };
    timeout(Duration::from_secs(20), comes_in).await.unwrap();
    served.end().await;
}

#[tokio::test]
async fn every_answer_has_an_id_and_is_neither_sniffed_nor_stored() {
    let served = serve();
    insta::assert_snapshot!(served.ask("GET /health HTTP/1.1\r\nx-request-id: mine-1", b"").await, @r"
    HTTP/1.1 200 OK
    content-type: text/plain; charset=utf-8
    x-content-type-options: nosniff
    cache-control: no-store
    x-request-id: mine-1
    connection: close
    content-length: 4

    fine
    ");
    assert!(
        served
            .ask("GET /health HTTP/1.1", b"")
            .await
            .contains("x-request-id: run-0")
    );
    assert!(
        served
            .ask("GET /health HTTP/1.1\r\nx-request-id: a b", b"")
            .await
            .contains("x-request-id: run-1")
    );
    served.end().await;
}

#[tokio::test]
async fn unknown_paths_and_methods_get_the_body_of_every_error() {
    let served = serve();
    insta::assert_snapshot!(served.ask("GET /nothing HTTP/1.1\r\nx-request-id: r", b"").await, @r#"
    HTTP/1.1 404 Not Found
    content-type: application/json
    x-content-type-options: nosniff
    cache-control: no-store
    x-request-id: r
    connection: close
    content-length: 81

    {"detail":"there is nothing at this path","code":"unknown_path","request_id":"r"}
    "#);
    insta::assert_snapshot!(served.ask("DELETE /health HTTP/1.1\r\nx-request-id: r", b"").await, @r#"
    HTTP/1.1 405 Method Not Allowed
    content-type: application/json
    allow: GET, HEAD
    x-content-type-options: nosniff
    cache-control: no-store
    x-request-id: r
    connection: close
    content-length: 93

    {"detail":"this path does not take this method","code":"method_not_allowed","request_id":"r"}
    "#);
    served.end().await;
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let served = serve();
    let answer = served.ask("HEAD /health HTTP/1.1", b"").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.contains("content-length: 4"),
        "{answer}"
    );
    assert!(!answer.contains("fine"));
    served.end().await;
}

#[tokio::test]
async fn a_client_that_sends_all_its_body_first_still_sees_the_early_answer() {
    let served = serve();
    let body = vec![0; 20_000_000];
    for (key, status) in [("wrong", "401"), ("key", "200")] {
        let head = format!(
            "POST /api/v1/ota/firmware HTTP/1.1\r\nx-api-key: {key}\r\ncontent-length: {}",
            body.len()
        );
        let answer = served.ask(&head, &body).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    served.end().await;
}

#[tokio::test]
async fn a_client_that_asks_first_is_answered_and_not_told_to_go_on() {
    let served = serve();
    let head =
        "POST /api/v1/ota/firmware HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 20000000";
    let answer = served.ask(head, b"").await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    served.end().await;
}

#[tokio::test]
async fn a_head_has_a_length_and_http_2_is_not_spoken() {
    let served = serve();
    let long = |bytes: usize| format!("GET /health HTTP/1.1\r\nx-long: {}", "x".repeat(bytes));
    let answer = served.ask(&long(MAX_HEAD_BYTES / 2), b"").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // No longer than what is read of it: more would be answered by a reset.
    let mut stream = served.connect().await;
    let endless = long(MAX_HEAD_BYTES);
    let (sent, _) = endless.as_bytes().split_at(MAX_HEAD_BYTES);
    stream.write_all(sent).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");

    let mut stream = served.connect().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(preface).await.unwrap();
    let mut said = Vec::new();
    // Hung up on, with or without a word; the rest that it had sent may make that a reset.
    let _ = stream.read_to_end(&mut said).await;
    assert!(!said.starts_with(b"HTTP/1.1 2"), "{said:?}");
    served.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_speak_is_hung_up_on() {
    let served = serve();
    for said in ["", "P", "GET /health HT"] {
        let mut stream = served.connect().await;
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let ended = timeout(HEAD_TIME * 3, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "after {said:?}");
    }
    served.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_speak_is_hung_up_on_sooner_when_room_is_scarce() {
    let served = serve_with(Bounds {
        connections: 4,
        of_address: 4,
    });
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut busy = served.connect().await;
        busy.write_all(b"GET /health/ready HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        held.push(busy);
    }
    let began = tokio::time::Instant::now();
    let mut last = served.connect().await;
    last.read_to_end(&mut Vec::new()).await.unwrap();
    assert!(
        began.elapsed() < HEAD_TIME / 2,
        "after {:?}",
        began.elapsed()
    );
    served.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_shutdown_ends_idle_connections_at_once_and_busy_ones_in_bounded_time() {
    let served = serve();
    let mut idle = served.connect().await;
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut status = [0; 15];
    idle.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200 OK");
    let began = tokio::time::Instant::now();
    served.shutdown.cancel();
    idle.read_to_end(&mut Vec::new()).await.unwrap();
    served.task.await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );

    let served = serve();
    let mut busy = served.connect().await;
    busy.write_all(b"GET /health/ready HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    // The connection is known to be served once one behind it is.
    served.ask("GET /health HTTP/1.1", b"").await;
    let began = tokio::time::Instant::now();
    served.end().await;
    assert!(
        began.elapsed() <= Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    busy.read_to_end(&mut Vec::new()).await.ok();
}
