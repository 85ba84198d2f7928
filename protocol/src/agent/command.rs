//! Commands: `cancel` up to the point where the image is being installed and once it is staged,
//! `activate` for one that is staged.

use jiff::Timestamp;

use super::Agent;
use super::effects::Effects;
use super::io::Ignored;
use super::state::Stage;
use crate::digest::Digest;
use crate::dsse::Envelope;
use crate::messages::Phase;
use crate::objects::{Command, CommandKind, Mode, open};

impl Agent {
    pub(super) fn commanded(&mut self, now: Timestamp, payload: &[u8], fx: &mut Effects) {
        let command = match self.read_command(now, payload) {
            Ok(command) => command,
            Err(why) => return fx.ignored(why),
        };
        fx.persist();
        let current = self.state.update.as_ref();
        if current.is_none_or(|record| record.report.update_id != command.update_id) {
            return fx.ignored(Ignored::NoSuchUpdate);
        }
        match command.command {
            CommandKind::Cancel => self.cancel(now, fx),
            CommandKind::Activate => self.activate(now, fx),
        }
    }

    /// A command that holds. Its number is taken even when the update is not here: an offer that
    /// is still on its way and older than its own cancellation must not be taken.
    fn read_command(&mut self, now: Timestamp, payload: &[u8]) -> Result<Command, Ignored> {
        let envelope = Envelope::from_json(payload).map_err(|_| Ignored::Malformed)?;
        let (command, bytes) =
            open::<Command>(&envelope, &self.state.root).map_err(|_| Ignored::NotVerified)?;
        if command.device_id != self.identity.device_id {
            return Err(Ignored::NotOurs);
        }
        let digest = Digest::of(&bytes);
        let again = command.seq == self.state.seq && self.state.seq_digest == Some(digest);
        if command.seq <= self.state.seq && !again {
            return Err(Ignored::Replayed);
        }
        if self
            .trusted_time(now)
            .is_some_and(|now| now >= command.expires_at)
        {
            return Err(Ignored::Expired);
        }
        self.state.seq = command.seq;
        self.state.seq_digest = Some(digest);
        Ok(command)
    }

    fn cancel(&mut self, now: Timestamp, fx: &mut Effects) {
        match self.state.update.as_ref().map(|record| &record.stage) {
            Some(Stage::Downloading { .. }) => {
                self.stop_download(fx);
                self.finish(now, Phase::Cancelled, None, fx);
            }
            Some(Stage::Deferred { .. } | Stage::Staged { .. }) => {
                self.finish(now, Phase::Cancelled, None, fx);
            }
            _ => self.repeat_report(fx),
        }
    }

    fn activate(&mut self, now: Timestamp, fx: &mut Effects) {
        let Some(record) = &mut self.state.update else {
            return;
        };
        match &mut record.stage {
            Stage::Staged { job } => {
                let job = job.clone();
                self.reboot_into(now, job, fx);
            }
            // Said early: the device need not stop on its way.
            Stage::Downloading { job } | Stage::Installing { job } => job.mode = Mode::Install,
            _ => self.repeat_report(fx),
        }
    }
}
