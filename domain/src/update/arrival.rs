//! Devices that come to the version, move on to another one, or come to refuse it, while their update waits.

use jiff::Timestamp;

use super::{Action, Failure, Retry, Update, UpdateState};
use crate::exclusion::Exclusion;
use crate::filter::{Comparison, VersionTest};

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

    /// What becomes of it without an offer, by what its device runs when its turn comes. `None` when there is still something to do.
    pub fn found_running(self, running: &str, now: Timestamp) -> Option<Self> {
        match (self.action, &self.campaign) {
            (Action::Rollback, Some(_)) => self.move_on(running, now),
            (Action::Update, Some(_)) if self.is_done_without_us(running) => {
                self.settle(Exclusion::AlreadyInstalled, now)
            }
            (_, None) if self.is_done_without_us(running) => self.arrive(running, now),
            (Action::Update, _) => self.overtake(running, now),
            (Action::Rollback, None) => None,
        }
    }

    /// Pending → completed, without an offer: of a single device. `None` when there is still something to do.
    pub fn arrive(mut self, running: &str, now: Timestamp) -> Option<Self> {
        if !self.is_done_without_us(running) {
            return None;
        }
        self.state = UpdateState::Completed { at: now };
        self.progress.percent = 100.0;
        self.updated_at = now;
        Some(self)
    }

    /// Pending → cancelled: its device came to a newer version meanwhile, by another update, and would refuse this one. `None` when
    /// there is still something to do; so there is where the device ran that version all along: it says itself what it thinks of it.
    pub fn overtake(mut self, running: &str, now: Timestamp) -> Option<Self> {
        let waits = matches!(self.state, UpdateState::Pending { .. });
        let came = self.from_version.as_deref() != Some(running);
        let newer = VersionTest::Is(Comparison::Gt, self.to_version.clone());
        if !waits || !came || self.action != Action::Update || !newer.passes(Some(running)) {
            return None;
        }
        self.state = UpdateState::Cancelled {
            at: now,
            because: Some(Exclusion::NewerInstalled),
        };
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
