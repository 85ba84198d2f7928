//! Opening a database: pools with their limits, the settings that durability and speed need, and the migrations.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Pool, Postgres, Sqlite};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::combine::Combiner;
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, statements};
use crate::writes::Writes;
use crate::{OpenError, SqlStore, address, devices, updates};

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
/// statements that take milliseconds. A client that stands still in the middle of a transaction, or whose machine is gone, gives its
/// locks back before other replicas take it for dead: no transaction here waits for anything but the database.
const POSTGRES_SESSION: &str = "SET random_page_cost = 1.1; SET jit = off; \
    SET idle_in_transaction_session_timeout = '10s'; SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 5; \
    SET tcp_keepalives_count = 2; SET tcp_user_timeout = '15s'";
/// Settings of a session that reads alone.
const POSTGRES_READER: &str = "SET default_transaction_read_only = on";
/// Statements slower than this are logged.
const SLOW_STATEMENT: Duration = Duration::from_secs(1);

statements! {
    APPLIED = "SELECT version FROM _sqlx_migrations WHERE success";
}

impl SqlStore<Sqlite> {
    /// Opens (and creates, when missing) the database file at `path` and brings its schema up to date.
    ///
    /// One connection writes; a few others read beside it, so that reads do not queue behind a batch.
    ///
    /// # Errors
    /// When the file cannot be opened or its schema is not one that this version knows.
    pub async fn open_file(path: &Path) -> Result<Self, OpenError> {
        let options = file(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
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

    /// Opens the database file at `path` to read alone, also beside a service that writes: nothing is made, brought up to date
    /// or changed. Of a file that is at rest, nobody must begin to write while it is read: see [`is_at_rest`](Self::is_at_rest).
    ///
    /// # Errors
    /// When there is no such file, or its schema is not the one of this version.
    pub async fn read_file(path: &Path) -> Result<Self, OpenError> {
        if !path.try_exists().is_ok_and(|there| there) {
            return Err(OpenError::Missing);
        }
        let pool = pool_options::<Sqlite>(1)
            .connect_with(file(path).read_only(true).immutable(Self::is_at_rest(path)))
            .await?;
        Self::reading(pool).await
    }

    /// Whether all of a database is in its file: nobody has it open, and whoever had it last has closed it. It is read without
    /// a lock then, and without the files that lie beside one that is in use.
    pub fn is_at_rest(path: &Path) -> bool {
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            std::fs::metadata(name)
        };
        beside("-shm").is_err() && beside("-wal").map_or(0, |log| log.len()) == 0
    }
}

/// What every connection to a file has in common.
fn file(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(SQLITE_BUSY_TIMEOUT)
        .foreign_keys(true)
        .pragma("cache_size", SQLITE_CACHE)
        .pragma("temp_store", "memory")
        .statement_cache_capacity(STATEMENT_CACHE)
        .log_statements(log::LevelFilter::Trace)
        .log_slow_statements(log::LevelFilter::Warn, SLOW_STATEMENT)
}

impl SqlStore<Postgres> {
    /// Connects to the PostgreSQL database that `url` names and brings its schema up to date; replicas that start
    /// together wait for each other here.
    ///
    /// # Errors
    /// When the URL is not valid, the server cannot be reached, or its schema is not one that this version knows.
    pub async fn open_url(url: &str, max_connections: u32) -> Result<Self, OpenError> {
        let pool = server(url, max_connections, POSTGRES_SESSION).await?;
        Postgres::migrate(&mut *pool.acquire().await?).await?;
        Ok(Self::over(pool.clone(), pool, JoinSet::new()))
    }

    /// Connects to the PostgreSQL database that `url` names to read alone: nothing is made, brought up to date or changed.
    ///
    /// # Errors
    /// When the URL is not valid, the server cannot be reached, or the schema is not the one of this version.
    pub async fn read_url(url: &str) -> Result<Self, OpenError> {
        Self::reading(server(url, 1, POSTGRES_READER).await?).await
    }
}

async fn server(
    url: &str,
    max_connections: u32,
    session: &'static str,
) -> Result<Pool<Postgres>, OpenError> {
    let options = address::options(url)?
        .application_name("device-ota")
        .statement_cache_capacity(STATEMENT_CACHE)
        .log_statements(log::LevelFilter::Trace)
        .log_slow_statements(log::LevelFilter::Warn, SLOW_STATEMENT);
    let pool = pool_options::<Postgres>(max_connections.clamp(1, POSTGRES_MAX_CONNECTIONS))
        .after_connect(move |conn, _| {
            Box::pin(async move { Postgres::batch(conn, session.to_owned()).await })
        })
        .connect_with(options.clone());
    match pool.await {
        // The pool tries until its time is over, and does not tell what it has met.
        Err(timed_out @ sqlx::Error::PoolTimedOut) => {
            let once = tokio::time::timeout(ACQUIRE_TIMEOUT, options.connect()).await;
            Err(once.ok().and_then(Result::err).unwrap_or(timed_out).into())
        }
        opened => Ok(opened?),
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

/// Whether the schema is the one that this version knows; nothing is changed.
async fn check<D: Dialect>(conn: &mut D::Connection) -> Result<(), OpenError> {
    let applied = sql::fetch_all::<D, _>(conn, &APPLIED, Args::new(), |row| row.int("version"));
    let applied = applied.await.map_err(|error| match error {
        DbError::Sql(error) if error.as_database_error().is_none() => error.into(),
        _ => OpenError::Foreign,
    })?;
    let migrator = D::migrator();
    let known: Vec<i64> = migrator.iter().map(|step| step.version).collect();
    if !applied.iter().all(|version| known.contains(version)) {
        Err(OpenError::Newer)
    } else if applied.len() < known.len() {
        Err(OpenError::Older)
    } else {
        Ok(())
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
        .after_release(|conn, _| Box::pin(has_ended(conn)))
}

/// Whether the connection is in no transaction, once what waits to be rolled back has been. SQLite ends one by itself when
/// the disk is full; the driver, which cannot roll it back then, takes the connection to be in it for ever, and nobody would
/// write with it again.
async fn has_ended<C: Connection>(conn: &mut C) -> sqlx::Result<bool> {
    if conn.is_in_transaction() {
        conn.ping().await?;
    }
    Ok(!conn.is_in_transaction())
}

impl<D: Dialect> SqlStore<D> {
    /// A store that only reads, if the schema is the one that this version knows.
    async fn reading(pool: Pool<D>) -> Result<Self, OpenError> {
        check::<D>(&mut *pool.acquire().await?).await?;
        Ok(Self::over(pool.clone(), pool, JoinSet::new()))
    }

    fn over(writer: Pool<D>, reader: Pool<D>, tasks: JoinSet<()>) -> Self {
        let updates = Combiner::start(reader.clone(), updates::by_id());
        let credentials = Combiner::start(reader.clone(), devices::credentials_by_id());
        Self {
            updates: Arc::new(updates),
            credentials: Arc::new(credentials),
            writes: Writes::default(),
            #[cfg(any(test, feature = "testing"))]
            watched: crate::testing::Watched::default(),
            writer,
            reader,
            _tasks: Arc::new(tasks),
        }
    }

    /// Open connections: which pool, whether they are in use, how many.
    pub(crate) fn connections(&self) -> Vec<(&'static str, &'static str, u64)> {
        let writer = D::ONE_WRITER.then_some(("writer", &self.writer));
        let readers = if D::ONE_WRITER { "readers" } else { "all" };
        let pools = writer.into_iter().chain([(readers, &self.reader)]);
        let count = |(name, pool): (&'static str, &Pool<D>)| {
            let (open, idle) = (u64::from(pool.size()), pool.num_idle() as u64);
            [
                (name, "idle", idle),
                (name, "in_use", open.saturating_sub(idle)),
            ]
        };
        pools.flat_map(count).collect()
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
    use crate::testing::{PostgresDatabase, SqliteDatabase, run_sql};
    use crate::tx::SqlTx;

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

    /// Schemas of other versions, and none at all, are told apart.
    async fn refuses<S>(url: &str, read: impl AsyncFn() -> Result<S, OpenError>) {
        let refused = async |sql: &str| {
            run_sql(url, sql).await.expect("runs");
            read().await.err().expect("is refused")
        };
        let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9999, 'x', TRUE, '', 0)";
        assert!(matches!(refused(newer).await, OpenError::Newer));
        let older = "DELETE FROM _sqlx_migrations WHERE version IN (1, 9999)";
        assert!(matches!(refused(older).await, OpenError::Older));
        assert!(
            matches!(refused("SELECT 1").await, OpenError::Older),
            "it stays as it is"
        );
        let foreign = "DROP TABLE _sqlx_migrations";
        assert!(matches!(refused(foreign).await, OpenError::Foreign));
    }

    #[tokio::test(start_paused = true)]
    async fn why_a_server_is_not_reached_is_told() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = nobody.local_addr().expect("an address");
        drop(nobody);
        let opened = SqlStore::open_url(&format!("postgres://ota@{addr}/ota"), 1).await;
        let Err(OpenError::Connect(sqlx::Error::Io(error))) = opened else {
            panic!("{:?}", opened.err());
        };
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_file_is_read_and_not_written() {
        let database = SqliteDatabase::new();
        let missing = SqlStore::read_file(&database.path()).await;
        assert!(matches!(missing, Err(OpenError::Missing)));
        assert!(!database.path().exists());
        let writes = database.open().await;
        let reads = SqlStore::read_file(&database.path()).await.expect("opens");
        let mut conn = reads.writer.acquire().await.expect("a connection");
        let written = Sqlite::batch(&mut conn, "DELETE FROM outbox".to_owned()).await;
        assert!(written.is_err());
        drop(conn);
        reads.close().await;
        writes.close().await;
        refuses(&database.url(), async || {
            SqlStore::read_file(&database.path()).await
        })
        .await;
    }

    #[tokio::test]
    async fn a_server_is_read_and_not_written() {
        let database = PostgresDatabase::create().await;
        let reads = SqlStore::read_url(database.url()).await.expect("opens");
        let mut conn = reads.writer.acquire().await.expect("a connection");
        let written = Postgres::batch(&mut conn, "DELETE FROM outbox".to_owned()).await;
        assert!(written.is_err());
        drop(conn);
        reads.close().await;
        refuses(database.url(), async || {
            SqlStore::read_url(database.url()).await
        })
        .await;
    }

    #[tokio::test]
    async fn what_did_not_fit_on_the_disk_hinders_nobody_once_there_is_room() {
        let database = SqliteDatabase::new();
        let store = database.open().await;
        let mut conn = store.writer.acquire().await.expect("a connection");
        // The file may not grow: a disk that is full.
        let bound = "CREATE TABLE filler (bytes BLOB); PRAGMA max_page_count = 1";
        let bounded = Sqlite::batch(&mut conn, bound.to_owned()).await;
        bounded.expect("takes the bound");
        drop(conn);
        let mut tx = SqlTx::<Sqlite>::begin(&store).await.expect("begins");
        let fill = "INSERT INTO filler VALUES (zeroblob(10000000))".to_owned();
        let error = Sqlite::batch(tx.connection(), fill).await;
        let error = error.expect_err("does not fit").to_string();
        assert!(error.contains("disk is full"), "{error}");
        drop(tx);
        // The next connection knows no such bound.
        let mut tx = SqlTx::<Sqlite>::begin(&store).await.expect("begins");
        let fill = "INSERT INTO filler VALUES (zeroblob(10000000))".to_owned();
        let filled = Sqlite::batch(tx.connection(), fill).await;
        filled.expect("there is room");
        drop(tx);
        store.close().await;
    }
}
