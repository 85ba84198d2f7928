//! A batch is as many devices as were told something and have not answered: the next are told as those answer, on the way there
//! and on the way back.

use device_ota_domain::CampaignId;
use device_ota_domain::why::Why;
use device_ota_protocol::objects::Action as WireAction;

use crate::fixture::{Fixture, tester};

/// Answered, waiting for an answer, and what the campaign waits for; a pass more changes nothing.
async fn told(fixture: &Fixture, campaign: &CampaignId) -> (u64, Vec<Why>) {
    fixture.engine.dispatch_all().await.unwrap();
    let view = fixture.engine.campaign(campaign).await.unwrap();
    (view.counts.in_flight(), view.waits)
}

#[tokio::test]
async fn the_next_are_told_as_those_before_answer() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let campaign = fixture
        .campaign_before("1.1.0", r#","batch_size":2"#, 5)
        .await;
    let mut offers = vec![fixture.offer().await, fixture.offer().await];
    assert_eq!(told(&fixture, &campaign).await, (2, vec![Why::Batch]));
    for answered in 0..3 {
        let device = fixture.known(offers[answered].device_id.as_str()).await;
        fixture
            .progress(&device, &offers[answered], 1, "accepted", "")
            .await;
        offers.push(fixture.offer().await);
        let in_flight = u64::try_from(offers.len()).unwrap();
        let waits = told(&fixture, &campaign).await;
        assert_eq!(waits.0, in_flight, "one more, for the one that answered");
    }
    for offer in &offers {
        let device = fixture.known(offer.device_id.as_str()).await;
        let version = r#","version":"1.1.0""#;
        fixture
            .progress(&device, offer, 2, "completed", version)
            .await;
    }
    fixture.until(&campaign, "completed").await;

    let back = fixture
        .engine
        .roll_back_campaign(&campaign, "bad", &tester())
        .await;
    assert_eq!(back.unwrap().campaign.state.status(), "rolling_back");
    let first = [fixture.offer().await, fixture.offer().await];
    let actions = first.each_ref().map(|offer| offer.action);
    assert_eq!(actions, [WireAction::Rollback; 2]);
    assert_eq!(told(&fixture, &campaign).await, (2, vec![Why::Batch]));
    let device = fixture.known(first[0].device_id.as_str()).await;
    fixture
        .progress(&device, &first[0], 1, "accepted", "")
        .await;
    fixture.offer().await;
    assert_eq!(told(&fixture, &campaign).await.0, 3);
    assert!(fixture.nothing_sent());
    fixture.counts(&campaign).await;
    fixture.stop().await;
}
