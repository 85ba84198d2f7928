//! Heartbeats after an update, compared with those before it and with those of others.

use device_ota_domain::CampaignId;
use device_ota_engine::inbound::DeviceRef;
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::Fixture;

const MINUTE: SignedDuration = SignedDuration::from_mins(1);

/// Five heartbeats, one a minute, each with so many errors and this fan.
async fn beats(fixture: &Fixture, device: &DeviceRef, version: &str, errors: u32, fan: u32) {
    for _ in 0..5 {
        fixture.advance(MINUTE);
        let beat = format!(
            r#"{{"version":"{version}","errors":[{{"code":"e","count":{errors}}}],"metrics":{{"fan":{fan}}}}}"#
        );
        fixture.publish(device, Up::Heartbeat, &beat).await;
    }
}

/// A campaign of two devices, each with five heartbeats; the first has completed, the second waits for a person.
async fn half_way(fixture: &mut Fixture, criterion: &str) -> (CampaignId, [DeviceRef; 2]) {
    let devices = [fixture.device("d0").await, fixture.device("d1").await];
    for device in &devices {
        fixture.online(device).await;
        beats(fixture, device, "1.0.0", 1, 10).await;
    }
    let more = format!(
        r#","deployment_strategy":"canary","stages":[{{"count":1,"gate":{{"manual":true}}}}],"health":{{"criteria":[{{{criterion},"min_samples":1}}]}}"#
    );
    let campaign = fixture.campaign("1.1.0", &more).await;
    let offer = fixture.offer().await;
    let first = fixture.known(offer.device_id.as_str()).await;
    fixture
        .progress(&first, &offer, 1, "completed", r#","version":"1.1.0""#)
        .await;
    let [a, b] = devices;
    let devices = if a.id == first.id { [a, b] } else { [b, a] };
    (campaign, devices)
}

async fn status(fixture: &Fixture, campaign: &CampaignId) -> (&'static str, Option<String>) {
    let campaign = fixture.engine.campaign(campaign).await.unwrap().campaign;
    let reason = match &campaign.state {
        device_ota_domain::CampaignState::Paused { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    (campaign.state.status(), reason)
}

#[tokio::test]
async fn more_errors_than_before_the_update_stop_the_campaign() {
    let mut fixture = Fixture::new().await;
    let criterion =
        r#""metric":"errors","compare":"before","max_increase":{"absolute":100},"action":"pause""#;
    let (campaign, [first, _]) = half_way(&mut fixture, criterion).await;
    fixture.engine.read_health().await.unwrap();
    fixture.engine.dispatch_all().await.unwrap();
    assert_eq!(status(&fixture, &campaign).await.0, "in_progress");

    beats(&fixture, &first, "1.1.0", 3, 10).await;
    fixture.engine.read_health().await.unwrap();
    fixture.engine.dispatch_all().await.unwrap();
    let (status, reason) = status(&fixture, &campaign).await;
    assert_eq!(status, "paused");
    let reason = reason.unwrap();
    assert!(
        reason.starts_with("errors of devices after their update is 180.00, of the same devices before their update 60.00 (1 devices)"),
        "{reason}"
    );
    let seen = fixture.engine.campaign(&campaign).await.unwrap().campaign;
    assert_eq!(
        (seen.readings[0].base, seen.readings[0].samples),
        (Some(60.0), 1)
    );

    // A resume accepts what was seen: only devices that complete from now on are looked at.
    fixture.advance(MINUTE);
    let by = crate::fixture::tester();
    let resumed = fixture.engine.resume_campaign(&campaign, &by);
    resumed.await.unwrap();
    fixture.engine.read_health().await.unwrap();
    let seen = fixture.engine.campaign(&campaign).await.unwrap().campaign;
    assert_eq!(
        (seen.state.status(), seen.readings[0].samples),
        ("in_progress", 0)
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_number_of_the_devices_own_is_compared_with_those_that_wait() {
    let mut fixture = Fixture::new().await;
    let criterion = r#""metric":"metrics.fan","compare":"control","max_increase":{"percent":20},"action":"cancel""#;
    let (campaign, [first, _]) = half_way(&mut fixture, criterion).await;
    beats(&fixture, &first, "1.1.0", 1, 12).await;
    fixture.engine.read_health().await.unwrap();
    fixture.engine.dispatch_all().await.unwrap();
    assert_eq!(
        status(&fixture, &campaign).await.0,
        "in_progress",
        "at the limit"
    );
    beats(&fixture, &first, "1.1.0", 1, 20).await;
    fixture.engine.read_health().await.unwrap();
    fixture.engine.dispatch_all().await.unwrap();
    assert_eq!(status(&fixture, &campaign).await.0, "cancelled");
    fixture.stop().await;
}

#[tokio::test]
async fn a_campaign_that_ended_before_the_first_reading_is_judged_while_it_is_watched() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let device = fixture.device("d0").await;
    fixture.online(&device).await;
    beats(&fixture, &device, "1.0.0", 1, 10).await;
    let more = r#","health":{"criteria":[{"metric":"metrics.fan","compare":"before","max_increase":{"percent":50},"min_samples":1,"action":"rollback"}]}"#;
    let campaign = fixture.campaign("1.1.0", more).await;
    let offer = fixture.offer().await;
    fixture
        .progress(&device, &offer, 1, "completed", r#","version":"1.1.0""#)
        .await;
    fixture.until(&campaign, "completed").await;
    fixture.engine.read_health().await.unwrap();
    assert_eq!(status(&fixture, &campaign).await.0, "completed");
    beats(&fixture, &device, "1.1.0", 1, 40).await;
    fixture.engine.read_health().await.unwrap();
    assert_eq!(status(&fixture, &campaign).await.0, "rolling_back");
    fixture.stop().await;
}
