//! Telemetry as people read it: one device's heartbeats, and the fleet at a glance.

use std::collections::BTreeMap;

use device_ota_domain::DeviceId;
use device_ota_domain::page::Page;
use jiff::Timestamp;

use crate::ports::telemetry::{DeviceFilter, HeartbeatRow};
use crate::ports::telemetry::{FleetGroup, HeartbeatQuery};
use crate::{Engine, Result};

/// Most names in one division of the overview; the rarest beyond are counted together.
const MAX_NAMES: usize = 200;
/// What stands for the rarest names.
const OTHERS: &str = "others";
/// What stands for a version, or a kind of device, that nobody knows.
pub(crate) const UNKNOWN: &str = "unknown";
/// What stands for the ring of devices that are pinned to none: each campaign turns the wheel for them anew.
const UNPINNED: &str = "unpinned";

/// The fleet at a glance. The divisions add up to `total`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FleetStatus {
    /// Devices that are registered.
    pub total: u64,
    /// Connected now.
    pub online: u64,
    /// Never heard.
    pub never_seen: u64,
    /// With a battery below the mark.
    pub low_battery: u64,
    /// With errors in their last heartbeat.
    pub with_errors: u64,
    /// By what they run.
    pub by_version: BTreeMap<String, u64>,
    /// By the ring they are pinned to.
    pub by_ring: BTreeMap<String, u64>,
    /// By model.
    pub by_model: BTreeMap<String, u64>,
}

impl FleetStatus {
    fn of(groups: &[FleetGroup]) -> Self {
        let mut status = Self::default();
        for group in groups {
            status.total += group.devices;
            status.online += if group.online { group.devices } else { 0 };
            status.never_seen += group.never_seen;
            status.low_battery += group.low_battery;
            status.with_errors += group.with_errors;
            let version = group.version.as_deref().unwrap_or(UNKNOWN);
            let ring = group.ring.as_deref().unwrap_or(UNPINNED);
            for (division, name) in [
                (&mut status.by_version, version),
                (&mut status.by_ring, ring),
                (&mut status.by_model, &group.device_model),
            ] {
                *division.entry(name.to_owned()).or_default() += group.devices;
            }
        }
        status.by_version = commonest(status.by_version);
        status.by_model = commonest(status.by_model);
        status
    }
}

/// The [`MAX_NAMES`] commonest, and all others together.
pub(crate) fn commonest(division: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    if division.len() <= MAX_NAMES {
        return division;
    }
    let mut names: Vec<_> = division.into_iter().collect();
    names.sort_by_key(|(_, devices)| std::cmp::Reverse(*devices));
    let others = names.split_off(MAX_NAMES);
    let mut kept: BTreeMap<_, _> = names.into_iter().collect();
    *kept.entry(OTHERS.to_owned()).or_default() += others.iter().map(|(_, n)| n).sum::<u64>();
    kept
}

impl Engine {
    /// One device's heartbeats of a time, newest first; nothing that is older than the retention.
    pub async fn heartbeats(
        &self,
        device: &DeviceId,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        page: Page,
    ) -> Result<Vec<HeartbeatRow>> {
        let device = self.device(device).await?.key;
        let query = HeartbeatQuery {
            device,
            from: from.max(Some(self.heartbeats_kept_from())),
            to,
        };
        Ok(self.store.heartbeats(&query, page).await?)
    }

    /// Heartbeats from before this are not kept.
    pub(crate) fn heartbeats_kept_from(&self) -> Timestamp {
        self.clock.now() - self.settings.heartbeat_retention
    }

    /// The fleet at a glance. A battery is low below `low_battery` percent.
    pub async fn fleet_status(
        &self,
        filter: &DeviceFilter,
        low_battery: f64,
    ) -> Result<FleetStatus> {
        let groups = self.store.fleet(filter, low_battery).await?;
        Ok(FleetStatus::of(&groups))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(version: Option<&str>, ring: Option<&str>, online: bool, devices: u64) -> FleetGroup {
        FleetGroup {
            version: version.map(str::to_owned),
            device_model: "m".to_owned(),
            ring: ring.map(str::to_owned),
            online,
            devices,
            low_battery: 1,
            with_errors: 0,
            never_seen: 0,
        }
    }

    #[test]
    fn groups_add_up_in_every_division() {
        let status = FleetStatus::of(&[
            group(Some("1"), None, true, 3),
            group(Some("2"), Some("early"), false, 4),
            group(None, None, false, 5),
        ]);
        assert_eq!(
            (status.total, status.online, status.low_battery),
            (12, 3, 3)
        );
        let versions = [("1", 3), ("2", 4), ("unknown", 5)];
        assert_eq!(
            status.by_version,
            versions.map(|(n, c)| (n.to_owned(), c)).into()
        );
        let rings = [("early", 4), ("unpinned", 8)];
        assert_eq!(status.by_ring, rings.map(|(n, c)| (n.to_owned(), c)).into());
        assert_eq!(status.by_model, [("m".to_owned(), 12)].into());
    }

    #[test]
    fn rare_versions_are_counted_together() {
        let groups: Vec<_> = (0..300)
            .map(|n| {
                group(
                    Some(&format!("1.0.{n}")),
                    None,
                    true,
                    if n == 299 { 9 } else { 1 },
                )
            })
            .collect();
        let status = FleetStatus::of(&groups);
        assert_eq!(status.by_version.len(), MAX_NAMES + 1);
        assert_eq!(status.by_version.get("1.0.299"), Some(&9));
        assert_eq!(status.by_version.get(OTHERS), Some(&100));
        assert_eq!(status.by_version.values().sum::<u64>(), status.total);
    }
}
