//! Updates: one firmware for one device, from the first offer to its end. A rollback is an update with another action.

mod aftermath;
mod arrival;
mod failure;
mod follow;
mod group;
mod order;
mod phase;
mod priority;
mod report;
mod state;
mod times;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use aftermath::{Aftermath, Look, Regression, Sight, Watch, WatchTerms};
pub use arrival::BELOW_FLOOR;
pub use failure::{Failure, Retry, back_off, put_off};
pub use group::Group;
pub use order::{Order, Owed};
pub use phase::Phase;
pub use priority::Priority;
pub use report::{Report, Reported};
pub use state::{CancelError, Expiry, OfferTerms, Outcome, RetryError, UpdateState};
pub use times::{Part, Times};

use crate::device::DeviceKey;
use crate::ids::{CampaignId, DeviceId, FirmwareId, UpdateId};

/// Forward or back.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// To the campaign's version.
    Update,
    /// To what the device ran before.
    Rollback,
}

impl Action {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Update, Self::Rollback];

    /// The action of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }

    /// The name on the wire and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Rollback => "rollback",
        }
    }
}

/// How far a device is, as it last said.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Of the phase, 0–100.
    pub percent: f64,
    /// Bytes of the image that the present attempt has downloaded, by the device's word; never more than the image has,
    /// and never less than it said before.
    pub bytes_done: u64,
    /// Bytes of the image, by the registry.
    pub bytes_total: u64,
    /// Bytes of the image that the attempts before the present one downloaded; the most that one of them did.
    pub bytes_earlier: u64,
    /// Bytes a second.
    pub speed_bps: u64,
}

impl Progress {
    /// Bytes of the image that were downloaded so far: each once, so that an attempt that goes on where the one before it
    /// stopped adds the rest alone.
    pub fn downloaded(&self) -> u64 {
        self.bytes_earlier.max(self.bytes_done)
    }
}

/// One update of one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Its id.
    pub id: UpdateId,
    /// Whose.
    pub device: DeviceKey,
    /// Whose, as the device knows itself.
    pub device_id: DeviceId,
    /// What kind of device it was when this was made.
    pub device_type: Option<String>,
    /// For which campaign; `None` for a single device.
    pub campaign: Option<CampaignId>,
    /// Forward or back.
    pub action: Action,
    /// What is offered; `None` only for a rollback whose image is not in the registry, which is born failed.
    pub firmware: Option<FirmwareId>,
    /// What the device ran when it was offered.
    pub from_version: Option<String>,
    /// What it shall run.
    pub to_version: String,
    /// Stage of the campaign.
    pub stage: u16,
    /// Before whom.
    pub priority: Priority,
    /// 0 before the first offer; strictly rises.
    pub attempt: u32,
    /// Highest `seq` seen of this attempt's reports.
    pub last_seq: u64,
    /// Retries so far.
    pub retries: u32,
    /// Retries at most.
    pub max_retries: u32,
    /// Longest that one attempt may take, in seconds.
    pub timeout_seconds: u64,
    /// Longest that parts of an attempt, and the update as a whole, may take.
    pub times: Times,
    /// What is not done by then is given up; `None`: it waits for as long as it takes, or its time has not begun.
    pub give_up_at: Option<Timestamp>,
    /// How far.
    pub progress: Progress,
    /// Where it stands.
    pub state: UpdateState,
    /// What became of it after it completed.
    pub aftermath: Aftermath,
    /// First offer.
    pub started_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Last change, or when it was last told what it has not answered. A lease that is prolonged changes nothing.
    pub updated_at: Timestamp,
}

impl Update {
    /// The group it is counted in.
    pub fn group(&self) -> Group {
        match self.state {
            UpdateState::Pending { .. } => Group::Pending,
            UpdateState::InFlight { .. } => Group::InFlight,
            UpdateState::Staged { .. } => Group::Staged,
            UpdateState::Completed { .. } => Group::Completed,
            UpdateState::Failed { .. } => Group::Failed,
            UpdateState::Cancelled { .. } => Group::Cancelled,
        }
    }

    /// `scheduled`, a phase's name, `completed`, `failed` or `cancelled` (PRD, FR-10).
    pub fn status(&self) -> &'static str {
        match &self.state {
            UpdateState::Pending { .. } => "scheduled",
            UpdateState::InFlight { phase, .. } => phase.name(),
            UpdateState::Staged { .. } => Phase::Staged.name(),
            UpdateState::Completed { .. } => "completed",
            UpdateState::Failed { .. } => "failed",
            UpdateState::Cancelled { .. } => "cancelled",
        }
    }

    /// Whether to ask the device for this firmware would be to ask it once more: it has an offer of it, or an update outside of
    /// campaigns waits. A campaign's that waits does not count, because it waits for its stage or its activation; nor does one
    /// that is being withdrawn.
    pub fn asks_for(&self, firmware: &FirmwareId) -> bool {
        let is_asked = match &self.state {
            UpdateState::Pending { .. } => self.campaign.is_none(),
            UpdateState::InFlight {
                cancel_requested, ..
            } => !cancel_requested,
            UpdateState::Staged { .. }
            | UpdateState::Completed { .. }
            | UpdateState::Failed { .. }
            | UpdateState::Cancelled { .. } => false,
        };
        is_asked && self.firmware.as_ref() == Some(firmware)
    }

    /// It has ended; terminal states never change (but for an admin's retry of a failed one).
    pub fn is_terminal(&self) -> bool {
        self.ended_at().is_some()
    }

    /// When it ended, if it has.
    pub fn ended_at(&self) -> Option<Timestamp> {
        match self.state {
            UpdateState::Completed { at }
            | UpdateState::Failed { at, .. }
            | UpdateState::Cancelled { at, .. } => Some(at),
            UpdateState::Pending { .. }
            | UpdateState::InFlight { .. }
            | UpdateState::Staged { .. } => None,
        }
    }
}
