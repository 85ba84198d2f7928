//! How far a campaign is, and the only ways on from there.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::rollback::RollbackTrigger;

/// A campaign that has started and not ended: which stages are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// When it started.
    pub started_at: Timestamp,
    /// Highest open stage; all stages up to it are open.
    pub open_stage: u16,
    /// When that stage opened; soak counts from here.
    pub stage_opened_at: Timestamp,
}

/// The state. The serde form (`{"status": …, …}`) is what the store keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum CampaignState {
    /// Not started.
    Created,
    /// Offers go out.
    InProgress(Running),
    /// No new offers; what is in flight may end.
    Paused {
        /// As it was.
        #[serde(flatten)]
        running: Running,
        /// Since when.
        paused_at: Timestamp,
        /// Who or what paused it.
        reason: String,
    },
    /// What completed is being taken back.
    RollingBack {
        /// Since when.
        rollback_started_at: Timestamp,
        /// By whom or what.
        trigger: RollbackTrigger,
        /// For people.
        reason: String,
    },
    /// Every rollback has ended.
    RolledBack {
        /// When the last one ended.
        ended_at: Timestamp,
        /// By whom or what.
        trigger: RollbackTrigger,
        /// For people.
        reason: String,
    },
    /// Every device has ended.
    Completed {
        /// When the last one ended.
        ended_at: Timestamp,
    },
    /// Stopped by an admin.
    Cancelled {
        /// When.
        ended_at: Timestamp,
    },
}

/// A transition that the state does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a campaign that is {from} cannot be {verb}{hint}")]
pub struct TransitionError {
    /// Status it is in.
    pub from: &'static str,
    /// What was asked, as a participle.
    pub verb: &'static str,
    /// What to do instead, or empty.
    pub hint: &'static str,
}

type Transition = Result<CampaignState, TransitionError>;

impl CampaignState {
    /// The status as the API shows it.
    pub const fn status(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::InProgress(_) => "in_progress",
            Self::Paused { .. } => "paused",
            Self::RollingBack { .. } => "rolling_back",
            Self::RolledBack { .. } => "rolled_back",
            Self::Completed { .. } => "completed",
            Self::Cancelled { .. } => "cancelled",
        }
    }

    /// All statuses, for filters.
    pub const STATUSES: [&'static str; 7] = [
        "created",
        "in_progress",
        "paused",
        "rolling_back",
        "rolled_back",
        "completed",
        "cancelled",
    ];

    /// The planner still has something to do with it.
    pub const fn is_active(&self) -> bool {
        matches!(
            self,
            Self::InProgress(_) | Self::Paused { .. } | Self::RollingBack { .. }
        )
    }

    /// Admin: begin.
    pub fn start(self, now: Timestamp) -> Transition {
        match self {
            Self::Created => Ok(Self::InProgress(Running {
                started_at: now,
                open_stage: 0,
                stage_opened_at: now,
            })),
            other => Err(other.refuse("started", "")),
        }
    }

    /// Admin, or the planner when a gate or threshold says so.
    pub fn pause(self, now: Timestamp, reason: impl Into<String>) -> Transition {
        match self {
            Self::InProgress(running) => Ok(Self::Paused {
                running,
                paused_at: now,
                reason: reason.into(),
            }),
            other => Err(other.refuse("paused", "")),
        }
    }

    /// Admin: go on where it paused.
    pub fn resume(self) -> Transition {
        match self {
            Self::Paused { running, .. } => Ok(Self::InProgress(running)),
            other => Err(other.refuse("resumed", "; only a paused one can")),
        }
    }

    /// Admin: stop for good.
    pub fn cancel(self, now: Timestamp) -> Transition {
        match self {
            Self::Created | Self::InProgress(_) | Self::Paused { .. } => {
                Ok(Self::Cancelled { ended_at: now })
            }
            other => Err(other.refuse("cancelled", "")),
        }
    }

    /// The planner: the next stage's gate has passed.
    pub fn open_stage(self, stage: u16, now: Timestamp) -> Transition {
        match self {
            Self::InProgress(running) if running.open_stage.checked_add(1) == Some(stage) => {
                Ok(Self::InProgress(Running {
                    open_stage: stage,
                    stage_opened_at: now,
                    ..running
                }))
            }
            other => Err(other.refuse("opened further", "")),
        }
    }

    /// The planner (threshold), or an admin: take back what completed.
    pub fn roll_back(
        self,
        now: Timestamp,
        trigger: RollbackTrigger,
        reason: impl Into<String>,
    ) -> Transition {
        match self {
            Self::InProgress(_)
            | Self::Paused { .. }
            | Self::Completed { .. }
            | Self::RolledBack { .. }
            | Self::Cancelled { .. } => Ok(Self::RollingBack {
                rollback_started_at: now,
                trigger,
                reason: reason.into(),
            }),
            other => Err(other.refuse("rolled back", "")),
        }
    }

    /// The planner: every update and rollback has ended.
    pub fn finish(self, now: Timestamp) -> Transition {
        match self {
            Self::InProgress(_) => Ok(Self::Completed { ended_at: now }),
            Self::RollingBack {
                trigger, reason, ..
            } => Ok(Self::RolledBack {
                ended_at: now,
                trigger,
                reason,
            }),
            other => Err(other.refuse("finished", "")),
        }
    }

    fn refuse(&self, verb: &'static str, hint: &'static str) -> TransitionError {
        TransitionError {
            from: self.status(),
            verb,
            hint,
        }
    }
}
