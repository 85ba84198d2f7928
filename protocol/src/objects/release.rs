//! What the release role signs: what an image is, and the permit to go below a security floor.

use std::cmp::Ordering;

use jiff::Timestamp;
use semver::Version;
use serde::{Deserialize, Serialize};

use super::{ObjectError, Role, SignedObject, ensure, integers, names};
use crate::digest::Digest;
use crate::ids::DeviceId;
use crate::wire::wire_enum;

/// Most hardware revisions a release may name.
pub const MAX_HW_REVISIONS: usize = 32;

wire_enum! {
    /// What a release is for.
    pub enum Kind {
        /// New behaviour.
        Feature = "feature",
        /// A weakness mended.
        Security = "security",
    }
}

/// What an image is. Signed by the release role, which can be kept offline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The firmware's id in the service.
    pub firmware_id: String,
    /// Name of the product.
    pub name: String,
    /// Version of the image.
    pub version: String,
    /// Rises when a weakness is mended; what floors compare.
    pub security_version: u64,
    /// Model it runs on.
    pub device_model: String,
    /// Who makes the model.
    pub manufacturer: String,
    /// Hardware revisions it runs on; empty means every one.
    pub hw_revisions: Vec<String>,
    /// Format of the image, as its suffix says.
    pub format: String,
    /// Bytes in the image.
    pub size: u64,
    /// Digest of the image.
    pub sha256: Digest,
    /// What it is for.
    pub kind: Kind,
    /// When it was signed.
    pub issued_at: Timestamp,
}

impl SignedObject for Release {
    const TYPE: &'static str = "application/vnd.device-ota.release.v1+json";
    const ROLE: Role = Role::Release;

    fn validate(&self) -> Result<(), ObjectError> {
        names([
            ("firmware_id", self.firmware_id.as_str()),
            ("name", &self.name),
            ("version", &self.version),
            ("device_model", &self.device_model),
            ("manufacturer", &self.manufacturer),
            ("format", &self.format),
        ])?;
        ensure(self.hw_revisions.len() <= MAX_HW_REVISIONS, "hw_revisions")?;
        names(
            self.hw_revisions
                .iter()
                .map(|r| ("hw_revisions", r.as_str())),
        )?;
        integers([
            ("security_version", self.security_version),
            ("size", self.size),
        ])?;
        ensure(self.size >= 1, "size")
    }
}

/// Leave to install one image in place of another although it is below the device's security
/// floor. For one device or for one campaign; each device uses it once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackPermit {
    /// One-time id.
    pub permit_id: String,
    /// The device it is for, unless it is for a campaign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<DeviceId>,
    /// The campaign it is for, unless it is for a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub campaign_id: Option<String>,
    /// The image that runs.
    pub from_sha256: Digest,
    /// The image that may replace it.
    pub to_sha256: Digest,
    /// From when on it is void.
    pub expires_at: Timestamp,
}

impl SignedObject for RollbackPermit {
    const TYPE: &'static str = "application/vnd.device-ota.rollback-permit.v1+json";
    const ROLE: Role = Role::Release;

    fn validate(&self) -> Result<(), ObjectError> {
        names([("permit_id", self.permit_id.as_str())])?;
        names(self.campaign_id.iter().map(|c| ("campaign_id", c.as_str())))?;
        ensure(
            self.device_id.is_some() != self.campaign_id.is_some(),
            "scope",
        )
    }
}

/// Orders two versions: by semantic precedence when both are semantic versions, as equal when they
/// are the same text, and not at all otherwise.
///
/// ```
/// use std::cmp::Ordering;
/// use device_ota_protocol::objects::compare_versions;
///
/// assert_eq!(compare_versions("2.0.0", "10.0.0"), Some(Ordering::Less));
/// assert_eq!(compare_versions("2.0.0-rc.1", "2.0.0"), Some(Ordering::Less));
/// assert_eq!(compare_versions("build-7", "build-7"), Some(Ordering::Equal));
/// assert_eq!(compare_versions("build-7", "2.0.0"), None);
/// ```
pub fn compare_versions(one: &str, other: &str) -> Option<Ordering> {
    if one == other {
        return Some(Ordering::Equal);
    }
    let one = Version::parse(one).ok()?;
    let other = Version::parse(other).ok()?;
    Some(one.cmp_precedence(&other))
}
