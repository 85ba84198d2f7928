//! The configuration, in two stages: raw texts from file, environment and flags, then checked settings.
//!
//! Each setting has one name: `HTTP_ADDR` is the flag `--http-addr`, the variable `DEVICE_OTA_HTTP_ADDR` and the key
//! `http_addr` of the file. The later wins: file, environment, flag. A name that is not known is refused, not ignored.

mod broker;
mod identity;
mod parse;
mod raw;
mod services;
mod storage;
mod tls;
mod values;

use std::net::SocketAddr;
use std::path::PathBuf;

use device_ota_domain::bandwidth::Budgets;
use device_ota_engine::Rate;
use device_ota_http::{Cors, RateLimits};
use device_ota_mqtt::Group;
use device_ota_objects::S3Settings;
use device_ota_platform::NatsAddress;
use device_ota_protocol::topics::Prefix;

pub(crate) use raw::RawConfig;

/// Which database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Database {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres(Secret),
}

/// Which way to devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Broker {
    /// Our own gateway. One of the two at least is there.
    Embedded {
        /// Where devices connect without TLS; `None`: off.
        addr: Option<SocketAddr>,
        /// Where they connect with it; `None`: off.
        tls: Option<MqttTls>,
    },
    /// A broker that others run.
    External {
        /// `mqtt://user:password@host:port`, or `mqtts://…`.
        url: Secret,
        /// TLS to it; `None`: it is spoken to without.
        tls: Option<BrokerTls>,
        /// The group of replicas that share reports; `None`: all of them come here.
        group: Option<Group>,
        /// Where devices' passwords are written for it.
        password_file: Option<PathBuf>,
    },
}

/// TLS to an external broker; all files are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BrokerTls {
    /// The authorities that are believed; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// As whom we come.
    pub own: Option<OwnCertificate>,
}

/// A certificate of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnCertificate {
    /// It, then those between it and its authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// The gateway's listener with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MqttTls {
    /// Where devices connect.
    pub addr: SocketAddr,
    /// By what.
    pub files: TlsFiles,
}

/// Which listener's TLS it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsOf {
    /// The public HTTP listener's.
    Http,
    /// The gateway's.
    Mqtt,
}

/// Files of a listener's TLS, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// Whose.
    pub of: TlsOf,
    /// The listener's certificate, then those between it and its authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who comes in by a certificate; `None`: nobody.
    pub clients: Option<ClientCertificates>,
}

/// Certificates of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificates {
    /// The authorities that sign them.
    pub ca: PathBuf,
    /// What the authorities have revoked.
    pub crl: Option<PathBuf>,
    /// Nobody comes in without one.
    pub required: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

/// A text that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<hidden>")
    }
}

/// Keys that somebody else made; without them the service makes its own and is in development mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GivenKeys {
    /// Folder of root envelopes `1.json`, `2.json` …
    pub trust_root: PathBuf,
    /// PKCS#8 PEM.
    pub dispatch_key: PathBuf,
    /// PKCS#8 PEM; without it uploads bring their own release.
    pub release_key: Option<PathBuf>,
}

/// Which tokens are taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TokenSettings {
    /// Of HS256.
    pub secret: Option<Secret>,
    /// File of PEM or a key set.
    pub public_key: Option<PathBuf>,
    /// `iss`.
    pub issuer: Option<String>,
    /// `aud`.
    pub audience: Option<String>,
}

/// A Consul agent, and what it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConsulSettings {
    /// `http://host:port`.
    pub url: Secret,
    /// What opens it.
    pub token: Option<Secret>,
    /// Where others find the service; `None`: where it listens, or as devices see it.
    pub advertise_url: Option<String>,
}

/// Checked settings.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Admin API.
    pub http_addr: SocketAddr,
    /// Its TLS; `None`: HTTP.
    pub http_tls: Option<TlsFiles>,
    /// Calls from within the house; `None`: off.
    pub internal_addr: Option<SocketAddr>,
    /// Where the service keeps what it makes.
    pub data_dir: PathBuf,
    /// Database.
    pub database: Database,
    /// Way to devices.
    pub broker: Broker,
    /// The bus for in-house subscribers; `None`: off.
    pub bus_addr: Option<SocketAddr>,
    /// Topic prefix.
    pub topic_prefix: Prefix,
    /// Folder of firmware bytes; with a bucket, of those on their way to it.
    pub storage_path: PathBuf,
    /// The bucket; `None`: there is only the folder.
    pub s3: Option<S3Settings>,
    /// What devices see in download URLs; `None`: the HTTP address.
    pub public_url: Option<String>,
    /// Keys.
    pub keys: Option<GivenKeys>,
    /// Threshold of a campaign that names none, percent.
    pub failure_threshold_percent: f64,
    /// Updates and rollbacks in flight in all; `None`: no limit.
    pub max_concurrent_updates: Option<u32>,
    /// Bytes a second that offers may bring about.
    pub budgets: Budgets,
    /// How long a silent device keeps its slot, seconds.
    pub lease_seconds: u32,
    /// How long a device may be away before that is told, seconds.
    pub offline_after_seconds: u32,
    /// How often heartbeats are compared for campaigns with criteria of health, in seconds.
    pub health_seconds: u32,
    /// How long a rollback may take in all, hours.
    pub rollback_timeout_hours: f64,
    /// Days that heartbeats stay in the history.
    pub heartbeat_retention_days: u16,
    /// Heartbeats a device; `None`: no limit.
    pub rate_limit_heartbeat: Option<Rate>,
    /// Checks a device; `None`: no limit.
    pub rate_limit_update_check: Option<Rate>,
    /// Limits of the API.
    pub rate_limits: RateLimits,
    /// Connections of one address at most.
    pub http_connections_per_address: usize,
    /// Web pages that may call it.
    pub cors: Cors,
    /// Tokens.
    pub tokens: TokenSettings,
    /// The service that knows other credentials.
    pub auth_service_url: Option<Secret>,
    /// The service that knows devices which are not registered here; `None`: nobody else does.
    pub device_service_url: Option<Secret>,
    /// Where the service is registered; `None`: nowhere.
    pub consul: Option<ConsulSettings>,
    /// Where events go and are heard beside the bus; `None`: nowhere.
    pub nats: Option<NatsAddress>,
    /// Connections at most.
    pub mqtt_max_connections: u32,
    /// Webhooks may lead within the house.
    pub webhook_allow_private: bool,
    /// Refusals of one event before it is laid aside.
    pub webhook_tries: u32,
    /// Log filter.
    pub log: String,
    /// Log form.
    pub log_format: LogFormat,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {reason}")]
pub(crate) struct ConfigError {
    /// Its name, without prefix.
    pub name: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl Config {
    /// What the admin API speaks.
    pub(crate) fn scheme(&self) -> &'static str {
        self.http_tls.as_ref().map_or("http", |_| "https")
    }
}

impl ConfigError {
    fn new(name: &str, reason: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            reason: reason.into(),
        }
    }
}
