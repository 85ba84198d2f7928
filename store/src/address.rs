//! The address of a PostgreSQL server, looked at without a connection.

use std::str::FromStr as _;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Why an address cannot be connected to. It never holds the address, in which there may be a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is nothing in it.
    #[error("names no server: it is postgres://user:password@host:port/database")]
    Empty,
    /// A letter that ends a part of an address stands in the user or the password.
    #[error(
        "has a {0} where an address has none: what is special in a user or a password is percent-encoded \
         (# as %23, @ as %40, / as %2F, ? as %3F, : as %3A, % as %25)"
    )]
    Unescaped(char),
    /// It cannot be read.
    #[error(
        "cannot be read ({0}): it is postgres://user:password@host:port/database, and what is special in a user or a password \
         is percent-encoded (# as %23, @ as %40, / as %2F, ? as %3F, : as %3A, % as %25)"
    )]
    Unreadable(String),
    /// It asks for TLS.
    #[error(
        "asks for TLS by its sslmode, which this service does not speak to a database: leave sslmode out, and reach the server \
         over the same machine, a private network or a tunnel"
    )]
    Secured,
}

/// Whether `url`, which begins with `postgres://` or `postgresql://`, is an address that a store can be opened at. Nobody is asked.
///
/// An unescaped `#`, `/` or second `@` is refused also where the rest could be read: as the address of another server.
///
/// ```
/// use device_ota_store::{AddressError, check_address};
///
/// assert_eq!(check_address("postgres://ota:p%40ss%23w@db:5432/ota"), Ok(()));
/// assert_eq!(check_address("postgres://ota:p@ss#w@db/ota"), Err(AddressError::Unescaped('#')));
/// ```
pub fn check_address(url: &str) -> Result<(), AddressError> {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    if rest.trim_matches('/').is_empty() {
        return Err(AddressError::Empty);
    }
    if rest.contains('#') {
        return Err(AddressError::Unescaped('#'));
    }
    let before_query = rest.split('?').next().unwrap_or_default();
    let (server, path) = before_query.split_once('/').unwrap_or((before_query, ""));
    if server.matches('@').count() > 1 {
        return Err(AddressError::Unescaped('@'));
    }
    if !server.contains('@') && path.contains('@') {
        return Err(AddressError::Unescaped('/'));
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        AddressError::Unreadable(cause.unwrap_or_else(|| error.to_string()))
    })?;
    match options.get_ssl_mode() {
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer => Ok(()),
        PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull => {
            Err(AddressError::Secured)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_can_be_connected_to_is_taken() {
        for url in [
            "postgres://h",
            "postgres://h/x",
            "postgresql://u:p@h:5432/x",
            "postgres://u:%23%40%2F%3F%3A%25@[::1]:5432/x",
            "postgres:///x?host=/run/postgresql",
            "postgres://u@localhost/x?host=/tmp/a&sslmode=prefer",
            "postgres://h/x?user=u@house",
        ] {
            assert_eq!(check_address(url), Ok(()), "{url}");
        }
    }

    #[test]
    fn one_that_cannot_is_refused_without_its_password() {
        for (url, says) in [
            ("postgres://", "names no server"),
            ("postgres:///", "names no server"),
            ("postgres://u@/x", "cannot be read (empty host)"),
            ("postgres://u@h:99999/x", "cannot be read (invalid port"),
            ("postgres://u:s3cret/w@h/x", "has a /"),
            ("postgres://u:1/w@h/x", "has a /"),
            ("postgres://u:s3cret@w@h/x", "has a @"),
            ("postgres://u:s3cret#w@h/x", "has a #"),
            ("postgres://u:s3cret?w@h/x", "cannot be read (invalid port"),
            ("postgres://h/x?sslmode=maybe", "cannot be read ("),
            ("postgres://h/x?port=y", "cannot be read ("),
            ("postgres://h/x?sslmode=require", "asks for TLS"),
        ] {
            let told = check_address(url).map_err(|error| error.to_string());
            let told = told.err().unwrap_or_default();
            assert!(told.starts_with(says), "{url}: {told}");
            assert!(!told.contains("s3cret"), "{told}");
        }
    }
}
