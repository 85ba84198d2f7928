//! Figures that the engine itself is the cause of.

use jiff::SignedDuration;

use crate::fixture::{Fixture, tester};

#[tokio::test]
async fn whatever_ends_is_observed_and_how_long_it_took() {
    let mut fixture = Fixture::new().await;
    let devices = [fixture.device("d1").await, fixture.device("d2").await];
    for device in &devices {
        fixture.online(device).await;
    }
    let campaign = fixture.campaign("1.1.0", "").await;
    let mut updates = Vec::new();
    for _ in &devices {
        let offer = fixture.offer().await;
        let device = devices
            .iter()
            .find(|device| device.id.as_str() == offer.device_id.as_str())
            .unwrap();
        let later = r#","retry_after_s":3600,"error":{"code":"user_deferred"}"#;
        fixture.progress(device, &offer, 1, "deferred", later).await;
        updates.push(offer.update_id);
    }
    fixture.advance(SignedDuration::from_secs(100));
    // One by itself, one at a stroke; neither by a report.
    let one = updates[0].parse().unwrap();
    fixture.engine.cancel_update(&one, &tester()).await.unwrap();
    fixture
        .engine
        .cancel_campaign(&campaign, &tester())
        .await
        .unwrap();
    let text = fixture.engine.exposition().await;
    let of = r#"{action="update",status="cancelled"}"#;
    for line in [
        format!("device_ota_update_seconds_count{of} 2"),
        format!("device_ota_update_seconds_sum{of} 200.0"),
    ] {
        assert!(text.lines().any(|known| known == line), "{line}\n{text}");
    }
    fixture.stop().await;
}
