//! What stops a campaign: too large a share of failures, of all or of one kind.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::SpecError;

/// Most criteria of a campaign.
pub const MAX_ABORTS: usize = 16;

/// What kind of failure an update ended with, by its error code (docs/campaigns.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// It went wrong on the device.
    Failed,
    /// The device refused it.
    Rejected,
    /// It took too long, or the device was not heard of again.
    TimedOut,
}

impl FailureKind {
    /// The kind of that code; one that nobody knows went wrong on the device.
    ///
    /// ```
    /// # use device_ota_domain::campaign::FailureKind;
    /// assert_eq!(FailureKind::of("device_lost"), FailureKind::TimedOut);
    /// assert_eq!(FailureKind::of("signature_invalid"), FailureKind::Rejected);
    /// assert_eq!(FailureKind::of("install_failed"), FailureKind::Failed);
    /// ```
    pub fn of(code: &str) -> Self {
        match code {
            "timeout" | "device_lost" => Self::TimedOut,
            "signature_invalid" | "expired" | "replayed" | "wrong_target" | "downgrade_refused"
            | "unsupported" => Self::Rejected,
            _ => Self::Failed,
        }
    }
}

/// Updates that failed, or regressed, by their kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Failures {
    /// See [`FailureKind::Failed`].
    pub failed: u64,
    /// See [`FailureKind::Rejected`].
    pub rejected: u64,
    /// See [`FailureKind::TimedOut`].
    pub timed_out: u64,
}

impl Failures {
    /// The number of one kind, to change it.
    pub fn of_mut(&mut self, kind: FailureKind) -> &mut u64 {
        match kind {
            FailureKind::Failed => &mut self.failed,
            FailureKind::Rejected => &mut self.rejected,
            FailureKind::TimedOut => &mut self.timed_out,
        }
    }

    /// Those that a criterion looks at.
    pub fn on(&self, what: AbortOn) -> u64 {
        match what {
            AbortOn::Failed => self.failed,
            AbortOn::Rejected => self.rejected,
            AbortOn::TimedOut => self.timed_out,
            AbortOn::Any => self
                .failed
                .saturating_add(self.rejected)
                .saturating_add(self.timed_out),
        }
    }

    /// Those that are here and not there.
    #[must_use]
    pub fn since(self, then: Self) -> Self {
        Self {
            failed: self.failed.saturating_sub(then.failed),
            rejected: self.rejected.saturating_sub(then.rejected),
            timed_out: self.timed_out.saturating_sub(then.timed_out),
        }
    }
}

/// Which failures a criterion looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AbortOn {
    /// Those that went wrong on the device.
    Failed,
    /// Those that the device refused.
    Rejected,
    /// Those that took too long, or whose devices were lost.
    TimedOut,
    /// All of them.
    Any,
}

impl AbortOn {
    /// What their share is called.
    pub const fn rate(self) -> &'static str {
        match self {
            Self::Failed => "rate of failures on devices",
            Self::Rejected => "rejection rate",
            Self::TimedOut => "timeout rate",
            Self::Any => "failure rate",
        }
    }
}

/// What a criterion does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AbortAction {
    /// Stop, and ask a person.
    Pause,
    /// End the campaign; what completed stays.
    Cancel,
    /// Take back what completed.
    Rollback,
}

/// A share of failures that stops the campaign (DESIGN.md, *HTTP*): strictly above `percent` of the results, from `min_samples`
/// results on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// Which failures.
    pub on: AbortOn,
    /// Their share of the results that must not be exceeded, 0–100.
    #[schema(minimum = 0, maximum = 100)]
    pub percent: f64,
    /// Results before it is looked at. Default 1.
    #[serde(default = "one")]
    pub min_samples: u64,
    /// What happens then.
    pub action: AbortAction,
}

fn one() -> u64 {
    1
}

/// Refuses criteria out of bounds.
pub(super) fn check(aborts: &[Abort]) -> Result<(), SpecError> {
    let range = |field, rule| Err(SpecError::Range { field, rule });
    if aborts.len() > MAX_ABORTS {
        return range("abort", "at most 16");
    }
    if !aborts
        .iter()
        .all(|abort| (0.0..=100.0).contains(&abort.percent))
    {
        return range("abort.percent", "0 to 100");
    }
    Ok(())
}
