//! An image deployed ring by ring (rings-and-heartbeat service, `POST /api/v1/firmware/{id}/deploy`): one campaign an image,
//! which goes as far as it is promoted, and from ring to ring only when the gate between them holds.

use device_ota_domain::campaign::{Approval, Campaign, CampaignDraft, CampaignSpec, CampaignState};
use device_ota_domain::event::EventType;
use device_ota_domain::ring::Ring;
use device_ota_domain::{CampaignId, Firmware, FirmwareId};
use jiff::Timestamp;

use super::proposal::Proposal;
use super::{CampaignView, made_for_somebody, tell};
use crate::audit::facts;
use crate::firmware::held;
use crate::ports::clock::random;
use crate::ports::store::Tx;
use crate::{Caller, Engine, Error, Result};

/// Characters of a version that the name of its campaign shows; a version may be as long as a name.
const SHOWN_VERSION: usize = 64;

/// What a deployment came to.
#[derive(Debug, Clone)]
pub struct Deployed {
    /// The image's campaign.
    pub campaign: CampaignView,
    /// It was made for this.
    pub is_new: bool,
}

impl Engine {
    /// Lets an image go as far as this ring: starts its campaign, or promotes the one there is. 409 when the image is out of use,
    /// when its campaign is paused, rolls back or was rolled back, when it has gone further already, and when there is no device for it.
    pub async fn deploy(&self, id: &FirmwareId, ring: Ring, by: &Caller) -> Result<Deployed> {
        let now = self.clock.now();
        let draft = draft_of(&self.firmware(id).await?)?;
        let Proposal { mut spec, .. } = self.proposal(draft).await?;
        spec.ring_deployment = true;
        let mut tx = self.store.begin().await?;
        // Locked for change, so that two deployments never make two campaigns.
        let found = tx.firmware(id).await?;
        found
            .ok_or_else(|| Error::not_found("firmware", &id))?
            .in_use()?;
        match tx.ring_deployment(id).await? {
            Some(campaign) if !is_over(&campaign.state) => {
                let campaign = self.promote(tx, campaign, ring, now, by).await?;
                let is_new = false;
                Ok(Deployed { campaign, is_new })
            }
            _ => {
                let campaign = self.begin_deployment(tx, spec, ring, now, by).await?;
                let is_new = true;
                Ok(Deployed { campaign, is_new })
            }
        }
    }

    async fn promote(
        &self,
        tx: Box<dyn Tx>,
        mut campaign: Campaign,
        ring: Ring,
        now: Timestamp,
        by: &Caller,
    ) -> Result<CampaignView> {
        let (before, was) = (campaign.state.clone(), facts::campaign(&campaign));
        campaign.state = before.clone().promote(stage_of(&campaign.spec, ring)?)?;
        if campaign.state == before {
            drop(tx); // a connection is not held while another is waited for
            return self.campaign(&campaign.id).await;
        }
        self.settle(tx, was, campaign, EventType::CampaignPromoted, now, by)
            .await
    }

    async fn begin_deployment(
        &self,
        mut tx: Box<dyn Tx>,
        spec: CampaignSpec,
        ring: Ring,
        now: Timestamp,
        by: &Caller,
    ) -> Result<CampaignView> {
        let last = stage_of(&spec, ring)?;
        let mut campaign = Campaign {
            id: CampaignId::from_entropy(random(self.entropy.as_ref())),
            spec,
            state: CampaignState::Created,
            approval: Approval::NotRequired,
            target_count: 0,
            revision: 0,
            created_at: now,
            updated_at: now,
            created_by: by.subject().to_owned(),
            next_offer_at: None,
            readings: Vec::new(),
            deleted_at: None,
        };
        tx.insert_campaign(&campaign).await?; // which names nobody
        let created = EventType::CampaignCreated;
        tell(tx.as_mut(), created, None, &campaign, now, by).await?;
        let before = facts::campaign(&campaign);
        let firmware = held(tx.as_mut(), campaign.firmware()).await?;
        campaign = campaign.start(now)?;
        campaign.state = campaign.state.promote(last)?;
        campaign.target_count = made_for_somebody(tx.as_mut(), &campaign, &firmware, now).await?;
        self.settle(tx, before, campaign, EventType::CampaignStarted, now, by)
            .await
    }
}

/// A new deployment may begin: the last one reached everybody it meant, or an admin ended it. One that was rolled back
/// shows that the image is no good.
const fn is_over(state: &CampaignState) -> bool {
    matches!(
        state,
        CampaignState::Completed { .. } | CampaignState::Cancelled { .. }
    )
}

/// Everybody of the image's model, ring by ring, with every default.
fn draft_of(firmware: &Firmware) -> Result<CampaignDraft> {
    let version = firmware.metadata.version.chars().take(SHOWN_VERSION);
    let name = format!("Deploy {}", version.collect::<String>());
    let draft = serde_json::json!({ "firmware_id": firmware.id, "name": name });
    serde_json::from_value(draft).map_err(|error| Error::Internal(Box::new(error)))
}

fn stage_of(spec: &CampaignSpec, ring: Ring) -> Result<u16> {
    let mut numbered = (0..).zip(&spec.stages);
    let found = numbered.find(|(_, stage)| stage.name == ring.name());
    found.map(|(stage, _)| stage).ok_or_else(|| {
        let detail = format!("the campaign has no ring {}", ring.name());
        Error::conflict("no_such_ring", detail)
    })
}
