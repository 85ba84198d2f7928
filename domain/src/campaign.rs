//! Campaigns: one firmware for many devices, stage by stage.
//!
//! The *spec* is immutable once started. The *state* is an enum that carries its data; its transitions consume it
//! and are the edges of the diagram in `docs/ARCHITECTURE.md`.

mod abort;
mod approval;
mod counts;
mod draft;
mod error;
mod health;
mod named;
mod rate;
mod redraft;
mod spec;
mod stages;
mod state;
mod timeouts;
mod vitals;
mod window;

use jiff::Timestamp;

pub use abort::{Abort, AbortAction, AbortOn, FailureKind, Failures, MAX_ABORTS};
pub use approval::{Approval, ApprovalError, MAX_COMMENT_BYTES, Verdict};
pub(crate) use counts::percent;
pub use counts::{Counts, Delta, Tally};
pub use draft::{CampaignDraft, MAX_CONCURRENT, MAX_TARGET_GROUPS};
pub use error::SpecError;
pub use health::{
    DEFAULT_MAX_RESTARTS, DEFAULT_WATCH_SECONDS, Health, MAX_RESTARTS, MAX_WATCH_SECONDS,
};
pub use named::Named;
pub use rate::{Every, Growth, MAX_FACTOR, MAX_PER_MINUTE, Rate, RateDraft};
pub use spec::{
    CampaignSpec, Gate, MAX_TARGET_DEVICES, OnEnd, Period, Requires, Schedule, Stage, Strategy,
    Takes, Targets,
};
pub use stages::{GateDraft, MAX_SOAK_SECONDS, MAX_STAGE_COUNT, MAX_STAGES, StageDraft};
pub use state::{Accepted, CampaignState, Running, TransitionError};
pub use timeouts::{MAX_GIVE_UP_HOURS, MAX_TIMEOUT_MINUTES, TimeoutsDraft};
pub use vitals::{
    Beat, Compare, Criterion, Increase, MAX_CRITERIA, Metric, NotAMetric, Reading, SAMPLE, Sides,
    read as read_vitals,
};
pub use window::{Day, MAX_WINDOW_MINUTES, MAX_WINDOWS, OpenFor, TIME_ZONE_TAG, Window, Windows};

pub use crate::update::{Group, Priority};

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
    /// Whether somebody else has agreed to it.
    pub approval: Approval,
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
    /// When the next offer is due, by its rate; `None` before the first.
    pub next_offer_at: Option<Timestamp>,
    /// What the criteria of its health have found, when they were last read.
    pub readings: Vec<Reading>,
    /// When it was deleted; kept for the record, and left out of lists (PRD, FR-20).
    pub deleted_at: Option<Timestamp>,
}

/// Why a campaign does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Its state does not have that transition.
    #[error(transparent)]
    State(#[from] TransitionError),
    /// It needs an approval first.
    #[error(transparent)]
    Approval(#[from] ApprovalError),
    /// Its time is over.
    #[error("the campaign's schedule has ended; give it another end_at, then start it")]
    Over,
}

impl Campaign {
    /// Admin: begin, with the approval that it asks for. Offers go out when its schedule opens.
    pub fn start(self, now: Timestamp) -> Result<Self, StartError> {
        let opens = match self.spec.schedule.period(now) {
            Period::Before(start) => start,
            Period::Open => now,
            Period::Over(_) => return Err(StartError::Over),
        };
        let state = self.state.start(now, opens)?;
        self.approval.permits()?;
        Ok(Self { state, ..self })
    }

    /// Admin: let it do something else. Only before its start; voids every verdict on it.
    pub fn edit(
        self,
        spec: CampaignSpec,
        requires_approval: bool,
        by: &str,
    ) -> Result<Self, TransitionError> {
        if self.state != CampaignState::Created {
            return Err(self.state.refuse("changed", "; create another one"));
        }
        let approval = self.approval.void(requires_approval, &self.created_by, by);
        Ok(Self {
            spec,
            approval,
            ..self
        })
    }

    /// Admin: leave it out of lists. Only when it does nothing any more, or has not begun to.
    pub fn delete(self, now: Timestamp) -> Result<Self, TransitionError> {
        if self.state.is_active() {
            return Err(self.state.refuse("deleted", "; cancel it first"));
        }
        Ok(Self {
            deleted_at: Some(now),
            ..self
        })
    }

    /// Whether it takes in devices that it comes to mean by now, and lets go of those that it no longer means.
    pub fn follows_its_fleet(&self, now: Timestamp) -> bool {
        let runs = matches!(
            self.state,
            CampaignState::InProgress(_) | CampaignState::Paused { .. }
        );
        let over = matches!(self.spec.schedule.period(now), Period::Over(_));
        self.spec.continuous && runs && !over
    }

    /// The firmware it rolls out.
    pub fn firmware(&self) -> &FirmwareId {
        &self.spec.firmware_id
    }
}
