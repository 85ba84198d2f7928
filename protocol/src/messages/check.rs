//! The short reports of a device: check, chunk request and status.

use serde::{Deserialize, Serialize};

use super::{Invalid, bounds, message};
use crate::digest::Digest;
use crate::wire::{MAX_INTEGER, wire_enum};

/// Largest chunk, in bytes: fits the receive buffer of a small device.
pub const MAX_CHUNK_LENGTH: u32 = 65_536;
/// Most chunks a request asks for: bounds what one small message can set in motion (4 MiB).
pub const MAX_CHUNK_COUNT: u32 = 64;

wire_enum! {
    /// Why a device checks. A reason of a newer device reads as `Poll`.
    pub enum CheckReason else Poll {
        /// It has just started.
        Boot = "boot",
        /// Its connection is new.
        Reconnect = "reconnect",
        /// It is time to ask again.
        Poll = "poll",
        /// The download URL no longer serves.
        UrlExpired = "url_expired",
    }
}

/// "Anything for me?"
///
/// ```
/// use device_ota_protocol::messages::Check;
///
/// let check = Check::parse(br#"{"version":"2.0.0","nonce":"5f00","reason":"boot"}"#)?;
/// assert_eq!(check.nonce.as_deref(), Some("5f00"));
/// assert_eq!(check.to_bytes(), br#"{"version":"2.0.0","nonce":"5f00","reason":"boot"}"#);
/// # Ok::<(), device_ota_protocol::messages::Invalid>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Running firmware.
    pub version: String,
    /// Random, echoed in the next offer and in the signed time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Why it asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<CheckReason>,
    /// The update it is in the middle of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_id: Option<String>,
    /// Bytes it already has of that update's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

message!(Check);

impl Check {
    /// Whether every value is within its bounds.
    pub fn validate(&self) -> Result<(), Invalid> {
        bounds::name("version", &self.version)?;
        bounds::names([("nonce", &self.nonce), ("update_id", &self.update_id)])?;
        bounds::integers([("offset", self.offset)])
    }
}

/// Asks for `count` consecutive chunks of an image.
///
/// ```
/// use device_ota_protocol::messages::ChunkRequest;
///
/// let sha = "0".repeat(64);
/// let ask = |length| format!(
///     r#"{{"request":17,"sha256":"{sha}","offset":0,"length":{length},"count":8}}"#
/// );
/// assert!(ChunkRequest::parse(ask(32768).as_bytes()).is_ok());
/// assert!(ChunkRequest::parse(ask(65537).as_bytes()).is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRequest {
    /// The device's own number, which comes back in the topic of each chunk.
    pub request: u32,
    /// Which image.
    pub sha256: Digest,
    /// First byte wanted.
    pub offset: u64,
    /// Bytes a chunk, 1 to [`MAX_CHUNK_LENGTH`].
    pub length: u32,
    /// Chunks wanted, 1 to [`MAX_CHUNK_COUNT`]; one if left out.
    #[serde(default = "one")]
    pub count: u32,
}

fn one() -> u32 {
    1
}

message!(ChunkRequest);

impl ChunkRequest {
    /// Whether every value is within its bounds.
    pub fn validate(&self) -> Result<(), Invalid> {
        bounds::within("length", self.length.into(), 1..=MAX_CHUNK_LENGTH.into())?;
        bounds::within("count", self.count.into(), 1..=MAX_CHUNK_COUNT.into())?;
        bounds::within("offset", self.offset, 0..=MAX_INTEGER)
    }

    /// First byte of each chunk and its length, within an image of `size` bytes. The last one may
    /// be shorter; nothing lies at or past the end.
    pub fn chunks(self, size: u64) -> impl Iterator<Item = (u64, u32)> {
        let length = u64::from(self.length);
        (0..u64::from(self.count)).map_while(move |n| {
            let offset = self.offset.checked_add(n.checked_mul(length)?)?;
            let left = size.checked_sub(offset).filter(|left| *left > 0)?;
            Some((offset, u32::try_from(left.min(length)).ok()?))
        })
    }
}

/// Whether a device is there; also its Last Will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// There or gone.
    pub online: bool,
    /// Why, when it says so: `will`, `shutdown`, `reboot` …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

message!(Status);

impl Status {
    /// What a device leaves with the broker as its Last Will.
    ///
    /// ```
    /// use device_ota_protocol::messages::Status;
    ///
    /// assert_eq!(Status::will().to_bytes(), br#"{"online":false,"reason":"will"}"#);
    /// ```
    pub fn will() -> Self {
        Self {
            online: false,
            reason: Some("will".to_owned()),
        }
    }

    /// Whether every value is within its bounds.
    pub fn validate(&self) -> Result<(), Invalid> {
        bounds::names([("reason", &self.reason)])
    }
}
