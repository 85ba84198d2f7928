//! Maintenance windows: what nobody has taken up when they close is not said again before the next.

use device_ota_domain::CampaignId;
use device_ota_domain::campaign::Group;
use device_ota_engine::inbound::DeviceRef;
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::Fixture;

const MINUTE: SignedDuration = SignedDuration::from_mins(1);
/// Half an hour from the moment on in which the clock of these tests begins.
const WINDOW: &str = r#","windows":[{"start":"08:00","duration_minutes":30,"time_zone":"UTC"}]"#;

async fn begun(more: &str) -> (Fixture, DeviceRef, CampaignId) {
    let fixture = Fixture::new().await;
    let device = fixture.device("d0").await;
    fixture.online(&device).await;
    let campaign = fixture.campaign("1.1.0", &format!("{WINDOW}{more}")).await;
    (fixture, device, campaign)
}

/// Time passes, the device is heard, and the service looks at what is due.
async fn later(fixture: &Fixture, device: &DeviceRef, by: SignedDuration) {
    fixture.advance(by);
    let beat = r#"{"version":"1.0.0"}"#;
    fixture.publish(device, Up::Heartbeat, beat).await;
    fixture.engine.keep_time().await.unwrap();
    fixture.engine.dispatch_all().await.unwrap();
}

async fn stands(fixture: &Fixture, campaign: &CampaignId) -> Group {
    let all = fixture.counts(campaign).await.updates();
    *Group::ALL.iter().find(|group| all.of(**group) > 0).unwrap()
}

async fn checks(fixture: &mut Fixture, device: &DeviceRef, nonce: &str) -> String {
    let check = format!(r#"{{"version":"1.0.0","nonce":"{nonce}","reason":"boot"}}"#);
    fixture.publish(device, Up::Check, &check).await;
    fixture.reply_to(nonce).await.to_string()
}

#[tokio::test]
async fn an_offer_that_nobody_took_up_waits_for_the_next_window() {
    let (mut fixture, device, campaign) = begun("").await;
    let first = fixture.offer().await;
    later(&fixture, &device, MINUTE).await;
    assert_eq!(fixture.offer().await.attempt, first.attempt, "said again");
    later(&fixture, &device, MINUTE * 30).await;
    assert!(fixture.nothing_sent(), "the window is closed");
    assert_eq!(stands(&fixture, &campaign).await, Group::Pending);
    later(&fixture, &device, MINUTE * (24 * 60 - 31)).await;
    assert_eq!(fixture.offer().await.attempt, first.attempt + 1);
    fixture.stop().await;
}

#[tokio::test]
async fn whoever_asks_outside_of_the_window_is_told_when_it_opens() {
    let (mut fixture, device, campaign) = begun("").await;
    fixture.offer().await;
    fixture.advance(MINUTE * 31);
    let reply = checks(&mut fixture, &device, "n7").await;
    assert!(reply.contains("window opens at"), "{reply}");
    assert_eq!(stands(&fixture, &campaign).await, Group::Pending);
    assert!(fixture.nothing_sent());
    fixture.stop().await;
}

#[tokio::test]
async fn who_has_taken_it_up_goes_on_after_the_window() {
    let (mut fixture, device, campaign) = begun("").await;
    let offer = fixture.offer().await;
    fixture
        .progress(&device, &offer, 1, "downloading", "")
        .await;
    fixture.advance(MINUTE * 31);
    checks(&mut fixture, &device, "n7").await;
    assert_eq!(
        fixture.offer().await.attempt,
        offer.attempt,
        "the same again"
    );
    assert_eq!(stands(&fixture, &campaign).await, Group::InFlight);
    fixture.stop().await;
}

#[tokio::test]
async fn the_word_to_flip_ends_with_the_window() {
    let (mut fixture, device, campaign) = begun(r#","deployment_strategy":"blue_green""#).await;
    let opened = fixture.now();
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "staged", "").await;
    let word = fixture.command().await;
    assert_eq!(word.expires_at, opened + MINUTE * 30);
    later(&fixture, &device, MINUTE * 31).await;
    assert!(fixture.nothing_sent(), "the window is closed");
    assert_eq!(stands(&fixture, &campaign).await, Group::Staged);
    fixture.progress(&device, &offer, 2, "staged", "").await;
    assert!(
        fixture.nothing_sent(),
        "nor does it hear it when it says so again"
    );
    fixture.stop().await;
}
