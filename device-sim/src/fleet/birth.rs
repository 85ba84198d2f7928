//! How devices come to be: registered by the administrator's key, born with the trust root of that
//! day, with the secret and the state they had in an earlier run.

use std::collections::HashMap;
use std::sync::Arc;

use device_ota_protocol::agent::{Identity, Image, PersistentState};
use device_ota_protocol::digest::Digest;
use device_ota_protocol::objects::Root;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};

use super::{Error, FleetConfig, Observer};
use crate::api::{Api, NewDevice, Registered};
use crate::device::Birth;
use crate::faults::{Faults, members};
use crate::memory::{Memory, Remembered};

/// Requests for new secrets at a time.
const RENEWALS: usize = 16;
/// The draw that decides who takes images in chunks; the faults have the smaller numbers.
const CHUNKS_DRAW: u64 = 100;
/// Bytes of an image file hashed at a time.
const READ_STEP: usize = 64 * 1024;

pub(super) async fn give_birth(
    config: &FleetConfig,
    api: &Api,
    memory: &Memory,
    faults: &[Faults],
    observer: &mut dyn Observer,
) -> Result<Vec<Birth>, Error> {
    let file = |source| Error::File {
        what: "the state folder".to_owned(),
        source,
    };
    let envelope = api.trust_root().await?;
    let root = Arc::new(Root::trust_first(&envelope).map_err(Error::Root)?);
    let remembered = memory.recall().map_err(file)?;
    let secrets = register(config, api, &remembered, observer).await?;
    remember(memory, &with_secrets(config, &remembered, &secrets))?;
    let factory = factory_image(config)?;
    let chunks = members(config.chunks, config.devices, config.seed, CHUNKS_DRAW);
    let mut remembered = remembered;
    let mut births = Vec::with_capacity(config.devices);
    for (index, (password, faults)) in secrets.into_iter().zip(faults).enumerate() {
        let device_id = config.device_id(index);
        let known = remembered.remove(&device_id).and_then(|known| known.state);
        births.push(Birth {
            index,
            identity: identity(config, &device_id)?,
            password,
            state: state(known, &root, &factory),
            faults: *faults,
            version: config.mqtt_versions.of(index),
            chunks: chunks.get(index).copied().unwrap_or(false),
            seed: config.seed.wrapping_add(index as u64),
        });
    }
    Ok(births)
}

fn identity(config: &FleetConfig, device_id: &str) -> Result<Identity, Error> {
    let id = device_id
        .parse()
        .map_err(|_| Error::Name(device_id.to_owned()))?;
    Ok(Identity {
        manufacturer: config.manufacturer.clone(),
        hw_revision: config.hw_revision.clone(),
        ..Identity::new(id, config.model.clone())
    })
}

/// A device keeps the root it was born with; one that is the same is kept once for all.
fn state(
    known: Option<Box<PersistentState>>,
    root: &Arc<Root>,
    factory: &Image,
) -> PersistentState {
    match known {
        Some(mut known) => {
            if known.root == *root {
                known.root = root.clone();
            }
            *known
        }
        None => PersistentState::born(root.clone(), factory.clone()),
    }
}

/// Registers all devices and returns their secrets, in their order.
async fn register(
    config: &FleetConfig,
    api: &Api,
    remembered: &HashMap<String, Remembered>,
    observer: &mut dyn Observer,
) -> Result<Vec<String>, Error> {
    let devices: Vec<NewDevice> = (0..config.devices).map(|n| new_device(config, n)).collect();
    let registered = api.register(&devices).await?;
    let created = registered.iter().filter(|r| r.mqtt.is_some()).count();
    observer.said(&format!(
        "{created} devices registered, {} were before",
        registered.len() - created
    ));
    let answers = registered.into_iter().zip(&devices);
    stream::iter(answers.map(|(answer, device)| secret(api, answer, device, remembered)))
        .buffered(RENEWALS)
        .try_collect()
        .await
}

fn new_device(config: &FleetConfig, index: usize) -> NewDevice {
    NewDevice {
        device_id: config.device_id(index),
        device_type: config.habits.device_type.clone(),
        device_model: config.model.clone(),
        manufacturer: config.manufacturer.clone(),
        hw_revision: config.hw_revision.clone(),
        firmware_version: config.version.clone(),
        groups: vec![config.group.clone()],
    }
}

/// The secret of the registration, else the remembered one, else a new one.
async fn secret(
    api: &Api,
    answer: Registered,
    device: &NewDevice,
    remembered: &HashMap<String, Remembered>,
) -> Result<String, Error> {
    if let Some(credentials) = answer.mqtt {
        return Ok(credentials.password);
    }
    if answer.status == "error" {
        return Err(Error::NotRegistered {
            device: device.device_id.clone(),
            why: answer.error.unwrap_or_default(),
        });
    }
    if let Some(known) = remembered.get(&device.device_id) {
        return Ok(known.password.clone());
    }
    Ok(api.new_credentials(&device.device_id).await?.password)
}

/// What to remember at once: a run that is killed has its secrets at the next start.
fn with_secrets(
    config: &FleetConfig,
    remembered: &HashMap<String, Remembered>,
    secrets: &[String],
) -> Vec<Remembered> {
    secrets
        .iter()
        .enumerate()
        .map(|(index, password)| {
            let device_id = config.device_id(index);
            let known = remembered.get(&device_id);
            Remembered {
                state: known.and_then(|known| known.state.clone()),
                device_id,
                password: password.clone(),
            }
        })
        .collect()
}

pub(super) fn remember(memory: &Memory, devices: &[Remembered]) -> Result<(), Error> {
    memory.remember(devices).map_err(|source| Error::File {
        what: "the state folder".to_owned(),
        source,
    })
}

/// The image in slot A at birth.
fn factory_image(config: &FleetConfig) -> Result<Image, Error> {
    let sha256 = match &config.image {
        Some(path) => hash_file(path).map_err(|source| Error::File {
            what: format!("the image {}", path.display()),
            source,
        })?,
        None => Digest::of(format!("{} {}", config.model, config.version).as_bytes()),
    };
    Ok(Image {
        version: config.version.clone(),
        sha256,
        security_version: 0,
        confirmed: true,
    })
}

fn hash_file(path: &std::path::Path) -> std::io::Result<Digest> {
    use std::io::Read as _;
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_STEP];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(Digest::from_bytes(hasher.finalize().into()));
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
    }
}
