//! Devices that are watched after their update (ADR 16), as far as this process knows: what to look for in what they say, so that
//! the database is asked about those alone that seem to have regressed.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use device_ota_domain::campaign::Group;
use device_ota_domain::device::DeviceKey;
use device_ota_domain::update::WatchTerms;
use device_ota_domain::{CampaignId, Update};
use device_ota_protocol::messages::{CheckReason, Report};

use crate::Engine;
use crate::inbound::{Inbound, Uplink};
use crate::ports::StoreError;
use crate::ports::store::Tx;

/// Campaigns whose terms are kept; beyond, all are read anew.
const MAX_CAMPAIGNS: usize = 1_000;

/// Devices that are watched, and the version that each has to show. A hint only: what it does not know is seen at a boot, or at
/// the end of the watch.
#[derive(Default)]
pub(crate) struct Watched {
    /// Of the version, the hash: a fleet of them is held for an hour.
    devices: Mutex<HashMap<DeviceKey, u64>>,
    hasher: std::hash::RandomState,
    /// The terms of each stage of a campaign; its spec does not change any more.
    terms: Mutex<HashMap<CampaignId, Vec<WatchTerms>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    pub(super) fn is_empty(&self) -> bool {
        locked(&self.devices).is_empty()
    }

    /// All devices that are watched.
    pub(crate) fn known(&self) -> HashSet<DeviceKey> {
        locked(&self.devices).keys().copied().collect()
    }

    /// Takes up what the database knows, in place of what was `known` before it was asked.
    pub(crate) fn renew(&self, known: &HashSet<DeviceKey>, devices: Vec<(DeviceKey, String)>) {
        let read = devices.into_iter();
        let read = read.map(|(device, version)| (device, self.hasher.hash_one(version.as_str())));
        let mut present = locked(&self.devices);
        present.retain(|device, _| !known.contains(device));
        present.extend(read);
    }

    /// Of these, each with the version that it shows, those that are watched and show another one.
    pub(super) fn strange<'m>(
        &self,
        shown: impl Iterator<Item = (DeviceKey, &'m str)>,
    ) -> Vec<DeviceKey> {
        let known = locked(&self.devices);
        if known.is_empty() {
            return Vec::new();
        }
        let strange = shown.filter(|(device, version)| {
            let due = known.get(device);
            due.is_some_and(|due| *due != self.hasher.hash_one(*version))
        });
        strange.map(|(device, _)| device).collect()
    }

    /// What is known of a device as one of its updates now is.
    pub(crate) fn note(&self, update: &Update) {
        if update.watch().is_some() {
            let version = self.hasher.hash_one(update.to_version.as_str());
            locked(&self.devices).insert(update.device, version);
        } else if update.group() == Group::InFlight || update.regression().is_some() {
            // It is given to something else, or nothing more is to be learnt.
            self.forget([update.device]);
        }
    }

    pub(crate) fn forget(&self, devices: impl IntoIterator<Item = DeviceKey>) {
        let mut known = locked(&self.devices);
        if !known.is_empty() {
            for device in devices {
                known.remove(&device);
            }
        }
    }
}

impl Engine {
    /// How a device is watched after this update. Outside of campaigns: as with one that says nothing.
    pub(super) async fn watch_terms(
        &self,
        tx: &mut dyn Tx,
        update: &Update,
    ) -> Result<WatchTerms, StoreError> {
        let lease = self.settings.lease;
        let unsaid = || device_ota_domain::campaign::Health::default().terms(0, lease);
        let Some(id) = &update.campaign else {
            return Ok(unsaid());
        };
        let stage = usize::from(update.stage);
        if let Some(terms) = locked(&self.watched.terms).get(id) {
            return Ok(terms.get(stage).copied().unwrap_or_else(unsaid));
        }
        let Some(campaign) = tx.peek_campaign(id).await? else {
            return Ok(unsaid());
        };
        let stages = 0..=campaign.spec.last_stage();
        let all: Vec<_> = stages.map(|s| campaign.spec.watch(s, lease)).collect();
        let terms = all.get(stage).copied().unwrap_or_else(unsaid);
        let mut kept = locked(&self.watched.terms);
        if kept.len() >= MAX_CAMPAIGNS {
            kept.clear();
        }
        kept.insert(id.clone(), all);
        Ok(terms)
    }
}

/// Devices that may have regressed: they are watched and show another version, or say that they have restarted.
pub(super) fn suspects(engine: &Engine, messages: &[Inbound]) -> Vec<DeviceKey> {
    let shown = messages.iter().filter_map(|message| {
        let version = match &message.uplink {
            Uplink::Heartbeat(heartbeat, _) => heartbeat.version.as_str(),
            Uplink::Report(report) => match report.as_ref() {
                Report::Check(check) => check.version.as_str(),
                _ => return None,
            },
            _ => return None,
        };
        Some((message.device.key, version))
    });
    let mut suspects = engine.watched.strange(shown);
    suspects.extend(messages.iter().filter_map(|message| {
        let Uplink::Report(report) = &message.uplink else {
            return None;
        };
        let boots = matches!(report.as_ref(), Report::Check(check) if check.reason == Some(CheckReason::Boot));
        boots.then_some(message.device.key)
    }));
    suspects.sort_unstable();
    suspects.dedup();
    suspects
}
