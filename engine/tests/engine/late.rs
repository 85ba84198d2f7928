//! Reports that come late or twice, of devices that are further by then.

use device_ota_domain::CampaignId;
use device_ota_domain::campaign::Group;
use device_ota_domain::update::Action;
use device_ota_engine::inbound::{DeviceRef, Uplink};
use device_ota_engine::ports::Store as _;
use device_ota_protocol::objects::{Action as WireAction, Assignment};
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::{Fixture, LEASE, report, tester};

async fn online(fixture: &Fixture, id: &str) -> DeviceRef {
    let device = fixture.device(id).await;
    fixture.online(&device).await;
    device
}

async fn runs(fixture: &Fixture, device: &DeviceRef) -> String {
    let seen = fixture.engine.device(&device.id).await.unwrap();
    seen.latest.version.unwrap()
}

/// The one device completes a campaign of its own.
async fn brings(
    fixture: &mut Fixture,
    device: &DeviceRef,
    version: &str,
) -> (CampaignId, Assignment) {
    let campaign = fixture.campaign(version, "").await;
    let offer = fixture.offer().await;
    fixture.progress(device, &offer, 1, "rebooting", "").await;
    fixture.advance(SignedDuration::from_secs(20));
    fixture.online_again(device, version).await;
    let said = format!(r#","version":"{version}""#);
    fixture
        .progress(device, &offer, 2, "completed", &said)
        .await;
    fixture.until(&campaign, "completed").await;
    (campaign, offer)
}

#[tokio::test]
async fn a_report_that_changes_nothing_says_nothing_of_what_runs() {
    let mut fixture = Fixture::new().await;
    let device = online(&fixture, "d0").await;
    let (_, first) = brings(&mut fixture, &device, "1.1.0").await;
    let (campaign, second) = brings(&mut fixture, &device, "1.2.0").await;
    let old = r#","version":"1.1.0""#;
    // Its end once more, one of the same attempt that was overtaken, and one of an attempt that there never was.
    fixture.progress(&device, &first, 2, "completed", old).await;
    fixture
        .progress(&device, &second, 1, "rebooting", old)
        .await;
    let never = Assignment {
        attempt: 7,
        ..second.clone()
    };
    fixture.progress(&device, &never, 9, "accepted", old).await;
    let unknown = r#"{"update_id":"upd_00000000000001a7","attempt":1,"seq":1,"phase":"accepted","version":"1.1.0"}"#;
    fixture.publish(&device, Up::Progress, unknown).await;
    assert_eq!(runs(&fixture, &device).await, "1.2.0");
    let other = online(&fixture, "d1").await;
    fixture.progress(&other, &second, 9, "accepted", old).await;
    assert_eq!(runs(&fixture, &other).await, "1.0.0");

    // Nobody takes it for one that fell back, and it goes back when it has to.
    fixture.pass(SignedDuration::from_hours(2)).await;
    let rows = fixture.updates(&campaign).await;
    assert!(rows.iter().all(|row| row.regression().is_none()));
    fixture
        .engine
        .roll_back_campaign(&campaign, "it flickers", &tester())
        .await
        .unwrap();
    let back = fixture.offer().await;
    assert_eq!(back.action, WireAction::Rollback);
    fixture.progress(&device, &back, 1, "completed", old).await;
    assert_eq!(runs(&fixture, &device).await, "1.1.0");
    fixture.stop().await;
}

#[tokio::test]
async fn a_success_after_all_takes_nothing_from_what_came_after_it() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let device = online(&fixture, "d0").await;
    let failed = fixture.campaign("1.1.0", "").await;
    let first = fixture.offer().await;
    let error = r#","error":{"code":"install_failed"}"#;
    fixture.progress(&device, &first, 2, "failed", error).await;
    fixture.until(&failed, "rolled_back").await;
    brings(&mut fixture, &device, "1.2.0").await;

    let said = r#","version":"1.1.0""#;
    fixture
        .progress(&device, &first, 9, "completed", said)
        .await;
    assert_eq!(fixture.status(&first.update_id).await, "completed");
    assert_eq!(runs(&fixture, &device).await, "1.2.0");
    let watched = fixture.store.watched().await.unwrap();
    assert_eq!(watched, [(device.key, "1.2.0".to_owned())]);
    fixture.until(&failed, "rolled_back").await;
    let rows = fixture.updates(&failed).await;
    let back = rows.iter().find(|row| row.action == Action::Rollback);
    assert_eq!(back.unwrap().group(), Group::Cancelled);
    assert!(fixture.nothing_sent());
    fixture.stop().await;
}

#[tokio::test]
async fn a_success_after_all_tells_what_runs_when_nothing_came_after_it() {
    let mut fixture = Fixture::new().await;
    let device = online(&fixture, "d0").await;
    fixture.campaign("1.1.0", "").await;
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "accepted", "").await;
    fixture.gone(&device).await;
    fixture.pass(LEASE * 2).await;
    assert_eq!(fixture.status(&offer.update_id).await, "scheduled");
    let said = r#","version":"1.1.0""#;
    fixture
        .progress(&device, &offer, 2, "completed", said)
        .await;
    assert_eq!(fixture.status(&offer.update_id).await, "completed");
    assert_eq!(runs(&fixture, &device).await, "1.1.0");
    let watched = fixture.store.watched().await.unwrap();
    assert_eq!(watched, [(device.key, "1.1.0".to_owned())]);
    fixture.stop().await;
}

/// Of a batch, the last word counts, whatever kind of message says it.
#[tokio::test]
async fn what_runs_is_told_by_the_last_word_of_a_batch() {
    let completed = |offer: &Assignment| {
        let (id, attempt) = (&offer.update_id, offer.attempt);
        let said = format!(
            r#"{{"update_id":"{id}","attempt":{attempt},"seq":5,"phase":"completed","version":"1.1.0"}}"#
        );
        report(Up::Progress, &said)
    };
    let check = || {
        report(
            Up::Check,
            r#"{"version":"1.0.0","nonce":"n","reason":"poll"}"#,
        )
    };
    let beat = || report(Up::Heartbeat, r#"{"version":"1.0.0"}"#);
    for (before, last) in [(true, "1.1.0"), (false, "1.0.0")] {
        for other in [check(), beat()] {
            let mut fixture = Fixture::new().await;
            let device = online(&fixture, "d0").await;
            fixture.campaign("1.1.0", "").await;
            let offer = fixture.offer().await;
            let elsewhere = fixture.database.open().await;
            let lock = elsewhere.begin().await.unwrap(); // nobody else can write while this lives
            // The first is with the database, the second is ready; what comes now is one batch.
            for session in [i64::MAX - 1, i64::MAX] {
                fixture.submit(&device, Uplink::Online { session }).await;
                while fixture.engine.uplinks().waiting() > 0 {
                    tokio::task::yield_now().await;
                }
            }
            let messages = if before {
                [other, completed(&offer)]
            } else {
                [completed(&offer), other]
            };
            let [first, second] = messages;
            let first = fixture.submit(&device, first).await;
            let second = fixture.submit(&device, second).await;
            drop(lock);
            first.wait().await;
            second.wait().await;
            assert_eq!(runs(&fixture, &device).await, last);
            fixture.stop().await;
        }
    }
}
