//! Where the external broker is, and who we are to it.

use std::fmt;

/// Port of MQTT without TLS.
const DEFAULT_PORT: u16 = 1883;

/// Why a text is no broker's URL. Never shows the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerUrlError {
    /// TLS to the broker.
    #[error(
        "mqtts:// is not served yet: it comes with a later version; use mqtt:// within a trusted network"
    )]
    Tls,
    /// Something else.
    #[error("a broker's URL reads mqtt://[user[:password]@]host[:port]: {0}")]
    Malformed(&'static str),
}

/// What the link needs to know of the broker.
#[derive(Clone, PartialEq, Eq)]
pub struct LinkOptions {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// User name and password.
    pub login: Option<(String, String)>,
    /// How our connections' client ids begin. The broker keeps messages for it while we are away: it must stay the same
    /// over restarts, and be another for each replica.
    pub client_id: String,
}

impl LinkOptions {
    /// Reads `mqtt://[user[:password]@]host[:port]`; user and password may be percent-encoded.
    ///
    /// ```
    /// use device_ota_mqtt::LinkOptions;
    ///
    /// let options = LinkOptions::parse("mqtt://ota:p%40ss@broker:1884", "device-ota")?;
    /// assert_eq!((options.host.as_str(), options.port), ("broker", 1884));
    /// assert_eq!(options.login, Some(("ota".to_owned(), "p@ss".to_owned())));
    /// assert_eq!(LinkOptions::parse("mqtt://[::1]", "x")?.host, "::1");
    /// assert!(LinkOptions::parse("mqtts://broker", "x").is_err());
    /// # Ok::<(), device_ota_mqtt::link::BrokerUrlError>(())
    /// ```
    pub fn parse(url: &str, client_id: impl Into<String>) -> Result<Self, BrokerUrlError> {
        if url.starts_with("mqtts://") {
            return Err(BrokerUrlError::Tls);
        }
        let rest = url
            .strip_prefix("mqtt://")
            .ok_or(BrokerUrlError::Malformed("no mqtt://"))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(read_login(login)?), place),
            None => (None, rest),
        };
        let (host, port) = read_place(place)?;
        Ok(Self {
            host,
            port,
            login,
            client_id: client_id.into(),
        })
    }
}

fn read_login(text: &str) -> Result<(String, String), BrokerUrlError> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    Ok((decode(user)?, decode(password)?))
}

fn read_place(text: &str) -> Result<(String, u16), BrokerUrlError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest
                .split_once(']')
                .ok_or(BrokerUrlError::Malformed("no ] after ["))?;
            (host, port.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() || host.contains(['/', '?', '#', ' ']) {
        return Err(BrokerUrlError::Malformed("no host"));
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => port
            .parse()
            .map_err(|_| BrokerUrlError::Malformed("no valid port"))?,
    };
    Ok((host.to_owned(), port))
}

/// Percent-decodes.
fn decode(text: &str) -> Result<String, BrokerUrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let value = digit()
            .zip(digit())
            .and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        bytes.push(value.ok_or(BrokerUrlError::Malformed("a % without two hex digits"))?);
    }
    String::from_utf8(bytes).map_err(|_| BrokerUrlError::Malformed("not utf-8"))
}

impl fmt::Debug for LinkOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkOptions")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.login.as_ref().map(|(user, _)| user))
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}
