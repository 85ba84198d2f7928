//! The address of a PostgreSQL server, looked at without a connection.

use std::path::PathBuf;
use std::str::FromStr as _;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// What may stand behind the `?` of an address.
const PARAMETERS: [&str; 18] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "application_name",
    "statement-cache-capacity",
    "options",
];

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
    /// Something stands behind its `?` that no address has. It is not told, because it may be the end of a password.
    #[error(
        "has something behind its ? that is unknown; known are {}. A ? in a user or a password is written as %3F",
        PARAMETERS.join(", ")
    )]
    Parameter,
    /// A file of its TLS cannot be read.
    #[error("names {} as its {parameter}, which cannot be read ({error})", file.display())]
    File {
        /// What names it in the address.
        parameter: String,
        /// The file.
        file: PathBuf,
        /// Why, as the system says it.
        error: String,
    },
    /// A certificate without its key, or the other way round.
    #[error("names one of sslcert and sslkey: a certificate of one's own goes with its key")]
    Half,
    /// A mode that sounds like TLS, and is none.
    #[error(
        "has sslmode=allow, by which nothing is encrypted here: use prefer (which is so by itself), require, verify-ca or verify-full, \
         or disable"
    )]
    Allow,
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
    options(url).map(drop)
}

/// How to connect to an address.
///
/// Its `sslmode` means what it means to libpq, where sqlx differs: with an authority in `sslrootcert`, `require` looks at the server's
/// certificate as `verify-ca` does; over a socket of this machine there is no TLS (PostgreSQL, "SSL Support", 34.19.1 and 34.19.3).
pub(crate) fn options(url: &str) -> Result<PgConnectOptions, AddressError> {
    is_escaped(url)?;
    let options = PgConnectOptions::from_str(url).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        AddressError::Unreadable(cause.unwrap_or_else(|| error.to_string()))
    })?;
    let is_local = options.get_socket().is_some() || options.get_host().starts_with('/');
    let mode = match options.get_ssl_mode() {
        _ if is_local => return Ok(options.ssl_mode(PgSslMode::Disable)),
        PgSslMode::Disable => return Ok(options),
        PgSslMode::Allow => return Err(AddressError::Allow),
        mode => mode,
    };
    // The files are named by the environment, too (PGSSLROOTCERT), and nothing but the address tells what was understood.
    // Without host and user, which it cannot write whatever they are.
    let understood = options.clone().host("h").username("u").to_url_lossy();
    let [authority, certificate, key] = ["sslrootcert", "sslcert", "sslkey"].map(|parameter| {
        let mut pairs = understood.query_pairs();
        let Some((_, named)) = pairs.find(|(name, _)| name == parameter) else {
            return Ok(false);
        };
        // What is no file is the PEM itself.
        let Some(file) = named.strip_prefix("file: ") else {
            return Ok(true);
        };
        match std::fs::read(file) {
            Ok(_) => Ok(true),
            Err(error) => Err(AddressError::File {
                parameter: parameter.to_owned(),
                file: file.into(),
                error: error.to_string(),
            }),
        }
    });
    if certificate? != key? {
        return Err(AddressError::Half);
    }
    Ok(match (mode, authority?) {
        (PgSslMode::Require, true) => options.ssl_mode(PgSslMode::VerifyCa),
        _ => options,
    })
}

fn is_escaped(url: &str) -> Result<(), AddressError> {
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
    let (_, query) = rest.split_once('?').unwrap_or_default();
    let mut names = query.split('&').map(|pair| pair.split('=').next());
    let is_known = |name: &str| name.starts_with("options[") || PARAMETERS.contains(&name);
    if query.is_empty() || names.all(|name| name.is_some_and(is_known)) {
        Ok(())
    } else {
        Err(AddressError::Parameter)
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
            "postgres://h/x?sslmode=disable&sslrootcert=/none/ca.pem",
            "postgres://h/x?sslmode=verify-full",
            "postgres://h/x?hostaddr=fd00::5&options[statement_timeout]=9s",
            "postgres://u:p@[fd00::5]:5432/x?sslmode=require",
            // Of no use over a socket of this machine, as for libpq.
            "postgres:///x?host=/run/postgresql&sslmode=require&sslrootcert=/none/ca.pem",
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
            ("postgres://u:s3cret?w@h/x", "has something behind its ?"),
            (
                "postgres://ota:123?s3cret@h/x",
                "has something behind its ?",
            ),
            (
                "postgres://ota:?s3cret=1&x@h/x",
                "has something behind its ?",
            ),
            (
                "postgres://h/x?sslmod=verify-full",
                "has something behind its ?",
            ),
            ("postgres://h/x?sslmode=maybe", "cannot be read ("),
            ("postgres://h/x?port=y", "cannot be read ("),
            ("postgres://h/x?sslmode=allow", "has sslmode=allow"),
            (
                "postgres://u:s3cret@h/x?sslmode=verify-ca&sslrootcert=/none/ca.pem",
                "names /none/ca.pem as its sslrootcert, which cannot be read (No such file",
            ),
            (
                "postgres://h/x?sslcert=/dev/null",
                "names one of sslcert and sslkey",
            ),
        ] {
            let told = check_address(url).map_err(|error| error.to_string());
            let told = told.err().unwrap_or_default();
            assert!(told.starts_with(says), "{url}: {told}");
            assert!(!told.contains("s3cret"), "{told}");
        }
    }

    #[test]
    fn a_mode_means_what_it_means_to_libpq() {
        let mode = |query| {
            let url = format!("postgres://h/x?{query}");
            format!("{:?}", options(&url).expect(query).get_ssl_mode())
        };
        for (query, means) in [
            ("", "Prefer"),
            ("sslmode=require", "Require"),
            ("sslmode=require&sslrootcert=/dev/null", "VerifyCa"),
            ("sslmode=verify-full&sslrootcert=/dev/null", "VerifyFull"),
            ("sslmode=prefer&sslrootcert=/dev/null", "Prefer"),
            ("sslmode=verify-full&host=/run/postgresql", "Disable"),
        ] {
            assert_eq!(mode(query), means, "{query}");
        }
    }
}
