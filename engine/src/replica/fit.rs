//! Whether a replica can serve the fleet of a database beside those that do.

use device_ota_domain::firmware::FirmwareFilter;
use device_ota_domain::page::Page;

use super::Member;
use crate::ports::replicas::Replica;
use crate::ports::store::Tx;
use crate::ports::telemetry::DeviceFilter;
use crate::{Engine, Error, Result};

/// Under which name all replicas know their first trust root.
const FIRST_ROOT: &str = "first_trust_root";

impl Engine {
    /// Refuses a replica that would sign what devices of the others do not believe, offer images that others cannot read, or take
    /// reports that others take, too.
    pub(super) async fn fits(
        &self,
        tx: &mut dyn Tx,
        others: &[Replica],
        member: &Member,
        trust: &[String],
    ) -> Result<()> {
        if member.alone {
            return Ok(());
        }
        let first = trust.first().map(String::as_str).unwrap_or_default();
        if others.is_empty() && self.has_no_fleet().await? {
            // Nobody believes anything yet.
            tx.forget_shared_key(FIRST_ROOT).await?;
        }
        let is_first = tx.shared_key(FIRST_ROOT, first).await? == first;
        let follows = |other: &Replica| other.trust.iter().zip(trust).all(|(one, two)| one == two);
        if !is_first || !others.iter().all(follows) {
            return Err(Error::conflict(
                "trust_roots_differ",
                "the devices of this database believe another trust root than this replica has: give all replicas the same TRUST_ROOT, \
                 DISPATCH_KEY and RELEASE_KEY; without them, copy keys/ and trust/ of the first one's data folder",
            ));
        }
        let reads = |other: &Replica| other.shares_images && member.shares_images;
        if !others.iter().all(reads) {
            return Err(Error::conflict(
                "images_not_shared",
                "another replica runs on this database, and images in a folder are read by one replica alone: give all of them \
                 STORAGE_TYPE=s3 and the same bucket (one that was killed is taken for dead after 15 seconds)",
            ));
        }
        if !others.is_empty() && !member.shares_reports {
            return Err(Error::conflict(
                "reports_not_shared",
                "another replica runs on this database, and each would take every report from the broker: give all of them the same \
                 MQTT_SHARED_GROUP (one that was killed is taken for dead after 15 seconds)",
            ));
        }
        Ok(())
    }

    /// There is neither a device nor an image.
    async fn has_no_fleet(&self) -> Result<bool> {
        let one = Page {
            limit: 1,
            offset: 0,
        };
        let all = FirmwareFilter {
            include_deprecated: true,
            ..FirmwareFilter::default()
        };
        let devices = self.store.devices(&DeviceFilter::default(), one).await?;
        let images = self.store.firmware_list(&all, one).await?;
        Ok(devices.is_empty() && images.is_empty())
    }
}
