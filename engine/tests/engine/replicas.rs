//! Two engines on one database: each deals with the devices that it holds, and makes up for the other.

use device_ota_domain::DeviceId;
use device_ota_domain::campaign::CampaignState;
use device_ota_engine::inbound::{DeviceRef, Uplink};
use device_ota_engine::{Error, Member};
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::{Fixture, tester};

/// Longer than a replica may say nothing.
const DEAD: SignedDuration = SignedDuration::from_secs(16);
const CHECK: &str = r#"{"version":"1.0.0","nonce":"n1","reason":"boot"}"#;

fn member(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        alone: false,
        holds_sessions: true,
        shares_images: true,
        shares_reports: true,
    }
}

async fn pair() -> (Fixture, Fixture) {
    let one = Fixture::new().await;
    let two = one.beside();
    one.engine.join(member("one")).await.unwrap();
    two.engine.join(member("two")).await.unwrap();
    (one, two)
}

/// The device connects to the gateway of that replica, and asks.
async fn comes(to: &Fixture, device: &DeviceRef) -> i64 {
    to.advance(SignedDuration::from_millis(1));
    let session = to.now().as_microsecond();
    let begun = (device.id.clone(), session);
    to.sessions.lock().unwrap().push(begun);
    to.submit(device, Uplink::Online { session })
        .await
        .wait()
        .await;
    to.publish(device, Up::Check, CHECK).await;
    session
}

/// Lets time pass in which only `living` says that it lives.
async fn outlives(living: &Fixture) {
    living.engine.renew().await.unwrap();
    for _ in 0..4 {
        living.advance(DEAD / 4);
        living.engine.renew().await.unwrap();
    }
}

async fn is_online(fixture: &Fixture, device: &DeviceRef) -> bool {
    fixture
        .engine
        .device(&device.id)
        .await
        .unwrap()
        .latest
        .online
}

fn ended(fixture: &mut Fixture) -> Vec<DeviceId> {
    std::iter::from_fn(|| fixture.disconnected.try_recv().ok()).collect()
}

#[tokio::test]
async fn each_offers_to_the_devices_that_it_holds() {
    let (mut one, mut two) = pair().await;
    let device = one.device("d1").await;
    comes(&two, &device).await;
    one.campaign("1.1.0", "").await;
    one.engine.dispatch_all().await.unwrap();
    assert!(one.nothing_sent());
    two.engine.dispatch_all().await.unwrap();
    let offer = two.offer().await;
    assert_eq!(offer.device_id.as_str(), "d1");
    // Neither does the other say it again, or take the device for silent.
    one.pass(SignedDuration::from_mins(4)).await;
    assert!(one.nothing_sent());
    assert_eq!(one.status(&offer.update_id).await, "offered");
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn what_is_cancelled_at_one_is_told_by_the_other() {
    let (mut one, mut two) = pair().await;
    let device = one.device("d1").await;
    comes(&two, &device).await;
    one.campaign("1.1.0", "").await;
    two.engine.dispatch_all().await.unwrap();
    let offer = two.offer().await;
    let update = offer.update_id.parse().unwrap();
    one.engine.cancel_update(&update, &tester()).await.unwrap();
    assert!(one.nothing_sent());
    two.engine.heed_notes().await.unwrap();
    assert_eq!(two.command().await.update_id, offer.update_id);
    // Once.
    two.engine.heed_notes().await.unwrap();
    assert!(two.nothing_sent());
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_secret_replaced_at_one_opens_nothing_at_the_other() {
    let (one, mut two) = pair().await;
    let device = one.device("d1").await;
    let old = one
        .engine
        .new_credentials(&device.id, &tester())
        .await
        .unwrap();
    two.engine.heed_notes().await.unwrap();
    ended(&mut two);
    let lets_in = async |secret: &str| {
        let known = two.engine.authenticate(&device.id, secret.as_bytes()).await;
        known.unwrap().is_some()
    };
    assert!(lets_in(&old).await, "and keeps it");
    let new = one
        .engine
        .new_credentials(&device.id, &tester())
        .await
        .unwrap();
    let revocations = two.engine.revocations();
    two.engine.heed_notes().await.unwrap();
    assert!(
        two.engine.revocations() > revocations,
        "who was being let in is checked again"
    );
    assert!(!lets_in(&old).await);
    assert!(lets_in(&new).await);
    assert_eq!(ended(&mut two), std::slice::from_ref(&device.id));
    one.engine
        .delete_device(&device.id, None, &tester())
        .await
        .unwrap();
    two.engine.heed_notes().await.unwrap();
    assert_eq!(ended(&mut two), [device.id]);
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_device_that_comes_to_the_other_is_let_go() {
    let (mut one, two) = pair().await;
    let device = one.device("d1").await;
    let session = comes(&one, &device).await;
    comes(&two, &device).await;
    one.engine.heed_notes().await.unwrap();
    assert_eq!(ended(&mut one), std::slice::from_ref(&device.id));
    // Its good-bye here is none there.
    one.submit(&device, Uplink::Offline { session })
        .await
        .wait()
        .await;
    assert!(is_online(&one, &device).await);
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn who_says_nothing_for_long_is_dead_and_its_devices_are_everybodys() {
    let (one, mut two) = pair().await;
    let device = one.device("d1").await;
    comes(&one, &device).await;
    let campaign = two.campaign("1.1.0", "").await;
    outlives(&two).await;
    assert!(!is_online(&two, &device).await);
    two.engine.dispatch_all().await.unwrap();
    assert!(two.nothing_sent());
    comes(&two, &device).await;
    two.engine.dispatch_all().await.unwrap();
    let offer = two.offer().await;
    let more = r#","version":"1.1.0""#;
    two.progress(&device, &offer, 1, "completed", more).await;
    two.until(&campaign, "completed").await;
    let state = two.engine.campaign(&campaign).await.unwrap().campaign.state;
    assert!(matches!(state, CampaignState::Completed { .. }));
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn who_stood_still_goes_on_with_those_who_stayed() {
    let (mut one, two) = pair().await;
    let (stays, moves) = (one.device("d1").await, one.device("d2").await);
    comes(&one, &stays).await;
    comes(&one, &moves).await;
    outlives(&two).await;
    comes(&two, &moves).await;
    // What came in meanwhile waits until it knows where its sessions are.
    let mut late = one
        .submit(&stays, crate::fixture::report(Up::Check, CHECK))
        .await;
    tokio::task::yield_now().await;
    assert!(!late.is_there());
    one.engine.renew().await.unwrap();
    late.wait().await;
    assert!(is_online(&one, &stays).await);
    assert_eq!(ended(&mut one), std::slice::from_ref(&moves.id));
    // And what came in over a session that is over is not taken.
    let stale = r#"{"version":"0.9.0","nonce":"n0","reason":"boot"}"#;
    let mut dropped = one
        .submit(&moves, crate::fixture::report(Up::Check, stale))
        .await;
    one.publish(&stays, Up::Check, CHECK).await;
    assert!(!dropped.is_there());
    let shown = two.engine.device(&moves.id).await.unwrap();
    assert_eq!(shown.latest.version.as_deref(), Some("1.0.0"));
    // Both live.
    two.engine.renew().await.unwrap();
    assert_eq!(two.store.replicas().await.unwrap().len(), 2);
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_restart_takes_the_place_of_the_one_before() {
    let (mut one, two) = pair().await;
    let (here, there) = (one.device("d1").await, one.device("d2").await);
    comes(&one, &here).await;
    comes(&two, &there).await;
    one.restart().await;
    one.engine.join(member("one")).await.unwrap();
    assert!(!is_online(&one, &here).await);
    assert!(is_online(&one, &there).await, "it is the other's");
    two.engine.leave().await.unwrap();
    assert!(!is_online(&one, &there).await);
    assert_eq!(one.store.replicas().await.unwrap().len(), 1);
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn who_would_take_what_others_take_or_offer_what_they_cannot_read_is_refused() {
    let one = Fixture::new().await;
    one.engine.join(member("one")).await.unwrap();
    let alone_with_its_images = Member {
        shares_images: false,
        ..member("two")
    };
    let alone_with_all_reports = Member {
        shares_reports: false,
        ..member("two")
    };
    for (member, why) in [
        (alone_with_its_images, "images_not_shared"),
        (alone_with_all_reports, "reports_not_shared"),
    ] {
        let two = one.beside();
        match two.engine.join(member).await {
            Err(Error::Conflict { code, .. }) => assert_eq!(code, why),
            other => panic!("{why}: {other:?}"),
        }
        two.stop().await;
    }
    one.stop().await;
}
