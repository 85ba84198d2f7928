//! Real databases for tests: a SQLite file in a temporary folder, and a fresh database on a PostgreSQL server.
//!
//! The server is the one that `DEVICE_OTA_TEST_POSTGRES_URL` names (the URL of its maintenance database, with the right
//! to create databases); with none named, the test process starts one of its own in a temporary folder, reached through
//! a Unix socket, which ends with the process however that ends. Both take a copy of one migrated template.

mod watch;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Postgres, Sqlite, SqliteConnection};

use crate::SqlStore;
use crate::dialect::Dialect;

pub use watch::Watch;
pub(crate) use watch::Watched;

/// Names the server to use instead of a private one.
pub const POSTGRES_URL_VARIABLE: &str = "DEVICE_OTA_TEST_POSTGRES_URL";

/// Connections of one test: many tests share a server that allows 200.
const TEST_CONNECTIONS: u32 = 8;

/// Serialises the making of the template among test processes (an arbitrary advisory lock number).
const TEMPLATE_LOCK: i64 = 0x6f74_6174;

/// Starts the server and ends it with us; see its own first lines. The test command runs the same script once for all.
const SERVER_SCRIPT: &str = include_str!("../postgres-for-tests.sh");

/// A SQLite store in a temporary folder, which goes when this does.
#[derive(Debug)]
pub struct SqliteDatabase {
    folder: tempfile::TempDir,
}

impl SqliteDatabase {
    /// A folder for a new database.
    ///
    /// # Panics
    /// When no temporary folder can be made.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self { folder }
    }

    /// Where the database file is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("device-ota.db")
    }

    /// The database as a URL for the service's configuration.
    pub fn url(&self) -> String {
        format!("sqlite://{}", self.path().display())
    }

    /// Opens the database.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub async fn open(&self) -> SqlStore<Sqlite> {
        SqlStore::open_file(&self.path())
            .await
            .expect("a fresh SQLite database opens")
    }

    /// Opens the database for a test of crashes of the process, not of the machine: it does not wait for its disk, and
    /// asks at each commit whether it may; what it may not is rolled back.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub async fn open_guarded(
        &self,
        may_commit: impl FnMut() -> bool + Send + 'static,
    ) -> SqlStore<Sqlite> {
        let store = self.open().await;
        // The one connection that writes.
        let mut writer = store.writer.acquire().await.expect("a connection");
        Sqlite::batch(&mut writer, "PRAGMA synchronous = OFF".to_owned())
            .await
            .expect("a setting can be changed");
        let mut handle = writer.lock_handle().await.expect("a connection");
        handle.set_commit_hook(may_commit);
        drop(handle);
        drop(writer);
        store
    }
}

impl Default for SqliteDatabase {
    fn default() -> Self {
        Self::new()
    }
}

/// A fresh PostgreSQL database, dropped when this is.
#[derive(Debug)]
pub struct PostgresDatabase {
    name: String,
    url: String,
}

impl PostgresDatabase {
    /// Makes a database from the migrated template.
    ///
    /// # Panics
    /// When there is no server and none can be started.
    pub async fn create() -> Self {
        let mut admin = connect(server_url()).await;
        let template = ensure_template(&mut admin).await;
        let name = format!("ota_test_{}", unique());
        Postgres::batch(
            &mut admin,
            format!("CREATE DATABASE {name} TEMPLATE {template}"),
        )
        .await
        .expect("a test database can be made");
        let _ = admin.close().await;
        let url = url_of(&name);
        Self { name, url }
    }

    /// The database as a URL for the service's configuration.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Opens the database; several stores on one database stand for several replicas.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub async fn open(&self) -> SqlStore<Postgres> {
        SqlStore::open_url(&self.url, TEST_CONNECTIONS)
            .await
            .expect("a fresh PostgreSQL database opens")
    }
}

impl<D: Dialect> SqlStore<D> {
    /// The same store, for a test that has a say in each transaction.
    #[must_use]
    pub fn watched(mut self, watch: Arc<dyn Watch>) -> Self {
        self.watched = Watched(Some(watch));
        self
    }
}

/// Runs statements on the database that a URL names, beside whoever uses it; what it says when it refuses them.
///
/// # Panics
/// When it cannot be reached.
pub async fn run_sql(url: &str, sql: &str) -> Result<(), String> {
    let done = if url.starts_with("sqlite") {
        let mut conn = SqliteConnection::connect(url).await.expect("connects");
        Sqlite::batch(&mut conn, sql.to_owned()).await
    } else {
        let mut conn = PgConnection::connect(url).await.expect("connects");
        Postgres::batch(&mut conn, sql.to_owned()).await
    };
    done.map_err(|error| error.to_string())
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // The test's own runtime may be the one that is unwinding: use another, on another thread.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be built");
            runtime.block_on(async {
                let mut admin = connect(server_url()).await;
                let result = Postgres::batch(&mut admin, sql).await;
                let _ = admin.close().await;
                result
            })
        });
        if !matches!(dropped.join(), Ok(Ok(()))) {
            tracing::warn!(database.name = self.name, "test database was not dropped");
        }
    }
}

async fn connect(url: &str) -> PgConnection {
    PgConnectOptions::from_str(url)
        .expect("the server's URL is valid")
        .connect()
        .await
        .expect("the PostgreSQL server answers")
}

/// Makes the template once for each state of the migrations, and returns its name.
async fn ensure_template(admin: &mut PgConnection) -> String {
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    for migration in Postgres::migrator().iter() {
        hasher.write(&migration.checksum);
    }
    let template = format!("ota_template_{:016x}", hasher.finish());
    let lock = format!("SELECT pg_advisory_lock({TEMPLATE_LOCK})");
    Postgres::batch(admin, lock)
        .await
        .expect("the lock is free");
    let known: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)")
            .bind(&template)
            .fetch_one(&mut *admin)
            .await
            .expect("the catalogue can be read");
    if !known {
        build_template(admin, &template).await;
    }
    let unlock = format!("SELECT pg_advisory_unlock({TEMPLATE_LOCK})");
    Postgres::batch(admin, unlock)
        .await
        .expect("the lock was ours");
    template
}

/// Migrates under a temporary name, so that a process that dies half-way leaves no half-made template.
async fn build_template(admin: &mut PgConnection, template: &str) {
    let draft = format!("ota_draft_{}", unique());
    Postgres::batch(admin, format!("CREATE DATABASE {draft}"))
        .await
        .expect("a template can be made");
    let store = SqlStore::open_url(&url_of(&draft), 1)
        .await
        .expect("the migrations apply");
    store.close().await;
    Postgres::batch(
        admin,
        format!("ALTER DATABASE {draft} RENAME TO {template}"),
    )
    .await
    .expect("nobody uses the draft");
}

/// A name no other test process makes. `RandomState` is seeded by the operating system.
fn unique() -> String {
    let random = RandomState::new().build_hasher().finish();
    format!("{}_{random:016x}", std::process::id())
}

/// The URL of another database on the server.
fn url_of(database: &str) -> String {
    let (server, query) = server_url().split_once('?').unwrap_or((server_url(), ""));
    let (server, _) = server
        .rsplit_once('/')
        .expect("the server's URL names a database");
    format!("{server}/{database}?{query}")
}

/// The maintenance database of the server to use, which is started when there is none.
///
/// # Panics
/// When no server is named and none can be started.
pub fn server_url() -> &'static str {
    static URL: OnceLock<(String, Option<PrivateServer>)> = OnceLock::new();
    let (url, _) = URL.get_or_init(|| match std::env::var(POSTGRES_URL_VARIABLE) {
        Ok(url) if !url.is_empty() => (url, None),
        _ => {
            let server = PrivateServer::start(Durability::Off);
            (server.url().to_owned(), Some(server))
        }
    });
    url
}

/// Whether a private server waits for its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// For tests: nothing outlives the process anyway.
    Off,
    /// For measurements, and for tests that kill the server.
    On,
}

/// A PostgreSQL server of this process's own. It ends when this is dropped, and also when the process dies.
#[derive(Debug)]
pub struct PrivateServer {
    url: String,
    folder: PathBuf,
    keeper: Child,
    lifeline: Option<ChildStdin>,
}

impl PrivateServer {
    /// Sets up and starts a server; returns when it accepts connections.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not start.
    pub fn start(durability: Durability) -> Self {
        Self::tried(durability, &[]).expect("the PostgreSQL server starts")
    }

    /// Starts one that is spoken to over TLS alone, on a port of 127.0.0.1. Its database `certified` is for whoever shows a certificate
    /// of `authority`. All three are PEM.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not start.
    pub fn start_with_tls(certificate: &str, key: &str, authority: &str) -> Self {
        let tried = (0..5).find_map(|_| {
            // PostgreSQL cannot be asked for a free port, and somebody else may take this one before it.
            let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
            let port = free.expect("there is a free port").port().to_string();
            let words = [
                ("TLS_PORT", &*port),
                ("TLS_CERTIFICATE", certificate),
                ("TLS_KEY", key),
                ("TLS_AUTHORITY", authority),
            ];
            let mut server = Self::tried(Durability::On, &words)?;
            server.url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
            Some(server)
        });
        tried.expect("the PostgreSQL server starts")
    }

    /// `None` when it does not start.
    fn tried(durability: Durability, words: &[(&str, &str)]) -> Option<Self> {
        use std::os::unix::process::CommandExt as _;
        let programs =
            programs().expect("PostgreSQL is installed below /usr/lib/postgresql or on PATH");
        let fsync = match durability {
            Durability::Off => "off",
            Durability::On => "on",
        };
        let mut keeper = shell_as_postgres()
            .args(["-c", SERVER_SCRIPT, "sh"])
            .arg(&programs)
            .arg(std::env::temp_dir())
            .arg(fsync)
            .envs(words.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .current_dir("/")
            // Ctrl-C in the terminal ends the tests; their end then ends the server in good order.
            .process_group(0)
            .spawn()
            .expect("a shell can be started");
        let lifeline = keeper.stdin.take();
        let mut folder = String::new();
        let stdout = keeper.stdout.take().expect("its output is piped");
        let read = BufReader::new(stdout).read_line(&mut folder);
        if !matches!(read, Ok(length) if length > 0) {
            let _ = keeper.wait();
            return None;
        }
        let folder = PathBuf::from(folder.trim());
        Some(Self {
            url: format!(
                "postgres://postgres@localhost/postgres?host={}",
                folder.display()
            ),
            folder,
            keeper,
            lifeline,
        })
    }

    /// Stops the server, in the middle of whatever it does; who is connected is cut off.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn stop(&self) {
        self.control("-m immediate stop");
    }

    /// Starts the server again where it was, after [`Self::stop`]; returns when it accepts connections.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&self) {
        self.control("restart"); // takes the options of the last start, as `start` does not
    }

    /// Lets the server stand still with all that it does, as a machine that is suspended; until the answer is dropped.
    ///
    /// # Panics
    /// When it cannot be stopped so.
    pub fn freeze(&self) -> Frozen<'_> {
        self.send("STOP");
        Frozen(self)
    }

    /// Sends a signal to the server and to each of its processes.
    fn send(&self, signal: &str) {
        let script = format!(
            "server=$(head -n 1 '{}/data/postmaster.pid') && kill -{signal} $server $(ps -o pid= --ppid $server)",
            self.folder.display()
        );
        assert!(runs(&script), "the PostgreSQL server took no {signal}");
    }

    fn control(&self, what: &str) {
        let programs = programs().expect("PostgreSQL was there");
        let script = format!(
            "'{}' -D '{}/data' -l '{1}/log' -w {what} >/dev/null 2>&1",
            programs.join("pg_ctl").display(),
            self.folder.display()
        );
        assert!(runs(&script), "the PostgreSQL server did not {what}");
    }

    /// The URL of the server's maintenance database.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// Runs a script as who runs the server; answers whether it went well.
fn runs(script: &str) -> bool {
    let status = shell_as_postgres()
        .args(["-c", script])
        .stdin(Stdio::null())
        .current_dir("/")
        .status();
    status.expect("a shell can be started").success()
}

/// A server that stands still; it goes on when this is dropped.
#[derive(Debug)]
pub struct Frozen<'s>(&'s PrivateServer);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.send("CONT");
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let _ = self.keeper.wait();
    }
}

/// PostgreSQL refuses to run as root; root becomes `postgres` for it.
fn shell_as_postgres() -> Command {
    let root = std::fs::metadata("/proc/self")
        .is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    if root {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--", "sh"]);
        command
    } else {
        Command::new("sh")
    }
}

/// The folder of the newest PostgreSQL's programs.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok();
    let newest = versions
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let folder = entry.ok()?.path();
            let version: u32 = folder.file_name()?.to_str()?.parse().ok()?;
            Some((version, folder.join("bin")))
        })
        .filter(|(_, folder)| is_programs(folder))
        .max();
    newest.map(|(_, folder)| folder).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|folder| is_programs(folder))
    })
}

fn is_programs(folder: &Path) -> bool {
    ["initdb", "pg_ctl"]
        .iter()
        .all(|name| folder.join(name).is_file())
}
