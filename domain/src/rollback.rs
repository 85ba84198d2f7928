//! Rollbacks: who asked, and what the log says of each.
//!
//! A rollback is carried out by an [`crate::Update`] whose action is [`crate::update::Action::Rollback`]; the log
//! adds why it was made. Its status is read from that update, never kept twice.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{CampaignId, DeviceId, RollbackId, UpdateId};

/// How often a rollback that fails is tried again at least, as one of a single device is; also where its campaign allows its updates
/// less. What it takes its device off is bad.
pub const MIN_RETRIES: u32 = 3;

/// What made a rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RollbackTrigger {
    /// The failure threshold was passed (PRD, E4-US1).
    FailureThreshold,
    /// An admin asked (PRD, E4-US2, E4-US3).
    Manual,
}

impl RollbackTrigger {
    /// The name on the wire and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FailureThreshold => "failure_threshold",
            Self::Manual => "manual",
        }
    }

    /// The trigger of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::FailureThreshold, Self::Manual]
            .into_iter()
            .find(|t| t.name() == name)
    }
}

/// An entry of the rollback log (PRD, E4-US2).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rollback {
    /// Its id.
    pub rollback_id: RollbackId,
    /// The update that carries it out.
    pub update_id: UpdateId,
    /// Whose campaign; `None` for a single device.
    pub campaign_id: Option<CampaignId>,
    /// Which device.
    pub device_id: DeviceId,
    /// What made it.
    pub trigger: RollbackTrigger,
    /// For people.
    pub reason: String,
    /// Version it leaves.
    pub from_version: Option<String>,
    /// Version it goes back to.
    pub to_version: String,
    /// `pending`, `in_progress`, `completed`, `failed` or `cancelled`, from the update's state.
    pub status: &'static str,
    /// When it was made.
    pub started_at: Timestamp,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// It ended on the old version.
    pub success: bool,
    /// What went wrong.
    pub error_message: Option<String>,
}
