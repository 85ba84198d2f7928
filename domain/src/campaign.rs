//! Campaigns: one firmware for many devices, stage by stage.
//!
//! The *spec* is immutable once started. The *state* is an enum that carries its data; its transitions consume it
//! and are the edges of the diagram in `docs/ARCHITECTURE.md`.

mod counts;
mod draft;
mod spec;
mod state;

use jiff::Timestamp;

pub use counts::{Counts, Delta, Group, Tally};
pub use draft::{
    CampaignDraft, MAX_CONCURRENT, MAX_SOAK_SECONDS, MAX_STAGES, MAX_TARGET_DEVICES,
    MAX_TARGET_GROUPS, MAX_TIMEOUT_MINUTES, SpecError, StageDraft,
};
pub use spec::{CampaignSpec, Gate, Priority, Requires, Stage, Strategy, Targets};
pub use state::{Accepted, CampaignState, Running, TransitionError};

use crate::ids::{CampaignId, FirmwareId};

/// A campaign as the store keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct Campaign {
    /// Its id.
    pub id: CampaignId,
    /// What it shall do.
    pub spec: CampaignSpec,
    /// How far it is.
    pub state: CampaignState,
    /// Devices it means: at creation an estimate, from the start on the number of rows it owns.
    pub target_count: u64,
    /// Raised by every change; a writer that read an older one is turned away.
    pub revision: i64,
    /// When it was created.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
    /// Who created it.
    pub created_by: String,
}

impl Campaign {
    /// The firmware it rolls out.
    pub fn firmware(&self) -> &FirmwareId {
        &self.spec.firmware_id
    }
}
