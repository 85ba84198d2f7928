//! Why updates that wait have not been offered: what their campaigns, their devices and the devices' other updates say,
//! read once for a whole page of them.

use std::collections::{HashMap, HashSet};

use device_ota_domain::bandwidth::Lines;
use device_ota_domain::campaign::{Group, Requires};
use device_ota_domain::device::{Device, DeviceKey};
use device_ota_domain::planner::{self, Action, Plan};
use device_ota_domain::update::Owed;
use device_ota_domain::why::{self, Why};
use device_ota_domain::{Campaign, CampaignId, Update, UpdateId};
use jiff::Timestamp;

use crate::precedence::Others;
use crate::updates::UpdateView;
use crate::{Engine, Result};

/// As many of its updates as a device that asks is told of: what is in flight, and the newest that wait.
const NEWEST: u32 = 9;

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
    others: Others,
    plans: HashMap<CampaignId, Plan>,
    /// All slots of the whole service are taken.
    is_full: bool,
    /// How far the lines are taken over which images go.
    lines: Lines,
}

impl Engine {
    /// What to tell a device that runs `version`, asked, and had nothing in flight when it did. One read where there is
    /// nothing for it.
    pub(crate) async fn prospect(&self, key: DeviceKey, version: &str) -> Result<Prospect> {
        let mut open = self.store.newest_open(key, NEWEST).await?;
        open.retain(|update| update.campaign.is_some() || !update.is_done_without_us(version));
        let open = open.into_iter();
        let (live, waiting): (Vec<_>, Vec<_>) = open.partition(|u| u.group() == Group::InFlight);
        if live.iter().any(|update| update.to_version != version) {
            return Ok(Prospect::Offer); // the dispatcher was faster than this answer
        }
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
            let why = match update.owed() {
                Some(owed) => self.why(&around, &update, owed),
                None => None,
            };
            views.push(UpdateView { update, why });
        }
        Ok(views)
    }

    /// Those of these updates, which wait, that would not be under way though their devices are there and fit: what they wait for is
    /// their campaigns, a window, the service, or an offer that is about to go out. Who has put it off, or failed before, is waited for.
    pub(crate) async fn kept_from_offers(&self, updates: &[Update]) -> Result<HashSet<UpdateId>> {
        let around = self.surroundings(updates).await?;
        let now = self.clock.now();
        let kept = updates.iter().filter(|update| {
            if around.held_by_campaign(update, now).is_some() {
                return true;
            }
            let Some(device) = around.devices.get(&update.device) else {
                return around.pace(update).is_some();
            };
            let campaign = around.campaign(update);
            let closed = campaign.and_then(|c| why::held_by_window(c, update, device, now));
            let is_fit = why::held_by_device(device, around.requires(update)).is_empty();
            let backs_off = matches!(update.owed(), Some(Owed::Offer(due_at)) if due_at > now);
            closed.is_some() || !backs_off && (is_fit || around.pace(update).is_some())
        });
        Ok(kept.map(|update| update.id.clone()).collect())
    }

    /// Devices are read only of updates that their campaigns do not hold back.
    async fn surroundings(&self, updates: &[Update]) -> Result<Surroundings> {
        let mut around = Surroundings::default();
        let waiting = || updates.iter().filter(|u| u.owed().is_some());
        let ids: HashSet<_> = waiting().filter_map(|u| u.campaign.as_ref()).collect();
        for id in ids {
            if let Some(campaign) = self.store.campaign(id).await? {
                let counts = self.counts(&campaign).await?;
                let plan = planner::plan(self.clock.now(), &campaign, &counts);
                around.plans.insert(id.clone(), plan);
                around.campaigns.insert(id.clone(), campaign);
            }
        }
        let now = self.clock.now();
        let free = waiting().filter(|u| around.held_by_campaign(u, now).is_none());
        let free: Vec<_> = free.collect();
        let keys: HashSet<_> = free.iter().map(|u| u.device).collect();
        let keys: Vec<_> = keys.into_iter().collect();
        if keys.is_empty() {
            return Ok(around);
        }
        around.is_full = self.room().await? == Some(0);
        let mut campaigns = around.campaigns.values();
        if self.has_budgets(None) || campaigns.any(|campaign| self.has_budgets(Some(campaign))) {
            around.lines = self.store.lines(now).await?;
        }
        let devices = self.store.devices_by_key(&keys).await?;
        around.devices = devices.into_iter().map(|d| (d.key, d)).collect();
        around.others = self.others(&keys).await?;
        Ok(around)
    }

    fn why(&self, around: &Surroundings, update: &Update, owed: Owed) -> Option<Why> {
        let now = self.clock.now();
        if let Some(why) = around.held_by_campaign(update, now) {
            return Some(why);
        }
        let device = around.devices.get(&update.device)?;
        let campaign = around.campaign(update);
        let closed = campaign.and_then(|c| why::held_by_window(c, update, device, now));
        if closed.is_some() {
            return closed;
        }
        let held = why::held_by_device(device, around.requires(update));
        if let Some(why) = held.into_iter().next() {
            return Some(why);
        }
        Some(match (around.others.first(update, device, now), owed) {
            (Some(other), _) => Why::OtherUpdate {
                update: other.id.clone(),
                campaign: other.campaign.clone(),
            },
            (_, Owed::Offer(until)) if until > now => Why::BackOff { until },
            _ => {
                let next = self.free_for(&around.lines, campaign, device, now);
                let busy = next.map(|next| Why::Bandwidth { next });
                let busy = busy.filter(|why| why.is_of_pace_for(update));
                around.pace(update).or(busy).unwrap_or(Why::Turn)
            }
        })
    }
}

impl Surroundings {
    fn campaign(&self, update: &Update) -> Option<&Campaign> {
        self.campaigns.get(update.campaign.as_ref()?)
    }

    /// What the update's campaign asks of a device, or outside of campaigns its image.
    fn requires(&self, update: &Update) -> Requires {
        match self.campaign(update) {
            Some(campaign) => campaign.spec.requires,
            None => self.others.requires(update),
        }
    }

    /// Why the update's campaign, or the service, goes no faster.
    fn pace(&self, update: &Update) -> Option<Why> {
        let Some(campaign) = &update.campaign else {
            return self.is_full.then_some(Why::NoRoom);
        };
        let plan = self.plans.get(campaign)?;
        let claims = |action: &Action| matches!(action, Action::Claim { what, .. } if what.offers);
        let claims = plan.actions.iter().any(claims);
        let mut waits = plan.waits.iter().filter(|_| !claims);
        waits.find(|why| why.is_of_pace_for(update)).cloned()
    }

    fn held_by_campaign(&self, update: &Update, now: Timestamp) -> Option<Why> {
        why::held_by_campaign(self.campaign(update)?, update, now)
    }
}
