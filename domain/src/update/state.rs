//! The states of an update and the only ways between them. Transitions consume the update and return it changed.

use jiff::{SignedDuration, Timestamp};

use super::failure::{Failure, MAX_PUT_OFF, Retry, back_off, may_pass_going_back, put_off};
use super::phase::Phase;
use super::report::{Report, Reported};
use super::times::Part;
use super::{Action, Progress, Update};
use crate::exclusion::Exclusion;

/// A rollback whose time is over before it had a slot is looked at again after this: short beside the hours it has, so
/// that one whose device is gone does not outlive the queue by much.
const AGAIN_WITHOUT_SLOT: SignedDuration = SignedDuration::from_mins(10);

/// Where an update stands.
#[derive(Debug, Clone, PartialEq)]
pub enum UpdateState {
    /// Waits for its turn.
    Pending {
        /// Not offered before this.
        due_at: Timestamp,
        /// Set when a device that had taken the offer fell silent and lost its slot, or ran out of time: when it
        /// counts as lost if it is still silent then.
        lost_at: Option<Timestamp>,
        /// Why the attempt before it ended, if one did.
        last_failure: Option<Failure>,
    },
    /// Holds a slot.
    InFlight {
        /// How far.
        phase: Phase,
        /// Since when in this phase.
        since: Timestamp,
        /// Silence up to here loses the slot.
        lease_until: Timestamp,
        /// The attempt's time ends here.
        deadline: Timestamp,
        /// The time of the part of the attempt that it is in ends here; `None`: with the attempt's.
        part_until: Option<Timestamp>,
        /// A cancel was asked for and not answered.
        cancel_requested: bool,
        /// It was offered to go no further than `staged`.
        hold: bool,
    },
    /// Its device holds the image in its idle slot and waits for `activate`; it holds no slot of the campaign's.
    Staged {
        /// Since when.
        since: Timestamp,
    },
    /// Runs the offered version.
    Completed {
        /// Since when.
        at: Timestamp,
    },
    /// Ended without it.
    Failed {
        /// When.
        at: Timestamp,
        /// Why.
        failure: Failure,
    },
    /// Withdrawn.
    Cancelled {
        /// When.
        at: Timestamp,
        /// Why its device was none of its campaign's any more; `None`: somebody withdrew it.
        because: Option<Exclusion>,
    },
}

/// The terms of an offer.
#[derive(Debug, Clone, PartialEq)]
pub struct OfferTerms {
    /// Now.
    pub now: Timestamp,
    /// Silence longer than this loses the slot.
    pub lease: SignedDuration,
    /// What the device runs.
    pub running: Option<String>,
    /// It shall go no further than `staged` by itself.
    pub hold: bool,
}

/// What a report did.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It changed the update.
    Changed(Box<Update>),
    /// It repeats, comes late, or goes backwards: nothing changed.
    Ignored(Box<Update>, &'static str),
}

impl Outcome {
    /// The update, changed or not.
    pub fn into_update(self) -> Update {
        match self {
            Self::Changed(update) | Self::Ignored(update, _) => *update,
        }
    }
}

/// What is known of the device when its time runs out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expiry {
    /// Now.
    pub now: Timestamp,
    /// Any message of the device.
    pub last_seen: Option<Timestamp>,
    /// Silence longer than this loses the slot.
    pub lease: SignedDuration,
    /// It is not its device that it waits for, but its campaign or the service: for a slot, a stage or a person.
    pub kept_waiting: bool,
}

/// A cancel came too late.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an update that is {0} cannot be cancelled")]
pub struct CancelError(pub &'static str);

/// Only failed updates can be retried (PRD, E3-US4).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an update that is {0} cannot be retried; only a failed one can")]
pub struct RetryError(pub &'static str);

impl Update {
    /// Pending → in flight, with the next attempt number. `None` when it is not pending.
    pub fn offer(mut self, terms: &OfferTerms) -> Option<Self> {
        let UpdateState::Pending { .. } = self.state else {
            return None;
        };
        let now = terms.now;
        self.attempt += 1;
        self.last_seq = 0;
        self.progress = Progress {
            bytes_total: self.progress.bytes_total,
            bytes_earlier: self.progress.downloaded(),
            ..Progress::default()
        };
        // A device that has it already, without our knowing, still has to find back to what it ran before.
        if terms
            .running
            .as_ref()
            .is_some_and(|v| *v != self.to_version)
        {
            self.from_version.clone_from(&terms.running);
        }
        self.started_at = self.started_at.or(Some(now));
        self.state = UpdateState::InFlight {
            phase: Phase::Offered,
            since: now,
            lease_until: later(now, terms.lease),
            deadline: later(now, seconds(self.timeout_seconds)),
            part_until: None,
            cancel_requested: false,
            hold: terms.hold,
        };
        self.ends_no_sooner_than_its_attempt(now);
        self.updated_at = now;
        Some(self)
    }

    /// Staged → in flight, to be told to activate what it holds: the same attempt, with a time of its own. `None` when it
    /// is not staged.
    pub fn activate(mut self, now: Timestamp, lease: SignedDuration) -> Option<Self> {
        let UpdateState::Staged { .. } = self.state else {
            return None;
        };
        self.state = UpdateState::InFlight {
            phase: Phase::Staged,
            since: now,
            lease_until: later(now, lease),
            deadline: later(now, seconds(self.timeout_seconds)),
            part_until: None,
            cancel_requested: false,
            hold: true,
        };
        self.ends_no_sooner_than_its_attempt(now);
        // What it has downloaded stays so, whatever becomes of the attempt.
        self.progress.bytes_earlier = self.progress.downloaded();
        self.updated_at = now;
        Some(self)
    }

    /// Whoever was offered something has the time of the attempt, however long it waited before.
    fn ends_no_sooner_than_its_attempt(&mut self, now: Timestamp) {
        if self.action == Action::Update {
            let deadline = later(now, seconds(self.timeout_seconds));
            self.give_up_at = self.give_up_at.map(|end| end.max(deadline));
        }
    }

    /// Its device is given to another update, and what it holds is lost with it: it waits for an offer once more. `None`
    /// when it is not staged.
    pub fn displace(mut self, now: Timestamp) -> Option<Self> {
        let UpdateState::Staged { .. } = self.state else {
            return None;
        };
        self.state = UpdateState::Pending {
            due_at: now,
            lost_at: None,
            last_failure: None,
        };
        self.updated_at = now;
        Some(self)
    }

    /// Takes a device's report. A lower attempt, a `seq` not above the last one, a phase before the present one and
    /// anything after the end change nothing. An attempt fails or is put off once, however often the device says so;
    /// that it completed after all is always taken.
    pub fn report(mut self, report: &Report, now: Timestamp, lease: SignedDuration) -> Outcome {
        if self.has_succeeded_after_all(report) {
            if report.attempt == self.attempt {
                self.last_seq = report.seq;
            }
            self.state = UpdateState::Completed { at: now };
            self.progress.percent = 100.0;
            self.updated_at = now;
            return Outcome::Changed(Box::new(self));
        }
        if self.is_terminal() && self.watch().is_none() {
            return Outcome::Ignored(Box::new(self), "ended");
        }
        if report.attempt != self.attempt || self.attempt == 0 {
            return Outcome::Ignored(Box::new(self), "other_attempt");
        }
        if report.seq <= self.last_seq {
            return Outcome::Ignored(Box::new(self), "repeated");
        }
        if self.is_terminal() {
            return self.report_afterwards(report, now);
        }
        if self.attempt_is_over() {
            return Outcome::Ignored(Box::new(self), "attempt_over");
        }
        match &report.said {
            Reported::In(phase) => return self.advance(*phase, report, now, lease),
            Reported::Completed => {
                let runs = report.version.as_deref().unwrap_or("nothing");
                let message = format!(
                    "says it completed but runs {runs} instead of {}",
                    self.to_version
                );
                self = self.fail(Failure::new("version_mismatch", message, Retry::Never), now);
            }
            Reported::Deferred {
                failure,
                retry_after_seconds,
            } => {
                self = self.defer(failure.clone(), *retry_after_seconds, now);
            }
            Reported::Failed(failure) => self = self.fail(failure.clone(), now),
            Reported::Cancelled if self.cancel_requested() => self.state = cancelled(now),
            Reported::Cancelled => {
                let message = "says that it was told to stop, and nobody told it";
                self = self.fail(
                    Failure::new("cancelled_unasked", message, Retry::Never),
                    now,
                );
            }
        }
        self.last_seq = report.seq;
        self.updated_at = now;
        Outcome::Changed(Box::new(self))
    }

    /// A report of the attempt that completed, while its device is watched: only that it failed after all counts.
    fn report_afterwards(self, report: &Report, now: Timestamp) -> Outcome {
        let Reported::Failed(failure) = &report.said else {
            return Outcome::Ignored(Box::new(self), "ended");
        };
        match self.clone().fail_afterwards(failure, now) {
            None => Outcome::Ignored(Box::new(self), "ended"),
            Some(update) => Outcome::Changed(Box::new(Self {
                last_seq: report.seq,
                ..update
            })),
        }
    }

    /// The device runs the offered version by one of our attempts: true whatever was thought of the attempt
    /// meanwhile (lost, timed out, withdrawn, offered anew), so that nobody is left behind by a rollback.
    fn has_succeeded_after_all(&self, report: &Report) -> bool {
        let new = match report.attempt.cmp(&self.attempt) {
            std::cmp::Ordering::Less => report.attempt > 0,
            std::cmp::Ordering::Equal => self.attempt > 0 && report.seq > self.last_seq,
            std::cmp::Ordering::Greater => false,
        };
        new && report.said == Reported::Completed
            && report.version.as_deref() == Some(&self.to_version)
            && !matches!(self.state, UpdateState::Completed { .. })
    }

    fn advance(
        mut self,
        to: Phase,
        report: &Report,
        now: Timestamp,
        lease: SignedDuration,
    ) -> Outcome {
        let UpdateState::InFlight {
            phase,
            since,
            lease_until,
            part_until,
            cancel_requested,
            hold,
            ..
        } = &mut self.state
        else {
            return Outcome::Ignored(Box::new(self), "no_slot"); // fell silent, lost its slot; waits for a new one
        };
        let arrives = *hold && to == Phase::Staged && *phase < to;
        let holds = arrives.then_some(*cancel_requested);
        if to < *phase {
            return Outcome::Ignored(Box::new(self), "backwards");
        }
        if to > *phase {
            *since = now;
            self.progress.percent = 0.0;
        }
        let part = Part::of(to);
        if part != Part::of(*phase) {
            let longest = part.and_then(|part| self.times.of(part));
            *part_until = longest.map(|longest| later(now, seconds(longest)));
        }
        *phase = to;
        *lease_until = later(now, lease);
        self.progress.percent = report.percent.unwrap_or(self.progress.percent);
        // Devices lie: an attempt downloads the image at most once, and what was downloaded stays so.
        let said = report.bytes_done.unwrap_or(0);
        let most = self.progress.bytes_total;
        self.progress.bytes_done = self.progress.bytes_done.max(said.min(most));
        self.progress.speed_bps = report.speed_bps.unwrap_or(self.progress.speed_bps);
        if let Some(cancel_requested) = holds {
            // What lies in the idle slot of a device that was asked to stop is never started.
            self.state = if cancel_requested {
                cancelled(now)
            } else {
                UpdateState::Staged { since: now }
            };
            // It has done what it was asked; a time of its own begins with its activation.
            self.give_up_at = None;
        }
        self.last_seq = report.seq;
        self.updated_at = now;
        Outcome::Changed(Box::new(self))
    }

    /// A heartbeat or check shows what the device runs: the old version after `rebooting` means that it fell back
    /// (PROTOCOL.md, *progress*). `None` when that says nothing about this update.
    pub fn observe_version(self, running: &str, now: Timestamp) -> Option<Self> {
        let UpdateState::InFlight {
            phase: Phase::Rebooting,
            ..
        } = self.state
        else {
            return None;
        };
        if running == self.to_version {
            return None; // the device's own word that it completed follows
        }
        let message = format!("came back with {running} instead of {}", self.to_version);
        let mut update = self.fail(Failure::new("reverted", message, Retry::Never), now);
        update.updated_at = now;
        Some(update)
    }

    /// Time has run out: of the attempt or a part of it, of the lease, of a lost device, or of the whole, where the wait for
    /// anything but the device is not its own time. `None` when nothing is due.
    pub fn expire(mut self, at: &Expiry) -> Option<Self> {
        if !self.is_terminal() && self.give_up_at.is_some_and(|end| end <= at.now) {
            return Some(self.end_of_time(at));
        }
        let heard = at
            .last_seen
            .is_some_and(|seen| later(seen, at.lease) > at.now);
        match self.state.clone() {
            UpdateState::InFlight {
                deadline,
                phase,
                hold,
                ..
            } if deadline <= at.now && (heard || is_work(phase, hold)) => {
                self = if heard {
                    self.time_out(at.now)
                } else {
                    self.fail(lost(), at.now)
                };
            }
            UpdateState::InFlight {
                phase,
                part_until: Some(end),
                ..
            } if end <= at.now && heard => {
                self = self.part_took_too_long(phase, at.now);
            }
            // It is there and says nothing of an offer that it never took: it has nothing to withdraw.
            UpdateState::InFlight {
                phase: Phase::Offered,
                lease_until,
                deadline,
                cancel_requested: true,
                ..
            } if lease_until.min(deadline) <= at.now => {
                self.state = cancelled(at.now);
            }
            UpdateState::InFlight {
                phase,
                since,
                lease_until,
                deadline,
                part_until,
                cancel_requested,
                hold,
            } if lease_until.min(deadline) <= at.now
                || part_until.is_some_and(|end| end <= at.now) =>
            {
                if heard {
                    self.state = UpdateState::InFlight {
                        phase,
                        since,
                        lease_until: later(at.now, at.lease),
                        deadline,
                        part_until,
                        cancel_requested,
                        hold,
                    };
                    // Not changed: what it has not answered is as old as it was, and said again in time.
                    return Some(self);
                }
                self.state = if cancel_requested {
                    cancelled(at.now)
                } else if phase == Phase::Staged && hold {
                    // It was told to activate what it holds, and is not there: it holds it when it returns.
                    UpdateState::Staged { since }
                } else {
                    let lost_at = is_work(phase, hold).then_some(deadline);
                    UpdateState::Pending {
                        due_at: at.now,
                        lost_at,
                        last_failure: None,
                    }
                };
            }
            UpdateState::Pending {
                due_at,
                lost_at: Some(lost_at),
                last_failure,
            } if lost_at <= at.now => {
                if heard {
                    // It came back and waits for a slot: lost only when it falls silent once more.
                    self.state = UpdateState::Pending {
                        due_at,
                        lost_at: Some(later(at.now, seconds(self.timeout_seconds))),
                        last_failure,
                    };
                } else {
                    self = self.fail(lost(), at.now);
                }
            }
            _ => return None,
        }
        self.updated_at = at.now;
        Some(self)
    }

    /// Withdraws it: at once when it only waits, also for its activation, by a command when the device is at it. `Ok` with
    /// `cancel_requested` set means that the device must be told.
    pub fn cancel(mut self, now: Timestamp) -> Result<Self, CancelError> {
        match &mut self.state {
            UpdateState::Pending { .. } | UpdateState::Staged { .. } => {
                self.state = cancelled(now);
            }
            UpdateState::InFlight {
                phase,
                cancel_requested,
                ..
            } if phase.can_cancel() => *cancel_requested = true,
            _ => return Err(CancelError(self.status())),
        }
        self.updated_at = now;
        Ok(self)
    }

    /// Its time as a whole is over, unless it was kept waiting: an update then has its time anew, and a rollback that was never
    /// offered, whose campaign ends with it, is looked at again soon.
    fn end_of_time(mut self, at: &Expiry) -> Self {
        let again = match self.action {
            Action::Update => self.times.ends_by(at.now),
            Action::Rollback if self.attempt > 0 => None,
            Action::Rollback => Some(later(at.now, AGAIN_WITHOUT_SLOT)),
        };
        match again.filter(|_| at.kept_waiting && self.owed().is_some()) {
            Some(again) => {
                self.give_up_at = Some(again);
                self.updated_at = at.now;
                self
            }
            None => self.give_up(at.now),
        }
    }

    /// Whoever is not back by now is not waited for, so that what one device never takes comes to its end. An update that its device
    /// has not begun, or holds, says nothing about the image: it is let go, and has not failed.
    fn give_up(mut self, now: Timestamp) -> Self {
        self.state = if self.cancel_requested() {
            cancelled(now)
        } else if self.action == Action::Update && !self.was_begun() {
            UpdateState::Cancelled {
                at: now,
                because: Some(Exclusion::OutOfTime),
            }
        } else {
            let left = match &self.state {
                UpdateState::InFlight { phase, .. } => {
                    format!("the device was last known as {}", phase.name())
                }
                UpdateState::Pending {
                    last_failure: Some(failure),
                    ..
                } => format!("its last attempt ended as {}", failure.code),
                _ if self.attempt == 0 => "it was never offered".to_owned(),
                _ => "the device took the offer no further".to_owned(),
            };
            let message = format!("not done within its time: {left}");
            let failure = Failure::new("timeout", message, Retry::Never);
            UpdateState::Failed { at: now, failure }
        };
        self.updated_at = now;
        self
    }

    /// Its device was deleted, or is another one now: whatever is open ends. `None` when it has ended.
    pub fn abandon(mut self, because: Exclusion, now: Timestamp) -> Option<Self> {
        if self.is_terminal() {
            return None;
        }
        self.state = UpdateState::Cancelled {
            at: now,
            because: Some(because),
        };
        self.updated_at = now;
        Some(self)
    }

    /// An admin's retry of a failed update, which has until `give_up_at` this time.
    pub fn retry(
        mut self,
        now: Timestamp,
        give_up_at: Option<Timestamp>,
    ) -> Result<Self, RetryError> {
        let UpdateState::Failed { failure, .. } = self.state else {
            return Err(RetryError(self.status()));
        };
        self.retries += 1;
        self.max_retries = self.max_retries.max(self.retries);
        self.give_up_at = give_up_at;
        self.state = UpdateState::Pending {
            due_at: now,
            lost_at: None,
            last_failure: Some(failure),
        };
        self.updated_at = now;
        Ok(self)
    }

    fn defer(mut self, failure: Failure, retry_after: Option<u64>, now: Timestamp) -> Self {
        // Attempts that cost no retry were put off, or lost their slot.
        let times = self.attempt.saturating_sub(self.retries);
        self.state = if self.cancel_requested() {
            cancelled(now)
        } else if times >= MAX_PUT_OFF {
            let message = format!(
                "put off after {times} attempts, this time as {}",
                failure.code
            );
            let failure = Failure::new("deferred_too_often", message, Retry::Never);
            UpdateState::Failed { at: now, failure }
        } else {
            let pause = put_off(retry_after, times, self.device);
            UpdateState::Pending {
                due_at: later(now, seconds(pause)),
                lost_at: None,
                last_failure: Some(failure),
            }
        };
        self
    }

    fn fail(mut self, failure: Failure, now: Timestamp) -> Self {
        let retry = match self.action {
            Action::Rollback if may_pass_going_back(&failure.code) => Retry::Backoff,
            Action::Rollback | Action::Update => failure.retry,
        };
        let again =
            retry != Retry::Never && self.retries < self.max_retries && !self.cancel_requested();
        self.state = if again {
            self.retries += 1;
            let pause = match retry {
                Retry::Now => 0,
                _ => back_off(&failure.code, self.retries, self.device),
            };
            UpdateState::Pending {
                due_at: later(now, seconds(pause)),
                lost_at: None,
                last_failure: Some(failure),
            }
        } else {
            UpdateState::Failed { at: now, failure }
        };
        self
    }

    /// Its device has begun an attempt that has not come to be held: it is at it, was lost over it, or failed.
    fn was_begun(&self) -> bool {
        match &self.state {
            UpdateState::Pending {
                lost_at,
                last_failure,
                ..
            } => lost_at.is_some() || last_failure.is_some(),
            UpdateState::InFlight { phase, hold, .. } => is_work(*phase, *hold),
            _ => false,
        }
    }

    /// The attempt's time is over though the device was there to the end. If it is tried again the device may be
    /// gone by then: it counts as lost when the next attempt's time passes without a word.
    fn time_out(self, now: Timestamp) -> Self {
        self.took_too_long("the attempt took too long".to_owned(), now)
    }

    /// The same of the part of it that its device is in.
    fn part_took_too_long(self, phase: Phase, now: Timestamp) -> Self {
        let part = Part::of(phase);
        let longest = part.and_then(|part| self.times.of(part));
        let message = format!(
            "the {} took longer than {} s; the device was last known as {}",
            part.map_or("attempt", Part::name),
            longest.unwrap_or_default(),
            phase.name()
        );
        self.took_too_long(message, now)
    }

    fn took_too_long(self, message: String, now: Timestamp) -> Self {
        let failure = Failure::new("timeout", message, Retry::Backoff);
        let mut update = self.fail(failure, now);
        if let UpdateState::Pending {
            due_at, lost_at, ..
        } = &mut update.state
        {
            *lost_at = Some(later(*due_at, seconds(update.timeout_seconds)));
        }
        update
    }

    /// The present attempt has failed or was put off; the next one waits for its time.
    fn attempt_is_over(&self) -> bool {
        matches!(
            self.state,
            UpdateState::Pending {
                last_failure: Some(_),
                ..
            }
        )
    }

    fn cancel_requested(&self) -> bool {
        matches!(
            self.state,
            UpdateState::InFlight {
                cancel_requested: true,
                ..
            }
        )
    }
}

/// Its device is at it, and may be lost over it: it has more than an offer or an image that it was told to hold.
fn is_work(phase: Phase, hold: bool) -> bool {
    phase > Phase::Offered && !(hold && phase == Phase::Staged)
}

fn lost() -> Failure {
    Failure::new(
        "device_lost",
        "the device took the offer and was not heard of again",
        Retry::Never,
    )
}

/// Somebody has withdrawn it.
fn cancelled(at: Timestamp) -> UpdateState {
    UpdateState::Cancelled { at, because: None }
}

fn seconds(seconds: u64) -> SignedDuration {
    SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// `at + by`, held at the end of time instead of overflowing.
fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}
