//! The client against a real server that says what the test wants.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use device_ota_domain::{Role, Roles};
use device_ota_engine::ports::Clock;
use device_ota_engine::ports::auth::{AuthService as _, Credential, Known};
use device_ota_platform::HttpAuthService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// The time of day is nobody's business here.
struct Still;

impl Clock for Still {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }
}

/// Serves one answer, and gives back what was asked.
async fn asked(status: &str, body: &str, credential: Credential<'_>) -> (String, Outcome) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/", listener.local_addr().unwrap());
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            stream.read_buf(&mut request).await.unwrap();
        }
        // A client that has read enough may hang up.
        let _ = stream.write_all(answer.as_bytes()).await;
        String::from_utf8(request).unwrap()
    });
    let service = HttpAuthService::new(&base, Arc::new(Still)).unwrap();
    let verdict = service.verify(credential).await;
    (
        serving.await.unwrap(),
        verdict.map_err(|error| error.to_string()),
    )
}

type Outcome = Result<Option<Known>, String>;

#[tokio::test]
async fn a_token_and_a_key_are_asked_for_where_they_belong() {
    let good = r#"{"valid": true, "user_id": "u-1", "roles": ["operator", "cook", 7], "more": {}}"#;
    let known = Known {
        subject: "u-1".to_owned(),
        roles: Roles::from_iter([Role::Operator]),
    };
    let (request, verdict) = asked("200 OK", good, Credential::Token("a.b.c")).await;
    assert_eq!(verdict, Ok(Some(known.clone())));
    assert!(request.starts_with("POST /api/v1/auth/verify-token HTTP/1.1\r\n"));
    assert!(request.ends_with(r#"{"token":"a.b.c"}"#), "{request}");
    let (request, verdict) = asked("200 OK", good, Credential::ApiKey("k")).await;
    assert_eq!(verdict, Ok(Some(known)));
    assert!(request.starts_with("POST /api/v1/auth/verify-api-key HTTP/1.1\r\n"));
    assert!(request.ends_with(r#"{"api_key":"k"}"#), "{request}");
}

#[tokio::test]
async fn nobody_is_nobody_and_all_else_is_no_answer() {
    let token = Credential::Token("a.b.c");
    for (status, body) in [
        ("200 OK", r#"{"valid": false, "user_id": "u-1"}"#),
        ("401 Unauthorized", "no"),
        ("403 Forbidden", ""),
        ("400 Bad Request", "what is this?"),
        ("422 Unprocessable Entity", r#"{"detail": []}"#),
    ] {
        assert_eq!(asked(status, body, token).await.1, Ok(None), "{status}");
    }
    let long = format!(r#"{{"valid": true, "user_id": "{}"}}"#, "u".repeat(70_000));
    for (status, body) in [
        ("200 OK", r#"{"valid": true}"#),
        ("200 OK", r#"{"valid": "yes", "user_id": "u-1"}"#),
        ("200 OK", "welcome"),
        ("200 OK", &long),
        (
            "500 Internal Server Error",
            r#"{"valid": true, "user_id": "u-1"}"#,
        ),
        ("302 Found", ""),
        ("404 Not Found", "no such path"),
        ("429 Too Many Requests", ""),
    ] {
        assert!(
            asked(status, body, token).await.1.is_err(),
            "{status} {body:.40}"
        );
    }
}

#[tokio::test]
async fn somebody_without_roles_is_known_and_may_do_nothing() {
    for body in [
        r#"{"valid": true, "user_id": "u-1", "roles": null}"#,
        r#"{"valid": true, "user_id": "u-1"}"#,
    ] {
        let known = Known {
            subject: "u-1".to_owned(),
            roles: Roles::NONE,
        };
        let verdict = asked("200 OK", body, Credential::ApiKey("k")).await.1;
        assert_eq!(verdict, Ok(Some(known)), "{body}");
    }
}

#[tokio::test]
async fn a_service_that_is_away_is_no_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let service = HttpAuthService::new(&base, Arc::new(Still)).unwrap();
    let error = service.verify(Credential::ApiKey("k")).await.unwrap_err();
    assert!(!error.to_string().contains("http://"), "{error}");
}
