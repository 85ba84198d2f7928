//! Why updates that wait have not been offered: what their campaigns, their devices and the devices' other updates say,
//! read once for a whole page of them.

use std::collections::{HashMap, HashSet};

use device_ota_domain::campaign::Group;
use device_ota_domain::device::{Device, DeviceKey};
use device_ota_domain::page::Page;
use device_ota_domain::planner::{self, Action, Plan};
use device_ota_domain::update::UpdateState;
use device_ota_domain::why::{self, Why};
use device_ota_domain::{Campaign, CampaignId, DeviceId, Update};
use jiff::Timestamp;

use crate::ports::store::UpdateFilter;
use crate::updates::UpdateView;
use crate::{Engine, Result};

/// As many of the newest updates that wait as a device that asks is told of.
const NEWEST: Page = Page {
    limit: 8,
    offset: 0,
};

/// What a device that asked is told.
pub(crate) enum Prospect {
    /// An offer is on its way, or nothing holds it back: it follows.
    Offer,
    /// Nothing for now, and why.
    Nothing(String),
}

/// What updates that wait may wait for.
#[derive(Default)]
struct Surroundings {
    campaigns: HashMap<CampaignId, Campaign>,
    devices: HashMap<DeviceKey, Device>,
    in_flight: HashMap<DeviceKey, Update>,
    plans: HashMap<CampaignId, Plan>,
}

impl Engine {
    /// What to tell a device that runs `version`, asked, and had nothing in flight when it did.
    pub(crate) async fn prospect(
        &self,
        key: DeviceKey,
        device: &DeviceId,
        version: &str,
    ) -> Result<Prospect> {
        let live = self.store.in_flight(key).await?;
        if live.is_some_and(|update| update.to_version != version) {
            return Ok(Prospect::Offer); // the dispatcher was faster than this answer
        }
        let filter = UpdateFilter {
            device: Some(device.clone()),
            group: Some(Group::Pending),
            ..UpdateFilter::default()
        };
        let waiting = self.store.updates(&filter, NEWEST).await?;
        let views = self.explained(waiting).await?;
        if views.iter().any(|view| view.why == Some(Why::Turn)) {
            return Ok(Prospect::Offer);
        }
        let why = views.into_iter().next().and_then(|view| view.why);
        Ok(Prospect::Nothing(why.map_or_else(
            || "there is nothing for this device".to_owned(),
            |why| why.to_string(),
        )))
    }

    /// Updates, each with the last reason why it waits if it does.
    pub(crate) async fn explained(&self, updates: Vec<Update>) -> Result<Vec<UpdateView>> {
        let around = self.surroundings(&updates).await?;
        let mut views = Vec::with_capacity(updates.len());
        for update in updates {
            let why = match update.state {
                UpdateState::Pending { due_at, .. } => self.why(&around, &update, due_at).await?,
                _ => None,
            };
            views.push(UpdateView { update, why });
        }
        Ok(views)
    }

    /// Devices are read only of updates that their campaigns do not hold back.
    async fn surroundings(&self, updates: &[Update]) -> Result<Surroundings> {
        let mut around = Surroundings::default();
        let waiting = || updates.iter().filter(|u| u.group() == Group::Pending);
        let ids: HashSet<_> = waiting().filter_map(|u| u.campaign.as_ref()).collect();
        for id in ids {
            if let Some(campaign) = self.store.campaign(id).await? {
                let counts = self.store.counts(id).await?;
                let plan = planner::plan(self.clock.now(), &campaign, &counts);
                around.plans.insert(id.clone(), plan);
                around.campaigns.insert(id.clone(), campaign);
            }
        }
        let now = self.clock.now();
        let free = waiting().filter(|u| around.held_by_campaign(u, now).is_none());
        let keys: HashSet<_> = free.map(|u| u.device).collect();
        let keys: Vec<_> = keys.into_iter().collect();
        if keys.is_empty() {
            return Ok(around);
        }
        let devices = self.store.devices_by_key(&keys).await?;
        around.devices = devices.into_iter().map(|d| (d.key, d)).collect();
        let live = self.store.in_flight_of(&keys).await?;
        around.in_flight = live.into_iter().map(|u| (u.device, u)).collect();
        Ok(around)
    }

    async fn why(
        &self,
        around: &Surroundings,
        update: &Update,
        due_at: Timestamp,
    ) -> Result<Option<Why>> {
        if let Some(why) = around.held_by_campaign(update, self.clock.now()) {
            return Ok(Some(why));
        }
        let Some(device) = around.devices.get(&update.device) else {
            return Ok(None);
        };
        let campaign = around.campaign(update);
        if let Some(why) = self.held_by_device(device, campaign, update).await? {
            return Ok(Some(why));
        }
        Ok(Some(match around.in_flight.get(&update.device) {
            Some(other) if other.id != update.id => Why::OtherUpdate {
                update: other.id.clone(),
                campaign: other.campaign.clone(),
            },
            _ if due_at > self.clock.now() => Why::BackOff { until: due_at },
            _ if around.is_full(update) => Why::NoSlot,
            _ => Why::Turn,
        }))
    }

    async fn held_by_device(
        &self,
        device: &Device,
        campaign: Option<&Campaign>,
        update: &Update,
    ) -> Result<Option<Why>> {
        let firmware = match &update.firmware {
            Some(id) => self.cached_firmware(id).await?,
            None => None,
        };
        let requires = match (campaign, &firmware) {
            (Some(campaign), _) => campaign.spec.requires,
            (None, Some(firmware)) => crate::offers::firmware_requires(firmware),
            (None, None) => return Ok(None),
        };
        Ok(why::held_by_device(device, requires).into_iter().next())
    }
}

impl Surroundings {
    fn campaign(&self, update: &Update) -> Option<&Campaign> {
        self.campaigns.get(update.campaign.as_ref()?)
    }

    /// Whether the update's campaign has no slot for it.
    fn is_full(&self, update: &Update) -> bool {
        let plan = update.campaign.as_ref().and_then(|id| self.plans.get(id));
        plan.is_some_and(|plan| {
            let claims = |action: &Action| matches!(action, Action::Claim { .. });
            plan.waits.contains(&Why::NoSlot) && !plan.actions.iter().any(claims)
        })
    }

    fn held_by_campaign(&self, update: &Update, now: Timestamp) -> Option<Why> {
        why::held_by_campaign(self.campaign(update)?, update, now)
    }
}
