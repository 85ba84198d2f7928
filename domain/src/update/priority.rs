//! Which of several updates goes first.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which campaign goes first when two want the same slot or device.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Last.
    Low,
    /// Usual.
    #[default]
    Normal,
    /// Before usual ones.
    High,
    /// First.
    Critical,
}

impl Priority {
    /// All, lowest first.
    pub const ALL: [Self; 4] = [Self::Low, Self::Normal, Self::High, Self::Critical];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// 0 (low) to 3 (critical), for ordering in the database.
    pub const fn rank(self) -> i16 {
        self as i16
    }

    /// The priority of that rank.
    pub fn from_rank(rank: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.rank() == rank)
    }
}
