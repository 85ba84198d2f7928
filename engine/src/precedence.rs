//! Which of several updates gets a device that all of them want (`Update::goes_before`): the others wait, and say so.
//!
//! An update that nothing but its pace holds back keeps its device for itself. What waits for anything else (a gate, an admin, a
//! window, a schedule, the device) keeps nobody from it: there is no end to how long that may take.

use std::collections::HashMap;

use device_ota_domain::campaign::{Campaign, Requires};
use device_ota_domain::device::{Device, DeviceKey};
use device_ota_domain::update::{Action, Owed};
use device_ota_domain::why::keeps_device;
use device_ota_domain::{CampaignId, FirmwareId, Update, planner};
use jiff::Timestamp;

use crate::offers::firmware_requires;
use crate::ports::store::{Ahead, Prior, Rivals};
use crate::{Engine, Result};

/// What goes before updates of a campaign, or outside of any.
pub(crate) fn ahead(now: Timestamp, campaign: Option<&Campaign>, rivals: Rivals) -> Ahead {
    let priority = campaign.map(|campaign| campaign.spec.priority);
    let priors = rivals.campaigns.into_iter().filter_map(|rival| {
        let wants = planner::wants(now, &rival)?;
        let forward = wants.action == Action::Update;
        Some(Prior {
            by_age: forward && Some(rival.spec.priority) == priority,
            campaign: rival.id,
            wants,
            requires: rival.spec.requires,
        })
    });
    Ahead {
        campaigns: priors.collect(),
        singles: rivals.singles,
    }
}

/// What some devices are given to and what waits for them, with all that decides which of it comes first.
#[derive(Default)]
pub(crate) struct Others {
    updates: HashMap<DeviceKey, Vec<Update>>,
    campaigns: HashMap<CampaignId, Campaign>,
    /// What images of updates outside of campaigns ask for.
    images: HashMap<FirmwareId, Requires>,
}

impl Engine {
    /// Reads it.
    pub(crate) async fn others(&self, devices: &[DeviceKey]) -> Result<Others> {
        let mut others = Others::default();
        let mut found = self.store.busy_with(devices).await?;
        found.extend(self.store.waiting(devices).await?);
        for update in found {
            match (&update.campaign, &update.firmware) {
                (Some(id), _) if !others.campaigns.contains_key(id) => {
                    let campaign = self.store.campaign(id).await?;
                    others.campaigns.extend(campaign.map(|c| (id.clone(), c)));
                }
                // Read anew, as whoever claims it does: an admin may have changed it.
                (None, Some(id)) if !others.images.contains_key(id) => {
                    let image = self.store.firmware(id).await?;
                    let asks = image.map(|image| (id.clone(), firmware_requires(&image)));
                    others.images.extend(asks);
                }
                _ => {}
            }
            let of_device = others.updates.entry(update.device);
            of_device.or_default().push(update);
        }
        Ok(others)
    }
}

impl Others {
    /// The update that the device of this one is given to, or else kept for.
    pub(crate) fn first(
        &self,
        update: &Update,
        device: &Device,
        now: Timestamp,
    ) -> Option<&Update> {
        let others = self.updates.get(&update.device)?.iter();
        let mut others = others.filter(|other| other.id != update.id);
        others.find(|other| match other.owed() {
            Some(Owed::Offer(_)) => {
                update.action == Action::Update
                    && other.goes_before(update)
                    && self.keeps(other, device, now)
            }
            Some(Owed::Activation) | None => !other.gives_way_to(update),
        })
    }

    fn keeps(&self, update: &Update, device: &Device, now: Timestamp) -> bool {
        let campaign = update.campaign.as_ref().map(|id| self.campaigns.get(id));
        let requires = match campaign {
            // It is gone since its update was read.
            Some(None) => return false,
            Some(Some(campaign)) => campaign.spec.requires,
            None => self.requires(update),
        };
        keeps_device(update, campaign.flatten(), requires, device, now)
    }

    /// What the image of an update outside of campaigns asks of a device.
    pub(crate) fn requires(&self, update: &Update) -> Requires {
        let image = update.firmware.as_ref();
        let asks = image.and_then(|id| self.images.get(id)).copied();
        asks.unwrap_or_default()
    }
}
