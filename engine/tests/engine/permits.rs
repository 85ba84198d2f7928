//! Rollback permits: which are taken, and what they let happen.

use device_ota_domain::page::Page;
use device_ota_engine::inbound::DeviceRef;
use device_ota_protocol::keys::Keypair;
use device_ota_protocol::objects::{self, RollbackPermit, open};
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;
use sha2::{Digest as _, Sha256};

use crate::fixture::{Fixture, keys, tester};

const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// Of the image of that version, whose content is its name.
fn sha256(version: &str) -> String {
    hex::encode(Sha256::digest(version))
}

/// From 2.0.0 to 1.0.0, for an hour from now.
fn permit(fixture: &Fixture, id: &str) -> RollbackPermit {
    RollbackPermit {
        permit_id: id.into(),
        device_id: Some("d1".parse().unwrap()),
        campaign_id: None,
        from_sha256: sha256("2.0.0").parse().unwrap(),
        to_sha256: sha256("1.0.0").parse().unwrap(),
        expires_at: fixture.now().checked_add(HOUR).unwrap(),
    }
}

fn sealed(permit: &RollbackPermit, key: &Keypair) -> String {
    let envelope = objects::seal(permit, key).unwrap();
    String::from_utf8(envelope.to_json()).unwrap()
}

async fn says(fixture: &Fixture, device: &DeviceRef, version: &str, floor: u32) {
    let heartbeat = format!(r#"{{"version":"{version}","security_floor":{floor}}}"#);
    fixture.publish(device, Up::Heartbeat, &heartbeat).await;
}

/// A device that was registered with 1.0.0, runs 2.0.0 and takes nothing below it.
async fn risen() -> (Fixture, DeviceRef) {
    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.secured("1.0.0", 1).await;
    fixture.secured("2.0.0", 2).await;
    fixture.online_again(&device, "2.0.0").await;
    says(&fixture, &device, "2.0.0", 2).await;
    (fixture, device)
}

#[tokio::test]
async fn only_what_the_release_role_has_signed_and_is_in_force_is_taken_and_once() {
    let (fixture, _) = risen().await;
    let [_, release, dispatch] = keys();
    let good = permit(&fixture, "p1");
    let code = async |text: String| {
        let taken = fixture.engine.add_permit(&text, &tester()).await;
        taken.map_or_else(|error| error.code(), |_| "taken")
    };
    assert_eq!(code("{}".into()).await, "permit_malformed");
    assert_eq!(code(sealed(&good, &dispatch)).await, "permit_refused");
    let over = RollbackPermit {
        expires_at: fixture.now(),
        ..good.clone()
    };
    assert_eq!(code(sealed(&over, &release)).await, "permit_expired");
    let stranger = RollbackPermit {
        device_id: Some("nobody".parse().unwrap()),
        ..good.clone()
    };
    assert_eq!(code(sealed(&stranger, &release)).await, "not_found");
    let of_nothing = RollbackPermit {
        device_id: None,
        campaign_id: Some("camp_0000000000000000".into()),
        ..good.clone()
    };
    assert_eq!(code(sealed(&of_nothing, &release)).await, "not_found");
    let unknown = RollbackPermit {
        to_sha256: sha256("3.0.0").parse().unwrap(),
        ..good.clone()
    };
    assert_eq!(code(sealed(&unknown, &release)).await, "permit_of_no_image");
    assert!(
        fixture
            .engine
            .permits(Page::default())
            .await
            .unwrap()
            .is_empty()
    );

    assert_eq!(code(sealed(&good, &release)).await, "taken");
    assert_eq!(code(sealed(&good, &release)).await, "permit_exists");
    let all = fixture.engine.permits(Page::default()).await.unwrap();
    let ids: Vec<_> = all.iter().map(|permit| permit.id.as_str()).collect();
    assert_eq!(ids, ["p1"]);
    fixture.stop().await;
}

#[tokio::test]
async fn a_device_goes_back_below_its_floor_once_by_a_permit_for_it() {
    let (mut fixture, device) = risen().await;
    let [_, release, _] = keys();
    let engine = fixture.engine.clone();
    let back = async || {
        let made = engine
            .roll_back_device(&device.id, "1.0.0", "why not", &tester())
            .await;
        made.map_or_else(|error| error.code(), |_| "taken")
    };
    assert_eq!(back().await, "below_floor");
    // Another device's, and the other way round.
    fixture.device("d2").await;
    let others = RollbackPermit {
        device_id: Some("d2".parse().unwrap()),
        ..permit(&fixture, "p1")
    };
    let forth = RollbackPermit {
        from_sha256: sha256("1.0.0").parse().unwrap(),
        to_sha256: sha256("2.0.0").parse().unwrap(),
        ..permit(&fixture, "p2")
    };
    for unfit in [others, forth] {
        let text = sealed(&unfit, &release);
        engine.add_permit(&text, &tester()).await.unwrap();
        assert_eq!(back().await, "below_floor");
    }
    // One that has expired since.
    let text = sealed(&permit(&fixture, "p3"), &release);
    engine.add_permit(&text, &tester()).await.unwrap();
    fixture.advance(HOUR);
    assert_eq!(back().await, "below_floor");

    let text = sealed(&permit(&fixture, "p4"), &release);
    engine.add_permit(&text, &tester()).await.unwrap();
    fixture.online_again(&device, "2.0.0").await;
    assert_eq!(back().await, "taken");
    engine.dispatch_all().await.unwrap();
    let (offer, assignment) = fixture.whole_offer().await;
    let carried = offer.permit.expect("a permit");
    let (carried, _) = open::<RollbackPermit>(&carried, &fixture.root).unwrap();
    assert_eq!(carried.permit_id, "p4");
    let version = r#","version":"1.0.0""#;
    fixture
        .progress(&device, &assignment, 1, "completed", version)
        .await;
    // It has used it.
    says(&fixture, &device, "2.0.0", 2).await;
    assert_eq!(back().await, "below_floor");
    fixture.stop().await;
}

#[tokio::test]
async fn a_campaign_goes_back_below_the_floor_of_its_devices_by_a_permit_for_it() {
    let mut fixture = Fixture::new().await;
    let [_, release, _] = keys();
    fixture.secured("1.0.0", 1).await;
    let new = fixture.secured("2.0.0", 2).await;
    let device = fixture.device("d1").await;
    fixture.online(&device).await;
    let draft = format!(
        r#"{{"name":"c","firmware_id":"{new}","deployment_strategy":"immediate","target_devices":["d1"]}}"#
    );
    let engine = fixture.engine.clone();
    let (draft, by) = (serde_json::from_str(&draft).unwrap(), tester());
    let made = engine.create_campaign(draft, &by);
    let campaign = made.await.unwrap().campaign.id;
    engine.start_campaign(&campaign, &tester()).await.unwrap();
    let offer = fixture.offer().await;
    let done = r#","version":"2.0.0""#;
    fixture
        .progress(&device, &offer, 1, "completed", done)
        .await;
    fixture.until(&campaign, "completed").await;
    says(&fixture, &device, "2.0.0", 2).await;
    // Without one its rollback is born failed; with one it is tried again.
    let back = engine.roll_back_campaign(&campaign, "it flickers", &by);
    back.await.unwrap();
    fixture.until(&campaign, "rolled_back").await;
    let for_it = RollbackPermit {
        device_id: None,
        campaign_id: Some(campaign.to_string()),
        ..permit(&fixture, "p1")
    };
    let text = sealed(&for_it, &release);
    engine.add_permit(&text, &tester()).await.unwrap();
    let rows = fixture.updates(&campaign).await;
    let failed = rows
        .iter()
        .find(|row| row.action == device_ota_domain::update::Action::Rollback);
    let failed = failed.unwrap().id.clone();
    assert_eq!(fixture.failure(failed.as_str()).await, "downgrade_refused");
    engine.retry_update(&failed, &tester()).await.unwrap();
    engine.dispatch_all().await.unwrap();
    let (offer, assignment) = fixture.whole_offer().await;
    assert_eq!(assignment.update_id, failed.as_str());
    assert!(offer.permit.is_some());
    let version = r#","version":"1.0.0""#;
    fixture
        .progress(&device, &assignment, 1, "completed", version)
        .await;
    fixture.until(&campaign, "rolled_back").await;
    assert_eq!(fixture.status(failed.as_str()).await, "completed");
    fixture.counts(&campaign).await;
    fixture.stop().await;
}
