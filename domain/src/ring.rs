//! Rings: which devices take a release first.
//!
//! A device's *bucket* (0–9999) is a stable hash of its id. A campaign turns the wheel by its own offset, so that
//! the same devices are not always the canaries; a device may be pinned to a ring instead.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Buckets on the wheel; one bucket is a hundredth of a percent.
pub const BUCKETS: u16 = 10_000;

/// The four rings (rings-and-heartbeat document, *Deployment Rings*); how much of a fleet they take, [`Shares`] say.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Ring {
    /// The first.
    Canary,
    /// Early adopters.
    Early,
    /// Most.
    Broad,
    /// Everything.
    Production,
}

impl Ring {
    /// In the order in which they open.
    pub const ALL: [Self; 4] = [Self::Canary, Self::Early, Self::Broad, Self::Production];

    /// The name in both documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Canary => "canary",
            Self::Early => "early",
            Self::Broad => "broad",
            Self::Production => "production",
        }
    }

    /// The ring of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ring| ring.name() == name)
    }
}

/// How much of a fleet each ring and those before it take. A campaign keeps those it was made with, so that no device
/// changes its ring while it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    canary: u16,
    early: u16,
    broad: u16,
}

/// Shares that do not rise to everything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the shares of canary, early, broad and production must rise, from above 0 to 100 percent, by at least 0.01"
)]
pub struct SharesError;

impl Default for Shares {
    /// As the rings-and-heartbeat document has them: 5, 25, 75 and 100 percent.
    fn default() -> Self {
        Self {
            canary: 500,
            early: 2_500,
            broad: 7_500,
        }
    }
}

impl Shares {
    /// Shares that end before these buckets, in the order of [`Ring::ALL`].
    pub fn of_buckets(ends: [u16; 4]) -> Result<Self, SharesError> {
        let [canary, early, broad, production] = ends;
        let rise = canary > 0 && canary < early && early < broad && broad < production;
        if rise && production == BUCKETS {
            Ok(Self {
                canary,
                early,
                broad,
            })
        } else {
            Err(SharesError)
        }
    }

    /// Cumulative shares in percent, in the order of [`Ring::ALL`], to the hundredth.
    ///
    /// ```
    /// # use device_ota_domain::ring::{Ring, Shares};
    /// let shares = Shares::of_percents([1.0, 10.0, 50.0, 100.0]).unwrap();
    /// assert_eq!((shares.end_bucket(Ring::Canary), shares.start_bucket(Ring::Production)), (100, 5_000));
    /// assert!(Shares::of_percents([5.0, 5.0, 75.0, 100.0]).is_err());
    /// assert!(Shares::of_percents([5.0, 25.0, 75.0, 99.0]).is_err());
    /// ```
    pub fn of_percents(percents: [f64; 4]) -> Result<Self, SharesError> {
        if percents
            .iter()
            .all(|percent| (0.0..=100.0).contains(percent))
        {
            Self::of_buckets(percents.map(buckets))
        } else {
            Err(SharesError)
        }
    }

    /// The ring ends before this bucket (cumulative share in hundredths of a percent).
    pub const fn end_bucket(&self, ring: Ring) -> u16 {
        match ring {
            Ring::Canary => self.canary,
            Ring::Early => self.early,
            Ring::Broad => self.broad,
            Ring::Production => BUCKETS,
        }
    }

    /// The ring begins at this bucket; where a pinned device stands, whatever its bucket and the campaign's turn.
    pub const fn start_bucket(&self, ring: Ring) -> u16 {
        match ring {
            Ring::Canary => 0,
            Ring::Early => self.canary,
            Ring::Broad => self.early,
            Ring::Production => self.broad,
        }
    }

    /// The ring's cumulative share in percent.
    pub fn percent(&self, ring: Ring) -> f64 {
        f64::from(self.end_bucket(ring)) / 100.0
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to lie in 0..=100"
)]
fn buckets(percent: f64) -> u16 {
    (percent * 100.0).round() as u16
}

/// The shares that new campaigns get, and who set them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RingSettings {
    /// The shares.
    pub shares: Shares,
    /// Rises with each change.
    pub revision: i64,
    /// When they were set; `None`: never, they are the defaults.
    pub updated_at: Option<jiff::Timestamp>,
    /// By whom.
    pub updated_by: Option<String>,
}

/// The device's place on the wheel: stable for ever, evenly spread.
pub fn bucket(device_id: &str) -> u16 {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(device_id);
    let number = digest
        .iter()
        .take(8)
        .fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
    u16::try_from(number % u64::from(BUCKETS)).unwrap_or(0) // always below BUCKETS
}

/// The bucket as a campaign with this offset sees it.
pub fn turned(bucket: u16, offset: u16) -> u16 {
    (bucket % BUCKETS + offset % BUCKETS) % BUCKETS
}
