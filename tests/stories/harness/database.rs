//! A fresh database for each test.

use device_ota_store::testing::PostgresDatabase;

/// Which database a story runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseKind {
    /// The file that the service makes in its data folder when nothing is configured.
    Sqlite,
    /// A database on a PostgreSQL server.
    Postgres,
}

/// The database of one test, dropped with it.
pub struct Database {
    postgres: Option<PostgresDatabase>,
}

impl Database {
    pub async fn create(kind: DatabaseKind) -> Self {
        let postgres = match kind {
            DatabaseKind::Sqlite => None,
            DatabaseKind::Postgres => Some(PostgresDatabase::create().await),
        };
        Self { postgres }
    }

    /// What the service must be told; SQLite needs no telling.
    pub fn url(&self) -> Option<&str> {
        self.postgres.as_ref().map(PostgresDatabase::url)
    }
}
