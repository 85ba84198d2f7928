//! A store of which a test says when it may go on, and whether what it has done may stay.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::DbError;

/// What a test has to say of each transaction of a store.
#[async_trait]
pub trait Watch: Send + Sync + 'static {
    /// It is about to begin, and waits for this.
    async fn begins(&self);
    /// Whether it may commit; what may not is rolled back.
    fn may_commit(&self) -> bool;
    /// It has committed. Whoever asked for it hears so after this.
    async fn committed(&self);
}

/// The watch of a store, where there is one.
#[derive(Clone, Default)]
pub(crate) struct Watched(pub(super) Option<Arc<dyn Watch>>);

impl Watched {
    pub(crate) async fn begins(&self) {
        if let Some(watch) = &self.0 {
            watch.begins().await;
        }
    }

    pub(crate) fn may_commit(&self) -> Result<(), DbError> {
        match &self.0 {
            Some(watch) if !watch.may_commit() => Err(DbError::Conflict("what a test has ended")),
            _ => Ok(()),
        }
    }

    pub(crate) async fn committed(&self) {
        if let Some(watch) = &self.0 {
            watch.committed().await;
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}
