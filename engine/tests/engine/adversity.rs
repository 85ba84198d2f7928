//! Devices, networks, clocks and outages at their worst: each test says what must hold all the same.

mod postgres;

use std::sync::Arc;

use device_ota_domain::update::Action;
use device_ota_engine::inbound::{DeviceRef, Uplink};
use device_ota_protocol::objects::Action as WireAction;
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::{Fixture, LEASE, alone, tester};

const SECOND: SignedDuration = SignedDuration::from_secs(1);

impl Fixture {
    /// Opens a session and checks, both in one batch.
    async fn came(&self, device: &DeviceRef, session: i64, version: &str) {
        let online = self.submit(device, Uplink::Online { session }).await;
        let check = format!(r#"{{"version":"{version}","nonce":"n2","reason":"boot"}}"#);
        self.publish(device, Up::Check, &check).await;
        online.wait().await;
    }
    async fn went(&self, device: &DeviceRef, session: i64) {
        self.submit(device, Uplink::Offline { session })
            .await
            .wait()
            .await;
    }
    async fn state_of(&self, campaign: &device_ota_domain::CampaignId) -> &'static str {
        self.engine
            .campaign(campaign)
            .await
            .unwrap()
            .campaign
            .state
            .status()
    }
}

/// A device takes the offer, loses its slot while it restarts, and the campaign is rolled back meanwhile.
#[tokio::test]
async fn a_device_that_had_lost_its_slot_when_the_rest_went_back_goes_back_too() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", "").await;
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "rebooting", "").await;
    fixture.went(&device, i64::MAX).await;
    fixture.pass(LEASE + SECOND).await;
    assert_eq!(fixture.status(&offer.update_id).await, "scheduled");
    fixture
        .engine
        .roll_back_campaign(&campaign, "bad", &tester())
        .await
        .unwrap();
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
    }
    fixture.came(&device, i64::MAX, "1.1.0").await;
    fixture
        .progress(&device, &offer, 2, "completed", r#","version":"1.1.0""#)
        .await;
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
    }
    let all = fixture.updates(&campaign).await;
    assert!(
        all.iter().any(|u| u.action == Action::Rollback),
        "it runs 1.1.0 for ever; campaign {}, update {}",
        fixture.state_of(&campaign).await,
        fixture.status(&offer.update_id).await
    );
    fixture.stop().await;
}

/// A device lost its slot while it restarted into the new image; its check comes before its word that it completed.
#[tokio::test]
async fn a_second_attempt_does_not_forget_what_ran_before() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", "").await;
    let first = fixture.offer().await;
    fixture.progress(&device, &first, 1, "rebooting", "").await;
    fixture.went(&device, i64::MAX).await;
    fixture.pass(LEASE + SECOND).await;
    fixture.came(&device, i64::MAX, "1.1.0").await;
    let second = fixture.offer().await;
    assert_eq!(second.attempt, 2);
    fixture
        .progress(&device, &first, 2, "completed", r#","version":"1.1.0""#)
        .await;
    // What the agent answers to the second attempt: it runs already.
    fixture
        .progress(&device, &second, 1, "completed", r#","version":"1.1.0""#)
        .await;
    fixture
        .engine
        .roll_back_campaign(&campaign, "bad", &tester())
        .await
        .unwrap();
    let back = fixture.offer().await;
    assert_eq!(back.action, WireAction::Rollback);
    let rows = fixture.updates(&campaign).await;
    let back = rows.iter().find(|u| u.action == Action::Rollback).unwrap();
    assert_eq!(back.to_version, "1.0.0");
    fixture.stop().await;
}

/// The service was away for longer than the attempt's time; the devices did their work meanwhile.
#[tokio::test]
async fn an_outage_of_the_service_is_no_failure_of_the_devices() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", "").await;
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "accepted", "").await;
    fixture.advance(SignedDuration::from_hours(2)); // stopped, suspended, or its clock was set
    fixture.engine.join(alone()).await.unwrap();
    fixture.engine.keep_time().await.unwrap(); // the first tick after the start
    fixture.engine.dispatch_all().await.unwrap();
    fixture.came(&device, i64::MAX, "1.1.0").await;
    fixture
        .progress(&device, &offer, 2, "completed", r#","version":"1.1.0""#)
        .await;
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
    }
    assert_eq!(
        (
            fixture.status(&offer.update_id).await,
            fixture.state_of(&campaign).await
        ),
        ("completed", "completed")
    );
    fixture.stop().await;
}

/// One hostile device that always says "not now, ask me in 0 seconds".
#[tokio::test]
async fn a_device_that_defers_for_no_time_is_not_offered_at_once_for_ever() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", "").await;
    let mut offer = fixture.offer().await;
    for _ in 0..50 {
        let more = r#","retry_after_s":0,"error":{"code":"user_deferred"}"#;
        fixture.progress(&device, &offer, 1, "deferred", more).await;
        fixture.engine.dispatch_all().await.unwrap();
        offer.attempt = fixture.updates(&campaign).await[0].attempt;
    }
    assert!(
        offer.attempt < 3,
        "{} attempts within no time at all",
        offer.attempt
    );
    fixture.stop().await;
}

/// `Reconnect` says that the connection is new, not that the device restarted.
#[tokio::test]
async fn a_new_connection_before_the_restart_is_no_fallback() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    fixture.campaign("1.1.0", "").await;
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "rebooting", "").await;
    let check = r#"{"version":"1.0.0","nonce":"n2","reason":"reconnect"}"#;
    fixture.publish(&device, Up::Check, check).await;
    fixture
        .progress(&device, &offer, 2, "completed", r#","version":"1.1.0""#)
        .await;
    assert_eq!(fixture.status(&offer.update_id).await, "completed");
    fixture.stop().await;
}

/// The offer never reached the device; the agent has nothing to say to a cancel of what it does not know.
#[tokio::test]
async fn a_cancel_of_an_offer_that_was_never_taken_ends_before_the_attempts_time() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", "").await;
    let offer = fixture.offer().await;
    fixture
        .engine
        .cancel_campaign(&campaign, &tester())
        .await
        .unwrap();
    fixture.command().await;
    for _ in 0..55 {
        fixture.advance(SignedDuration::from_mins(1));
        fixture
            .publish(&device, Up::Heartbeat, r#"{"version":"1.0.0"}"#)
            .await;
        fixture.engine.keep_time().await.unwrap();
    }
    let after_55 = fixture.status(&offer.update_id).await;
    for _ in 0..10 {
        fixture.advance(SignedDuration::from_mins(1));
        fixture
            .publish(&device, Up::Heartbeat, r#"{"version":"1.0.0"}"#)
            .await;
        fixture.engine.keep_time().await.unwrap();
    }
    assert_eq!(
        (after_55, fixture.status(&offer.update_id).await),
        ("cancelled", "cancelled")
    );
    fixture.stop().await;
}

/// The only slot is held by a device that fell silent before it saw its cancel.
#[tokio::test]
async fn a_silent_device_does_not_hold_up_the_rollback_of_the_others() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let (good, silent) = (fixture.device("d1").await, fixture.device("d2").await);
    fixture.online(&good).await;
    fixture.online(&silent).await;
    let campaign = fixture
        .campaign("1.1.0", r#","max_concurrent_updates":1"#)
        .await;
    let offer = fixture.offer().await;
    assert_eq!(offer.device_id.as_str(), "d1");
    fixture
        .progress(&good, &offer, 1, "completed", r#","version":"1.1.0""#)
        .await;
    let offer = fixture.offer().await;
    fixture.progress(&silent, &offer, 1, "verifying", "").await;
    fixture.went(&silent, i64::MAX).await;
    fixture
        .engine
        .roll_back_campaign(&campaign, "bad", &tester())
        .await
        .unwrap();
    fixture.command().await; // which nobody hears
    fixture.pass(LEASE + SECOND).await;
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
    }
    assert!(
        !fixture.nothing_sent(),
        "nothing goes back before d2's time is over"
    );
    fixture.stop().await;
}

/// A second attempt is on its way when the device says that the first has succeeded; then all is withdrawn.
#[tokio::test]
async fn a_success_of_an_earlier_attempt_is_a_success() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", "").await;
    let first = fixture.offer().await;
    fixture.progress(&device, &first, 1, "installing", "").await;
    fixture.went(&device, i64::MAX).await;
    fixture.pass(LEASE + SECOND).await;
    fixture.came(&device, i64::MAX, "1.0.0").await;
    assert_eq!(fixture.offer().await.attempt, 2); // the device is busy installing, and does not answer
    fixture
        .engine
        .roll_back_campaign(&campaign, "bad", &tester())
        .await
        .unwrap();
    fixture.command().await; // nor to this
    fixture
        .progress(&device, &first, 2, "completed", r#","version":"1.1.0""#)
        .await;
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
    }
    assert_eq!(fixture.status(&first.update_id).await, "completed");
    assert_eq!(fixture.offer().await.action, WireAction::Rollback);
    fixture.stop().await;
}

/// Campaign A brought 1.1.0, campaign B then 1.2.0; A is taken back.
#[tokio::test]
async fn a_rollback_leaves_alone_who_has_moved_on() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let first = fixture.campaign("1.1.0", "").await;
    let offer = fixture.offer().await;
    fixture
        .progress(&device, &offer, 1, "completed", r#","version":"1.1.0""#)
        .await;
    fixture.engine.dispatch_all().await.unwrap();
    fixture.campaign("1.2.0", "").await;
    let offer = fixture.offer().await;
    fixture
        .progress(&device, &offer, 1, "completed", r#","version":"1.2.0""#)
        .await;
    fixture.engine.dispatch_all().await.unwrap();
    fixture
        .engine
        .roll_back_campaign(&first, "bad", &tester())
        .await
        .unwrap();
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
    }
    assert!(
        fixture.nothing_sent(),
        "a device on 1.2.0 was sent back to 1.0.0 by the campaign for 1.1.0"
    );
    fixture.stop().await;
}

/// The clock was ahead and was put right, and the service started anew.
#[tokio::test]
async fn a_device_is_online_also_after_the_clock_was_put_back() {
    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    fixture.advance(SignedDuration::from_hours(-24));
    fixture.engine.join(alone()).await.unwrap();
    fixture.online(&device).await;
    assert!(
        fixture
            .engine
            .device(&device.id)
            .await
            .unwrap()
            .latest
            .online
    );
    fixture.stop().await;
}

/// The process before was killed: nobody told it that sessions ended, and the next one has none.
#[tokio::test]
async fn nobody_is_connected_to_a_process_that_has_just_started() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    fixture.restart().await;
    fixture.engine.join(alone()).await.unwrap();
    let seen = fixture.engine.device(&device.id).await.unwrap();
    assert!(!seen.latest.online);
    fixture.campaign("1.1.0", "").await;
    fixture.engine.dispatch_all().await.unwrap();
    assert!(fixture.nothing_sent(), "an offer to nobody");
    fixture.stop().await;
}
