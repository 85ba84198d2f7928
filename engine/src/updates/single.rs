//! Updates and rollbacks of one device, made by admins outside of any campaign (PRD, E3-US1, E3-US5, E4-US2).

use device_ota_domain::audit::Act;
use device_ota_domain::campaign::{Priority, TimeoutsDraft};
use device_ota_domain::device::Device;
use device_ota_domain::event::Event;
use device_ota_domain::page::Page;
use device_ota_domain::rollback::{MIN_RETRIES, Rollback, RollbackTrigger};
use device_ota_domain::targeting::{Exclusion, above_floor, fits};
use device_ota_domain::update::{Action, Aftermath, Progress, UpdateState};
use device_ota_domain::{DeviceId, Firmware, FirmwareId, RollbackId, Update, UpdateId};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;

use super::UpdateView;
use crate::audit::facts;
use crate::changes::Changes;
use crate::devices::{DEVICE, locked};
use crate::firmware::held;
use crate::ports::clock::random;
use crate::ports::store::{Claimable, RollbackFilter, Tx};
use crate::{Caller, Engine, Error, Result};

/// The newest entry of a device's rollback log.
const NEWEST: Page = Page {
    limit: 1,
    offset: 0,
};

/// A request to update one device (PRD, E3-US1).
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateRequest {
    /// What to install.
    pub firmware_id: FirmwareId,
    /// Of updates of single devices that are due, the higher one is offered first. Default `normal`.
    #[serde(default)]
    pub priority: Priority,
    /// Also when the device already runs that version.
    #[serde(default)]
    pub force_update: bool,
    /// Default 3.
    #[serde(default = "three")]
    #[schema(maximum = 100)]
    pub max_retries: u32,
    /// Default 60; fractions are taken.
    #[serde(default = "hour")]
    #[schema(minimum = 0.016_666_666_666_666_666, maximum = 43_200)]
    pub timeout_minutes: f64,
    /// Default: each part of an attempt may take as long as all of it.
    #[serde(default)]
    pub timeouts: TimeoutsDraft,
    /// It is given up when it is not done so long from now on; fractions are taken. Default: it waits for as long as it takes.
    #[serde(default)]
    #[schema(maximum = 8760)]
    pub give_up_after_hours: Option<f64>,
}

fn three() -> u32 {
    3
}
fn hour() -> f64 {
    60.0
}

impl Engine {
    /// Makes an update for one device, outside of any campaign. 409 when a campaign would leave the device out for the same
    /// reason: it is of another model or hardware revision, runs that version already (unless forced), or would refuse the image as
    /// below its security floor; when the firmware is out of use; and when the device was asked for it before and has not ended.
    /// A device that is not registered here is asked for at the Device Service, where there is one.
    pub async fn update_device(
        &self,
        id: &DeviceId,
        request: UpdateRequest,
        by: &Caller,
    ) -> Result<UpdateView> {
        match self.update_known(id, &request, by).await {
            Err(Error::NotFound { what: DEVICE, .. }) if self.introduce(id, by).await? => {
                self.update_known(id, &request, by).await
            }
            answer => answer,
        }
    }

    async fn update_known(
        &self,
        id: &DeviceId,
        request: &UpdateRequest,
        by: &Caller,
    ) -> Result<UpdateView> {
        let mut tx = self.store.begin().await?;
        let firmware = held(tx.as_mut(), &request.firmware_id).await?;
        let device = locked(tx.as_mut(), id).await?;
        match fits(&firmware.metadata, &device) {
            Err(Exclusion::AlreadyInstalled) if request.force_update => {}
            judged => judged.map_err(|why| misfit(why, &device, &firmware))?,
        }
        above_floor(&firmware.metadata, &device).map_err(|why| misfit(why, &device, &firmware))?;
        let update = self.single(&device, &firmware, Action::Update, request)?;
        asked_once(tx.as_mut(), &update).await?;
        tx.insert_update(&update, None).await?;
        tx.append_events(&[Event::asked(&update, None, by.subject(), update.created_at)])
            .await?;
        let states = (None, Some(facts::update(&update)));
        tx.append_audit(by.did(Act::UpdateCreated, update.created_at, &update.id, states))
            .await?;
        self.commit(tx).await?;
        self.wake();
        self.explain(update).await
    }

    /// Takes one device back to a version that it once ran (PRD, E4-US2). 409 when it is not known to have, when it runs that
    /// version, when no image of it is in the registry, when the image is below the device's security floor and no permit is there for
    /// it, and when it was asked for that before and has not ended.
    pub async fn roll_back_device(
        &self,
        id: &DeviceId,
        to_version: &str,
        reason: &str,
        by: &Caller,
    ) -> Result<Rollback> {
        let device = self.device(id).await?;
        let firmware = self.previous_firmware(&device, to_version).await?;
        if device.running() == Some(to_version) {
            return Err(Error::conflict(
                "already_installed",
                format!("device {id} already runs {to_version}"),
            ));
        }
        let request = UpdateRequest {
            firmware_id: firmware.id.clone(),
            priority: Priority::High,
            force_update: false,
            max_retries: MIN_RETRIES,
            timeout_minutes: hour(),
            timeouts: TimeoutsDraft::default(),
            give_up_after_hours: None,
        };
        let mut tx = self.store.begin().await?;
        let known = locked(tx.as_mut(), id).await?;
        if known.registration != device.registration {
            return Err(Error::conflict(
                "changed_meanwhile",
                format!("device {id} was changed in this very moment; look at it, then ask again"),
            ));
        }
        let update = self.single(&known, &firmware, Action::Rollback, &request)?;
        asked_once(tx.as_mut(), &update).await?;
        tx.insert_update(&update, Some((RollbackTrigger::Manual, reason)))
            .await?;
        // Nothing of it stays when it is refused.
        if let Err(why) = above_floor(&firmware.metadata, &known)
            && tx
                .permit_for(&update.id, update.created_at)
                .await?
                .is_none()
        {
            return Err(unpermitted(&misfit(why, &known, &firmware)));
        }
        let (by_whom, at) = (by.subject(), update.created_at);
        tx.append_events(&[Event::asked(&update, Some(reason), by_whom, at)])
            .await?;
        let states = (None, Some(facts::rollback(&update, reason)));
        tx.append_audit(by.did(Act::UpdateRollback, at, &update.id, states))
            .await?;
        self.commit(tx).await?;
        self.wake();
        let filter = RollbackFilter {
            campaign: None,
            device: Some(id.clone()),
        };
        let log = self.store.rollbacks(&filter, NEWEST).await?;
        let made = RollbackId::of(&update.id);
        log.into_iter()
            .find(|entry| entry.rollback_id == made)
            .ok_or_else(|| Error::not_found("rollback", &made))
    }

    /// The firmware of a version that the device has run: it completed an update to it, or came from it, or was registered with it
    /// (of what a device left the factory with, nobody else can tell).
    async fn previous_firmware(&self, device: &Device, to_version: &str) -> Result<Firmware> {
        let id = &device.registration.device_id;
        let ran = self.store.ran(device, to_version).await?;
        let registered = device.registration.firmware_version.as_deref() == Some(to_version);
        if ran.is_none() && !registered {
            return Err(Error::conflict(
                "never_installed",
                format!("device {id} is not known to have run {to_version}"),
            ));
        }
        let installed = ran
            .filter(|update| update.to_version == to_version)
            .and_then(|update| update.firmware);
        let by_history = match installed {
            Some(firmware) => self.store.firmware(&firmware).await?,
            None => None,
        };
        let found = match by_history {
            Some(firmware) => Some(firmware),
            None => {
                self.store
                    .firmware_of_version(&device.registration.device_model, to_version)
                    .await?
            }
        };
        // Also one that is out of use: the device has run it, and goes back to nothing new.
        found.ok_or_else(|| {
            Error::conflict(
                "no_previous_firmware",
                format!("no image of version {to_version} is in the registry; upload it first"),
            )
        })
    }

    fn single(
        &self,
        device: &Device,
        firmware: &Firmware,
        action: Action,
        request: &UpdateRequest,
    ) -> Result<Update> {
        let times = request
            .timeouts
            .checked(request.timeout_minutes, request.give_up_after_hours)
            .map_err(|error| Error::invalid("invalid_update", error.to_string()))?;
        if request.max_retries > 100 {
            return Err(Error::invalid(
                "invalid_update",
                "max_retries must be at most 100",
            ));
        }
        let now = self.clock.now();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to lie in 1 s ..= 30 days"
        )]
        let timeout_seconds = (request.timeout_minutes * 60.0).round() as u64;
        Ok(Update {
            id: UpdateId::from_entropy(random(self.entropy.as_ref())),
            device: device.key,
            device_id: device.registration.device_id.clone(),
            device_type: device.registration.device_type.clone(),
            campaign: None,
            action,
            firmware: Some(firmware.id.clone()),
            from_version: device.running().map(ToOwned::to_owned),
            to_version: firmware.metadata.version.clone(),
            stage: 0,
            priority: request.priority,
            attempt: 0,
            last_seq: 0,
            retries: 0,
            max_retries: request.max_retries,
            timeout_seconds,
            times,
            give_up_at: self.ends_by(action, &times, now),
            progress: Progress {
                bytes_total: firmware.size,
                ..Progress::default()
            },
            state: UpdateState::Pending {
                due_at: now,
                lost_at: None,
                last_failure: None,
            },
            aftermath: Aftermath::default(),
            started_at: None,
            created_at: now,
            updated_at: now,
        })
    }
}

/// Refuses what the update's device, which is locked, was asked for before and has not ended: two requests at once are one
/// update.
pub(super) async fn asked_once(tx: &mut dyn Tx, update: &Update) -> Result<()> {
    let (id, device) = (&update.id, &update.device_id);
    let open = tx.peek_open(update.device).await?;
    let Some(firmware) = &update.firmware else {
        return Ok(());
    };
    match open.iter().find(|o| o.id != *id && o.asks_for(firmware)) {
        Some(open) => Err(Error::conflict(
            "already_requested",
            format!(
                "update {} of device {device} to {} has not ended; wait for it, or cancel it first",
                open.id, open.to_version
            ),
        )),
        None => Ok(()),
    }
}

/// Ends those that have nothing left to do by what their devices run, if that is known, and those that their devices would refuse;
/// answers what is left to offer.
pub(crate) async fn left_to_offer(
    tx: &mut dyn Tx,
    found: Vec<Claimable>,
    now: Timestamp,
) -> Result<Vec<Claimable>> {
    let mut changes = Changes::default();
    let mut left = Vec::with_capacity(found.len());
    for found in found {
        let running = found.running.as_deref();
        let ended = running.and_then(|running| found.update.clone().found_running(running, now));
        let refused = || found.update.clone().refuse_below_floor(now);
        match ended.or_else(|| refused().filter(|_| found.below_floor)) {
            Some(update) => changes.record(&found.update.standing(), update, now),
            None => left.push(found),
        }
    }
    changes.write(tx).await?;
    Ok(left)
}

/// The same, and how to have it done all the same.
fn unpermitted(refused: &Error) -> Error {
    Error::conflict(
        refused.code(),
        format!(
            "{refused}, but with a rollback permit from the image that it runs to this one, which is not here or is spent: have it signed \
             by the release role (`device-ota permit`) and send it to POST /api/v1/ota/permits"
        ),
    )
}

/// 409, with the reason for which a campaign would leave the device out.
fn misfit(why: Exclusion, device: &Device, firmware: &Firmware) -> Error {
    let (registered, image) = (&device.registration, &firmware.metadata);
    let id = &registered.device_id;
    let detail = match why {
        Exclusion::WrongModel => format!(
            "device {id} is a {} and the firmware is for {}",
            registered.device_model, image.device_model
        ),
        Exclusion::WrongHwRevision => format!(
            "the firmware does not run on the hardware revision of device {id}, {}",
            registered
                .hw_revision
                .as_deref()
                .unwrap_or("which is not registered")
        ),
        Exclusion::AlreadyInstalled => format!(
            "device {id} already runs {}; set force_update to install it again",
            image.version
        ),
        Exclusion::BelowFloor => format!(
            "the security_version of {} is {}, below the security_floor of device {id}, {}: the device would refuse it",
            image.version,
            image.security_version,
            device.latest.security_floor.unwrap_or_default()
        ),
        other => format!("device {id}: {other}"),
    };
    Error::conflict(why.name(), detail)
}
