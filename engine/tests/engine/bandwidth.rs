//! Offers go out no faster than lines carry their images.

use device_ota_domain::CampaignId;
use device_ota_domain::why::Why;
use jiff::{SignedDuration, Timestamp};

use crate::fixture::{Fixture, tester};

const SECOND: SignedDuration = SignedDuration::from_secs(1);

async fn why(fixture: &Fixture, campaign: &CampaignId, device: &str) -> Why {
    let device = device.parse().unwrap();
    let why = fixture.engine.why_of_campaign(campaign, &device).await;
    why.unwrap().remove(0)
}

async fn in_flight(fixture: &Fixture, campaign: &CampaignId) -> u64 {
    fixture.engine.dispatch_all().await.unwrap();
    fixture.counts(campaign).await.updates().in_flight
}

/// The image has five bytes, and one a second go.
#[tokio::test]
async fn one_image_follows_the_other_also_over_a_restart() {
    let mut fixture = Fixture::new().await;
    let more = r#","bandwidth_bytes_per_second":1"#;
    let campaign = fixture.campaign_before("1.1.0", more, 4).await;
    let began: Timestamp = fixture.engine.clock().now();
    assert_eq!(in_flight(&fixture, &campaign).await, 1);
    let first = fixture.offer().await;
    let next = began + SECOND * 5;
    let waits = fixture.engine.campaign(&campaign).await.unwrap().waits;
    assert_eq!(waits, [Why::Bandwidth { next }]);
    let waiting = (0..4)
        .map(|n| format!("d{n}"))
        .find(|d| *d != first.device_id.as_str());
    let told = why(&fixture, &campaign, &waiting.unwrap()).await;
    assert_eq!(told, Why::Bandwidth { next });
    assert!(
        told.to_string().starts_with("it waits for bandwidth"),
        "{told}"
    );

    fixture.advance(SECOND * 4);
    fixture.restart().await;
    for n in 0..4 {
        let device = fixture.known(&format!("d{n}")).await;
        fixture.online_again(&device, "1.0.0").await;
    }
    assert_eq!(in_flight(&fixture, &campaign).await, 1);
    fixture.advance(SECOND);
    assert_eq!(in_flight(&fixture, &campaign).await, 2);
    // A long silence is not made up for.
    fixture.advance(SECOND * 1_000);
    assert_eq!(in_flight(&fixture, &campaign).await, 3);
    fixture.advance(SECOND * 4);
    assert_eq!(in_flight(&fixture, &campaign).await, 3);
    fixture.advance(SECOND);
    assert_eq!(in_flight(&fixture, &campaign).await, 4);
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_taken_back_waits_for_no_line() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let more = r#","bandwidth_bytes_per_second":10"#;
    let campaign = fixture.campaign_before("1.1.0", more, 3).await;
    for _ in 0..3 {
        fixture.engine.dispatch_all().await.unwrap();
        let offer = fixture.offer().await;
        let device = fixture.known(offer.device_id.as_str()).await;
        fixture
            .progress(&device, &offer, 1, "completed", r#","version":"1.1.0""#)
            .await;
        fixture.advance(SECOND);
    }
    fixture.until(&campaign, "completed").await;
    let by = tester();
    fixture
        .engine
        .roll_back_campaign(&campaign, "it flickers", &by)
        .await
        .unwrap();
    fixture.engine.dispatch_all().await.unwrap();
    assert_eq!(fixture.counts(&campaign).await.rollbacks.in_flight, 3);
    fixture.stop().await;
}
