//! Devices that had completed and do not stay well.

use device_ota_domain::CampaignId;
use device_ota_engine::inbound::DeviceRef;
use device_ota_protocol::objects::Assignment;
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::{Fixture, LEASE, tester};

const SECOND: SignedDuration = SignedDuration::from_secs(1);
/// Nothing is decided by these campaigns themselves.
const QUIET: &str = r#","failure_threshold_percent":100"#;

/// A device that has completed its update to 1.1.0.
async fn completed(fixture: &mut Fixture, more: &str) -> (CampaignId, DeviceRef, Assignment) {
    fixture.upload("1.0.0", b"old").await;
    let campaign = fixture.campaign_before("1.1.0", more, 1).await;
    let device = fixture.known("d0").await;
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "rebooting", "").await;
    fixture.advance(SignedDuration::from_secs(20));
    fixture.online_again(&device, "1.1.0").await;
    fixture
        .progress(&device, &offer, 2, "completed", r#","version":"1.1.0""#)
        .await;
    (campaign, device, offer)
}

/// The code of the regression of the one update of the campaign.
async fn regression(fixture: &Fixture, campaign: &CampaignId) -> Option<String> {
    let updates = fixture.updates(campaign).await;
    let update = updates
        .into_iter()
        .find(|u| u.action == device_ota_domain::update::Action::Update);
    let update = update.unwrap();
    update.regression().map(|r| r.failure.code.clone())
}

async fn told(fixture: &Fixture, event_type: &str) -> usize {
    let events = fixture.store.events_after(0, 1_000).await.unwrap();
    let of_it = events.iter().filter(|event| event.event_type == event_type);
    of_it.count()
}

#[tokio::test]
async fn the_old_version_takes_a_completed_campaign_back_and_is_told_once() {
    let mut fixture = Fixture::new().await;
    let (campaign, device, offer) = completed(&mut fixture, "").await;
    fixture.until(&campaign, "completed").await;
    fixture.advance(SignedDuration::from_mins(10));
    let beat = r#"{"version":"1.0.0","uptime_s":5}"#;
    fixture.publish(&device, Up::Heartbeat, beat).await;
    fixture.publish(&device, Up::Heartbeat, beat).await;
    fixture.online_again(&device, "1.0.0").await;
    let said = r#","error":{"code":"boot_failed"}"#;
    fixture.progress(&device, &offer, 9, "failed", said).await;

    let back = fixture.offer().await;
    assert_ne!(back.update_id, offer.update_id);
    fixture
        .progress(&device, &back, 1, "completed", r#","version":"1.0.0""#)
        .await;
    fixture.until(&campaign, "rolled_back").await;
    assert_eq!(
        regression(&fixture, &campaign).await.as_deref(),
        Some("reverted")
    );
    assert_eq!(fixture.status(&offer.update_id).await, "completed");
    let counts = fixture.counts(&campaign).await;
    let all = counts.updates();
    assert_eq!((all.completed, all.regressed, all.failed), (1, 1, 0));
    assert_eq!((counts.failures.failed, counts.rollbacks.completed), (1, 1));
    assert_eq!(told(&fixture, "update.regressed").await, 1);
    assert_eq!(
        fixture.store.ledger().await.unwrap(),
        fixture.store.ledger_by_rows().await.unwrap()
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_heartbeat_that_was_under_way_means_nothing_and_a_lie_is_seen_in_time() {
    let mut fixture = Fixture::new().await;
    let (campaign, device, _) = completed(&mut fixture, QUIET).await;
    // It has been up for longer than since the completion: sent before the restart, or never restarted.
    let beat = r#"{"version":"1.0.0","uptime_s":5000}"#;
    fixture.advance(SignedDuration::from_secs(60));
    fixture.publish(&device, Up::Heartbeat, beat).await;
    assert_eq!(regression(&fixture, &campaign).await, None);
    fixture.advance(SignedDuration::from_secs(120));
    fixture.publish(&device, Up::Heartbeat, beat).await;
    assert_eq!(
        regression(&fixture, &campaign).await.as_deref(),
        Some("reverted")
    );
    fixture.stop().await;
}

#[tokio::test]
async fn it_is_seen_by_a_process_that_was_not_there_and_no_longer_than_the_watch() {
    for (minutes, seen) in [(50, true), (70, false)] {
        let mut fixture = Fixture::new().await;
        let (campaign, device, _) = completed(&mut fixture, QUIET).await;
        fixture.restart().await;
        fixture.advance(SignedDuration::from_mins(minutes));
        let beat = r#"{"version":"1.0.0","uptime_s":5}"#;
        fixture.publish(&device, Up::Heartbeat, beat).await;
        let regressed = regression(&fixture, &campaign).await.is_some();
        assert_eq!(regressed, seen, "after {minutes} minutes");
        fixture.stop().await;
    }
}

#[tokio::test]
async fn who_is_taken_back_by_hand_has_not_regressed() {
    let mut fixture = Fixture::new().await;
    let (campaign, device, _) = completed(&mut fixture, QUIET).await;
    fixture.until(&campaign, "completed").await;
    let by = tester();
    let rolled = fixture.engine.roll_back_campaign(&campaign, "no", &by);
    rolled.await.unwrap();
    let back = fixture.offer().await;
    fixture.progress(&device, &back, 1, "rebooting", "").await;
    fixture.advance(SignedDuration::from_mins(5));
    fixture.online_again(&device, "1.0.0").await;
    let beat = r#"{"version":"1.0.0"}"#;
    fixture.publish(&device, Up::Heartbeat, beat).await;
    fixture
        .progress(&device, &back, 2, "completed", r#","version":"1.0.0""#)
        .await;
    fixture.until(&campaign, "rolled_back").await;
    fixture.pass(SignedDuration::from_hours(1)).await;
    assert_eq!(regression(&fixture, &campaign).await, None);
    let watched = fixture.store.watched().await.unwrap();
    assert_eq!(watched, [], "its watch has ended");
    fixture.stop().await;
}

#[tokio::test]
async fn a_device_that_falls_silent_in_the_soak_holds_the_next_stage_up() {
    let mut fixture = Fixture::new().await;
    let more = r#","deployment_strategy":"canary","failure_threshold_percent":100,
        "stages":[{"count":1,"gate":{"min_success_percent":100,"soak_seconds":1800}}]"#;
    for n in 0..2 {
        let device = fixture.device(&format!("d{n}")).await;
        fixture.online(&device).await;
    }
    let campaign = fixture.campaign("1.1.0", more).await;
    let offer = fixture.offer().await;
    let device = fixture.known(offer.device_id.as_str()).await;
    fixture
        .progress(&device, &offer, 1, "completed", r#","version":"1.1.0""#)
        .await;
    fixture.pass(LEASE * 2).await;
    let there = fixture.counts(&campaign).await.updates();
    assert_eq!(there.regressed, 0, "it is connected");
    fixture.gone(&device).await;
    fixture.pass(LEASE * 2).await;
    let counts = fixture.counts(&campaign).await;
    assert_eq!(counts.updates().regressed, 1);
    assert_eq!(counts.failures.timed_out, 1);
    fixture.until(&campaign, "paused").await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_device_that_restarts_again_and_again_is_stopped_at() {
    let mut fixture = Fixture::new().await;
    let more = format!(r#"{QUIET},"health":{{"max_restarts":3}}"#);
    let (campaign, device, _) = completed(&mut fixture, &more).await;
    for restarts in 1..=3 {
        fixture.advance(SECOND);
        assert_eq!(regression(&fixture, &campaign).await, None, "{restarts}");
        // Each is told of more than once, as a device does that has no answer.
        let check = format!(r#"{{"version":"1.1.0","nonce":"b{restarts}","reason":"boot"}}"#);
        for _ in 0..5 {
            fixture.publish(&device, Up::Check, &check).await;
        }
    }
    assert_eq!(
        regression(&fixture, &campaign).await.as_deref(),
        Some("boot_failed")
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_device_that_is_deleted_is_not_watched_any_more() {
    let mut fixture = Fixture::new().await;
    let more = format!(r#"{QUIET},"health":{{"silent_seconds":60}}"#);
    let (campaign, device, _) = completed(&mut fixture, &more).await;
    assert_eq!(fixture.store.watched().await.unwrap().len(), 1);
    let by = tester();
    let deleted = fixture.engine.delete_device(&device.id, None, &by);
    deleted.await.unwrap();
    assert_eq!(fixture.store.watched().await.unwrap(), []);
    fixture.pass(SignedDuration::from_hours(2)).await;
    assert_eq!(regression(&fixture, &campaign).await, None);
    fixture.stop().await;
}

/// Nobody but the canary has it when its fault shows, an hour after it was installed.
#[tokio::test]
async fn an_image_that_turns_out_bad_an_hour_later_gets_no_further_than_its_canary() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let more = r#","deployment_strategy":"canary",
        "stages":[{"count":1,"gate":{"min_success_percent":100,"soak_seconds":7200}}]"#;
    let campaign = fixture.campaign_before("1.1.0", more, 4).await;
    let offer = fixture.offer().await;
    let canary = fixture.known(offer.device_id.as_str()).await;
    let done = r#","version":"1.1.0""#;
    fixture
        .progress(&canary, &offer, 1, "completed", done)
        .await;
    fixture.pass(SignedDuration::from_hours(1)).await;
    assert!(fixture.nothing_sent(), "it soaks");
    assert_eq!(regression(&fixture, &campaign).await, None);

    fixture.online_again(&canary, "1.0.0").await;
    let rollback = fixture.offer().await;
    assert_eq!(rollback.device_id.as_str(), canary.id.as_str());
    assert_eq!(
        rollback.action,
        device_ota_protocol::objects::Action::Rollback
    );
    let done = r#","version":"1.0.0""#;
    fixture
        .progress(&canary, &rollback, 1, "completed", done)
        .await;
    fixture.until(&campaign, "rolled_back").await;
    let all = fixture.counts(&campaign).await.updates();
    assert_eq!((all.completed, all.regressed, all.cancelled), (1, 1, 3));
    assert!(fixture.nothing_sent());
    fixture.stop().await;
}
