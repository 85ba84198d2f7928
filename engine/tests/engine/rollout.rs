//! Offers, leases, limits, stops and rollbacks, at the pace of the test's clock.

use device_ota_domain::update::Action;
use device_ota_protocol::objects::{Action as WireAction, CommandKind};
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::{Fixture, LEASE, tester};

const SECOND: SignedDuration = SignedDuration::from_secs(1);

#[tokio::test]
async fn nobody_is_offered_more_than_the_slots_allow() {
    let mut fixture = Fixture::new().await;
    let campaign = fixture
        .campaign_before("1.1.0", r#","max_concurrent_updates":2"#, 3)
        .await;
    let (first, _second) = (fixture.offer().await, fixture.offer().await);
    assert!(fixture.nothing_sent());
    let device = fixture.known(first.device_id.as_str()).await;
    fixture
        .progress(&device, &first, 1, "completed", r#","version":"1.1.0""#)
        .await;
    fixture.offer().await; // the slot that became free
    let all = fixture.counts(&campaign).await.updates();
    assert_eq!((all.completed, all.in_flight, all.pending), (1, 2, 0));
    fixture.stop().await;
}

#[tokio::test]
async fn an_unanswered_offer_is_said_again_with_a_higher_seq() {
    let mut fixture = Fixture::new().await;
    fixture.campaign_before("1.1.0", "", 1).await;
    let first = fixture.offer().await;
    fixture.advance(SignedDuration::from_secs(31));
    fixture.engine.keep_time().await.unwrap();
    let again = fixture.offer().await;
    assert_eq!(
        (again.update_id.as_str(), again.attempt),
        (first.update_id.as_str(), first.attempt)
    );
    assert!(again.seq > first.seq);
    assert_eq!(again.nonce.as_deref(), Some("n1"));
    fixture.stop().await;
}

#[tokio::test]
async fn an_offer_that_was_lost_is_said_again_however_often_its_lease_is_prolonged() {
    let mut fixture = Fixture::new().await;
    fixture.campaign_before("1.1.0", "", 1).await;
    let lost = fixture.offer().await;
    let device = fixture.known(lost.device_id.as_str()).await;
    fixture.advance(LEASE / 2);
    fixture.engine.keep_time().await.unwrap();
    assert_eq!(fixture.offer().await.update_id, lost.update_id);
    fixture.advance(SECOND + SECOND);
    let heartbeat = r#"{"version":"1.0.0"}"#;
    fixture.publish(&device, Up::Heartbeat, heartbeat).await;
    // Its lease is prolonged in the very pass that finds it unanswered.
    fixture.advance(LEASE / 2 - SECOND);
    fixture.engine.keep_time().await.unwrap();
    assert_eq!(fixture.offer().await.update_id, lost.update_id);
    fixture.stop().await;
}

#[tokio::test]
async fn a_silent_device_loses_its_slot_and_one_that_took_the_offer_is_lost_at_its_deadline() {
    let mut fixture = Fixture::new().await;
    let campaign = fixture
        .campaign_before(
            "1.1.0",
            r#","timeout_minutes":60,"max_concurrent_updates":1"#,
            2,
        )
        .await;
    let first = fixture.offer().await;
    let device = fixture.known(first.device_id.as_str()).await;
    fixture.progress(&device, &first, 1, "accepted", "").await;
    fixture.gone(&device).await;

    fixture.pass(LEASE + SECOND).await;
    assert_eq!(fixture.status(&first.update_id).await, "scheduled");
    let second = fixture.offer().await;
    assert_ne!(second.device_id, first.device_id);

    fixture.pass(SignedDuration::from_hours(1)).await;
    assert_eq!(fixture.status(&first.update_id).await, "failed");
    let lost = fixture.updates(&campaign).await;
    assert!(
        lost.iter()
            .any(|u| format!("{:?}", u.state).contains("device_lost"))
    );
    fixture.counts(&campaign).await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_breach_stops_cancels_and_takes_back_under_the_same_limits() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let more =
        r#","max_concurrent_updates":3,"failure_threshold_percent":20,"failure_min_samples":2"#;
    let campaign = fixture.campaign_before("1.1.0", more, 5).await;
    let offers = [
        fixture.offer().await,
        fixture.offer().await,
        fixture.offer().await,
    ];
    let mut devices = Vec::new();
    for offer in &offers {
        devices.push(fixture.known(offer.device_id.as_str()).await);
    }
    fixture
        .progress(
            &devices[0],
            &offers[0],
            1,
            "completed",
            r#","version":"1.1.0""#,
        )
        .await;
    fixture.offer().await; // the fourth takes the slot
    fixture
        .progress(
            &devices[1],
            &offers[1],
            1,
            "failed",
            r#","error":{"code":"install_failed"}"#,
        )
        .await;

    // One of two failed: the fifth is cancelled, those in flight are told to stop, the first goes back.
    let mut told = vec![fixture.command().await, fixture.command().await];
    told.sort_by(|a, b| a.update_id.cmp(&b.update_id));
    assert!(
        told.iter()
            .all(|command| command.command == CommandKind::Cancel)
    );
    let back = fixture.offer().await;
    assert_eq!(
        (back.action, &back.device_id),
        (WireAction::Rollback, &offers[0].device_id)
    );
    fixture
        .progress(&devices[0], &back, 1, "completed", r#","version":"1.0.0""#)
        .await;
    for command in told {
        let device = fixture.known(command.device_id.as_str()).await;
        let payload = format!(
            r#"{{"update_id":"{}","attempt":1,"seq":5,"phase":"cancelled"}}"#,
            command.update_id
        );
        fixture.publish(&device, Up::Progress, &payload).await;
    }
    fixture.until(&campaign, "rolled_back").await;

    let counts = fixture.counts(&campaign).await;
    let all = counts.updates();
    assert_eq!(
        (all.completed, all.failed, all.cancelled, all.open()),
        (1, 1, 3, 0)
    );
    assert_eq!(
        (counts.rollbacks.completed, counts.rollbacks.total()),
        (1, 1)
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_device_that_was_silent_while_the_rest_went_back_goes_back_when_it_returns() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let campaign = fixture.campaign_before("1.1.0", "", 1).await;
    let offer = fixture.offer().await;
    let device = fixture.known(offer.device_id.as_str()).await;
    fixture.progress(&device, &offer, 1, "verifying", "").await;
    fixture.gone(&device).await;
    fixture
        .engine
        .roll_back_campaign(&campaign, "trying it", &tester())
        .await
        .unwrap();
    fixture.command().await;
    fixture.pass(LEASE + SECOND).await;

    // It never saw the cancel: it comes back on the new version.
    fixture.online_again(&device, "1.1.0").await;
    fixture
        .progress(&device, &offer, 5, "completed", r#","version":"1.1.0""#)
        .await;
    let back = fixture.offer().await;
    assert_eq!(back.action, WireAction::Rollback);
    fixture
        .progress(&device, &back, 1, "completed", r#","version":"1.0.0""#)
        .await;
    fixture.until(&campaign, "rolled_back").await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_rollback_without_the_old_image_ends_and_says_why() {
    let mut fixture = Fixture::new().await;
    let campaign = fixture.campaign_before("1.1.0", "", 1).await;
    let offer = fixture.offer().await;
    let device = fixture.known(offer.device_id.as_str()).await;
    fixture
        .progress(&device, &offer, 1, "completed", r#","version":"1.1.0""#)
        .await;
    fixture.until(&campaign, "completed").await;
    fixture
        .engine
        .roll_back_campaign(&campaign, "trying it", &tester())
        .await
        .unwrap();
    fixture.until(&campaign, "rolled_back").await;
    let rows = fixture.updates(&campaign).await;
    let back = rows.iter().find(|u| u.action == Action::Rollback).unwrap();
    assert!(format!("{:?}", back.state).contains("no_previous_firmware"));
    fixture.stop().await;
}

#[tokio::test]
async fn an_unfit_or_absent_device_waits_and_the_reason_is_told() {
    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    let campaign = fixture
        .campaign("1.1.0", r#","requires":{"min_battery_percent":50}"#)
        .await;
    let id = fixture.updates(&campaign).await[0].id.clone();
    let why = async || {
        fixture
            .engine
            .update(&id)
            .await
            .unwrap()
            .why
            .map(|why| why.to_string())
    };
    assert_eq!(why().await.as_deref(), Some("the device is not connected"));
    fixture
        .publish(
            &device,
            Up::Heartbeat,
            r#"{"version":"1.0.0","battery":{"percent":10}}"#,
        )
        .await;
    fixture.online(&device).await;
    fixture.engine.dispatch_all().await.unwrap();
    assert_eq!(
        why().await.as_deref(),
        Some("the device's battery is at 10 % and must be at 50 %")
    );
    fixture
        .publish(
            &device,
            Up::Heartbeat,
            r#"{"version":"1.0.0","battery":{"percent":90}}"#,
        )
        .await;
    fixture.engine.dispatch_all().await.unwrap();
    assert_eq!(fixture.status(id.as_str()).await, "offered");
    fixture.stop().await;
}

#[tokio::test]
async fn a_paused_campaign_offers_nothing_and_a_resumed_one_goes_on() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    let campaign = fixture.campaign("1.1.0", "").await;
    fixture
        .engine
        .pause_campaign(&campaign, &tester())
        .await
        .unwrap();
    fixture.online(&device).await;
    fixture.engine.dispatch_all().await.unwrap();
    assert!(fixture.nothing_sent());
    fixture
        .engine
        .resume_campaign(&campaign, &tester())
        .await
        .unwrap();
    fixture.offer().await;
    let refused = fixture
        .engine
        .resume_campaign(&campaign, &tester())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), "wrong_state");
    fixture.stop().await;
}
