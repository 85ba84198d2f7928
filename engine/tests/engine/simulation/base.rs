//! The database that a world lives on.

use std::sync::Arc;

use device_ota_engine::ports::Store;
use device_ota_store::testing::{PostgresDatabase, SqliteDatabase};
use device_ota_store::{PostgresStore, SqliteStore};

use super::fate::{Effect, Process};

pub(super) enum Base {
    /// Refuses what a dead process would still write.
    Sqlite(SqliteDatabase),
    /// Takes everything: no process dies on it.
    Postgres(PostgresDatabase),
}

/// A database in use, to be closed.
pub(super) enum Opened {
    Sqlite(Arc<SqliteStore>),
    Postgres(Arc<PostgresStore>),
}

impl Base {
    pub(super) async fn open(&self, process: &Process) -> Opened {
        match self {
            Self::Sqlite(database) => {
                let guard = process.clone();
                let may_commit = move || guard.may(Effect::Commit);
                Opened::Sqlite(Arc::new(database.open_guarded(may_commit).await))
            }
            Self::Postgres(database) => Opened::Postgres(Arc::new(database.open().await)),
        }
    }
}

impl Opened {
    pub(super) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Sqlite(store) => store.clone(),
            Self::Postgres(store) => store.clone(),
        }
    }

    /// Whether commits are counted.
    pub(super) const fn is_guarded(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(store) => store.close().await,
            Self::Postgres(store) => store.close().await,
        }
    }
}
