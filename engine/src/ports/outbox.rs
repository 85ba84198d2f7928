//! The database's side of events: the outbox as its readers see it.

use async_trait::async_trait;
use device_ota_domain::event::StoredEvent;

use super::error::Result;

/// Which events the outbox still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The lowest id.
    pub oldest: i64,
    /// The highest id; it stays until there is a higher one.
    pub newest: i64,
}

/// Reads of the outbox. Each is one statement of its own and sees what is committed.
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Events behind this one, in order.
    async fn events_after(&self, after: i64, limit: u32) -> Result<Vec<StoredEvent>>;
    /// Which events there are; `None` before the first one.
    async fn events_kept(&self) -> Result<Option<Kept>>;
}
