//! The engine's `Store` port over SQL: SQLite and PostgreSQL from one code.
//!
//! [`SqlStore`] is generic over the database. Statements are templates (see `sql`) with a name, in the file of the entity
//! that they concern; the few places where the databases differ are behind [`Dialect`].
//!
//! # How to add …
//! * **a statement**: a line in the `statements!` block of its entity's file, and the function that runs it. The test
//!   that prepares every statement on both databases finds it by itself.
//! * **a migration**: a file of the next number in both folders of `migrations/`, and a line in `migrations.rs`.
//! * **a database**: an implementation of [`Dialect`] and a folder of migrations.

mod address;
mod api_keys;
mod audit;
mod bandwidth;
mod campaigns;
mod combine;
mod conditions;
mod counts;
mod days;
mod devices;
mod dialect;
mod dispatch;
mod drift;
mod error;
mod figures;
mod filter;
mod firmware;
mod fleet;
mod history;
mod lists;
mod materialise;
mod migrations;
mod open;
mod outbox;
mod permits;
#[cfg(test)]
mod plans;
mod presence;
mod replicas;
mod rings;
mod rollbacks;
mod snapshot;
mod sql;
mod standing;
mod store;
mod targets;
mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tx;
mod updates;
mod vitals;
mod webhooks;
mod writes;

use std::sync::Arc;

pub use address::{AddressError, check_address};
use combine::Combiner;
use device_ota_domain::update::Update;
use device_ota_engine::ports::store::Credentials;
pub use dialect::Dialect;
pub use open::POSTGRES_MAX_CONNECTIONS;
use sqlx::Pool;
use tokio::task::JoinSet;
use writes::Writes;

/// Every statement of the crate, file by file.
#[cfg(test)]
static STATEMENTS: &[&[&sql::Statement]] = &[
    api_keys::STATEMENTS,
    audit::STATEMENTS,
    bandwidth::STATEMENTS,
    campaigns::STATEMENTS,
    counts::STATEMENTS,
    devices::STATEMENTS,
    dispatch::STATEMENTS,
    drift::STATEMENTS,
    figures::STATEMENTS,
    firmware::STATEMENTS,
    fleet::STATEMENTS,
    history::STATEMENTS,
    lists::STATEMENTS,
    materialise::STATEMENTS,
    open::STATEMENTS,
    outbox::STATEMENTS,
    permits::STATEMENTS,
    presence::STATEMENTS,
    replicas::STATEMENTS,
    rings::STATEMENTS,
    rollbacks::STATEMENTS,
    snapshot::STATEMENTS,
    standing::STATEMENTS,
    targets::STATEMENTS,
    updates::STATEMENTS,
    vitals::STATEMENTS,
    webhooks::STATEMENTS,
    writes::STATEMENTS,
];

/// A store on a SQLite file.
pub type SqliteStore = SqlStore<sqlx::Sqlite>;
/// A store on a PostgreSQL server.
pub type PostgresStore = SqlStore<sqlx::Postgres>;

/// The database behind the engine's `Store` port.
#[derive(Debug, Clone)]
pub struct SqlStore<D: Dialect> {
    writer: Pool<D>,
    reader: Pool<D>,
    updates: Arc<Combiner<D, Update>>,
    credentials: Arc<Combiner<D, Credentials>>,
    writes: Writes,
    #[cfg(any(test, feature = "testing"))]
    watched: testing::Watched,
    /// Ends with the store.
    _tasks: Arc<JoinSet<()>>,
}

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its address says nothing that can be connected to.
    #[error("its address {0}")]
    Address(#[from] AddressError),
    /// It cannot be reached or refuses us.
    #[error("the database cannot be opened")]
    Connect(#[from] sqlx::Error),
    /// Its schema cannot be brought up to date.
    #[error("the database's schema cannot be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// To be read, and not there.
    #[error("there is no database; name the one that the service uses")]
    Missing,
    /// To be read, and none of ours.
    #[error("it is no database of this service; name the one that the service uses")]
    Foreign,
    /// To be read, and of an older version.
    #[error(
        "the database's schema is of an older version; start the service of this version on it once, which brings it up to date"
    )]
    Older,
    /// To be read, and of a newer version.
    #[error("the database's schema is of a newer version; use the device-ota of that version")]
    Newer,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::CHUNKS;
    use crate::testing::{PostgresDatabase, SqliteDatabase};

    /// Prepares every statement, the many-row ones in every chunk size; answers what the database refused.
    async fn refused<D: Dialect>(store: &SqlStore<D>) -> Vec<String> {
        let mut conn = store.writer.acquire().await.expect("a connection");
        let mut refused = Vec::new();
        for statement in STATEMENTS.iter().copied().flatten() {
            for chunk in 0..CHUNKS.len() {
                let text = statement.text_for::<D>(chunk);
                if let Err(error) = D::prepare(&mut conn, text).await {
                    refused.push(format!("{}: {error}", statement.name));
                }
            }
        }
        refused
    }

    #[tokio::test]
    async fn sqlite_prepares_every_statement() {
        let database = SqliteDatabase::new();
        let store = database.open().await;
        assert_eq!(refused(&store).await, Vec::<String>::new());
        store.close().await;
    }

    #[tokio::test]
    async fn postgres_prepares_every_statement() {
        let database = PostgresDatabase::create().await;
        let store = database.open().await;
        assert_eq!(refused(&store).await, Vec::<String>::new());
        store.close().await;
    }

    #[test]
    fn both_databases_have_the_same_migrations() {
        let versions = |migrator: sqlx::migrate::Migrator| {
            let steps = migrator.iter().map(|m| (m.version, m.description.clone()));
            steps.collect::<Vec<_>>()
        };
        assert_eq!(
            versions(migrations::sqlite()),
            versions(migrations::postgres())
        );
    }
}
