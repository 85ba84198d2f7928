//! Campaigns and how far they are (PRD, E2; appendix 2).

use device_ota_domain::campaign::{
    Abort, Approval, CampaignDraft, CampaignSpec, CampaignState, Counts, Failures, Gate, Priority,
    Rate, RateDraft, Requires, Running, Schedule, Stage, Strategy, Takes, Tally, Window,
};
use device_ota_domain::filter::Filter;
use device_ota_domain::{CampaignId, RollbackTrigger};
use device_ota_engine::CampaignView;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use super::firmware::FirmwareDto;
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
    timeout_minutes: f64,
    max_retries: u32,
    auto_rollback: bool,
    failure_threshold_percent: f64,
    failure_min_samples: u64,
    abort: &'a [Abort],
    requires: Requires,
    schedule: Schedule,
    windows: &'a [Window],
    target_groups: &'a [String],
    target_filters: Option<&'a Filter>,
    target_device_count: u64,
    total_devices: u64,
    pending_devices: u64,
    in_progress_devices: u64,
    /// They hold the image in their idle slot and wait for the stage `activate` (strategy `blue_green`).
    staged_devices: u64,
    completed_devices: u64,
    failed_devices: u64,
    /// The failed ones by kind.
    failures: Failures,
    cancelled_devices: u64,
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
    failed: u64,
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
            timeout_minutes: std::time::Duration::from_secs(spec.timeout_seconds).as_secs_f64()
                / 60.0,
            max_retries: spec.max_retries,
            auto_rollback: spec.auto_rollback,
            failure_threshold_percent: spec.failure_threshold_percent,
            failure_min_samples: spec.failure_min_samples,
            abort: &spec.abort,
            requires: spec.requires,
            schedule: spec.schedule,
            windows: &spec.windows.0,
            target_groups: &spec.targets.groups,
            target_filters: spec.targets.filter.as_ref(),
            target_device_count: campaign.target_count,
            total_devices: tally.total(),
            pending_devices: tally.pending,
            in_progress_devices: tally.in_flight,
            staged_devices: tally.staged,
            completed_devices: tally.completed,
            failed_devices: tally.failed,
            failures: view.counts.failures,
            cancelled_devices: tally.cancelled,
            failure_rate_percent: round(tally.failure_percent().unwrap_or(0.0)),
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
    pub(crate) fn with_draft(view: &'a CampaignView) -> Self {
        let dto = Self::from(view);
        let draft = view.campaign.spec.to_draft(dto.requires_approval);
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
            failed: tally.failed.saturating_add(tally.cancelled),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use device_ota_domain::Campaign;
    use device_ota_domain::campaign::Accepted;
    use device_ota_domain::why::Why;

    use super::super::firmware::tests::firmware;
    use super::*;

    fn view(state: CampaignState, counts: Counts) -> CampaignView {
        let firmware = firmware();
        let draft = serde_json::json!({
            "name": "Security Patch Q4 2025", "firmware_id": firmware.id, "deployment_strategy": "staged",
            "priority": "high", "auto_rollback": true, "failure_threshold_percent": 20,
            "stages": [{"ring": "canary"}]
        });
        let at = Timestamp::from_second(1_766_052_300).unwrap();
        let campaign = Campaign {
            id: "camp_789abcdef0123456".parse().unwrap(),
            spec: serde_json::from_value::<CampaignDraft>(draft)
                .unwrap()
                .into_spec(10.0, 7, device_ota_domain::ring::Shares::default())
                .unwrap(),
            state,
            approval: Approval::NotRequired,
            target_count: 2,
            revision: 0,
            created_at: at,
            updated_at: at,
            created_by: "admin".to_owned(),
            next_offer_at: None,
            deleted_at: None,
        };
        CampaignView {
            campaign,
            counts,
            firmware,
            waits: vec![Why::GateSamples { have: 1, need: 2 }],
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a whole body")]
    fn before_its_start_every_device_it_means_is_pending() {
        let view = view(CampaignState::Created, Counts::default());
        let mut json = serde_json::to_value(CampaignDto::from(&view)).unwrap();
        let fields = json.as_object_mut().unwrap();
        for long in [
            "firmware", "approval", "requires", "rollback", "schedule", "failures",
        ] {
            fields.insert(long.to_owned(), "…".into());
        }
        insta::assert_snapshot!(serde_json::to_string_pretty(&json).unwrap(), @r#"
        {
          "abort": [],
          "approval": "…",
          "approved_by": null,
          "auto_rollback": true,
          "batch_size": 100,
          "campaign_id": "camp_789abcdef0123456",
          "cancelled_devices": 0,
          "completed_at": null,
          "completed_devices": 0,
          "created_at": "2025-12-18T10:05:00Z",
          "created_by": "admin",
          "deleted_at": null,
          "deployment_strategy": "staged",
          "description": null,
          "draft": null,
          "failed_devices": 0,
          "failure_min_samples": 1,
          "failure_rate_percent": 0.0,
          "failure_threshold_percent": 20.0,
          "failures": "…",
          "firmware": "…",
          "in_progress_devices": 0,
          "max_concurrent_updates": 100,
          "max_retries": 3,
          "name": "Security Patch Q4 2025",
          "pending_devices": 2,
          "priority": "high",
          "rate": null,
          "requires": "…",
          "requires_approval": false,
          "revision": 0,
          "rollback": "…",
          "rollback_trigger": null,
          "rollout_percentage": 100.0,
          "schedule": "…",
          "staged_devices": 0,
          "stages": [
            {
              "cancelled": 0,
              "completed": 0,
              "count": null,
              "devices": 0,
              "failed": 0,
              "gate": {
                "manual": false,
                "min_samples": null,
                "min_success_percent": 80.0,
                "soak_seconds": 0
              },
              "in_progress": 0,
              "name": "canary",
              "open": false,
              "pending": 0,
              "percent": 5.0,
              "staged": 0
            },
            {
              "cancelled": 0,
              "completed": 0,
              "count": null,
              "devices": 0,
              "failed": 0,
              "gate": {
                "manual": false,
                "min_samples": null,
                "min_success_percent": 80.0,
                "soak_seconds": 0
              },
              "in_progress": 0,
              "name": "100%",
              "open": false,
              "pending": 0,
              "percent": 100.0,
              "staged": 0
            }
          ],
          "started_at": null,
          "status": "created",
          "status_reason": null,
          "target_device_count": 2,
          "target_filters": null,
          "target_groups": [],
          "timeout_minutes": 60.0,
          "total_devices": 2,
          "up_to_stage": null,
          "updated_at": "2025-12-18T10:05:00Z",
          "waits": [
            {
              "code": "gate_samples",
              "detail": "the stage has 1 results and needs 2",
              "have": 1,
              "need": 2
            }
          ],
          "windows": []
        }
        "#);
    }

    #[test]
    fn a_running_campaign_counts_by_stage_and_as_a_whole() {
        let started_at = Timestamp::from_second(1_766_052_400).unwrap();
        let state = CampaignState::InProgress(Running {
            started_at,
            open_stage: 0,
            stage_opened_at: started_at,
            accepted: Accepted::default(),
            up_to_stage: Some(0),
        });
        let canary = Tally {
            completed: 3,
            failed: 1,
            in_flight: 2,
            ..Tally::default()
        };
        let rest = Tally {
            pending: 94,
            ..Tally::default()
        };
        let view = view(
            state,
            Counts {
                stages: vec![canary, rest],
                ..Counts::default()
            },
        );
        let dto = CampaignDto::from(&view);
        assert_eq!(dto.up_to_stage, Some("canary"));
        let counts = (
            dto.total_devices,
            dto.pending_devices,
            dto.in_progress_devices,
            dto.completed_devices,
        );
        assert_eq!(counts, (100, 94, 2, 3));
        assert!((dto.failure_rate_percent - 25.0).abs() < f64::EPSILON);
        let stages: Vec<_> = dto
            .stages
            .iter()
            .map(|s| (s.name, s.open, s.devices, s.completed))
            .collect();
        assert_eq!(stages, [("canary", true, 6, 3), ("100%", false, 94, 0)]);
    }
}
