//! Devices that come to the version by themselves while their update waits.

use jiff::Timestamp;

use super::{Update, UpdateState};

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
}
