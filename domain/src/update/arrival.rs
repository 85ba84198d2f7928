//! Devices that come to the version, move on to another one, or come to refuse it, while their update waits.

use jiff::Timestamp;

use super::{Action, Failure, Retry, Update, UpdateState};

/// Why nobody is offered an image below the floor of its device, for people.
pub const BELOW_FLOOR: &str = "the image's security_version is below the device's security_floor, and the device would refuse it";

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

    /// Pending → failed: the image's `security_version` is below the floor that its device reports, which would refuse it. `None`
    /// when it does not wait.
    pub fn refuse_below_floor(mut self, now: Timestamp) -> Option<Self> {
        if !matches!(self.state, UpdateState::Pending { .. }) {
            return None;
        }
        let failure = Failure::new("downgrade_refused", BELOW_FLOOR, Retry::Never);
        self.state = UpdateState::Failed { at: now, failure };
        self.updated_at = now;
        Some(self)
    }
}
