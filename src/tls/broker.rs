//! TLS to an external broker (ADR 21): whom we believe, and as whom we come. The files are read anew for each connection.

use std::sync::Arc;

use anyhow::Context as _;
use device_ota_mqtt::ClientTls;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::pem::{self, read};
use crate::config::BrokerTls;

/// What the link asks for each connection.
pub(crate) fn for_each_connection(tls: BrokerTls) -> ClientTls {
    Arc::new(move || config(&tls).map_err(|error| format!("{error:#}")))
}

/// What the files come to now; what cannot be used is refused by the setting's name.
pub(crate) fn config(tls: &BrokerTls) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(tls)?);
    let Some(own) = &tls.own else {
        return Ok(Arc::new(builder.with_no_client_auth()));
    };
    let chain = pem::certificates(&read(&own.cert), &own.cert).context("MQTT_BROKER_CERT")?;
    let key = pem::key((&read(&own.key), &own.key), (chain, &own.cert), &provider);
    let key = key.context("MQTT_BROKER_KEY")?;
    let resolver = Arc::new(SingleCertAndKey::from(key));
    Ok(Arc::new(builder.with_client_cert_resolver(resolver)))
}

fn roots(tls: &BrokerTls) -> anyhow::Result<RootCertStore> {
    if let Some(path) = &tls.ca {
        return pem::authorities(&read(path), path).context("MQTT_BROKER_CA");
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // One that cannot be read is believed nothing; the others are.
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    anyhow::ensure!(
        taken > 0,
        "MQTT_BROKER_CA: the system has no authorities; name a file of them"
    );
    Ok(roots)
}
