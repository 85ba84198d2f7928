//! How long, and for what, devices are watched after they have completed a campaign's update.

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::SpecError;
use super::vitals::{self, Criterion};
use crate::update::WatchTerms;

/// How long a device is watched where nobody says otherwise, in seconds: an hour, in which one that says `completed` and
/// falls back, or never was what it said, shows itself.
pub const DEFAULT_WATCH_SECONDS: u64 = 3_600;
/// Longest watch, in seconds: 30 days.
pub const MAX_WATCH_SECONDS: u64 = 30 * 24 * 3_600;
/// Restarts within the watch from which on a device is in a boot loop, where nobody says otherwise: more than a person makes by
/// switching a device off and on.
pub const DEFAULT_MAX_RESTARTS: u32 = 5;
/// Most restarts that a campaign may allow.
pub const MAX_RESTARTS: u32 = 1_000;

/// What is looked at after the update (ADR 16): a device that completed and then shows its old version, restarts again and
/// again or falls silent counts as failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CampaignHealth)]
pub struct Health {
    /// How long each device is watched from its completion on, in seconds; at least for the soak of its stage. 0: for the soak
    /// alone. Default 3600.
    #[serde(default = "default_watch")]
    #[schema(maximum = 2_592_000)]
    pub watch_seconds: u64,
    /// A device that is not connected, and was not heard, for that many seconds within its watch has fallen silent. Default: the
    /// service's lease in stages with a soak; in others a device may be away.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 2_592_000)]
    pub silent_seconds: Option<u64>,
    /// So many restarts within the watch are a boot loop. Default 5.
    #[serde(default = "default_restarts")]
    #[schema(minimum = 1, maximum = 1000)]
    pub max_restarts: u32,
    /// Increases of what heartbeats tell that stop the campaign while it is in progress. Default: none.
    #[serde(default)]
    #[schema(max_items = 16)]
    pub criteria: Vec<Criterion>,
}

fn default_watch() -> u64 {
    DEFAULT_WATCH_SECONDS
}
fn default_restarts() -> u32 {
    DEFAULT_MAX_RESTARTS
}

impl Default for Health {
    fn default() -> Self {
        Self {
            watch_seconds: DEFAULT_WATCH_SECONDS,
            silent_seconds: None,
            max_restarts: DEFAULT_MAX_RESTARTS,
            criteria: Vec::new(),
        }
    }
}

impl Health {
    /// Refuses what is out of bounds.
    pub(super) fn check(&self) -> Result<(), SpecError> {
        let range = |field, rule| Err(SpecError::Range { field, rule });
        if self.watch_seconds > MAX_WATCH_SECONDS {
            return range("health.watch_seconds", "at most 2592000");
        }
        let silent = |seconds| (1..=MAX_WATCH_SECONDS).contains(&seconds);
        if !self.silent_seconds.is_none_or(silent) {
            return range("health.silent_seconds", "1 to 2592000");
        }
        if !(1..=MAX_RESTARTS).contains(&self.max_restarts) {
            return range("health.max_restarts", "1 to 1000");
        }
        vitals::check(&self.criteria)
    }

    /// The terms of a stage with that soak, in a service with that lease.
    pub fn terms(&self, soak_seconds: u64, lease: SignedDuration) -> WatchTerms {
        let lease = u64::try_from(lease.as_secs()).unwrap_or_default().max(1);
        WatchTerms {
            seconds: self.watch_seconds.max(soak_seconds),
            silent_seconds: self.silent_seconds.or((soak_seconds > 0).then_some(lease)),
            max_restarts: self.max_restarts,
        }
    }
}
