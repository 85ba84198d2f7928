//! Maintenance windows, of what devices were told within them: what nobody has taken up when they close waits for the next.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use device_ota_domain::campaign::{CampaignSpec, TIME_ZONE_TAG};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::{Update, UpdateId};
use jiff::Timestamp;

use crate::Engine;
use crate::changes::Changes;
use crate::ports::StoreError;

impl Engine {
    /// Takes back, of these updates, what was offered or to be activated, was not taken up, and whose window is closed. Answers which
    /// are not to be said again.
    pub(crate) async fn withhold(
        &self,
        updates: &[Update],
    ) -> Result<HashSet<UpdateId>, StoreError> {
        let now = self.clock.now();
        let windowed = self.windowed(updates).await?;
        if windowed.is_empty() {
            return Ok(HashSet::new());
        }
        let zones = self
            .time_zones(windowed.iter().map(|(update, _)| *update))
            .await?;
        let is_closed = |(update, spec): &&(&Update, Arc<CampaignSpec>)| {
            let zone = zones.get(&update.device).map(String::as_str);
            spec.windows.at(now, zone).is_err()
        };
        let closed: Vec<UpdateId> = windowed
            .iter()
            .filter(is_closed)
            .map(|(update, _)| update.id.clone())
            .collect();
        if closed.is_empty() {
            return Ok(HashSet::new());
        }
        let mut tx = self.store.begin().await?;
        let mut changes = Changes::default();
        for update in tx.updates(&closed).await? {
            let before = update.standing();
            if let Some(update) = update.withhold(now) {
                changes.record(&before, update, now);
            }
        }
        changes.write(tx.as_mut()).await?;
        self.commit(tx).await?;
        self.wake();
        Ok(closed.into_iter().collect())
    }

    /// When the device of this update is told nothing any more; `None`: at any time, or its window is closed.
    pub(crate) async fn told_until(
        &self,
        update: &Update,
    ) -> Result<Option<Timestamp>, StoreError> {
        let windowed = self.windowed(std::slice::from_ref(update)).await?;
        let Some((_, spec)) = windowed.first() else {
            return Ok(None);
        };
        let zones = self.time_zones([update]).await?;
        let zone = zones.get(&update.device).map(String::as_str);
        Ok(spec.windows.closes(self.clock.now(), zone))
    }

    /// Those of these updates that are not taken up, of campaigns with windows.
    async fn windowed<'u>(
        &self,
        updates: &'u [Update],
    ) -> Result<Vec<(&'u Update, Arc<CampaignSpec>)>, StoreError> {
        let mut windowed = Vec::new();
        for update in updates.iter().filter(|update| update.is_untaken()) {
            if let Some(id) = &update.campaign
                && let Some(spec) = self.cached_spec(id).await?
                && !spec.windows.0.is_empty()
            {
                windowed.push((update, spec));
            }
        }
        Ok(windowed)
    }

    /// What the tags of their devices say of time zones.
    async fn time_zones(
        &self,
        updates: impl IntoIterator<Item = &Update>,
    ) -> Result<HashMap<DeviceKey, String>, StoreError> {
        let devices: Vec<DeviceKey> = updates.into_iter().map(|update| update.device).collect();
        let found = self.store.devices_by_key(&devices).await?;
        let tagged = found.into_iter().filter_map(|mut device| {
            let zone = device.registration.tags.remove(TIME_ZONE_TAG)?;
            Some((device.key, zone))
        });
        Ok(tagged.collect())
    }
}
