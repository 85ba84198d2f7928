//! From PEM files to what a listener is secured by; what cannot be used is refused by the setting's name.

use std::sync::Arc;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

use super::pem::{self, Read, bytes, certificates, read};
use crate::config::{ClientCertificates, TlsFiles, TlsOf};

/// What the files of a listener hold.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Contents {
    cert: Read,
    key: Read,
    ca: Option<Read>,
    crl: Option<Read>,
}

/// What they come to.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) config: Arc<ServerConfig>,
    pub(super) life: Life,
}

/// From when and until when a listener's certificate, and those between it and its authority, are valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) begins: Timestamp,
    pub(super) expires: Timestamp,
}

/// Whether a start could secure the listener by these files; and what of the dates is to be told, which a start tells, too.
pub(crate) fn check(files: &TlsFiles, now: Timestamp) -> anyhow::Result<Option<String>> {
    let life = files.read().secure(files)?.life;
    let name = setting(files.of, "CERT");
    Ok(if life.expires <= now {
        Some(format!("{name}: expired at {}", life.expires))
    } else if now < life.begins {
        Some(format!("{name}: not valid before {}", life.begins))
    } else {
        None
    })
}

impl TlsFiles {
    /// Reads them all.
    pub(super) fn read(&self) -> Contents {
        let clients = self.clients.as_ref();
        Contents {
            cert: read(&self.cert),
            key: read(&self.key),
            ca: clients.map(|clients| read(&clients.ca)),
            crl: clients.and_then(|clients| clients.crl.as_deref()).map(read),
        }
    }
}

impl Contents {
    /// What they come to, as files of those names.
    pub(super) fn secure(&self, files: &TlsFiles) -> anyhow::Result<Secured> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = self.chain(files).context(setting(files.of, "CERT"))?;
        let life = life(&chain).context(setting(files.of, "CERT"))?;
        let key = pem::key((&self.key, &files.key), (chain, &files.cert), &provider);
        let key = key.context(setting(files.of, "KEY"))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match &files.clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let verifier = self.verifier(files.of, clients, provider)?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        // Every connection proves itself anew: one that is resumed would not be held to what was revoked since.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if files.of == TlsOf::Http {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
        }
        Ok(Secured {
            config: Arc::new(config),
            life,
        })
    }

    fn chain(&self, files: &TlsFiles) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        certificates(&self.cert, &files.cert)
    }

    fn verifier(
        &self,
        of: TlsOf,
        clients: &ClientCertificates,
        provider: Arc<CryptoProvider>,
    ) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
        let roots = self.authorities(clients);
        let roots = roots.context(setting(of, "CLIENT_CA"))?;
        let lists = self.revoked(clients);
        let lists = lists.context(setting(of, "CRL"))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.with_crls(lists);
        let verifier = if clients.required {
            verifier
        } else {
            verifier.allow_unauthenticated()
        };
        verifier.build().context(setting(of, "CRL"))
    }

    fn authorities(&self, clients: &ClientCertificates) -> anyhow::Result<RootCertStore> {
        match &self.ca {
            Some(read) => pem::authorities(read, &clients.ca),
            None => Ok(RootCertStore::empty()),
        }
    }

    fn revoked(
        &self,
        clients: &ClientCertificates,
    ) -> anyhow::Result<Vec<CertificateRevocationListDer<'static>>> {
        let (Some(path), Some(read)) = (&clients.crl, &self.crl) else {
            return Ok(Vec::new());
        };
        let lists = CertificateRevocationListDer::pem_slice_iter(bytes(read)?);
        let lists: Vec<_> = lists
            .collect::<Result<_, _>>()
            .with_context(|| format!("{} is not PEM", path.display()))?;
        let path = path.display();
        anyhow::ensure!(!lists.is_empty(), "{path} holds no revocation list as PEM");
        Ok(lists)
    }
}

/// While all of them are valid. There is one at least.
fn life(chain: &[CertificateDer<'_>]) -> anyhow::Result<Life> {
    let mut life = Life {
        begins: Timestamp::MIN,
        expires: Timestamp::MAX,
    };
    for certificate in chain {
        let (_, certificate) = X509Certificate::from_der(certificate)?;
        let validity = certificate.validity();
        // "No end" is the last second of the year 9999 (RFC 5280, 4.1.2.5), which lies beyond.
        let second = |time: ASN1Time| Timestamp::from_second(time.timestamp()).ok();
        let begins = second(validity.not_before).unwrap_or(Timestamp::MIN);
        let expires = second(validity.not_after).unwrap_or(Timestamp::MAX);
        life.begins = life.begins.max(begins);
        life.expires = life.expires.min(expires);
    }
    Ok(life)
}

/// A setting of the listener's.
fn setting(of: TlsOf, name: &str) -> String {
    format!("{}_{name}", of.prefix())
}
