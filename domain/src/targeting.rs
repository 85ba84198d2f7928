//! Whom a campaign means, judged one device at a time. The store answers the same for a whole fleet at a stroke; the tests
//! hold the two together.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::campaign::{CampaignSpec, Takes, Targets};
use crate::device::{Device, DeviceKey};
use crate::firmware::UploadMetadata;
use crate::ids::DeviceId;
use crate::ring::turned;

/// Why a device is none of a campaign's. Of several reasons, the first in this order is told.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Exclusion {
    /// It is named, and not registered.
    UnknownDevice,
    /// Nothing of the campaign's targets means it.
    NotMeant,
    /// It is of another model than the firmware.
    WrongModel,
    /// The firmware does not run on its hardware revision.
    WrongHwRevision,
    /// It already runs the firmware's version.
    AlreadyInstalled,
    /// It lies outside of `rollout_percentage`.
    OutsideRollout,
}

impl Exclusion {
    /// All, in their order.
    pub const ALL: [Self; 6] = [
        Self::UnknownDevice,
        Self::NotMeant,
        Self::WrongModel,
        Self::WrongHwRevision,
        Self::AlreadyInstalled,
        Self::OutsideRollout,
    ];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownDevice => "unknown_device",
            Self::NotMeant => "not_meant",
            Self::WrongModel => "wrong_model",
            Self::WrongHwRevision => "wrong_hw_revision",
            Self::AlreadyInstalled => "already_installed",
            Self::OutsideRollout => "outside_rollout",
        }
    }

    /// The exclusion of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }
}

impl std::fmt::Display for Exclusion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::UnknownDevice => "the device is not registered",
            Self::NotMeant => "the campaign's targets do not name the device",
            Self::WrongModel => "the device is of another model than the firmware",
            Self::WrongHwRevision => "the firmware does not run on the device's hardware revision",
            Self::AlreadyInstalled => "the device already runs the firmware's version",
            Self::OutsideRollout => "the device lies outside of the campaign's rollout_percentage",
        })
    }
}

/// Where a device stands in the order in which a campaign takes devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// On the wheel as the campaign has turned it.
    pub position: u16,
    /// Of several at the same position, the lower number comes first.
    pub device: DeviceKey,
}

/// The last device that each stage takes which takes a number of them, by stage; stages that are not there take everybody.
pub type Cuts = BTreeMap<u16, Place>;

/// The device's place among those that the campaign means, or why it is none of them.
pub fn judge(
    spec: &CampaignSpec,
    image: &UploadMetadata,
    device: &Device,
    now: Timestamp,
) -> Result<Place, Exclusion> {
    if spec.targets.mean(&image.device_model, device, now) {
        judge_meant(spec, image, device)
    } else {
        Err(Exclusion::NotMeant)
    }
}

/// The same of a device that the campaign's targets are known to mean.
pub fn judge_meant(
    spec: &CampaignSpec,
    image: &UploadMetadata,
    device: &Device,
) -> Result<Place, Exclusion> {
    fits(image, device)?;
    let position = position(spec, device);
    if position >= spec.rollout_buckets {
        Err(Exclusion::OutsideRollout)
    } else {
        let device = device.key;
        Ok(Place { position, device })
    }
}

/// Whether an image is for this device and new to it: of campaigns and of updates of single devices alike. An image for certain
/// hardware revisions is not for a device whose revision nobody knows.
pub fn fits(image: &UploadMetadata, device: &Device) -> Result<(), Exclusion> {
    let said = &device.registration;
    let revision = said.hw_revision.as_ref();
    if said.device_model != image.device_model {
        Err(Exclusion::WrongModel)
    } else if !image.hw_revisions.is_empty()
        && !revision.is_some_and(|r| image.hw_revisions.contains(r))
    {
        Err(Exclusion::WrongHwRevision)
    } else if device.running() == Some(&image.version) {
        Err(Exclusion::AlreadyInstalled)
    } else {
        Ok(())
    }
}

/// A campaign's stages, to ask for many devices: lists of devices may be long.
#[derive(Debug)]
pub struct Stages<'c> {
    spec: &'c CampaignSpec,
    cuts: &'c Cuts,
    /// The devices that each stage names.
    named: Vec<HashSet<&'c DeviceId>>,
}

impl<'c> Stages<'c> {
    /// Of this campaign, with the ends of those that take a number of devices.
    pub fn new(spec: &'c CampaignSpec, cuts: &'c Cuts) -> Self {
        let named = spec.stages.iter().map(|stage| match &stage.takes {
            Takes::Devices(ids) => ids.iter().collect(),
            Takes::Share | Takes::First(_) | Takes::Filter(_) => HashSet::new(),
        });
        Self {
            spec,
            cuts,
            named: named.collect(),
        }
    }

    /// The first stage that takes a device which the campaign means.
    pub fn stage_of(&self, device: &Device, now: Timestamp) -> Option<u16> {
        let place = Place {
            position: position(self.spec, device),
            device: device.key,
        };
        let mut numbered = (0..).zip(self.spec.stages.iter().zip(&self.named));
        let found = numbered.find(|(number, (stage, named))| match &stage.takes {
            Takes::Share => place.position < stage.end_bucket,
            Takes::First(_) => self.cuts.get(number).is_none_or(|last| place <= *last),
            Takes::Devices(_) => named.contains(&device.registration.device_id),
            Takes::Filter(filter) => filter.matches(device, now),
        });
        found.map(|(number, _)| number)
    }
}

/// Where the device stands on the wheel as the campaign has turned it; a pinned one at the beginning of its ring.
fn position(spec: &CampaignSpec, device: &Device) -> u16 {
    let pinned = device.registration.ring;
    let pinned = pinned.map(|ring| spec.rings.start_bucket(ring));
    pinned.unwrap_or_else(|| turned(device.bucket, spec.bucket_offset))
}

impl Targets {
    /// Whether the device is meant by a campaign of firmware for `model`.
    pub fn mean(&self, model: &str, device: &Device, now: Timestamp) -> bool {
        if self.is_everybody() {
            return device.registration.device_model == model;
        }
        let said = &device.registration;
        let passes = |filter: &crate::filter::Filter| filter.matches(device, now);
        self.devices.contains(&said.device_id)
            || said.groups.iter().any(|group| self.groups.contains(group))
            || self.filter.as_ref().is_some_and(passes)
    }
}
