//! Campaigns that want the same device: priority, then age; the other one waits, says so, and goes on or has nothing left to do.

use device_ota_domain::targeting::Exclusion;
use device_ota_domain::update::UpdateState;
use device_ota_domain::why::Why;
use device_ota_domain::{CampaignId, Update};
use device_ota_engine::Uploaded;
use device_ota_engine::inbound::DeviceRef;
use device_ota_protocol::objects::{Action, Assignment};
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::{Fixture, tester};

const ONE_SLOT: &str = r#","max_concurrent_updates":1"#;
const MINUTE: SignedDuration = SignedDuration::from_mins(1);

async fn update_of(fixture: &Fixture, campaign: &CampaignId, device: &str) -> Update {
    let updates = fixture.updates(campaign).await.into_iter();
    let mut updates = updates.filter(|update| update.device_id.as_str() == device);
    updates.next().unwrap()
}

async fn why(fixture: &Fixture, campaign: &CampaignId, device: &str) -> Vec<Why> {
    let device = device.parse().unwrap();
    let why = fixture.engine.why_of_campaign(campaign, &device).await;
    why.unwrap()
}

/// The one campaign waits for the other one's update of that device, and says so wherever it is asked.
async fn waits_for(fixture: &Fixture, campaign: &CampaignId, other: &CampaignId, device: &str) {
    let reason = Why::OtherUpdate {
        update: update_of(fixture, other, device).await.id,
        campaign: Some(other.clone()),
    };
    assert_eq!(
        why(fixture, campaign, device).await,
        std::slice::from_ref(&reason)
    );
    let update = update_of(fixture, campaign, device).await;
    let view = fixture.engine.update(&update.id).await.unwrap();
    assert_eq!(view.why, Some(reason));
}

async fn completes(fixture: &Fixture, offer: &Assignment, version: &str) {
    let device = fixture.known(offer.device_id.as_str()).await;
    let version = format!(r#","version":"{version}""#);
    fixture
        .progress(&device, offer, 1, "completed", &version)
        .await;
}

fn because(update: &Update) -> Option<Exclusion> {
    match update.state {
        UpdateState::Cancelled { because, .. } => because,
        _ => None,
    }
}

fn other(device: &str) -> &'static str {
    if device == "d0" { "d1" } else { "d0" }
}

#[tokio::test]
async fn the_higher_priority_gets_each_device_and_what_came_too_late_is_let_go() {
    let mut fixture = Fixture::new().await;
    let urgent = format!(r#"{ONE_SLOT},"priority":"high""#);
    let urgent = fixture.campaign_before("2.0.0", &urgent, 2).await;
    let offer = fixture.offer().await;
    let waiting = other(offer.device_id.as_str());
    let usual = fixture.campaign("1.5.0", "").await;
    fixture.engine.dispatch_all().await.unwrap();
    assert!(fixture.nothing_sent(), "{waiting} is kept for the other");
    assert_eq!(why(&fixture, &urgent, waiting).await, [Why::NoSlot]);
    waits_for(&fixture, &usual, &urgent, waiting).await;

    completes(&fixture, &offer, "2.0.0").await;
    let next = fixture.offer().await;
    assert_eq!(next.device_id.as_str(), waiting);
    assert_eq!(
        next.update_id,
        update_of(&fixture, &urgent, waiting).await.id.to_string()
    );
    completes(&fixture, &next, "2.0.0").await;
    // Both run something newer by now, and would refuse it.
    fixture.until(&usual, "completed").await;
    fixture.until(&urgent, "completed").await;
    for update in fixture.updates(&usual).await {
        assert_eq!(because(&update), Some(Exclusion::NewerInstalled));
        assert_eq!(update.attempt, 0);
    }
    let all = fixture.counts(&usual).await.updates();
    assert_eq!((all.cancelled, all.total()), (2, 2));
    let told = why(&fixture, &usual, waiting).await.remove(0).to_string();
    let ends = "the device has come to a newer version than the firmware's";
    assert!(told.ends_with(ends), "{told}");
    fixture.stop().await;
}

#[tokio::test]
async fn of_the_same_priority_the_older_one_goes_first_and_the_other_one_goes_on() {
    let mut fixture = Fixture::new().await;
    let older = fixture.campaign_before("2.0.0", ONE_SLOT, 2).await;
    let offer = fixture.offer().await;
    let (first, second) = (offer.device_id.as_str(), other(offer.device_id.as_str()));
    fixture.advance(MINUTE);
    let younger = fixture.campaign("3.0.0", "").await;
    fixture.engine.dispatch_all().await.unwrap();
    assert!(fixture.nothing_sent());
    waits_for(&fixture, &younger, &older, second).await;
    completes(&fixture, &offer, "2.0.0").await;
    let mut offers = [fixture.offer().await, fixture.offer().await];
    offers.sort_by_key(|offer| offer.device_id.as_str() == second);
    let [on, last] = &offers;
    assert_eq!(on.device_id.as_str(), first);
    assert_eq!(
        on.update_id,
        update_of(&fixture, &younger, first).await.id.to_string()
    );
    assert_eq!(
        last.update_id,
        update_of(&fixture, &older, second).await.id.to_string()
    );
    completes(&fixture, last, "2.0.0").await;
    completes(&fixture, on, "3.0.0").await;
    let offer = fixture.offer().await;
    assert_eq!(offer.device_id.as_str(), second);
    completes(&fixture, &offer, "3.0.0").await;
    for campaign in [&older, &younger] {
        fixture.until(campaign, "completed").await;
        assert_eq!(fixture.counts(campaign).await.updates().completed, 2);
    }
    fixture.stop().await;
}

/// What waits for anything but its pace may wait for ever: nobody waits for it.
#[tokio::test]
async fn who_cannot_offer_keeps_no_device_from_others() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d0").await;
    fixture.device("canary").await;
    let canary =
        r#","deployment_strategy":"staged","stages":[{"devices":["canary"]},{"percent":100}]"#;
    let later = r#","schedule":{"start_at":"2030-01-01T00:00:00Z"}"#;
    let night = r#","windows":[{"start":"22:00","duration_minutes":60,"time_zone":"UTC"}]"#;
    let charged = r#","requires":{"min_battery_percent":50}"#;
    for (n, more) in [canary, later, night, charged, ""].into_iter().enumerate() {
        let more = format!(r#"{more},"priority":"critical""#);
        let campaign = fixture.campaign(&format!("9.{n}.0"), &more).await;
        if n == 4 {
            let paused = fixture.engine.pause_campaign(&campaign, &tester()).await;
            paused.unwrap();
        }
    }
    let low = fixture.campaign("1.1.0", r#","priority":"low""#).await;
    let charge = r#"{"version":"1.0.0","battery":{"percent":40}}"#;
    fixture.publish(&device, Up::Heartbeat, charge).await;
    fixture.online(&device).await;
    let offer = fixture.offer().await;
    let expected = update_of(&fixture, &low, "d0").await;
    assert_eq!(offer.update_id, expected.id.to_string());
    fixture.stop().await;
}

#[tokio::test]
async fn what_was_asked_of_the_device_alone_goes_before_campaigns() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d0").await;
    let campaign = fixture.campaign("2.0.0", r#","priority":"critical""#).await;
    let (Uploaded::Created(image) | Uploaded::Existing(image)) =
        fixture.upload("1.5.0", b"own").await;
    let request = format!(r#"{{"firmware_id":"{}","priority":"low"}}"#, image.id);
    let request = serde_json::from_str(&request).unwrap();
    let engine = fixture.engine.clone();
    let single = engine.update_device(&device.id, request, &tester()).await;
    let single = single.unwrap().update;
    fixture.online(&device).await;
    let offer = fixture.offer().await;
    assert_eq!(offer.update_id, single.id.to_string());
    let reason = Why::OtherUpdate {
        update: single.id.clone(),
        campaign: None,
    };
    assert_eq!(why(&fixture, &campaign, "d0").await, [reason]);
    completes(&fixture, &offer, "1.5.0").await;
    let offer = fixture.offer().await;
    completes(&fixture, &offer, "2.0.0").await;
    fixture.until(&campaign, "completed").await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_device_that_is_to_go_back_is_offered_nothing_else_before() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let bad = fixture.campaign_before("2.0.0", "", 2).await;
    for _ in 0..2 {
        let offer = fixture.offer().await;
        completes(&fixture, &offer, "2.0.0").await;
    }
    fixture.until(&bad, "completed").await;
    fixture
        .sql("UPDATE update_campaigns SET spec = json_set(spec, '$.max_concurrent_updates', 1)")
        .await;
    let engine = fixture.engine.clone();
    engine
        .roll_back_campaign(&bad, "it flickers", &tester())
        .await
        .unwrap();
    let back = fixture.offer().await;
    assert_eq!(back.action, Action::Rollback);
    let waiting = other(back.device_id.as_str());
    let mended = fixture.campaign("3.0.0", r#","priority":"critical""#).await;
    fixture.engine.dispatch_all().await.unwrap();
    assert!(fixture.nothing_sent());
    let reasons = why(&fixture, &mended, waiting).await;
    assert!(
        matches!(&reasons[..], [Why::OtherUpdate { campaign, .. }] if campaign.as_ref() == Some(&bad)),
        "{reasons:?}"
    );
    completes(&fixture, &back, "1.0.0").await;
    let offers = [fixture.offer().await, fixture.offer().await];
    for offer in &offers {
        let goes_back = offer.device_id.as_str() == waiting;
        assert_eq!(offer.action == Action::Rollback, goes_back);
    }
    fixture.stop().await;
}

async fn heartbeat(fixture: &Fixture, device: &DeviceRef, version: &str) {
    let text = format!(r#"{{"version":"{version}"}}"#);
    fixture.publish(device, Up::Heartbeat, &text).await;
}

/// A continuous campaign takes it in again once it has fallen back, and not before.
#[tokio::test]
async fn who_came_to_a_newer_version_is_met_again_when_it_falls_back() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d0").await;
    let campaign = fixture.campaign("1.1.0", r#","continuous":true"#).await;
    fixture.online_again(&device, "1.2.0").await;
    fixture.engine.dispatch_all().await.unwrap();
    for _ in 0..2 {
        let update = update_of(&fixture, &campaign, "d0").await;
        assert_eq!(because(&update), Some(Exclusion::NewerInstalled));
        fixture.pass(MINUTE).await;
    }
    assert!(fixture.nothing_sent());
    heartbeat(&fixture, &device, "1.0.5").await;
    fixture.pass(MINUTE).await;
    let offer = fixture.offer().await;
    assert_eq!(offer.device_id.as_str(), "d0");
    fixture.stop().await;
}
