//! How far a campaign is, and the only ways on from there.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Counts;
use super::abort::{FailureKind, Failures};
use crate::rollback::RollbackTrigger;

/// A campaign that has started and not ended: which stages are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// When it started.
    pub started_at: Timestamp,
    /// Highest open stage; all stages up to it are open.
    pub open_stage: u16,
    /// When that stage opened.
    pub stage_opened_at: Timestamp,
    /// Since when it has shown what its gate asks for; its soak counts from here. Moved on by the time in which it was paused.
    #[serde(default)]
    pub soak_since: Option<Timestamp>,
    /// What an admin has accepted by resuming it.
    #[serde(default)]
    pub accepted: Accepted,
    /// It goes no further than this stage before an admin promotes it; `None`: as far as the gates let it.
    #[serde(default)]
    pub up_to_stage: Option<u16>,
}

impl Running {
    /// The stage after the open one may open, as far as admins are concerned.
    pub fn may_go_on(&self) -> bool {
        self.up_to_stage.is_none_or(|limit| self.open_stage < limit)
    }
}

/// What a resume accepts, and the stage in which devices flip: the results so far, whatever they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Accepted {
    /// Completed updates by then; the threshold looks at those since.
    pub completed: u64,
    /// Failed updates by then; likewise.
    pub failed: u64,
    /// How many of those had been rejected, and had taken too long.
    #[serde(default)]
    pub rejected: u64,
    /// Likewise.
    #[serde(default)]
    pub timed_out: u64,
    /// The stage that had ended by then: it need not have had successes enough for the next one to open.
    pub stage: Option<u16>,
    /// When; `None` where nothing was accepted, or the time was not kept.
    #[serde(default)]
    pub at: Option<Timestamp>,
}

impl Accepted {
    /// All that there is by now, and no stage.
    fn all(counts: &Counts, now: Timestamp) -> Self {
        let all = counts.updates().judged();
        Self {
            completed: all.completed,
            failed: all.failed,
            rejected: counts.failures.rejected,
            timed_out: counts.failures.timed_out,
            stage: None,
            at: Some(now),
        }
    }

    /// Results by then.
    pub(crate) fn settled(&self) -> u64 {
        self.completed.saturating_add(self.failed)
    }

    /// Failures by then.
    pub(crate) fn failures(&self) -> Failures {
        let others = self.rejected.saturating_add(self.timed_out);
        Failures {
            failed: self.failed.saturating_sub(others),
            rejected: self.rejected,
            timed_out: self.timed_out,
        }
    }
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
        /// When the campaign started; `None` where it was not kept.
        #[serde(default)]
        started_at: Option<Timestamp>,
        /// Since when.
        rollback_started_at: Timestamp,
        /// By whom or what.
        trigger: RollbackTrigger,
        /// For people.
        reason: String,
    },
    /// Every rollback has ended.
    RolledBack {
        /// When the campaign started; `None` where it was not kept.
        #[serde(default)]
        started_at: Option<Timestamp>,
        /// When the last one ended.
        ended_at: Timestamp,
        /// By whom or what.
        trigger: RollbackTrigger,
        /// For people.
        reason: String,
    },
    /// Every device has ended.
    Completed {
        /// When the campaign started; `None` where it was not kept.
        #[serde(default)]
        started_at: Option<Timestamp>,
        /// When the last one ended.
        ended_at: Timestamp,
        /// What an admin had accepted by then: what regresses later is judged as before.
        #[serde(default)]
        accepted: Accepted,
    },
    /// Stopped by an admin, by its schedule or by a criterion.
    Cancelled {
        /// When the campaign started; `None` when it never did, or where it was not kept.
        #[serde(default)]
        started_at: Option<Timestamp>,
        /// When.
        ended_at: Timestamp,
        /// The criterion that stopped it; `None` when it was none.
        #[serde(default)]
        reason: Option<String>,
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

    /// When the campaign started, whatever became of it.
    pub const fn started_at(&self) -> Option<Timestamp> {
        match self {
            Self::Created => None,
            Self::InProgress(running) | Self::Paused { running, .. } => Some(running.started_at),
            Self::RollingBack { started_at, .. }
            | Self::RolledBack { started_at, .. }
            | Self::Completed { started_at, .. }
            | Self::Cancelled { started_at, .. } => *started_at,
        }
    }

    /// Admin: begin; the first stage opens at `opens`, which may be later.
    pub fn start(self, now: Timestamp, opens: Timestamp) -> Transition {
        match self {
            Self::Created => Ok(Self::InProgress(Running {
                started_at: now,
                open_stage: 0,
                stage_opened_at: opens,
                soak_since: None,
                accepted: Accepted::default(),
                up_to_stage: None,
            })),
            other => Err(other.refuse("started", "")),
        }
    }

    /// Admin: go as far as this stage, gate by gate, and no further. Never back.
    pub fn promote(self, stage: u16) -> Transition {
        match self {
            Self::InProgress(running) if running.open_stage <= stage => {
                Ok(Self::InProgress(Running {
                    up_to_stage: Some(stage),
                    ..running
                }))
            }
            Self::InProgress(_) => Err(self.refuse("taken back to an earlier ring", "")),
            other => Err(other.refuse("promoted", "; only one in progress can")),
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

    /// Admin: go on where it paused. This accepts the results so far (`counts`): the threshold looks at those that
    /// come from now on, and a stage that has ended, or whose gate is `lost`, no longer holds up the next one by them.
    pub fn resume(self, now: Timestamp, counts: &Counts, lost: bool) -> Transition {
        match self {
            Self::Paused {
                running, paused_at, ..
            } => {
                let has_ended = counts.up_to_stage(running.open_stage).unready() == 0;
                let accepted = Accepted {
                    stage: (has_ended || lost).then_some(running.open_stage),
                    ..Accepted::all(counts, now)
                };
                let paused = now.duration_since(paused_at).max(SignedDuration::ZERO);
                // What is accepted was not shown: it soaks anew.
                let soak_since = running
                    .soak_since
                    .filter(|_| !lost)
                    .map(|since| since.checked_add(paused).unwrap_or(Timestamp::MAX));
                Ok(Self::InProgress(Running {
                    soak_since,
                    accepted,
                    ..running
                }))
            }
            other => Err(other.refuse("resumed", "; only a paused one can")),
        }
    }

    /// Admin: an update that had failed at `failed_at`, in this way, is tried once more. It has no result now, so a resume
    /// that had accepted its failure no longer has, and the next failure in its place is a new one.
    #[must_use]
    pub fn retried(mut self, failed_at: Timestamp, kind: FailureKind) -> Self {
        if let Self::InProgress(running) | Self::Paused { running, .. } = &mut self
            && running.accepted.at.is_some_and(|at| failed_at <= at)
        {
            let accepted = &mut running.accepted;
            accepted.failed = accepted.failed.saturating_sub(1);
            let of_kind = match kind {
                FailureKind::Failed => None,
                FailureKind::Rejected => Some(&mut accepted.rejected),
                FailureKind::TimedOut => Some(&mut accepted.timed_out),
            };
            if let Some(of_kind) = of_kind {
                *of_kind = of_kind.saturating_sub(1);
            }
        }
        self
    }

    /// Admin: stop for good, forward or on the way back; or the planner, when the schedule says so.
    pub fn cancel(self, now: Timestamp) -> Transition {
        match self {
            Self::Created
            | Self::InProgress(_)
            | Self::Paused { .. }
            | Self::RollingBack { .. } => Ok(Self::Cancelled {
                started_at: self.started_at(),
                ended_at: now,
                reason: None,
            }),
            other => Err(other.refuse("cancelled", "")),
        }
    }

    /// The planner: a criterion stops it for good.
    pub fn abort(self, now: Timestamp, reason: impl Into<String>) -> Transition {
        match self {
            Self::InProgress(running) | Self::Paused { running, .. } => Ok(Self::Cancelled {
                started_at: Some(running.started_at),
                ended_at: now,
                reason: Some(reason.into()),
            }),
            other => Err(other.refuse("aborted", "; only one in progress or paused can")),
        }
    }

    /// The planner: the next stage's gate has passed.
    pub fn open_stage(self, stage: u16, now: Timestamp) -> Transition {
        match self {
            Self::InProgress(running)
                if running.open_stage.checked_add(1) == Some(stage) && running.may_go_on() =>
            {
                Ok(Self::InProgress(Running {
                    open_stage: stage,
                    stage_opened_at: now,
                    soak_since: None,
                    ..running
                }))
            }
            other => Err(other.refuse("opened further", "")),
        }
    }

    /// The planner: devices begin to flip. What they held was one thing, and how they flip is another: the threshold looks at the
    /// results that come from now on. A resume's word on a stage stays.
    #[must_use]
    pub fn judged_anew(mut self, counts: &Counts, now: Timestamp) -> Self {
        if let Self::InProgress(running) = &mut self {
            running.accepted = Accepted {
                stage: running.accepted.stage,
                ..Accepted::all(counts, now)
            };
        }
        self
    }

    /// The planner: the open stage shows what its gate asks for, since now; or, with `None`, no longer.
    pub fn soak(self, since: Option<Timestamp>) -> Transition {
        match self {
            Self::InProgress(running) => Ok(Self::InProgress(Running {
                soak_since: since,
                ..running
            })),
            other => Err(other.refuse("left to soak", "")),
        }
    }

    /// The planner (threshold, also by what regresses after the end), or an admin: take back what completed.
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
                started_at: self.started_at(),
                rollback_started_at: now,
                trigger,
                reason: reason.into(),
            }),
            other => Err(other.refuse("rolled back", "")),
        }
    }

    /// Admin: a rollback that failed is tried once more after the others had ended.
    pub fn reopen(self, now: Timestamp) -> Transition {
        match self {
            Self::RolledBack {
                started_at,
                trigger,
                reason,
                ..
            } => Ok(Self::RollingBack {
                started_at,
                rollback_started_at: now,
                trigger,
                reason,
            }),
            other => Err(other.refuse("reopened", "; only one that was rolled back can")),
        }
    }

    /// The planner: every update and rollback has ended.
    pub fn finish(self, now: Timestamp) -> Transition {
        match self {
            // Paused: its schedule ended meanwhile.
            Self::InProgress(running) | Self::Paused { running, .. } => Ok(Self::Completed {
                started_at: Some(running.started_at),
                ended_at: now,
                accepted: running.accepted,
            }),
            Self::RollingBack {
                started_at,
                trigger,
                reason,
                ..
            } => Ok(Self::RolledBack {
                started_at,
                ended_at: now,
                trigger,
                reason,
            }),
            other => Err(other.refuse("finished", "")),
        }
    }

    pub(crate) fn refuse(&self, verb: &'static str, hint: &'static str) -> TransitionError {
        TransitionError {
            from: self.status(),
            verb,
            hint,
        }
    }
}
