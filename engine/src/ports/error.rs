//! What a database answers when it does not do what it was asked.

/// Why the database did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, timed out, is full or failed; trying again may help.
    #[error("the database is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It answers, and takes no writes: why, and what helps. Trying again may, too.
    #[error("the database takes no writes: {0}")]
    Unwritable(&'static str),
    /// Somebody else was first: a unique key is taken, or the row has a newer revision.
    #[error("{0} was changed by somebody else at the same time")]
    Conflict(&'static str),
    /// It does not take what it was given, and never will: a value or a rule of the schema is the reason.
    #[error("the database refuses what was to be written: {0}")]
    Refused(String),
    /// A row cannot be read as what it should be.
    #[error("a row of {table} is corrupt: {detail}")]
    Corrupt {
        /// Which table.
        table: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, StoreError>;
