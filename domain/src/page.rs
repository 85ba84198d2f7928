//! Pages of lists: bounded by construction.

use serde::Serialize;

/// Most rows that one page may hold (PRD, E1-US3 AC3).
pub const MAX_LIMIT: u32 = 200;
/// Rows of a page when the caller does not say.
pub const DEFAULT_LIMIT: u32 = 50;

/// A window into a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Page {
    /// Rows at most, 1 to [`MAX_LIMIT`].
    pub limit: u32,
    /// Rows passed over first.
    pub offset: u32,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            limit: DEFAULT_LIMIT,
            offset: 0,
        }
    }
}

impl Page {
    /// `None` when `limit` is outside 1 to [`MAX_LIMIT`].
    pub fn new(limit: u32, offset: u32) -> Option<Self> {
        (1..=MAX_LIMIT)
            .contains(&limit)
            .then_some(Self { limit, offset })
    }
}
