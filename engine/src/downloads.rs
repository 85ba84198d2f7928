//! Time-limited downloads: a URL that needs no header and stops serving at its expiry (PRD, E1-US4).
//!
//! A download is counted once. A link that somebody asked for counts when it is given out, whatever becomes of it; an image that
//! a device was offered counts when the device begins to fetch it, by its link or in chunks, and again when it begins anew.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use device_ota_domain::firmware::Storage;
use device_ota_domain::{DeviceId, Firmware, FirmwareId};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;

use crate::inbound::DeviceRef;
use crate::ports::ObjectStream;
use crate::{Engine, Error, Result};

/// What stands in the token of a link that was asked for, before the device that asked, if one did; the token of an offered link
/// has the device alone. No device id starts with a dash.
const ASKED_FOR: &str = "-";

/// Whose link it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holder {
    /// A device has it from its offer.
    Offer(DeviceId),
    /// A device has asked for it.
    Device(DeviceId),
    /// A person has.
    Person,
}

impl Holder {
    fn of(text: &str) -> Option<Self> {
        match text.strip_prefix(ASKED_FOR) {
            None => text.parse().ok().map(Self::Offer),
            Some("") => Some(Self::Person),
            Some(device) => device.parse().ok().map(Self::Device),
        }
    }
}

/// Signs tokens of the form `firmware.expiry.holder.mac`.
pub struct Grants {
    key: [u8; 32],
    begun: Mutex<HashMap<FirmwareId, u64>>,
}

/// A granted download.
#[derive(Debug, Clone)]
pub struct DownloadGrant {
    /// Absolute, needs no header, serves ranges.
    pub url: String,
    /// When it stops serving.
    pub expires_at: Timestamp,
    /// What it serves.
    pub firmware: Firmware,
}

/// A redeemed token.
#[derive(Debug, Clone)]
pub struct Download {
    /// What to serve.
    pub firmware: Firmware,
    /// File name for people.
    pub file_name: String,
    /// The link came with an offer; one that was asked for has been counted.
    pub is_offered: bool,
}

impl Grants {
    /// Grants signed with this key; it must outlive a restart, or running downloads break.
    pub fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            begun: Mutex::default(),
        }
    }

    fn mac(&self, text: &str) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        mac.update(text.as_bytes());
        Some(mac)
    }

    fn token(&self, firmware: &FirmwareId, expires_at: Timestamp, holder: &str) -> String {
        let text = format!("{firmware}.{}.{holder}", expires_at.as_second());
        let mac = self
            .mac(&text)
            .map(|mac| hex::encode(mac.finalize().into_bytes()))
            .unwrap_or_default();
        format!("{text}.{mac}")
    }

    /// The image of a token that is one of ours and has not expired, and whose it is.
    fn check(&self, token: &str, now: Timestamp) -> Option<(FirmwareId, Holder)> {
        let (text, mac) = token.rsplit_once('.')?;
        self.mac(text)?.verify_slice(&hex::decode(mac).ok()?).ok()?;
        let mut parts = text.splitn(3, '.');
        let firmware = parts.next()?.parse().ok()?;
        let expires: i64 = parts.next()?.parse().ok()?;
        let holder = Holder::of(parts.next()?)?;
        (expires > now.as_second()).then_some((firmware, holder))
    }

    /// Counts downloads, to be written with the next [`Grants::take_counts`].
    pub(crate) fn count(&self, firmware: &FirmwareId, downloads: u64) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        *begun.entry(firmware.clone()).or_default() += downloads;
    }

    pub(crate) fn take_counts(&self) -> HashMap<FirmwareId, u64> {
        std::mem::take(&mut self.begun.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Engine {
    /// A URL for this device, and its expiry.
    pub(crate) fn device_url(
        &self,
        firmware: &FirmwareId,
        device: &DeviceId,
        now: Timestamp,
    ) -> (String, Timestamp) {
        self.url(firmware, device.as_str(), now)
    }

    fn url(&self, firmware: &FirmwareId, holder: &str, now: Timestamp) -> (String, Timestamp) {
        let expires_at = now
            .checked_add(self.settings.url_lifetime)
            .unwrap_or(Timestamp::MAX);
        let token = self.grants.token(firmware, expires_at, holder);
        (
            format!("{}/api/v1/ota/objects/{token}", self.settings.public_url),
            expires_at,
        )
    }

    /// An admin's download of an image; 409 when it is out of use.
    pub async fn grant_download(&self, id: &FirmwareId) -> Result<DownloadGrant> {
        let firmware = self.firmware_in_use(id).await?;
        self.granted(firmware, ASKED_FOR).await
    }

    /// A device's download of the image that it has a live offer of; 403 for every other one.
    pub async fn grant_offered_download(
        &self,
        id: &FirmwareId,
        device: &DeviceRef,
    ) -> Result<DownloadGrant> {
        let update = self.store.in_flight(device.key).await?;
        if update.and_then(|update| update.firmware).as_ref() != Some(id) {
            return Err(Error::forbidden(
                "no_offer",
                format!("device {} has no offer of this firmware", device.id),
            ));
        }
        let firmware = self.firmware(id).await?;
        let holder = format!("{ASKED_FOR}{}", device.id);
        self.granted(firmware, &holder).await
    }

    /// A link that somebody asked for: of the shared store, where clients can reach it and the image is there, else of ours.
    async fn granted(&self, firmware: Firmware, holder: &str) -> Result<DownloadGrant> {
        let now = self.clock.now();
        let (url, expires_at) = self.url(&firmware.id, holder, now);
        let direct = match firmware.storage {
            Storage::Local => None,
            Storage::S3 => {
                let lifetime = self.settings.url_lifetime.unsigned_abs();
                let (sha256, name) = (&firmware.sha256, file_name(&firmware));
                self.objects.link(sha256, &name, now, lifetime).await?
            }
        };
        Ok(DownloadGrant {
            url: direct.unwrap_or(url),
            expires_at,
            firmware,
        })
    }

    /// Counts a link that was asked for, when it is given out.
    pub fn count_grant(&self, grant: &DownloadGrant) {
        self.grants.count(&grant.firmware.id, 1);
    }

    /// Counts an image that a device begins to fetch from its offer.
    pub(crate) fn count_begun(&self, firmware: &FirmwareId) {
        self.grants.count(firmware, 1);
    }

    /// What a URL's token is good for: 403 when it is forged, has expired, or is of a device that was deleted; 409 when a person has it
    /// and the image was taken out of use since; devices may have to go back to it.
    pub async fn redeem(&self, token: &str) -> Result<Download> {
        let refused = || {
            Error::forbidden(
                "download_refused",
                "the download link is not valid, has expired, or is of a device that was deleted; ask for a new one",
            )
        };
        let (id, holder) = self
            .grants
            .check(token, self.clock.now())
            .ok_or_else(refused)?;
        let mut firmware = self.firmware(&id).await?;
        match &holder {
            Holder::Person => firmware = firmware.in_use()?,
            Holder::Offer(device) | Holder::Device(device) => {
                self.resolve(device).await?.ok_or_else(refused)?;
            }
        }
        let file_name = file_name(&firmware);
        Ok(Download {
            firmware,
            file_name,
            is_offered: matches!(holder, Holder::Offer(_)),
        })
    }

    /// Bytes of a redeemed download. An offered one begins with its first byte.
    pub async fn read_download(
        &self,
        download: &Download,
        range: Range<u64>,
    ) -> Result<ObjectStream> {
        if download.is_offered && range.start == 0 {
            self.count_begun(&download.firmware.id);
        }
        Ok(self.objects.open(&download.firmware.sha256, range).await?)
    }
}

/// What people's files are called.
fn file_name(firmware: &Firmware) -> String {
    let metadata = &firmware.metadata;
    format!(
        "{}-{}.{}",
        metadata.device_model,
        metadata.version,
        firmware.format.name()
    )
    .replace(
        |c: char| !(c.is_ascii_alphanumeric() || ".-_".contains(c)),
        "_",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_serves_until_it_expires_and_only_unchanged()
    -> std::result::Result<(), Box<dyn std::error::Error>> {
        let grants = Grants::new([7; 32]);
        let firmware = FirmwareId::of("a", "1.0.0", "m");
        let expires = Timestamp::from_second(1_000)?;
        let device: DeviceId = "dev.1:x-".parse()?;
        let token = grants.token(&firmware, expires, "dev.1:x-");
        assert_eq!(
            grants.check(&token, Timestamp::from_second(999)?),
            Some((firmware.clone(), Holder::Offer(device.clone())))
        );
        assert_eq!(grants.check(&token, expires), None);
        for (holder, whose) in [("-", Holder::Person), ("-dev.1:x-", Holder::Device(device))] {
            let token = grants.token(&firmware, expires, holder);
            let asked_for = Some((firmware.clone(), whose));
            assert_eq!(grants.check(&token, Timestamp::from_second(1)?), asked_for);
        }
        assert_eq!(
            grants.check(
                &token.replace(".1000.", ".9000."),
                Timestamp::from_second(1)?
            ),
            None
        );
        assert_eq!(
            Grants::new([8; 32]).check(&token, Timestamp::from_second(1)?),
            None
        );
        for junk in ["", ".", "...", "a.b.c.d"] {
            assert_eq!(grants.check(junk, Timestamp::from_second(1)?), None);
        }
        Ok(())
    }
}
