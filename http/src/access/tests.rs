//! What opens, and what does not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use http::header::HeaderName;

use super::*;

async fn status_on(access: Access, pairs: &[(&'static str, &'static str)]) -> u16 {
    let headers = pairs
        .iter()
        .map(|(n, v)| (HeaderName::from_static(n), (*v).try_into().unwrap()))
        .collect::<HeaderMap>();
    match access.authenticate(&Method::GET, "/", &headers).await {
        Ok(_) => 200,
        Err(error) => error.render("r").status().as_u16(),
    }
}

fn access() -> Access {
    Access::admin_key(Sha256::digest(b"the-key").into())
}

async fn status(pairs: &[(&'static str, &'static str)]) -> u16 {
    status_on(access(), pairs).await
}

#[tokio::test]
async fn the_admin_key_opens_by_either_header_and_nothing_else_does() {
    assert_eq!(status(&[("x-api-key", "the-key")]).await, 200);
    assert_eq!(status(&[("authorization", "bearer the-key")]).await, 200);
    assert_eq!(status(&[]).await, 401);
    assert_eq!(status(&[("x-internal-call", "true")]).await, 401);
    assert_eq!(status(&[("x-api-key", "another")]).await, 401);
    assert_eq!(status(&[("x-api-key", "")]).await, 401);
    assert_eq!(status(&[("authorization", "Bearer a.b.c")]).await, 401);
    assert_eq!(
        status(&[("authorization", "Basic dGhlLWtleQ==")]).await,
        401
    );
    assert_eq!(status(&[("authorization", "Basic ZDpz")]).await, 401);
    assert_eq!(status(&[("authorization", "x")]).await, 401);
}

#[tokio::test]
async fn two_keys_at_once_are_refused_even_when_both_are_right() {
    assert_eq!(
        status(&[
            ("x-api-key", "the-key"),
            ("authorization", "Bearer the-key")
        ])
        .await,
        400
    );
    let mut headers = HeaderMap::new();
    headers.append("x-api-key", "the-key".try_into().unwrap());
    headers.append("x-api-key", "the-key".try_into().unwrap());
    let refused = access()
        .authenticate(&Method::GET, "/", &headers)
        .await
        .unwrap_err();
    assert_eq!(refused.render("r").status(), 400);
}

#[tokio::test]
async fn an_internal_call_is_one_on_the_internal_listener_alone() {
    let (header, host) = (("x-internal-call", "true"), ("host", "127.0.0.1:8217"));
    assert_eq!(status_on(access().internal(), &[header, host]).await, 200);
    assert_eq!(status_on(access(), &[header, host]).await, 401);
    assert_eq!(status_on(access().internal(), &[host]).await, 401);
    let no = ("x-internal-call", "no");
    assert_eq!(status_on(access().internal(), &[no, host]).await, 401);
    let key = ("x-api-key", "wrong");
    assert_eq!(
        status_on(access().internal(), &[header, host, key]).await,
        401,
        "a credential is looked at first"
    );
}

#[tokio::test]
async fn a_page_in_a_browser_makes_no_internal_call() {
    let header = ("x-internal-call", "true");
    for host in ["localhost", "LOCALHOST:8217", "127.0.0.1", "[::1]:8217"] {
        let host = ("host", host);
        assert_eq!(status_on(access().internal(), &[header, host]).await, 200);
        let page = [header, host, ("origin", "http://localhost:8217")];
        assert_eq!(status_on(access().internal(), &page).await, 401);
    }
    for name in [
        "rebound.example.com:8217",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "[::1",
        "",
    ] {
        let page = [header, ("host", name)];
        assert_eq!(status_on(access().internal(), &page).await, 401, "{name}");
    }
    assert_eq!(status_on(access().internal(), &[header]).await, 401);
}

#[test]
fn an_internal_call_reads_and_moves_devices() {
    let may = |method: Method, path: &str| internal_roles(&method, path).allow(Role::Operator);
    let of = |path: &str| may(Method::POST, &format!("/api/v1/ota/{path}"));
    assert!(of("devices/d1/update/") && of("devices/d1/rollback/"));
    assert!(of("devices/d1/update") && of("devices/d1/rollback") && of("devices/bulk/update"));
    for path in [
        "devices",
        "devices/d1/credentials",
        "devices/d1/update/x",
        "devices/d1/update//",
        "campaigns/c/rollback",
        "updates/u/cancel",
    ] {
        assert!(!of(path), "{path}");
    }
    assert!(!may(Method::GET, "/api/v1/ota/devices/d1/update"));
    let reads = internal_roles(&Method::GET, "/");
    assert!(reads.allow(Role::Viewer) && !reads.allow(Role::Admin));
}

#[test]
fn only_links_and_roots_are_open_below_the_api() {
    for open in [
        "/health",
        "/health/ready",
        "/api/v1/ota/objects/t",
        "/api/v1/ota/trust/root",
    ] {
        assert!(is_open(open), "{open}");
    }
    for closed in [
        "/api/v1/ota/firmware",
        "/api/v1/ota/objects",
        "/api/v1/ota/devices/x",
        "/api/",
    ] {
        assert!(!is_open(closed), "{closed}");
    }
}
