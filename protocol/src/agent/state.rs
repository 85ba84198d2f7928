//! What survives a power cut: everything the agent must remember, and nothing that it can ask for
//! again.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::messages::{Progress, ReportedError};
use crate::objects::{Mode, Root, Timeouts};
use crate::wire::Slot;

/// Most permits a device remembers having used. When all are still valid no further one is taken.
pub const MAX_USED_PERMITS: usize = 64;

/// An image in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its version.
    pub version: String,
    /// Its digest.
    pub sha256: Digest,
    /// What the floor rises to once it is confirmed.
    pub security_version: u64,
    /// Whether it ever passed its own health check here.
    pub confirmed: bool,
}

/// All that an agent is after a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PersistentState {
    /// Whom it trusts. Shared: a simulator has one for thousands of agents.
    #[serde(with = "shared")]
    pub root: Arc<Root>,
    /// Highest sequence number taken from the dispatcher.
    pub seq: u64,
    /// Digest of the payload that had that number.
    pub seq_digest: Option<Digest>,
    /// Lowest security version taken without a permit.
    pub security_floor: u64,
    /// The slot whose image is the device's confirmed one.
    pub active: Slot,
    /// Image in slot A.
    pub slot_a: Option<Image>,
    /// Image in slot B.
    pub slot_b: Option<Image>,
    /// The last update, running or over.
    pub update: Option<Box<UpdateRecord>>,
    /// Bytes on disk of an image that is being fetched.
    pub partial: Option<Partial>,
    /// Permits that were used and have not expired.
    pub used_permits: Vec<UsedPermit>,
}

/// Part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// Which image.
    pub sha256: Digest,
    /// Bytes from its start.
    pub bytes_done: u64,
}

/// A permit that is in use or was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedPermit {
    /// Its one-time id.
    pub permit_id: String,
    /// After this it need not be remembered.
    pub expires_at: Timestamp,
}

/// An update on this device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdateRecord {
    /// The last report, which names the update and is said again on each new connection.
    pub report: Progress,
    /// Where it stands.
    pub stage: Stage,
}

/// Where an update stands, with what is needed to go on from there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// The image is being fetched.
    Downloading {
        /// What to do.
        job: Box<Job>,
    },
    /// The image is being written to its slot.
    Installing {
        /// What to do.
        job: Box<Job>,
    },
    /// The image is in its slot and waits for `activate`.
    Staged {
        /// What to do.
        job: Box<Job>,
    },
    /// The device was told to start the image.
    Rebooting {
        /// What to do.
        job: Box<Job>,
        /// How often it was told so.
        boots: u8,
    },
    /// The image runs and has yet to confirm itself.
    Trial {
        /// What to do.
        job: Box<Job>,
        /// How often it was started.
        boots: u8,
    },
    /// The image did not do; the device was told to start the old one.
    FallingBack {
        /// Why.
        error: ReportedError,
        /// How often it was told so.
        boots: u8,
    },
    /// Not now; a later offer takes it up again.
    Deferred {
        /// When to ask for it.
        retry_after_s: u64,
    },
    /// Over; the report says how.
    Finished,
}

/// An accepted update: verified, and reduced to what the agent needs to carry it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The image.
    pub image: Image,
    /// Bytes in the image.
    pub size: u64,
    /// Digest of the verified release payload.
    pub release_sha256: Digest,
    /// Where the image can be had.
    pub urls: Vec<String>,
    /// When those stop serving.
    pub urls_expire_at: Option<Timestamp>,
    /// How far to go.
    pub mode: Mode,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// When it was accepted, by the device's own clock.
    pub accepted_at: Timestamp,
    /// The permit it needs.
    pub permit: Option<UsedPermit>,
}

impl PersistentState {
    /// The state a device is born with: one confirmed image in slot A.
    pub fn born(root: Arc<Root>, image: Image) -> Self {
        Self {
            root,
            seq: 0,
            seq_digest: None,
            security_floor: image.security_version,
            active: Slot::A,
            slot_a: Some(Image {
                confirmed: true,
                ..image
            }),
            slot_b: None,
            update: None,
            partial: None,
            used_permits: Vec::new(),
        }
    }

    /// The image in a slot.
    pub fn image(&self, slot: Slot) -> Option<&Image> {
        match slot {
            Slot::A => self.slot_a.as_ref(),
            Slot::B => self.slot_b.as_ref(),
        }
    }

    pub(super) fn image_mut(&mut self, slot: Slot) -> &mut Option<Image> {
        match slot {
            Slot::A => &mut self.slot_a,
            Slot::B => &mut self.slot_b,
        }
    }

    /// Bytes at hand of an image.
    pub fn bytes_of(&self, sha256: Digest) -> u64 {
        match self.partial {
            Some(partial) if partial.sha256 == sha256 => partial.bytes_done,
            _ => 0,
        }
    }
}

impl UpdateRecord {
    /// Whether it is this attempt at this update.
    pub fn is(&self, update_id: &str, attempt: u32) -> bool {
        self.report.update_id == update_id && self.report.attempt == attempt
    }

    /// Whether the slots are being changed, so that nothing may replace it.
    pub fn is_committed(&self) -> bool {
        matches!(
            self.stage,
            Stage::Installing { .. }
                | Stage::Rebooting { .. }
                | Stage::Trial { .. }
                | Stage::FallingBack { .. }
        )
    }

    /// Whether it is over.
    pub fn is_finished(&self) -> bool {
        self.stage == Stage::Finished
    }
}

/// A shared value, written as if it were not.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Arc<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        T::serialize(value, to)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}
