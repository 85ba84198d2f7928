//! Whom a fleet believes when it speaks TLS: the authorities of one file, and without one those of the system, for HTTP.

use std::path::Path;
use std::sync::Arc;

use reqwest::{Certificate, ClientBuilder};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::mqtt::Tls;

/// Why a fleet cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file of authorities cannot be read.
    #[error("cannot read the authorities in {path}")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds none.
    #[error("{0} holds no certificates of authorities as PEM")]
    Empty(String),
    /// Nobody says whom to trust.
    #[error("mqtts:// needs a file of authorities (--ca)")]
    Nobody,
    /// A host that no certificate can name.
    #[error("no certificate can name `{0}`")]
    Host(String),
}

/// The authorities.
#[derive(Debug, Clone, Default)]
pub struct Trust(Option<Vec<CertificateDer<'static>>>);

impl Trust {
    /// Those of a PEM file.
    pub fn read(path: Option<&Path>) -> Result<Self, TrustError> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let shown = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| TrustError::File {
            path: shown.clone(),
            source,
        })?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        match found {
            Ok(found) if !found.is_empty() => Ok(Self(Some(found))),
            _ => Err(TrustError::Empty(shown)),
        }
    }

    /// An HTTP client that believes them, not built yet.
    pub fn http(&self) -> Result<ClientBuilder, reqwest::Error> {
        let builder = reqwest::Client::builder().no_proxy();
        let Some(authorities) = &self.0 else {
            return Ok(builder);
        };
        let authorities: Result<Vec<_>, _> = authorities
            .iter()
            .map(|authority| Certificate::from_der(authority))
            .collect();
        Ok(builder.tls_certs_only(authorities?))
    }

    /// TLS for MQTT with a server of that name.
    ///
    /// # Panics
    /// Never: the provider knows all versions that are asked for.
    pub fn mqtt(&self, host: &str) -> Result<Tls, TrustError> {
        let authorities = self.0.as_ref().ok_or(TrustError::Nobody)?;
        let mut roots = RootCertStore::empty();
        // What is no authority is believed nothing.
        roots.add_parsable_certificates(authorities.iter().cloned());
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| TrustError::Host(host.to_owned()))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has what TLS 1.2 and 1.3 need")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Tls {
            config: Arc::new(config),
            name,
        })
    }
}
