//! Updates of a campaign that follows its fleet: what becomes of those whose device changes before it was offered anything.

use jiff::Timestamp;

use super::Update;
use super::state::UpdateState;
use crate::exclusion::Exclusion;

impl Update {
    /// Its device is none of its campaign's any more, before it was offered anything. `None` when it was, or has ended.
    pub fn settle(mut self, because: Exclusion, now: Timestamp) -> Option<Self> {
        if self.attempt > 0 || !matches!(self.state, UpdateState::Pending { .. }) {
            return None;
        }
        self.state = UpdateState::Cancelled {
            at: now,
            because: Some(because),
        };
        self.updated_at = now;
        Some(self)
    }

    /// Its device, which was none of its campaign's any more, is one of them again; one that was given up has been meant all the
    /// time. `None` when that is not how it ended.
    pub fn rejoin(mut self, now: Timestamp) -> Option<Self> {
        match self.state {
            UpdateState::Cancelled {
                because: Some(because),
                ..
            } if because != Exclusion::OutOfTime => {}
            _ => return None,
        }
        self.give_up_at = None;
        self.state = UpdateState::Pending {
            due_at: now,
            lost_at: None,
            last_failure: None,
        };
        self.updated_at = now;
        Some(self)
    }
}
