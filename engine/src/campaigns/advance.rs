//! A person opens the next stage of a campaign.

use device_ota_domain::CampaignId;
use device_ota_domain::audit::Act;
use device_ota_domain::campaign::Named;
use device_ota_domain::event::EventType;
use device_ota_domain::planner::{self, Advance, AdvanceError};

use super::{CampaignView, locked, put, record};
use crate::revision::is_of;
use crate::{Caller, Engine, Error, Result};

impl Engine {
    /// Opens the next stage (see [`planner::advance`]): 409 when nothing waits for a person, when it is open already, and when
    /// the campaign is no longer of the revision `expected`.
    pub async fn advance_campaign(
        &self,
        id: &CampaignId,
        asked: Advance<'_>,
        expected: Option<i64>,
        by: &Caller,
    ) -> Result<CampaignView> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let (campaign, before) = locked(tx.as_mut(), id).await?;
        is_of(expected, "the campaign", campaign.revision)?;
        let counts = tx.counts(id).await?;
        let campaign = planner::advance(now, campaign, &counts, asked)?;
        record(
            tx.as_mut(),
            Act::CampaignAdvanced,
            Some(before.clone()),
            (&campaign, &Named::default()),
            now,
            by,
        )
        .await?;
        let opened = EventType::CampaignStageOpened;
        put(tx.as_mut(), before, campaign, opened, now, by).await?;
        self.commit(tx).await?;
        self.wake();
        self.campaign(id).await
    }
}

impl From<AdvanceError> for Error {
    fn from(error: AdvanceError) -> Self {
        let detail = error.to_string();
        match error {
            AdvanceError::State(error) => error.into(),
            AdvanceError::NoSuchStage { .. } | AdvanceError::Unnamed => {
                Self::invalid("invalid_stage", detail)
            }
            AdvanceError::OpenAlready(_) | AdvanceError::NotNext { .. } => {
                Self::conflict("wrong_stage", detail)
            }
            AdvanceError::Last | AdvanceError::NothingWaits { .. } => {
                Self::conflict("nothing_waits", detail)
            }
        }
    }
}
