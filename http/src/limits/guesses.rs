//! An address whose credentials keep failing waits before the next is looked at, but for those that were good before.
//! Whoever shows none guesses nothing.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};

use device_ota_engine::Rate;
use governor::clock::{Clock as _, DefaultClock, QuantaInstant, Reference as _};

use super::keyed::{Keyed, MAX_KEYS};
use super::remembered::Remembered;
use super::{network, wait};
use crate::errors::ApiError;

/// A credential, as it is remembered: what it says, however it is spelt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown(u64);

/// Counts credentials that were not valid.
pub(crate) struct Guesses {
    failures: Option<Keyed<IpAddr>>,
    /// Until when the credentials of an address are not looked at.
    held: RwLock<Remembered<IpAddr, QuantaInstant>>,
    /// Credentials that were good, by their hashes.
    proven: RwLock<Remembered<u64, ()>>,
    hasher: RandomState,
    clock: DefaultClock,
}

impl Guesses {
    pub(super) fn new(failures: Option<Rate>) -> Self {
        Self {
            failures: failures.and_then(Keyed::new),
            held: RwLock::new(Remembered::new(MAX_KEYS)),
            proven: RwLock::new(Remembered::new(MAX_KEYS)),
            hasher: RandomState::new(),
            clock: DefaultClock::default(),
        }
    }

    /// What this credential is remembered by.
    pub(crate) fn shown(&self, credential: &impl Hash) -> Shown {
        Shown(self.hasher.hash_one(credential))
    }

    /// 429 while an address has to wait because of credentials that were not valid. Whoever shows one that was good before
    /// does not guess.
    pub(crate) fn may_sign_in(&self, address: IpAddr, Shown(hash): Shown) -> Result<(), ApiError> {
        if self.failures.is_none() {
            return Ok(());
        }
        let proven = self.proven.read().unwrap_or_else(PoisonError::into_inner);
        if proven.get(&hash).is_some() {
            return Ok(());
        }
        drop(proven);
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        match held.get(&network(address)) {
            Some(until) if now < *until => Err(wait(until.duration_since(now).into())),
            _ => Ok(()),
        }
    }

    /// Remembers a credential that was good.
    pub(crate) fn proved(&self, Shown(hash): Shown) {
        if self.failures.is_none() {
            return;
        }
        let known = self.proven.read().unwrap_or_else(PoisonError::into_inner);
        if known.is_young(&hash) {
            return;
        }
        drop(known);
        let mut proven = self.proven.write().unwrap_or_else(PoisonError::into_inner);
        proven.put(hash, ());
    }

    /// Counts a credential of this address that was not valid, or is no longer.
    pub(crate) fn failed(&self, address: IpAddr, Shown(hash): Shown) {
        let mut proven = self.proven.write().unwrap_or_else(PoisonError::into_inner);
        proven.forget(&hash);
        drop(proven);
        let address = network(address);
        let refused = match &self.failures {
            Some(limiter) => limiter.check(&address).err(),
            None => None,
        };
        if let Some(until) = refused {
            let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
            held.put(address, until.earliest_possible());
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::tests::rate;
    use super::*;

    #[test]
    fn who_keeps_failing_waits_and_its_neighbour_does_not() {
        let guesses = Guesses::new(Some(rate(2)));
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let wrong = guesses.shown(&"wrong");
        for _ in 0..3 {
            assert!(guesses.may_sign_in(address("192.0.2.1"), wrong).is_ok());
            guesses.failed(address("192.0.2.1"), wrong);
        }
        assert!(guesses.may_sign_in(address("192.0.2.1"), wrong).is_err());
        assert!(guesses.may_sign_in(address("192.0.2.2"), wrong).is_ok());
        let right = guesses.shown(&"right");
        assert!(guesses.may_sign_in(address("192.0.2.1"), right).is_err());
        guesses.proved(right);
        assert!(guesses.may_sign_in(address("192.0.2.1"), right).is_ok());
        guesses.failed(address("192.0.2.2"), right);
        assert!(
            guesses.may_sign_in(address("192.0.2.1"), right).is_err(),
            "it is good no longer"
        );
    }
}
