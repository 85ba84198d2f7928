//! Whom a campaign would mean, before anything is sent: how many and which, stage by stage, and who is left out and why.

use device_ota_domain::campaign::{CampaignDraft, CampaignSpec, CampaignState, Named};
use device_ota_domain::page::{MAX_LIMIT, Page};
use device_ota_domain::targeting::{Exclusion, Stages, judge_meant};
use device_ota_domain::{CampaignId, Device, DeviceId, Firmware};

use super::proposal::Proposal;
use crate::ports::store::{Aim, TargetDevice, TargetSummary};
use crate::{Engine, Error, Result};

/// What a campaign would come to.
#[derive(Debug, Clone)]
pub struct DryRun {
    /// What it would do.
    pub spec: CampaignSpec,
    /// With what.
    pub firmware: Firmware,
    /// How many, by stage, and how many are left out.
    pub summary: TargetSummary,
    /// Versions that its devices run and that a rollback could not bring back, for want of an image, each with how many run it.
    pub no_way_back: Vec<(Option<String>, u64)>,
    /// A page of the devices, each with its stage; empty where those that are left out are asked for.
    pub targets: Vec<(TargetDevice, u16)>,
    /// A page of the devices that are left out for the reason that was asked for.
    pub excluded: Vec<DeviceId>,
    /// The first of the named devices that are left out.
    pub left_out: Vec<(DeviceId, Exclusion)>,
}

/// What of a dry run is shown.
#[derive(Debug, Clone, Default)]
pub struct DryRunQuery {
    /// Devices of this stage alone, by name.
    pub stage: Option<String>,
    /// Instead of them those that are left out for this reason.
    pub left_out: Option<Exclusion>,
    /// Which of them.
    pub page: Page,
}

impl Engine {
    /// What a campaign of this draft would come to; nothing is created.
    pub async fn dry_run(&self, draft: CampaignDraft, query: &DryRunQuery) -> Result<DryRun> {
        let Proposal {
            spec,
            named,
            firmware,
            ..
        } = self.proposal(draft).await?;
        self.run_dry(spec, &named, firmware, query).await
    }

    /// What a campaign would come to if it started now. 409 once it has: then it has updates, which say more.
    pub async fn campaign_targets(&self, id: &CampaignId, query: &DryRunQuery) -> Result<DryRun> {
        let view = self.campaign(id).await?;
        if view.campaign.state != CampaignState::Created {
            return Err(Error::conflict(
                "wrong_state",
                "the campaign has begun; its devices are at its path with /devices",
            ));
        }
        let named = self.named(&view.campaign).await?;
        self.run_dry(view.campaign.spec, &named, view.firmware, query)
            .await
    }

    async fn run_dry(
        &self,
        spec: CampaignSpec,
        named: &Named,
        firmware: Firmware,
        query: &DryRunQuery,
    ) -> Result<DryRun> {
        let aim = Aim {
            spec: &spec,
            named,
            firmware: &firmware,
            now: self.clock.now(),
        };
        // All of the named are meant.
        let verdict = |device: &Device| judge_meant(&spec, &firmware.metadata, device);
        let stage = query.stage.as_deref().map(|name| stage_of(&spec, name));
        let summary = self.store.target_summary(aim).await?;
        let stage = stage.transpose()?;
        let no_way_back = self.store.no_way_back(aim).await?;
        let (targets, excluded) = match query.left_out {
            None => {
                let cuts = &summary.cuts;
                let targets = self.store.targets(aim, cuts, stage, query.page);
                (targets.await?, Vec::new())
            }
            Some(because) => {
                let excluded = self.store.excluded(aim, because, query.page);
                (Vec::new(), excluded.await?)
            }
        };
        let stages = Stages::new(&spec, named, &summary.cuts);
        let targets = targets
            .into_iter()
            .filter_map(|target| {
                let stage = stages.stage_of(&target.device, aim.now)?;
                Some((target, stage))
            })
            .collect();
        let first = Page {
            limit: MAX_LIMIT,
            offset: 0,
        };
        let left_out = self.store.left_out(aim, first).await?;
        let left_out = left_out
            .into_iter()
            .filter_map(|(id, device)| {
                let reason = device
                    .as_ref()
                    .map_or(Some(Exclusion::UnknownDevice), |d| verdict(d).err());
                Some((id, reason?))
            })
            .collect();
        Ok(DryRun {
            spec,
            firmware,
            summary,
            no_way_back,
            targets,
            excluded,
            left_out,
        })
    }
}

fn stage_of(spec: &CampaignSpec, name: &str) -> Result<u16> {
    let numbered = (0..).zip(&spec.stages);
    let mut found = numbered.filter(|(_, stage)| stage.name == name);
    found.next().map(|(number, _)| number).ok_or_else(|| {
        let names: Vec<&str> = spec.stages.iter().map(|s| s.name.as_str()).collect();
        let detail = format!(
            "the campaign has no stage {name:?}; it has {}",
            names.join(", ")
        );
        Error::invalid("invalid_query", detail)
    })
}
