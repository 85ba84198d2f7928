//! Events: names, filters, and the catalogue in `docs/events.md`, which shows every payload as the code makes it.

use std::fmt::Write as _;

use device_ota_domain::campaign::{Approval, CampaignState, Verdict};
use device_ota_domain::event::{Event, EventFilter, EventType, StoredEvent};
use device_ota_domain::firmware::{Firmware, Format};
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::update::{Action, Aftermath, Failure, Regression, Retry, UpdateState};
use device_ota_domain::{CampaignId, DeviceId, Update};
use serde_json::{Value, json};

use crate::sample::{at, campaign, pending, spec};

/// Where the catalogue begins that this test writes and holds to the code.
const MARK: &str =
    "<!-- From here on written by a test of the domain; see domain/tests/domain/events.rs. -->\n";
/// Set to write the catalogue anew.
const WRITE: &str = "DEVICE_OTA_TEST_WRITE_DOCS";

pub(crate) fn firmware() -> Firmware {
    let metadata = json!({
        "name": "Smart Frame Firmware", "version": "2.1.0", "device_model": "SF-100", "manufacturer": "Acme",
    });
    let metadata: device_ota_domain::firmware::UploadMetadata =
        serde_json::from_value(metadata).unwrap();
    Firmware {
        id: metadata.firmware_id(),
        metadata,
        format: Format::Bin,
        size: 52_428_800,
        sha256: String::new(),
        md5: String::new(),
        release: String::new(),
        release_sha256: String::new(),
        download_count: 0,
        results: device_ota_domain::firmware::Results::default(),
        storage: device_ota_domain::firmware::Storage::Local,
        deprecated_at: None,
        created_at: at(0),
        updated_at: at(0),
        created_by: "admin".into(),
    }
}

fn of_campaign(kind: EventType) -> Event {
    let started = CampaignState::Created.start(at(1), at(1)).unwrap();
    let back = |trigger| started.clone().roll_back(at(2), trigger, "too many");
    let state = match kind {
        EventType::CampaignCreated
        | EventType::CampaignUpdated
        | EventType::CampaignApproved
        | EventType::CampaignRejected
        | EventType::CampaignDeleted => CampaignState::Created,
        EventType::CampaignPromoted => started.promote(1).unwrap(),
        EventType::CampaignPaused => started.pause(at(2), "by admin").unwrap(),
        EventType::CampaignCompleted => started.finish(at(2)).unwrap(),
        EventType::CampaignCancelled => started.cancel(at(2)).unwrap(),
        EventType::CampaignFailed | EventType::CampaignRollingBack => {
            back(RollbackTrigger::FailureThreshold).unwrap()
        }
        EventType::CampaignRolledBack => {
            let back = back(RollbackTrigger::FailureThreshold).unwrap();
            back.finish(at(2)).unwrap()
        }
        _ => started,
    };
    let mut campaign = campaign(spec(&json!({})), state);
    campaign.target_count = 500;
    let verdict = Verdict {
        by: "security".into(),
        at: at(2),
        comment: Some("after the audit".into()),
    };
    campaign.approval = Approval::of_new(true, "admin");
    if kind == EventType::CampaignApproved {
        campaign.approval = campaign.approval.approve(verdict).unwrap();
    } else if kind == EventType::CampaignRejected {
        campaign.approval = campaign.approval.reject(verdict).unwrap();
    }
    Event::of_campaign(kind, &campaign, "admin", at(2))
}

fn update(action: Action, state: UpdateState) -> Update {
    let (from, to) = match action {
        Action::Update => ("1.0.0", "2.0.0"),
        Action::Rollback => ("2.0.0", "1.0.0"),
    };
    Update {
        action,
        from_version: Some(from.into()),
        to_version: to.into(),
        state,
        ..pending()
    }
}

fn ended(action: Action, state: UpdateState) -> Event {
    Event::ended(&update(action, state), at(9)).unwrap()
}

fn completed() -> UpdateState {
    UpdateState::Completed { at: at(9) }
}

fn failed() -> UpdateState {
    let failure = Failure::new("install_failed", "slot b is read-only", Retry::Never);
    UpdateState::Failed { at: at(9), failure }
}

fn cancelled() -> UpdateState {
    UpdateState::Cancelled {
        at: at(9),
        because: None,
    }
}

/// One event of each type.
fn sample(kind: EventType) -> Event {
    let single = |action| Update {
        campaign: None,
        ..update(action, pending().state)
    };
    let event = match kind {
        EventType::FirmwareUploaded | EventType::FirmwareDeprecated => {
            Event::of_firmware(kind, &firmware(), "admin", at(1))
        }
        EventType::UpdateScheduled => Event::asked(&single(Action::Update), None, "admin", at(1)),
        EventType::RollbackInitiated => {
            let reason = Some("causes connectivity issues");
            Event::asked(&single(Action::Rollback), reason, "admin", at(1))
        }
        EventType::UpdateCompleted => ended(Action::Update, completed()),
        EventType::UpdateRegressed => {
            let at = at(12);
            let failure = Failure::new("reverted", "came back with 1.0.0", Retry::Never);
            let update = Update {
                aftermath: Aftermath::Regressed(Regression { at, failure }),
                ..update(Action::Update, completed())
            };
            Event::regressed(&update, at).unwrap()
        }
        EventType::UpdateFailed => ended(Action::Update, failed()),
        EventType::UpdateCancelled => ended(Action::Update, cancelled()),
        EventType::RollbackCompleted => ended(Action::Rollback, completed()),
        EventType::RollbackFailed => ended(Action::Rollback, failed()),
        EventType::RollbackCancelled => ended(Action::Rollback, cancelled()),
        EventType::DeviceOffline => {
            let device: DeviceId = "frame-1".parse().unwrap();
            Event::offline(&device, Some(at(1)), at(2), at(302))
        }
        EventType::WebhookDisabled => Event::webhook_disabled(
            "wh_0101010101010101",
            "nothing was taken for 3 days: connection refused",
            at(9),
        ),
        _ => of_campaign(kind),
    };
    assert_eq!(event.event_type, kind);
    event
}

fn stored(event: Event) -> StoredEvent {
    StoredEvent {
        id: 42,
        event_type: event.event_type.name().to_owned(),
        entity: event.entity,
        data: event.data,
        at: event.at,
    }
}

/// The catalogue as the code has it.
fn catalogue() -> String {
    let mut text = String::from(MARK);
    for kind in EventType::ALL {
        let envelope = stored(sample(*kind)).envelope();
        let json = serde_json::to_string_pretty(&envelope).unwrap();
        writeln!(
            text,
            "\n### `{kind}`\n\n{}\n\n```json\n{json}\n```",
            kind.meaning()
        )
        .unwrap();
    }
    text
}

#[test]
fn the_catalogue_shows_every_event_as_it_is() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/events.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, shown) = text.split_once(MARK).unwrap();
    let wanted = catalogue();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(path, format!("{before}{wanted}")).unwrap();
    } else {
        let shown = format!("{MARK}{shown}");
        assert_eq!(
            shown, wanted,
            "run this test with {WRITE}=1 to write it anew"
        );
    }
}

#[test]
fn every_event_has_what_the_documents_ask_for() {
    for kind in EventType::ALL {
        let envelope = stored(sample(*kind)).envelope();
        for field in ["id", "event_type", "source", "timestamp", "data"] {
            assert!(!envelope[field].is_null(), "{kind}: {field}");
        }
        assert_eq!(envelope["source"], "ota_service");
        let data = &envelope["data"];
        let fields: &[&str] = match kind.family() {
            "firmware" => &["firmware_id", "version", "device_model", "timestamp"],
            "campaign" => &["campaign_id", "name", "target_device_count", "timestamp"],
            "update" => &["update_id", "device_id", "to_version", "timestamp"],
            "rollback" if *kind == EventType::RollbackInitiated => &[
                "device_id",
                "from_version",
                "to_version",
                "trigger",
                "timestamp",
            ],
            "rollback" => &["device_id", "from_version", "to_version", "timestamp"],
            "device" => &["device_id", "timestamp"],
            _ => &["timestamp"],
        };
        for field in fields {
            assert!(!data[field].is_null(), "{kind}: data.{field}");
        }
        if kind.family() == "firmware" {
            assert_eq!(data["is_security_update"], false);
        }
    }
}

#[test]
fn a_name_is_one_type_and_a_filter_takes_names_families_a_campaign_and_a_device() {
    for kind in EventType::ALL {
        assert_eq!(EventType::from_name(kind.name()), Some(*kind));
    }
    assert_eq!(EventType::from_name("campaign.begun"), None);
    let started = stored(of_campaign(EventType::CampaignStarted));
    let failed = stored(sample(EventType::UpdateFailed));
    let uploaded = stored(sample(EventType::FirmwareUploaded));
    let by = |types: &[&str], campaign: Option<CampaignId>, device: Option<DeviceId>| {
        let types = types.iter().map(|text| text.parse().unwrap()).collect();
        let filter = EventFilter {
            types,
            campaign,
            device,
        };
        [&started, &failed, &uploaded].map(|event| filter.matches(event))
    };
    let heard = |types: &[&str], campaign| by(types, campaign, None);
    assert_eq!(heard(&[], None), [true, true, true]);
    assert_eq!(
        heard(&["campaign.*", "update.failed"], None),
        [true, true, false]
    );
    assert_eq!(heard(&["update.completed"], None), [false, false, false]);
    let (ours, other) = (
        CampaignId::from_entropy([7; 8]),
        CampaignId::from_entropy([8; 8]),
    );
    assert_eq!(heard(&[], Some(ours)), [true, true, false]);
    assert_eq!(heard(&["campaign.*"], Some(other)), [false, false, false]);
    let of = |device: &str| by(&[], None, Some(device.parse().unwrap()));
    assert_eq!(of("frame-1"), [false, true, false]);
    assert_eq!(of("frame-2"), [false, false, false]);
}

#[test]
fn what_an_update_waits_for_is_no_event() {
    assert_eq!(Event::ended(&pending(), at(1)), None);
    assert_eq!(stored(sample(EventType::DeviceOffline)).campaign(), None);
    assert_eq!(
        stored(sample(EventType::UpdateFailed)).envelope()["data"]["error"],
        json!({ "code": "install_failed", "message": "slot b is read-only" })
    );
    assert_eq!(
        stored(sample(EventType::UpdateCompleted)).data["error"],
        Value::Null
    );
}
