//! Ordinary values that the tests vary.

use device_ota_domain::campaign::{
    Approval, Campaign, CampaignDraft, CampaignSpec, CampaignState, Group, Priority,
};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::update::{
    Action, Aftermath, Expiry, Failure, OfferTerms, Outcome, Phase, Progress, Report, Reported,
    Retry, Times, UpdateState,
};
use device_ota_domain::{CampaignId, FirmwareId, Update, UpdateId};
use jiff::{SignedDuration, Timestamp};

/// How long a slot survives silence in these tests.
pub(crate) const LEASE: SignedDuration = SignedDuration::from_secs(120);

/// Seconds after the beginning of the test's time.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

pub(crate) fn draft(fields: &serde_json::Value) -> CampaignDraft {
    let mut json = serde_json::json!({"name": "spring", "firmware_id": FirmwareId::of("frame", "2.0.0", "SF-100")});
    for (name, value) in fields.as_object().unwrap() {
        json[name] = value.clone();
    }
    serde_json::from_value(json).unwrap()
}

pub(crate) fn spec(fields: &serde_json::Value) -> CampaignSpec {
    draft(fields)
        .into_spec(20.0, 0, device_ota_domain::ring::Shares::default())
        .unwrap()
}

pub(crate) fn campaign(spec: CampaignSpec, state: CampaignState) -> Campaign {
    Campaign {
        id: CampaignId::from_entropy([7; 8]),
        spec,
        state,
        approval: Approval::NotRequired,
        target_count: 0,
        revision: 0,
        created_at: at(0),
        updated_at: at(0),
        created_by: "tester".into(),
        next_offer_at: None,
        readings: Vec::new(),
        deleted_at: None,
    }
}

/// A pending update from 1.0.0 to 2.0.0 that may be retried twice and takes at most an hour.
pub(crate) fn pending() -> Update {
    Update {
        id: UpdateId::from_entropy([1; 8]),
        device: DeviceKey(1),
        device_id: "frame-1".parse().unwrap(),
        device_type: None,
        campaign: Some(CampaignId::from_entropy([7; 8])),
        action: Action::Update,
        firmware: Some(FirmwareId::of("frame", "2.0.0", "SF-100")),
        from_version: None,
        to_version: "2.0.0".into(),
        stage: 0,
        priority: Priority::Normal,
        attempt: 0,
        last_seq: 0,
        retries: 0,
        max_retries: 2,
        timeout_seconds: 3_600,
        times: Times::default(),
        give_up_at: None,
        progress: Progress {
            bytes_total: 10,
            ..Progress::default()
        },
        state: UpdateState::Pending {
            due_at: at(0),
            lost_at: None,
            last_failure: None,
        },
        aftermath: Aftermath::default(),
        started_at: None,
        created_at: at(0),
        updated_at: at(0),
    }
}

pub(crate) fn terms(now: Timestamp) -> OfferTerms {
    OfferTerms {
        now,
        lease: LEASE,
        running: Some("1.0.0".into()),
        hold: false,
    }
}

/// Offered at second 10.
pub(crate) fn offered() -> Update {
    pending().offer(&terms(at(10))).unwrap()
}

/// Holds its image since second 20, by report number 1 of an attempt that began at second 10.
pub(crate) fn staged() -> Update {
    let terms = OfferTerms {
        hold: true,
        ..terms(at(10))
    };
    let offered = pending().offer(&terms).unwrap();
    let report = says(1, Reported::In(Phase::Staged));
    offered.report(&report, at(20), LEASE).into_update()
}

/// In this phase since second 20, by its report number 1.
pub(crate) fn in_phase(phase: Phase) -> Update {
    offered()
        .report(&says(1, Reported::In(phase)), at(20), LEASE)
        .into_update()
}

pub(crate) fn completed() -> Update {
    let report = Report {
        version: Some("2.0.0".into()),
        ..says(2, Reported::Completed)
    };
    in_phase(Phase::Rebooting)
        .report(&report, at(30), LEASE)
        .into_update()
}

pub(crate) fn failed() -> Update {
    in_phase(Phase::Installing)
        .report(&fails(2, Retry::Never), at(30), LEASE)
        .into_update()
}

pub(crate) fn cancelled() -> Update {
    pending().cancel(at(5)).unwrap()
}

/// A report of the first attempt.
pub(crate) fn says(seq: u64, said: Reported) -> Report {
    Report {
        attempt: 1,
        seq,
        version: None,
        percent: None,
        bytes_done: None,
        speed_bps: None,
        said,
    }
}

pub(crate) fn fails(seq: u64, retry: Retry) -> Report {
    says(
        seq,
        Reported::Failed(Failure::new("install_failed", "no space", retry)),
    )
}

pub(crate) fn changed(update: Update, report: &Report) -> Update {
    match update.report(report, at(50), LEASE) {
        Outcome::Changed(update) => *update,
        Outcome::Ignored(_, reason) => panic!("ignored as {reason}"),
    }
}

pub(crate) fn due(update: &Update) -> i64 {
    match update.state {
        UpdateState::Pending { due_at, .. } => due_at.as_second() - at(0).as_second(),
        _ => panic!("{} does not wait", update.status()),
    }
}

pub(crate) fn failure(update: &Update) -> (&str, Group) {
    match &update.state {
        UpdateState::Failed { failure, .. }
        | UpdateState::Pending {
            last_failure: Some(failure),
            ..
        } => (failure.code.as_str(), update.group()),
        _ => panic!("{} has no failure", update.status()),
    }
}

pub(crate) fn unheard(now: i64) -> Expiry {
    Expiry {
        now: at(now),
        last_seen: Some(at(20)),
        lease: LEASE,
        kept_waiting: false,
    }
}

pub(crate) fn heard(now: i64) -> Expiry {
    Expiry {
        now: at(now),
        last_seen: Some(at(now - 1)),
        lease: LEASE,
        kept_waiting: false,
    }
}
