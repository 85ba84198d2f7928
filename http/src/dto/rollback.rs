//! Entries of the rollback log (PRD, E4-US2; appendix 5).

use device_ota_domain::rollback::{Rollback, RollbackTrigger};
use device_ota_domain::{DeviceId, RollbackId, UpdateId};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use super::names;

/// One rollback of one device.
#[derive(Serialize, ToSchema)]
#[schema(as = Rollback)]
pub(crate) struct RollbackDto<'a> {
    rollback_id: &'a RollbackId,
    update_id: &'a UpdateId,
    /// Empty for a single device.
    campaign_id: &'a str,
    device_id: &'a DeviceId,
    trigger: RollbackTrigger,
    reason: &'a str,
    from_version: Option<&'a str>,
    to_version: &'a str,
    #[schema(schema_with = statuses)]
    status: &'static str,
    started_at: Timestamp,
    completed_at: Option<Timestamp>,
    success: bool,
    error_message: Option<&'a str>,
}

fn statuses() -> Object {
    names(["pending", "in_progress", "completed", "failed", "cancelled"])
}

impl<'a> From<&'a Rollback> for RollbackDto<'a> {
    fn from(rollback: &'a Rollback) -> Self {
        Self {
            rollback_id: &rollback.rollback_id,
            update_id: &rollback.update_id,
            campaign_id: rollback.campaign_id.as_ref().map_or("", |id| id.as_str()),
            device_id: &rollback.device_id,
            trigger: rollback.trigger,
            reason: &rollback.reason,
            from_version: rollback.from_version.as_deref(),
            to_version: &rollback.to_version,
            status: rollback.status,
            started_at: rollback.started_at,
            completed_at: rollback.completed_at,
            success: rollback.success,
            error_message: rollback.error_message.as_deref(),
        }
    }
}

impl<'a> RollbackDto<'a> {
    /// The answer to whoever has just asked for it: it is under way (PRD, E4-US2; appendix 5), though in the log it waits until its
    /// device is there to be offered it.
    pub(crate) fn begun(rollback: &'a Rollback) -> Self {
        let status = match rollback.status {
            "pending" => "in_progress",
            later => later,
        };
        Self {
            status,
            ..Self::from(rollback)
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_has_the_fields_of_the_prd() {
        let update: UpdateId = "upd_00000000000000ff".parse().unwrap();
        let rollback = Rollback {
            rollback_id: RollbackId::of(&update),
            update_id: update,
            campaign_id: None,
            device_id: "device_001".parse().unwrap(),
            trigger: RollbackTrigger::Manual,
            reason: "connectivity".to_owned(),
            from_version: Some("2.1.0".to_owned()),
            to_version: "2.0.0".to_owned(),
            status: "in_progress",
            started_at: Timestamp::from_second(1_766_053_500).unwrap(),
            completed_at: None,
            success: false,
            error_message: None,
        };
        insta::assert_snapshot!(serde_json::to_string_pretty(&RollbackDto::from(&rollback)).unwrap(), @r#"
        {
          "rollback_id": "rb_00000000000000ff",
          "update_id": "upd_00000000000000ff",
          "campaign_id": "",
          "device_id": "device_001",
          "trigger": "manual",
          "reason": "connectivity",
          "from_version": "2.1.0",
          "to_version": "2.0.0",
          "status": "in_progress",
          "started_at": "2025-12-18T10:25:00Z",
          "completed_at": null,
          "success": false,
          "error_message": null
        }
        "#);
    }
}
