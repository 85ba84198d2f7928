//! The database that a world lives on: it refuses what a dead process would still write.

use std::sync::Arc;

use device_ota_engine::ports::Store;
use device_ota_store::testing::{PostgresDatabase, SqliteDatabase};

use super::fate::{Effect, Pauses, Process};

pub(super) enum Base {
    Sqlite(SqliteDatabase),
    Postgres(PostgresDatabase),
}

impl Base {
    pub(super) async fn open(&self, process: &Process) -> Arc<dyn Store> {
        let guard = process.clone();
        match self {
            Self::Sqlite(database) => {
                let may_commit = move || guard.may(Effect::Commit);
                let store = database.open_guarded(may_commit).await;
                Arc::new(store.watched(Arc::new(Pauses(process.clone()))))
            }
            Self::Postgres(database) => Arc::new(database.open().await.watched(Arc::new(guard))),
        }
    }
}
