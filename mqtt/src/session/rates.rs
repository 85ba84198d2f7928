//! How much one device may say. The count is the device's, not the connection's: connecting again does not reset it.

use std::time::Duration;

use device_ota_domain::DeviceKey;
use device_ota_engine::Rate;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::limits::Limits;

/// What is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Connections.
    Connect,
    /// Heartbeats.
    Heartbeat,
    /// Checks.
    Check,
    /// Everything else.
    Report,
}

/// Says whether a device has said too much.
pub trait Meter: Send + Sync {
    /// Counts one message; if it is over the limit, how long until one would not be.
    fn allow(&self, class: Class, device: DeviceKey) -> Result<(), Duration>;
}

type Limiter<C> =
    RateLimiter<DeviceKey, DashMapStateStore<DeviceKey>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// The limits of [`Limits`], kept for every device that was heard lately.
pub struct RateLimits<C: Clock = DefaultClock> {
    connect: Option<Limiter<C>>,
    heartbeat: Option<Limiter<C>>,
    check: Option<Limiter<C>>,
    report: Option<Limiter<C>>,
    clock: C,
}

impl<C: Clock + Clone> RateLimits<C> {
    /// The limits by this clock.
    pub fn new(limits: &Limits, clock: C) -> Self {
        let limiter = |rate: Option<Rate>| {
            let quota = Quota::with_period(rate?.per / rate?.count.get())?;
            let quota = quota.allow_burst(rate?.count);
            Some(RateLimiter::new(
                quota,
                DashMapStateStore::default(),
                clock.clone(),
            ))
        };
        let connect = limiter(limits.connect);
        let heartbeat = limiter(limits.heartbeat);
        let check = limiter(limits.check);
        let report = limiter(limits.report);
        Self {
            connect,
            heartbeat,
            check,
            report,
            clock,
        }
    }

    /// Forgets devices whose count is as if they had never spoken.
    pub fn forget_idle(&self) {
        let limiters = [&self.connect, &self.heartbeat, &self.check, &self.report];
        for limiter in limiters.into_iter().flatten() {
            limiter.retain_recent();
        }
    }
}

impl<C: Clock + Send + Sync> Meter for RateLimits<C>
where
    C::Instant: Send + Sync,
{
    fn allow(&self, class: Class, device: DeviceKey) -> Result<(), Duration> {
        let limiter = match class {
            Class::Connect => &self.connect,
            Class::Heartbeat => &self.heartbeat,
            Class::Check => &self.check,
            Class::Report => &self.report,
        };
        let Some(limiter) = limiter else {
            return Ok(());
        };
        limiter
            .check_key(&device)
            .map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }
}

impl<C: Clock> std::fmt::Debug for RateLimits<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimits").finish_non_exhaustive()
    }
}
