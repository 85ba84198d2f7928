//! What becomes of an update after it has completed: for a while its device is watched, and one that does not stay what it
//! said it is has *regressed*. That is a mark beside the state, which has ended and does not change (ADR 16).

use jiff::{SignedDuration, Timestamp};

use super::failure::{Failure, Retry};
use super::{Action, Update, UpdateState};

/// Whether anybody looks at the device of a completed update.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Aftermath {
    /// Nobody looks: it has not completed, or has proved itself.
    #[default]
    Unwatched,
    /// Its device has to show that it stays well.
    Watched(Watch),
    /// Its device has not stayed well; that is said once, and stays.
    Regressed(Regression),
}

/// How long, and for what, a device is watched that has completed its update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchTerms {
    /// From the completion on, in seconds.
    pub seconds: u64,
    /// A device that is away and unheard for that many seconds has regressed; `None`: it may be away.
    pub silent_seconds: Option<u64>,
    /// Restarts from which on it is in a boot loop.
    pub max_restarts: u32,
}

/// A device that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// Until then.
    pub until: Timestamp,
    /// When time may decide something next: at the end, or when a device may have been silent for too long.
    pub look_at: Timestamp,
    /// See [`WatchTerms::silent_seconds`].
    pub silent_seconds: Option<u64>,
    /// Restarts that are left before they are a boot loop.
    pub restarts_left: u32,
    /// The nonce of the check that told of the last of them, so that one that is delivered twice counts once.
    pub last_boot: Option<String>,
}

/// What went wrong after the completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regression {
    /// When that was seen.
    pub at: Timestamp,
    /// `reverted`, `boot_failed`, `device_lost`, or what the device said itself.
    pub failure: Failure,
}

/// What a check or a heartbeat shows of a device that is watched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sight<'s> {
    /// Version that runs.
    pub running: &'s str,
    /// It says that it has just restarted.
    pub restarted: bool,
    /// The nonce of its check, if it is one that has any.
    pub nonce: Option<&'s str>,
    /// When it came.
    pub at: Timestamp,
}

/// What is known of a watched device when the time has come to look at it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Look<'l> {
    /// Now.
    pub now: Timestamp,
    /// Any message of the device.
    pub last_seen: Option<Timestamp>,
    /// It is connected.
    pub online: bool,
    /// Version that runs, by its last word.
    pub running: Option<&'l str>,
}

impl Update {
    /// Its regression, if it has one.
    pub fn regression(&self) -> Option<&Regression> {
        match &self.aftermath {
            Aftermath::Regressed(regression) => Some(regression),
            Aftermath::Unwatched | Aftermath::Watched(_) => None,
        }
    }

    /// Its watch, while it lasts.
    pub fn watch(&self) -> Option<&Watch> {
        match &self.aftermath {
            Aftermath::Watched(watch) => Some(watch),
            Aftermath::Unwatched | Aftermath::Regressed(_) => None,
        }
    }

    /// It has just completed: its device is watched from now on. A rollback's is not, nor is one that was before.
    #[must_use]
    pub fn watched(mut self, terms: WatchTerms) -> Self {
        let UpdateState::Completed { at } = self.state else {
            return self;
        };
        if self.action == Action::Rollback
            || self.aftermath != Aftermath::Unwatched
            || terms.seconds == 0
        {
            return self;
        }
        let until = later(at, terms.seconds);
        let silent = terms.silent_seconds.map_or(until, |s| later(at, s));
        self.aftermath = Aftermath::Watched(Watch {
            until,
            look_at: until.min(silent),
            silent_seconds: terms.silent_seconds,
            restarts_left: terms.max_restarts,
            last_boot: None,
        });
        self
    }

    /// A check or heartbeat of its device, of the time after the completion: the old version means that it fell back, too
    /// many restarts that it is in a loop. `None` when that says nothing new about this update.
    pub fn observe_afterwards(mut self, sight: &Sight<'_>) -> Option<Self> {
        let Aftermath::Watched(watch) = &mut self.aftermath else {
            return None;
        };
        if sight.at > watch.until {
            return None;
        }
        if sight.running == self.to_version {
            let repeats = sight.nonce.is_some() && watch.last_boot.as_deref() == sight.nonce;
            if !sight.restarted || repeats {
                return None;
            }
            watch.last_boot = sight.nonce.map(ToOwned::to_owned);
            watch.restarts_left = watch.restarts_left.saturating_sub(1);
            if watch.restarts_left > 0 {
                return Some(self);
            }
            let message = "restarted again and again after it had completed";
            return Some(self.regress("boot_failed", message, sight.at));
        }
        if !self.is_fallen_back(sight.running) {
            return None;
        }
        Some(self.revert(sight.running, sight.at))
    }

    /// The time has come to look at its device. `None` when nothing is due.
    pub fn look_afterwards(mut self, look: &Look<'_>) -> Option<Self> {
        let watch = self.watch()?.clone();
        if watch.look_at > look.now {
            return None;
        }
        if let Some(running) = look.running
            && self.is_fallen_back(running)
        {
            return Some(self.revert(running, look.now));
        }
        let mut look_at = watch.until;
        if let Some(seconds) = watch.silent_seconds {
            let heard = if look.online {
                look.now
            } else {
                look.last_seen.into_iter().chain(self.ended_at()).max()?
            };
            let silent_at = later(heard, seconds);
            if silent_at <= look.now.min(watch.until) {
                let message =
                    format!("completed and was not heard of for {seconds} seconds after that");
                return Some(self.regress("device_lost", message, look.now));
            }
            look_at = look_at.min(silent_at);
        }
        self.aftermath = if watch.until <= look.now {
            Aftermath::Unwatched
        } else {
            Aftermath::Watched(Watch { look_at, ..watch })
        };
        Some(self)
    }

    /// Its device says by itself that the update failed after all.
    pub(super) fn fail_afterwards(self, failure: &Failure, now: Timestamp) -> Option<Self> {
        let watched = self.watch().is_some_and(|watch| now <= watch.until);
        watched.then(|| self.regress(&failure.code, failure.message.clone(), now))
    }

    /// Whether that is what ran before the update; anything else is something that was brought to the device in another way.
    fn is_fallen_back(&self, running: &str) -> bool {
        running != self.to_version && self.from_version.as_ref().is_none_or(|old| old == running)
    }

    fn revert(self, running: &str, now: Timestamp) -> Self {
        let message = format!(
            "completed, and came back with {running} instead of {}",
            self.to_version
        );
        self.regress("reverted", message, now)
    }

    fn regress(mut self, code: &str, message: impl Into<String>, now: Timestamp) -> Self {
        self.aftermath = Aftermath::Regressed(Regression {
            at: now,
            failure: Failure::new(code, message, Retry::Never),
        });
        self.updated_at = now;
        self
    }
}

/// `at` and so many seconds, held at the end of time instead of overflowing.
fn later(at: Timestamp, seconds: u64) -> Timestamp {
    let by = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}
