//! Devices that come to the version, or move on to another one, by themselves while their update waits.

use jiff::Timestamp;

use super::{Action, Update, UpdateState};

impl Update {
    /// The device runs the version by now, did not when the update was made, and was never offered it: there is nothing left to
    /// do. Who asks for what a device runs already wants it installed anew.
    pub fn is_done_without_us(&self, running: &str) -> bool {
        let waits = matches!(self.state, UpdateState::Pending { .. });
        let came = self.from_version.as_deref() != Some(running);
        waits && self.attempt == 0 && came && running == self.to_version
    }

    /// Pending → completed, without an offer. `None` when there is still something to do.
    pub fn arrive(mut self, running: &str, now: Timestamp) -> Option<Self> {
        if !self.is_done_without_us(running) {
            return None;
        }
        self.state = UpdateState::Completed { at: now };
        self.progress.percent = 100.0;
        self.updated_at = now;
        Some(self)
    }

    /// Pending → cancelled: a campaign's rollback, of a device that runs neither what it is taken off nor what it is taken back to.
    /// `None` when there is still something to take back.
    pub fn move_on(mut self, running: &str, now: Timestamp) -> Option<Self> {
        let waits = matches!(self.state, UpdateState::Pending { .. });
        let is_of_campaign = self.action == Action::Rollback && self.campaign.is_some();
        let is_either = running == self.to_version || self.from_version.as_deref() == Some(running);
        if !waits || !is_of_campaign || is_either {
            return None;
        }
        self.state = UpdateState::Cancelled {
            at: now,
            because: None,
        };
        self.updated_at = now;
        Some(self)
    }
}
