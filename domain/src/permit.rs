//! Rollback permits: the one way below a device's security floor (PROTOCOL.md, *rollback-permit*).

use jiff::Timestamp;

use crate::ids::{CampaignId, DeviceId};

/// Leave, signed by the release role, to go back from one image to another that is below the security floor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    /// Its one-time id, of whoever signed it.
    pub id: String,
    /// The device it is for, unless it is for a campaign.
    pub device: Option<DeviceId>,
    /// The campaign whose devices it is for; each of them uses it once.
    pub campaign: Option<CampaignId>,
    /// SHA-256 of the image that runs, in lower-case hex.
    pub from_sha256: String,
    /// SHA-256 of the image that may replace it, in lower-case hex.
    pub to_sha256: String,
    /// It permits nothing from then on.
    pub expires_at: Timestamp,
    /// The signed envelope, as JSON.
    pub envelope: String,
    /// When it was taken.
    pub created_at: Timestamp,
    /// Who brought it.
    pub created_by: String,
}
