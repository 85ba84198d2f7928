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

mod campaigns;
mod counts;
mod devices;
mod dialect;
mod dispatch;
mod error;
mod firmware;
mod materialise;
mod migrations;
mod open;
mod outbox;
mod presence;
mod rollbacks;
mod sql;
mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tx;
mod updates;

pub use dialect::Dialect;
pub use open::POSTGRES_MAX_CONNECTIONS;
use sqlx::Pool;

/// Every statement of the crate, file by file.
#[cfg(any(test, feature = "testing"))]
static STATEMENTS: [&[&sql::Statement]; 10] = [
    campaigns::STATEMENTS,
    counts::STATEMENTS,
    devices::STATEMENTS,
    dispatch::STATEMENTS,
    firmware::STATEMENTS,
    materialise::STATEMENTS,
    outbox::STATEMENTS,
    presence::STATEMENTS,
    rollbacks::STATEMENTS,
    updates::STATEMENTS,
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
}

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be reached or refuses us.
    #[error("the database cannot be opened")]
    Connect(#[from] sqlx::Error),
    /// Its schema cannot be brought up to date.
    #[error("the database's schema cannot be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}
