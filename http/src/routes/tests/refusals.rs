//! What every operation of the document refuses: parameters and bodies that are not of its form, ids of nothing, bodies that
//! are too large or of another type.

use super::*;
use crate::openapi::tests::operation;

const FIRMWARE: &str = "00000000000000000000000000000000";
const HEARTBEAT: &str = "/api/v1/heartbeat";

/// The path with ids that are of their form and name nothing.
fn unknown(template: &str) -> String {
    let levels = template.split('/').map(|level| match level {
        "{firmware_id}" => FIRMWARE,
        "{campaign_id}" => "camp_0000000000000000",
        "{update_id}" => "upd_0000000000000000",
        "{webhook_id}" => "wh_0000000000000000",
        "{key_id}" => "key_0000000000000000",
        "{device_id}" => "nobody",
        "{number}" | "{version}" => "77",
        "{token}" => "none",
        _ => {
            assert!(!level.starts_with('{'), "{level} of {template} is new here");
            level
        }
    });
    levels.collect::<Vec<_>>().join("/")
}

/// A body that is of the operation's form; none where none is wanted.
fn body_of(method: &Method, template: &str) -> String {
    let last = template.rsplit('/').next().unwrap();
    let firmware = format!(r#""firmware_id":"{FIRMWARE}""#);
    match (method.as_str(), last) {
        ("POST", "update") if template.contains("/bulk/") => {
            format!(r#"{{"device_ids":["nobody"],{firmware}}}"#)
        }
        ("POST", "update") => format!("{{{firmware}}}"),
        ("POST", "rollback") if template.contains("/devices/") => {
            r#"{"to_version":"1.0.0"}"#.to_owned()
        }
        ("POST", "deploy") => r#"{"ring":"canary"}"#.to_owned(),
        ("PUT", "{campaign_id}") | ("POST", "campaigns" | "dry-run") => {
            format!(r#"{{"name":"n",{firmware}}}"#)
        }
        ("POST", "permits") => r#"{"payloadType":"none","payload":"","signatures":[]}"#.to_owned(),
        ("PUT", "{webhook_id}") => r#"{"url":"https://hooks.example.com/ota"}"#.to_owned(),
        ("PUT", _) => "{}".to_owned(),
        _ => String::new(),
    }
}

/// All operations but `HEAD`, each with its path.
fn each() -> impl Iterator<Item = (Method, &'static str)> {
    table().into_iter().flat_map(|(template, methods)| {
        let methods = methods.into_iter().filter(|method| method != Method::HEAD);
        methods.map(move |method| (method, template))
    })
}

/// All that read a body, as an admin sends it, but for uploads and heartbeats.
fn each_of_json() -> impl Iterator<Item = (Method, &'static str)> {
    each().filter(|(method, template)| {
        let upload = method == Method::POST && template.ends_with("/firmware");
        method != Method::GET && !upload && *template != HEARTBEAT
    })
}

/// That it was refused with this status, as the document says it may be, in the form of all errors.
fn assert_refused(
    (status, body): &(u16, String),
    expected: u16,
    method: &Method,
    template: &str,
) -> serde_json::Value {
    assert_eq!(*status, expected, "{method} {template}: {body}");
    let documented = &operation(method, template).responses.responses;
    assert!(
        documented.contains_key(&expected.to_string()),
        "{method} {template}: {expected} is not documented"
    );
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    for field in ["detail", "code", "request_id"] {
        assert!(body[field].is_string(), "{method} {template}: {body}");
    }
    body
}

#[tokio::test]
async fn a_parameter_that_is_not_known_is_named_on_every_path() {
    let served = serve().await;
    let device = served.device("d").await;
    for (method, template) in each() {
        let path = format!("{}?nonsense=1", unknown(template));
        let who = if template == HEARTBEAT { &device } else { KEY };
        let body = body_of(&method, template);
        let answer = served.send(method.as_str(), &path, &json(who), &body).await;
        if template.contains("/objects/") || template.starts_with("/health") {
            // A link is all that is looked at; and whoever probes may add what they like.
            assert_ne!(answer.0, 400, "{template}");
            continue;
        }
        let refused = assert_refused(&answer, 400, &method, template);
        assert_eq!(refused["code"], "invalid_query", "{method} {template}");
        assert_eq!(
            refused["detail"], "\"nonsense\" is not a query parameter of this path",
            "{method} {template}"
        );
    }
    served.end().await;
}

#[tokio::test]
async fn every_parameter_of_every_path_is_refused_when_it_is_not_of_its_form() {
    let served = serve().await;
    let mut asked = 0;
    for (method, template) in each() {
        let parameters = operation(&method, template).parameters.iter().flatten();
        let parameters = parameters.filter_map(|parameter| match parameter {
            utoipa::openapi::RefOr::T(parameter) => Some(parameter),
            utoipa::openapi::RefOr::Ref(_) => None,
        });
        for parameter in
            parameters.filter(|p| p.parameter_in == utoipa::openapi::path::ParameterIn::Query)
        {
            let name = &parameter.name;
            let body = body_of(&method, template);
            // No text that is taken anywhere holds a control character.
            let path = format!("{}?{name}=%00", unknown(template));
            let answer = served.send(method.as_str(), &path, &json(KEY), &body).await;
            let refused = assert_refused(&answer, 400, &method, template);
            assert_eq!(refused["code"], "invalid_query", "{method} {path}");
            let detail = refused["detail"].as_str().unwrap();
            assert!(detail.contains(name.as_str()), "{method} {path}: {detail}");
            asked += 1;
        }
    }
    assert!(asked > 60, "{asked} parameters are documented");
    served.end().await;
}

#[tokio::test]
async fn an_id_of_nothing_is_not_found_on_every_path() {
    let served = serve().await;
    for (method, template) in each().filter(|(_, template)| template.contains('{')) {
        let body = body_of(&method, template);
        let answer = served
            .send(method.as_str(), &unknown(template), &json(KEY), &body)
            .await;
        let expected = if template.contains("/objects/") {
            403
        } else {
            404
        };
        assert_refused(&answer, expected, &method, template);
    }
    served.end().await;
}

#[tokio::test]
async fn a_body_that_is_not_of_its_form_is_told_why_on_every_path() {
    let served = serve().await;
    // What changes one thing reads it first.
    served.device("nobody").await;
    let image = served.image().await;
    for (method, template) in each_of_json() {
        let path = unknown(template).replace(FIRMWARE, &image);
        let nonsense = match body_of(&method, template).strip_prefix('{') {
            None | Some("}") => r#"{"nonsense":1}"#.to_owned(),
            Some(fields) => format!(r#"{{"nonsense":1,{fields}"#),
        };
        for (body, told) in [(nonsense.as_str(), "nonsense"), ("{", "not valid JSON")] {
            let answer = served.send(method.as_str(), &path, &json(KEY), body).await;
            let refused = assert_refused(&answer, 400, &method, template);
            let detail = refused["detail"].as_str().unwrap();
            assert!(detail.contains(told), "{method} {template}: {detail}");
        }
    }
    served.end().await;
}

#[tokio::test]
async fn a_body_of_another_type_or_over_its_limit_is_refused_on_every_path() {
    let served = serve().await;
    let device = served.device("d").await;
    let heartbeat = (Method::POST, HEARTBEAT);
    for (method, template) in each_of_json().chain([heartbeat]) {
        let who = if template == HEARTBEAT { &device } else { KEY };
        let path = unknown(template);
        let text = format!("{who}\r\ncontent-type: text/plain");
        let answer = served.send(method.as_str(), &path, &text, "hello").await;
        let refused = assert_refused(&answer, 415, &method, template);
        assert_eq!(refused["code"], "unsupported_media_type");

        // The client asks first whether to send it at all.
        let large = format!(
            "{}\r\nexpect: 100-continue\r\ncontent-length: 1000000000",
            json(who)
        );
        let (status, answer) = served.ask(method.as_str(), &path, &large).await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let refused = assert_refused(&(status, body.to_owned()), 413, &method, template);
        assert_eq!(refused["code"], "body_too_large");
    }
    served.end().await;
}

#[tokio::test]
async fn an_upload_that_is_not_one_is_refused_under_both_its_paths() {
    let served = serve().await;
    let image = |length: u64| {
        format!(
            "{KEY}\r\ncontent-type: multipart/form-data; boundary=X\r\nexpect: 100-continue\r\n\
             content-length: {length}"
        )
    };
    let most = device_ota_domain::firmware::MAX_IMAGE_BYTES;
    for template in ["/api/v1/ota/firmware", "/api/v1/firmware"] {
        let answer = served.send("POST", template, &json(KEY), "{}").await;
        assert_refused(&answer, 415, &Method::POST, template);
        let form = format!("{KEY}\r\ncontent-type: multipart/form-data; boundary=X");
        let answer = served.send("POST", template, &form, "--X--\r\n").await;
        let refused = assert_refused(&answer, 400, &Method::POST, template);
        assert_eq!(refused["detail"], "the part file is missing");
        // Twice the image is more than any form around it; it is told before a byte is sent (PRD, HTTP Status Codes: 400).
        let (status, answer) = served.ask("POST", template, &image(2 * most)).await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let answer = (status, body.to_owned());
        let refused = assert_refused(&answer, 400, &Method::POST, template);
        assert_eq!(refused["code"], "image_too_large");
    }
    served.end().await;
}

#[tokio::test]
async fn words_for_people_are_bounded() {
    let served = serve().await;
    let campaign = "/api/v1/ota/campaigns/camp_0000000000000000";
    let device = "/api/v1/ota/devices/nobody";
    for (path, before, field, code) in [
        (
            format!("{campaign}/rollback"),
            "",
            "reason",
            "invalid_reason",
        ),
        (
            format!("{device}/rollback"),
            r#""to_version":"1.0.0","#,
            "reason",
            "invalid_reason",
        ),
        (
            format!("{campaign}/approve"),
            "",
            "comment",
            "invalid_comment",
        ),
        (
            format!("{campaign}/reject"),
            "",
            "comment",
            "invalid_comment",
        ),
    ] {
        let said = async |text: &str| {
            let body = format!(r#"{{{before}"{field}":"{text}"}}"#);
            let (status, answer) = served.send("POST", &path, &json(KEY), &body).await;
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
            (status, answer["code"].as_str().unwrap().to_owned())
        };
        // What is within the bound gets as far as the id, which names nothing.
        assert_eq!(said(&"x".repeat(1_024)).await.0, 404, "{path}");
        let refused = (400, code.to_owned());
        assert_eq!(said(&"x".repeat(1_025)).await, refused, "{path}");
    }
    served.end().await;
}
