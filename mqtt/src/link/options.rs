//! Where the external broker is, and who we are to it.

use std::fmt;
use std::time::Duration;

use super::group::{MARKER_PATIENCE, Sharing};

/// Ports of MQTT without TLS and with it.
const PLAIN_PORT: u16 = 1883;
const TLS_PORT: u16 = 8883;

/// Why a text is no broker's URL. Never shows the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a broker's URL reads mqtt://[user[:password]@]host[:port], or mqtts://… for TLS: {0}")]
pub struct BrokerUrlError(&'static str);

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
    /// With whom reports are shared.
    pub sharing: Sharing,
    /// How long a broker may hand nothing over at all before it is held not to share, ten seconds unless set; one that hands
    /// reports over has twelve times that, and three times that is a stall of commits. Counts where reports are shared.
    pub marker_patience: Duration,
}

impl LinkOptions {
    /// Reads `mqtt://[user[:password]@]host[:port]`, or `mqtts://…` for TLS; user and password may be percent-encoded.
    ///
    /// ```
    /// use device_ota_mqtt::LinkOptions;
    ///
    /// let options = LinkOptions::parse("mqtt://ota:p%40ss@broker:1884", "device-ota")?;
    /// assert_eq!((options.host.as_str(), options.port), ("broker", 1884));
    /// assert_eq!(options.login, Some(("ota".to_owned(), "p@ss".to_owned())));
    /// assert_eq!(LinkOptions::parse("mqtt://[::1]", "x")?.host, "::1");
    /// assert_eq!(LinkOptions::parse("mqtts://broker", "x")?.port, 8883);
    /// assert!(LinkOptions::parse("http://broker", "x").is_err());
    /// # Ok::<(), device_ota_mqtt::link::BrokerUrlError>(())
    /// ```
    pub fn parse(url: &str, client_id: impl Into<String>) -> Result<Self, BrokerUrlError> {
        let (rest, default) = match url.split_once("://") {
            Some(("mqtt", rest)) => (rest, PLAIN_PORT),
            Some(("mqtts", rest)) => (rest, TLS_PORT),
            _ => return Err(BrokerUrlError("no mqtt://")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(read_login(login)?), place),
            None => (None, rest),
        };
        let (host, port) = read_place(place)?;
        Ok(Self {
            host,
            port: port.unwrap_or(default),
            login,
            client_id: client_id.into(),
            sharing: Sharing::default(),
            marker_patience: MARKER_PATIENCE,
        })
    }
}

fn read_login(text: &str) -> Result<(String, String), BrokerUrlError> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    Ok((decode(user)?, decode(password)?))
}

fn read_place(text: &str) -> Result<(String, Option<u16>), BrokerUrlError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(BrokerUrlError("no ] after ["))?;
            (host, port.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() || host.contains(['/', '?', '#', ' ']) {
        return Err(BrokerUrlError("no host"));
    }
    let port = port.map(str::parse).transpose();
    let port = port.map_err(|_| BrokerUrlError("no valid port"))?;
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
        bytes.push(value.ok_or(BrokerUrlError("a % without two hex digits"))?);
    }
    String::from_utf8(bytes).map_err(|_| BrokerUrlError("not utf-8"))
}

impl fmt::Debug for LinkOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkOptions")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.login.as_ref().map(|(user, _)| user))
            .field("client_id", &self.client_id)
            .field("sharing", &self.sharing)
            .finish_non_exhaustive()
    }
}
