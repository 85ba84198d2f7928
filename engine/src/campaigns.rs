//! Campaigns: created, started, paused, resumed, cancelled and rolled back by admins. What a running campaign does
//! by itself is in [`crate::dispatch`].

mod advance;
mod deploy;
mod proposal;
mod targets;
mod why;

use std::collections::HashMap;

use device_ota_domain::audit::Act;
use device_ota_domain::campaign::{Campaign, CampaignState, Counts, Named};
use device_ota_domain::event::{Event, EventType};
use device_ota_domain::page::Page;
use device_ota_domain::planner::{self, Action};
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::update::Action as UpdateAction;
use device_ota_domain::why::Why;
use device_ota_domain::{CampaignId, Firmware};
use jiff::Timestamp;
use serde_json::Value;

use crate::audit::facts;
use crate::firmware::held;
use crate::ports::StoreError;
use crate::ports::store::{CampaignFilter, Tx};
use crate::{Caller, Engine, Error, Result};

pub use deploy::Deployed;
pub use targets::{DryRun, DryRunQuery};

/// A campaign with what people want to see beside it.
#[derive(Debug, Clone)]
pub struct CampaignView {
    /// The campaign.
    pub campaign: Campaign,
    /// Where its devices stand.
    pub counts: Counts,
    /// What it rolls out.
    pub firmware: Firmware,
    /// Why it does not go on by itself.
    pub waits: Vec<Why>,
}

impl Engine {
    /// One campaign.
    pub async fn campaign(&self, id: &CampaignId) -> Result<CampaignView> {
        let campaign = self
            .store
            .campaign(id)
            .await?
            .ok_or_else(|| Error::not_found("campaign", &id))?;
        let firmware = self.firmware(campaign.firmware()).await?;
        self.view(campaign, firmware).await
    }

    /// Campaigns, newest first.
    pub async fn campaigns(
        &self,
        filter: &CampaignFilter,
        page: Page,
    ) -> Result<Vec<CampaignView>> {
        let (mut views, mut images) = (Vec::new(), HashMap::new());
        for campaign in self.store.campaigns(filter, page).await? {
            let firmware = match images.get(campaign.firmware()) {
                Some(known) => Firmware::clone(known),
                None => self.firmware(campaign.firmware()).await?,
            };
            images.insert(firmware.id.clone(), firmware.clone());
            views.push(self.view(campaign, firmware).await?);
        }
        Ok(views)
    }

    /// Whom it names.
    pub async fn named(&self, campaign: &Campaign) -> Result<Named> {
        Ok(self.store.named(campaign).await?)
    }

    async fn view(&self, campaign: Campaign, firmware: Firmware) -> Result<CampaignView> {
        let counts = self.counts(&campaign).await?;
        let waits = planner::plan(self.clock.now(), &campaign, &counts).waits;
        Ok(CampaignView {
            campaign,
            counts,
            firmware,
            waits,
        })
    }

    /// Starts it: one pending update for each device it means. 409 without the approval that it asks for, when its image is
    /// out of use, and when it means no device.
    pub async fn start_campaign(&self, id: &CampaignId, by: &Caller) -> Result<CampaignView> {
        let now = self.clock.now();
        // Read before the transaction, which would else hold one connection and wait for another.
        let known = self.campaign(id).await?;
        self.check_bytes(&known.firmware).await?;
        let known = known.campaign;
        let mut tx = self.store.begin().await?;
        // Before the campaign: in the order in which whoever takes an image out of use locks both.
        let firmware = held(tx.as_mut(), known.firmware()).await?;
        let (campaign, before) = locked(tx.as_mut(), id).await?;
        let mut campaign = campaign.start(now)?;
        if *campaign.firmware() != firmware.id {
            let detail = format!(
                "campaign {id} was given another firmware in this very moment; look at it, then start it again"
            );
            return Err(Error::conflict("changed_meanwhile", detail));
        }
        campaign.target_count = made_for_somebody(tx.as_mut(), &campaign, &firmware, now).await?;
        self.settle(tx, before, campaign, EventType::CampaignStarted, now, by)
            .await
    }

    /// Stops new offers; what is in flight may end.
    pub async fn pause_campaign(&self, id: &CampaignId, by: &Caller) -> Result<CampaignView> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let (mut campaign, before) = locked(tx.as_mut(), id).await?;
        campaign.state = campaign.state.pause(now, format!("by {}", by.subject()))?;
        self.settle(tx, before, campaign, EventType::CampaignPaused, now, by)
            .await
    }

    /// Goes on where it paused, and accepts the results so far (see [`CampaignState::resume`]).
    pub async fn resume_campaign(&self, id: &CampaignId, by: &Caller) -> Result<CampaignView> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let (mut campaign, before) = locked(tx.as_mut(), id).await?;
        campaign.state = planner::resume(now, &campaign, &tx.counts(id).await?)?;
        self.settle(tx, before, campaign, EventType::CampaignResumed, now, by)
            .await
    }

    /// Stops for good, forward or on the way back: what waits is cancelled now, what is in flight is asked to stop where
    /// it still can.
    pub async fn cancel_campaign(&self, id: &CampaignId, by: &Caller) -> Result<CampaignView> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let (campaign, _) = locked(tx.as_mut(), id).await?;
        cancel(tx.as_mut(), campaign, now, by).await?;
        self.commit(tx).await?;
        self.wake();
        self.campaign(id).await
    }

    /// Takes back what completed (PRD, E4-US3), under the campaign's own limits.
    pub async fn roll_back_campaign(
        &self,
        id: &CampaignId,
        reason: &str,
        by: &Caller,
    ) -> Result<CampaignView> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let (mut campaign, before) = locked(tx.as_mut(), id).await?;
        if matches!(campaign.state, CampaignState::Cancelled { .. }) {
            if tx.counts(id).await?.rollbacks.open() > 0 {
                return Err(Error::conflict(
                    "still_stopping",
                    "rollbacks of this campaign were asked to stop and have not yet; try again later",
                ));
            }
            tx.revive_rollbacks(id, now, self.rollbacks_end_by(now))
                .await?;
        }
        campaign.state = campaign
            .state
            .roll_back(now, RollbackTrigger::Manual, reason)?;
        self.settle(
            tx,
            before,
            campaign,
            EventType::CampaignRollingBack,
            now,
            by,
        )
        .await
    }

    async fn settle(
        &self,
        mut tx: Box<dyn Tx>,
        before: Value,
        campaign: Campaign,
        event_type: EventType,
        now: Timestamp,
        by: &Caller,
    ) -> Result<CampaignView> {
        let id = campaign.id.clone();
        put(tx.as_mut(), before, campaign, event_type, now, by).await?;
        self.commit(tx).await?;
        self.wake();
        self.campaign(&id).await
    }
}

/// Makes the updates of a campaign that starts; 409 when there is nobody to make one for: it would be over at once.
async fn made_for_somebody(
    tx: &mut dyn Tx,
    campaign: &Campaign,
    firmware: &Firmware,
    now: Timestamp,
) -> Result<u64> {
    let made = tx.make_updates(campaign, firmware, now).await?;
    // A continuous one waits for whoever comes.
    if made > 0 || campaign.spec.continuous {
        return Ok(made);
    }
    let left_out = campaign.spec.targets.left_out.iter();
    let left_out: Vec<_> = left_out
        .map(|(reason, devices)| format!("{devices} {}", reason.name()))
        .collect();
    let detail = if left_out.is_empty() {
        "the campaign means no device; register devices of its image's model, or change its targets"
            .to_owned()
    } else {
        format!(
            "the campaign means no device that it could update; left out when it was written: {}. A dry run says who, and why",
            left_out.join(", ")
        )
    };
    Err(Error::conflict("no_devices", detail))
}

/// Ends a campaign for good, within a transaction: what waits is cancelled with it.
pub(crate) async fn cancel(
    tx: &mut dyn Tx,
    mut campaign: Campaign,
    now: Timestamp,
    by: &Caller,
) -> Result<()> {
    let before = facts::campaign(&campaign);
    campaign.state = campaign.state.cancel(now)?;
    for action in UpdateAction::ALL {
        tx.cancel_pending(&campaign.id, action, now).await?;
    }
    put(tx, before, campaign, EventType::CampaignCancelled, now, by).await
}

/// Writes a campaign that an admin has changed, and tells of it.
async fn put(
    tx: &mut dyn Tx,
    before: Value,
    campaign: Campaign,
    event_type: EventType,
    now: Timestamp,
    by: &Caller,
) -> Result<()> {
    let campaign = Campaign {
        updated_at: now,
        ..campaign
    };
    tx.save_campaign(&campaign).await?;
    tell(tx, event_type, Some(before), &campaign, now, by).await?;
    tracing::info!(campaign.id = %campaign.id, campaign.status = campaign.state.status(), by = by.subject(), event_type = event_type.name());
    Ok(())
}

/// Tells of a change of a campaign: to those who listen, and to the record.
pub(crate) async fn tell(
    tx: &mut dyn Tx,
    event_type: EventType,
    before: Option<Value>,
    campaign: &Campaign,
    now: Timestamp,
    by: &Caller,
) -> std::result::Result<(), StoreError> {
    let nobody = Named::default();
    tell_naming(tx, event_type, before, (campaign, &nobody), now, by).await
}

/// The same, and whom the campaign names by now: the record of a change that leaves that as it was goes without.
async fn tell_naming(
    tx: &mut dyn Tx,
    event_type: EventType,
    before: Option<Value>,
    (campaign, named): (&Campaign, &Named),
    now: Timestamp,
    by: &Caller,
) -> std::result::Result<(), StoreError> {
    let event = Event::of_campaign(event_type, campaign, by.subject(), now);
    tx.append_events(&[event]).await?;
    match Act::of_campaign(event_type) {
        Some(act) => record(tx, act, before, (campaign, named), now, by).await,
        None => Ok(()),
    }
}

/// Writes what was done to a campaign into the record.
async fn record(
    tx: &mut dyn Tx,
    act: Act,
    before: Option<Value>,
    (campaign, named): (&Campaign, &Named),
    now: Timestamp,
    by: &Caller,
) -> std::result::Result<(), StoreError> {
    let mut after = match &before {
        Some(_) => facts::saved_campaign(campaign),
        None => facts::campaign(campaign),
    };
    facts::naming(&mut after, named);
    let states = (before, Some(after));
    tx.append_audit(by.did(act, now, &campaign.id, states))
        .await
}

/// The campaign to change, and how it was before; a deleted one does not change any more.
async fn locked(tx: &mut dyn Tx, id: &CampaignId) -> Result<(Campaign, Value)> {
    let campaign = changeable(tx.campaign(id).await?, id)?;
    let before = facts::campaign(&campaign);
    Ok((campaign, before))
}

/// The campaign that was found: 404 when there is none, 409 when it was deleted.
fn changeable(found: Option<Campaign>, id: &CampaignId) -> Result<Campaign> {
    let campaign = found.ok_or_else(|| Error::not_found("campaign", &id))?;
    if campaign.deleted_at.is_some() {
        let detail = format!("campaign {id} was deleted; it can be read, and not be changed");
        return Err(Error::conflict("deleted", detail));
    }
    Ok(campaign)
}

/// The state that a planner's decision leads to, and its events. `None` for actions that change no state.
pub(crate) fn decided(
    campaign: &Campaign,
    counts: &Counts,
    action: &Action,
    now: Timestamp,
) -> std::result::Result<
    Option<(CampaignState, &'static [EventType])>,
    device_ota_domain::campaign::TransitionError,
> {
    let state = campaign.state.clone();
    Ok(match action {
        Action::OpenStage(next) => Some((
            planner::opened(now, campaign, counts, *next)?,
            &[EventType::CampaignStageOpened],
        )),
        Action::BeginSoak => Some((state.soak(Some(now))?, &[])),
        Action::EndSoak => Some((state.soak(None)?, &[])),
        Action::RollBack { reason } => {
            let again = matches!(state, CampaignState::RolledBack { .. });
            let next = state.roll_back(now, planner::AUTOMATIC, reason)?;
            // It has failed once, however often a device that completed late has to be taken back as well.
            let events: &[EventType] = if again {
                &[EventType::CampaignRollingBack]
            } else {
                &[EventType::CampaignFailed, EventType::CampaignRollingBack]
            };
            Some((next, events))
        }
        Action::Pause { reason } => Some((state.pause(now, reason)?, &[EventType::CampaignPaused])),
        Action::Cancel => Some((state.cancel(now)?, &[EventType::CampaignCancelled])),
        Action::Abort { reason } => {
            let next = state.abort(now, reason)?;
            Some((
                next,
                &[EventType::CampaignFailed, EventType::CampaignCancelled],
            ))
        }
        Action::Finish => {
            let next = state.finish(now)?;
            let events: &[EventType] = if matches!(next, CampaignState::Completed { .. }) {
                &[EventType::CampaignCompleted]
            } else {
                &[EventType::CampaignRolledBack]
            };
            Some((next, events))
        }
        Action::Claim { .. }
        | Action::CancelPending(_)
        | Action::CancelInFlight(_)
        | Action::BeginTime(_)
        | Action::MakeRollbacks => None,
    })
}
