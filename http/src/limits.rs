//! How often one address, and all of them together, may call; counted before anybody is asked who they are.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use device_ota_engine::Rate;
use governor::clock::{Clock as _, DefaultClock, QuantaInstant};
use governor::state::keyed::DashMapStateStore;
use governor::{DefaultDirectRateLimiter, NotUntil, Quota, RateLimiter};

use crate::errors::ApiError;

/// Most addresses that are remembered, some 100 bytes each; a little more between two looks.
const MAX_ADDRESSES: usize = 65_536;
/// Requests between two looks at how many addresses are remembered.
const LOOK_EVERY: u64 = 1_024;

/// The limits of the API; `None` is no limit. Downloads by link and health checks are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Of one address; an IPv6 address counts as its /64 network, which one subscriber has.
    pub per_address: Option<Rate>,
    /// Of all addresses together.
    pub global: Option<Rate>,
}

type Addresses = RateLimiter<IpAddr, DashMapStateStore<IpAddr>, DefaultClock>;

/// Counts requests.
pub(crate) struct Limiter {
    per_address: Option<PerAddress>,
    global: Option<DefaultDirectRateLimiter>,
    clock: DefaultClock,
}

/// Counts the requests of each address, in bounded memory.
struct PerAddress {
    quota: Quota,
    addresses: RwLock<Addresses>,
    seen: AtomicU64,
}

impl Limiter {
    pub(crate) fn new(limits: RateLimits) -> Self {
        Self {
            per_address: limits.per_address.and_then(quota).map(PerAddress::new),
            global: limits.global.and_then(quota).map(RateLimiter::direct),
            clock: DefaultClock::default(),
        }
    }

    /// Counts one request of this address; 429 when it is one too many.
    pub(crate) fn check(&self, address: IpAddr) -> Result<(), ApiError> {
        if let Some(limiter) = &self.per_address {
            limiter
                .check(network(address))
                .map_err(|until| self.refuse(&until))?;
        }
        match &self.global {
            Some(limiter) => limiter.check().map_err(|until| self.refuse(&until)),
            None => Ok(()),
        }
    }

    fn refuse(&self, until: &NotUntil<QuantaInstant>) -> ApiError {
        let wait = until.wait_time_from(self.clock.now());
        ApiError::too_many(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
    }
}

impl PerAddress {
    fn new(quota: Quota) -> Self {
        Self {
            quota,
            addresses: RwLock::new(RateLimiter::dashmap(quota)),
            seen: AtomicU64::new(0),
        }
    }

    fn check(&self, address: IpAddr) -> Result<(), NotUntil<QuantaInstant>> {
        if self
            .seen
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(LOOK_EVERY)
        {
            self.forget();
        }
        self.addresses
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .check_key(&address)
    }

    /// Forgets the addresses that have been quiet, and all of them when too many have not.
    fn forget(&self) {
        let mut addresses = self
            .addresses
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if addresses.len() > MAX_ADDRESSES {
            addresses.retain_recent();
            if addresses.len() > MAX_ADDRESSES {
                *addresses = RateLimiter::dashmap(self.quota);
            } else {
                addresses.shrink_to_fit();
            }
        }
    }
}

fn quota(rate: Rate) -> Option<Quota> {
    Quota::with_period(rate.per / rate.count.get()).map(|quota| quota.allow_burst(rate.count))
}

/// What counts as one address.
fn network(address: IpAddr) -> IpAddr {
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

    use super::*;

    fn rate(count: u32) -> Rate {
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
            global: None,
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
            global: None,
        });
        assert_eq!(check(&limiter, "2001:db8::1"), 200);
        assert_eq!(check(&limiter, "2001:db8::2"), 429);
        assert_eq!(check(&limiter, "2001:db8:0:1::1"), 200);
    }

    #[test]
    fn all_together_have_a_limit_too_and_the_answer_says_when() {
        let limiter = Limiter::new(RateLimits {
            per_address: None,
            global: Some(rate(1)),
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
            global: None,
        });
        let looks = u32::try_from(LOOK_EVERY).unwrap();
        for number in 0..u32::try_from(MAX_ADDRESSES).unwrap() + 2 * looks {
            limiter.check(IpAddr::V4(number.into())).unwrap();
        }
        let remembered = limiter
            .per_address
            .unwrap()
            .addresses
            .into_inner()
            .unwrap()
            .len();
        assert!(remembered <= 2 * looks as usize, "{remembered}");
    }
}
