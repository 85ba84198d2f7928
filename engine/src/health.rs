//! How the engine is.

use crate::Engine;

/// The state of what the engine depends on, and its counters.
#[derive(Debug, Clone)]
pub struct Health {
    /// The database answers; what it said when not.
    pub database: Result<(), String>,
    /// The object store can be written to; what it said when not.
    pub objects: Result<(), String>,
    /// Device messages that wait for the database.
    pub uplinks_waiting: usize,
    /// Counters: name, label, value.
    pub counters: Vec<(&'static str, &'static str, u64)>,
}

impl Engine {
    /// Looks at everything.
    pub async fn health(&self) -> Health {
        let (database, objects) =
            futures_util::future::join(self.store.ping(), self.objects.ping()).await;
        Health {
            database: database.map_err(|error| error.to_string()),
            objects: objects.map_err(|error| error.to_string()),
            uplinks_waiting: self.uplinks.waiting(),
            counters: self.metrics.snapshot(),
        }
    }
}
