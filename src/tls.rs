//! TLS of our listeners: what the certificate files come to, and what they come to when they change (ADR 18). And TLS to an
//! external broker.

pub(crate) mod broker;
mod files;
mod keeper;
mod pem;

pub(crate) use files::check;
pub(crate) use keeper::{Keeper, Standing};

use tokio_rustls::rustls::crypto::aws_lc_rs;

use crate::config::TlsOf;

/// Names the provider for libraries that leave it to the process: sqlx panics without one where it looks at a server's authority and
/// not at its name.
pub(crate) fn set_provider() {
    // Only a second call finds one there, which is the same.
    let _ = aws_lc_rs::default_provider().install_default();
}

impl TlsOf {
    /// How its settings begin.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Http => "HTTP_TLS",
            Self::Mqtt => "MQTT_TLS",
        }
    }

    /// The listener's name in figures.
    const fn listener(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Mqtt => "mqtt",
        }
    }

    /// The certificate's name in the answer of `/health/detailed`.
    pub(crate) const fn component(self) -> &'static str {
        match self {
            Self::Http => "http_certificate",
            Self::Mqtt => "mqtt_certificate",
        }
    }
}
