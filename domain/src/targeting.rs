//! Whom a campaign means, judged one device at a time. The store answers the same for a whole fleet at a stroke; the tests
//! hold the two together.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;

pub use crate::exclusion::Exclusion;

use crate::campaign::{CampaignSpec, Named, Takes, Targets};
use crate::device::{Device, DeviceKey};
use crate::firmware::UploadMetadata;
use crate::ids::DeviceId;
use crate::ring::turned;

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
    named: &Named,
    image: &UploadMetadata,
    device: &Device,
    now: Timestamp,
) -> Result<Place, Exclusion> {
    if spec
        .targets
        .mean(&named.targets, &image.device_model, device, now)
    {
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
        above_floor(image, device)
    }
}

/// Whether a device would take the image by its security floor, as it last reported that: below it, it refuses (PROTOCOL.md,
/// *Signed objects*).
pub fn above_floor(image: &UploadMetadata, device: &Device) -> Result<(), Exclusion> {
    match device.latest.security_floor {
        Some(floor) if i64::from(image.security_version) < floor => Err(Exclusion::BelowFloor),
        _ => Ok(()),
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
    pub fn new(spec: &'c CampaignSpec, named: &'c Named, cuts: &'c Cuts) -> Self {
        let numbered = (0..).zip(&spec.stages);
        let named = numbered.map(|(number, _)| named.of_stage(number).iter().collect());
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
            Takes::Named => named.contains(&device.registration.device_id),
            Takes::Filter(filter) => filter.matches(device, now),
        });
        found.map(|(number, _)| number)
    }
}

/// The ends of stages that take a number of devices, for devices that come after the start: those stages have had theirs, and take
/// nobody more.
pub fn cuts_after_start(spec: &CampaignSpec) -> Cuts {
    let nobody = Place {
        position: 0,
        device: DeviceKey(0),
    };
    let numbered = (0..).zip(&spec.stages);
    let counted = numbered.filter(|(_, stage)| matches!(stage.takes, Takes::First(_)));
    counted.map(|(number, _)| (number, nobody)).collect()
}

/// Where the device stands on the wheel as the campaign has turned it; a pinned one at the beginning of its ring.
fn position(spec: &CampaignSpec, device: &Device) -> u16 {
    let pinned = device.registration.ring;
    let pinned = pinned.map(|ring| spec.rings.start_bucket(ring));
    pinned.unwrap_or_else(|| turned(device.bucket, spec.bucket_offset))
}

impl Targets {
    /// Whether the device is meant by a campaign of firmware for `model` that names these.
    pub fn mean(&self, named: &[DeviceId], model: &str, device: &Device, now: Timestamp) -> bool {
        if self.is_everybody() {
            return device.registration.device_model == model;
        }
        let said = &device.registration;
        let passes = |filter: &crate::filter::Filter| filter.matches(device, now);
        named.contains(&said.device_id)
            || said.groups.iter().any(|group| self.groups.contains(group))
            || self.filter.as_ref().is_some_and(passes)
    }
}
