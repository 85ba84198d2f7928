//! Campaigns that go on: who comes is taken in, and who is none of theirs any more is let go.

use device_ota_domain::campaign::Group;
use device_ota_domain::device::DeviceChange;
use device_ota_domain::ring::Ring;
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::update::UpdateState;
use device_ota_domain::why::Why;
use device_ota_domain::{CampaignId, Update};
use jiff::SignedDuration;

use crate::fixture::{Fixture, tester};

const CONTINUOUS: &str = r#","continuous":true"#;
const MINUTE: SignedDuration = SignedDuration::from_mins(1);

async fn of(fixture: &Fixture, campaign: &CampaignId, device: &str) -> Update {
    let updates = fixture.updates(campaign).await.into_iter();
    let mut updates = updates.filter(|update| update.device_id.as_str() == device);
    updates.next().unwrap()
}

fn because(update: &Update) -> Option<Exclusion> {
    match update.state {
        UpdateState::Cancelled { because, .. } => because,
        _ => None,
    }
}

async fn why(fixture: &Fixture, campaign: &CampaignId, device: &str) -> Why {
    let device = device.parse().unwrap();
    let why = fixture.engine.why_of_campaign(campaign, &device).await;
    why.unwrap().remove(0)
}

async fn pin(fixture: &Fixture, device: &str, ring: Ring) {
    let change = DeviceChange {
        ring: Some(Some(ring)),
        ..DeviceChange::default()
    };
    let id = device.parse().unwrap();
    fixture
        .engine
        .change_device(&id, change, None, &tester())
        .await
        .unwrap();
    fixture.engine.follow_the_fleet().await.unwrap();
}

#[tokio::test]
async fn who_comes_later_is_taken_in_at_once_and_offered() {
    let mut fixture = Fixture::new().await;
    let campaign = fixture.campaign_before("1.1.0", CONTINUOUS, 1).await;
    let offer = fixture.offer().await;
    let first = fixture.known("d0").await;
    fixture
        .progress(&first, &offer, 1, "completed", r#","version":"1.1.0""#)
        .await;
    fixture.engine.dispatch_all().await.unwrap();
    let view = fixture.engine.campaign(&campaign).await.unwrap();
    assert_eq!(view.campaign.state.status(), "in_progress");
    assert_eq!(view.waits, [Why::Newcomers]);

    let late = fixture.device("late").await;
    assert_eq!(why(&fixture, &campaign, "late").await, Why::Joining);
    fixture.engine.follow_the_fleet().await.unwrap();
    fixture.online(&late).await;
    let offer = fixture.offer().await;
    assert_eq!(offer.device_id.as_str(), "late");
    let view = fixture.engine.campaign(&campaign).await.unwrap();
    assert_eq!((view.campaign.target_count, view.campaign.revision), (2, 1));
    fixture
        .progress(&late, &offer, 1, "completed", r#","version":"1.1.0""#)
        .await;
    fixture.pass(MINUTE).await;
    assert_eq!(fixture.counts(&campaign).await.updates().completed, 2);
    fixture
        .engine
        .cancel_campaign(&campaign, &tester())
        .await
        .unwrap();
    fixture.device("too-late").await;
    fixture.pass(MINUTE).await;
    assert_eq!(fixture.counts(&campaign).await.updates().total(), 2);
    assert_eq!(why(&fixture, &campaign, "too-late").await, Why::TooLate);
    fixture.stop().await;
}

#[tokio::test]
async fn who_has_the_version_by_itself_is_let_go_and_taken_back() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d0").await;
    let campaign = fixture.campaign("1.1.0", CONTINUOUS).await;
    fixture
        .engine
        .pause_campaign(&campaign, &tester())
        .await
        .unwrap();
    fixture.online_again(&device, "1.1.0").await;
    fixture.pass(MINUTE).await;
    let update = of(&fixture, &campaign, "d0").await;
    assert_eq!(because(&update), Some(Exclusion::AlreadyInstalled));
    let told = why(&fixture, &campaign, "d0").await;
    assert!(
        told.to_string()
            .ends_with("the device already runs the firmware's version"),
        "{told}"
    );
    let all = fixture.counts(&campaign).await.updates();
    assert_eq!((all.cancelled, all.open()), (1, 0));

    fixture.online_again(&device, "1.0.0").await;
    fixture
        .engine
        .resume_campaign(&campaign, &tester())
        .await
        .unwrap();
    fixture.pass(MINUTE).await;
    fixture.online_again(&device, "1.0.0").await;
    assert_eq!(fixture.offer().await.device_id.as_str(), "d0");
    fixture.stop().await;
}

#[tokio::test]
async fn who_was_deleted_and_comes_back_is_a_newcomer() {
    let mut fixture = Fixture::new().await;
    let campaign = fixture.campaign_before("1.1.0", CONTINUOUS, 1).await;
    let first = fixture.offer().await;
    let id = "d0".parse().unwrap();
    fixture
        .engine
        .delete_device(&id, None, &tester())
        .await
        .unwrap();
    let update = of(&fixture, &campaign, "d0").await;
    assert_eq!(because(&update), Some(Exclusion::UnknownDevice));
    let device = fixture.device("d0").await;
    fixture.engine.follow_the_fleet().await.unwrap();
    fixture.online(&device).await;
    let again = fixture.offer().await;
    assert_eq!(
        (again.update_id == first.update_id, again.attempt),
        (true, 2)
    );
    fixture.stop().await;
}

#[tokio::test]
async fn who_is_pinned_elsewhere_goes_with_the_ring_and_opens_no_stage() {
    let fixture = Fixture::new().await;
    for name in ["a", "b", "c"] {
        fixture.device(name).await;
    }
    for name in ["a", "b"] {
        pin(&fixture, name, Ring::Canary).await;
    }
    pin(&fixture, "c", Ring::Production).await;
    let more = r#","continuous":true,"deployment_strategy":"staged","rollout_percentage":75"#;
    let campaign = fixture.campaign("1.1.0", more).await;
    let stages = async || {
        let counts = fixture.counts(&campaign).await;
        counts
            .stages
            .iter()
            .map(|stage| stage.pending)
            .collect::<Vec<u64>>()
    };
    assert_eq!(
        stages().await,
        [2, 0, 0, 0],
        "who is out of the rollout is none of it"
    );
    pin(&fixture, "c", Ring::Broad).await;
    assert_eq!(stages().await, [2, 0, 1, 0]);
    pin(&fixture, "b", Ring::Broad).await;
    assert_eq!(stages().await, [1, 0, 2, 0]);
    pin(&fixture, "c", Ring::Production).await;
    assert_eq!(stages().await, [1, 0, 1, 0]);
    let update = of(&fixture, &campaign, "c").await;
    assert_eq!(because(&update), Some(Exclusion::OutsideRollout));
    pin(&fixture, "c", Ring::Early).await;
    assert_eq!(
        stages().await,
        [1, 1, 1, 0],
        "back, and where it belongs now"
    );
    let update = of(&fixture, &campaign, "c").await;
    assert_eq!((update.group(), update.stage), (Group::Pending, 1));
    fixture.stop().await;
}

#[tokio::test]
async fn a_campaign_that_is_not_continuous_keeps_whom_it_has() {
    let fixture = Fixture::new().await;
    fixture.device("d0").await;
    let campaign = fixture.campaign("1.1.0", "").await;
    fixture.device("late").await;
    fixture.pass(MINUTE * 3).await;
    assert_eq!(fixture.counts(&campaign).await.updates().total(), 1);
    fixture.stop().await;
}
