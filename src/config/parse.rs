//! From texts to settings; each refusal names its setting and what would be right.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use device_ota_domain::bandwidth::{Budgets, MAX_BYTES_PER_SECOND};
use device_ota_http::{CONNECTIONS_OF_ADDRESS, MAX_CONNECTIONS};
use device_ota_platform::{NatsAddress, NatsAddressError};
use device_ota_protocol::topics::Prefix;
use device_ota_store::check_address;

use super::raw::RawConfig;
use super::values::{Checked, addr, base_url, flag, number, rate};
use super::{
    Config, ConfigError, Database, GivenKeys, LogFormat, Secret, broker, identity, services,
    storage, tls,
};

/// What is logged unless it is said. Of parts whose failures we tell ourselves, nothing; and not of each client that names an IP
/// address where TLS has a host name.
const LOG: &str =
    "info,rumqttd=off,async_nats=off,rustls_platform_verifier=off,rustls::msgs::handshake=error";

impl Config {
    /// Checks the texts.
    pub(super) fn check(raw: &RawConfig) -> Checked<Self> {
        let data_dir = PathBuf::from(raw.data_dir.as_deref().unwrap_or("./data"));
        let http_addr = raw.http_addr.as_deref().unwrap_or("127.0.0.1:8216");
        let http_addr = addr("HTTP_ADDR", http_addr)?;
        Ok(Self {
            http_addr,
            http_tls: tls::http(raw)?,
            internal_addr: identity::internal_addr(raw)?,
            database: database(raw, &data_dir)?,
            broker: broker::of(raw)?,
            bus_addr: bus(raw)?,
            topic_prefix: prefix(raw)?,
            storage_path: raw
                .storage_base_path
                .as_ref()
                .map_or_else(|| data_dir.join("storage"), PathBuf::from),
            s3: storage::s3(raw)?,
            public_url: public_url(raw, http_addr)?,
            keys: keys(raw)?,
            failure_threshold_percent: number(
                "AUTO_ROLLBACK_FAILURE_THRESHOLD",
                raw.auto_rollback_failure_threshold.as_deref(),
                10.0,
                0.0..=100.0,
            )?,
            max_concurrent_updates: match raw.max_concurrent_updates.as_deref() {
                None | Some("off") => None,
                given => Some(number("MAX_CONCURRENT_UPDATES", given, 1, 1..=1_000_000)?),
            },
            budgets: budgets(raw)?,
            lease_seconds: number(
                "LEASE_SECONDS",
                raw.lease_seconds.as_deref(),
                300,
                1..=86_400,
            )?,
            offline_after_seconds: number(
                "OFFLINE_AFTER_SECONDS",
                raw.offline_after_seconds.as_deref(),
                300,
                1..=604_800,
            )?,
            health_seconds: number(
                "HEALTH_SECONDS",
                raw.health_seconds.as_deref(),
                60,
                1..=86_400,
            )?,
            rollback_timeout_hours: number(
                "ROLLBACK_TIMEOUT_HOURS",
                raw.rollback_timeout_hours.as_deref(),
                6.0,
                0.001..=8_760.0,
            )?,
            heartbeat_retention_days: number(
                "HEARTBEAT_RETENTION_DAYS",
                raw.heartbeat_retention_days.as_deref(),
                30,
                0..=3_650,
            )?,
            rate_limit_heartbeat: rate(
                "RATE_LIMIT_HEARTBEAT",
                raw.rate_limit_heartbeat.as_deref(),
                "100/minute",
            )?,
            rate_limit_update_check: rate(
                "RATE_LIMIT_UPDATE_CHECK",
                raw.rate_limit_update_check.as_deref(),
                "10/minute",
            )?,
            rate_limits: identity::rate_limits(raw)?,
            http_connections_per_address: number(
                "HTTP_CONNECTIONS_PER_ADDRESS",
                raw.http_connections_per_address.as_deref(),
                CONNECTIONS_OF_ADDRESS,
                1..=MAX_CONNECTIONS,
            )?,
            cors: identity::cors(raw)?,
            tokens: identity::tokens(raw)?,
            auth_service_url: services::auth(raw)?,
            device_service_url: services::devices(raw)?,
            consul: services::consul(raw)?,
            nats: nats(raw)?,
            mqtt_max_connections: number(
                "MQTT_MAX_CONNECTIONS",
                raw.mqtt_max_connections.as_deref(),
                18_000,
                1..=1_000_000,
            )?,
            webhook_allow_private: flag(
                "WEBHOOK_ALLOW_PRIVATE",
                raw.webhook_allow_private.as_deref(),
            )?,
            webhook_tries: number("WEBHOOK_TRIES", raw.webhook_tries.as_deref(), 8, 1..=20)?,
            log: raw.log.clone().unwrap_or_else(|| LOG.to_owned()),
            log_format: log_format(raw)?,
            data_dir,
        })
    }
}

fn budgets(raw: &RawConfig) -> Checked<Budgets> {
    fn bytes(name: &str, text: &str) -> Checked<u64> {
        number(name, Some(text), 1, 1..=MAX_BYTES_PER_SECOND)
    }
    let by_name = |name: &'static str, list: Option<&str>| {
        let mut budgets = BTreeMap::new();
        for entry in list
            .unwrap_or_default()
            .split(',')
            .filter(|e| !e.is_empty())
        {
            let wrong = |what| ConfigError::new(name, format!("{entry:?} {what}"));
            let (key, text) = entry
                .rsplit_once('=')
                .ok_or_else(|| wrong("must be a name and bytes a second, such as name=1000000"))?;
            if budgets.insert(key.to_owned(), bytes(name, text)?).is_some() {
                return Err(wrong("has a budget already; name it once"));
            }
        }
        Ok(budgets)
    };
    Ok(Budgets {
        service: match raw.bandwidth_bytes_per_second.as_deref() {
            None | Some("off") => None,
            Some(text) => Some(bytes("BANDWIDTH_BYTES_PER_SECOND", text)?),
        },
        groups: by_name("BANDWIDTH_OF_GROUPS", raw.bandwidth_of_groups.as_deref())?,
        tags: by_name("BANDWIDTH_OF_TAGS", raw.bandwidth_of_tags.as_deref())?,
    })
}

fn database(raw: &RawConfig, data_dir: &std::path::Path) -> Checked<Database> {
    let Some(url) = raw.database_url.as_deref() else {
        return Ok(Database::Sqlite(data_dir.join("device-ota.db")));
    };
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        let checked = check_address(url);
        checked.map_err(|error| ConfigError::new("DATABASE_URL", error.to_string()))?;
        return Ok(Database::Postgres(Secret(url.to_owned())));
    }
    let file = url.strip_prefix("sqlite:");
    match file.map(|path| path.strip_prefix("//").unwrap_or(path)) {
        Some(":memory:") => Err(ConfigError::new(
            "DATABASE_URL",
            "must name a file: what is in memory alone is gone with the process",
        )),
        Some(path) if !path.is_empty() => Ok(Database::Sqlite(PathBuf::from(path))),
        _ => Err(ConfigError::new(
            "DATABASE_URL",
            "must be sqlite:FILE or postgres://user:password@host/database",
        )),
    }
}

fn bus(raw: &RawConfig) -> Checked<Option<SocketAddr>> {
    match raw.mqtt_bus_addr.as_deref().unwrap_or("127.0.0.1:1884") {
        "off" => Ok(None),
        text => {
            let addr = addr("MQTT_BUS_ADDR", text)?;
            if addr.ip().is_loopback() {
                Ok(Some(addr))
            } else {
                Err(ConfigError::new(
                    "MQTT_BUS_ADDR",
                    "must be a loopback address: the bus trusts whoever reaches it",
                ))
            }
        }
    }
}

fn nats(raw: &RawConfig) -> Checked<Option<NatsAddress>> {
    let parsed = raw.nats_url.as_deref().map(str::parse).transpose();
    parsed.map_err(|error: NatsAddressError| ConfigError::new("NATS_URL", error.to_string()))
}

fn prefix(raw: &RawConfig) -> Checked<Prefix> {
    let text = raw.mqtt_topic_prefix.as_deref().unwrap_or("ota/v1");
    text.parse().map_err(|_| {
        ConfigError::new(
            "MQTT_TOPIC_PREFIX",
            format!("{text:?} is not one or more plain levels such as ota/v1"),
        )
    })
}

fn public_url(raw: &RawConfig, http: SocketAddr) -> Checked<Option<String>> {
    let Some(text) = raw.public_url.as_deref() else {
        let scheme = raw.http_tls_cert.as_ref().map_or("http", |_| "https");
        if http.ip().is_unspecified() {
            return Err(ConfigError::new(
                "PUBLIC_URL",
                format!(
                    "HTTP_ADDR is {http}, every address of this machine: say which one devices shall download from, \
                     such as {scheme}://ota.example.com:{}",
                    http.port()
                ),
            ));
        }
        return Ok(None);
    };
    match base_url(text) {
        Some(url) => Ok(Some(url)),
        None => Err(ConfigError::new(
            "PUBLIC_URL",
            format!("{text:?} is not an address such as https://ota.example.com"),
        )),
    }
}

fn keys(raw: &RawConfig) -> Checked<Option<GivenKeys>> {
    match (&raw.trust_root, &raw.dispatch_key, &raw.release_key) {
        (None, None, None) => Ok(None),
        (Some(root), Some(dispatch), release) => Ok(Some(GivenKeys {
            trust_root: root.into(),
            dispatch_key: dispatch.into(),
            release_key: release.as_ref().map(PathBuf::from),
        })),
        (None, _, Some(_)) => Err(ConfigError::new(
            "RELEASE_KEY",
            "needs TRUST_ROOT and DISPATCH_KEY beside it",
        )),
        (None, Some(_), None) => Err(ConfigError::new(
            "DISPATCH_KEY",
            "needs TRUST_ROOT beside it",
        )),
        (Some(_), None, _) => Err(ConfigError::new(
            "TRUST_ROOT",
            "needs DISPATCH_KEY beside it",
        )),
    }
}

fn log_format(raw: &RawConfig) -> Checked<LogFormat> {
    match raw.log_format.as_deref() {
        Some("json") => Ok(LogFormat::Json),
        Some("pretty") => Ok(LogFormat::Pretty),
        Some(other) => Err(ConfigError::new(
            "LOG_FORMAT",
            format!("{other:?} is neither json nor pretty"),
        )),
        None if std::io::stderr().is_terminal() => Ok(LogFormat::Pretty),
        None => Ok(LogFormat::Json),
    }
}
