//! How often and how much: limits of subjects and of guesses, bodies by their class, pages in browsers.

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::json;

use crate::harness::{Admin, Options, Service};

matrix!(each_subject_has_its_own_budget: sqlite_gateway);
matrix!(who_guesses_waits: sqlite_gateway);
matrix!(a_body_is_as_large_as_its_class_allows: sqlite_gateway);
matrix!(a_page_that_is_named_may_call_and_no_other: sqlite_gateway);

const CAMPAIGNS: &str = "/api/v1/ota/campaigns";
const KEYS: &str = "/api/v1/ota/keys";

async fn statuses(admin: &Admin, path: &str, times: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..times {
        statuses.push(admin.get(path).await.status);
    }
    statuses
}

async fn each_subject_has_its_own_budget(options: Options) {
    let options = options
        .with("RATE_LIMIT_READ", "2/hour")
        .with("RATE_LIMIT_WRITE", "1/hour");
    let service = Service::start(options).await;
    let admin = service.admin();
    let made = admin
        .post(KEYS, json!({"name": "other", "roles": ["viewer"]}))
        .await
        .expect(201);
    let other = Admin::new(&service.ready().http, made["secret"].as_str().unwrap());
    assert_eq!(statuses(&admin, CAMPAIGNS, 3).await, [200, 200, 429]);
    assert_eq!(statuses(&other, CAMPAIGNS, 3).await, [200, 200, 429]);
    admin.post(CAMPAIGNS, json!({})).await.refused(429);
    let request = admin.client().get(admin.url(CAMPAIGNS));
    let refused = request.bearer_auth(service.key()).send().await.unwrap();
    let wait: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=3_600).contains(&wait), "{wait}");
    assert_eq!(
        statuses(&admin, "/health", 9).await,
        [200; 9],
        "health is not counted"
    );
}

async fn who_guesses_waits(options: Options) {
    let service = Service::start(options.with("RATE_LIMIT_AUTH_FAILURES", "3/hour")).await;
    // Who shows no credential guesses nothing.
    let url = format!("http://{}{CAMPAIGNS}", service.ready().http);
    for _ in 0..6 {
        assert_eq!(reqwest::get(&url).await.unwrap().status(), 401);
    }
    let made = service
        .admin()
        .post(KEYS, json!({"name": "neighbour", "roles": ["viewer"]}))
        .await
        .expect(201);
    let neighbour = Admin::new(&service.ready().http, made["secret"].as_str().unwrap());
    let newcomer = json!({"name": "newcomer", "roles": ["viewer"]});
    let made_too = service.admin().post(KEYS, newcomer).await.expect(201);
    let newcomer = Admin::new(&service.ready().http, made_too["secret"].as_str().unwrap());
    neighbour.get(CAMPAIGNS).await.expect(200);
    let guesser = Admin::new(&service.ready().http, "guess");
    assert_eq!(
        statuses(&guesser, CAMPAIGNS, 6).await,
        [401, 401, 401, 401, 429, 429]
    );
    let refused = newcomer.get(CAMPAIGNS).await.refused(429);
    assert_eq!(
        refused["code"], "rate_limited",
        "not even a right guess is told"
    );
    // Whoever was known before is no guesser, for as long as their credential is good.
    assert_eq!(statuses(&neighbour, CAMPAIGNS, 2).await, [200, 200]);
    let spelt_otherwise = neighbour
        .client()
        .get(&url)
        .header("X-API-Key", made["secret"].as_str().unwrap());
    assert_eq!(spelt_otherwise.send().await.unwrap().status(), 200);
    assert_eq!(reqwest::get(&url).await.unwrap().status(), 401);
    let key = format!("{KEYS}/{}", made["key_id"].as_str().unwrap());
    service.admin().delete(&key).await.expect(200);
    assert_eq!(statuses(&neighbour, CAMPAIGNS, 2).await, [401, 429]);
}

async fn a_body_is_as_large_as_its_class_allows(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let long = "x".repeat(70_000);
    let refused = admin.post(KEYS, json!({ "name": long })).await.refused(413);
    assert_eq!(refused["code"], "body_too_large");
    let named: Vec<_> = (0..20_000).map(|n| format!("device-{n}")).collect();
    let campaign = json!({"name": "n", "firmware_id": "0".repeat(32), "target_devices": named});
    admin.post(CAMPAIGNS, campaign).await.refused(404);
    let refused = admin
        .post(KEYS, json!({"name": "n", "roles": "viewer"}))
        .await
        .refused(400);
    assert!(
        refused["detail"].as_str().unwrap().contains("roles"),
        "{refused}"
    );
}

async fn headers(request: RequestBuilder, status: u16) -> HeaderMap {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), status);
    response.headers().clone()
}

async fn a_page_that_is_named_may_call_and_no_other(options: Options) {
    let service = Service::start(options.with("CORS_ORIGINS", "https://ota.example.com")).await;
    let admin = service.admin();
    let ask = |origin: &'static str| {
        admin
            .client()
            .request(Method::OPTIONS, admin.url(CAMPAIGNS))
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
    };
    let allowed = headers(ask("https://ota.example.com"), 204).await;
    assert_eq!(
        allowed["access-control-allow-origin"],
        "https://ota.example.com"
    );
    assert_eq!(allowed["access-control-allow-methods"], "GET, HEAD, POST");
    assert_eq!(allowed["vary"], "Origin");
    let others = headers(ask("https://elsewhere.example.com"), 401).await;
    assert!(!others.contains_key("access-control-allow-origin"));
    let get = |origin: &'static str| {
        let request = admin.client().get(admin.url(CAMPAIGNS));
        request.bearer_auth(service.key()).header("Origin", origin)
    };
    let named = headers(get("https://ota.example.com"), 200).await;
    assert_eq!(
        named["access-control-allow-origin"],
        "https://ota.example.com"
    );
    assert_eq!(named["x-content-type-options"], "nosniff");
    assert_eq!(named["cache-control"], "no-store");
    let other = headers(get("https://elsewhere.example.com"), 200).await;
    assert!(!other.contains_key("access-control-allow-origin"));
}
