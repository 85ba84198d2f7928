//! The document by itself; `routes::tests` hold it to the routes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

/// Every path of the document with the methods it takes, `HEAD` included.
pub(crate) fn table() -> Vec<(&'static str, Vec<Method>)> {
    let paths = DOCUMENT.paths.paths.iter();
    paths
        .map(|(path, item)| {
            let methods = operations(item).into_iter().map(|(method, _)| method);
            (path.as_str(), Served::new(methods.collect()).methods)
        })
        .collect()
}

/// What the document says of an operation; of `HEAD` what it says of `GET`.
pub(crate) fn operation(method: &Method, path: &str) -> &'static Operation {
    let method = if method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    let item = DOCUMENT.paths.paths.get(path).unwrap();
    let mut operations = operations(item).into_iter();
    operations.find(|(known, _)| known == method).unwrap().1
}

#[test]
fn a_path_knows_its_methods() {
    let allow = |path| served(path).map(|found| found.allow().to_str().unwrap().to_owned());
    assert_eq!(allow("/api/v1/ota/firmware").unwrap(), "GET, HEAD, POST");
    assert_eq!(allow("/api/v1/ota/devices/bulk/update").unwrap(), "POST");
    assert_eq!(allow("/health/").unwrap(), "GET, HEAD");
    assert_eq!(allow("/api/v1/ota/updates/upd_1/retry/more"), None);
    assert_eq!(allow("/"), None);
}

#[test]
fn what_is_healthy_is_told_apart_by_name() {
    // Two schemas of one name: the later takes the place of the other, and nobody is told.
    let document = serde_json::to_value(&*DOCUMENT).unwrap();
    let has = |schema: &str, field: &str| {
        let path = format!("/components/schemas/{schema}/properties/{field}");
        document.pointer(&path).is_some()
    };
    assert!(has("Health", "status"));
    assert!(has("CampaignHealth", "watch_seconds"));
}

#[test]
fn every_operation_has_a_name_of_its_own_a_chapter_and_a_summary() {
    let mut names = BTreeSet::new();
    for (path, item) in &DOCUMENT.paths.paths {
        for (method, operation) in operations(item) {
            let name = operation.operation_id.clone().unwrap();
            assert!(names.insert(name.clone()), "{name} names two operations");
            let tag = operation.tags.iter().flatten().next();
            let known = TAGS
                .iter()
                .any(|(known, _)| tag.is_some_and(|tag| tag == known));
            assert!(known, "{method} {path}: {tag:?} is not among the chapters");
            let summary = operation.summary.as_deref().unwrap_or_default();
            assert!(
                !summary.is_empty() && !summary.ends_with('.'),
                "{method} {path}: {summary:?}"
            );
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = serde_json::to_value(&*DOCUMENT).unwrap();
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 100);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(
            document.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
}

fn collect(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                into.push(reference.clone());
            }
            fields.values().for_each(|value| collect(value, into));
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, into)),
        _ => {}
    }
}

#[test]
fn the_document_says_what_is_asked_for_and_what_is_refused() {
    let operation = DOCUMENT
        .paths
        .get_path_operation(
            "/api/v1/ota/updates/{update_id}/cancel",
            utoipa::openapi::HttpMethod::Post,
        )
        .unwrap();
    let statuses: Vec<&str> = operation
        .responses
        .responses
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        statuses,
        [
            "200", "400", "401", "403", "404", "408", "409", "413", "415", "429", "500", "503"
        ]
    );
    assert_eq!(operation.operation_id.as_deref(), Some("updates_cancel"));
    assert_eq!(operation.security.as_ref().unwrap().len(), 2);
    assert_eq!(operation.parameters.as_ref().unwrap().len(), 1);
}

#[test]
fn every_operation_is_listed_here() {
    let list: Vec<String> = table()
        .into_iter()
        .map(|(path, methods)| {
            let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
            format!("{path} {}", names.join(", "))
        })
        .collect();
    insta::assert_snapshot!(list.join("\n"), @r"
    /api/v1/ota/firmware GET, HEAD, POST
    /api/v1/ota/firmware/{firmware_id} GET, HEAD, PUT, DELETE
    /api/v1/ota/firmware/{firmware_id}/download GET, HEAD
    /api/v1/ota/firmware/{firmware_id}/deploy POST
    /api/v1/ota/objects/{token} GET, HEAD
    /api/v1/ota/campaigns GET, HEAD, POST
    /api/v1/ota/campaigns/{campaign_id} GET, HEAD, PUT, DELETE
    /api/v1/ota/campaigns/{campaign_id}/start POST
    /api/v1/ota/campaigns/{campaign_id}/pause POST
    /api/v1/ota/campaigns/{campaign_id}/resume POST
    /api/v1/ota/campaigns/{campaign_id}/cancel POST
    /api/v1/ota/campaigns/{campaign_id}/rollback POST
    /api/v1/ota/campaigns/{campaign_id}/devices GET, HEAD
    /api/v1/ota/campaigns/{campaign_id}/rollbacks GET, HEAD
    /api/v1/ota/campaigns/dry-run POST
    /api/v1/ota/campaigns/{campaign_id}/targets GET, HEAD
    /api/v1/ota/campaigns/{campaign_id}/devices/{device_id}/why GET, HEAD
    /api/v1/ota/campaigns/{campaign_id}/approve POST
    /api/v1/ota/campaigns/{campaign_id}/reject POST
    /api/v1/ota/campaigns/{campaign_id}/advance POST
    /api/v1/rings GET, HEAD, PUT
    /api/v1/ota/devices GET, HEAD, POST
    /api/v1/ota/devices/bulk/update POST
    /api/v1/ota/devices/{device_id} GET, HEAD, PUT, DELETE
    /api/v1/ota/devices/{device_id}/credentials POST
    /api/v1/ota/devices/{device_id}/update POST
    /api/v1/ota/devices/{device_id}/rollback POST
    /api/v1/ota/devices/bulk/rollback POST
    /api/v1/ota/devices/{device_id}/updates GET, HEAD
    /api/v1/heartbeat POST
    /api/v1/heartbeat/{device_id} GET, HEAD
    /api/v1/devices/status GET, HEAD
    /api/v1/ota/updates GET, HEAD
    /api/v1/ota/updates/{update_id} GET, HEAD
    /api/v1/ota/updates/{update_id}/cancel POST
    /api/v1/ota/updates/{update_id}/retry POST
    /api/v1/ota/rollbacks GET, HEAD
    /api/v1/ota/permits GET, HEAD, POST
    /api/v1/ota/events GET, HEAD
    /api/v1/ota/webhooks GET, HEAD, POST
    /api/v1/ota/webhooks/{webhook_id} GET, HEAD, PUT, DELETE
    /api/v1/ota/webhooks/{webhook_id}/dead-letters GET, HEAD
    /api/v1/ota/webhooks/{webhook_id}/dead-letters/{number}/retry POST
    /api/v1/ota/webhooks/{webhook_id}/dead-letters/{number} DELETE
    /api/v1/ota/stats GET, HEAD
    /api/v1/ota/stats/campaigns/{campaign_id} GET, HEAD
    /api/v1/ota/keys GET, HEAD, POST
    /api/v1/ota/keys/{key_id} DELETE
    /api/v1/ota/audit GET, HEAD
    /api/v1/ota/trust/root GET, HEAD
    /api/v1/ota/trust/roots/{version} GET, HEAD
    /health GET, HEAD
    /health/live GET, HEAD
    /health/ready GET, HEAD
    /health/detailed GET, HEAD
    /metrics GET, HEAD
    /openapi.json GET, HEAD
    /docs GET, HEAD
    /api/v1/firmware GET, HEAD, POST
    /api/v1/firmware/{firmware_id} GET, HEAD, PUT, DELETE
    /api/v1/firmware/{firmware_id}/download GET, HEAD
    /api/v1/firmware/{firmware_id}/deploy POST
    ");
}
