//! Doing what the agent asks for, as the device's faults let it be done.

use std::time::Duration;

use device_ota_protocol::Slot;
use device_ota_protocol::agent::{Ignored, Input, Output};
use tokio::time::Instant;

use super::{Device, Leave};
use crate::faults::{FailAt, Flaw};

/// How long a device about to restart waits for its last reports to be acknowledged.
const LAST_WORDS: Duration = Duration::from_secs(3);

impl Device {
    pub(super) fn perform(&mut self, output: Output) {
        match output {
            Output::Publish { up, payload } => self.say(up, payload),
            Output::StartDownload(job) => self.start_download(*job),
            Output::AbortDownload => self.stop_download(),
            Output::Install { .. } => {
                let time = self.ctx.habits.install_time;
                let time = self.jittered(time);
                self.timers.install = Some(Instant::now() + time);
            }
            Output::Reboot { slot } => {
                self.leave = Some((Leave::Reboot(slot), Instant::now() + LAST_WORDS));
            }
            Output::CheckHealth => self.health_check_due = true,
            Output::Confirm { slot } => self.confirm(slot),
            Output::Persist(state) => self.persisted = state,
            Output::Ignored(why) => self.ctx.board.count_ignored(name(why)),
        }
    }

    /// The boot loader keeps the new image; where that does not last, not for long.
    fn confirm(&mut self, slot: Slot) {
        self.loader.confirmed = slot;
        if self.faults.flaw == Some(Flaw::Relapse) {
            self.faults.flaw = None; // what it is brought back to lasts
            self.timers.relapse = Some(Instant::now() + self.ctx.habits.relapse_after);
        }
    }

    /// The new image does not start any more: the boot loader takes the other one.
    pub(super) fn relapse(&mut self) {
        self.timers.relapse = None;
        self.fault_fired();
        self.loader.confirmed = self.loader.confirmed.other();
        self.leave = Some((Leave::Reboot(self.loader.confirmed), Instant::now()));
    }

    /// The slot is written.
    pub(super) fn install_done(&mut self) {
        self.timers.install = None;
        let result = if self.faults.flaw == Some(Flaw::Fail(FailAt::Installing)) {
            self.fault_fired();
            Err("simulated: the slot cannot be written")
        } else {
            Ok(())
        };
        self.feed(Input::Installed(result));
    }

    /// A new image is well when it has come as far as being connected.
    pub(super) fn check_health(&mut self) {
        if !std::mem::take(&mut self.health_check_due) {
            return;
        }
        let result = if self.faults.flaw == Some(Flaw::Fail(FailAt::Health)) {
            self.fault_fired();
            Err("simulated: the new image is not well")
        } else {
            Ok(())
        };
        self.feed(Input::HealthChecked(result));
    }
}

fn name(why: Ignored) -> &'static str {
    match why {
        Ignored::Malformed => "malformed",
        Ignored::NotVerified => "not_verified",
        Ignored::StaleNonce => "stale_nonce",
        Ignored::NoClock => "no_clock",
        Ignored::Busy => "busy",
        Ignored::StaleAttempt => "stale_attempt",
        Ignored::NotOurs => "not_ours",
        Ignored::Replayed => "replayed",
        Ignored::Expired => "expired",
        Ignored::NoSuchUpdate => "no_such_update",
        Ignored::OutOfPlace => "out_of_place",
    }
}
