//! What the dispatch role signs: which device should take which release now, commands about it,
//! and the time.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ObjectError, Role, SignedObject, ensure, integers, names};
use crate::digest::Digest;
use crate::ids::DeviceId;
use crate::wire::wire_enum;

/// Most URLs in an assignment.
pub const MAX_URLS: usize = 4;
/// Longest URL, in bytes: presigned ones run to about a thousand.
pub const MAX_URL: usize = 2048;

wire_enum! {
    /// What an assignment is about.
    pub enum Action {
        /// Forward.
        Update = "update",
        /// Back.
        Rollback = "rollback",
    }
}

wire_enum! {
    /// How far a device goes by itself.
    pub enum Mode {
        /// All the way.
        Install = "install",
        /// Up to the reboot, which waits for `activate`.
        Stage = "stage",
    }
}

wire_enum! {
    /// What a command asks for.
    pub enum CommandKind {
        /// Stop, if the image is not being installed yet.
        Cancel = "cancel",
        /// Start the staged image.
        Activate = "activate",
    }
}

/// What the device must have before it starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requires {
    /// Least charge, 0–100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_battery_percent: Option<u8>,
    /// Least free storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_free_storage_bytes: Option<u64>,
}

/// How long each part may take, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// The download.
    pub download_s: u64,
    /// The installation.
    pub install_s: u64,
    /// Everything up to the reboot.
    pub total_s: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            download_s: 6 * 3600,
            install_s: 3600,
            total_s: 24 * 3600,
        }
    }
}

/// That this device should take this release now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The device.
    pub device_id: DeviceId,
    /// The update, as reports name it.
    pub update_id: String,
    /// The campaign it is part of, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub campaign_id: Option<String>,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Forward or back.
    pub action: Action,
    /// Rises with everything the service tells this device, commands included.
    pub seq: u64,
    /// Digest of the release envelope's payload bytes.
    pub release_sha256: Digest,
    /// Where the image can be had: absolute, in need of no header, serving ranges. May be empty
    /// for a device that takes chunks.
    pub urls: Vec<String>,
    /// When the URLs stop serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls_expire_at: Option<Timestamp>,
    /// Not to be begun before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Not to be begun after.
    pub expires_at: Timestamp,
    /// The nonce of the check it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// How far to go.
    pub mode: Mode,
    /// What the device must have.
    #[serde(default)]
    pub requires: Requires,
    /// How long it may take.
    #[serde(default)]
    pub timeouts: Timeouts,
}

impl SignedObject for Assignment {
    const TYPE: &'static str = "application/vnd.device-ota.assignment.v1+json";
    const ROLE: Role = Role::Dispatch;

    fn validate(&self) -> Result<(), ObjectError> {
        names([("update_id", self.update_id.as_str())])?;
        names(self.campaign_id.iter().map(|c| ("campaign_id", c.as_str())))?;
        names(self.nonce.iter().map(|n| ("nonce", n.as_str())))?;
        ensure(self.attempt >= 1, "attempt")?;
        ensure(self.seq >= 1, "seq")?;
        ensure(self.urls.len() <= MAX_URLS, "urls")?;
        ensure(self.urls.iter().all(|url| url.len() <= MAX_URL), "urls")?;
        let battery = self.requires.min_battery_percent.unwrap_or(0);
        ensure(battery <= 100, "min_battery_percent")?;
        let storage = self.requires.min_free_storage_bytes.unwrap_or(0);
        integers([
            ("seq", self.seq),
            ("min_free_storage_bytes", storage),
            ("download_s", self.timeouts.download_s),
            ("install_s", self.timeouts.install_s),
            ("total_s", self.timeouts.total_s),
        ])
    }
}

/// A command about an update the device was offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The device.
    pub device_id: DeviceId,
    /// The update.
    pub update_id: String,
    /// Counts with the sequence of assignments.
    pub seq: u64,
    /// What to do.
    pub command: CommandKind,
    /// From when on it is void.
    pub expires_at: Timestamp,
}

impl SignedObject for Command {
    const TYPE: &'static str = "application/vnd.device-ota.command.v1+json";
    const ROLE: Role = Role::Dispatch;

    fn validate(&self) -> Result<(), ObjectError> {
        names([("update_id", self.update_id.as_str())])?;
        ensure(self.seq >= 1, "seq")?;
        integers([("seq", self.seq)])
    }
}

/// What the time was when a check was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeStatement {
    /// The time.
    pub now: Timestamp,
    /// The nonce of the check.
    pub nonce: String,
}

impl SignedObject for TimeStatement {
    const TYPE: &'static str = "application/vnd.device-ota.time.v1+json";
    const ROLE: Role = Role::Dispatch;

    fn validate(&self) -> Result<(), ObjectError> {
        names([("nonce", self.nonce.as_str())])
    }
}
