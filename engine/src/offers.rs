//! Offers, commands and replies: built from what the database says, signed, and sent. Sending promises nothing;
//! what must arrive is said again until the device answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use device_ota_domain::campaign::{CampaignSpec, Requires};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::update::{Action, Order, UpdateState};
use device_ota_domain::{CampaignId, DeviceId, Firmware, FirmwareId, Update, ring};
use device_ota_protocol::messages::Reply;
use device_ota_protocol::objects::{
    self, Assignment, Command, CommandKind, Mode, TimeStatement, Timeouts,
};
use device_ota_protocol::topics::Down;
use jiff::Timestamp;

use crate::ports::store::OfferGround;
use crate::ports::{Delivery, StoreError};
use crate::{Engine, wire};

/// Firmware rows kept at hand for building offers.
const CACHED_FIRMWARE: usize = 256;
/// Specs of campaigns kept at hand.
const CACHED_CAMPAIGNS: usize = 1_024;

/// What offers are built from, kept at hand. Of firmware rows what is signed never changes, of a started
/// campaign's spec nothing at all.
#[derive(Default)]
pub(crate) struct OfferCache {
    firmware: Mutex<HashMap<FirmwareId, Arc<Firmware>>>,
    specs: Mutex<HashMap<CampaignId, Arc<CampaignSpec>>>,
}

/// An update in flight, and what its offer is built on.
pub(crate) struct Due {
    pub(crate) update: Update,
    pub(crate) ground: OfferGround,
}

/// Pairs updates with the grounds drawn for their devices.
pub(crate) fn pair(updates: Vec<Update>, grounds: Vec<OfferGround>) -> Vec<Due> {
    let mut by_device: HashMap<DeviceKey, OfferGround> =
        grounds.into_iter().map(|g| (g.device, g)).collect();
    updates
        .into_iter()
        .filter_map(|update| {
            by_device
                .remove(&update.device)
                .map(|ground| Due { update, ground })
        })
        .collect()
}

impl Engine {
    /// Sends each its offer, or the command that is due instead.
    pub(crate) async fn send_due(&self, due: Vec<Due>) {
        for Due { update, ground } in due {
            let sent = match update.order() {
                Some(Order::Offer) => self.send_offer(&update, &ground).await,
                Some(Order::Cancel) => {
                    self.send_command(&update, CommandKind::Cancel, &ground)
                        .await
                }
                Some(Order::Activate) => {
                    self.send_command(&update, CommandKind::Activate, &ground)
                        .await
                }
                None => continue,
            };
            match sent {
                Ok(Delivery::NotConnected) => self.has_moved(update.device).await,
                Ok(Delivery::Queued | Delivery::Busy) => {}
                Err(error) => {
                    tracing::error!(update.id = %update.id, %error, "an offer could not be built; it is tried again");
                }
            }
        }
    }

    async fn send_offer(
        &self,
        update: &Update,
        ground: &OfferGround,
    ) -> Result<Delivery, BuildError> {
        let id = update.firmware.as_ref().ok_or(BuildError::NoFirmware)?;
        let firmware = self
            .cached_firmware(id)
            .await?
            .ok_or(BuildError::NoFirmware)?;
        let requires = self
            .cached_requires(update.campaign.as_ref(), &firmware)
            .await?;
        let now = self.clock.now();
        let assignment = self.assignment(update, ground, &firmware, requires, now)?;
        let envelope = objects::seal(&assignment, self.keyring.dispatch())?.to_json();
        let permit = match update.action {
            Action::Update => None,
            Action::Rollback => self.store.permit_for(&update.id, now).await?,
        };
        let permit = permit.map(|permit| format!(r#","permit":{permit}"#));
        let payload = [
            br#"{"release":"#,
            firmware.release.as_bytes(),
            br#","assignment":"#,
            &envelope,
            permit.unwrap_or_default().as_bytes(),
            b"}",
        ]
        .concat();
        Ok(self
            .deliver(&ground.device_id, Down::Offer, payload.into(), "offer")
            .await)
    }

    fn assignment(
        &self,
        update: &Update,
        ground: &OfferGround,
        firmware: &Firmware,
        requires: Requires,
        now: Timestamp,
    ) -> Result<Assignment, BuildError> {
        let (url, urls_expire_at) = self.device_url(&firmware.id, &ground.device_id, now);
        let UpdateState::InFlight { deadline, hold, .. } = update.state else {
            return Err(BuildError::NotInFlight);
        };
        let within = |part: Option<u64>| part.unwrap_or(update.timeout_seconds);
        Ok(Assignment {
            device_id: wire::device_id(&ground.device_id).ok_or(BuildError::DeviceId)?,
            update_id: update.id.to_string(),
            campaign_id: update.campaign.as_ref().map(ToString::to_string),
            attempt: update.attempt,
            action: wire::action(update),
            seq: ground.seq.unsigned_abs(),
            release_sha256: firmware
                .release_sha256
                .parse()
                .map_err(|_| BuildError::Digest)?,
            urls: vec![url],
            urls_expire_at: Some(urls_expire_at),
            not_before: None,
            expires_at: deadline,
            nonce: ground.nonce.clone(),
            mode: if hold { Mode::Stage } else { Mode::Install },
            requires: objects::Requires {
                min_battery_percent: requires.min_battery_percent,
                min_free_storage_bytes: requires.min_free_storage_bytes.map(i64::unsigned_abs),
            },
            timeouts: Timeouts {
                download_s: within(update.times.download_seconds),
                install_s: within(update.times.install_seconds),
                total_s: update.timeout_seconds,
            },
        })
    }

    async fn send_command(
        &self,
        update: &Update,
        command: CommandKind,
        ground: &OfferGround,
    ) -> Result<Delivery, BuildError> {
        let UpdateState::InFlight { deadline, .. } = update.state else {
            return Err(BuildError::NotInFlight);
        };
        let closes = match command {
            CommandKind::Activate => self.told_until(update).await?,
            CommandKind::Cancel => None,
        };
        let command = Command {
            device_id: wire::device_id(&ground.device_id).ok_or(BuildError::DeviceId)?,
            update_id: update.id.to_string(),
            seq: ground.seq.unsigned_abs(),
            command,
            // Wherever it waits on its way, it starts nothing outside of a window.
            expires_at: closes.map_or(deadline, |closes| closes.min(deadline)),
        };
        let envelope = objects::seal(&command, self.keyring.dispatch())?.to_json();
        Ok(self
            .deliver(&ground.device_id, Down::Command, envelope.into(), "command")
            .await)
    }

    /// Answers a check; `why` says why no offer follows.
    pub(crate) async fn send_reply(
        &self,
        device: &DeviceId,
        nonce: Option<String>,
        offer: bool,
        why: Option<String>,
    ) {
        let next = spread(self.settings.next_check_seconds, device);
        let time = nonce.clone().and_then(|nonce| {
            let statement = TimeStatement {
                now: self.clock.now(),
                nonce,
            };
            objects::seal(&statement, self.keyring.dispatch()).ok()
        });
        let reply = if offer {
            Reply::offer_follows(nonce, next)
        } else {
            Reply::nothing(nonce, next)
        };
        let reply = match why {
            Some(why) => reply.because(why),
            None => reply,
        };
        let reply = match time {
            Some(time) => reply.with_time(time),
            None => reply,
        };
        self.deliver(device, Down::Reply, reply.to_bytes().into(), "reply")
            .await;
    }

    async fn deliver(
        &self,
        device: &DeviceId,
        to: Down,
        payload: Bytes,
        kind: &'static str,
    ) -> Delivery {
        let delivery = self.downlink.send(device, &to, payload).await;
        match delivery {
            Delivery::Queued => self.metrics.add("downlink_queued", kind, 1),
            Delivery::NotConnected => self.metrics.add("downlink_not_connected", kind, 1),
            Delivery::Busy => self.metrics.add("downlink_busy", kind, 1),
        }
        delivery
    }

    /// A firmware row, from memory when it has been read before.
    pub(crate) async fn cached_firmware(
        &self,
        id: &FirmwareId,
    ) -> Result<Option<Arc<Firmware>>, StoreError> {
        let known = self
            .offers
            .firmware
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned();
        if known.is_some() {
            return Ok(known);
        }
        let Some(read) = self.store.firmware(id).await?.map(Arc::new) else {
            return Ok(None);
        };
        let mut cache = self
            .offers
            .firmware
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHED_FIRMWARE {
            cache.clear();
        }
        cache.insert(id.clone(), read.clone());
        Ok(Some(read))
    }

    /// What the campaign asks of a device; for a single device, what the firmware asks.
    async fn cached_requires(
        &self,
        id: Option<&CampaignId>,
        firmware: &Firmware,
    ) -> Result<Requires, StoreError> {
        let Some(id) = id else {
            // Read anew: an admin may have changed it since it was remembered.
            let now = self.store.firmware(&firmware.id).await?;
            return Ok(firmware_requires(now.as_ref().unwrap_or(firmware)));
        };
        let spec = self.cached_spec(id).await?;
        Ok(spec.map_or_else(Requires::default, |spec| spec.requires))
    }

    /// What a campaign that has started shall do, from memory when it has been read before.
    pub(crate) async fn cached_spec(
        &self,
        id: &CampaignId,
    ) -> Result<Option<Arc<CampaignSpec>>, StoreError> {
        let specs = || {
            let specs = self.offers.specs.lock();
            specs.unwrap_or_else(PoisonError::into_inner)
        };
        let known = specs().get(id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let Some(campaign) = self.store.campaign(id).await? else {
            return Ok(None);
        };
        let read = Arc::new(campaign.spec);
        let mut cache = specs();
        if cache.len() >= CACHED_CAMPAIGNS {
            cache.clear();
        }
        cache.insert(id.clone(), read.clone());
        Ok(Some(read))
    }
}

/// A time that is up to an eighth longer, by device and always the same: who came together does not come together again.
fn spread(seconds: u64, device: &DeviceId) -> u64 {
    let place = u64::from(ring::bucket(device.as_str()));
    seconds.saturating_add(seconds.saturating_mul(place) / (8 * u64::from(ring::BUCKETS)))
}

/// What an image asks of a device.
pub(crate) fn firmware_requires(firmware: &Firmware) -> Requires {
    Requires {
        min_battery_percent: firmware.metadata.min_battery_percent,
        min_free_storage_bytes: firmware.metadata.min_free_storage_bytes,
    }
}

#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("the firmware is not in the registry")]
    NoFirmware,
    #[error("the update is not in flight")]
    NotInFlight,
    #[error("the device id has no form on the wire")]
    DeviceId,
    #[error("the release's digest is malformed")]
    Digest,
    #[error("signing failed")]
    Seal(#[from] objects::ObjectError),
    #[error("the database did not answer")]
    Store(#[from] StoreError),
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_fleet_is_told_to_ask_again_at_times_that_differ_and_each_device_at_its_own() {
        let names: Vec<DeviceId> = (0..400)
            .map(|n| format!("device-{n}").parse().unwrap())
            .collect();
        let times: Vec<u64> = names.iter().map(|name| spread(3_600, name)).collect();
        assert!(times.iter().all(|time| (3_600..=4_050).contains(time)));
        let again: Vec<u64> = names.iter().map(|name| spread(3_600, name)).collect();
        assert_eq!(times, again);
        // In every tenth of the spread there is about a tenth of the fleet.
        for tenth in 0..10 {
            let within = |time: &&u64| (**time - 3_600) / 45 == tenth;
            let many = times.iter().filter(within).count();
            assert!((15..=75).contains(&many), "{many} in tenth {tenth}");
        }
        assert!(times.iter().collect::<BTreeSet<_>>().len() > 200);
    }
}
