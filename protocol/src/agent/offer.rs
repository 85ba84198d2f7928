//! Taking an offer: is it authentic, fresh, for this device and newer than what was seen, and what
//! does it mean for the update that is under way.

use jiff::Timestamp;

use super::Agent;
use super::effects::Effects;
use super::install::error;
use super::io::Ignored;
use super::state::{Stage, UpdateRecord};
use super::weigh::{Plan, Refusal};
use crate::digest::Digest;
use crate::messages::{CheckReason, ErrorCode, Offer, Phase, Progress, ReportedError};
use crate::objects::{Assignment, SignedObject, open};
use crate::topics::Up;

/// What is to be made of an offer.
enum Verdict {
    /// Nothing.
    Ignore(Ignored),
    /// Nothing, but a check would bring a better one.
    AskAgain(Ignored),
    /// It was taken before: say once more what became of it.
    Repeat,
    /// Said to be refused, without a trace in the state.
    Refuse(Box<Progress>),
    /// Authentic, fresh, for this device and newer.
    Take(Box<Taken>),
}

/// An offer that is authentic, fresh, for this device and newer than what was seen.
struct Taken {
    offer: Offer,
    assignment: Assignment,
    digest: Digest,
}

impl Agent {
    pub(super) fn offered(&mut self, now: Timestamp, payload: &[u8], fx: &mut Effects) {
        match self.judge(now, payload) {
            Verdict::Ignore(why) => fx.ignored(why),
            Verdict::AskAgain(why) => {
                fx.ignored(why);
                self.want_check(now, CheckReason::Poll, fx);
            }
            Verdict::Repeat => self.repeat_report(fx),
            Verdict::Refuse(report) => self.refuse(&report, fx),
            Verdict::Take(taken) => self.take(now, &taken, fx),
        }
    }

    fn judge(&self, now: Timestamp, payload: &[u8]) -> Verdict {
        let Ok(offer) = Offer::parse(payload) else {
            return Verdict::Ignore(Ignored::Malformed);
        };
        let (assignment, bytes) = match open::<Assignment>(&offer.assignment, &self.state.root) {
            Ok(opened) => opened,
            Err(why) => return self.judge_unverified(&offer, &why.to_string()),
        };
        if assignment.device_id != self.identity.device_id {
            return refusal(&assignment, ErrorCode::WrongTarget, "for another device");
        }
        let digest = Digest::of(&bytes);
        let current = self.state.update.as_ref();
        let same = current.is_some_and(|r| r.is(&assignment.update_id, assignment.attempt));
        let again = assignment.seq == self.state.seq && self.state.seq_digest == Some(digest);
        if again && !(same && self.is_deferred()) {
            return Verdict::Repeat;
        }
        if assignment.seq <= self.state.seq && !again {
            return self.judge_replayed(&assignment, same);
        }
        let fresh = match &assignment.nonce {
            Some(nonce) if !self.link.is_current(nonce) => Err(Ignored::StaleNonce),
            None if self.trusted_time(now).is_none() => Err(Ignored::NoClock),
            _ => Ok(()),
        };
        if let Err(why) = fresh {
            return Verdict::AskAgain(why);
        }
        if let Some(why) = self.in_the_way(&assignment, same) {
            return Verdict::Ignore(why);
        }
        Verdict::Take(Box::new(Taken {
            offer,
            assignment,
            digest,
        }))
    }

    /// What of the current update keeps an offer from being taken at all.
    fn in_the_way(&self, assignment: &Assignment, same: bool) -> Option<Ignored> {
        let current = self.state.update.as_ref()?;
        if same {
            return None;
        }
        if current.is_committed() {
            return Some(Ignored::Busy);
        }
        let report = &current.report;
        let stale = report.update_id == assignment.update_id && assignment.attempt < report.attempt;
        stale.then_some(Ignored::StaleAttempt)
    }

    /// An offer from the past. One of the current attempt is a late copy: no word about that, it
    /// would end the attempt.
    fn judge_replayed(&self, assignment: &Assignment, same: bool) -> Verdict {
        if same {
            return Verdict::Ignore(Ignored::Replayed);
        }
        let (seq, highest) = (assignment.seq, self.state.seq);
        let text = if seq == highest {
            format!("seq {seq} was used with other content")
        } else {
            format!("seq {seq} is below {highest}")
        };
        refusal(assignment, ErrorCode::Replayed, &text)
    }

    /// An assignment that nobody vouches for. It is worth a word to the operator (wrong keys look
    /// so) if it claims to be for this device, while no update runs that the word could hurt, and
    /// once a connection.
    fn judge_unverified(&self, offer: &Offer, why: &str) -> Verdict {
        let claimed = serde_json::from_slice::<Assignment>(&offer.assignment.payload)
            .ok()
            .filter(|claimed| claimed.validate().is_ok())
            .filter(|claimed| claimed.device_id == self.identity.device_id);
        let Some(claimed) = claimed else {
            return Verdict::Ignore(Ignored::NotVerified);
        };
        let running = self.state.update.as_ref().is_some_and(|r| !r.is_finished());
        let key = (claimed.update_id.clone(), claimed.attempt);
        if running || self.link.refused.as_ref() == Some(&key) {
            return Verdict::Ignore(Ignored::NotVerified);
        }
        refusal(
            &claimed,
            ErrorCode::SignatureInvalid,
            &format!("assignment: {why}"),
        )
    }

    /// Says that an offer is refused which leaves no trace in the state. Never about the attempt
    /// that the state is about: its reports have numbers of their own.
    fn refuse(&mut self, report: &Progress, fx: &mut Effects) {
        let current = self.state.update.as_ref();
        if current.is_some_and(|r| r.is(&report.update_id, report.attempt)) {
            return fx.ignored(Ignored::NotVerified);
        }
        self.link.refused = Some((report.update_id.clone(), report.attempt));
        let mut report = report.clone();
        report.version = Some(self.running_version().to_owned());
        if self.link.is_up() {
            fx.publish(Up::Progress, report.to_bytes());
        }
    }

    fn take(&mut self, now: Timestamp, taken: &Taken, fx: &mut Effects) {
        let assignment = &taken.assignment;
        self.state.seq = assignment.seq;
        self.state.seq_digest = Some(taken.digest);
        fx.persist();
        let current = self.state.update.as_mut();
        let Some(record) = current.filter(|r| r.is(&assignment.update_id, assignment.attempt))
        else {
            return self.begin(now, taken, 0, fx);
        };
        let reported = record.report.seq;
        match &mut record.stage {
            Stage::Downloading { job } if job.release_sha256 == assignment.release_sha256 => {
                job.urls.clone_from(&assignment.urls);
                job.urls_expire_at = assignment.urls_expire_at;
                if self.download.is_none() {
                    self.start_download(now, fx);
                }
            }
            Stage::Downloading { .. } | Stage::Deferred { .. } => {
                self.begin(now, taken, reported, fx);
            }
            _ => self.repeat_report(fx),
        }
    }

    /// Begins an attempt, in place of whatever was there. Reports go on from `reported`.
    fn begin(&mut self, now: Timestamp, taken: &Taken, reported: u64, fx: &mut Effects) {
        if self.download.is_some() {
            self.stop_download(fx);
        }
        let plan = self.weigh(now, &taken.offer, &taken.assignment);
        let assignment = &taken.assignment;
        let (id, attempt) = (assignment.update_id.clone(), assignment.attempt);
        self.state.update = Some(Box::new(UpdateRecord {
            report: Progress::new(id, attempt, reported, Phase::Accepted),
            stage: Stage::Finished,
        }));
        match plan {
            Ok(Plan::AlreadyRunning) => self.finish(now, Phase::Completed, None, fx),
            Ok(Plan::Flip(job)) => {
                self.report(fx, Phase::Accepted, |_| {});
                self.report(fx, Phase::Installing, |_| {});
                self.stage_or_reboot(now, job, fx);
            }
            Ok(Plan::Download(job)) => {
                self.enter(now, Stage::Downloading { job });
                self.report(fx, Phase::Accepted, |_| {});
                self.start_download(now, fx);
            }
            Err(Refusal::Never(error)) => self.finish(now, Phase::Rejected, Some(error), fx),
            Err(Refusal::Later {
                error,
                retry_after_s,
            }) => self.defer(now, error, retry_after_s, fx),
        }
    }

    fn defer(
        &mut self,
        now: Timestamp,
        error: ReportedError,
        retry_after_s: u64,
        fx: &mut Effects,
    ) {
        self.enter(now, Stage::Deferred { retry_after_s });
        self.report(fx, Phase::Deferred, |report| {
            report.error = Some(error);
            report.retry_after_s = Some(retry_after_s);
        });
    }

    fn is_deferred(&self) -> bool {
        let stage = self.state.update.as_ref().map(|record| &record.stage);
        matches!(stage, Some(Stage::Deferred { .. }))
    }
}

fn refusal(assignment: &Assignment, code: ErrorCode, message: &str) -> Verdict {
    let id = assignment.update_id.clone();
    let mut report = Progress::new(id, assignment.attempt, 1, Phase::Rejected);
    report.error = Some(error(code, message));
    Verdict::Refuse(Box::new(report))
}
