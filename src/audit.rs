//! `device-ota audit`: the audit trail on the database itself, which is read and never written. The service may run meanwhile.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Subcommand;
use device_ota_engine::ports::Store;
use device_ota_engine::verify_audit;
use device_ota_store::{PostgresStore, SqliteStore};

use crate::config::{Config, Database};

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Walk the whole chain of hashes: its number of records and its last hash, to write down; or the first record that is
    /// not as it was written, and exit status 1.
    Verify {
        /// A hash that was written down earlier; the chain must hold it.
        #[arg(long, value_name = "HASH", value_parser = hash)]
        expect: Option<String>,
    },
}

/// A hash as `verify` prints it; capitals and spaces around it are taken as well.
fn hash(text: &str) -> Result<String, &'static str> {
    let hash = text.trim().to_ascii_lowercase();
    if hash.len() == 64 && hash.chars().all(|digit| digit.is_ascii_hexdigit()) {
        Ok(hash)
    } else {
        Err(
            "this is no hash: give the 64 digits (0-9, a-f) of the second line that an earlier `audit verify` printed",
        )
    }
}

/// Does it.
pub(crate) fn run(config: &Config, command: &AuditCommand) -> anyhow::Result<()> {
    let AuditCommand::Verify { expect } = command;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let head = loop {
            let was_at_rest = is_at_rest(&config.database);
            let store = open(&config.database).await?;
            let found = verify_audit(&*store, expect.as_deref()).await;
            // A service that began to write meanwhile may have mixed up what was read without a lock.
            if was_at_rest && !is_at_rest(&config.database) {
                continue;
            }
            break found?;
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{} records, all as they were written", head.number)?;
        Ok(writeln!(out, "{}", head.hash)?)
    })
}

fn is_at_rest(database: &Database) -> bool {
    matches!(database, Database::Sqlite(path) if SqliteStore::is_at_rest(path))
}

/// The database as it is: a trail that is looked at must not be touched.
async fn open(database: &Database) -> anyhow::Result<Arc<dyn Store>> {
    Ok(match database {
        Database::Sqlite(path) => {
            let store = SqliteStore::read_file(path)
                .await
                .with_context(|| format!("DATABASE_URL: {}", path.display()))?;
            Arc::new(store)
        }
        Database::Postgres(url) => {
            let store = PostgresStore::read_url(&url.0).await;
            Arc::new(store.context("DATABASE_URL")?)
        }
    })
}
