//! Campaigns and how far they are (PRD, E2; appendix 2).

use std::collections::BTreeMap;

use device_ota_domain::campaign::{
    Abort, Approval, CampaignDraft, CampaignSpec, CampaignState, Counts, Failures, Gate, Health,
    Named, Priority, Rate, RateDraft, Requires, Running, Schedule, Stage, Strategy, Takes, Tally,
    TimeoutsDraft, Window,
};
use device_ota_domain::filter::Filter;
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::{CampaignId, RollbackTrigger};
use device_ota_engine::CampaignView;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use super::firmware::FirmwareDto;
use super::health::{self, HealthFigureDto};
use super::names;
use super::round;
use super::update::WhyDto;

/// A campaign.
#[derive(Serialize, ToSchema)]
#[schema(as = Campaign)]
pub(crate) struct CampaignDto<'a> {
    campaign_id: &'a CampaignId,
    name: &'a str,
    description: Option<&'a str>,
    firmware: FirmwareDto<'a>,
    #[schema(schema_with = statuses)]
    status: &'static str,
    status_reason: Option<&'a str>,
    deployment_strategy: Strategy,
    priority: Priority,
    rollout_percentage: f64,
    max_concurrent_updates: u32,
    batch_size: u32,
    rate: Option<RateDraft>,
    bandwidth_bytes_per_second: Option<u64>,
    timeout_minutes: f64,
    timeouts: TimeoutsDraft,
    give_up_after_hours: Option<f64>,
    max_retries: u32,
    auto_rollback: bool,
    failure_threshold_percent: f64,
    failure_min_samples: u64,
    abort: &'a [Abort],
    health: &'a Health,
    /// What its criteria of health have found, in their order; empty before they were first read.
    health_figures: Vec<HealthFigureDto>,
    requires: Requires,
    /// It takes in devices that it comes to mean after its start.
    continuous: bool,
    schedule: Schedule,
    windows: &'a [Window],
    target_groups: &'a [String],
    target_filters: Option<&'a Filter>,
    target_device_count: u64,
    /// Devices that its targets mean and that were left out when it was written, by reason; a dry run tells which.
    #[schema(value_type = BTreeMap<String, u64>)]
    left_out: &'a BTreeMap<Exclusion, u64>,
    total_devices: u64,
    pending_devices: u64,
    in_progress_devices: u64,
    /// They hold the image in their idle slot and wait for the stage `activate` (strategy `blue_green`).
    staged_devices: u64,
    completed_devices: u64,
    /// Of the completed ones, those that have not stayed well: they count as failed.
    regressed_devices: u64,
    failed_devices: u64,
    /// The failed and the regressed ones by kind.
    failures: Failures,
    cancelled_devices: u64,
    /// Failed and regressed ones among those that completed or failed.
    failure_rate_percent: f64,
    stages: Vec<StageDto<'a>>,
    /// It goes no further than this stage before it is promoted.
    up_to_stage: Option<&'a str>,
    rollback: RollbackTallyDto,
    rollback_trigger: Option<RollbackTrigger>,
    waits: Vec<WhyDto>,
    /// The campaign as it is changed by `PUT`, with every default said; shown where one campaign is read, null elsewhere.
    draft: Option<CampaignDraft>,
    requires_approval: bool,
    approval: ApprovalDto<'a>,
    approved_by: Option<&'a str>,
    revision: i64,
    created_at: Timestamp,
    updated_at: Timestamp,
    started_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    created_by: &'a str,
    deleted_at: Option<Timestamp>,
}

/// Whether somebody else has agreed to it (PRD, E2-US6).
#[derive(Serialize, ToSchema)]
#[schema(as = Approval)]
struct ApprovalDto<'a> {
    #[schema(schema_with = approvals)]
    status: &'static str,
    by: Option<&'a str>,
    at: Option<Timestamp>,
    comment: Option<&'a str>,
}

fn approvals() -> Object {
    names(["not_required", "pending", "approved", "rejected"])
}

impl<'a> From<&'a Approval> for ApprovalDto<'a> {
    fn from(approval: &'a Approval) -> Self {
        let verdict = approval.verdict();
        Self {
            status: approval.status(),
            by: verdict.map(|verdict| verdict.by.as_str()),
            at: verdict.map(|verdict| verdict.at),
            comment: verdict.and_then(|verdict| verdict.comment.as_deref()),
        }
    }
}

/// A stage and where its devices stand.
#[derive(Serialize, ToSchema)]
#[schema(as = Stage)]
struct StageDto<'a> {
    name: &'a str,
    /// Cumulative; of a stage that takes a share.
    percent: Option<f64>,
    /// Cumulative; of a stage that takes a number of devices.
    count: Option<u64>,
    gate: Gate,
    open: bool,
    devices: u64,
    pending: u64,
    in_progress: u64,
    staged: u64,
    completed: u64,
    /// Of the completed ones, those that have not stayed well.
    regressed: u64,
    failed: u64,
    cancelled: u64,
}

/// Where a campaign's rollbacks stand.
#[derive(Serialize, ToSchema)]
#[schema(as = RollbackTally)]
struct RollbackTallyDto {
    pending: u64,
    in_flight: u64,
    completed: u64,
    /// Devices that may still run what was to be taken back.
    failed: u64,
    /// Withdrawn, or of devices that had moved on or were deleted.
    cancelled: u64,
}

/// The stage that the campaign does not go beyond.
fn up_to_stage<'a>(spec: &'a CampaignSpec, state: &CampaignState) -> Option<&'a str> {
    let (CampaignState::InProgress(running) | CampaignState::Paused { running, .. }) = state else {
        return None;
    };
    let last = usize::from(running.up_to_stage?);
    Some(&spec.stages.get(last)?.name)
}

pub(crate) fn statuses() -> Object {
    names(CampaignState::STATUSES)
}

impl<'a> From<&'a CampaignView> for CampaignDto<'a> {
    fn from(view: &'a CampaignView) -> Self {
        let (campaign, spec, state) = (&view.campaign, &view.campaign.spec, &view.campaign.state);
        let tally = updates(view);
        let (timeouts, give_up_after_hours) = TimeoutsDraft::of(&spec.times);
        Self {
            campaign_id: &campaign.id,
            name: &spec.name,
            description: spec.description.as_deref(),
            firmware: FirmwareDto::from(&view.firmware),
            status: state.status(),
            status_reason: reason(state),
            deployment_strategy: spec.strategy,
            priority: spec.priority,
            rollout_percentage: percent(spec.rollout_buckets),
            max_concurrent_updates: spec.max_concurrent_updates,
            batch_size: spec.batch_size,
            rate: spec.rate.map(Rate::to_draft),
            bandwidth_bytes_per_second: spec.bandwidth_bytes_per_second,
            timeout_minutes: std::time::Duration::from_secs(spec.timeout_seconds).as_secs_f64()
                / 60.0,
            timeouts,
            give_up_after_hours,
            max_retries: spec.max_retries,
            auto_rollback: spec.auto_rollback,
            failure_threshold_percent: spec.failure_threshold_percent,
            failure_min_samples: spec.failure_min_samples,
            abort: &spec.abort,
            health: &spec.health,
            health_figures: health::figures(campaign),
            requires: spec.requires,
            continuous: spec.continuous,
            schedule: spec.schedule,
            windows: &spec.windows.0,
            target_groups: &spec.targets.groups,
            target_filters: spec.targets.filter.as_ref(),
            target_device_count: campaign.target_count,
            left_out: &spec.targets.left_out,
            total_devices: tally.total(),
            pending_devices: tally.pending,
            in_progress_devices: tally.in_flight,
            staged_devices: tally.staged,
            completed_devices: tally.completed,
            regressed_devices: tally.regressed,
            failed_devices: tally.failed,
            failures: view.counts.failures,
            cancelled_devices: tally.cancelled,
            failure_rate_percent: round(tally.judged().failure_percent().unwrap_or(0.0)),
            stages: stages(spec, &view.counts, open_stage(state)),
            up_to_stage: up_to_stage(spec, state),
            rollback: RollbackTallyDto::from(&view.counts.rollbacks),
            rollback_trigger: trigger(state),
            waits: view.waits.iter().cloned().map(WhyDto::from).collect(),
            draft: None,
            requires_approval: campaign.approval != Approval::NotRequired,
            approval: ApprovalDto::from(&campaign.approval),
            approved_by: match &campaign.approval {
                Approval::Approved { verdict, .. } => Some(&verdict.by),
                _ => None,
            },
            revision: campaign.revision,
            created_at: campaign.created_at,
            updated_at: campaign.updated_at,
            started_at: state.started_at(),
            completed_at: ended_at(state),
            created_by: &campaign.created_by,
            deleted_at: campaign.deleted_at,
        }
    }
}

impl<'a> CampaignDto<'a> {
    /// With the draft: all that it names, up to 200,000 devices. Lists and answers to actions go without.
    pub(crate) fn with_draft(view: &'a CampaignView, named: &Named) -> Self {
        let dto = Self::from(view);
        let draft = view.campaign.spec.to_draft(named, dto.requires_approval);
        Self {
            draft: Some(draft),
            ..dto
        }
    }
}

/// Before the start there are no rows to count: all that it would mean are pending.
fn updates(view: &CampaignView) -> Tally {
    match view.campaign.state {
        CampaignState::Created => Tally {
            pending: view.campaign.target_count,
            ..Tally::default()
        },
        _ => view.counts.updates(),
    }
}

fn stages<'a>(spec: &'a CampaignSpec, counts: &Counts, open: Option<u16>) -> Vec<StageDto<'a>> {
    let tallies = counts
        .stages
        .iter()
        .copied()
        .chain(std::iter::repeat(Tally::default()));
    let numbered = spec.stages.iter().zip(tallies).zip(0_u16..);
    let dto = |((stage, tally), number): ((&'a Stage, Tally), u16)| StageDto {
        name: &stage.name,
        percent: share_of(stage),
        count: count_of(stage),
        gate: stage.gate,
        open: open.is_some_and(|open| number <= open),
        devices: tally.total(),
        pending: tally.pending,
        in_progress: tally.in_flight,
        staged: tally.staged,
        completed: tally.completed,
        regressed: tally.regressed,
        failed: tally.failed,
        cancelled: tally.cancelled,
    };
    numbered.map(dto).collect()
}

/// The share that a stage takes, in percent.
pub(super) fn share_of(stage: &Stage) -> Option<f64> {
    (stage.takes == Takes::Share).then(|| percent(stage.end_bucket))
}

/// The number of devices that a stage takes.
pub(super) const fn count_of(stage: &Stage) -> Option<u64> {
    match stage.takes {
        Takes::First(count) => Some(count),
        _ => None,
    }
}

pub(crate) fn percent(buckets: u16) -> f64 {
    f64::from(buckets) / 100.0
}

fn running(state: &CampaignState) -> Option<&Running> {
    match state {
        CampaignState::InProgress(running) | CampaignState::Paused { running, .. } => Some(running),
        _ => None,
    }
}

/// The highest open stage; a campaign that ran to its end had opened all.
fn open_stage(state: &CampaignState) -> Option<u16> {
    match state {
        CampaignState::Completed { .. } => Some(u16::MAX),
        other => running(other).map(|running| running.open_stage),
    }
}

fn reason(state: &CampaignState) -> Option<&str> {
    match state {
        CampaignState::Paused { reason, .. }
        | CampaignState::RollingBack { reason, .. }
        | CampaignState::RolledBack { reason, .. } => Some(reason),
        CampaignState::Cancelled { reason, .. } => reason.as_deref(),
        _ => None,
    }
}

fn trigger(state: &CampaignState) -> Option<RollbackTrigger> {
    match state {
        CampaignState::RollingBack { trigger, .. } | CampaignState::RolledBack { trigger, .. } => {
            Some(*trigger)
        }
        _ => None,
    }
}

fn ended_at(state: &CampaignState) -> Option<Timestamp> {
    match state {
        CampaignState::RolledBack { ended_at, .. }
        | CampaignState::Completed { ended_at, .. }
        | CampaignState::Cancelled { ended_at, .. } => Some(*ended_at),
        _ => None,
    }
}

impl From<&Tally> for RollbackTallyDto {
    fn from(tally: &Tally) -> Self {
        Self {
            pending: tally.pending,
            in_flight: tally.in_flight,
            completed: tally.completed,
            failed: tally.failed,
            cancelled: tally.cancelled,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
