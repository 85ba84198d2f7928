//! Since when the service has listened to devices without a break.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};

/// The shortest time without a look that counts as a break.
const SHORTEST_BREAK: SignedDuration = SignedDuration::from_secs(10);

/// Since when the service has listened to devices without a break: nobody is called silent before it has listened for
/// a whole lease. Breaks are a start, a database that was away, a broker that could not be reached, a machine that slept,
/// a clock that was set.
#[derive(Default)]
pub(crate) struct Listening(Mutex<State>);

#[derive(Default)]
struct State {
    deaf: bool,
    /// When the last break was over, and when somebody looked last.
    unbroken: Option<(Timestamp, Timestamp)>,
}

impl Listening {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may have been missed until this moment.
    pub(crate) fn breaks(&self) {
        self.state().unbroken = None;
    }

    /// Nothing is heard from now on, or all is again.
    pub(crate) fn hears(&self, hears: bool) {
        let mut state = self.state();
        state.deaf = !hears;
        state.unbroken = None;
    }

    /// Whether anything can be heard at the moment.
    pub(crate) fn can_hear(&self) -> bool {
        !self.state().deaf
    }

    /// Whether it has listened for that long.
    pub(crate) fn for_a_lease(&self, now: Timestamp, lease: SignedDuration) -> bool {
        let mut state = self.state();
        if state.deaf {
            return false;
        }
        let since = match state.unbroken {
            Some((since, last))
                if last <= now && now.duration_since(last) < lease.max(SHORTEST_BREAK) =>
            {
                since
            }
            _ => now,
        };
        state.unbroken = Some((since, now));
        now.duration_since(since) >= lease
    }
}
