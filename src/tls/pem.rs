//! What PEM files hold, each refused by its path.

use std::path::Path;

use anyhow::Context as _;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error, InconsistentKeys, RootCertStore};

/// A file's bytes, or why it cannot be read.
pub(super) type Read = Result<Vec<u8>, String>;

pub(super) fn read(path: &Path) -> Read {
    std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

pub(super) fn bytes(read: &Read) -> anyhow::Result<&[u8]> {
    read.as_deref().map_err(|why| anyhow::anyhow!("{why}"))
}

/// One at least.
pub(super) fn certificates(
    read: &Read,
    path: &Path,
) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(bytes(read)?);
    let found: Vec<_> = found
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} is not PEM", path.display()))?;
    let path = path.display();
    anyhow::ensure!(!found.is_empty(), "{path} holds no certificate as PEM");
    Ok(found)
}

/// The authorities of a file.
pub(super) fn authorities(read: &Read, path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(read, path)? {
        let path = path.display();
        roots
            .add(authority)
            .with_context(|| format!("{path} holds no certificate of an authority"))?;
    }
    Ok(roots)
}

/// A key, as it was read from its path, of the certificates that were read from theirs.
pub(super) fn key(
    (read, path): (&Read, &Path),
    (chain, cert): (Vec<CertificateDer<'static>>, &Path),
    provider: &CryptoProvider,
) -> anyhow::Result<CertifiedKey> {
    let path = path.display();
    // The parser's own words could show what it read.
    let key = PrivateKeyDer::from_pem_slice(bytes(read)?)
        .ok()
        .with_context(|| format!("{path} holds no key as PEM, without a passphrase"))?;
    let key = provider.key_provider.load_private_key(key);
    let key = CertifiedKey::new(
        chain,
        key.with_context(|| format!("the key in {path} cannot be used"))?,
    );
    match key.keys_match() {
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            anyhow::bail!(
                "{path} is not the key of the certificate in {}",
                cert.display()
            )
        }
        // Not every kind of key can tell; the other side finds out.
        Ok(()) | Err(Error::InconsistentKeys(_)) => Ok(key),
        Err(error) => Err(error.into()),
    }
}
