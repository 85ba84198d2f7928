//! This service in Consul (docs/operations.md, *Consul*): registered with a health check once it listens, again whenever Consul
//! has forgotten it, and taken out at an orderly end. Nothing waits for Consul. What it says it has taken is read back: whatever is at
//! a wrong address may say yes to everything.

use std::sync::Arc;
use std::time::Duration;

use device_ota_engine::ports::Clock;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::ServiceStatus;
use crate::client::{Client, Unavailable};

/// What the service is called (PRD, *Dependencies*, Consul).
const NAME: &str = "ota_service";
const TAGS: [&str; 2] = ["ota", "v1"];
const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");
/// How often Consul asks us how we are.
const CHECK_EVERY: &str = "10s";
/// How long it waits for the answer.
const CHECK_TIMEOUT: &str = "5s";
/// After so long without a good answer Consul takes us out: a kill leaves no dead entry for longer.
const FORGOTTEN_AFTER: &str = "10m";
/// How often we look whether it still knows us: its agent may have been started anew.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// First pause after a failure; each next one is twice as long, up to [`LOOK_EVERY`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest that taking us out may hold up the end of the process.
const LEAVING: Duration = Duration::from_secs(1);

/// Why it cannot be spoken to at all.
#[derive(Debug, thiserror::Error)]
pub enum ConsulError {
    /// The token has characters that no header may have.
    #[error("the token cannot be sent")]
    Token(#[from] InvalidHeaderValue),
    /// The client cannot be made.
    #[error("no client can be made")]
    Client(#[from] reqwest::Error),
}

/// This process, as others are to find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    id: String,
    address: String,
    port: u16,
    check: String,
    version: &'static str,
}

impl Instance {
    /// At `url`, such as `http://10.0.0.5:8216`; `None` when it names no host and port.
    ///
    /// The id follows from the host and the port, not from the path, so that whoever was killed and comes back is the same entry.
    pub fn at(url: &str, version: &'static str) -> Option<Self> {
        let parsed = Url::parse(url).ok()?;
        let address = parsed.host_str()?.trim_matches(['[', ']']).to_owned();
        let port = parsed.port_or_known_default()?;
        Some(Self {
            id: format!("{NAME}-{address}-{port}"),
            check: format!("{}/health/ready", url.trim_end_matches('/')),
            address,
            port,
            version,
        })
    }

    /// Whether what Consul shows under the id is this.
    fn is(&self, shown: &Shown) -> bool {
        let Shown { id, address, port } = shown;
        (id, address, port) == (&self.id, &self.address, &self.port)
    }

    /// Its entry.
    fn entry(&self) -> Value {
        json!({
            "ID": self.id,
            "Name": NAME,
            "Address": self.address,
            "Port": self.port,
            "Tags": TAGS,
            "Meta": {"version": self.version},
            "Check": {
                "Name": "ready",
                "HTTP": self.check,
                "Method": "GET",
                "Interval": CHECK_EVERY,
                "Timeout": CHECK_TIMEOUT,
                "DeregisterCriticalServiceAfter": FORGOTTEN_AFTER,
            },
        })
    }
}

/// What is looked at of an entry that Consul shows.
#[derive(Debug, Deserialize)]
struct Shown {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Address")]
    address: String,
    #[serde(rename = "Port")]
    port: u16,
}

/// A Consul agent.
pub struct Consul {
    client: Client,
    instance: Instance,
}

impl Consul {
    /// The agent at `base`, e.g. `http://127.0.0.1:8500`, which `token` opens where it asks for one.
    pub fn new(
        base: &str,
        token: Option<&str>,
        instance: Instance,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConsulError> {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            let mut token = HeaderValue::from_str(token)?;
            token.set_sensitive(true);
            headers.insert(TOKEN, token);
        }
        let client = Client::new("consul", base, headers, clock)?;
        Ok(Self { client, instance })
    }

    /// Under which id the service is registered.
    pub fn id(&self) -> &str {
        &self.instance.id
    }

    /// How it is: without trouble, the service is registered.
    pub fn status(&self) -> ServiceStatus {
        self.client.status()
    }

    /// Keeps the service registered until `stop`, then takes it out.
    pub async fn serve(&self, stop: &CancellationToken) {
        let mut is_registered = false;
        let mut pause = FIRST_PAUSE;
        loop {
            let kept = stop
                .run_until_cancelled(self.keep(&mut is_registered))
                .await;
            let rest = match kept {
                None => break,
                Some(Ok(())) => {
                    pause = FIRST_PAUSE;
                    LOOK_EVERY
                }
                // The client has told of it.
                Some(Err(Unavailable(_))) => {
                    let rest = pause;
                    pause = (pause * 2).min(LOOK_EVERY);
                    rest
                }
            };
            let rested = stop.run_until_cancelled(tokio::time::sleep(rest)).await;
            if rested.is_none() {
                break;
            }
        }
        // Also of who is not known to be registered: what was under way may have come through.
        match timeout(LEAVING, self.leave()).await {
            Ok(Ok(())) => tracing::info!(id = self.instance.id, "taken out of Consul"),
            _ if !is_registered => {}
            Ok(Err(Unavailable(why))) => self.could_not_leave(&why),
            Err(_) => self.could_not_leave("it does not answer"),
        }
    }

    fn could_not_leave(&self, why: &str) {
        tracing::warn!(
            id = self.instance.id,
            why,
            "could not be taken out of Consul, which does so by itself when its check has failed for {FORGOTTEN_AFTER}"
        );
    }

    /// Registers, unless Consul knows us already.
    async fn keep(&self, is_registered: &mut bool) -> Result<(), Unavailable> {
        *is_registered = *is_registered && self.is_known().await?;
        if *is_registered {
            return Ok(());
        }
        self.register().await?;
        self.read_back().await?;
        *is_registered = true;
        tracing::info!(id = self.instance.id, "registered in Consul");
        Ok(())
    }

    /// Whether it shows this instance. Whatever else it shows is a reason to register again, which ends well or tells why not.
    async fn is_known(&self) -> Result<bool, Unavailable> {
        let known = |status, body: &[u8]| match status {
            StatusCode::OK => Ok(shown(body).is_ok_and(|shown| self.instance.is(&shown))),
            StatusCode::NOT_FOUND => Ok(false),
            other => Err(refused(other)),
        };
        self.client.ask(self.look(), known).await
    }

    /// Looks whether what was registered is there.
    async fn read_back(&self) -> Result<(), Unavailable> {
        let taken = |status, body: &[u8]| match status {
            StatusCode::OK => match shown(body) {
                Ok(shown) if self.instance.is(&shown) => Ok(()),
                Ok(_) => Err("it shows another service under our id".to_owned()),
                Err(_) => {
                    Err("what it answers is no entry of Consul: look at CONSUL_URL".to_owned())
                }
            },
            StatusCode::NOT_FOUND => Err(
                "it says yes to a registration and does not know of it: look at CONSUL_URL"
                    .to_owned(),
            ),
            other => Err(refused(other)),
        };
        self.client.ask(self.look(), taken).await
    }

    fn look(&self) -> impl Fn(&reqwest::Client, &str) -> reqwest::RequestBuilder {
        let id = &self.instance.id;
        move |client, base| client.get(format!("{base}/v1/agent/service/{id}"))
    }

    async fn register(&self) -> Result<(), Unavailable> {
        let entry = self.instance.entry();
        let request = |client: &reqwest::Client, base: &str| {
            // Checks of an older registration are not ours any more.
            let path = "/v1/agent/service/register?replace-existing-checks=true";
            client.put(format!("{base}{path}")).json(&entry)
        };
        let taken = |status, _: &[u8]| match status {
            StatusCode::OK => Ok(()),
            other => Err(refused(other)),
        };
        self.client.ask_first(request, taken).await
    }

    /// There is no time to wait for its circuit any more.
    async fn leave(&self) -> Result<(), Unavailable> {
        let id = &self.instance.id;
        let request = |client: &reqwest::Client, base: &str| {
            client.put(format!("{base}/v1/agent/service/deregister/{id}"))
        };
        let gone = |status, _: &[u8]| match status {
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
            other => Err(refused(other)),
        };
        self.client.ask_once(request, gone).await
    }
}

fn shown(body: &[u8]) -> serde_json::Result<Shown> {
    serde_json::from_slice(body)
}

/// An answer that says no. What it says beside that may be long, and health tells it to everybody.
fn refused(status: StatusCode) -> String {
    match status {
        StatusCode::FORBIDDEN => format!("it answered {status}: CONSUL_TOKEN may not do this"),
        status => format!("it answered {status}"),
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::Fault;

    #[test]
    fn an_instance_is_where_others_find_it() {
        for (url, address, port, check) in [
            (
                "http://10.0.0.5:8216",
                "10.0.0.5",
                8216,
                "http://10.0.0.5:8216/health/ready",
            ),
            (
                "https://ota.example.com/",
                "ota.example.com",
                443,
                "https://ota.example.com/health/ready",
            ),
            (
                "http://[fd00::5]:80",
                "fd00::5",
                80,
                "http://[fd00::5]:80/health/ready",
            ),
            (
                "http://ota/behind",
                "ota",
                80,
                "http://ota/behind/health/ready",
            ),
        ] {
            let entry = Instance::at(url, "1.2.3").unwrap().entry();
            let said = |pointer| entry.pointer(pointer).cloned();
            assert_eq!(said("/Address"), Some(address.into()));
            assert_eq!(said("/Port"), Some(port.into()));
            assert_eq!(said("/Check/HTTP"), Some(check.into()));
            let id = format!("ota_service-{address}-{port}");
            assert_eq!(said("/ID"), Some(id.into()));
            assert_eq!(said("/Meta/version"), Some("1.2.3".into()));
        }
        assert_eq!(Instance::at("somewhere", "1.2.3"), None);
    }

    /// The time of day is nobody's business here.
    struct Still;

    impl Clock for Still {
        fn now(&self) -> jiff::Timestamp {
            jiff::Timestamp::UNIX_EPOCH
        }
    }

    /// An agent that answers every request so.
    async fn answering(status: &'static str) -> Consul {
        saying(status, "").await
    }

    async fn saying(status: &'static str, body: &'static str) -> Consul {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                let body_of = |request: &[u8]| {
                    let text = String::from_utf8_lossy(request).to_lowercase();
                    let (head, sent) = text.split_once("\r\n\r\n")?;
                    let length = head.split("content-length: ").nth(1);
                    let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
                    Some(sent.len() >= length.unwrap_or(0_usize))
                };
                while body_of(&request) != Some(true) {
                    stream.read_buf(&mut request).await.unwrap();
                }
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let instance = Instance::at("http://h:1", "1.2.3").unwrap();
        Consul::new(&base, None, instance, Arc::new(Still)).unwrap()
    }

    #[tokio::test]
    async fn what_it_says_it_has_taken_is_read_back() {
        for (body, is_ours) in [
            (
                r#"{"ID": "ota_service-h-1", "Service": "ota_service", "Address": "h", "Port": 1}"#,
                true,
            ),
            (
                r#"{"ID": "ota_service-h-1", "Address": "h", "Port": 2}"#,
                false,
            ),
            (
                r#"{"ID": "ota_service-g-1", "Address": "h", "Port": 1}"#,
                false,
            ),
            ("[]", false),
            ("<html>", false),
            ("", false),
        ] {
            let consul = saying("200 OK", body).await;
            let mut is_registered = false;
            let kept = consul.keep(&mut is_registered).await;
            assert_eq!((kept.is_ok(), is_registered), (is_ours, is_ours), "{body}");
            // It neither seems well in between, nor after another look.
            let _ = consul.keep(&mut is_registered).await;
            assert_eq!(is_registered, is_ours, "{body}");
            let status = consul.status();
            assert!(status.is_known);
            match status.trouble {
                None => assert!(is_ours, "{body}"),
                trouble => assert!(matches!(trouble, Some(Fault::Odd(_))) && !is_ours, "{body}"),
            }
        }
    }

    #[tokio::test]
    async fn whoever_is_not_there_has_left() {
        for (status, has_left) in [("200 OK", true), ("404 Not Found", true), ("403 No", false)] {
            let consul = answering(status).await;
            assert_eq!(consul.leave().await.is_ok(), has_left, "{status}");
        }
    }

    #[tokio::test]
    async fn it_leaves_though_its_circuit_is_open() {
        let consul = answering("429 Too Many Requests").await;
        let mut answers = Vec::new();
        for _ in 0..6 {
            answers.push(consul.is_known().await.unwrap_err().0);
        }
        assert!(answers[5].contains("not asked again"), "{answers:?}");
        let left = consul.leave().await;
        assert_eq!(left.unwrap_err().0, "it answered 429 Too Many Requests");
    }

    #[tokio::test]
    async fn it_is_known_to_be_out_of_consul_before_it_is_registered_again() {
        let consul = answering("404 Not Found").await;
        let mut is_registered = true;
        consul.keep(&mut is_registered).await.unwrap_err();
        assert!(!is_registered);
    }
}
