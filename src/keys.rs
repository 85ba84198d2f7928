//! Signing keys: given by the operator, or, in development mode, made at the first start.

use std::path::Path;

use anyhow::Context as _;
use device_ota_engine::keyring::Keyring;
use device_ota_engine::ports::Clock;
use device_ota_engine::ports::Entropy;
use device_ota_engine::ports::clock::random;
use device_ota_protocol::dsse::Envelope;
use device_ota_protocol::keys::Keypair;
use device_ota_protocol::objects::{self, Root};
use jiff::SignedDuration;

use crate::config::GivenKeys;
use crate::data_dir::DataDir;

/// How long a root made here is good for: ten years.
const ROOT_LIFETIME: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// The keys that the operator gave.
pub(crate) fn given(keys: &GivenKeys) -> anyhow::Result<Keyring> {
    let dispatch = read_key(&keys.dispatch_key).context("DISPATCH_KEY")?;
    let release = keys
        .release_key
        .as_deref()
        .map(read_key)
        .transpose()
        .context("RELEASE_KEY")?;
    let chain = read_chain(&keys.trust_root).context("TRUST_ROOT")?;
    Keyring::new(chain, release, dispatch)
        .context("TRUST_ROOT, DISPATCH_KEY and RELEASE_KEY do not fit together")
}

/// The keys of development mode: made once, kept in the data folder.
pub(crate) fn development(
    data: &DataDir,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> anyhow::Result<Keyring> {
    let key = |name: &str| -> anyhow::Result<Keypair> {
        let made = || Ok(Keypair::from_seed(random(entropy)).to_pkcs8_pem()?);
        let (pem, _) = data.private(&format!("keys/{name}.pem"), made)?;
        Keypair::from_pkcs8_pem(&pem).with_context(|| format!("keys/{name}.pem"))
    };
    let (root, release, dispatch) = (key("root")?, key("release")?, key("dispatch")?);
    let made = || {
        let expires = clock.now().checked_add(ROOT_LIFETIME)?;
        let statement = Root::single(
            1,
            expires,
            root.public(),
            release.public(),
            dispatch.public(),
        );
        Ok(String::from_utf8(
            objects::seal(&statement, &root)?.to_json(),
        )?)
    };
    data.private("trust/1.json", made)?;
    let chain = read_chain(&data.join("trust"))?;
    Keyring::new(chain, Some(release), dispatch)
        .context("the keys in the data folder do not fit its trust root")
}

/// The key that download links are signed with; it outlives a restart, and running downloads with it.
pub(crate) fn downloads(data: &DataDir, entropy: &dyn Entropy) -> anyhow::Result<[u8; 32]> {
    let (text, _) = data.private("keys/downloads.key", || {
        Ok(hex::encode(random::<32>(entropy)))
    })?;
    read_downloads(&text)
}

fn read_downloads(text: &str) -> anyhow::Result<[u8; 32]> {
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key)
        .context("keys/downloads.key does not hold 64 hex digits")?;
    Ok(key)
}

/// Whether the keys that earlier starts made in this folder can still be used; what is missing, the next start makes.
pub(crate) fn check_made(folder: &Path) -> anyhow::Result<()> {
    let key = |name: &str| -> anyhow::Result<Option<Keypair>> {
        let path = folder.join("keys").join(format!("{name}.pem"));
        path.try_exists()?.then(|| read_key(&path)).transpose()
    };
    let (root, release, dispatch) = (key("root")?, key("release")?, key("dispatch")?);
    let trust = folder.join("trust");
    if trust.join("1.json").try_exists()? {
        let chain = read_chain(&trust)?;
        if let (Some(_), Some(release), Some(dispatch)) = (root, release, dispatch) {
            Keyring::new(chain, Some(release), dispatch)
                .context("the keys in the data folder do not fit its trust root")?;
        }
    }
    Ok(())
}

/// The same of the key of download links.
pub(crate) fn check_made_downloads(folder: &Path) -> anyhow::Result<()> {
    let path = folder.join("keys/downloads.key");
    if path.try_exists()? {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        read_downloads(&text)?;
    }
    Ok(())
}

fn read_key(path: &Path) -> anyhow::Result<Keypair> {
    let pem = std::fs::read_to_string(path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    Keypair::from_pkcs8_pem(&pem).with_context(|| format!("{}", path.display()))
}

/// The root envelopes `1.json`, `2.json` … up to the first that is missing.
fn read_chain(folder: &Path) -> anyhow::Result<Vec<Envelope>> {
    let mut chain = Vec::new();
    loop {
        let path = folder.join(format!("{}.json", chain.len() + 1));
        match std::fs::read(&path) {
            Ok(bytes) => chain
                .push(Envelope::from_json(&bytes).with_context(|| format!("{}", path.display()))?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !chain.is_empty() => {
                return Ok(chain);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("{} cannot be read", path.display()));
            }
        }
    }
}
