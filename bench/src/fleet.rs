//! Registered devices in a database, filled through the store: set-up, not part of any figure.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use device_ota_domain::device::Registration;
use device_ota_domain::{DeviceId, ring};
use device_ota_engine::ports::store::NewDevice;
use device_ota_engine::ports::{Entropy, Store};
use device_ota_engine::secrets;
use device_ota_store::{POSTGRES_MAX_CONNECTIONS, PostgresStore, SqliteStore};
use jiff::Timestamp;

/// The secret of every device here: as long as a real one.
pub(crate) const SECRET: &str = "be7c4be7c4be7c4be7c4be7c4be7c4be7c4be7c4be7c4be7c4be7c4be7c4be7c";
/// The model of every device here.
pub(crate) const MODEL: &str = "BENCH-1";
/// Devices in one transaction.
const AT_ONCE: usize = 1_000;

/// Which database engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// A file.
    #[default]
    Sqlite,
    /// A server.
    Postgres,
}

/// One database.
#[derive(Debug, Clone)]
pub(crate) enum Database {
    /// A file.
    Sqlite(PathBuf),
    /// A URL.
    Postgres(String),
}

struct Zeros;

impl Entropy for Zeros {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

impl Database {
    /// A `SQLite` file in this folder.
    pub(crate) fn file_in(folder: &Path) -> Self {
        Self::Sqlite(folder.join("device-ota.db"))
    }

    /// As the service's setting wants it.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite:{}", path.display()),
            Self::Postgres(url) => url.clone(),
        }
    }

    /// The database that a setting names.
    pub(crate) fn from_url(url: &str) -> Self {
        url.strip_prefix("sqlite:").map_or_else(
            || Self::Postgres(url.to_owned()),
            |path| Self::Sqlite(path.into()),
        )
    }

    /// Opens it with the service's own store.
    pub(crate) async fn open(&self) -> anyhow::Result<Arc<dyn Store>> {
        Ok(match self {
            Self::Sqlite(path) => Arc::new(SqliteStore::open_file(path).await?),
            Self::Postgres(url) => {
                Arc::new(PostgresStore::open_url(url, POSTGRES_MAX_CONNECTIONS).await?)
            }
        })
    }

    /// Makes it, registers `count` devices, and closes it.
    pub(crate) async fn fill(&self, count: usize) -> anyhow::Result<()> {
        match self {
            Self::Sqlite(path) => {
                let store = SqliteStore::open_file(path).await?;
                register(&store, count).await?;
                store.close().await;
            }
            Self::Postgres(url) => {
                let store = PostgresStore::open_url(url, 2).await?;
                register(&store, count).await?;
                store.close().await;
            }
        }
        Ok(())
    }
}

async fn register(store: &impl Store, count: usize) -> anyhow::Result<()> {
    let verifier = verifier();
    let at = Timestamp::UNIX_EPOCH;
    let all = names(count);
    for piece in all.chunks(AT_ONCE) {
        let devices: Vec<_> = piece
            .iter()
            .map(|name| new_device(name, &verifier, at))
            .collect::<anyhow::Result<_>>()?;
        let mut tx = store.begin().await?;
        tx.register(&devices).await?;
        tx.commit().await?;
    }
    Ok(())
}

fn new_device(name: &str, verifier: &str, at: Timestamp) -> anyhow::Result<NewDevice> {
    let device_id: DeviceId = name.parse()?;
    Ok(NewDevice {
        registration: Registration {
            device_id,
            device_type: None,
            device_model: MODEL.to_owned(),
            manufacturer: Some("Bench".to_owned()),
            hw_revision: None,
            firmware_version: Some("1.0.0".to_owned()),
            groups: Vec::new(),
            tags: std::collections::BTreeMap::new(),
            ring: None,
        },
        bucket: ring::bucket(name),
        verifier: verifier.to_owned(),
        at,
    })
}

/// What the service stores for [`SECRET`]; mosquitto's password file has the same form.
pub(crate) fn verifier() -> String {
    secrets::verifier(SECRET, &Zeros)
}

/// The ids of a fleet.
pub(crate) fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("bench-{n:06}")).collect()
}

/// The time of the machine's clock.
#[expect(
    clippy::disallowed_methods,
    reason = "what is measured runs in real time"
)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
