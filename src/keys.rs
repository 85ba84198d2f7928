//! Signing keys: given by the operator, or, in development mode, made at the first start.

use std::path::Path;

use anyhow::Context as _;
use device_ota_domain::firmware::FirmwareFilter;
use device_ota_domain::page::Page;
use device_ota_engine::keyring::Keyring;
use device_ota_engine::ports::clock::random;
use device_ota_engine::ports::telemetry::DeviceFilter;
use device_ota_engine::ports::{Clock, Entropy, Store};
use device_ota_protocol::dsse::Envelope;
use device_ota_protocol::keys::Keypair;
use device_ota_protocol::objects::{self, Role, Root};
use jiff::SignedDuration;

use crate::config::GivenKeys;
use crate::data_dir::{DataDir, remove_private, write_private};

/// How long a root made here is good for: ten years.
const ROOT_LIFETIME: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// What the first start of development mode makes in the data folder, and no later one.
const ROOT: &str = "keys/root.pem";
const RELEASE: &str = "keys/release.pem";
const DISPATCH: &str = "keys/dispatch.pem";
const TRUST: &str = "trust";
const FIRST_ROOT: &str = "trust/1.json";
const SECOND_ROOT: &str = "trust/2.json";
/// There while they are being made.
const UNFINISHED: &str = "keys/unfinished";

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

/// The keys that an earlier start made in this folder, all of them or an error that names what was lost; `None` when no
/// start has made any. Reads alone.
pub(crate) fn made(folder: &Path) -> anyhow::Result<Option<Keyring>> {
    let there = |name: &str| folder.join(name).try_exists();
    if there(UNFINISHED)? {
        return Ok(None);
    }
    let key = |name: &str| -> anyhow::Result<Option<Keypair>> {
        there(name)?
            .then(|| read_key(&folder.join(name)))
            .transpose()
    };
    let chain = || read_chain(&folder.join(TRUST));
    let (root, release, dispatch) = (key(ROOT)?, key(RELEASE)?, key(DISPATCH)?);
    match (root, release, dispatch, there(FIRST_ROOT)?) {
        (Some(root), Some(release), Some(dispatch), true) => {
            fit(chain()?, &root, release, dispatch).map(Some)
        }
        (None, None, None, false) if !there(SECOND_ROOT)? => Ok(None),
        (root, release, dispatch, first) => {
            let files = [
                (ROOT, root.is_some()),
                (RELEASE, release.is_some()),
                (DISPATCH, dispatch.is_some()),
                (FIRST_ROOT, first),
            ];
            let missing = files.iter().filter(|(_, there)| !there);
            let missing: Vec<&str> = missing.map(|(name, _)| *name).collect();
            anyhow::bail!(
                "{} has lost {}, and devices believe no other keys: restore it from a backup; or, if this installation is \
                 to begin anew, remove the folder and use an empty database",
                folder.display(),
                missing.join(", ")
            )
        }
    }
}

fn fit(
    chain: Vec<Envelope>,
    root: &Keypair,
    release: Keypair,
    dispatch: Keypair,
) -> anyhow::Result<Keyring> {
    let unfit = "the keys in the data folder do not fit its trust root; restore keys/ and trust/ from one backup";
    let keyring = Keyring::new(chain, Some(release), dispatch).context(unfit)?;
    let roots = keyring.root().role_keys(Role::Root).keys;
    anyhow::ensure!(
        roots.contains(&root.public()),
        "{unfit}: the newest trust root does not list the root key {} of {ROOT}",
        root.public().id()
    );
    Ok(keyring)
}

/// Makes the keys of development mode and their trust root, at the first start. Refused when the database holds what
/// other keys have signed for: its devices would believe nothing that these sign.
pub(crate) async fn make(
    data: &DataDir,
    store: &dyn Store,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> anyhow::Result<Keyring> {
    anyhow::ensure!(
        is_new(store).await?,
        "the database holds devices or firmware, but {} none of the keys that they trust ({ROOT}, {RELEASE}, {DISPATCH}, \
         {FIRST_ROOT}): restore keys/ and trust/ from a backup, or set TRUST_ROOT and DISPATCH_KEY; or, if this installation is \
         to begin anew, use an empty database",
        data.join("").display()
    );
    write_new(data, clock, entropy)
}

async fn is_new(store: &dyn Store) -> anyhow::Result<bool> {
    let one = Page {
        limit: 1,
        offset: 0,
    };
    let all = FirmwareFilter {
        include_deprecated: true,
        ..FirmwareFilter::default()
    };
    let devices = store.devices(&DeviceFilter::default(), one).await?;
    let firmware = store.firmware_list(&all, one).await?;
    Ok(devices.is_empty() && firmware.is_empty())
}

/// Writes all of them anew. A crash on the way leaves [`UNFINISHED`], by which the next start knows that nobody has used them.
fn write_new(data: &DataDir, clock: &dyn Clock, entropy: &dyn Entropy) -> anyhow::Result<Keyring> {
    let unfinished = data.join(UNFINISHED);
    write_private(&unfinished, b"")?;
    let key = || Keypair::from_seed(random(entropy));
    let (root, release, dispatch) = (key(), key(), key());
    for (name, key) in [(ROOT, &root), (RELEASE, &release), (DISPATCH, &dispatch)] {
        write_private(&data.join(name), key.to_pkcs8_pem()?.as_bytes())?;
    }
    let expires = clock.now().checked_add(ROOT_LIFETIME)?;
    let public = (root.public(), release.public(), dispatch.public());
    let statement = Root::single(1, expires, public.0, public.1, public.2);
    let envelope = objects::seal(&statement, &root)?;
    write_private(&data.join(FIRST_ROOT), &envelope.to_json())?;
    remove_private(&unfinished)?;
    fit(vec![envelope], &root, release, dispatch)
}

/// The key that download links are signed with; it outlives a restart, and running downloads with it.
pub(crate) fn downloads(data: &DataDir, entropy: &dyn Entropy) -> anyhow::Result<[u8; 32]> {
    let (text, _) = data.private("keys/downloads.key", || {
        Ok(hex::encode(random::<32>(entropy)))
    })?;
    read_downloads(&text)
}

/// That of the first replica on the database, in place of one's own: all of them take each other's links.
pub(crate) async fn shared_downloads(store: &dyn Store, own: [u8; 32]) -> anyhow::Result<[u8; 32]> {
    let mut tx = store.begin().await?;
    let shared = tx.shared_key("downloads", &hex::encode(own)).await?;
    tx.commit().await?;
    read_downloads(&shared).context("the database")
}

fn read_downloads(text: &str) -> anyhow::Result<[u8; 32]> {
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key)
        .context("keys/downloads.key does not hold 64 hex digits")?;
    Ok(key)
}

/// Whether the key of download links that an earlier start made can still be used; when it is missing, the next start makes one.
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

/// The root envelopes `1.json`, `2.json` … without a gap: devices follow each from the one before.
fn read_chain(folder: &Path) -> anyhow::Result<Vec<Envelope>> {
    let mut chain = Vec::new();
    loop {
        let path = folder.join(format!("{}.json", chain.len() + 1));
        match std::fs::read(&path) {
            Ok(bytes) => chain
                .push(Envelope::from_json(&bytes).with_context(|| format!("{}", path.display()))?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !chain.is_empty() => {
                let last = last_root(folder)?;
                anyhow::ensure!(
                    last < chain.len() + 1,
                    "{} is missing, and {last}.json is there: devices follow each trust root from the one before; restore it \
                     from a backup",
                    path.display()
                );
                return Ok(chain);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("{} cannot be read", path.display()));
            }
        }
    }
}

/// The highest number of a root envelope in a folder; 0 when there is none.
fn last_root(folder: &Path) -> anyhow::Result<usize> {
    let mut last = 0;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".json"));
        last = last.max(number.and_then(|number| number.parse().ok()).unwrap_or(0));
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::{SystemClock, SystemEntropy};

    fn folder() -> (tempfile::TempDir, DataDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let data = DataDir::open(folder.path()).expect("opens");
        (folder, data)
    }

    #[test]
    fn all_of_them_or_none() {
        let (folder, data) = folder();
        assert!(made(folder.path()).expect("reads").is_none());
        let written = write_new(&data, &SystemClock, &SystemEntropy).expect("writes");
        let read = made(folder.path()).expect("reads").expect("is whole");
        assert_eq!(read.root(), written.root());
        assert!(!data.join(UNFINISHED).exists());
        for name in [ROOT, RELEASE, DISPATCH, FIRST_ROOT] {
            let kept = std::fs::read(data.join(name)).expect("is there");
            std::fs::remove_file(data.join(name)).expect("goes");
            let refused = made(folder.path()).err().expect("is refused").to_string();
            assert!(refused.contains(name), "{refused}");
            std::fs::write(data.join(name), kept).expect("comes back");
        }
        std::fs::copy(data.join(DISPATCH), data.join(ROOT)).expect("copies");
        let refused = made(folder.path()).err().expect("is refused").to_string();
        assert!(refused.contains(ROOT), "{refused}");
    }

    #[test]
    fn a_root_in_the_middle_of_the_chain_is_missed() {
        let (folder, data) = folder();
        write_new(&data, &SystemClock, &SystemEntropy).expect("writes");
        let first = std::fs::read(data.join(FIRST_ROOT)).expect("is there");
        write_private(&data.join("trust/3.json"), &first).expect("writes");
        write_private(&data.join("trust/notes.json"), b"").expect("writes");
        let refused = made(folder.path()).err().expect("is refused").to_string();
        assert!(
            refused.contains("trust/2.json is missing, and 3.json"),
            "{refused}"
        );
        let refused = read_chain(&data.join(TRUST))
            .expect_err("is refused")
            .to_string();
        assert!(refused.contains("restore it"), "{refused}");
        std::fs::remove_file(data.join("trust/3.json")).expect("goes");
        made(folder.path()).expect("reads").expect("is whole");
    }

    #[test]
    fn a_later_root_alone_is_a_loss() {
        let (folder, data) = folder();
        write_private(&data.join(SECOND_ROOT), b"{}").expect("writes");
        let refused = made(folder.path()).err().expect("is refused").to_string();
        assert!(refused.contains(FIRST_ROOT), "{refused}");
    }

    #[test]
    fn what_a_crash_left_at_the_first_start_is_made_anew() {
        let (folder, data) = folder();
        write_private(&data.join(UNFINISHED), b"").expect("writes");
        write_private(&data.join(ROOT), b"of no use").expect("writes");
        assert!(made(folder.path()).expect("reads").is_none());
        write_new(&data, &SystemClock, &SystemEntropy).expect("writes");
        assert!(made(folder.path()).expect("reads").is_some());
    }
}
