//! Devices that would refuse an image as below their security floor are not offered it.

use device_ota_domain::FirmwareId;
use device_ota_domain::update::{Action, UpdateState};
use device_ota_engine::inbound::DeviceRef;
use device_ota_engine::{DryRunQuery, UpdateRequest};
use device_ota_protocol::topics::Up;

use crate::fixture::{Fixture, tester};

async fn says(fixture: &Fixture, device: &DeviceRef, version: &str, floor: u32) {
    let heartbeat = format!(r#"{{"version":"{version}","security_floor":{floor}}}"#);
    fixture.publish(device, Up::Heartbeat, &heartbeat).await;
}

/// The code of the one failed update or rollback of the campaign.
fn refused(rows: &[device_ota_domain::Update], action: Action) -> (String, u32) {
    let row = rows.iter().find(|row| row.action == action).unwrap();
    match &row.state {
        UpdateState::Failed { failure, .. } => (failure.code.clone(), row.attempt),
        state => panic!("{state:?}"),
    }
}

#[tokio::test]
async fn one_device_is_neither_updated_nor_taken_back_below_its_floor() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    let (old, new) = (
        fixture.secured("1.0.0", 1).await,
        fixture.secured("2.0.0", 2).await,
    );
    says(&fixture, &device, "2.0.0", 2).await;
    let engine = fixture.engine.clone();
    let back = engine
        .roll_back_device(&device.id, "1.0.0", "why not", &tester())
        .await;
    let refused = back.unwrap_err();
    assert_eq!(refused.code(), "below_floor");
    assert_eq!(
        refused.to_string(),
        "the security_version of 1.0.0 is 1, below the security_floor of device d1, 2: the device would refuse it, but with a rollback \
         permit from the image that it runs to this one, which is not here or is spent: have it signed by the release role \
         (`device-ota permit`) and send it to POST /api/v1/ota/permits"
    );
    let ask = async |firmware: &FirmwareId| {
        let request = format!(r#"{{"firmware_id":"{firmware}","force_update":true}}"#);
        let request: UpdateRequest = serde_json::from_str(&request).unwrap();
        engine.update_device(&device.id, request, &tester()).await
    };
    assert_eq!(ask(&old).await.unwrap_err().code(), "below_floor");
    let draft = format!(r#"{{"name":"c","firmware_id":"{old}","target_devices":["d1"]}}"#);
    let draft = serde_json::from_str(&draft).unwrap();
    let dry = engine
        .dry_run(draft, &DryRunQuery::default())
        .await
        .unwrap();
    let left_out: Vec<_> = dry.summary.left_out.keys().map(|why| why.name()).collect();
    assert_eq!(left_out, ["below_floor"]);
    ask(&new).await.unwrap();

    // It rises while an update waits.
    says(&fixture, &device, "2.0.0", 3).await;
    fixture.online_again(&device, "2.0.0").await;
    engine.dispatch_all().await.unwrap();
    assert!(fixture.nothing_sent());
    fixture.stop().await;
}

#[tokio::test]
async fn a_campaign_takes_nobody_back_below_its_floor_and_ends() {
    let mut fixture = Fixture::new().await;
    fixture.secured("1.0.0", 1).await;
    let new = fixture.secured("2.0.0", 2).await;
    for id in ["before", "later"] {
        let device = fixture.device(id).await;
        fixture.online(&device).await;
        let draft = format!(
            r#"{{"name":"{id}","firmware_id":"{new}","deployment_strategy":"immediate","target_devices":["{id}"]}}"#
        );
        let engine = fixture.engine.clone();
        let made = engine
            .create_campaign(serde_json::from_str(&draft).unwrap(), &tester())
            .await
            .unwrap();
        let campaign = made.campaign.id;
        engine.start_campaign(&campaign, &tester()).await.unwrap();
        let offer = fixture.offer().await;
        let said = r#","version":"2.0.0""#;
        fixture
            .progress(&device, &offer, 1, "completed", said)
            .await;
        fixture.until(&campaign, "completed").await;
        let rises = async || says(&fixture, &device, "2.0.0", 2).await;
        if id == "before" {
            rises().await;
        } else {
            fixture.gone(&device).await;
        }
        engine
            .roll_back_campaign(&campaign, "it flickers", &tester())
            .await
            .unwrap();
        engine.dispatch_all().await.unwrap();
        if id == "later" {
            fixture.until(&campaign, "rolling_back").await;
            rises().await;
            fixture.online_again(&device, "2.0.0").await;
        }
        fixture.until(&campaign, "rolled_back").await;
        let rows = fixture.updates(&campaign).await;
        let expected = ("downgrade_refused".to_owned(), 0);
        assert_eq!(refused(&rows, Action::Rollback), expected, "{id}");
        fixture.counts(&campaign).await;
        assert!(fixture.nothing_sent());
    }
    assert_eq!(
        fixture.store.ledger().await.unwrap(),
        fixture.store.ledger_by_rows().await.unwrap()
    );
    fixture.stop().await;
}
