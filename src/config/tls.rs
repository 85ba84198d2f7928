//! Settings of what keeps a listener's connections secret, and of who comes in by a certificate.

use std::path::PathBuf;

use super::raw::RawConfig;
use super::values::{Checked, addr, needs};
use super::{ClientCertificates, ConfigError, MqttTls, TlsFiles, TlsOf};

/// The public HTTP listener's; `None`: HTTP without TLS.
pub(super) fn http(raw: &RawConfig) -> Checked<Option<TlsFiles>> {
    match (&raw.http_tls_cert, &raw.http_tls_key) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => Ok(Some(TlsFiles {
            of: TlsOf::Http,
            cert: cert.into(),
            key: key.into(),
            clients: None,
        })),
        (Some(_), None) => Err(needs("HTTP_TLS_CERT", "HTTP_TLS_KEY")),
        (None, Some(_)) => Err(needs("HTTP_TLS_KEY", "HTTP_TLS_CERT")),
    }
}

/// The gateway's listener with TLS; `None`: off.
pub(super) fn mqtt(raw: &RawConfig) -> Checked<Option<MqttTls>> {
    const NAME: &str = "MQTT_TLS_ADDR";
    let text = match raw.mqtt_tls_addr.as_deref() {
        None | Some("off") => return none_beside_off(raw).map(|()| None),
        Some(text) => text,
    };
    let (Some(cert), Some(key)) = (&raw.mqtt_tls_cert, &raw.mqtt_tls_key) else {
        return Err(needs(NAME, "MQTT_TLS_CERT and MQTT_TLS_KEY"));
    };
    Ok(Some(MqttTls {
        addr: addr(NAME, text)?,
        files: TlsFiles {
            of: TlsOf::Mqtt,
            cert: cert.into(),
            key: key.into(),
            clients: clients(raw)?,
        },
    }))
}

/// Who comes in by a certificate. With an authority everybody has to, unless it is said that nobody need.
fn clients(raw: &RawConfig) -> Checked<Option<ClientCertificates>> {
    let Some(ca) = &raw.mqtt_tls_client_ca else {
        return match (&raw.mqtt_tls_crl, &raw.mqtt_tls_client_auth) {
            (None, None) => Ok(None),
            (Some(_), _) => Err(needs("MQTT_TLS_CRL", "MQTT_TLS_CLIENT_CA")),
            (None, Some(_)) => Err(needs("MQTT_TLS_CLIENT_AUTH", "MQTT_TLS_CLIENT_CA")),
        };
    };
    let required = match raw.mqtt_tls_client_auth.as_deref() {
        None | Some("required") => true,
        Some("optional") => false,
        Some(other) => {
            return Err(ConfigError::new(
                "MQTT_TLS_CLIENT_AUTH",
                format!("{other:?} is neither required nor optional"),
            ));
        }
    };
    Ok(Some(ClientCertificates {
        ca: ca.into(),
        crl: raw.mqtt_tls_crl.as_ref().map(PathBuf::from),
        required,
    }))
}

fn none_beside_off(raw: &RawConfig) -> Checked<()> {
    for (name, value) in [
        ("MQTT_TLS_CERT", &raw.mqtt_tls_cert),
        ("MQTT_TLS_KEY", &raw.mqtt_tls_key),
        ("MQTT_TLS_CLIENT_CA", &raw.mqtt_tls_client_ca),
        ("MQTT_TLS_CLIENT_AUTH", &raw.mqtt_tls_client_auth),
        ("MQTT_TLS_CRL", &raw.mqtt_tls_crl),
    ] {
        if value.is_some() {
            return Err(needs(name, "MQTT_TLS_ADDR"));
        }
    }
    Ok(())
}
