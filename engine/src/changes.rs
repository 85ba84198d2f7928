//! One way to write changed updates: rows, counters by one delta a kind, and events, all in the caller's transaction.

use std::collections::BTreeMap;

use device_ota_domain::Update;
use device_ota_domain::campaign::{Delta, Group};
use device_ota_domain::event::Event;
use device_ota_domain::update::{Action, UpdateState};
use jiff::Timestamp;
use serde_json::json;

use crate::ports::StoreError;
use crate::ports::store::Tx;

/// Changed updates, collected until they are written.
#[derive(Default)]
pub(crate) struct Changes {
    updates: Vec<Update>,
    deltas: BTreeMap<Delta, u64>,
    events: Vec<Event>,
}

impl Changes {
    /// Notes that an update of group `before` now is `after`.
    pub(crate) fn record(&mut self, before: Group, after: Update, now: Timestamp) {
        let to = after.group();
        if before != to {
            if let Some(campaign) = after.campaign.clone() {
                let delta = Delta {
                    campaign,
                    action: after.action,
                    stage: after.stage,
                    from: Some(before),
                    to,
                };
                *self.deltas.entry(delta).or_default() += 1;
            }
            self.events.extend(ended(&after, now));
        }
        self.updates.push(after);
    }

    /// Anything to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }

    /// A counter moves, so that a planner may have something to do.
    pub(crate) fn moves_counters(&self) -> bool {
        !self.deltas.is_empty()
    }

    /// Writes everything.
    pub(crate) async fn write(self, tx: &mut dyn Tx) -> Result<(), StoreError> {
        if self.updates.is_empty() {
            return Ok(());
        }
        tx.save_updates(&self.updates).await?;
        let deltas: Vec<_> = self.deltas.into_iter().collect();
        if !deltas.is_empty() {
            tx.add_counts(&deltas).await?;
        }
        if !self.events.is_empty() {
            tx.append_events(&self.events).await?;
        }
        Ok(())
    }
}

/// The event that an update's end is worth.
fn ended(update: &Update, now: Timestamp) -> Option<Event> {
    let event_type = match (&update.state, update.action) {
        (UpdateState::Completed { .. }, Action::Update) => "update.completed",
        (UpdateState::Completed { .. }, Action::Rollback) => "rollback.completed",
        (UpdateState::Failed { .. }, Action::Update) => "update.failed",
        (UpdateState::Failed { .. }, Action::Rollback) => "rollback.failed",
        (UpdateState::Cancelled { .. }, Action::Update) => "update.cancelled",
        (UpdateState::Cancelled { .. }, Action::Rollback) => "rollback.cancelled",
        _ => return None,
    };
    let error = match &update.state {
        UpdateState::Failed { failure, .. } => {
            json!({ "code": failure.code, "message": failure.message })
        }
        _ => serde_json::Value::Null,
    };
    Some(Event {
        event_type,
        entity: update.device_id.to_string(),
        data: json!({
            "update_id": update.id,
            "device_id": update.device_id,
            "campaign_id": update.campaign,
            "from_version": update.from_version,
            "to_version": update.to_version,
            "error": error,
            "timestamp": now,
        }),
        at: now,
    })
}
