//! Why a device has, or has not, been offered what a campaign has for it.

use device_ota_domain::campaign::Named;
use device_ota_domain::page::Page;
use device_ota_domain::why::{Case, Why, explain};
use device_ota_domain::{CampaignId, DeviceId};

use crate::ports::store::UpdateFilter;
use crate::precedence::Others;
use crate::{Engine, Error, Result};

/// Updates and rollbacks of one device by one campaign; more than two there never are.
const OF_ONE_DEVICE: Page = Page {
    limit: 10,
    offset: 0,
};

impl Engine {
    /// Every reason, the most decisive first. 404 for a device that is neither registered nor named by the campaign, and of
    /// which it has no update.
    pub async fn why_of_campaign(&self, id: &CampaignId, device: &DeviceId) -> Result<Vec<Why>> {
        let view = self.campaign(id).await?;
        let found = self.store.device(device).await?;
        let filter = UpdateFilter {
            campaign: Some(id.clone()),
            device: Some(device.clone()),
            ..UpdateFilter::default()
        };
        let updates = self.store.updates(&filter, OF_ONE_DEVICE).await?;
        // Who has an update was meant.
        let named = if updates.is_empty() || found.is_none() {
            self.named(&view.campaign).await?
        } else {
            Named::default()
        };
        if found.is_none() && updates.is_empty() && !named.targets.contains(device) {
            return Err(Error::not_found("device", &device));
        }
        let others = match &found {
            Some(device) => self.others(&[device.key]).await?,
            None => Others::default(),
        };
        let now = self.clock.now();
        let waits = updates.iter().find(|update| update.owed().is_some());
        let busy_with = found.as_ref().zip(waits);
        let busy_with = busy_with.and_then(|(device, update)| others.first(update, device, now));
        let lines = self.lines(Some(&view.campaign), now).await?;
        let lines_free_at = found
            .as_ref()
            .and_then(|device| self.free_for(&lines, Some(&view.campaign), device, now));
        Ok(explain(&Case {
            now,
            campaign: &view.campaign,
            named: &named,
            image: &view.firmware.metadata,
            waits: &view.waits,
            device: found.as_ref(),
            updates: &updates,
            busy_with,
            lines_free_at,
        }))
    }
}
