//! How long an update may take, beside the whole time of one attempt: the parts of an attempt, and the update as a whole.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Phase;

/// What an attempt spends its time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// From its acceptance until the image is there.
    Download,
    /// From there until the device runs it.
    Installation,
}

impl Part {
    /// The part that a phase belongs to; `None`: the device waits to be told, or has not answered.
    pub const fn of(phase: Phase) -> Option<Self> {
        match phase {
            Phase::Accepted | Phase::Downloading => Some(Self::Download),
            Phase::Verifying | Phase::Installing | Phase::Rebooting => Some(Self::Installation),
            Phase::Offered | Phase::Staged => None,
        }
    }

    /// The name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Installation => "installation",
        }
    }
}

/// Times beside that of a whole attempt, each `None` where nothing but that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// Longest that the download of an attempt may take.
    pub download_seconds: Option<u64>,
    /// Longest that its installation may take.
    pub install_seconds: Option<u64>,
    /// Longest that an update as a whole may take, all attempts and the wait for its device together.
    pub give_up_after_seconds: Option<u64>,
}

impl Times {
    /// When an update whose time as a whole begins now is given up.
    pub fn ends_by(&self, now: Timestamp) -> Option<Timestamp> {
        let seconds = i64::try_from(self.give_up_after_seconds?).unwrap_or(i64::MAX);
        let whole = SignedDuration::from_secs(seconds);
        Some(now.checked_add(whole).unwrap_or(Timestamp::MAX))
    }

    /// The longest that this part may take.
    pub const fn of(&self, part: Part) -> Option<u64> {
        match part {
            Part::Download => self.download_seconds,
            Part::Installation => self.install_seconds,
        }
    }
}
