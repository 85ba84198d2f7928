//! Updates, of campaigns or not: read, cancelled and retried by admins; and the rollback log. Those of single devices are made
//! in [`single`].

mod single;

use device_ota_domain::audit::Act;
use device_ota_domain::campaign::FailureKind;
use device_ota_domain::event::EventType;
use device_ota_domain::firmware::Results;
use device_ota_domain::page::Page;
use device_ota_domain::rollback::Rollback;
use device_ota_domain::update::{Action, Times, UpdateState};
use device_ota_domain::why::Why;
use device_ota_domain::{Campaign, CampaignState, DeviceId, Update, UpdateId};
use jiff::Timestamp;

use crate::audit::facts;
use crate::campaigns::tell;
use crate::changes::Changes;
use crate::firmware::held;
use crate::ports::store::{RollbackFilter, Tx, UpdateFilter};
use crate::{Caller, Engine, Error, Result, devices};

pub use single::UpdateRequest;
pub(crate) use single::left_to_offer;

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
        self.explain(update).await
    }

    /// The update as it is here, also where it has gone on meanwhile: what an admin asked for is answered as it was written.
    pub(crate) async fn explain(&self, update: Update) -> Result<UpdateView> {
        let id = update.id.clone();
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

    /// How the updates of one device ended (PRD, E5-US3).
    pub async fn results_of(&self, device: &DeviceId) -> Result<Results> {
        Ok(self.store.results_of(device).await?)
    }

    /// The rollback log, newest first.
    pub async fn rollbacks(&self, filter: &RollbackFilter, page: Page) -> Result<Vec<Rollback>> {
        Ok(self.store.rollbacks(filter, page).await?)
    }

    /// When a rollback that is made now ends as failed, if it is not done before.
    pub(crate) fn rollbacks_end_by(&self, now: Timestamp) -> Timestamp {
        now.checked_add(self.settings.rollback_timeout)
            .unwrap_or(Timestamp::MAX)
    }

    /// When an update or rollback whose time as a whole begins now is given up, if it is not done before.
    pub(crate) fn ends_by(
        &self,
        action: Action,
        times: &Times,
        now: Timestamp,
    ) -> Option<Timestamp> {
        match action {
            Action::Update => times.ends_by(now),
            Action::Rollback => Some(self.rollbacks_end_by(now)),
        }
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
            self.grounds_here(tx.as_mut(), &[device]).await?
        } else {
            Vec::new()
        };
        self.commit(tx).await?;
        tracing::info!(update.id = %id, by = by.subject(), "update cancelled");
        self.send_due(crate::offers::pair(vec![update.clone()], grounds))
            .await;
        self.wake();
        self.explain(update).await
    }

    /// Schedules a failed update once more. 409 when it has not failed, its campaign has ended, its firmware is out of use or its device was asked for the same anew; a failed rollback of a
    /// campaign that was rolled back opens the campaign once more, so that the device is not left behind.
    pub async fn retry_update(&self, id: &UpdateId, by: &Caller) -> Result<UpdateView> {
        let now = self.clock.now();
        // All that is read apart from the transaction is read before it, which would else hold one connection and wait
        // for another.
        let known = self.store.update(id).await?;
        let known = known.ok_or_else(|| Error::not_found("update", &id))?;
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
        devices::locked(tx.as_mut(), &known.device_id).await?; // one that was deleted would never take it
        let update = locked(tx.as_mut(), id).await?;
        let (before, failed_at, was) =
            (update.standing(), update.ended_at(), facts::update(&update));
        let kind = match &update.state {
            UpdateState::Failed { failure, .. } => FailureKind::of(&failure.code),
            _ => FailureKind::Failed,
        };
        if update.firmware.is_none() {
            return Err(Error::conflict(
                "no_previous_firmware",
                "the previous image is not in the registry; roll the device back by itself after uploading it",
            ));
        }
        let give_up_at = self.ends_by(update.action, &update.times, now);
        let update = update.retry(now, give_up_at)?;
        single::asked_once(tx.as_mut(), &update).await?;
        if let Some(campaign) = campaign {
            let retried = (update.action, failed_at.unwrap_or(now), kind);
            open_for(tx.as_mut(), campaign, retried, now, by).await?;
        }
        let states = (Some(was), Some(facts::update(&update)));
        tx.append_audit(by.did(Act::UpdateRetried, now, id, states))
            .await?;
        let mut changes = Changes::default();
        changes.record(&before, update.clone(), now);
        changes.write(tx.as_mut()).await?;
        self.commit(tx).await?;
        tracing::info!(update.id = %id, by = by.subject(), "update retried");
        self.wake();
        self.explain(update).await
    }
}

/// Makes sure that the campaign carries out what waits in it, which only a rollback may reopen it for. What is `retried`
/// failed at the time given, in that way.
async fn open_for(
    tx: &mut dyn Tx,
    mut campaign: Campaign,
    (action, failed_at, kind): (Action, Timestamp, FailureKind),
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
            campaign.state = campaign.state.retried(failed_at, kind);
            campaign.updated_at = now;
            Ok(tx.save_campaign(&campaign).await?)
        }
        (Action::Rollback, CampaignState::RollingBack { .. }) => Ok(()),
        (Action::Rollback, CampaignState::RolledBack { .. }) => {
            let before = facts::campaign(&campaign);
            campaign.state = campaign.state.reopen(now)?;
            campaign.updated_at = now;
            tx.save_campaign(&campaign).await?;
            let kind = EventType::CampaignRollingBack;
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
