//! Parts of attempts have their own times, and what nobody ever begins has an end.

use device_ota_domain::Update;
use device_ota_domain::campaign::Group;
use device_ota_domain::planner::Advance;
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::update::UpdateState;
use device_ota_engine::inbound::DeviceRef;
use device_ota_engine::{UpdateRequest, Uploaded};
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::{Fixture, LEASE, tester};

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const MINUTE: SignedDuration = SignedDuration::from_mins(1);

/// A device keeps its slot: it is heard, and goes no further.
async fn dawdle(fixture: &Fixture, device: &DeviceRef, by: SignedDuration) {
    let mut left = by;
    while left > SignedDuration::ZERO {
        let step = left.min(LEASE / 2);
        fixture.advance(step);
        left -= step;
        let heartbeat = r#"{"version":"1.0.0"}"#;
        fixture.publish(device, Up::Heartbeat, heartbeat).await;
        fixture.pass(SignedDuration::ZERO).await;
    }
}

async fn single(fixture: &Fixture, device: &str, more: &str) -> Update {
    let (Uploaded::Created(image) | Uploaded::Existing(image)) =
        fixture.upload("1.1.0", b"1.1.0").await;
    let request = format!(r#"{{"firmware_id":"{}"{more}}}"#, image.id);
    let request: UpdateRequest = serde_json::from_str(&request).unwrap();
    let (device, by) = (device.parse().unwrap(), tester());
    let made = fixture.engine.update_device(&device, request, &by);
    made.await.unwrap().update
}

async fn state(fixture: &Fixture, update: &Update) -> UpdateState {
    fixture
        .engine
        .update(&update.id)
        .await
        .unwrap()
        .update
        .state
}

fn gave_up(state: &UpdateState) -> bool {
    let because = Some(Exclusion::OutOfTime);
    matches!(state, UpdateState::Cancelled { because: it, .. } if *it == because)
}

#[tokio::test]
async fn an_offer_names_the_time_of_each_part_and_the_service_keeps_it() {
    let mut fixture = Fixture::new().await;
    let more = r#","timeout_minutes":60,"timeouts":{"download_minutes":20,"install_minutes":10}"#;
    fixture.campaign_before("1.1.0", more, 1).await;
    let offer = fixture.offer().await;
    let times = offer.timeouts;
    assert_eq!(
        (times.download_s, times.install_s, times.total_s),
        (1_200, 600, 3_600)
    );
    let device = fixture.known(offer.device_id.as_str()).await;
    fixture.progress(&device, &offer, 1, "accepted", "").await;
    dawdle(&fixture, &device, MINUTE * 10).await;
    fixture
        .progress(&device, &offer, 2, "downloading", "")
        .await;
    dawdle(&fixture, &device, MINUTE * 9).await;
    assert_eq!(fixture.status(&offer.update_id).await, "downloading");
    dawdle(&fixture, &device, MINUTE).await;
    let id = offer.update_id.parse().unwrap();
    let update = fixture.engine.update(&id);
    let UpdateState::Pending {
        last_failure: Some(failure),
        ..
    } = update.await.unwrap().update.state
    else {
        panic!("it is tried again");
    };
    let message = "the download took longer than 1200 s; the device was last known as downloading";
    assert_eq!(
        (failure.code.as_str(), failure.message.as_str()),
        ("timeout", message)
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_campaign_ends_though_a_device_never_appears() {
    let mut fixture = Fixture::new().await;
    let absent = fixture.device("d9").await;
    let more = r#","give_up_after_hours":2,"failure_threshold_percent":0"#;
    let campaign = fixture.campaign_before("1.1.0", more, 1).await;
    fixture.completes("1.1.0").await;
    fixture.pass(HOUR * 2 - MINUTE).await;
    let status = async || {
        let view = fixture.engine.campaign(&campaign).await.unwrap();
        view.campaign.state.status()
    };
    assert_eq!(status().await, "in_progress");
    fixture.pass(MINUTE).await;
    fixture.until(&campaign, "completed").await;
    let rows = fixture.updates(&campaign).await;
    let left = rows.iter().find(|row| row.device == absent.key).unwrap();
    assert!(gave_up(&left.state), "{:?}", left.state);
    assert_eq!(fixture.counts(&campaign).await.updates().failed, 0);
    fixture.stop().await;
}

#[tokio::test]
async fn the_time_of_an_update_begins_with_its_stage_and_goes_on_while_it_is_kept_waiting() {
    let mut fixture = Fixture::new().await;
    let more = r#","give_up_after_hours":2,"deployment_strategy":"staged","stages":[{"devices":["d0"],"gate":{"manual":true}},{"percent":100}]"#;
    let absent = fixture.device("d9").await;
    let campaign = fixture.campaign_before("1.1.0", more, 1).await;
    fixture.completes("1.1.0").await;
    let row = async || {
        let rows = fixture.updates(&campaign).await;
        rows.into_iter()
            .find(|row| row.device == absent.key)
            .unwrap()
    };
    fixture.pass(HOUR * 3).await;
    assert_eq!(row().await.give_up_at, None, "its stage has not opened");
    let (engine, by) = (&fixture.engine, tester());
    let next = Advance {
        stage: None,
        force: false,
    };
    let advance = engine.advance_campaign(&campaign, next, None, &by);
    advance.await.unwrap();
    engine.dispatch_all().await.unwrap();
    let end = fixture.now().checked_add(HOUR * 2).unwrap();
    assert_eq!(row().await.give_up_at, Some(end));
    // A pause is not the device's own time.
    engine.pause_campaign(&campaign, &tester()).await.unwrap();
    fixture.pass(HOUR * 2).await;
    let again = end.checked_add(HOUR * 2).unwrap();
    assert_eq!(row().await.give_up_at, Some(again));
    engine.resume_campaign(&campaign, &tester()).await.unwrap();
    fixture.pass(HOUR * 2).await;
    assert!(gave_up(&row().await.state));
    fixture.until(&campaign, "completed").await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_single_update_is_given_up_and_a_retry_has_its_whole_time() {
    let fixture = Fixture::new().await;
    fixture.device("d1").await;
    let made = single(&fixture, "d1", r#","give_up_after_hours":1"#).await;
    assert_eq!(made.give_up_at, fixture.now().checked_add(HOUR).ok());
    fixture.pass(HOUR).await;
    assert!(gave_up(&state(&fixture, &made).await));

    // One that its device began, and no more.
    let device = fixture.device("d2").await;
    fixture.online(&device).await;
    let more = r#","give_up_after_hours":1,"max_retries":0"#;
    let made = single(&fixture, "d2", more).await;
    let mut fixture = fixture;
    let offer = fixture.offer().await;
    fixture
        .progress(&device, &offer, 1, "downloading", "")
        .await;
    dawdle(&fixture, &device, HOUR).await;
    assert_eq!(fixture.failure(&offer.update_id).await, "timeout");
    fixture.gone(&device).await;
    let by = tester();
    let retried = fixture.engine.retry_update(&made.id, &by);
    let retried = retried.await.unwrap().update;
    assert_eq!(retried.group(), Group::Pending);
    assert_eq!(retried.give_up_at, fixture.now().checked_add(HOUR).ok());
    fixture.stop().await;
}
