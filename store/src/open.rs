//! Opening a database: pools with their limits, the settings that durability and speed need, and the migrations.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Pool, Postgres, Sqlite};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::combine::Combiner;
use crate::dialect::Dialect;
use crate::{OpenError, SqlStore, devices, updates};

/// Connections to PostgreSQL a process may hold (the requirements allow 50).
pub const POSTGRES_MAX_CONNECTIONS: u32 = 50;
/// Connections that read from SQLite: enough for the cores of a small machine, each with its own page cache.
const SQLITE_READERS: u32 = 4;
/// How long a caller waits for a connection before it is told that the database is not available.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long SQLite waits for a lock that another process holds (a backup, the command line).
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Page cache of one SQLite connection, in KiB (negative, as the pragma wants it): holds the indexes of 100,000 devices.
const SQLITE_CACHE: &str = "-16384";
/// How often what SQLite's commits left in the write-ahead log is brought into the database file, beside the writer.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Pages of the write-ahead log (of 4 KiB, so 64 MiB) from which a commit itself brings home what is left: while the
/// writer never rests, a checkpoint beside it never comes to the log's end, and only there can the log begin anew.
const CHECKPOINT_AT_PAGES: &str = "16384";
/// Prepared statements kept on each connection: all of this crate's, in all chunk sizes.
const STATEMENT_CACHE: usize = 512;
/// Settings of each PostgreSQL session. Random pages cost what they cost in memory or on flash: at the server's default, made
/// for disks, it would rather read the whole fleet than look up the 500 devices of a batch. Compiling plans never pays for
/// statements that take milliseconds.
const POSTGRES_SESSION: &str = "SET random_page_cost = 1.1; SET jit = off";
/// Statements slower than this are logged.
const SLOW_STATEMENT: Duration = Duration::from_secs(1);

impl SqlStore<Sqlite> {
    /// Opens (and creates, when missing) the database file at `path` and brings its schema up to date.
    ///
    /// One connection writes; a few others read beside it, so that reads do not queue behind a batch.
    ///
    /// # Errors
    /// When the file cannot be opened or its schema is not one that this version knows.
    pub async fn open_file(path: &Path) -> Result<Self, OpenError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(SQLITE_BUSY_TIMEOUT)
            .foreign_keys(true)
            .pragma("cache_size", SQLITE_CACHE)
            .pragma("temp_store", "memory")
            .statement_cache_capacity(STATEMENT_CACHE)
            .log_statements(log::LevelFilter::Trace)
            .log_slow_statements(log::LevelFilter::Warn, SLOW_STATEMENT);
        let writer = pool_options::<Sqlite>(1)
            .connect_with(
                options
                    .clone()
                    .pragma("wal_autocheckpoint", CHECKPOINT_AT_PAGES),
            )
            .await?;
        Sqlite::migrate(&mut *writer.acquire().await?).await?;
        let reader = pool_options::<Sqlite>(SQLITE_READERS)
            .connect_with(options.pragma("query_only", "ON"))
            .await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(checkpoint(reader.clone()));
        Ok(Self::over(writer, reader, tasks))
    }
}

impl SqlStore<Postgres> {
    /// Connects to the PostgreSQL database that `url` names and brings its schema up to date; replicas that start
    /// together wait for each other here.
    ///
    /// # Errors
    /// When the URL is not valid, the server cannot be reached, or its schema is not one that this version knows.
    pub async fn open_url(url: &str, max_connections: u32) -> Result<Self, OpenError> {
        let options = PgConnectOptions::from_str(url)?
            .application_name("device-ota")
            .statement_cache_capacity(STATEMENT_CACHE)
            .log_statements(log::LevelFilter::Trace)
            .log_slow_statements(log::LevelFilter::Warn, SLOW_STATEMENT);
        let pool = pool_options::<Postgres>(max_connections.clamp(1, POSTGRES_MAX_CONNECTIONS))
            .after_connect(|conn, _| {
                Box::pin(async move { Postgres::batch(conn, POSTGRES_SESSION.to_owned()).await })
            })
            .connect_with(options)
            .await?;
        Postgres::migrate(&mut *pool.acquire().await?).await?;
        Ok(Self::over(pool.clone(), pool, JoinSet::new()))
    }
}

/// Brings the write-ahead log into the database file again and again, until the pool is closed. It waits for nobody and
/// nobody waits for it: what is in use stays for the next time.
async fn checkpoint(pool: Pool<Sqlite>) {
    let mut ticks = tokio::time::interval(CHECKPOINT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !pool.is_closed() {
        ticks.tick().await;
        let done = match pool.acquire().await {
            Ok(mut conn) => {
                Sqlite::batch(&mut conn, "PRAGMA wal_checkpoint(PASSIVE)".to_owned()).await
            }
            Err(error) => Err(error),
        };
        match done {
            Ok(()) | Err(sqlx::Error::PoolClosed) => {}
            Err(error) => {
                tracing::warn!(%error, "write-ahead log was not brought into the database file");
            }
        }
    }
}

fn pool_options<D: Dialect>(max_connections: u32) -> PoolOptions<D> {
    PoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A dead connection shows itself on its first use; asking first costs a fifth of all reads.
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
}

impl<D: Dialect> SqlStore<D> {
    fn over(writer: Pool<D>, reader: Pool<D>, tasks: JoinSet<()>) -> Self {
        let updates = Combiner::start(reader.clone(), updates::by_id());
        let credentials = Combiner::start(reader.clone(), devices::credentials_by_id());
        Self {
            updates: Arc::new(updates),
            credentials: Arc::new(credentials),
            writer,
            reader,
            _tasks: Arc::new(tasks),
        }
    }

    /// Waits for what is running and closes all connections.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SqliteDatabase;

    /// How long a test waits for what happens by itself within a second or two.
    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_was_committed_comes_into_the_file_by_itself() {
        let database = SqliteDatabase::new();
        let store = database.open().await;
        let size = || std::fs::metadata(database.path()).map_or(0, |file| file.len());
        let sql =
            "CREATE TABLE filler (bytes BLOB); INSERT INTO filler VALUES (zeroblob(10000000))";
        let mut conn = store.writer.acquire().await.expect("a connection");
        Sqlite::batch(&mut conn, sql.to_owned())
            .await
            .expect("is written");
        let arrives = async {
            while size() < 10_000_000 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, arrives)
            .await
            .expect("arrives");
        drop(conn);
        store.close().await;
    }

    #[tokio::test]
    async fn nothing_runs_on_when_a_store_is_dropped() {
        let database = SqliteDatabase::new();
        drop(database.open().await);
        let ends = async {
            let runtime = tokio::runtime::Handle::current();
            while runtime.metrics().num_alive_tasks() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, ends).await.expect("ends");
    }
}
