//! The database server goes away under the running service, and comes back.

use std::time::{Duration, Instant};

use device_ota_store::testing::{Durability, PrivateServer};
use serde_json::{Value, json};

use crate::harness::{Options, Service, device_json, eventually};

matrix!(health_does_not_wait_for_a_database_that_stands_still: sqlite_gateway);
matrix!(who_asks_while_the_database_is_away_is_told_to_come_back: sqlite_gateway);

/// Longest that health takes to answer: a second, and what a busy machine adds. A look at a database that is silent takes five.
const TOLD_WITHIN: Duration = Duration::from_secs(3);
const DEVICES: &str = "/api/v1/ota/devices";

async fn health_does_not_wait_for_a_database_that_stands_still(options: Options) {
    let server = PrivateServer::start(Durability::Off);
    let service = Service::start(options.with("DATABASE_URL", server.url())).await;
    let admin = service.admin();
    let ask = async |path| {
        let asked = Instant::now();
        let answer = admin.get(path).await;
        assert!(asked.elapsed() < TOLD_WITHIN, "took {:?}", asked.elapsed());
        answer
    };
    admin.get("/health/ready").await.expect(200);
    let frozen = server.freeze();
    for path in ["/health/ready", "/health/detailed"] {
        eventually("it is told that the database is away", async || {
            let answer = ask(path).await;
            (answer.status == 503)
                .then_some(())
                .ok_or(answer.body.to_string())
        })
        .await;
    }
    eventually("the figures of the process itself are there", async || {
        let figures = admin.figures().await;
        let told = figures.contains("device_ota_database_up 0");
        told.then_some(()).ok_or(figures)
    })
    .await;
    drop(frozen);
    admin.is_ready(true).await;
}

/// The harness's own database is not used: the server is the story's, which stops it.
async fn who_asks_while_the_database_is_away_is_told_to_come_back(options: Options) {
    let server = PrivateServer::start(Durability::On);
    let service = Service::start(options.with("DATABASE_URL", server.url())).await;
    let admin = service.admin();
    admin.register(&[device_json("frame-1")]).await;

    server.stop();
    admin.is_ready(false).await;
    for path in [DEVICES, "/api/v1/ota/campaigns", "/api/v1/ota/stats"] {
        let request = admin.client().get(admin.url(path));
        is_told_to_come_back(request.bearer_auth(service.key()), path).await;
    }
    let second = json!({ "devices": [device_json("frame-2")] });
    let request = admin.client().post(admin.url(DEVICES)).json(&second);
    is_told_to_come_back(request.bearer_auth(service.key()), "a registration").await;
    admin.get("/health/live").await.expect(200);

    server.start_again();
    admin.is_ready(true).await;
    admin.get(&format!("{DEVICES}/frame-1")).await.expect(200);
    admin.get(&format!("{DEVICES}/frame-2")).await.refused(404);
    admin.register(&[device_json("frame-2")]).await;
}

async fn is_told_to_come_back(request: reqwest::RequestBuilder, what: &str) {
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 503, "{what}");
    let seconds = answer.headers()["retry-after"].to_str().unwrap();
    assert!(seconds.parse::<u32>().unwrap() > 0, "{what}");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["code"], "database_unavailable", "{what}: {body}");
}
