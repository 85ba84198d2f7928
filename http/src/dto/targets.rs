//! What a campaign would come to, and why a device is, or is not, offered what it has.

use std::collections::BTreeMap;

use device_ota_domain::campaign::Stage;
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::why::Why;
use device_ota_domain::{CampaignId, DeviceId};
use device_ota_engine::ports::store::TargetDevice;
use device_ota_engine::{DryRun, DryRunQuery};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::Filters;
use super::campaign::{count_of, share_of};
use super::firmware::FirmwareDto;
use super::update::WhyDto;

/// A dry run: numbers of the whole, and a page of the devices, or of those that `left_out` asks for.
#[derive(Serialize, ToSchema)]
#[schema(as = DryRun)]
pub(crate) struct DryRunDto<'a> {
    firmware: FirmwareDto<'a>,
    target_device_count: u64,
    stages: Vec<StageDto<'a>>,
    left_out: LeftOutDto<'a>,
    /// Versions that devices which would be updated run, and of which there is no image: upload these first, or a rollback has nothing to
    /// send. The most frequent hundred.
    no_way_back: Vec<NoWayBackDto<'a>>,
    targets: Vec<TargetDto<'a>>,
    count: usize,
    limit: u32,
    offset: u32,
    #[schema(value_type = Object)]
    filters: &'a Filters,
}

/// A stage, and how many devices it would have.
#[derive(Serialize, ToSchema)]
#[schema(as = TargetStage)]
struct StageDto<'a> {
    name: &'a str,
    /// Cumulative; of a stage that takes a share.
    percent: Option<f64>,
    /// Cumulative; of a stage that takes a number of devices.
    count: Option<u64>,
    devices: u64,
}

/// Devices that are meant and left out.
#[derive(Serialize, ToSchema)]
#[schema(as = LeftOut)]
struct LeftOutDto<'a> {
    count: u64,
    #[schema(value_type = std::collections::BTreeMap<String, u64>)]
    by_reason: &'a BTreeMap<Exclusion, u64>,
    /// The first of those that are named one by one.
    named: Vec<NamedDto<'a>>,
    /// The page of those that `left_out` asks for; empty without.
    devices: Vec<NamedDto<'a>>,
}

/// A device that is left out.
#[derive(Serialize, ToSchema)]
#[schema(as = LeftOutDevice)]
struct NamedDto<'a> {
    device_id: &'a DeviceId,
    code: Exclusion,
    detail: String,
}

/// A version that a rollback could not bring back.
#[derive(Serialize, ToSchema)]
#[schema(as = NoWayBack)]
struct NoWayBackDto<'a> {
    /// Null: of devices that never said what they run.
    firmware_version: Option<&'a str>,
    devices: u64,
}

/// A device that would be updated.
#[derive(Serialize, ToSchema)]
#[schema(as = Target)]
struct TargetDto<'a> {
    device_id: &'a DeviceId,
    stage: &'a str,
    firmware_version: Option<&'a str>,
    online: bool,
    last_seen: Option<Timestamp>,
    /// The campaign of which it has an open update, which comes first.
    waits_for_campaign: Option<&'a CampaignId>,
}

impl<'a> DryRunDto<'a> {
    pub(crate) fn new(run: &'a DryRun, asked: &DryRunQuery, filters: &'a Filters) -> Self {
        let stages = run.spec.stages.iter().zip(&run.summary.stages);
        let targets: Vec<_> = run
            .targets
            .iter()
            .map(|(target, stage)| TargetDto::new(target, run.spec.stages.get(usize::from(*stage))))
            .collect();
        Self {
            firmware: FirmwareDto::from(&run.firmware),
            target_device_count: run.summary.total(),
            stages: stages
                .map(|(stage, devices)| StageDto {
                    name: &stage.name,
                    percent: share_of(stage),
                    count: count_of(stage),
                    devices: *devices,
                })
                .collect(),
            left_out: LeftOutDto {
                count: run.summary.left_out.values().sum(),
                by_reason: &run.summary.left_out,
                named: run
                    .left_out
                    .iter()
                    .map(|(device, reason)| NamedDto::new(device, *reason))
                    .collect(),
                devices: asked.left_out.map_or_else(Vec::new, |reason| {
                    let devices = run.excluded.iter();
                    devices
                        .map(|device| NamedDto::new(device, reason))
                        .collect()
                }),
            },
            no_way_back: run
                .no_way_back
                .iter()
                .map(|(version, devices)| NoWayBackDto {
                    firmware_version: version.as_deref(),
                    devices: *devices,
                })
                .collect(),
            count: targets.len() + run.excluded.len(),
            targets,
            limit: asked.page.limit,
            offset: asked.page.offset,
            filters,
        }
    }
}

impl<'a> NamedDto<'a> {
    fn new(device_id: &'a DeviceId, reason: Exclusion) -> Self {
        Self {
            device_id,
            code: reason,
            detail: reason.to_string(),
        }
    }
}

impl<'a> TargetDto<'a> {
    fn new(target: &'a TargetDevice, stage: Option<&'a Stage>) -> Self {
        let device = &target.device;
        Self {
            device_id: &device.registration.device_id,
            stage: stage.map_or("", |stage| &stage.name),
            firmware_version: device.running(),
            online: device.latest.online,
            last_seen: device.latest.last_seen,
            waits_for_campaign: target.waits_for.as_ref(),
        }
    }
}

/// Why a device is, or is not, offered what a campaign has for it.
#[derive(Serialize, ToSchema)]
#[schema(as = Reasons)]
pub(crate) struct ReasonsDto<'a> {
    campaign_id: &'a CampaignId,
    device_id: &'a DeviceId,
    reasons: Vec<WhyDto>,
}

impl<'a> ReasonsDto<'a> {
    pub(crate) fn new(
        campaign_id: &'a CampaignId,
        device_id: &'a DeviceId,
        reasons: Vec<Why>,
    ) -> Self {
        Self {
            campaign_id,
            device_id,
            reasons: reasons.into_iter().map(WhyDto::from).collect(),
        }
    }
}
