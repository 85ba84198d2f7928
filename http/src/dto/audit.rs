//! Records of the audit trail as the API shows them.

use device_ota_domain::audit::{Act, Entity, Record};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use super::names;

/// Who changed what, and how they were known.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditRecord)]
pub(crate) struct AuditDto<'r> {
    /// Its place in the chain.
    number: i64,
    at: Timestamp,
    subject: &'r str,
    roles: Vec<&'r str>,
    /// `admin_key`, `api_key:<key id>`, `token`, `auth_service`, `internal_call`, `event`, `command_line` or `service`.
    authentication: &'r str,
    /// Null for what the service does by itself and for the command line.
    request_id: Option<&'r str>,
    /// The address that the request came from.
    peer: Option<&'r str>,
    #[schema(schema_with = actions)]
    action: &'r str,
    #[schema(schema_with = entities)]
    entity: &'r str,
    entity_id: &'r str,
    /// What the act changed, as it was before.
    #[schema(value_type = Option<Object>)]
    before: Option<Value>,
    /// What the act changed, as it was afterwards.
    #[schema(value_type = Option<Object>)]
    after: Option<Value>,
    /// The hash of the record before.
    prev: &'r str,
    /// SHA-256 over this record and the hash before it.
    hash: &'r str,
}

/// Names of acts.
pub(crate) fn actions() -> Object {
    names(Act::ALL.iter().map(|act| act.name()))
}

/// Names of what acts are done to.
pub(crate) fn entities() -> Object {
    names(Entity::ALL.iter().map(|entity| entity.name()))
}

impl<'r> From<&'r Record> for AuditDto<'r> {
    fn from(record: &'r Record) -> Self {
        Self {
            number: record.number,
            at: record.at(),
            subject: &record.subject,
            roles: record.roles.split_ascii_whitespace().collect(),
            authentication: &record.authentication,
            request_id: Some(record.request_id.as_str()).filter(|id| !id.is_empty()),
            peer: record.peer.as_deref(),
            action: &record.action,
            entity: &record.entity,
            entity_id: &record.entity_id,
            before: record.before.as_deref().map(state),
            after: record.after.as_deref().map(state),
            prev: &record.prev,
            hash: &record.hash,
        }
    }
}

/// A state. What was tampered with until it is no JSON is shown as it is.
fn state(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use device_ota_domain::Roles;
    use device_ota_domain::audit::{Actor, Authentication, Entry, Head};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_says_who_did_what_and_how_they_were_known() {
        let actor = Actor {
            subject: "u".into(),
            roles: Roles::ADMIN,
            authentication: Authentication::ApiKey("key_00000000000000ff".parse().unwrap()),
            request_id: "r-1".into(),
            peer: Some("::1".parse().unwrap()),
        };
        let states = (
            Some(json!({"status": "in_progress", "name": "n"})),
            Some(json!({"status": "paused", "name": "n"})),
        );
        let at = Timestamp::from_second(1_766_053_500).unwrap();
        let entry = Entry::new(&actor, at, Act::CampaignPaused, "camp_1", states);
        let record = Record::behind(&Head::default(), &entry);
        insta::assert_snapshot!(serde_json::to_string_pretty(&AuditDto::from(&record)).unwrap(), @r#"
        {
          "number": 1,
          "at": "2025-12-18T10:25:00Z",
          "subject": "u",
          "roles": [
            "admin"
          ],
          "authentication": "api_key:key_00000000000000ff",
          "request_id": "r-1",
          "peer": "::1",
          "action": "campaign.paused",
          "entity": "campaign",
          "entity_id": "camp_1",
          "before": {
            "status": "in_progress"
          },
          "after": {
            "status": "paused"
          },
          "prev": "0000000000000000000000000000000000000000000000000000000000000000",
          "hash": "b433f295006f4ba64bb1b5dc5b41cd856f80dcc226a62ed547c1b24527e4c8b6"
        }
        "#);
        let mut odd = record;
        (odd.request_id, odd.before) = (String::new(), Some("{".to_owned()));
        let shown = serde_json::to_value(AuditDto::from(&odd)).unwrap();
        assert_eq!(
            (shown.get("request_id"), shown.get("before")),
            (Some(&json!(null)), Some(&json!("{")))
        );
    }
}
