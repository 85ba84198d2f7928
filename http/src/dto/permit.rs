//! Rollback permits as the API shows them.

use device_ota_domain::permit::Permit;
use device_ota_domain::{CampaignId, DeviceId};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

/// What a permit permits.
#[derive(Serialize, ToSchema)]
#[schema(as = Permit)]
pub(crate) struct PermitDto<'p> {
    permit_id: &'p str,
    /// The device it is for; null: those of a campaign.
    device_id: Option<&'p DeviceId>,
    /// The campaign it is for; null: one device.
    campaign_id: Option<&'p CampaignId>,
    /// SHA-256 of the image that runs.
    from_sha256: &'p str,
    /// SHA-256 of the image that may replace it.
    to_sha256: &'p str,
    expires_at: Timestamp,
    created_at: Timestamp,
    created_by: &'p str,
}

impl<'p> From<&'p Permit> for PermitDto<'p> {
    fn from(permit: &'p Permit) -> Self {
        Self {
            permit_id: &permit.id,
            device_id: permit.device.as_ref(),
            campaign_id: permit.campaign.as_ref(),
            from_sha256: &permit.from_sha256,
            to_sha256: &permit.to_sha256,
            expires_at: permit.expires_at,
            created_at: permit.created_at,
            created_by: &permit.created_by,
        }
    }
}
