//! The states of updates, as figures tell them apart.

use serde::{Deserialize, Serialize};

/// The groups that a campaign counts (PRD, FR-8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Waits for its turn.
    Pending,
    /// Holds a slot.
    InFlight,
    /// Holds the image in its idle slot, and no slot of the campaign's.
    Staged,
    /// Runs the offered version.
    Completed,
    /// Ended without it.
    Failed,
    /// Withdrawn.
    Cancelled,
}

impl Group {
    /// All, in the order of their names' columns.
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::InFlight,
        Self::Staged,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The group of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.name() == name)
    }

    /// Its name in the database and in figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InFlight => "in_flight",
            Self::Staged => "staged",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}
