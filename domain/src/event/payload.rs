//! The payloads. Every event has its time in `data.timestamp` too, as the PRD shows it (E6-US1).
//!
//! What the store writes by itself when it makes or cancels many updates at a stroke has the same form; its tests
//! compare the two.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Event, EventType};
use crate::campaign::{Campaign, CampaignState};
use crate::firmware::Firmware;
use crate::ids::DeviceId;
use crate::rollback::RollbackTrigger;
use crate::update::{Action, Failure, Update, UpdateState};

/// What an approver said, in the event that tells of it.
fn comment(event_type: EventType, campaign: &Campaign) -> Option<&str> {
    match event_type {
        EventType::CampaignApproved | EventType::CampaignRejected => {
            campaign.approval.verdict()?.comment.as_deref()
        }
        _ => None,
    }
}

impl Event {
    /// Of an image's life (PRD, E6-US1).
    pub fn of_firmware(
        event_type: EventType,
        firmware: &Firmware,
        by: &str,
        at: Timestamp,
    ) -> Self {
        let metadata = &firmware.metadata;
        Self {
            event_type,
            entity: firmware.id.to_string(),
            data: json!({
                "firmware_id": firmware.id,
                "name": metadata.name,
                "version": metadata.version,
                "device_model": metadata.device_model,
                "file_size": firmware.size,
                "is_security_update": metadata.is_security_update,
                "uploaded_by": firmware.created_by,
                "by": by,
                "timestamp": at,
            }),
            at,
        }
    }

    /// Of a campaign's life, as it is now (PRD, E6-US2, E6-US3).
    pub fn of_campaign(
        event_type: EventType,
        campaign: &Campaign,
        by: &str,
        at: Timestamp,
    ) -> Self {
        let (trigger, reason) = match &campaign.state {
            CampaignState::RollingBack {
                trigger, reason, ..
            }
            | CampaignState::RolledBack {
                trigger, reason, ..
            } => (Some(trigger.name()), Some(reason.as_str())),
            CampaignState::Paused { reason, .. } => (None, Some(reason.as_str())),
            CampaignState::Cancelled { reason, .. } => (None, reason.as_deref()),
            CampaignState::Created => (None, comment(event_type, campaign)),
            _ => (None, None),
        };
        let stage = match &campaign.state {
            CampaignState::InProgress(running) | CampaignState::Paused { running, .. } => campaign
                .spec
                .stages
                .get(usize::from(running.open_stage))
                .map(|stage| stage.name.as_str()),
            _ => None,
        };
        Self {
            event_type,
            entity: campaign.id.to_string(),
            data: json!({
                "campaign_id": campaign.id,
                "name": campaign.spec.name,
                "firmware_id": campaign.spec.firmware_id,
                "status": campaign.state.status(),
                "stage": stage,
                "target_device_count": campaign.target_count,
                "trigger": trigger,
                "reason": reason,
                "by": by,
                "timestamp": at,
            }),
            at,
        }
    }

    /// An update or rollback of one device was asked for.
    pub fn asked(update: &Update, reason: Option<&str>, by: &str, at: Timestamp) -> Self {
        let event_type = match update.action {
            Action::Update => EventType::UpdateScheduled,
            Action::Rollback => EventType::RollbackInitiated,
        };
        Self {
            event_type,
            entity: update.device_id.to_string(),
            data: json!({
                "update_id": update.id,
                "device_id": update.device_id,
                "campaign_id": update.campaign,
                "from_version": update.from_version,
                "to_version": update.to_version,
                "trigger": RollbackTrigger::Manual.name(),
                "reason": reason,
                "by": by,
                "timestamp": at,
            }),
            at,
        }
    }

    /// An update or rollback has ended; `None` when it has not.
    pub fn ended(update: &Update, at: Timestamp) -> Option<Self> {
        let event_type = match (&update.state, update.action) {
            (UpdateState::Completed { .. }, Action::Update) => EventType::UpdateCompleted,
            (UpdateState::Completed { .. }, Action::Rollback) => EventType::RollbackCompleted,
            (UpdateState::Failed { .. }, Action::Update) => EventType::UpdateFailed,
            (UpdateState::Failed { .. }, Action::Rollback) => EventType::RollbackFailed,
            (UpdateState::Cancelled { .. }, Action::Update) => EventType::UpdateCancelled,
            (UpdateState::Cancelled { .. }, Action::Rollback) => EventType::RollbackCancelled,
            (
                UpdateState::Pending { .. }
                | UpdateState::InFlight { .. }
                | UpdateState::Staged { .. },
                _,
            ) => return None,
        };
        let error = match &update.state {
            UpdateState::Failed { failure, .. } => told(failure),
            UpdateState::Cancelled {
                because: Some(because),
                ..
            } => json!({ "code": because.name(), "message": because.to_string() }),
            _ => Value::Null,
        };
        Some(Self::of_update(event_type, update, &error, at))
    }

    /// An update has regressed; `None` when it has not.
    pub fn regressed(update: &Update, at: Timestamp) -> Option<Self> {
        let failure = &update.regression()?.failure;
        let event_type = EventType::UpdateRegressed;
        Some(Self::of_update(event_type, update, &told(failure), at))
    }

    fn of_update(event_type: EventType, update: &Update, error: &Value, at: Timestamp) -> Self {
        Self {
            event_type,
            entity: update.device_id.to_string(),
            data: json!({
                "update_id": update.id,
                "device_id": update.device_id,
                "campaign_id": update.campaign,
                "from_version": update.from_version,
                "to_version": update.to_version,
                "error": error,
                "timestamp": at,
            }),
            at,
        }
    }

    /// A webhook disabled itself. Its address is not told: it may hold a secret, and viewers read events.
    pub fn webhook_disabled(webhook: &str, reason: &str, at: Timestamp) -> Self {
        Self {
            event_type: EventType::WebhookDisabled,
            entity: webhook.to_owned(),
            data: json!({
                "webhook_id": webhook,
                "reason": reason,
                "timestamp": at,
            }),
            at,
        }
    }

    /// A device has been away for longer than the grace.
    pub fn offline(
        device: &DeviceId,
        last_seen: Option<Timestamp>,
        since: Timestamp,
        at: Timestamp,
    ) -> Self {
        Self {
            event_type: EventType::DeviceOffline,
            entity: device.to_string(),
            data: json!({
                "device_id": device,
                "last_seen": last_seen,
                "offline_since": since,
                "timestamp": at,
            }),
            at,
        }
    }
}

fn told(failure: &Failure) -> Value {
    json!({ "code": failure.code, "message": failure.message })
}
