//! Updates of single devices: made, cancelled, retried and taken back by admins; and the rollback log.

use device_ota_domain::audit::Act;
use device_ota_domain::campaign::Priority;
use device_ota_domain::device::Device;
use device_ota_domain::event::{Event, EventType};
use device_ota_domain::page::Page;
use device_ota_domain::rollback::{Rollback, RollbackTrigger};
use device_ota_domain::update::{Action, Progress, UpdateState};
use device_ota_domain::why::Why;
use device_ota_domain::{
    Campaign, CampaignState, DeviceId, Firmware, FirmwareId, RollbackId, Update, UpdateId,
};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::audit::facts;
use crate::campaigns::tell;
use crate::changes::Changes;
use crate::firmware::held;
use crate::ports::clock::random;
use crate::ports::store::{RollbackFilter, Tx, UpdateFilter};
use crate::{Caller, Engine, Error, Result};

/// Pages looked through for a version that a device once ran.
const HISTORY_PAGE: Page = Page {
    limit: 200,
    offset: 0,
};

/// A request to update one device (PRD, E3-US1).
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateRequest {
    /// What to install.
    pub firmware_id: FirmwareId,
    /// Default `normal`.
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
    #[schema(minimum = 0.0167, maximum = 43_200)]
    pub timeout_minutes: f64,
}

fn three() -> u32 {
    3
}
fn hour() -> f64 {
    60.0
}

/// An update, and why it waits if it does.
#[derive(Debug, Clone)]
pub struct UpdateView {
    /// The update.
    pub update: Update,
    /// The last reason why it waits.
    pub why: Option<Why>,
}

impl Engine {
    /// One update.
    pub async fn update(&self, id: &UpdateId) -> Result<UpdateView> {
        let update = self
            .store
            .update(id)
            .await?
            .ok_or_else(|| Error::not_found("update", &id))?;
        let views = self.explained(vec![update]).await?;
        views
            .into_iter()
            .next()
            .ok_or_else(|| Error::not_found("update", &id))
    }

    /// Updates, newest first.
    pub async fn updates(&self, filter: &UpdateFilter, page: Page) -> Result<Vec<UpdateView>> {
        let updates = self.store.updates(filter, page).await?;
        self.explained(updates).await
    }

    /// The rollback log, newest first.
    pub async fn rollbacks(&self, filter: &RollbackFilter, page: Page) -> Result<Vec<Rollback>> {
        Ok(self.store.rollbacks(filter, page).await?)
    }

    /// Makes an update for one device, outside of any campaign. 409 when the device is not of the firmware's model
    /// or already runs that version, and when the firmware is out of use.
    pub async fn update_device(
        &self,
        id: &DeviceId,
        request: UpdateRequest,
        by: &Caller,
    ) -> Result<UpdateView> {
        let device = self.device(id).await?;
        let firmware = self.firmware_in_use(&request.firmware_id).await?;
        fits(&device, &firmware)?;
        let version = &firmware.metadata.version;
        if !request.force_update && device.latest.version.as_ref() == Some(version) {
            return Err(Error::conflict(
                "already_installed",
                format!("device {id} already runs {version}; set force_update to install it again"),
            ));
        }
        let update = self.single(&device, &firmware, Action::Update, &request)?;
        let mut tx = self.store.begin().await?;
        held(tx.as_mut(), &firmware.id).await?;
        tx.insert_update(&update, None).await?;
        tx.append_events(&[Event::asked(&update, None, by.subject(), update.created_at)])
            .await?;
        let states = (None, Some(facts::update(&update)));
        tx.append_audit(by.did(Act::UpdateCreated, update.created_at, &update.id, states))
            .await?;
        tx.commit().await?;
        self.wake();
        self.update(&update.id).await
    }

    /// Takes one device back to a version that it once ran and confirmed (PRD, E4-US2).
    pub async fn roll_back_device(
        &self,
        id: &DeviceId,
        to_version: &str,
        reason: &str,
        by: &Caller,
    ) -> Result<Rollback> {
        let device = self.device(id).await?;
        let firmware = self.previous_firmware(&device, to_version).await?;
        if device.latest.version.as_deref() == Some(to_version) {
            return Err(Error::conflict(
                "already_installed",
                format!("device {id} already runs {to_version}"),
            ));
        }
        let request = UpdateRequest {
            firmware_id: firmware.id.clone(),
            priority: Priority::High,
            force_update: false,
            max_retries: three(),
            timeout_minutes: hour(),
        };
        let update = self.single(&device, &firmware, Action::Rollback, &request)?;
        let mut tx = self.store.begin().await?;
        tx.insert_update(&update, Some((RollbackTrigger::Manual, reason)))
            .await?;
        tx.append_events(&[Event::asked(
            &update,
            Some(reason),
            by.subject(),
            update.created_at,
        )])
        .await?;
        let states = (None, Some(facts::rollback(&update, reason)));
        tx.append_audit(by.did(Act::UpdateRollback, update.created_at, &update.id, states))
            .await?;
        tx.commit().await?;
        self.wake();
        let filter = RollbackFilter {
            campaign: None,
            device: Some(id.clone()),
        };
        let log = self.store.rollbacks(&filter, HISTORY_PAGE).await?;
        let made = RollbackId::of(&update.id);
        log.into_iter()
            .find(|entry| entry.rollback_id == made)
            .ok_or_else(|| Error::not_found("rollback", &made))
    }

    /// The firmware of a version that the device has run: it completed an update to it, or came from it.
    async fn previous_firmware(&self, device: &Device, to_version: &str) -> Result<Firmware> {
        let id = &device.registration.device_id;
        let filter = UpdateFilter {
            device: Some(id.clone()),
            ..UpdateFilter::default()
        };
        let history = self.store.updates(&filter, HISTORY_PAGE).await?;
        let completed = |u: &Update| matches!(u.state, UpdateState::Completed { .. });
        let once_ran = device.registration.firmware_version.as_deref() == Some(to_version)
            || history.iter().filter(|u| completed(u)).any(|u| {
                u.to_version == to_version || u.from_version.as_deref() == Some(to_version)
            });
        if !once_ran {
            return Err(Error::conflict(
                "never_installed",
                format!("device {id} is not known to have run {to_version}"),
            ));
        }
        let installed = history
            .iter()
            .find(|u| completed(u) && u.to_version == to_version)
            .and_then(|u| u.firmware.as_ref());
        let by_history = match installed {
            Some(firmware) => self.store.firmware(firmware).await?,
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

    /// When a rollback that is made now ends as failed, if it is not done before.
    pub(crate) fn rollbacks_end_by(&self, now: Timestamp) -> Timestamp {
        now.checked_add(self.settings.rollback_timeout)
            .unwrap_or(Timestamp::MAX)
    }

    fn single(
        &self,
        device: &Device,
        firmware: &Firmware,
        action: Action,
        request: &UpdateRequest,
    ) -> Result<Update> {
        let seconds = request.timeout_minutes * 60.0;
        if !(1.0..=device_ota_domain::campaign::MAX_TIMEOUT_MINUTES * 60.0).contains(&seconds) {
            return Err(Error::invalid(
                "invalid_update",
                "timeout_minutes must be at least one second and at most 43200",
            ));
        }
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
        let timeout_seconds = seconds.round() as u64;
        Ok(Update {
            id: UpdateId::from_entropy(random(self.entropy.as_ref())),
            device: device.key,
            device_id: device.registration.device_id.clone(),
            device_type: device.registration.device_type.clone(),
            campaign: None,
            action,
            firmware: Some(firmware.id.clone()),
            from_version: device
                .latest
                .version
                .clone()
                .or_else(|| device.registration.firmware_version.clone()),
            to_version: firmware.metadata.version.clone(),
            stage: 0,
            priority: request.priority,
            attempt: 0,
            last_seq: 0,
            retries: 0,
            max_retries: request.max_retries,
            timeout_seconds,
            give_up_at: (action == Action::Rollback).then(|| self.rollbacks_end_by(now)),
            progress: Progress {
                bytes_total: firmware.size,
                ..Progress::default()
            },
            state: UpdateState::Pending {
                due_at: now,
                lost_at: None,
                last_failure: None,
            },
            started_at: None,
            created_at: now,
            updated_at: now,
        })
    }

    /// Withdraws an update: at once when it only waits, by a signed command when the device has it; 409 once it
    /// installs.
    pub async fn cancel_update(&self, id: &UpdateId, by: &Caller) -> Result<UpdateView> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let update = locked(tx.as_mut(), id).await?;
        let (before, was) = (update.standing(), facts::update(&update));
        let update = update.cancel(now)?;
        let (device, told) = (
            update.device,
            matches!(update.state, UpdateState::InFlight { .. }),
        );
        let mut changes = Changes::default();
        changes.record(&before, update.clone(), now);
        changes.write(tx.as_mut()).await?;
        let states = (Some(was), Some(facts::update(&update)));
        if states.0 != states.1 {
            tx.append_audit(by.did(Act::UpdateCancelled, now, id, states))
                .await?;
        }
        let grounds = if told {
            tx.draw_seqs(&[device]).await?
        } else {
            Vec::new()
        };
        tx.commit().await?;
        tracing::info!(update.id = %id, by = by.subject(), "update cancelled");
        self.send_due(crate::offers::pair(vec![update], grounds))
            .await;
        self.wake();
        self.update(id).await
    }

    /// Schedules a failed update once more. 409 when it has not failed, its campaign has ended or its firmware is out of use; a failed rollback of a
    /// campaign that was rolled back opens the campaign once more, so that the device is not left behind.
    pub async fn retry_update(&self, id: &UpdateId, by: &Caller) -> Result<UpdateView> {
        let now = self.clock.now();
        // All that is read apart from the transaction is read before it, which would else hold one connection and wait
        // for another.
        let known = self.store.update(id).await?;
        let known = known.ok_or_else(|| Error::not_found("update", &id))?;
        self.device(&known.device_id).await?; // one that was deleted would never take it
        let mut tx = self.store.begin().await?;
        if let Some(firmware) = known
            .firmware
            .as_ref()
            .filter(|_| known.action == Action::Update)
        {
            held(tx.as_mut(), firmware).await?;
        }
        let campaign = match &known.campaign {
            Some(campaign) => tx.campaign(campaign).await?,
            None => None,
        };
        let update = locked(tx.as_mut(), id).await?;
        let (before, failed_at, was) =
            (update.standing(), update.ended_at(), facts::update(&update));
        if update.firmware.is_none() {
            return Err(Error::conflict(
                "no_previous_firmware",
                "the previous image is not in the registry; roll the device back by itself after uploading it",
            ));
        }
        let give_up_at = (update.action == Action::Rollback).then(|| self.rollbacks_end_by(now));
        let update = update.retry(now, give_up_at)?;
        if let Some(campaign) = campaign {
            let retried = (update.action, failed_at.unwrap_or(now));
            open_for(tx.as_mut(), campaign, retried, now, by).await?;
        }
        let states = (Some(was), Some(facts::update(&update)));
        tx.append_audit(by.did(Act::UpdateRetried, now, id, states))
            .await?;
        let mut changes = Changes::default();
        changes.record(&before, update, now);
        changes.write(tx.as_mut()).await?;
        tx.commit().await?;
        tracing::info!(update.id = %id, by = by.subject(), "update retried");
        self.wake();
        self.update(id).await
    }
}

/// Makes sure that the campaign carries out what waits in it, which only a rollback may reopen it for. What is `retried`
/// failed at the time given.
async fn open_for(
    tx: &mut dyn Tx,
    mut campaign: Campaign,
    (action, failed_at): (Action, Timestamp),
    now: Timestamp,
    by: &Caller,
) -> Result<()> {
    if campaign.deleted_at.is_some() {
        return Err(Error::conflict(
            "deleted",
            "the campaign was deleted; update the device, or roll it back, by itself",
        ));
    }
    match (action, &campaign.state) {
        (Action::Update, CampaignState::InProgress(_) | CampaignState::Paused { .. }) => {
            campaign.state = campaign.state.retried(failed_at);
            campaign.updated_at = now;
            Ok(tx.save_campaign(&campaign).await?)
        }
        (Action::Rollback, CampaignState::RollingBack { .. }) => Ok(()),
        (Action::Rollback, CampaignState::RolledBack { .. }) => {
            let before = facts::campaign(&campaign);
            campaign.state = campaign.state.reopen(now)?;
            campaign.updated_at = now;
            tx.save_campaign(&campaign).await?;
            let kind = EventType::RollbackInitiated;
            Ok(tell(tx, kind, Some(before), &campaign, now, by).await?)
        }
        (Action::Update, _) => Err(Error::conflict(
            "campaign_ended",
            "the update's campaign has ended; update the device by itself",
        )),
        (Action::Rollback, _) => Err(Error::conflict(
            "campaign_ended",
            "the rollback's campaign was cancelled; roll the device back by itself",
        )),
    }
}

async fn locked(tx: &mut dyn Tx, id: &UpdateId) -> Result<Update> {
    let found = tx.updates(std::slice::from_ref(id)).await?;
    found
        .into_iter()
        .next()
        .ok_or_else(|| Error::not_found("update", &id))
}

fn fits(device: &Device, firmware: &Firmware) -> Result<()> {
    let (registered, image) = (&device.registration, &firmware.metadata);
    if registered.device_model != image.device_model {
        return Err(Error::conflict(
            "wrong_model",
            format!(
                "device {} is a {} and the firmware is for {}",
                registered.device_id, registered.device_model, image.device_model
            ),
        ));
    }
    let revision_fits = image.hw_revisions.is_empty()
        || registered
            .hw_revision
            .as_ref()
            .is_none_or(|r| image.hw_revisions.contains(r));
    if revision_fits {
        Ok(())
    } else {
        Err(Error::conflict(
            "wrong_hw_revision",
            format!(
                "the firmware does not run on hardware revision {:?}",
                registered.hw_revision
            ),
        ))
    }
}
