//! What can go wrong between a statement and the port: sqlx's errors and rows that do not read.

use std::sync::Arc;

use device_ota_engine::ports::StoreError;

/// An error of this crate, on its way to a [`StoreError`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum DbError {
    /// The database or its driver.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// A row that is not what it should be.
    #[error("{statement}: {detail}")]
    Corrupt {
        /// The statement that read it.
        statement: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// Somebody else was first.
    #[error("{0} was changed by somebody else")]
    Conflict(&'static str),
}

impl DbError {
    /// A row that is not what it should be.
    pub(crate) fn corrupt(detail: impl Into<String>) -> Self {
        Self::Corrupt {
            statement: "",
            detail: detail.into(),
        }
    }

    /// The transaction was taken back because another one came between; the next try may well succeed.
    pub(crate) fn is_rollback(&self) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else {
            return false;
        };
        let code = error.code();
        code.is_some_and(|code| code.len() == 5 && code.starts_with("40"))
    }

    /// Says which statement read the row.
    pub(crate) fn read_by(self, name: &'static str) -> Self {
        match self {
            Self::Sql(
                error @ (sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_)),
            ) => Self::Corrupt {
                statement: name,
                detail: error.to_string(),
            },
            Self::Corrupt { detail, .. } => Self::Corrupt {
                statement: name,
                detail,
            },
            other => other,
        }
    }

    /// What each of several callers is told of an error that concerns all of them.
    pub(crate) fn shared(this: Arc<Self>) -> StoreError {
        match &*this {
            Self::Conflict(what) => StoreError::Conflict(what),
            Self::Corrupt { statement, detail } => StoreError::Corrupt {
                table: statement,
                detail: detail.clone(),
            },
            Self::Sql(_) => StoreError::Unavailable(Box::new(this)),
        }
    }
}

/// Whether a database's code says that the data, not the moment, is the reason: PostgreSQL's classes 22 (data) and
/// 23 (integrity); SQLite's 18 (too big), 19 (constraint) and 20 (mismatch), in the low byte.
fn is_refusal(code: Option<&str>) -> bool {
    let Some(code) = code else { return false };
    match code.parse::<u32>() {
        Ok(number) if code.len() < 5 => matches!(number & 0xff, 18..=20),
        _ => code.starts_with("22") || code.starts_with("23"),
    }
}

/// A row was on its way to the default partition while its day got one of its own: it is no row's fault, and the next try has it.
fn is_of_partitions(error: &dyn sqlx::error::DatabaseError) -> bool {
    error.code().as_deref() == Some("23514") && error.constraint().is_none()
}

/// What it means for whoever writes that a database's code says that it takes no writes: PostgreSQL's 53100 (disk full) and
/// 25006 (read-only); SQLite's 13 (full) and 8 (read-only), in the low byte.
fn unwritable(code: Option<&str>) -> Option<&'static str> {
    let code = code?;
    let number = code.parse::<u32>().ok().filter(|_| code.len() < 5);
    match (number.map(|number| number & 0xff), code) {
        (Some(13), _) | (None, "53100") => Some("its disk is full; free some space"),
        (Some(8), _) | (None, "25006") => Some(
            "it may only be read; look at the rights on its file, or name the server that takes writes",
        ),
        _ => None,
    }
}

/// What a unique key protects, by the table that the database names.
const PROTECTED: [(&str, &str); 7] = [
    ("audit_log", "the audit trail"),
    ("api_keys", "the API key"),
    ("firmware.", "the firmware"),
    ("firmware_pkey", "the firmware"),
    ("update_campaigns", "the campaign"),
    ("device_updates", "the device's update"),
    ("devices", "the device"),
];

impl From<DbError> for StoreError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Conflict(what) => Self::Conflict(what),
            DbError::Corrupt { statement, detail } => Self::Corrupt {
                table: statement,
                detail,
            },
            DbError::Sql(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                let text = error.constraint().unwrap_or_else(|| error.message());
                let known = PROTECTED.iter().find(|(table, _)| text.contains(table));
                Self::Conflict(known.map_or("the row", |(_, what)| what))
            }
            DbError::Sql(sqlx::Error::Database(error))
                if is_refusal(error.code().as_deref()) && !is_of_partitions(error.as_ref()) =>
            {
                Self::Refused(error.message().to_owned())
            }
            DbError::Sql(error) => {
                let database = error.as_database_error();
                let code = database.and_then(sqlx::error::DatabaseError::code);
                match unwritable(code.as_deref()) {
                    Some(why) => Self::Unwritable(why),
                    None => Self::Unavailable(Box::new(error)),
                }
            }
        }
    }
}
