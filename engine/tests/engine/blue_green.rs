//! Devices prepare and hold, and flip together.

use device_ota_domain::Update;
use device_ota_domain::update::{Action as UpdateAction, UpdateState};
use device_ota_domain::why::Why;
use device_ota_engine::inbound::DeviceRef;
use device_ota_protocol::objects::{Action, Assignment, CommandKind, Mode};
use jiff::SignedDuration;

use crate::fixture::{Fixture, LEASE, tester};

const SECOND: SignedDuration = SignedDuration::from_secs(1);
/// Devices of the fixture's fleet.
const DEVICES: usize = 4;

/// A campaign of four devices, two at a time, whose flip waits for a person.
async fn prepared(more: &str) -> (Fixture, device_ota_domain::CampaignId, Vec<Held>) {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let draft = format!(
        r#","deployment_strategy":"blue_green","max_concurrent_updates":2,
        "stages":[{{"percent":100,"gate":{{"min_success_percent":50,"manual":true}}}}]{more}"#
    );
    let campaign = fixture.campaign_before("1.1.0", &draft, DEVICES).await;
    let mut held = Vec::new();
    for _ in 0..DEVICES {
        let offer = fixture.offer().await;
        assert_eq!((offer.action, offer.mode), (Action::Update, Mode::Stage));
        let device = fixture.known(offer.device_id.as_str()).await;
        fixture.progress(&device, &offer, 1, "staged", "").await;
        held.push(Held { device, offer });
    }
    let counts = fixture.counts(&campaign).await;
    assert_eq!((counts.updates().staged, counts.in_flight()), (4, 0));
    (fixture, campaign, held)
}

/// A person says that it is time.
async fn advance(fixture: &Fixture, campaign: &device_ota_domain::CampaignId) {
    let asked = device_ota_domain::planner::Advance::default();
    fixture
        .engine
        .advance_campaign(campaign, asked, None, &tester())
        .await
        .unwrap();
}

struct Held {
    device: DeviceRef,
    offer: Assignment,
}

impl Held {
    async fn says(&self, fixture: &Fixture, seq: u64, phase: &str, more: &str) {
        fixture
            .progress(&self.device, &self.offer, seq, phase, more)
            .await;
    }
}

#[tokio::test]
async fn everybody_holds_until_a_person_says_so_and_flips_within_the_limits() {
    let (mut fixture, campaign, held) = prepared("").await;
    assert!(fixture.nothing_sent());
    let device = held[0].offer.device_id.as_str().parse().unwrap();
    let why = fixture.engine.why_of_campaign(&campaign, &device).await;
    let stage = || "activate".to_owned();
    assert_eq!(
        why.unwrap(),
        [
            Why::StageClosed { stage: stage() },
            Why::GateManual { stage: stage() }
        ]
    );
    // An update shows why it waits, too; and time alone changes nothing.
    fixture.pass(SignedDuration::from_hours(48)).await;
    let id = held[0].offer.update_id.parse().unwrap();
    let seen = fixture.engine.update(&id).await.unwrap();
    assert_eq!(seen.update.status(), "staged");
    assert_eq!(seen.why, Some(Why::StageClosed { stage: stage() }));
    for one in &held {
        fixture.online(&one.device).await;
    }
    assert!(fixture.nothing_sent());

    advance(&fixture, &campaign).await;
    for _ in 0..DEVICES {
        let told = fixture.command().await;
        assert_eq!(told.command, CommandKind::Activate);
        let counts = fixture.counts(&campaign).await;
        assert!(counts.in_flight() <= 2, "{counts:?}");
        let one = held.iter().find(|h| h.offer.update_id == told.update_id);
        let one = one.unwrap();
        one.says(&fixture, 2, "rebooting", "").await;
        one.says(&fixture, 3, "completed", r#","version":"1.1.0""#)
            .await;
    }
    fixture.until(&campaign, "completed").await;
    assert_eq!(fixture.counts(&campaign).await.updates().completed, 4);
    fixture.stop().await;
}

#[tokio::test]
async fn an_activation_is_said_again_and_survives_restarts_and_absences() {
    let (mut fixture, campaign, held) = prepared("").await;
    advance(&fixture, &campaign).await;
    let first = fixture.command().await;
    fixture.advance(SignedDuration::from_secs(31));
    fixture.engine.keep_time().await.unwrap();
    let again = loop {
        let again = fixture.command().await;
        if again.update_id == first.update_id {
            break again;
        }
    };
    assert_eq!(again.command, CommandKind::Activate);
    assert!(again.seq > first.seq);
    // Nothing of it is kept in memory alone: whoever shows itself to a new process is told.
    fixture.restart().await;
    for one in &held {
        fixture.online_again(&one.device, "1.0.0").await;
    }
    while fixture.command().await.update_id != first.update_id {}

    // One that was told is away: it gives its slot back, holds what it held, and flips when it returns.
    let told = |command: &device_ota_protocol::objects::Command| {
        let id = command.update_id.clone();
        held.iter().find(move |h| h.offer.update_id == id).unwrap()
    };
    let away = told(&first);
    fixture.gone(&away.device).await;
    fixture.pass(LEASE + SECOND).await;
    assert_eq!(fixture.status(&away.offer.update_id).await, "staged");
    fixture.online_again(&away.device, "1.0.0").await;
    loop {
        let command = fixture.command().await;
        if command.update_id == away.offer.update_id {
            break;
        }
        let other = told(&command);
        other
            .says(&fixture, 2, "completed", r#","version":"1.1.0""#)
            .await;
    }
    away.says(&fixture, 2, "completed", r#","version":"1.1.0""#)
        .await;
    fixture.counts(&campaign).await;
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_held_is_dropped_with_the_campaign_and_what_flipped_goes_back() {
    let (mut fixture, campaign, held) = prepared(r#","max_retries":0"#).await;
    advance(&fixture, &campaign).await;
    let first = fixture.command().await;
    let one = held.iter().find(|h| h.offer.update_id == first.update_id);
    let one = one.unwrap();
    one.says(&fixture, 2, "completed", r#","version":"1.1.0""#)
        .await;
    fixture
        .engine
        .roll_back_campaign(&campaign, "it flickers", &tester())
        .await
        .unwrap();
    // Those that had been told to flip are asked to stop, and answer that they have given it up.
    until_asked_to_stop(&fixture, &campaign).await;
    for other in held.iter().filter(|h| h.offer.update_id != first.update_id) {
        other.says(&fixture, 3, "cancelled", "").await;
    }
    let back = loop {
        let back = fixture.offer().await;
        if back.action == Action::Rollback {
            break back;
        }
    };
    assert_eq!(
        (back.mode, &back.device_id),
        (Mode::Install, &one.offer.device_id)
    );
    fixture
        .progress(&one.device, &back, 1, "completed", r#","version":"1.0.0""#)
        .await;
    fixture.until(&campaign, "rolled_back").await;
    let all = fixture.counts(&campaign).await.updates();
    assert_eq!((all.completed, all.cancelled, all.open()), (1, 3, 0));
    fixture.stop().await;
}

/// Waits until nothing of the campaign's own goes on that was not asked to stop.
async fn until_asked_to_stop(fixture: &Fixture, campaign: &device_ota_domain::CampaignId) {
    let goes_on = |update: &Update| {
        let unasked = matches!(
            update.state,
            UpdateState::InFlight {
                cancel_requested: false,
                ..
            }
        );
        unasked && update.action == UpdateAction::Update
    };
    let asked = async {
        while fixture.updates(campaign).await.iter().any(goes_on) {
            tokio::task::yield_now().await;
        }
    };
    let deadline = std::time::Duration::from_secs(30);
    tokio::time::timeout(deadline, asked).await.unwrap();
}

#[tokio::test]
async fn a_deleted_device_and_one_that_is_asked_for_something_else_hold_nothing() {
    let (mut fixture, campaign, held) = prepared("").await;
    let id = held[0].offer.device_id.as_str().parse().unwrap();
    let ended = fixture
        .engine
        .delete_device(&id, None, &tester())
        .await
        .unwrap();
    assert_eq!(ended, 1);
    assert_eq!(fixture.status(&held[0].offer.update_id).await, "cancelled");

    let id = held[1].offer.device_id.as_str().parse().unwrap();
    let other = fixture.upload("1.0.5", b"another").await;
    let (device_ota_engine::Uploaded::Created(image)
    | device_ota_engine::Uploaded::Existing(image)) = other;
    let request = serde_json::from_str(&format!(r#"{{"firmware_id":"{}"}}"#, image.id)).unwrap();
    fixture
        .engine
        .update_device(&id, request, &tester())
        .await
        .unwrap();
    let offer = fixture.offer().await;
    assert_eq!(
        (offer.device_id.as_str(), offer.mode),
        (id.as_str(), Mode::Install)
    );
    assert_eq!(fixture.status(&held[1].offer.update_id).await, "scheduled");
    fixture
        .progress(
            &held[1].device,
            &offer,
            1,
            "completed",
            r#","version":"1.0.5""#,
        )
        .await;
    // Then it prepares once more.
    fixture.engine.dispatch_all().await.unwrap();
    let again = fixture.offer().await;
    assert_eq!(
        (again.update_id.as_str(), again.attempt, again.mode),
        (held[1].offer.update_id.as_str(), 2, Mode::Stage)
    );
    fixture.counts(&campaign).await;
    fixture.stop().await;
}
