//! Where NATS is, and as whom we come, as one setting says it.

use std::str::FromStr;

use async_nats::{Client, ConnectError, ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;

/// Servers of one cluster, and as whom we come: `nats://user:password@host:4222`, `nats://token@host`, `tls://…`;
/// several with commas, of which the first names the user.
#[derive(Clone)]
pub struct NatsAddress {
    servers: Vec<ServerAddr>,
    login: Login,
}

#[derive(Clone, PartialEq, Eq)]
enum Login {
    Nobody,
    Token(String),
    User(String, String),
}

impl std::fmt::Debug for NatsAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.servers())
    }
}

/// It cannot be used; without the text, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be nats://user:password@host:port, nats://token@host:port or tls://…, several servers with commas, all with TLS or none"
)]
pub struct NatsAddressError;

impl FromStr for NatsAddress {
    type Err = NatsAddressError;

    fn from_str(text: &str) -> Result<Self, NatsAddressError> {
        let servers = text.split(',').map(server);
        let servers: Vec<ServerAddr> = servers.collect::<Result<_, _>>()?;
        // The password goes to any of them, and to those that they name.
        if servers.iter().any(is_secured) && !servers.iter().all(is_secured) {
            return Err(NatsAddressError);
        }
        let login = match servers.first() {
            Some(first) => login(first)?,
            None => Login::Nobody,
        };
        Ok(Self { servers, login })
    }
}

fn server(text: &str) -> Result<ServerAddr, NatsAddressError> {
    let server: ServerAddr = text.trim().parse().map_err(|_| NatsAddressError)?;
    let is_one = text.contains("://")
        && matches!(server.scheme(), "nats" | "tls")
        && !server.host().is_empty()
        && server.port() != 0;
    let url = server.clone().into_inner();
    let is_plain =
        matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    (is_one && is_plain)
        .then_some(server)
        .ok_or(NatsAddressError)
}

fn login(server: &ServerAddr) -> Result<Login, NatsAddressError> {
    let plain = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8();
        decoded
            .map(std::borrow::Cow::into_owned)
            .map_err(|_| NatsAddressError)
    };
    Ok(match (server.username(), server.password()) {
        (None, _) => Login::Nobody,
        (Some(token), None) => Login::Token(plain(token)?),
        (Some(user), Some(password)) => Login::User(plain(user)?, plain(password)?),
    })
}

fn is_secured(server: &ServerAddr) -> bool {
    server.scheme() == "tls"
}

impl NatsAddress {
    /// The servers, without user and password, for people.
    pub(super) fn servers(&self) -> String {
        let names: Vec<String> = self
            .servers
            .iter()
            .map(|server| format!("{}://{}:{}", server.scheme(), server.host(), server.port()))
            .collect();
        names.join(",")
    }

    /// Connects; the login goes apart from the addresses, which the client may write into a log.
    pub(super) async fn connect(self, options: ConnectOptions) -> Result<Client, ConnectError> {
        let options = match self.login {
            Login::Nobody => options,
            Login::Token(token) => options.token(token),
            Login::User(user, password) => options.user_and_password(user, password),
        };
        // Also of servers that these name later.
        let options = options.require_tls(self.servers.iter().any(is_secured));
        let bare = self.servers.into_iter().map(|server| {
            let mut url = server.clone().into_inner();
            let stripped = url.set_username("").and_then(|()| url.set_password(None));
            match stripped {
                Ok(()) => ServerAddr::from_url(url).unwrap_or(server),
                Err(()) => server,
            }
        });
        options.connect(bare.collect::<Vec<_>>()).await
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn servers_and_who_we_are_are_read_apart() {
        let one: NatsAddress = "nats://ota:p%40ss@nats:4222".parse().unwrap();
        assert_eq!(one.servers(), "nats://nats:4222");
        assert!(one.login == Login::User("ota".to_owned(), "p@ss".to_owned()));
        let several: NatsAddress = "tls://t0k3n@a,tls://b:4333".parse().unwrap();
        assert_eq!(several.servers(), "tls://a:4222,tls://b:4333");
        assert!(several.login == Login::Token("t0k3n".to_owned()));
        assert!("nats://h".parse::<NatsAddress>().unwrap().login == Login::Nobody);
    }

    #[test]
    fn what_is_no_address_of_nats_is_refused() {
        for wrong in [
            "",
            "x",
            "nats:4222",
            "http://h",
            "ws://h",
            "nats://",
            "nats://h:0",
            "nats://h:99999",
            "nats://h/path",
            "nats://h?x",
            "nats://a,",
            "nats://a,tls://b",
        ] {
            assert!(wrong.parse::<NatsAddress>().is_err(), "{wrong}");
        }
    }
}
