//! Progress of one update: phases, the closed set of error codes, and what each code means for
//! the next attempt.

use serde::{Deserialize, Serialize};

use super::{Invalid, bounds, message};
use crate::wire::{MAX_INTEGER, wire_enum};

wire_enum! {
    /// Where an update stands on the device.
    pub enum Phase {
        /// The offer is valid and taken.
        Accepted = "accepted",
        /// Bytes come in.
        Downloading = "downloading",
        /// The image is checked.
        Verifying = "verifying",
        /// The image is written to its slot.
        Installing = "installing",
        /// Written, waiting for `activate`.
        Staged = "staged",
        /// About to start the new image.
        Rebooting = "rebooting",
        /// The new image runs and has confirmed itself.
        Completed = "completed",
        /// Not now.
        Deferred = "deferred",
        /// Never.
        Rejected = "rejected",
        /// Tried, without success.
        Failed = "failed",
        /// Stopped by command.
        Cancelled = "cancelled",
    }
}

impl Phase {
    /// Whether nothing follows in the same attempt.
    pub const fn is_final(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::Rejected | Self::Failed | Self::Cancelled
        )
    }

    /// Whether a report of this phase must say why.
    pub const fn needs_error(self) -> bool {
        matches!(self, Self::Failed | Self::Rejected | Self::Deferred)
    }
}

wire_enum! {
    /// Why an update did not go on. A code of a newer device reads as `Internal`: its report is
    /// still worth having.
    pub enum ErrorCode else Internal {
        /// The bytes could not be had.
        DownloadFailed = "download_failed",
        /// More or fewer bytes than the release says.
        SizeMismatch = "size_mismatch",
        /// Other bytes than the release says.
        HashMismatch = "hash_mismatch",
        /// A signature does not hold.
        SignatureInvalid = "signature_invalid",
        /// The offer is no longer valid.
        Expired = "expired",
        /// An offer from the past.
        Replayed = "replayed",
        /// Meant for another device, model or hardware.
        WrongTarget = "wrong_target",
        /// Older than the device may go.
        DowngradeRefused = "downgrade_refused",
        /// Too little charge.
        LowBattery = "low_battery",
        /// Too little room.
        LowStorage = "low_storage",
        /// The user, or a window, says later.
        UserDeferred = "user_deferred",
        /// Writing the slot failed.
        InstallFailed = "install_failed",
        /// The new image did not start.
        BootFailed = "boot_failed",
        /// The new image is not well.
        HealthCheckFailed = "health_check_failed",
        /// Another version runs than was offered.
        VersionMismatch = "version_mismatch",
        /// The old version runs again.
        Reverted = "reverted",
        /// It took too long.
        Timeout = "timeout",
        /// The device went silent.
        DeviceLost = "device_lost",
        /// The device cannot take such an image.
        Unsupported = "unsupported",
        /// Anything else.
        Internal = "internal",
    }
}

/// When to try again after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// At once, with a fresh offer.
    Now,
    /// Later, and later each time.
    Backoff,
    /// Not by itself.
    Never,
}

impl ErrorCode {
    /// What this code means for the next attempt.
    ///
    /// ```
    /// use device_ota_protocol::messages::{ErrorCode, Retry};
    ///
    /// assert_eq!(ErrorCode::Expired.retry(), Retry::Now);
    /// assert_eq!(ErrorCode::HashMismatch.retry(), Retry::Backoff);
    /// assert_eq!(ErrorCode::SignatureInvalid.retry(), Retry::Never);
    /// ```
    pub const fn retry(self) -> Retry {
        match self {
            Self::Replayed | Self::Expired => Retry::Now,
            Self::DownloadFailed
            | Self::SizeMismatch
            | Self::HashMismatch
            | Self::LowBattery
            | Self::LowStorage
            | Self::UserDeferred
            | Self::Timeout
            | Self::Internal => Retry::Backoff,
            Self::SignatureInvalid
            | Self::WrongTarget
            | Self::DowngradeRefused
            | Self::InstallFailed
            | Self::BootFailed
            | Self::HealthCheckFailed
            | Self::VersionMismatch
            | Self::Reverted
            | Self::DeviceLost
            | Self::Unsupported => Retry::Never,
        }
    }
}

/// Why, in a progress report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedError {
    /// Which of the closed set.
    pub code: ErrorCode,
    /// Words for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Progress of one attempt at one update.
///
/// ```
/// use device_ota_protocol::messages::{Phase, Progress};
///
/// let report = Progress::parse(
///     br#"{"update_id":"upd_1","attempt":1,"seq":6,"phase":"completed","version":"2.1.0"}"#,
/// )?;
/// assert_eq!(report.phase, Phase::Completed);
///
/// // Failed with no error says too little. Completed with no version is taken: the service records that it is not the
/// // offered one.
/// let text = |phase| format!(r#"{{"update_id":"upd_1","attempt":1,"seq":6,"phase":"{phase}"}}"#);
/// let invalid = Progress::parse(text("failed").as_bytes()).err().map(|e| e.reason());
/// assert_eq!(invalid, Some("inconsistent"));
/// assert_eq!(Progress::parse(text("completed").as_bytes())?.version, None);
/// # Ok::<(), device_ota_protocol::messages::Invalid>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Which update.
    pub update_id: String,
    /// Which attempt at it, from 1.
    pub attempt: u32,
    /// Number of this report within the attempt, from 1.
    pub seq: u64,
    /// Where the update stands.
    pub phase: Phase,
    /// Share of the phase that is done, 0–100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// Bytes of the image at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<u64>,
    /// Size of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Bytes a second of late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_bps: Option<u64>,
    /// Version running now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Why, when failed, rejected or deferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ReportedError>,
    /// When to try again, when deferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}

message!(Progress);

impl Progress {
    /// A report with nothing but its identity and its phase.
    pub fn new(update_id: impl Into<String>, attempt: u32, seq: u64, phase: Phase) -> Self {
        Self {
            update_id: update_id.into(),
            attempt,
            seq,
            phase,
            percent: None,
            bytes_done: None,
            bytes_total: None,
            speed_bps: None,
            version: None,
            error: None,
            retry_after_s: None,
        }
    }

    /// Whether every value is within its bounds, and the fields fit the phase.
    pub fn validate(&self) -> Result<(), Invalid> {
        bounds::name("update_id", &self.update_id)?;
        bounds::names([("version", &self.version)])?;
        bounds::within("attempt", self.attempt.into(), 1..=u32::MAX.into())?;
        bounds::within("seq", self.seq, 1..=MAX_INTEGER)?;
        bounds::number("percent", self.percent, 0.0..=100.0)?;
        bounds::integers([
            ("bytes_done", self.bytes_done),
            ("bytes_total", self.bytes_total),
            ("speed_bps", self.speed_bps),
            ("retry_after_s", self.retry_after_s),
        ])?;
        if let Some(error) = &self.error {
            bounds::text("error.message", &error.message)?;
        }
        if self.phase.needs_error() && self.error.is_none() {
            return Err(Invalid::Inconsistent("the phase needs an `error`"));
        }
        Ok(())
    }
}
