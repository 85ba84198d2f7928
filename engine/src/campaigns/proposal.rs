//! A campaign before its start: written, changed, looked at by somebody else (PRD, E2-US6), and deleted.

use device_ota_domain::campaign::{
    Approval, ApprovalError, Campaign, CampaignDraft, CampaignSpec, CampaignState,
    MAX_COMMENT_BYTES, Named, Verdict,
};
use device_ota_domain::event::EventType;
use device_ota_domain::{CampaignId, Firmware, ring};
use jiff::Timestamp;

use super::{CampaignView, changeable, locked, tell_naming};
use crate::ports::clock::random;
use crate::ports::store::Aim;
use crate::revision::is_of;
use crate::{Caller, Engine, Error, Result};

/// The revision of a campaign that is as it was created.
const FIRST_REVISION: i64 = 0;

/// A draft that has been checked.
pub(super) struct Proposal {
    pub(super) spec: CampaignSpec,
    pub(super) named: Named,
    pub(super) firmware: Firmware,
    requires_approval: bool,
}

impl Proposal {
    pub(super) fn aim(&self, now: Timestamp) -> Aim<'_> {
        Aim {
            spec: &self.spec,
            named: &self.named,
            firmware: &self.firmware,
            now,
        }
    }
}

impl Engine {
    /// Checks a draft. 404 for an unknown firmware, 409 for one that is out of use.
    ///
    /// The wheel is turned by what the campaign is called and what it rolls out: so a dry run names the very devices
    /// that the campaign will begin with, and yet no campaign the same canaries as the last.
    pub(super) async fn proposal(&self, draft: CampaignDraft) -> Result<Proposal> {
        let firmware = self.firmware_in_use(&draft.firmware_id).await?;
        let requires_approval = draft.requires_approval;
        let turn = ring::bucket(&format!("{}:{}", draft.firmware_id, draft.name));
        let rings = self.store.rings().await?.shares;
        let threshold = self.settings.failure_threshold_percent;
        let named = draft.named();
        let mut spec = draft.into_spec(threshold, turn, rings)?;
        let asked = crate::offers::firmware_requires(&firmware);
        spec.requires.min_battery_percent = spec
            .requires
            .min_battery_percent
            .max(asked.min_battery_percent);
        spec.requires.min_free_storage_bytes = spec
            .requires
            .min_free_storage_bytes
            .max(asked.min_free_storage_bytes);
        Ok(Proposal {
            spec,
            named,
            firmware,
            requires_approval,
        })
    }

    /// The present, and how many devices it means by now, those that the Device Service alone knew included; notes how many are
    /// left out.
    async fn count_targets(
        &self,
        proposal: &mut Proposal,
        by: &Caller,
    ) -> Result<(Timestamp, u64)> {
        let before = self.clock.now();
        self.introduce_named(proposal.aim(before), by).await?;
        // Others may have taken their time to answer.
        let now = self.clock.now();
        let summary = self.store.target_summary(proposal.aim(now)).await?;
        let count = summary.total();
        proposal.spec.targets.left_out = summary.left_out;
        Ok((now, count))
    }

    /// Creates a campaign; nothing is sent before it is started. 404 for an unknown firmware, 409 for one that is out of
    /// use.
    pub async fn create_campaign(&self, draft: CampaignDraft, by: &Caller) -> Result<CampaignView> {
        let mut proposal = self.proposal(draft).await?;
        let (now, target_count) = self.count_targets(&mut proposal, by).await?;
        let campaign = Campaign {
            id: CampaignId::from_entropy(random(self.entropy.as_ref())),
            spec: proposal.spec,
            state: CampaignState::Created,
            approval: Approval::of_new(proposal.requires_approval, by.subject()),
            target_count,
            revision: FIRST_REVISION,
            created_at: now,
            updated_at: now,
            created_by: by.subject().to_owned(),
            next_offer_at: None,
            readings: Vec::new(),
            deleted_at: None,
        };
        let mut tx = self.store.begin().await?;
        tx.insert_campaign(&campaign).await?;
        tx.save_named(&campaign.id, &proposal.named).await?;
        let (created, of) = (EventType::CampaignCreated, (&campaign, &proposal.named));
        tell_naming(tx.as_mut(), created, None, of, now, by).await?;
        self.commit(tx).await?;
        self.campaign(&campaign.id).await
    }

    /// Writes a campaign anew, before its start: 409 after it, and when it is no longer of the revision `expected`.
    /// Its targets are counted again, and every verdict on it is void.
    pub async fn edit_campaign(
        &self,
        id: &CampaignId,
        draft: CampaignDraft,
        expected: Option<i64>,
        by: &Caller,
    ) -> Result<CampaignView> {
        let mut proposal = self.proposal(draft).await?;
        // Nobody is registered for a change that is refused; what is true by then is looked at once more under the lock.
        let campaign = changeable(self.store.campaign(id).await?, id)?;
        is_of(expected, "the campaign", campaign.revision)?;
        let (spec, requires_approval) = (proposal.spec.clone(), proposal.requires_approval);
        campaign.edit(spec, requires_approval, by.subject())?;
        let (now, target_count) = self.count_targets(&mut proposal, by).await?;
        let mut tx = self.store.begin().await?;
        let (campaign, before) = locked(tx.as_mut(), id).await?;
        is_of(expected, "the campaign", campaign.revision)?;
        let mut campaign =
            campaign.edit(proposal.spec, proposal.requires_approval, by.subject())?;
        campaign.target_count = target_count;
        tx.replace_spec(&campaign).await?;
        tx.save_named(&campaign.id, &proposal.named).await?;
        campaign.updated_at = now;
        tx.save_campaign(&campaign).await?;
        let (updated, of) = (EventType::CampaignUpdated, (&campaign, &proposal.named));
        tell_naming(tx.as_mut(), updated, Some(before), of, now, by).await?;
        self.commit(tx).await?;
        self.wake();
        self.campaign(id).await
    }

    /// Agrees to a campaign as it is at the revision `expected`: 409 when it is another by now, and when none is named
    /// of a campaign that is no longer as it was created: nobody knows then what was looked at. 403 to whoever wrote it.
    pub async fn approve_campaign(
        &self,
        id: &CampaignId,
        comment: Option<String>,
        expected: Option<i64>,
        by: &Caller,
    ) -> Result<CampaignView> {
        self.judge_campaign(id, comment, expected, EventType::CampaignApproved, by)
            .await
    }

    /// Refuses a campaign; it cannot start before it is changed or approved after all. `expected` as for an approval.
    pub async fn reject_campaign(
        &self,
        id: &CampaignId,
        comment: Option<String>,
        expected: Option<i64>,
        by: &Caller,
    ) -> Result<CampaignView> {
        self.judge_campaign(id, comment, expected, EventType::CampaignRejected, by)
            .await
    }

    async fn judge_campaign(
        &self,
        id: &CampaignId,
        comment: Option<String>,
        expected: Option<i64>,
        event_type: EventType,
        by: &Caller,
    ) -> Result<CampaignView> {
        if comment
            .as_ref()
            .is_some_and(|c| c.len() > MAX_COMMENT_BYTES)
        {
            return Err(Error::invalid(
                "invalid_comment",
                format!("comment must be at most {MAX_COMMENT_BYTES} bytes"),
            ));
        }
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let (mut campaign, before) = locked(tx.as_mut(), id).await?;
        is_of(expected, "the campaign", campaign.revision)?;
        if campaign.state != CampaignState::Created {
            return Err(Error::conflict(
                "wrong_state",
                format!(
                    "a campaign that is {} cannot be judged any more",
                    campaign.state.status()
                ),
            ));
        }
        let verdict = Verdict {
            by: by.subject().to_owned(),
            at: now,
            comment,
        };
        campaign.approval = if event_type == EventType::CampaignApproved {
            let approved = campaign.approval.approve(verdict)?;
            if expected.is_none() && campaign.revision != FIRST_REVISION {
                return Err(Error::conflict(
                    "revision_required",
                    "the campaign is no longer as it was created; read it, and send its revision as If-Match",
                ));
            }
            approved
        } else {
            campaign.approval.reject(verdict)?
        };
        self.settle(tx, before, campaign, event_type, now, by).await
    }

    /// Leaves a campaign out of lists; it can still be read. 409 while it is active, and when it is no longer of the revision
    /// `expected`.
    pub async fn delete_campaign(
        &self,
        id: &CampaignId,
        expected: Option<i64>,
        by: &Caller,
    ) -> Result<CampaignView> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let (campaign, before) = locked(tx.as_mut(), id).await?;
        is_of(expected, "the campaign", campaign.revision)?;
        let campaign = campaign.delete(now)?;
        self.settle(tx, before, campaign, EventType::CampaignDeleted, now, by)
            .await
    }
}

impl From<ApprovalError> for Error {
    fn from(error: ApprovalError) -> Self {
        match error {
            ApprovalError::FourEyes(_) => Self::forbidden("four_eyes", error.to_string()),
            ApprovalError::NotRequired => {
                Self::conflict("approval_not_required", error.to_string())
            }
            ApprovalError::Missing { .. } => Self::conflict("approval_required", error.to_string()),
        }
    }
}
