//! One rate for each of many, in bounded memory.

use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use device_ota_engine::Rate;
use governor::clock::{DefaultClock, QuantaInstant};
use governor::state::keyed::DashMapStateStore;
use governor::{NotUntil, Quota, RateLimiter};

/// Most keys that are remembered, some 100 bytes each; a little more between two looks.
pub(super) const MAX_KEYS: usize = 65_536;
/// Checks between two looks at how many keys are remembered.
pub(super) const LOOK_EVERY: u64 = 1_024;

type States<K> = RateLimiter<K, DashMapStateStore<K>, DefaultClock>;

/// Counts what each key does.
pub(super) struct Keyed<K: Hash + Eq + Clone> {
    quota: Quota,
    states: RwLock<States<K>>,
    seen: AtomicU64,
}

impl<K: Hash + Eq + Clone> Keyed<K> {
    /// At this rate each.
    pub(super) fn new(rate: Rate) -> Option<Self> {
        let quota = quota(rate)?;
        Some(Self {
            quota,
            states: RwLock::new(RateLimiter::dashmap(quota)),
            seen: AtomicU64::new(0),
        })
    }

    /// Counts one of this key.
    pub(super) fn check(&self, key: &K) -> Result<(), NotUntil<QuantaInstant>> {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed);
        if seen.is_multiple_of(LOOK_EVERY) {
            self.forget();
        }
        self.states
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .check_key(key)
    }

    /// Forgets the keys that have been quiet, and all of them when too many have not.
    fn forget(&self) {
        let mut states = self.states.write().unwrap_or_else(PoisonError::into_inner);
        if states.len() > MAX_KEYS {
            states.retain_recent();
            if states.len() > MAX_KEYS {
                *states = RateLimiter::dashmap(self.quota);
            } else {
                states.shrink_to_fit();
            }
        }
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.states
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

/// The form of a rate that governor takes.
pub(super) fn quota(rate: Rate) -> Option<Quota> {
    Quota::with_period(rate.per / rate.count.get()).map(|quota| quota.allow_burst(rate.count))
}
