//! Limits over HTTP: of an address, of each class of what a subject asks for; and links, which serve for an hour.

use std::num::NonZeroU32;
use std::time::Duration;

use device_ota_engine::Rate;

use super::*;
use crate::limits::is_counted;
use crate::openapi::tests::operation;

/// So many, and no more for an hour.
fn rate(count: u32) -> Rate {
    Rate {
        count: NonZeroU32::new(count).unwrap(),
        per: Duration::from_hours(1),
    }
}

fn assert_told_when(answer: &str) {
    let (_, rest) = answer.split_once("\r\nretry-after: ").expect(answer);
    let seconds: u64 = rest.split("\r\n").next().unwrap().parse().unwrap();
    assert!((1..=3_600).contains(&seconds), "{seconds}");
    assert!(answer.contains(r#""code":"rate_limited""#), "{answer}");
}

#[tokio::test]
async fn every_path_that_is_counted_refuses_an_address_that_asks_too_often() {
    let limits = RateLimits {
        per_address: Some(rate(1)),
        ..RateLimits::default()
    };
    let served = serve_within(Roles::ADMIN, limits).await;
    assert_eq!(served.ask("GET", "/metrics", KEY).await.0, 200);
    for (template, methods) in table() {
        for method in methods.iter().filter(|method| **method != Method::HEAD) {
            let path = filled(template, "none");
            let (status, answer) = served.ask(method.as_str(), &path, KEY).await;
            assert_eq!(status == 429, is_counted(template), "{method} {path}");
            let documented = &operation(method, template).responses.responses;
            assert_eq!(documented.contains_key("429"), is_counted(template));
            if status == 429 {
                assert_told_when(&answer);
            }
        }
    }
    served.end().await;
}

#[tokio::test]
async fn each_class_of_requests_has_its_own_limit() {
    let limits = RateLimits {
        read: Some(rate(1)),
        write: Some(rate(1)),
        upload: Some(rate(1)),
        stats: Some(rate(1)),
        heartbeat: Some(rate(1)),
        ..RateLimits::default()
    };
    let served = serve_within(Roles::ADMIN, limits).await;
    let device = served.device("d").await; // which was the one change
    let heartbeat = format!(
        "{}\r\ncontent-length: 33\r\n\r\n{}",
        json(&device),
        r#"{"device_id":"e","version":"1.0"}"#
    );
    for (method, path, header, status) in [
        ("GET", "/api/v1/ota/campaigns", KEY, 200),
        ("POST", "/api/v1/ota/firmware", KEY, 415),
        ("GET", "/api/v1/ota/stats", KEY, 200),
        ("POST", "/api/v1/heartbeat", &heartbeat, 403),
    ] {
        assert_eq!(served.ask(method, path, header).await.0, status, "{path}");
    }
    for (method, path, header) in [
        ("GET", "/api/v1/ota/updates", KEY),
        ("DELETE", "/api/v1/ota/keys/none", KEY),
        ("POST", "/api/v1/firmware", KEY),
        ("GET", "/api/v1/devices/status", KEY),
        ("GET", "/api/v1/ota/stats/campaigns/none", KEY),
        ("POST", "/api/v1/heartbeat", &heartbeat),
    ] {
        let (status, answer) = served.ask(method, path, header).await;
        assert_eq!(status, 429, "{method} {path}: {answer}");
        assert_told_when(&answer);
    }
    // Another subject has budgets of its own.
    let path = "/api/v1/ota/firmware/00000000000000000000000000000000/download";
    assert_eq!(served.ask("GET", path, &device).await.0, 403);
    served.end().await;
}

#[tokio::test]
async fn a_link_serves_for_an_hour_and_not_a_second_longer() {
    let served = serve().await;
    let id = served.image().await;
    let path = format!("/api/v1/ota/firmware/{id}/download");
    let (_, granted) = served.send("GET", &path, KEY, "").await;
    let granted: serde_json::Value = serde_json::from_str(&granted).unwrap();
    let expires: Timestamp = granted["expires_at"].as_str().unwrap().parse().unwrap();
    assert_eq!(expires.duration_since(served.world.now()).as_secs(), 3_600);
    let link = granted["url"].as_str().unwrap();
    let part = "range: bytes=1-2";
    for (seconds, whole, ranged) in [(0, 200, 206), (3_599, 200, 206), (3_600, 403, 403)] {
        served.world.seconds_later.store(seconds, Ordering::SeqCst);
        for (method, header, expected) in [
            ("GET", "accept: */*", whole),
            ("HEAD", "accept: */*", whole),
            // A range is asked for by GET alone.
            ("HEAD", part, whole),
            ("GET", part, ranged),
        ] {
            let (status, answer) = served.ask(method, link, header).await;
            assert_eq!(status, expected, "{method} after {seconds} s: {answer}");
        }
    }
    let (_, refused) = served.ask("GET", link, part).await;
    assert!(
        refused.contains(r#""code":"download_refused""#),
        "{refused}"
    );
    served.end().await;
}
