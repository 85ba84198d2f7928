//! The real clock and the real randomness: the only place that has them.

use device_ota_engine::ports::{Clock, Entropy};
use jiff::{Timestamp, TimestampRound, Unit};

/// The system's clock, truncated to microseconds.
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the composition root is where time comes from"
    )]
    fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        let round = TimestampRound::new()
            .smallest(Unit::Microsecond)
            .mode(jiff::RoundMode::Trunc);
        now.round(round).unwrap_or(now)
    }
}

/// The operating system's randomness.
pub(crate) struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        // Without randomness no secret can be made: there is nothing to go on with.
        getrandom::fill(bytes).expect("the operating system gives random bytes");
    }
}
