//! One rate for each of many, in bounded memory.

use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use device_ota_engine::Rate;
use governor::clock::{DefaultClock, QuantaInstant};
use governor::{DefaultDirectRateLimiter, NotUntil, Quota, RateLimiter};

use super::remembered::Remembered;

/// Most keys that are remembered, some 200 bytes each. In a flood of more, those are forgotten who have not come for longest.
pub(super) const MAX_KEYS: usize = 65_536;

/// Counts what each key does.
pub(super) struct Keyed<K> {
    quota: Quota,
    clock: DefaultClock,
    states: Mutex<Remembered<K, DefaultDirectRateLimiter>>,
}

impl<K: Hash + Eq + Clone> Keyed<K> {
    /// At this rate each.
    pub(super) fn new(rate: Rate) -> Option<Self> {
        Some(Self {
            quota: quota(rate)?,
            clock: DefaultClock::default(),
            states: Mutex::new(Remembered::new(MAX_KEYS)),
        })
    }

    /// Counts one of this key.
    pub(super) fn check(&self, key: &K) -> Result<(), NotUntil<QuantaInstant>> {
        let new = || RateLimiter::direct_with_clock(self.quota, self.clock.clone());
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.renew(key, new, RateLimiter::check)
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.len()
    }
}

/// The form of a rate that governor takes.
pub(super) fn quota(rate: Rate) -> Option<Quota> {
    Quota::with_period(rate.per / rate.count.get()).map(|quota| quota.allow_burst(rate.count))
}
