//! Devices: registration, credentials, and the check of a connection.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use device_ota_domain::audit::Act;
use device_ota_domain::device::{
    Device, DeviceChange, Registration, RegistrationError, is_services_own,
};
use device_ota_domain::page::Page;
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::{DeviceId, Update, ring};
use jiff::Timestamp;

use crate::audit::facts;
use crate::changes::Changes;
use crate::inbound::DeviceRef;
use crate::ports::StoreError;
use crate::ports::store::{NewDevice, Registered, Tx};
use crate::ports::telemetry::DeviceFilter;
use crate::revision::is_of;
use crate::to_the_end::to_its_end;
use crate::{Caller, Engine, Error, Result, secrets};

/// Most devices of one registration (DESIGN.md, *HTTP*).
pub const MAX_REGISTRATIONS: usize = 1_000;

/// What a device is called when there is none of that id.
pub(crate) const DEVICE: &str = "device";

/// Updates of deleted devices that are ended in one transaction.
const LEFT_BEHIND: u32 = 500;

/// What became of one registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRegistered {
    /// Which device.
    pub device_id: DeviceId,
    /// New or known.
    pub outcome: RegistrationOutcome,
}

/// New or known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistrationOutcome {
    /// New; its secret is shown this once.
    Created {
        /// The MQTT password.
        secret: String,
    },
    /// Registered before; nothing changed.
    Exists,
}

impl Engine {
    /// Whether a registration can be taken: its texts and lists, and that no broker would take the device for the service.
    pub fn check_registration(
        &self,
        registration: &Registration,
    ) -> std::result::Result<(), RegistrationError> {
        registration.check()?;
        if self.is_own_name(&registration.device_id) {
            return Err(RegistrationError::Reserved(registration.device_id.clone()));
        }
        Ok(())
    }

    /// Whether a device id is a name that the service itself has at a broker.
    fn is_own_name(&self, id: &DeviceId) -> bool {
        is_services_own(id.as_str()) || self.settings.broker_user.as_deref() == Some(id.as_str())
    }

    /// Registers devices, all in one transaction; one answer for each, in order. An id that comes twice exists the
    /// second time.
    pub async fn register_devices(
        &self,
        registrations: Vec<Registration>,
        by: &Caller,
    ) -> Result<Vec<DeviceRegistered>> {
        if registrations.len() > MAX_REGISTRATIONS {
            return Err(Error::invalid(
                "too_many_devices",
                format!("at most {MAX_REGISTRATIONS} devices can be registered at once"),
            ));
        }
        for registration in &registrations {
            self.check_registration(registration)?;
        }
        let at = self.clock.now();
        let ids: Vec<DeviceId> = registrations.iter().map(|r| r.device_id.clone()).collect();
        let mut first = HashSet::new();
        let mut secrets_made = Vec::new();
        let mut new = Vec::new();
        for registration in registrations {
            if first.insert(registration.device_id.clone()) {
                let secret = secrets::new_secret(self.entropy.as_ref());
                new.push(NewDevice {
                    bucket: ring::bucket(registration.device_id.as_str()),
                    verifier: secrets::verifier(&secret, self.entropy.as_ref()),
                    registration,
                    at,
                });
                secrets_made.push(secret);
            }
        }
        let mut tx = self.store.begin().await?;
        let outcomes = tx.register(&new).await?;
        for (device, outcome) in new.iter().zip(&outcomes) {
            if matches!(outcome, Registered::Created(_)) {
                let states = (None, Some(facts::device(&device.registration)));
                let id = &device.registration.device_id;
                tx.append_audit(by.did(Act::DeviceRegistered, at, id, states))
                    .await?;
            }
        }
        self.commit(tx).await?;
        let created = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Registered::Created(_)))
            .count();
        tracing::info!(
            devices.created = created,
            by = by.subject(),
            "devices registered"
        );
        self.registrations.fetch_add(1, Ordering::Relaxed);
        self.credentials_changed();
        self.fleet_changed();
        let mut made: std::collections::HashMap<DeviceId, String> = new
            .into_iter()
            .zip(secrets_made)
            .zip(outcomes)
            .filter(|(_, outcome)| matches!(outcome, Registered::Created(_)))
            .map(|((device, secret), _)| (device.registration.device_id, secret))
            .collect();
        let answer = |device_id: DeviceId| {
            let outcome = made
                .remove(&device_id)
                .map_or(RegistrationOutcome::Exists, |secret| {
                    RegistrationOutcome::Created { secret }
                });
            DeviceRegistered { device_id, outcome }
        };
        Ok(ids.into_iter().map(answer).collect())
    }

    /// Makes a new secret, which ends the old one's session.
    pub async fn new_credentials(self: &Arc<Self>, id: &DeviceId, by: &Caller) -> Result<String> {
        let secret = secrets::new_secret(self.entropy.as_ref());
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        self.note_secret(tx.as_mut(), id).await?;
        let verifier = secrets::verifier(&secret, self.entropy.as_ref());
        if !tx.set_verifier(id, &verifier, now).await? {
            return Err(Error::not_found(DEVICE, &id));
        }
        tx.append_audit(by.did(Act::DeviceCredentials, now, id, (None, None)))
            .await?;
        self.take_back(tx, id).await?;
        tracing::info!(device.id = %id, by = by.subject(), "new device credentials");
        Ok(secret)
    }

    /// Commits what takes a device's secret back, and ends what the secret has opened, whether or not the answer is
    /// waited for.
    async fn take_back(self: &Arc<Self>, tx: Box<dyn Tx>, id: &DeviceId) -> Result<()> {
        let (engine, id) = (self.clone(), id.clone());
        to_its_end(async move {
            engine.known.doubt(&id);
            let committed = engine.commit(tx).await;
            engine.known.revoke(&id);
            committed?;
            engine.downlink.disconnect(&id).await;
            engine.credentials_changed();
            Ok(())
        })
        .await
    }

    /// Another replica has taken a device's secret back.
    pub(crate) async fn secret_is_over(&self, id: &DeviceId) {
        self.known.revoke(id);
        self.downlink.disconnect(id).await;
        self.credentials_changed();
    }

    /// Rises with every registration: who was a stranger may be a device now.
    pub fn registrations(&self) -> u64 {
        self.registrations.load(Ordering::Relaxed)
    }

    /// Notified after every change of a device's credentials; for a broker's password file.
    pub fn on_credentials(&self) -> &tokio::sync::Notify {
        &self.credentials
    }

    fn credentials_changed(&self) {
        self.credentials.notify_one();
    }

    /// All `(device id, verifier)` pairs, in id order; for a broker's password file. Without devices that have one of the
    /// service's own names: they were registered before that was refused, or before the broker's user was called so.
    pub async fn verifiers(&self) -> Result<Vec<(DeviceId, String)>> {
        const PIECE: u32 = 10_000;
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let piece = self.store.all_credentials(after.as_ref(), PIECE).await?;
            let Some((last, _)) = piece.last() else {
                return Ok(all);
            };
            after = Some(last.clone());
            for (id, known) in piece {
                if self.is_own_name(&id) {
                    tracing::warn!(
                        device.id = %id,
                        "a device has the service's own name at the broker and is not let in there; register it under another"
                    );
                } else {
                    all.push((id, known.verifier));
                }
            }
        }
    }

    /// One device.
    pub async fn device(&self, id: &DeviceId) -> Result<Device> {
        self.store
            .device(id)
            .await?
            .ok_or_else(|| Error::not_found(DEVICE, &id))
    }

    /// Devices in id order.
    pub async fn devices(&self, filter: &DeviceFilter, page: Page) -> Result<Vec<Device>> {
        Ok(self.store.devices(filter, page).await?)
    }

    /// Changes what is registered of a device: laid over what is there at the moment, so that two changes at once both hold.
    /// Campaigns that have started keep the devices they have, but for one whose model is another now: what waits for it is
    /// for the old one, and is cancelled. Continuous ones follow. 409 when it is no longer of the revision `expected`.
    pub async fn change_device(
        &self,
        id: &DeviceId,
        change: DeviceChange,
        expected: Option<i64>,
        by: &Caller,
    ) -> Result<Device> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let known = locked(tx.as_mut(), id).await?;
        is_of(expected, "the device", known.revision)?;
        let device = known.registration.clone().change(change);
        device.check()?;
        if known.registration == device {
            return Ok(known);
        }
        let mut waiting = Vec::new();
        if known.registration.device_model != device.device_model {
            waiting = tx.open_updates(known.key).await?;
            waiting.retain(|update| update.owed().is_some());
        }
        tx.save_device(&device).await?;
        let because = Exclusion::WrongModel;
        let ended = abandon(tx.as_mut(), waiting, because, now, by).await?;
        let states = (
            Some(facts::device(&known.registration)),
            Some(facts::device(&device)),
        );
        tx.append_audit(by.did(Act::DeviceChanged, now, id, states))
            .await?;
        self.commit(tx).await?;
        tracing::info!(device.id = %id, by = by.subject(), updates.cancelled = ended.len(), "device changed");
        self.fleet_changed();
        self.wake();
        self.device(id).await
    }

    /// Deletes a device: its open updates are cancelled, its credentials end, its records stay (PRD, E6-US4). Answers
    /// how many updates were cancelled. 409 when it is no longer of the revision `expected`.
    pub async fn delete_device(
        self: &Arc<Self>,
        id: &DeviceId,
        expected: Option<i64>,
        by: &Caller,
    ) -> Result<usize> {
        let mut tx = self.store.begin().await?;
        self.note_secret(tx.as_mut(), id).await?;
        let known = locked(tx.as_mut(), id).await?;
        is_of(expected, "the device", known.revision)?;
        self.end_device(tx, &known, by).await
    }

    /// Deletes a device that another service says it deleted at `at`, as [`Engine::delete_device`] does. `None` when none
    /// is known here that had been registered by then: it was never here, has ended before, or is a later one of that name.
    pub async fn device_was_deleted(
        self: &Arc<Self>,
        id: &DeviceId,
        at: Timestamp,
        by: &Caller,
    ) -> Result<Option<usize>> {
        let mut tx = self.store.begin().await?;
        self.note_secret(tx.as_mut(), id).await?;
        match tx.device(id).await? {
            Some(known) if known.registered_at <= at => {
                self.end_device(tx, &known, by).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    async fn end_device(
        self: &Arc<Self>,
        mut tx: Box<dyn Tx>,
        known: &Device,
        by: &Caller,
    ) -> Result<usize> {
        let (now, id) = (self.clock.now(), &known.registration.device_id);
        // Updates before what the device has said of itself, as ingest locks them.
        let open = tx.open_updates(known.key).await?;
        tx.end_watches(&[known.key]).await?;
        tx.delete_device(id, now).await?;
        let because = Exclusion::UnknownDevice;
        let ended = abandon(tx.as_mut(), open, because, now, by).await?;
        let states = (Some(facts::device(&known.registration)), None);
        tx.append_audit(by.did(Act::DeviceDeleted, now, id, states))
            .await?;
        self.take_back(tx, id).await?;
        let cancelled = ended.len();
        for update in &ended {
            self.rebooting.note(update);
        }
        self.watched.forget([known.key]);
        tracing::info!(device.id = %id, by = by.subject(), updates.cancelled = cancelled, "device deleted");
        self.wake();
        Ok(cancelled)
    }

    /// Ends what is open of devices that were deleted at or after `since`: made in the very moment of the deletion, by a
    /// transaction that did not see it. Answers up to when that is done.
    pub(crate) async fn settle_deleted(&self, since: Timestamp) -> Result<Timestamp> {
        let now = self.clock.now();
        loop {
            let left = self.store.left_behind(since, LEFT_BEHIND).await?;
            if left.is_empty() {
                return Ok(now);
            }
            let mut tx = self.store.begin().await?;
            let left = tx.updates(&left).await?;
            let because = Exclusion::UnknownDevice;
            abandon(tx.as_mut(), left, because, now, &Caller::service()).await?;
            self.commit(tx).await?;
            self.wake();
        }
    }

    /// The device of that id, for an external broker, which has checked the secret itself.
    pub async fn resolve(
        &self,
        id: &DeviceId,
    ) -> std::result::Result<Option<DeviceRef>, StoreError> {
        let known = self.store.credentials(id).await?;
        Ok(known.map(|c| DeviceRef {
            key: c.key,
            id: id.clone(),
        }))
    }

    /// Takes up what the process before knew by heart, or other replicas have learnt since: whose next heartbeat may show that it fell back, or has to show that it
    /// has not.
    pub async fn take_up(&self) -> Result<()> {
        let (rebooting, watched) = (self.rebooting.known(), self.watched.known());
        self.rebooting
            .renew(&rebooting, self.store.rebooting().await?);
        self.watched.renew(&watched, self.store.watched().await?);
        Ok(())
    }
}

/// The device to change or to ask for something, locked.
pub(crate) async fn locked(tx: &mut dyn Tx, id: &DeviceId) -> Result<Device> {
    let found = tx.device(id).await?;
    found.ok_or_else(|| Error::not_found(DEVICE, &id))
}

/// Ends updates whose device will not take them, each with its record; answers those that were still open.
async fn abandon(
    tx: &mut dyn Tx,
    updates: Vec<Update>,
    because: Exclusion,
    now: Timestamp,
    by: &Caller,
) -> Result<Vec<Update>> {
    let mut changes = Changes::default();
    let mut ended = Vec::new();
    for update in updates {
        let (before, was) = (update.standing(), facts::update(&update));
        if let Some(update) = update.abandon(because, now) {
            let states = (Some(was), Some(facts::update(&update)));
            tx.append_audit(by.did(Act::UpdateCancelled, now, &update.id, states))
                .await?;
            changes.record(&before, update.clone(), now);
            ended.push(update);
        }
    }
    changes.write(tx).await?;
    Ok(ended)
}
