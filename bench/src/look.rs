//! A look into the service's `SQLite` database while it works: what it has committed, which no broker knows.

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _};

use crate::fleet::Database;

/// A connection that only reads.
#[derive(Debug)]
pub(crate) struct Look(SqliteConnection);

impl Look {
    pub(crate) async fn into(database: &Database) -> anyhow::Result<Self> {
        let Database::Sqlite(path) = database else {
            anyhow::bail!("not a file: {database:?}")
        };
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        Ok(Self(options.connect().await?))
    }

    /// The number of the last heartbeat; they have no gaps.
    pub(crate) async fn heartbeats(&mut self) -> anyhow::Result<u64> {
        let last = "SELECT COALESCE(MAX(number), 0) FROM device_heartbeats";
        self.number(last).await
    }

    /// Whether NATS has taken the last event.
    pub(crate) async fn nats_has_all(&mut self) -> anyhow::Result<bool> {
        let behind = "SELECT (SELECT MAX(id) FROM outbox) - COALESCE((SELECT place FROM outbox_places WHERE sink = 'nats'), 0)";
        Ok(self.number(behind).await? == 0)
    }

    async fn number(&mut self, sql: &'static str) -> anyhow::Result<u64> {
        let number: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&mut self.0)
            .await?;
        Ok(u64::try_from(number)?)
    }
}
