//! Settings of the way to devices: the embedded gateway, or a broker that others run.

use std::path::PathBuf;

use device_ota_mqtt::Group;

use super::raw::RawConfig;
use super::values::{Checked, addr, needs};
use super::{Broker, BrokerTls, ConfigError, OwnCertificate, Secret, tls};

pub(super) fn of(raw: &RawConfig) -> Checked<Broker> {
    match raw.mqtt_broker.as_deref() {
        None | Some("embedded") => embedded(raw),
        Some(url) => external(raw, url),
    }
}

fn embedded(raw: &RawConfig) -> Checked<Broker> {
    for (name, value) in [
        ("MQTT_PASSWORD_FILE", &raw.mqtt_password_file),
        ("MQTT_BROKER_CA", &raw.mqtt_broker_ca),
        ("MQTT_BROKER_CERT", &raw.mqtt_broker_cert),
        ("MQTT_BROKER_KEY", &raw.mqtt_broker_key),
        ("MQTT_SHARED_GROUP", &raw.mqtt_shared_group),
    ] {
        if value.is_some() {
            return Err(ConfigError::new(
                name,
                "serves an external broker only; set MQTT_BROKER too",
            ));
        }
    }
    let tls = tls::mqtt(raw)?;
    let addr = match raw.mqtt_addr.as_deref().unwrap_or("127.0.0.1:1883") {
        "off" if tls.is_none() => {
            return Err(ConfigError::new(
                "MQTT_ADDR",
                "off leaves devices nowhere to connect to: set MQTT_TLS_ADDR",
            ));
        }
        "off" => None,
        text => Some(addr("MQTT_ADDR", text)?),
    };
    Ok(Broker::Embedded { addr, tls })
}

fn external(raw: &RawConfig, url: &str) -> Checked<Broker> {
    if raw.mqtt_tls_addr.as_deref().is_some_and(|tls| tls != "off") {
        return Err(ConfigError::new(
            "MQTT_TLS_ADDR",
            "is a listener of the embedded gateway; with MQTT_BROKER devices connect to that broker",
        ));
    }
    // All of it is looked at when the link is made, and by `config check`.
    let secured = match url.split_once("://") {
        Some(("mqtt", rest)) if !rest.is_empty() => false,
        Some(("mqtts", rest)) if !rest.is_empty() => true,
        _ => {
            return Err(ConfigError::new(
                "MQTT_BROKER",
                "must be embedded, mqtt://user:password@host:port, or mqtts://… for TLS",
            ));
        }
    };
    let group = raw.mqtt_shared_group.as_deref().map(str::parse::<Group>);
    let group = group
        .transpose()
        .map_err(|error| ConfigError::new("MQTT_SHARED_GROUP", error.to_string()))?;
    Ok(Broker::External {
        url: Secret(url.to_owned()),
        tls: broker_tls(raw, secured)?,
        group,
        password_file: raw.mqtt_password_file.as_ref().map(PathBuf::from),
    })
}

/// TLS to the broker; its files mean nothing without.
fn broker_tls(raw: &RawConfig, secured: bool) -> Checked<Option<BrokerTls>> {
    let own = match (&raw.mqtt_broker_cert, &raw.mqtt_broker_key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some(OwnCertificate {
            cert: cert.into(),
            key: key.into(),
        }),
        (Some(_), None) => return Err(needs("MQTT_BROKER_CERT", "MQTT_BROKER_KEY")),
        (None, Some(_)) => return Err(needs("MQTT_BROKER_KEY", "MQTT_BROKER_CERT")),
    };
    if secured {
        let ca = raw.mqtt_broker_ca.as_ref().map(PathBuf::from);
        return Ok(Some(BrokerTls { ca, own }));
    }
    let unused = if raw.mqtt_broker_ca.is_some() {
        "MQTT_BROKER_CA"
    } else if own.is_some() {
        "MQTT_BROKER_CERT"
    } else {
        return Ok(None);
    };
    Err(ConfigError::new(
        unused,
        "means nothing without TLS: MQTT_BROKER must begin with mqtts://",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn tls_to_a_broker_is_what_its_files_are_for() {
        let variables = |url: &str, more: &[(&str, &str)]| {
            let mut variables = vec![("DEVICE_OTA_MQTT_BROKER", url.to_owned())];
            variables.extend(
                more.iter()
                    .map(|(name, value)| (*name, (*value).to_owned())),
            );
            let variables = variables.into_iter();
            let variables = variables.map(|(name, value)| (name.to_owned(), value));
            Config::from_sources(RawConfig::default(), variables)
        };
        let (ca, cert) = (
            ("DEVICE_OTA_MQTT_BROKER_CA", "ca.pem"),
            ("DEVICE_OTA_MQTT_BROKER_CERT", "c.pem"),
        );
        let key = ("DEVICE_OTA_MQTT_BROKER_KEY", "k.pem");
        let config = variables("mqtts://h", &[ca, cert, key]).ok();
        let broker = config.map(|config| config.broker);
        assert!(matches!(
            broker,
            Some(Broker::External {
                tls: Some(BrokerTls {
                    ca: Some(_),
                    own: Some(_)
                }),
                ..
            })
        ));
        for (url, more, says) in [
            ("mqtt://h", &[ca][..], "MQTT_BROKER_CA: means nothing"),
            ("mqtt://h", &[cert, key], "MQTT_BROKER_CERT: means nothing"),
            ("mqtts://h", &[cert], "MQTT_BROKER_CERT: needs"),
            ("mqtts://h", &[key], "MQTT_BROKER_KEY: needs"),
            (
                "mqtt://h",
                &[("DEVICE_OTA_MQTT_SHARED_GROUP", "a/b")],
                "MQTT_SHARED_GROUP: ",
            ),
        ] {
            let error = variables(url, more).err().map(|error| error.to_string());
            assert!(
                error.as_deref().is_some_and(|e| e.starts_with(says)),
                "{url} {more:?}: {error:?}"
            );
        }
    }
}
