//! Where a campaign's devices stand, kept by deltas and always equal to a `GROUP BY` over its rows.

use jiff::Timestamp;
use serde::Serialize;

use super::abort::Failures;
use crate::ids::CampaignId;
use crate::update::{Action, Group};

/// Devices in each group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// See [`Group::Pending`].
    pub pending: u64,
    /// See [`Group::InFlight`].
    pub in_flight: u64,
    /// See [`Group::Staged`].
    pub staged: u64,
    /// See [`Group::Completed`].
    pub completed: u64,
    /// Of the completed ones, those that have regressed.
    pub regressed: u64,
    /// See [`Group::Failed`].
    pub failed: u64,
    /// See [`Group::Cancelled`].
    pub cancelled: u64,
}

impl Tally {
    /// Devices of all groups.
    pub fn total(&self) -> u64 {
        self.settled()
            .saturating_add(self.open())
            .saturating_add(self.cancelled)
    }

    /// Devices that ended with a result: completed or failed.
    pub fn settled(&self) -> u64 {
        self.completed.saturating_add(self.failed)
    }

    /// Devices that have not ended.
    pub fn open(&self) -> u64 {
        self.unready().saturating_add(self.staged)
    }

    /// Devices that have not come as far as they get by themselves.
    pub fn unready(&self) -> u64 {
        self.pending.saturating_add(self.in_flight)
    }

    /// Devices that wait: for an offer, or for their activation.
    pub fn waiting(&self) -> u64 {
        self.pending.saturating_add(self.staged)
    }

    /// The same with those that have regressed taken for failed: what gates and limits count.
    #[must_use]
    pub fn judged(self) -> Self {
        Self {
            completed: self.completed.saturating_sub(self.regressed),
            failed: self.failed.saturating_add(self.regressed),
            regressed: 0,
            ..self
        }
    }

    /// The same, with those that are staged taken for completed: so far, they have done all that they were asked.
    #[must_use]
    pub fn so_far(self) -> Self {
        let judged = self.judged();
        Self {
            completed: judged.completed.saturating_add(self.staged),
            staged: 0,
            ..judged
        }
    }

    /// `failed / (completed + failed)` in percent; `None` before the first result.
    pub fn failure_percent(&self) -> Option<f64> {
        percent(self.failed, self.settled())
    }

    /// `completed / (completed + failed)` in percent; `None` before the first result.
    pub fn success_percent(&self) -> Option<f64> {
        percent(self.completed, self.settled())
    }

    /// The number of one group.
    pub fn of(&self, group: Group) -> u64 {
        match group {
            Group::Pending => self.pending,
            Group::InFlight => self.in_flight,
            Group::Staged => self.staged,
            Group::Completed => self.completed,
            Group::Failed => self.failed,
            Group::Cancelled => self.cancelled,
        }
    }

    /// The number of one group, to change it.
    pub fn of_mut(&mut self, group: Group) -> &mut u64 {
        match group {
            Group::Pending => &mut self.pending,
            Group::InFlight => &mut self.in_flight,
            Group::Staged => &mut self.staged,
            Group::Completed => &mut self.completed,
            Group::Failed => &mut self.failed,
            Group::Cancelled => &mut self.cancelled,
        }
    }

    /// Both tallies added up.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        Self {
            pending: self.pending.saturating_add(other.pending),
            in_flight: self.in_flight.saturating_add(other.in_flight),
            staged: self.staged.saturating_add(other.staged),
            completed: self.completed.saturating_add(other.completed),
            regressed: self.regressed.saturating_add(other.regressed),
            failed: self.failed.saturating_add(other.failed),
            cancelled: self.cancelled.saturating_add(other.cancelled),
        }
    }
}

/// `part` of `whole` in percent; `None` of nothing.
pub(crate) fn percent(part: u64, whole: u64) -> Option<f64> {
    #[expect(
        clippy::cast_precision_loss,
        reason = "device counts are far below 2^52"
    )]
    (whole > 0).then(|| part as f64 * 100.0 / whole as f64)
}

/// A campaign's tallies: of its updates by stage (in stage order), and of its rollbacks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// One tally a stage; a stage without devices has a tally of zeros.
    pub stages: Vec<Tally>,
    /// Its rollbacks, all stages together.
    pub rollbacks: Tally,
    /// Its updates that failed or regressed, all stages together.
    pub failures: Failures,
    /// Devices of its updates that have not answered what they were told last: an offer, or to activate what they hold.
    pub unanswered_updates: u64,
    /// The same of its rollbacks.
    pub unanswered_rollbacks: u64,
    /// Slots that the limit of the whole service leaves; `None`: there is none.
    pub room: Option<u64>,
    /// When the lines that all its offers go over carry the next one; `None`: now.
    pub lines_free_at: Option<Timestamp>,
    /// The first stage whose opening begins the time of updates that have an end and no time yet, an activation's being the last
    /// stage; `None`: there are no such updates.
    pub timeless: Option<u16>,
}

impl Counts {
    /// The updates of all stages together.
    pub fn updates(&self) -> Tally {
        self.stages.iter().fold(Tally::default(), Tally::plus)
    }

    /// The updates of the stages up to and including this one.
    pub fn up_to_stage(&self, stage: u16) -> Tally {
        let stages = self.stages.iter().take(usize::from(stage) + 1);
        stages.fold(Tally::default(), Tally::plus)
    }

    /// Devices that have not answered, of its updates or of its rollbacks.
    pub fn unanswered(&self, action: Action) -> u64 {
        match action {
            Action::Update => self.unanswered_updates,
            Action::Rollback => self.unanswered_rollbacks,
        }
    }

    /// Slots in use, by updates and rollbacks.
    pub fn in_flight(&self) -> u64 {
        self.updates()
            .in_flight
            .saturating_add(self.rollbacks.in_flight)
    }
}

/// One row's move from group to group, its birth (`from` is `None`), or its regression, with which it may stay in its group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Delta {
    /// Whose count.
    pub campaign: CampaignId,
    /// Update or rollback.
    pub action: Action,
    /// Stage of the row.
    pub stage: u16,
    /// Group it leaves.
    pub from: Option<Group>,
    /// Group it joins.
    pub to: Group,
    /// It has regressed with this move: when.
    pub regressed: Option<Timestamp>,
}
