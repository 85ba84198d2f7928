//! What devices' secrets are checked against, kept at hand: a fleet that comes back at once is let in without asking the
//! database for every single device (ADR 14).
//!
//! What is kept only ever lets in sooner. A secret that does not fit it is checked against the database, so a new one
//! works at once; and what this process takes back is forgotten before anybody is told that it was.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_ota_domain::{DeviceId, DeviceKey};
use jiff::{SignedDuration, Timestamp};

use crate::inbound::DeviceRef;
use crate::ports::StoreError;
use crate::ports::store::Credentials;
use crate::{Engine, Result, secrets};

/// Devices whose verifiers are kept: three times what one process may have connected, some 240 bytes each, 16 MiB in all.
/// Only registered devices are, so there is nothing to be gained by crowding others out; beyond, the database is asked.
const MAX_KEPT: usize = 65_536;
/// Devices of one read ahead: short enough that a device that connects meanwhile does not notice.
const PIECE: u32 = 1_000;

/// Verifiers of devices, by device.
#[derive(Default)]
pub(crate) struct KeptCredentials(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    by_device: HashMap<DeviceId, Entry>,
    /// Rises with every verifier that is replaced: what was read before may be what was taken back.
    revocations: u64,
    /// Whose verifier is being replaced. One stays here when nobody has waited to hear whether it was: then only the
    /// database knows.
    in_doubt: HashSet<DeviceId>,
}

struct Entry {
    key: DeviceKey,
    verifier: Arc<str>,
    read_at: Timestamp,
}

impl Entry {
    fn is_believed(&self, now: Timestamp, believed: Option<SignedDuration>) -> bool {
        // A clock that was set back makes nothing last longer.
        believed.is_none_or(|believed| {
            self.read_at <= now && now.duration_since(self.read_at) < believed
        })
    }
}

impl KeptCredentials {
    fn locked(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(
        &self,
        id: &DeviceId,
        now: Timestamp,
        believed: Option<SignedDuration>,
    ) -> Option<(DeviceRef, Arc<str>)> {
        let kept = self.locked();
        let (id, entry) = kept.by_device.get_key_value(id)?;
        entry.is_believed(now, believed).then(|| {
            let device = DeviceRef {
                key: entry.key,
                id: id.clone(),
            };
            (device, entry.verifier.clone())
        })
    }

    fn revocations(&self) -> u64 {
        self.locked().revocations
    }

    /// Keeps what was read since `revocations` was what it says. False: there is no more room.
    fn keep(
        &self,
        revocations: u64,
        read_at: Timestamp,
        read: impl IntoIterator<Item = (DeviceId, Credentials)>,
    ) -> bool {
        let mut kept = self.locked();
        if kept.revocations != revocations {
            return true;
        }
        for (id, credentials) in read {
            if kept.in_doubt.contains(&id) {
                continue;
            }
            if kept.by_device.len() >= MAX_KEPT && !kept.by_device.contains_key(&id) {
                return false;
            }
            let entry = Entry {
                key: credentials.key,
                verifier: credentials.verifier.into(),
                read_at,
            };
            kept.by_device.insert(id, entry);
        }
        true
    }

    /// Whatever is kept may have been taken back elsewhere.
    pub(crate) fn forget_all(&self) {
        let mut kept = self.locked();
        kept.revocations += 1;
        kept.by_device.clear();
    }

    /// The device is not registered.
    fn forget(&self, id: &DeviceId) {
        self.locked().by_device.remove(id);
    }

    /// The device's verifier is about to be replaced; [`KeptCredentials::revoke`] follows.
    pub(crate) fn doubt(&self, id: &DeviceId) {
        let mut kept = self.locked();
        kept.by_device.remove(id);
        kept.in_doubt.insert(id.clone());
    }

    /// The device's verifier has been replaced, or may have been.
    pub(crate) fn revoke(&self, id: &DeviceId) {
        let mut kept = self.locked();
        kept.revocations += 1;
        kept.in_doubt.remove(id);
        kept.by_device.remove(id);
    }
}

impl Engine {
    /// The device that `id` and `secret` prove by what is kept at hand. `None` says nothing; then
    /// [`Engine::authenticate`] does.
    pub fn recognise(&self, id: &DeviceId, secret: &[u8]) -> Option<DeviceRef> {
        let believed = self.settings.credentials_believed;
        let (device, verifier) = self.known.get(id, self.clock.now(), believed)?;
        secrets::matches(secret, &verifier).then_some(device)
    }

    /// The device that `id` and `secret` prove, or `None`: unknown id and wrong secret look the same.
    pub async fn authenticate(
        &self,
        id: &DeviceId,
        secret: &[u8],
    ) -> std::result::Result<Option<DeviceRef>, StoreError> {
        if let Some(device) = self.recognise(id, secret) {
            return Ok(Some(device));
        }
        let (revocations, read_at) = (self.known.revocations(), self.clock.now());
        let Some(credentials) = self.store.credentials(id).await? else {
            self.known.forget(id);
            return Ok(None);
        };
        let device = secrets::matches(secret, &credentials.verifier).then(|| DeviceRef {
            key: credentials.key,
            id: id.clone(),
        });
        // Also where it does not fit: what was kept did not either.
        self.known
            .keep(revocations, read_at, [(id.clone(), credentials)]);
        Ok(device)
    }

    /// Rises whenever a device's secret is taken back. Who has let a device in meanwhile asks again.
    pub fn revocations(&self) -> u64 {
        self.known.revocations()
    }

    /// Reads the credentials of as many devices as are kept: after a start, the whole fleet comes at once.
    pub async fn read_credentials_ahead(&self) -> Result<()> {
        let mut after = None;
        loop {
            let (revocations, read_at) = (self.known.revocations(), self.clock.now());
            let piece = self.store.all_credentials(after.as_ref(), PIECE).await?;
            let Some((last, _)) = piece.last() else {
                return Ok(());
            };
            after = Some(last.clone());
            if !self.known.keep(revocations, read_at, piece) {
                return Ok(());
            }
        }
    }
}
