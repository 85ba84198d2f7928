//! Who goes back, in which order, and before whom.

use device_ota_domain::CampaignId;
use device_ota_domain::campaign::Group;
use device_ota_domain::update::Action;
use device_ota_engine::inbound::DeviceRef;
use device_ota_engine::{UpdateRequest, Uploaded};
use device_ota_protocol::objects::{Action as WireAction, Assignment};
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::{Fixture, LEASE, tester};

/// The default of `ROLLBACK_TIMEOUT_HOURS`.
const ROLLBACK_TIMEOUT: SignedDuration = SignedDuration::from_hours(6);

async fn done(fixture: &Fixture, offer: &Assignment, version: &str) {
    let device = fixture.known(offer.device_id.as_str()).await;
    let said = format!(r#","version":"{version}""#);
    fixture
        .progress(&device, offer, 2, "completed", &said)
        .await;
}

/// A campaign from 1.0.0 to 1.1.0 that so many devices completed.
async fn completed_by(fixture: &mut Fixture, more: &str, devices: usize) -> CampaignId {
    fixture.upload("1.0.0", b"old").await;
    let campaign = fixture.campaign_before("1.1.0", more, devices).await;
    for _ in 0..devices {
        let offer = fixture.offer().await;
        done(fixture, &offer, "1.1.0").await;
    }
    fixture.until(&campaign, "completed").await;
    campaign
}

async fn roll_back(fixture: &Fixture, campaign: &CampaignId) {
    let engine = &fixture.engine;
    engine
        .roll_back_campaign(campaign, "it flickers", &tester())
        .await
        .unwrap();
    engine.dispatch_all().await.unwrap();
}

/// A device keeps its slot: it is heard, and goes no further.
async fn dawdle(fixture: &Fixture, device: &DeviceRef, version: &str, by: SignedDuration) {
    let heartbeat = format!(r#"{{"version":"{version}"}}"#);
    let mut passed = SignedDuration::ZERO;
    while passed < by {
        fixture.publish(device, Up::Heartbeat, &heartbeat).await;
        fixture.pass(LEASE / 2).await;
        passed += LEASE / 2;
    }
}

#[tokio::test]
async fn who_has_moved_on_while_its_rollback_waited_stays_where_it_is() {
    let mut fixture = Fixture::new().await;
    let campaign = completed_by(&mut fixture, r#","max_concurrent_updates":1"#, 2).await;
    let newer = fixture
        .campaign("1.2.0", r#","target_devices":["d1"]"#)
        .await;
    let offer = fixture.offer().await;
    assert_eq!(offer.device_id.as_str(), "d1");
    // It is on its way already: what goes back waits for it.
    roll_back(&fixture, &campaign).await;
    let first = fixture.offer().await;
    assert_eq!(first.device_id.as_str(), "d0");
    done(&fixture, &offer, "1.2.0").await;
    fixture.until(&newer, "completed").await;

    done(&fixture, &first, "1.0.0").await;
    fixture.until(&campaign, "rolled_back").await;
    assert!(fixture.nothing_sent());
    let rows = fixture.updates(&campaign).await;
    let back = rows.iter().filter(|row| row.action == Action::Rollback);
    let mut groups: Vec<_> = back.map(|row| (row.group(), row.attempt)).collect();
    groups.sort_unstable();
    assert_eq!(groups, [(Group::Completed, 1), (Group::Cancelled, 0)]);
    fixture.counts(&campaign).await;
    fixture.stop().await;
}

#[tokio::test]
async fn the_last_stage_goes_back_first_and_the_canary_last() {
    let mut fixture = Fixture::new().await;
    let more = r#","deployment_strategy":"staged","max_concurrent_updates":1,
        "stages":[{"count":1},{"count":2}]"#;
    let campaign = completed_by(&mut fixture, more, 4).await;
    roll_back(&fixture, &campaign).await;
    let mut order = Vec::new();
    for _ in 0..4 {
        let back = fixture.offer().await;
        assert_eq!(back.action, WireAction::Rollback);
        let rows = fixture.updates(&campaign).await;
        let row = rows.iter().find(|row| row.id.as_str() == back.update_id);
        order.push(row.unwrap().stage);
        done(&fixture, &back, "1.0.0").await;
    }
    assert_eq!(order, [2, 2, 1, 0]);
    fixture.until(&campaign, "rolled_back").await;
    fixture.stop().await;
}

/// The room of the whole service goes to what is taken back before it goes to what is new, however urgent that is.
#[tokio::test]
async fn whoever_has_to_go_back_goes_before_all_that_goes_forward() {
    let mut fixture = Fixture::limited(1).await;
    let campaign = completed_by(&mut fixture, "", 3).await;
    for n in 3..6 {
        let device = fixture.device(&format!("d{n}")).await;
        fixture.online(&device).await;
    }
    let urgent = fixture.campaign("1.1.0", r#","priority":"critical""#).await;
    let first = fixture.offer().await;
    roll_back(&fixture, &campaign).await;
    // By itself, of a device that the campaign's rollback does not mean: it has gone back before, and comes back to it.
    let single = fixture.device("d9").await;
    fixture.online_again(&single, "1.1.0").await;
    let alone = fixture
        .engine
        .roll_back_device(&single.id, "1.0.0", "it beeps", &tester())
        .await
        .unwrap();

    done(&fixture, &first, "1.1.0").await;
    let mut order = Vec::new();
    for _ in 0..4 {
        let back = fixture.offer().await;
        order.push(back.action);
        if back.update_id == alone.update_id.as_str() {
            assert_eq!(order.len(), 4, "after those of campaigns");
        }
        done(&fixture, &back, "1.0.0").await;
    }
    assert_eq!(order, [WireAction::Rollback; 4]);
    let next = fixture.offer().await;
    assert_eq!(next.action, WireAction::Update);
    assert_eq!(fixture.counts(&urgent).await.updates().completed, 1);
    fixture.stop().await;
}

#[tokio::test]
async fn a_single_rollback_that_waits_for_room_is_not_given_up() {
    let mut fixture = Fixture::limited(1).await;
    fixture.upload("1.0.0", b"old").await;
    let busy = fixture.device("d0").await;
    fixture.online(&busy).await;
    let more = r#","target_devices":["d0"],"timeout_minutes":43200"#;
    fixture.campaign("1.1.0", more).await;
    let slow = fixture.offer().await;
    fixture.progress(&busy, &slow, 1, "accepted", "").await;
    let device = fixture.device("d1").await;
    fixture.online_again(&device, "1.1.0").await;
    let made = fixture
        .engine
        .roll_back_device(&device.id, "1.0.0", "it beeps", &tester())
        .await
        .unwrap();
    dawdle(&fixture, &busy, "1.0.0", ROLLBACK_TIMEOUT + LEASE).await;
    assert_eq!(fixture.status(made.update_id.as_str()).await, "scheduled");
    done(&fixture, &slow, "1.1.0").await;
    let back = fixture.offer().await;
    assert_eq!(back.update_id, made.update_id.as_str());
    fixture.stop().await;
}

#[tokio::test]
async fn a_rollback_that_waits_behind_a_batch_is_not_given_up() {
    let mut fixture = Fixture::new().await;
    let more = r#","batch_size":1,"timeout_minutes":43200"#;
    let campaign = completed_by(&mut fixture, more, 2).await;
    roll_back(&fixture, &campaign).await;
    let silent = fixture.offer().await;
    let device = fixture.known(silent.device_id.as_str()).await;
    dawdle(&fixture, &device, "1.1.0", ROLLBACK_TIMEOUT).await;
    assert_eq!(fixture.status(&silent.update_id).await, "failed");
    let mut next = fixture.offer().await;
    while next.update_id == silent.update_id {
        next = fixture.offer().await; // said again meanwhile
    }
    done(&fixture, &next, "1.0.0").await;
    fixture.until(&campaign, "rolled_back").await;
    let counts = fixture.counts(&campaign).await.rollbacks;
    assert_eq!((counts.completed, counts.failed), (1, 1));
    fixture.stop().await;
}

/// What an older update of the device comes to says nothing about the newer one.
#[tokio::test]
async fn withdrawing_an_older_update_does_not_end_the_watch_of_a_newer_one() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d0").await;
    fixture.online(&device).await;
    let (Uploaded::Created(image) | Uploaded::Existing(image)) =
        fixture.upload("1.5.0", b"1.5.0").await;
    let request = format!(r#"{{"firmware_id":"{}"}}"#, image.id);
    let request: UpdateRequest = serde_json::from_str(&request).unwrap();
    let engine = fixture.engine.clone();
    let by = tester();
    let asked = engine.update_device(&device.id, request, &by);
    let older = asked.await.unwrap().update.id;
    let offer = fixture.offer().await;
    let later = r#","error":{"code":"user_deferred"},"retry_after_s":86400"#;
    fixture
        .progress(&device, &offer, 1, "deferred", later)
        .await;
    assert_eq!(fixture.status(older.as_str()).await, "scheduled");

    let quiet = r#","failure_threshold_percent":100"#;
    let campaign = fixture.campaign("1.1.0", quiet).await;
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "rebooting", "").await;
    fixture.advance(SignedDuration::from_secs(20));
    fixture.online_again(&device, "1.1.0").await;
    let said = r#","version":"1.1.0""#;
    fixture
        .progress(&device, &offer, 2, "completed", said)
        .await;
    fixture.advance(SignedDuration::from_secs(20));
    engine.cancel_update(&older, &tester()).await.unwrap();
    fixture.advance(SignedDuration::from_secs(20));
    let beat = r#"{"version":"1.0.0","uptime_s":5}"#;
    fixture.publish(&device, Up::Heartbeat, beat).await;
    let rows = fixture.updates(&campaign).await;
    let regression = rows[0].regression().map(|it| it.failure.code.as_str());
    assert_eq!(regression, Some("reverted"));
    fixture.stop().await;
}

/// A flip that failed leaves the device on what is taken back: it is asked again, and reported when it never gets there.
#[tokio::test]
async fn a_rollback_that_fails_is_tried_again_and_then_reported() {
    let mut fixture = Fixture::new().await;
    let campaign = completed_by(&mut fixture, r#","max_retries":0"#, 2).await;
    roll_back(&fixture, &campaign).await;
    let (first, second) = (fixture.offer().await, fixture.offer().await);
    let fails = async |fixture: &Fixture, offer: &Assignment| {
        let device = fixture.known(offer.device_id.as_str()).await;
        let said = r#","version":"1.1.0","error":{"code":"boot_failed"}"#;
        fixture.progress(&device, offer, 2, "failed", said).await;
    };
    fails(&fixture, &first).await;
    fails(&fixture, &second).await;
    let mut tries = 1;
    let mut recovered = false;
    for _ in 0..60 {
        if fixture.counts(&campaign).await.rollbacks.open() == 0 {
            break;
        }
        fixture.pass(SignedDuration::from_mins(10)).await;
        fixture.engine.dispatch_all().await.unwrap();
        while let Some(again) = fixture.sent_offer() {
            assert_eq!(again.action, WireAction::Rollback);
            if again.device_id == first.device_id {
                done(&fixture, &again, "1.0.0").await;
                recovered = true;
            } else {
                tries += 1;
                fails(&fixture, &again).await;
            }
        }
    }
    assert!(recovered, "the second try was a good one");
    assert_eq!(tries, 4, "once, and three times more");
    fixture.until(&campaign, "rolled_back").await;
    let rollbacks = fixture.counts(&campaign).await.rollbacks;
    assert_eq!((rollbacks.completed, rollbacks.failed), (1, 1));
    let events = fixture.store.events_after(0, 1_000).await.unwrap();
    let told = events.iter().filter(|e| e.event_type == "rollback.failed");
    assert_eq!(told.count(), 1);
    fixture.stop().await;
}
