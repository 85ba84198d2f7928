//! How often somebody may call: one address and all of them together before anybody is asked who they are, then
//! each subject by what it asks for; and addresses that guess ([`guesses`]).

mod guesses;
mod keyed;
mod remembered;

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};

use device_ota_engine::Rate;
use governor::clock::{Clock as _, DefaultClock, QuantaInstant};
use governor::{DefaultDirectRateLimiter, NotUntil, RateLimiter};
use http::Method;

use crate::errors::ApiError;
use guesses::Guesses;
use keyed::{Keyed, quota};

/// What follows this in a path is a secret as good as a key: the log shows the path up to here.
pub(crate) const LINKS: &str = "/api/v1/ota/objects/";
/// Paths whose requests are not counted: links are limited by their expiry, health by being cheap.
const UNCOUNTED: [&str; 2] = [LINKS, "/health"];

/// Whether requests to this path count against the rate limits.
pub(crate) fn is_counted(path: &str) -> bool {
    !UNCOUNTED.iter().any(|prefix| path.starts_with(prefix))
}

/// The limits of the API; `None` is no limit. Downloads by link and health checks are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Of one address; an IPv6 address counts as its /64 network, which one subscriber has.
    pub per_address: Option<Rate>,
    /// Of all addresses together.
    pub global: Option<Rate>,
    /// Credentials of one address that are not valid.
    pub failures: Option<Rate>,
    /// Reads of one subject.
    pub read: Option<Rate>,
    /// Changes of one subject.
    pub write: Option<Rate>,
    /// Uploads of one subject.
    pub upload: Option<Rate>,
    /// Statistics and overviews for one subject.
    pub stats: Option<Rate>,
    /// Heartbeats of one device.
    pub heartbeat: Option<Rate>,
}

/// What a request asks for, by what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Read,
    Write,
    Upload,
    Stats,
    Heartbeat,
}

impl Class {
    /// As metrics name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Upload => "upload",
            Self::Stats => "stats",
            Self::Heartbeat => "heartbeat",
        }
    }

    /// The class of a request.
    pub(crate) fn of(method: &Method, path: &str) -> Self {
        let path = path.strip_suffix('/').unwrap_or(path);
        let reads = matches!(*method, Method::GET | Method::HEAD);
        if reads && (path.contains("/ota/stats") || path.ends_with("/devices/status")) {
            Self::Stats
        } else if reads {
            Self::Read
        } else if *method == Method::POST && path.ends_with("/v1/heartbeat") {
            Self::Heartbeat
        } else if *method == Method::POST && path.ends_with("/firmware") {
            Self::Upload
        } else {
            Self::Write
        }
    }
}

/// Counts requests.
pub(crate) struct Limiter {
    per_address: Option<Keyed<IpAddr>>,
    global: Option<DefaultDirectRateLimiter>,
    pub(crate) guesses: Guesses,
    read: Option<Keyed<u64>>,
    write: Option<Keyed<u64>>,
    upload: Option<Keyed<u64>>,
    stats: Option<Keyed<u64>>,
    heartbeat: Option<Keyed<u64>>,
    /// Subjects are remembered by their hashes, which are short.
    hasher: RandomState,
    clock: DefaultClock,
}

impl Limiter {
    pub(crate) fn new(limits: RateLimits) -> Self {
        Self {
            per_address: limits.per_address.and_then(Keyed::new),
            global: limits.global.and_then(quota).map(RateLimiter::direct),
            guesses: Guesses::new(limits.failures),
            read: limits.read.and_then(Keyed::new),
            write: limits.write.and_then(Keyed::new),
            upload: limits.upload.and_then(Keyed::new),
            stats: limits.stats.and_then(Keyed::new),
            heartbeat: limits.heartbeat.and_then(Keyed::new),
            hasher: RandomState::new(),
            clock: DefaultClock::default(),
        }
    }

    /// Counts one request of this address; 429 when it is one too many.
    pub(crate) fn check(&self, address: IpAddr) -> Result<(), ApiError> {
        if let Some(limiter) = &self.per_address {
            limiter
                .check(&network(address))
                .map_err(|until| self.refuse(&until))?;
        }
        match &self.global {
            Some(limiter) => limiter.check().map_err(|until| self.refuse(&until)),
            None => Ok(()),
        }
    }

    /// Counts one request of somebody who has signed in; 429 when it is one too many of its class.
    pub(crate) fn check_subject(&self, subject: &str, class: Class) -> Result<(), ApiError> {
        let limiter = match class {
            Class::Read => &self.read,
            Class::Write => &self.write,
            Class::Upload => &self.upload,
            Class::Stats => &self.stats,
            Class::Heartbeat => &self.heartbeat,
        };
        match limiter {
            Some(limiter) => limiter
                .check(&self.hasher.hash_one(subject))
                .map_err(|until| self.refuse(&until)),
            None => Ok(()),
        }
    }

    fn refuse(&self, until: &NotUntil<QuantaInstant>) -> ApiError {
        wait(until.wait_time_from(self.clock.now()))
    }
}

/// 429, with whole seconds.
fn wait(time: std::time::Duration) -> ApiError {
    ApiError::too_many(time.as_secs() + u64::from(time.subsec_nanos() > 0))
}

/// What counts as one address.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::keyed::MAX_KEYS;
    use super::*;

    pub(super) fn rate(count: u32) -> Rate {
        Rate {
            count: NonZeroU32::new(count).unwrap(),
            per: Duration::from_hours(1),
        }
    }

    fn check(limiter: &Limiter, address: &str) -> u16 {
        limiter
            .check(address.parse().unwrap())
            .map_or_else(|error| error.render("r").status().as_u16(), |()| 200)
    }

    #[test]
    fn an_address_that_asks_too_often_waits_and_its_neighbour_does_not() {
        let limiter = Limiter::new(RateLimits {
            per_address: Some(rate(2)),
            ..RateLimits::default()
        });
        assert_eq!(
            [200, 200, 429],
            [(); 3].map(|()| check(&limiter, "192.0.2.1"))
        );
        assert_eq!(
            check(&limiter, "::ffff:192.0.2.1"),
            429,
            "the same address in its other form"
        );
        assert_eq!(check(&limiter, "192.0.2.2"), 200);
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one() {
        let limiter = Limiter::new(RateLimits {
            per_address: Some(rate(1)),
            ..RateLimits::default()
        });
        assert_eq!(check(&limiter, "2001:db8::1"), 200);
        assert_eq!(check(&limiter, "2001:db8::2"), 429);
        assert_eq!(check(&limiter, "2001:db8:0:1::1"), 200);
    }

    #[test]
    fn all_together_have_a_limit_too_and_the_answer_says_when() {
        let limiter = Limiter::new(RateLimits {
            global: Some(rate(1)),
            ..RateLimits::default()
        });
        assert_eq!(check(&limiter, "192.0.2.1"), 200);
        let refused = limiter
            .check("192.0.2.2".parse().unwrap())
            .unwrap_err()
            .render("r");
        let wait: u64 = refused.headers()[http::header::RETRY_AFTER]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((3_590..=3_600).contains(&wait), "{wait}");
    }

    #[test]
    fn no_limit_is_no_limit() {
        let limiter = Limiter::new(RateLimits::default());
        assert!((0..10_000).all(|_| check(&limiter, "192.0.2.1") == 200));
    }

    #[test]
    fn a_flood_of_addresses_is_remembered_in_bounded_memory() {
        let limiter = Limiter::new(RateLimits {
            per_address: Some(rate(1)),
            ..RateLimits::default()
        });
        let many = u32::try_from(MAX_KEYS).unwrap();
        let busy = IpAddr::V4(u32::MAX.into());
        limiter.check(busy).unwrap();
        for number in 0..2 * many {
            limiter.check(IpAddr::V4(number.into())).unwrap();
            // The flood gives nobody who goes on in it another budget.
            if number % (many / 4) == 0 {
                assert!(limiter.check(busy).is_err(), "after {number}");
            }
        }
        let remembered = limiter.per_address.unwrap().remembered();
        assert!(remembered <= MAX_KEYS, "{remembered}");
    }

    #[test]
    fn each_subject_has_its_own_budget_for_each_class() {
        let limiter = Limiter::new(RateLimits {
            read: Some(rate(2)),
            write: Some(rate(1)),
            ..RateLimits::default()
        });
        let allowed = |subject, class| limiter.check_subject(subject, class).is_ok();
        assert_eq!(
            [true, true, false],
            [(); 3].map(|()| allowed("a", Class::Read))
        );
        assert!(allowed("a", Class::Write) && !allowed("a", Class::Write));
        assert!(allowed("b", Class::Read) && allowed("a", Class::Upload));
    }

    #[test]
    fn a_request_is_counted_by_what_it_costs() {
        let class = |method, path| Class::of(&method, path);
        assert_eq!(class(Method::GET, "/api/v1/ota/firmware"), Class::Read);
        assert_eq!(class(Method::POST, "/api/v1/ota/firmware/"), Class::Upload);
        assert_eq!(class(Method::POST, "/api/v1/firmware"), Class::Upload);
        assert_eq!(
            class(Method::POST, "/api/v1/firmware/x/deploy"),
            Class::Write
        );
        assert_eq!(class(Method::DELETE, "/api/v1/ota/keys/x"), Class::Write);
        assert_eq!(
            class(Method::GET, "/api/v1/ota/stats/campaigns/c"),
            Class::Stats
        );
        assert_eq!(class(Method::GET, "/api/v1/devices/status"), Class::Stats);
    }
}
