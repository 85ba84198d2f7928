//! Updates and how far they are (PRD, E3; appendix 3).

use std::borrow::Cow;

use device_ota_domain::campaign::{Priority, TimeoutsDraft};
use device_ota_domain::update::{Action, Failure, Phase, Update, UpdateState};
use device_ota_domain::why::Why;
use device_ota_domain::{CampaignId, DeviceId, FirmwareId, UpdateId};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use super::firmware::FirmwareRef;
use super::names;
use super::round;

/// One update of one device.
#[derive(Serialize, ToSchema)]
#[schema(as = Update)]
pub(crate) struct UpdateDto<'a> {
    update_id: &'a UpdateId,
    device_id: &'a DeviceId,
    campaign_id: Option<&'a CampaignId>,
    action: Action,
    firmware_id: Option<&'a FirmwareId>,
    firmware: Option<&'a FirmwareRef>,
    #[schema(schema_with = statuses)]
    status: &'static str,
    priority: Priority,
    progress_percentage: f64,
    #[schema(schema_with = statuses)]
    current_phase: &'static str,
    download_progress: f64,
    download_speed: u64,
    bytes_done: u64,
    bytes_total: u64,
    from_version: Option<&'a str>,
    to_version: &'a str,
    error_code: Option<&'a str>,
    error_message: Option<Cow<'a, str>>,
    /// Completed, and its device has not stayed well: when that was seen. `error_code` says how; it counts as failed.
    regressed_at: Option<Timestamp>,
    /// Completed: whether its device stays well is looked at until then.
    watched_until: Option<Timestamp>,
    retry_count: u32,
    max_retries: u32,
    attempt: u32,
    stage: u16,
    cancel_requested: bool,
    timeout_minutes: f64,
    timeouts: TimeoutsDraft,
    give_up_after_hours: Option<f64>,
    /// When it is given up, if it is not done before; null where it waits for as long as it takes, or its stage has not opened.
    give_up_at: Option<Timestamp>,
    why: Option<WhyDto>,
    scheduled_at: Timestamp,
    started_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    duration_seconds: Option<f64>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// A reason to wait: a code for programs, its details, and a sentence for people.
#[derive(Serialize, ToSchema)]
#[schema(as = Reason)]
pub(crate) struct WhyDto {
    #[serde(flatten)]
    why: Why,
    detail: String,
}

impl From<Why> for WhyDto {
    fn from(why: Why) -> Self {
        Self {
            detail: why.to_string(),
            why,
        }
    }
}

fn statuses() -> Object {
    let phases = Phase::ALL.map(Phase::name);
    let ends = ["completed", "failed", "cancelled"];
    names(std::iter::once("scheduled").chain(phases).chain(ends))
}

impl<'a> UpdateDto<'a> {
    pub(crate) fn new(
        update: &'a Update,
        firmware: Option<&'a FirmwareRef>,
        why: Option<Why>,
    ) -> Self {
        let error = error(update);
        let completed_at = ended_at(update);
        let download = download_percent(update);
        let (timeouts, give_up_after_hours) = TimeoutsDraft::of(&update.times);
        Self {
            update_id: &update.id,
            device_id: &update.device_id,
            campaign_id: update.campaign.as_ref(),
            action: update.action,
            firmware_id: update.firmware.as_ref(),
            firmware,
            status: update.status(),
            priority: update.priority,
            progress_percentage: round(overall_percent(update, download)),
            current_phase: update.status(),
            download_progress: round(download),
            download_speed: update.progress.speed_bps,
            bytes_done: update.progress.bytes_done,
            bytes_total: update.progress.bytes_total,
            from_version: update.from_version.as_deref(),
            to_version: &update.to_version,
            error_code: error.as_ref().map(|(code, _)| *code),
            error_message: error.map(|(_, message)| message),
            regressed_at: update.regression().map(|regression| regression.at),
            watched_until: update.watch().map(|watch| watch.until),
            retry_count: update.retries,
            max_retries: update.max_retries,
            attempt: update.attempt,
            stage: update.stage,
            cancel_requested: matches!(
                update.state,
                UpdateState::InFlight {
                    cancel_requested: true,
                    ..
                }
            ),
            timeout_minutes: std::time::Duration::from_secs(update.timeout_seconds).as_secs_f64()
                / 60.0,
            timeouts,
            give_up_after_hours,
            give_up_at: update.give_up_at.filter(|_| !update.is_terminal()),
            why: why.map(WhyDto::from),
            scheduled_at: scheduled_at(update),
            started_at: update.started_at,
            completed_at,
            duration_seconds: update
                .started_at
                .zip(completed_at)
                .map(|(from, to)| to.duration_since(from).as_secs_f64()),
            created_at: update.created_at,
            updated_at: update.updated_at,
        }
    }
}

/// What went wrong: the end, what came after it, or the attempt before the one that is waited for; or why its device was none of its
/// campaign's any more. A code, and a sentence for people.
fn error(update: &Update) -> Option<(&str, Cow<'_, str>)> {
    match &update.state {
        UpdateState::Failed { failure, .. } => Some(told(failure)),
        UpdateState::Pending { last_failure, .. } => last_failure.as_ref().map(told),
        UpdateState::Cancelled { because, .. } => {
            because.map(|because| (because.name(), because.to_string().into()))
        }
        _ => update
            .regression()
            .map(|regression| told(&regression.failure)),
    }
}

fn ended_at(update: &Update) -> Option<Timestamp> {
    match update.state {
        UpdateState::Completed { at }
        | UpdateState::Failed { at, .. }
        | UpdateState::Cancelled { at, .. } => Some(at),
        UpdateState::Pending { .. } | UpdateState::InFlight { .. } | UpdateState::Staged { .. } => {
            None
        }
    }
}

fn scheduled_at(update: &Update) -> Timestamp {
    match update.state {
        UpdateState::Pending { due_at, .. } => due_at,
        _ => update.created_at,
    }
}

/// The share of the whole way at which each phase begins and ends, in percent: most of the time goes into reading
/// the image and writing it.
fn span(phase: Phase) -> (f64, f64) {
    match phase {
        Phase::Offered => (0.0, 0.0),
        Phase::Accepted => (2.0, 5.0),
        Phase::Downloading => (5.0, 60.0),
        Phase::Verifying => (60.0, 70.0),
        Phase::Installing => (70.0, 95.0),
        Phase::Staged => (95.0, 95.0),
        Phase::Rebooting => (95.0, 99.0),
    }
}

/// Of the whole way, 0–100. An update that ended without success stays where its download was.
fn overall_percent(update: &Update, download: f64) -> f64 {
    match update.state {
        UpdateState::Completed { .. } => 100.0,
        UpdateState::Pending { .. } => 0.0,
        UpdateState::Staged { .. } => span(Phase::Staged).1,
        UpdateState::InFlight { phase, .. } => {
            let (from, to) = span(phase);
            let within = if phase == Phase::Downloading && download > 0.0 {
                download
            } else {
                update.progress.percent
            };
            from + (to - from) * within.clamp(0.0, 100.0) / 100.0
        }
        UpdateState::Failed { .. } | UpdateState::Cancelled { .. } => {
            let (from, to) = span(Phase::Downloading);
            if download > 0.0 {
                from + (to - from) * download / 100.0
            } else {
                0.0
            }
        }
    }
}

/// Of the image's bytes, 0–100.
fn download_percent(update: &Update) -> f64 {
    let progress = &update.progress;
    match update.state {
        UpdateState::Completed { .. } | UpdateState::Staged { .. } => 100.0,
        UpdateState::Pending { .. } => 0.0,
        UpdateState::InFlight { phase, .. } if phase > Phase::Downloading => 100.0,
        UpdateState::InFlight {
            phase: Phase::Downloading,
            ..
        } if progress.bytes_total == 0 => progress.percent.clamp(0.0, 100.0),
        _ => share(progress.bytes_done, progress.bytes_total),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "bytes of an image are far below 2^52"
)]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        (part as f64 / whole as f64 * 100.0).min(100.0)
    }
}

fn told(failure: &Failure) -> (&str, Cow<'_, str>) {
    (&failure.code, failure.message.as_str().into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use device_ota_domain::device::DeviceKey;
    use device_ota_domain::update::{Aftermath, Progress, Retry, Times};

    use super::super::firmware::tests::firmware;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_766_052_000 + second).unwrap()
    }

    fn update(state: UpdateState) -> Update {
        Update {
            id: "upd_456def7890123450".parse().unwrap(),
            device: DeviceKey(1),
            device_id: "device_001".parse().unwrap(),
            device_type: None,
            campaign: None,
            action: Action::Update,
            firmware: Some(firmware().id),
            from_version: None,
            to_version: "2.1.0".to_owned(),
            stage: 0,
            priority: Priority::High,
            attempt: 0,
            last_seq: 0,
            retries: 0,
            max_retries: 3,
            times: Times {
                download_seconds: Some(45),
                ..Times::default()
            },
            give_up_at: None,
            timeout_seconds: 90,
            progress: Progress::default(),
            state,
            aftermath: Aftermath::default(),
            started_at: None,
            created_at: at(0),
            updated_at: at(0),
        }
    }

    fn in_flight(phase: Phase, progress: Progress) -> Update {
        let (since, lease_until, deadline) = (at(0), at(60), at(90));
        let state = UpdateState::InFlight {
            phase,
            since,
            lease_until,
            deadline,
            part_until: None,
            cancel_requested: false,
            hold: false,
        };
        Update {
            progress,
            ..update(state)
        }
    }

    fn percents(update: &Update) -> (f64, f64) {
        let dto = UpdateDto::new(update, None, None);
        (dto.progress_percentage, dto.download_progress)
    }

    #[test]
    fn a_new_update_has_the_fields_of_the_prd() {
        let update = update(UpdateState::Pending {
            due_at: at(0),
            lost_at: None,
            last_failure: None,
        });
        let firmware = FirmwareRef::of(&firmware());
        let dto = UpdateDto::new(
            &update,
            Some(&firmware),
            Some(Why::StageClosed {
                stage: "early".to_owned(),
            }),
        );
        insta::assert_snapshot!(serde_json::to_string_pretty(&dto).unwrap(), @r#"
        {
          "update_id": "upd_456def7890123450",
          "device_id": "device_001",
          "campaign_id": null,
          "action": "update",
          "firmware_id": "770987aca3a746dfa5bef4f8b0e59f22",
          "firmware": {
            "firmware_id": "770987aca3a746dfa5bef4f8b0e59f22",
            "name": "Smart Frame Firmware",
            "version": "2.1.0",
            "device_model": "SF-100",
            "manufacturer": "Acme",
            "file_size": 52428800,
            "checksum_md5": "d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4",
            "checksum_sha256": "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e"
          },
          "status": "scheduled",
          "priority": "high",
          "progress_percentage": 0.0,
          "current_phase": "scheduled",
          "download_progress": 0.0,
          "download_speed": 0,
          "bytes_done": 0,
          "bytes_total": 0,
          "from_version": null,
          "to_version": "2.1.0",
          "error_code": null,
          "error_message": null,
          "regressed_at": null,
          "watched_until": null,
          "retry_count": 0,
          "max_retries": 3,
          "attempt": 0,
          "stage": 0,
          "cancel_requested": false,
          "timeout_minutes": 1.5,
          "timeouts": {
            "download_minutes": 0.75,
            "install_minutes": null
          },
          "give_up_after_hours": null,
          "give_up_at": null,
          "why": {
            "code": "stage_closed",
            "stage": "early",
            "detail": "stage early has not opened"
          },
          "scheduled_at": "2025-12-18T10:00:00Z",
          "started_at": null,
          "completed_at": null,
          "duration_seconds": null,
          "created_at": "2025-12-18T10:00:00Z",
          "updated_at": "2025-12-18T10:00:00Z"
        }
        "#);
    }

    #[test]
    fn progress_rises_over_the_phases_and_never_falls() {
        let whole = Progress {
            percent: 100.0,
            bytes_done: 10,
            bytes_total: 10,
            ..Progress::default()
        };
        let none = Progress::default();
        let way: Vec<f64> = Phase::ALL
            .into_iter()
            .flat_map(|phase| {
                [
                    percents(&in_flight(phase, none)).0,
                    percents(&in_flight(phase, whole)).0,
                ]
            })
            .collect();
        assert!(way.is_sorted(), "{way:?}");
        let third = Progress {
            percent: 0.0,
            bytes_done: 1,
            bytes_total: 3,
            ..Progress::default()
        };
        assert_eq!(
            percents(&in_flight(Phase::Downloading, third)),
            (23.33, 33.33)
        );
        assert_eq!(percents(&in_flight(Phase::Verifying, none)), (60.0, 100.0));
        assert_eq!(
            percents(&update(UpdateState::Completed { at: at(9) })),
            (100.0, 100.0)
        );
    }

    #[test]
    fn a_failed_update_says_what_went_wrong_and_how_long_it_took() {
        let failure = Failure::new("hash_mismatch", "wrong bytes", Retry::Now);
        let failed = Update {
            started_at: Some(at(1)),
            ..update(UpdateState::Failed { at: at(5), failure })
        };
        let dto = UpdateDto::new(&failed, None, None);
        assert_eq!(
            (dto.error_code, dto.error_message),
            (Some("hash_mismatch"), Some("wrong bytes".into()))
        );
        assert_eq!(
            (dto.duration_seconds, dto.completed_at),
            (Some(4.0), Some(at(5)))
        );
    }
}
