//! Raw settings: texts as they were written, and where they may come from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use super::{Config, ConfigError};

/// Every environment variable of ours starts so.
const ENV_PREFIX: &str = "DEVICE_OTA_";

macro_rules! settings {
    ($($(#[doc = $doc:literal])* $field:ident $flag:literal $key:literal),* $(,)?) => {
        /// Settings as texts. Each can stand in the file, in the environment, and on the command line.
        #[derive(Debug, Default, Clone, Args)]
        pub(crate) struct RawConfig {
            /// A TOML file of settings; the keys are the flags' names with underscores.
            #[arg(long, global = true, value_name = "FILE")]
            pub(crate) config: Option<PathBuf>,
            $($(#[doc = $doc])* #[arg(long = $flag, global = true)] pub(crate) $field: Option<String>,)*
        }

        impl RawConfig {
            const KEYS: &'static [&'static str] = &[$($key),*];

            fn fill_from(&mut self, mut layer: BTreeMap<String, String>) {
                $(if self.$field.is_none() { self.$field = layer.remove($key); })*
            }
        }
    };
}

settings! {
    /// Where the admin API listens [default: 127.0.0.1:8216]
    http_addr "http-addr" "http_addr",
    /// HTTP connections of one address at most, up to 2048; behind a proxy all clients have one [default: 256]
    http_connections_per_address "http-connections-per-address" "http_connections_per_address",
    /// Certificate of the admin API, PEM, with those between it and its authority: HTTPS in place of HTTP
    http_tls_cert "http-tls-cert" "http_tls_cert",
    /// Its key, PEM
    http_tls_key "http-tls-key" "http_tls_key",
    /// Where calls from within the house are taken, a loopback address [default: off]
    internal_addr "internal-addr" "internal_addr",
    /// Where the service keeps database, keys and images [default: ./data]
    data_dir "data-dir" "data_dir",
    /// `sqlite:FILE` or `postgres://…` [default: a file in the data folder]
    database_url "database-url" "database_url",
    /// `embedded`, or `mqtt://user:password@host:port` of a broker that you run, `mqtts://…` with TLS [default: embedded]
    mqtt_broker "mqtt-broker" "mqtt_broker",
    /// Authorities that a broker with TLS is believed by, PEM [default: the system's]
    mqtt_broker_ca "mqtt-broker-ca" "mqtt_broker_ca",
    /// Certificate that the service shows to it, PEM [default: none]
    mqtt_broker_cert "mqtt-broker-cert" "mqtt_broker_cert",
    /// Its key, PEM
    mqtt_broker_key "mqtt-broker-key" "mqtt_broker_key",
    /// Group of replicas that share the reports of an external broker (`$share/GROUP/…`) [default: none, all reports come]
    mqtt_shared_group "mqtt-shared-group" "mqtt_shared_group",
    /// Where devices connect to the embedded gateway, or `off` beside `MQTT_TLS_ADDR` [default: 127.0.0.1:1883]
    mqtt_addr "mqtt-addr" "mqtt_addr",
    /// Where devices connect to it with TLS [default: off]
    mqtt_tls_addr "mqtt-tls-addr" "mqtt_tls_addr",
    /// Certificate of the gateway, PEM, with those between it and its authority
    mqtt_tls_cert "mqtt-tls-cert" "mqtt_tls_cert",
    /// Its key, PEM
    mqtt_tls_key "mqtt-tls-key" "mqtt_tls_key",
    /// Authorities that sign devices' certificates, PEM; a device's common name is its id [default: none]
    mqtt_tls_client_ca "mqtt-tls-client-ca" "mqtt_tls_client_ca",
    /// Whether a device must have a certificate, `required` or `optional` [default: required with an authority]
    mqtt_tls_client_auth "mqtt-tls-client-auth" "mqtt_tls_client_auth",
    /// What these authorities have revoked: a list of each, PEM [default: nothing]
    mqtt_tls_crl "mqtt-tls-crl" "mqtt_tls_crl",
    /// Where in-house subscribers find the bus, or `off` [default: 127.0.0.1:1884]
    mqtt_bus_addr "mqtt-bus-addr" "mqtt_bus_addr",
    /// First levels of every topic [default: ota/v1]
    mqtt_topic_prefix "mqtt-topic-prefix" "mqtt_topic_prefix",
    /// Device connections at most, embedded gateway [default: 18000]
    mqtt_max_connections "mqtt-max-connections" "mqtt_max_connections",
    /// Where an external broker's password file is written [default: nowhere]
    mqtt_password_file "mqtt-password-file" "mqtt_password_file",
    /// `local`, or `s3` for a bucket of S3 or `MinIO` [default: local]
    storage_type "storage-type" "storage_type",
    /// Folder of images, or of those on their way to the bucket [default: storage in the data folder]
    storage_base_path "storage-base-path" "storage_base_path",
    /// Where the bucket's server is, `http://host:port`
    storage_s3_endpoint "storage-s3-endpoint" "storage_s3_endpoint",
    /// The same as clients reach it; download links then lead there [default: they lead to the service]
    storage_s3_public_endpoint "storage-s3-public-endpoint" "storage_s3_public_endpoint",
    /// The bucket, made when it is not there
    storage_s3_bucket "storage-s3-bucket" "storage_s3_bucket",
    /// Its region [default: us-east-1]
    storage_s3_region "storage-s3-region" "storage_s3_region",
    /// Access key of the bucket
    storage_s3_access_key "storage-s3-access-key" "storage_s3_access_key",
    /// Secret key of the bucket
    storage_s3_secret_key "storage-s3-secret-key" "storage_s3_secret_key",
    /// What devices see in download URLs [default: the HTTP address]
    public_url "public-url" "public_url",
    /// Release key, PKCS#8 PEM; leave it out to keep it offline
    release_key "release-key" "release_key",
    /// Dispatch key, PKCS#8 PEM
    dispatch_key "dispatch-key" "dispatch_key",
    /// Folder of root envelopes 1.json, 2.json …
    trust_root "trust-root" "trust_root",
    /// Failure threshold of campaigns that name none, percent [default: 10.0]
    auto_rollback_failure_threshold "auto-rollback-failure-threshold" "auto_rollback_failure_threshold",
    /// Updates and rollbacks at the same time, of all campaigns and devices together, or `off` [default: off]
    max_concurrent_updates "max-concurrent-updates" "max_concurrent_updates",
    /// Bytes a second of images that all offers together may bring about, or `off` [default: off]
    bandwidth_bytes_per_second "bandwidth-bytes-per-second" "bandwidth_bytes_per_second",
    /// The same for the devices of a group, `group=bytes,…` [default: none]
    bandwidth_of_groups "bandwidth-of-groups" "bandwidth_of_groups",
    /// The same for the devices that share the value of a tag, `tag=bytes,…` [default: none]
    bandwidth_of_tags "bandwidth-of-tags" "bandwidth_of_tags",
    /// How long a silent device keeps its slot, seconds [default: 300]
    lease_seconds "lease-seconds" "lease_seconds",
    /// How long a device may be away before that is told, seconds [default: 300]
    offline_after_seconds "offline-after-seconds" "offline_after_seconds",
    /// How often heartbeats are compared for campaigns with criteria of health, seconds [default: 60]
    health_seconds "health-seconds" "health_seconds",
    /// How long a rollback may take before it counts as failed, hours [default: 6]
    rollback_timeout_hours "rollback-timeout-hours" "rollback_timeout_hours",
    /// Days that heartbeats stay in the history; 0 keeps none [default: 30]
    heartbeat_retention_days "heartbeat-retention-days" "heartbeat_retention_days",
    /// Heartbeats of one device, or `off` [default: 100/minute]
    rate_limit_heartbeat "rate-limit-heartbeat" "rate_limit_heartbeat",
    /// Checks of one device, or `off` [default: 10/minute]
    rate_limit_update_check "rate-limit-update-check" "rate_limit_update_check",
    /// Requests of one address, or `off` [default: 100/second]
    rate_limit_api "rate-limit-api" "rate_limit_api",
    /// Invalid credentials from one address, or `off` [default: 30/minute]
    rate_limit_auth_failures "rate-limit-auth-failures" "rate_limit_auth_failures",
    /// Reads of one subject, or `off` [default: 100/second]
    rate_limit_read "rate-limit-read" "rate_limit_read",
    /// Changes of one subject, or `off` [default: 100/second]
    rate_limit_write "rate-limit-write" "rate_limit_write",
    /// Uploads of one subject, or `off` [default: 60/minute]
    rate_limit_upload "rate-limit-upload" "rate_limit_upload",
    /// Statistics for one subject, or `off` [default: 20/second]
    rate_limit_stats "rate-limit-stats" "rate_limit_stats",
    /// Web pages that may call the API from a browser, `https://host,…` [default: none]
    cors_origins "cors-origins" "cors_origins",
    /// Secret of HS256 tokens, at least 32 bytes
    jwt_secret "jwt-secret" "jwt_secret",
    /// File of the key of Ed25519 or RS256 tokens: PEM, or a JSON web key set
    jwt_public_key "jwt-public-key" "jwt_public_key",
    /// Who must have issued a token
    jwt_issuer "jwt-issuer" "jwt_issuer",
    /// Whom a token must be for
    jwt_audience "jwt-audience" "jwt_audience",
    /// `http://host:port` of the service that knows other tokens and keys, or `https://…` [default: none]
    auth_service_url "auth-service-url" "auth_service_url",
    /// `http://host:port` of the service that knows devices which are not registered here [default: none]
    device_service_url "device-service-url" "device_service_url",
    /// `http://host:port` of a Consul agent, where the service is registered [default: none]
    consul_url "consul-url" "consul_url",
    /// Token that Consul asks for
    consul_token "consul-token" "consul_token",
    /// Where others find the service, for Consul, `http://host:port` [default: the HTTP address, or the public URL]
    consul_advertise_url "consul-advertise-url" "consul_advertise_url",
    /// `nats://user:password@host:port` of a NATS with `JetStream`, or `tls://…`, several servers with commas [default: none]
    nats_url "nats-url" "nats_url",
    /// Whether webhooks may lead to loopback, private and link-local addresses, `true` or `false` [default: false]
    webhook_allow_private "webhook-allow-private" "webhook_allow_private",
    /// Refusals of one event before a webhook's next one has its turn [default: 8]
    webhook_tries "webhook-tries" "webhook_tries",
    /// Log filter, e.g. `info,device_ota_mqtt=debug` [default: `info,rumqttd=off,async_nats=off,rustls_platform_verifier=off,rustls::msgs::handshake=error`]
    log "log" "log",
    /// `json` or `pretty` [default: pretty on a terminal, json elsewhere]
    log_format "log-format" "log_format",
}

impl Config {
    /// The settings that flags, environment and file come to, in this order of precedence.
    pub(crate) fn from_sources(
        flags: RawConfig,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut raw = flags;
        raw.fill_from(from_environment(environment)?);
        if let Some(path) = raw.config.clone() {
            raw.fill_from(from_file(&path)?);
        }
        Self::check(&raw)
    }
}

fn from_environment(
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut layer = BTreeMap::new();
    for (name, value) in variables {
        let Some(key) = name.strip_prefix(ENV_PREFIX) else {
            continue;
        };
        // Variables of the test suite share the prefix and are nobody's setting.
        if key.starts_with("TEST_") {
            continue;
        }
        let key = key.to_ascii_lowercase();
        known(&key).map_err(|why| ConfigError::new(&name, why))?;
        layer.insert(key, value);
    }
    Ok(layer)
}

fn from_file(path: &std::path::Path) -> Result<BTreeMap<String, String>, ConfigError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::new(&shown, format!("cannot be read: {error}")))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error| ConfigError::new(&shown, format!("is not TOML: {error}")))?;
    let mut layer = BTreeMap::new();
    for (key, value) in table {
        known(&key).map_err(|why| ConfigError::new(&format!("{shown}: {key}"), why))?;
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(flag) => flag.to_string(),
            _ => {
                return Err(ConfigError::new(
                    &format!("{shown}: {key}"),
                    "must be a text, a number, or true or false",
                ));
            }
        };
        layer.insert(key, value);
    }
    Ok(layer)
}

fn known(key: &str) -> Result<(), &'static str> {
    if RawConfig::KEYS.contains(&key) {
        Ok(())
    } else {
        Err("no such setting; see --help")
    }
}

#[cfg(test)]
mod tests {
    use super::super::Broker;
    use super::*;

    fn with(flags: RawConfig, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let variables = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::from_sources(flags, variables)
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_file()
    -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("ota.toml");
        std::fs::write(
            &file,
            "http_addr = \"127.0.0.1:1\"\nmqtt_addr = \"127.0.0.1:1\"\nlease_seconds = 7\n",
        )?;
        let flags = RawConfig {
            config: Some(file),
            http_addr: Some("127.0.0.1:3".into()),
            ..RawConfig::default()
        };
        let config = with(
            flags,
            &[
                ("DEVICE_OTA_HTTP_ADDR", "127.0.0.1:2"),
                ("DEVICE_OTA_MQTT_ADDR", "127.0.0.1:2"),
                ("HOME", "/"),
            ],
        )?;
        assert_eq!(config.http_addr.port(), 3);
        assert!(
            matches!(config.broker, Broker::Embedded { addr: Some(addr), tls: None } if addr.port() == 2)
        );
        assert_eq!(config.lease_seconds, 7);
        Ok(())
    }

    #[test]
    fn a_bucket_is_named_in_full_or_refused_by_name() {
        let good = [
            ("DEVICE_OTA_STORAGE_TYPE", "s3"),
            ("DEVICE_OTA_STORAGE_S3_ENDPOINT", "http://minio:9000/"),
            (
                "DEVICE_OTA_STORAGE_S3_PUBLIC_ENDPOINT",
                "https://s3.example.com",
            ),
            ("DEVICE_OTA_STORAGE_S3_BUCKET", "firmware-bucket"),
            ("DEVICE_OTA_STORAGE_S3_ACCESS_KEY", "ota"),
            ("DEVICE_OTA_STORAGE_S3_SECRET_KEY", "hidden-key"),
        ];
        let config = with(RawConfig::default(), &good).ok();
        let s3 = config.as_ref().and_then(|config| config.s3.as_ref());
        assert_eq!(
            s3.map(|s3| (s3.endpoint.as_str(), s3.region.as_str())),
            Some(("http://minio:9000", "us-east-1"))
        );
        assert!(!format!("{config:?}").contains("hidden-key"));
        for (name, value, says) in [
            ("STORAGE_S3_ENDPOINT", "", "is needed"),
            ("STORAGE_S3_ENDPOINT", "minio:9000", "is not an address"),
            (
                "STORAGE_S3_ENDPOINT",
                "http://minio:9000/files",
                "is not an address",
            ),
            (
                "STORAGE_S3_ENDPOINT",
                "http://minio:90000",
                "is not an address",
            ),
            (
                "STORAGE_S3_PUBLIC_ENDPOINT",
                "ftp://s3",
                "is not an address",
            ),
            ("STORAGE_S3_BUCKET", "Firmware", "is no bucket's name"),
            ("STORAGE_S3_BUCKET", "ab", "is no bucket's name"),
            ("STORAGE_S3_ACCESS_KEY", "", "is needed"),
            ("STORAGE_S3_SECRET_KEY", "", "is needed"),
        ] {
            let variable = format!("DEVICE_OTA_{name}");
            let changed = good.map(|(known, given)| {
                let given = if known == variable { value } else { given };
                (known, given)
            });
            let error = with(RawConfig::default(), &changed).err();
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(
                error.starts_with(&format!("{name}: ")) && error.contains(says),
                "{name}={value}: {error:?}"
            );
        }
    }

    /// Name, value, and how the refusal begins.
    const CANNOT_BE_USED: &[(&str, &str, &str)] = &[
        (
            "DEVICE_OTA_HTTP_ADR",
            "x",
            "DEVICE_OTA_HTTP_ADR: no such setting",
        ),
        ("DEVICE_OTA_CONSUL_URL", "consul:8500", "CONSUL_URL: "),
        (
            "DEVICE_OTA_CONSUL_URL",
            "http://consul:port",
            "CONSUL_URL: ",
        ),
        ("DEVICE_OTA_CONSUL_URL", "http://:8500", "CONSUL_URL: "),
        ("DEVICE_OTA_CONSUL_URL", "http:///consul", "CONSUL_URL: "),
        ("DEVICE_OTA_CONSUL_TOKEN", "t", "CONSUL_TOKEN: needs"),
        (
            "DEVICE_OTA_CONSUL_ADVERTISE_URL",
            "http://user:password@h",
            "CONSUL_ADVERTISE_URL: must name no user",
        ),
        (
            "DEVICE_OTA_DEVICE_SERVICE_URL",
            "http://h:99999",
            "DEVICE_SERVICE_URL: ",
        ),
        (
            "DEVICE_OTA_CONSUL_ADVERTISE_URL",
            "http://h",
            "CONSUL_ADVERTISE_URL: needs",
        ),
        (
            "DEVICE_OTA_DEVICE_SERVICE_URL",
            "ftp://h",
            "DEVICE_SERVICE_URL: ",
        ),
        (
            "DEVICE_OTA_DEVICE_SERVICE_URL",
            "http://h?x",
            "DEVICE_SERVICE_URL: ",
        ),
        ("DEVICE_OTA_HTTP_ADDR", "x", "HTTP_ADDR: "),
        ("DEVICE_OTA_MQTT_ADDR", "1883", "MQTT_ADDR: "),
        ("DEVICE_OTA_MQTT_ADDR", "off", "MQTT_ADDR: "),
        ("DEVICE_OTA_MQTT_TLS_ADDR", "127.0.0.1:0", "MQTT_TLS_ADDR: "),
        ("DEVICE_OTA_MQTT_TLS_CERT", "c.pem", "MQTT_TLS_CERT: "),
        ("DEVICE_OTA_MQTT_TLS_CRL", "c.pem", "MQTT_TLS_CRL: "),
        ("DEVICE_OTA_HTTP_TLS_CERT", "c.pem", "HTTP_TLS_CERT: "),
        ("DEVICE_OTA_HTTP_TLS_KEY", "k.pem", "HTTP_TLS_KEY: "),
        (
            "DEVICE_OTA_HTTP_CONNECTIONS_PER_ADDRESS",
            "2049",
            "HTTP_CONNECTIONS_PER_ADDRESS: ",
        ),
        (
            "DEVICE_OTA_MQTT_BUS_ADDR",
            "0.0.0.0:1884",
            "MQTT_BUS_ADDR: ",
        ),
        ("DEVICE_OTA_MQTT_BROKER", "http://h", "MQTT_BROKER: "),
        ("DEVICE_OTA_MQTT_BROKER", "mqtts://", "MQTT_BROKER: "),
        ("DEVICE_OTA_MQTT_BROKER_CA", "ca.pem", "MQTT_BROKER_CA: "),
        ("DEVICE_OTA_MQTT_SHARED_GROUP", "ota", "MQTT_SHARED_GROUP: "),
        ("DEVICE_OTA_MQTT_TOPIC_PREFIX", "a/#", "MQTT_TOPIC_PREFIX: "),
        ("DEVICE_OTA_DATABASE_URL", "mysql://h", "DATABASE_URL: "),
        (
            "DEVICE_OTA_DATABASE_URL",
            "sqlite::memory:",
            "DATABASE_URL: ",
        ),
        (
            "DEVICE_OTA_DATABASE_URL",
            "postgres://u:p@ss#w@h/x",
            "DATABASE_URL: has a #",
        ),
        (
            "DEVICE_OTA_DATABASE_URL",
            "postgres://u@h:99999/x",
            "DATABASE_URL: cannot be read",
        ),
        ("DEVICE_OTA_STORAGE_TYPE", "tape", "STORAGE_TYPE: "),
        ("DEVICE_OTA_STORAGE_TYPE", "s3", "STORAGE_S3_BUCKET: "),
        (
            "DEVICE_OTA_STORAGE_S3_SECRET_KEY",
            "x",
            "STORAGE_S3_SECRET_KEY: needs",
        ),
        ("DEVICE_OTA_PUBLIC_URL", "ftp://h", "PUBLIC_URL: "),
        ("DEVICE_OTA_HTTP_ADDR", "0.0.0.0:8216", "PUBLIC_URL: "),
        (
            "DEVICE_OTA_RATE_LIMIT_HEARTBEAT",
            "100",
            "RATE_LIMIT_HEARTBEAT: ",
        ),
        ("DEVICE_OTA_RATE_LIMIT_API", "0/second", "RATE_LIMIT_API: "),
        (
            "DEVICE_OTA_AUTO_ROLLBACK_FAILURE_THRESHOLD",
            "101",
            "AUTO_ROLLBACK_FAILURE_THRESHOLD: ",
        ),
        (
            "DEVICE_OTA_BANDWIDTH_BYTES_PER_SECOND",
            "0",
            "BANDWIDTH_BYTES_PER_SECOND: ",
        ),
        (
            "DEVICE_OTA_BANDWIDTH_OF_GROUPS",
            "shops",
            "BANDWIDTH_OF_GROUPS: ",
        ),
        (
            "DEVICE_OTA_BANDWIDTH_OF_TAGS",
            "site=1,site=2",
            "BANDWIDTH_OF_TAGS: ",
        ),
        ("DEVICE_OTA_LEASE_SECONDS", "0", "LEASE_SECONDS: "),
        (
            "DEVICE_OTA_ROLLBACK_TIMEOUT_HOURS",
            "0",
            "ROLLBACK_TIMEOUT_HOURS: ",
        ),
        ("DEVICE_OTA_INTERNAL_ADDR", "0.0.0.0:1", "INTERNAL_ADDR: "),
        ("DEVICE_OTA_JWT_SECRET", "short", "JWT_SECRET: "),
        ("DEVICE_OTA_JWT_ISSUER", "house", "JWT_ISSUER: "),
        (
            "DEVICE_OTA_AUTH_SERVICE_URL",
            "ftp://h",
            "AUTH_SERVICE_URL: ",
        ),
        ("DEVICE_OTA_NATS_URL", "http://h", "NATS_URL: "),
        ("DEVICE_OTA_CORS_ORIGINS", "*", "CORS_ORIGINS: "),
        ("DEVICE_OTA_RATE_LIMIT_READ", "1", "RATE_LIMIT_READ: "),
        (
            "DEVICE_OTA_HEARTBEAT_RETENTION_DAYS",
            "-1",
            "HEARTBEAT_RETENTION_DAYS: ",
        ),
        ("DEVICE_OTA_RELEASE_KEY", "k.pem", "RELEASE_KEY: "),
        ("DEVICE_OTA_LOG_FORMAT", "xml", "LOG_FORMAT: "),
    ];

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        for (name, value, says) in CANNOT_BE_USED {
            let error = with(RawConfig::default(), &[(name, value)])
                .err()
                .map(|e| e.to_string());
            assert!(
                error.as_deref().is_some_and(|e| e.starts_with(says)),
                "{name}={value}: {error:?}"
            );
        }
    }
}
