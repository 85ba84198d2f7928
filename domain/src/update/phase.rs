//! Phases of an update in flight.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Phases of an update in flight, in order (PROTOCOL.md, *progress*); `Offered` is the service's own.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Sent, or about to be; the device has not answered.
    Offered,
    /// The device took it.
    Accepted,
    /// It reads the image.
    Downloading,
    /// It checks the image.
    Verifying,
    /// It writes the slot.
    Installing,
    /// It waits for `activate`.
    Staged,
    /// It restarts.
    Rebooting,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Self; 7] = [
        Self::Offered,
        Self::Accepted,
        Self::Downloading,
        Self::Verifying,
        Self::Installing,
        Self::Staged,
        Self::Rebooting,
    ];

    /// The name on the wire and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Accepted => "accepted",
            Self::Downloading => "downloading",
            Self::Verifying => "verifying",
            Self::Installing => "installing",
            Self::Staged => "staged",
            Self::Rebooting => "rebooting",
        }
    }

    /// The phase of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.name() == name)
    }

    /// A cancel still helps (PRD, E3-US3: not once it installs).
    pub fn can_cancel(self) -> bool {
        self < Self::Installing || self == Self::Staged
    }
}
