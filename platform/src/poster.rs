//! Requests to webhooks' receivers over HTTP and HTTPS. Receivers are named by people, so nothing is sent to an address
//! within the house unless a setting says so: neither to one that is written down, nor to one that a name leads to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use device_ota_domain::webhook::NotTaken;
use device_ota_engine::ports::poster::{Letter, Poster};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, StatusCode, Url};

use crate::client::root;

/// Longest that one call may take in all.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest that a connection may take to come about.
const CONNECTING: Duration = Duration::from_secs(5);
const INSIDE: &str = "it is an address within the house, and WEBHOOK_ALLOW_PRIVATE is off";

/// Posts to receivers.
pub struct HttpPoster {
    client: Client,
    allow_private: bool,
}

impl HttpPoster {
    /// With `allow_private`, also to loopback, private and link-local addresses.
    pub fn new(version: &str, allow_private: bool) -> reqwest::Result<Self> {
        let client = Client::builder()
            .timeout(DEADLINE)
            .connect_timeout(CONNECTING)
            // A redirect could lead anywhere, and a proxy would look names up by itself.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .dns_resolver(Arc::new(Outside { allow_private }))
            .user_agent(format!("device-ota/{version}"))
            .build()?;
        Ok(Self {
            client,
            allow_private,
        })
    }

    /// The address, when something may be sent there.
    fn parse(&self, url: &str) -> Result<Url, String> {
        let shown = "it must be an address such as https://hooks.example.com/ota";
        let url = Url::parse(url).map_err(|error| format!("{shown}: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(shown.to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it must hold no password: requests are signed".to_owned());
        }
        if url.fragment().is_some() {
            return Err("it must have no part behind #, which is never sent".to_owned());
        }
        let host = url.host_str().unwrap_or_default();
        let literal: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        if !self.allow_private && literal.is_some_and(|address| !is_outside(address)) {
            return Err(INSIDE.to_owned());
        }
        Ok(url)
    }
}

#[async_trait]
impl Poster for HttpPoster {
    fn check(&self, url: &str) -> Result<(), String> {
        self.parse(url).map(drop)
    }

    async fn post(&self, letter: Letter<'_>) -> Result<(), NotTaken> {
        // Anew each time: the setting may have been another one when it was written down.
        let url = self.parse(letter.url).map_err(NotTaken::Refused)?;
        let request = self
            .client
            .post(url)
            .header("content-type", "application/json")
            .header("webhook-id", letter.id)
            .header("webhook-timestamp", letter.timestamp)
            .header("webhook-signature", letter.signature)
            .body(letter.body.to_owned());
        let response = request.send().await.map_err(|error| failed(&error))?;
        // The body is not read: it is nobody's.
        match response.status() {
            status if status.is_success() => Ok(()),
            StatusCode::GONE => Err(NotTaken::Gone),
            status if is_away(status) => Err(NotTaken::Away(format!("it answered {status}"))),
            status => Err(NotTaken::Refused(format!("it answered {status}"))),
        }
    }
}

/// What those say who stand before a receiver that is not there, and receivers that have no time.
fn is_away(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// What went wrong, in words, without the address, which may hold a secret.
fn failed(error: &reqwest::Error) -> NotTaken {
    if error.is_timeout() {
        return NotTaken::Away(format!("it did not answer within {} s", DEADLINE.as_secs()));
    }
    let cause = root(error);
    let said = format!("it cannot be reached: {cause}");
    if cause.is::<WithinTheHouse>() {
        return NotTaken::Refused(said); // by us, and waiting helps nobody
    }
    NotTaken::Away(said)
}

/// A name leads to no address that may be sent to.
#[derive(Debug, thiserror::Error)]
#[error("{INSIDE}")]
struct WithinTheHouse;

/// Looks names up, and answers with addresses outside alone: the connection goes to what was looked at.
struct Outside {
    allow_private: bool,
}

impl Resolve for Outside {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let usable: Vec<SocketAddr> = found
                .filter(|address| allow_private || is_outside(address.ip()))
                .collect();
            if usable.is_empty() {
                return Err(WithinTheHouse.into());
            }
            Ok::<Addrs, Box<dyn std::error::Error + Send + Sync>>(Box::new(usable.into_iter()))
        })
    }
}

/// Whether an address is one of the internet at large.
fn is_outside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_outside_v4(v4),
        IpAddr::V6(v6) => is_outside_v6(v6),
    }
}

/// Not one of the registry of special addresses (RFC 6890).
fn is_outside_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99);
    !special
}

/// Global unicast, but for what leads to an IPv4 address, which is looked at itself, and what is for documents.
fn is_outside_v6(address: Ipv6Addr) -> bool {
    let [first, second, middle @ .., high, low] = address.segments();
    let v4 = |high: u16, low: u16| {
        is_outside_v4(Ipv4Addr::from_bits(
            (u32::from(high) << 16) | u32::from(low),
        ))
    };
    match (first, second) {
        // NAT64
        (0x64, 0xff9b) if middle == [0; 4] => v4(high, low),
        // 6to4
        (0x2002, high) => v4(high, middle[0]),
        // Teredo and others of the protocol registry, documents
        (0x2001, 0..0x200 | 0xdb8) | (0x3fff, 0..0x1000) => false,
        _ => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_is_within_the_house_is_not_outside() {
        for inside in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "192.0.0.170",
            "198.18.0.1",
            "203.0.113.9",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ] {
            assert!(!is_outside(inside.parse().unwrap()), "{inside}");
        }
        for outside in [
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "64:ff9b::8.8.8.8",
        ] {
            assert!(is_outside(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn an_address_is_looked_at_before_anything_is_sent() {
        let [strict, lenient] = [false, true].map(|allow| HttpPoster::new("0", allow).unwrap());
        assert_eq!(strict.check("https://hooks.example.com/ota?x=1"), Ok(()));
        for inside in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::1]:80/",
            "http://[::ffff:7f00:1]/",
        ] {
            assert_eq!(strict.check(inside), Err(INSIDE.to_owned()), "{inside}");
            assert_eq!(lenient.check(inside), Ok(()), "{inside}");
        }
        for wrong in [
            "",
            "x",
            "ftp://example.com/",
            "http://",
            "https://u:p@example.com/",
            "https://e.com/#x",
        ] {
            assert!(lenient.check(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_within_the_house_leads_nowhere() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!(
            "http://localhost:{}/",
            listener.local_addr().unwrap().port()
        );
        let letter = Letter {
            url: &url,
            id: "evt_1",
            timestamp: 1,
            signature: "v1,x",
            body: "{}",
        };
        let sent = HttpPoster::new("0", false).unwrap().post(letter).await;
        let NotTaken::Refused(why) = sent.unwrap_err() else {
            panic!("it is not for us to wait")
        };
        assert!(why.contains(INSIDE), "{why}");
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
    }

    #[tokio::test]
    async fn who_is_not_there_is_away() {
        // A port that was free a moment ago.
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let letter = Letter {
            url: &format!("http://127.0.0.1:{port}/"),
            id: "evt_1",
            timestamp: 1,
            signature: "v1,x",
            body: "{}",
        };
        let sent = HttpPoster::new("0", true).unwrap().post(letter).await;
        assert!(matches!(sent, Err(NotTaken::Away(_))), "{sent:?}");
        for (status, away) in [(429, true), (502, true), (503, true), (504, true)]
            .into_iter()
            .chain([400, 401, 404, 500, 501].map(|status| (status, false)))
        {
            assert_eq!(
                is_away(StatusCode::from_u16(status).unwrap()),
                away,
                "{status}"
            );
        }
    }
}
