//! Bandwidth: offers go out no faster than the lines carry the images that they bring about.
//!
//! How far each line is taken is in the database, so that a restart makes up for nothing and replicas share the lines.

use std::collections::HashMap;

use device_ota_domain::Campaign;
use device_ota_domain::bandwidth::{Line, Lines};
use device_ota_domain::device::{Device, DeviceKey};
use device_ota_domain::update::{Action, Owed, Update};
use jiff::Timestamp;

use crate::Engine;
use crate::ports::StoreError;
use crate::ports::store::{Claimable, Tx};

type Result<T> = std::result::Result<T, StoreError>;

impl Engine {
    /// Whether any line has a budget that offers of this campaign, or of devices alone, go over.
    pub(crate) fn has_budgets(&self, campaign: Option<&Campaign>) -> bool {
        let budgets = &self.settings.budgets;
        budgets.are_by_device() || !budgets.of_all(campaign).is_empty()
    }

    /// How far the lines are taken; not asked where no offer of the campaign goes over any.
    pub(crate) async fn lines(&self, campaign: Option<&Campaign>, now: Timestamp) -> Result<Lines> {
        if self.has_budgets(campaign) {
            let lines = self.store.lines(now).await?;
            Ok(lines.believed(now, &self.settings.budgets, campaign))
        } else {
            Ok(Lines::default())
        }
    }

    /// The same, kept until the transaction ends: nobody else takes them meanwhile.
    pub(crate) async fn hold_lines(
        &self,
        tx: &mut dyn Tx,
        campaign: Option<&Campaign>,
        now: Timestamp,
    ) -> Result<Lines> {
        if self.has_budgets(campaign) {
            let lines = tx.hold_lines(now).await?;
            Ok(lines.believed(now, &self.settings.budgets, campaign))
        } else {
            Ok(Lines::default())
        }
    }

    /// When the lines that all offers of a campaign go over carry the next one; `None`: now.
    pub(crate) fn free_at(
        &self,
        lines: &Lines,
        campaign: Option<&Campaign>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        lines.free_at(now, &self.settings.budgets.of_all(campaign))
    }

    /// The same of one device.
    pub(crate) fn free_for(
        &self,
        lines: &Lines,
        campaign: Option<&Campaign>,
        device: &Device,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let said = &device.registration;
        let mut over = self.settings.budgets.of_all(campaign);
        over.extend(self.settings.budgets.of_device(&said.groups, &said.tags));
        lines.free_at(now, &over)
    }

    /// Of what may be offered, what the lines carry: taken of them. What is activated, or taken back, takes nothing.
    pub(crate) async fn carried(
        &self,
        tx: &mut dyn Tx,
        campaign: Option<&Campaign>,
        lines: &mut Lines,
        mut found: Vec<Claimable>,
        now: Timestamp,
    ) -> Result<Vec<Claimable>> {
        if found.is_empty() || !self.has_budgets(campaign) {
            return Ok(found);
        }
        let budgets = &self.settings.budgets;
        let of_all = budgets.of_all(campaign);
        let mut of_device: HashMap<DeviceKey, Vec<(Line, u64)>> = HashMap::new();
        if budgets.are_by_device() {
            let keys: Vec<DeviceKey> = found.iter().map(|found| found.update.device).collect();
            for labels in tx.labels(&keys).await? {
                let over = budgets.of_device(&labels.groups, &labels.tags);
                of_device.insert(labels.device, over);
            }
        }
        found.retain(|found| {
            let update = &found.update;
            let own = of_device.get(&update.device).into_iter().flatten();
            let over: Vec<_> = of_all.iter().chain(own).cloned().collect();
            !is_download(update) || lines.take(now, update.progress.bytes_total, &over)
        });
        tx.take_lines(lines, now).await?;
        Ok(found)
    }
}

/// Its offer makes its device download the image. One that goes back mostly has it still, and does not wait in any case.
fn is_download(update: &Update) -> bool {
    update.action == Action::Update && matches!(update.owed(), Some(Owed::Offer(_)))
}
