//! Rings: which devices take a release first.
//!
//! A device's *bucket* (0–9999) is a stable hash of its id. A campaign turns the wheel by its own offset, so that
//! the same devices are not always the canaries; a device may be pinned to a ring instead.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Buckets on the wheel; one bucket is a hundredth of a percent.
pub const BUCKETS: u16 = 10_000;

/// The four rings (rings-and-heartbeat document, *Deployment Rings*); shares are cumulative.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Ring {
    /// The first 5 %.
    Canary,
    /// Up to 25 %.
    Early,
    /// Up to 75 %.
    Broad,
    /// Everything.
    Production,
}

impl Ring {
    /// In the order in which they open.
    pub const ALL: [Self; 4] = [Self::Canary, Self::Early, Self::Broad, Self::Production];

    /// The ring ends before this bucket (cumulative share in hundredths of a percent).
    pub const fn end_bucket(self) -> u16 {
        match self {
            Self::Canary => 500,
            Self::Early => 2_500,
            Self::Broad => 7_500,
            Self::Production => BUCKETS,
        }
    }

    /// The ring begins at this bucket; where a pinned device stands, whatever its bucket and the campaign's turn.
    pub const fn start_bucket(self) -> u16 {
        match self {
            Self::Canary => 0,
            Self::Early => Self::Canary.end_bucket(),
            Self::Broad => Self::Early.end_bucket(),
            Self::Production => Self::Broad.end_bucket(),
        }
    }

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
