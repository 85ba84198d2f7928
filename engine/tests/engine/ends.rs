//! Every rollback comes to an end, and a campaign can be told at each point what to do next.

use device_ota_domain::audit::Act;
use device_ota_domain::campaign::Group;
use device_ota_domain::page::Page;
use device_ota_domain::rollback::Rollback;
use device_ota_domain::update::{Action, UpdateState};
use device_ota_domain::{CampaignId, CampaignState, Update, UpdateId};
use device_ota_engine::Uploaded;
use device_ota_engine::inbound::DeviceRef;
use device_ota_engine::ports::audit::AuditFilter;
use device_ota_engine::ports::store::RollbackFilter;
use device_ota_protocol::objects::{Action as WireAction, Assignment, CommandKind};
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::{Fixture, LEASE, tester};

const SECOND: SignedDuration = SignedDuration::from_secs(1);
/// The default of `ROLLBACK_TIMEOUT_HOURS`.
const ROLLBACK_TIMEOUT: SignedDuration = SignedDuration::from_hours(6);

/// A campaign from 1.0.0 to 1.1.0 that so many devices completed, the last of which is offline by now.
async fn completed_by(fixture: &mut Fixture, devices: usize) -> (CampaignId, Vec<DeviceRef>) {
    fixture.upload("1.0.0", b"old").await;
    let campaign = fixture.campaign_before("1.1.0", "", devices).await;
    let mut all = Vec::new();
    for _ in 0..devices {
        let device = fixture.completes("1.1.0").await;
        all.push(device);
    }
    fixture.until(&campaign, "completed").await;
    fixture.gone(all.last().unwrap()).await;
    (campaign, all)
}

async fn roll_back(fixture: &Fixture, campaign: &CampaignId) {
    let engine = &fixture.engine;
    engine
        .roll_back_campaign(campaign, "trying it", &tester())
        .await
        .unwrap();
    // Rollbacks are made by a pass, which is to be over before the clock goes on.
    engine.dispatch_all().await.unwrap();
}

async fn goes_back(fixture: &mut Fixture, device: &DeviceRef) {
    let back = fixture.offer().await;
    assert_eq!(
        (back.action, back.device_id.as_str()),
        (WireAction::Rollback, device.id.as_str())
    );
    done(fixture, device, &back).await;
}

async fn done(fixture: &Fixture, device: &DeviceRef, back: &Assignment) {
    let version = r#","version":"1.0.0""#;
    fixture
        .progress(device, back, 1, "completed", version)
        .await;
}

/// The log's entries of one device.
async fn log(fixture: &Fixture, device: &DeviceRef) -> Vec<Rollback> {
    let filter = RollbackFilter {
        campaign: None,
        device: Some(device.id.clone()),
    };
    fixture
        .engine
        .rollbacks(&filter, Page::default())
        .await
        .unwrap()
}

async fn rollback_rows(fixture: &Fixture, campaign: &CampaignId) -> Vec<(UpdateId, Group)> {
    let rows = fixture.updates(campaign).await;
    rows.iter()
        .filter(|u| u.action == Action::Rollback)
        .map(|u| (u.id.clone(), u.group()))
        .collect()
}

#[tokio::test]
async fn a_rollback_whose_device_never_returns_ends_and_can_be_tried_again() {
    let mut fixture = Fixture::new().await;
    let (campaign, devices) = completed_by(&mut fixture, 2).await;
    roll_back(&fixture, &campaign).await;
    goes_back(&mut fixture, &devices[0]).await;
    fixture.pass(ROLLBACK_TIMEOUT - SECOND).await;
    let state = fixture
        .engine
        .campaign(&campaign)
        .await
        .unwrap()
        .campaign
        .state;
    assert_eq!(state.status(), "rolling_back");
    fixture.pass(SECOND).await;
    fixture.until(&campaign, "rolled_back").await;
    let [entry] = &log(&fixture, &devices[1]).await[..] else {
        panic!("one entry");
    };
    assert_eq!(
        (entry.status, entry.error_message.as_deref()),
        (
            "failed",
            Some("not done within its time: it was never offered")
        )
    );
    let ended = fixture
        .engine
        .update(&entry.update_id)
        .await
        .unwrap()
        .update;
    assert!(
        matches!(&ended.state, UpdateState::Failed { failure, .. } if failure.code == "timeout")
    );

    // It comes back: what ended stays, until an admin tries it again.
    fixture.online_again(&devices[1], "1.1.0").await;
    fixture.engine.dispatch_all().await.unwrap();
    assert!(fixture.nothing_sent());
    fixture
        .engine
        .retry_update(&entry.update_id, &tester())
        .await
        .unwrap();
    goes_back(&mut fixture, &devices[1]).await;
    fixture.until(&campaign, "rolled_back").await;
    let log = log(&fixture, &devices[1]).await;
    assert_eq!((log.len(), log[0].status), (1, "completed"));
    let counts = fixture.counts(&campaign).await;
    assert_eq!(
        (counts.rollbacks.completed, counts.rollbacks.total()),
        (2, 2)
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_rollback_that_is_tried_again_has_its_whole_time_once_more() {
    let mut fixture = Fixture::new().await;
    let (campaign, devices) = completed_by(&mut fixture, 1).await;
    roll_back(&fixture, &campaign).await;
    fixture.pass(ROLLBACK_TIMEOUT).await;
    fixture.until(&campaign, "rolled_back").await;
    let id = log(&fixture, &devices[0]).await[0].update_id.clone();
    let retried = fixture.engine.retry_update(&id, &tester()).await.unwrap();
    assert_eq!(retried.update.group(), Group::Pending);
    fixture.pass(ROLLBACK_TIMEOUT - SECOND).await;
    fixture.until(&campaign, "rolling_back").await;
    fixture.pass(SECOND).await;
    fixture.until(&campaign, "rolled_back").await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_rollback_can_be_cancelled_and_begun_again() {
    let mut fixture = Fixture::new().await;
    let (campaign, devices) = completed_by(&mut fixture, 2).await;
    roll_back(&fixture, &campaign).await;
    let back = fixture.offer().await;
    fixture
        .progress(&devices[0], &back, 1, "downloading", "")
        .await;
    let engine = fixture.engine.clone();
    let cancelled = engine.cancel_campaign(&campaign, &tester()).await.unwrap();
    assert_eq!(cancelled.campaign.state.status(), "cancelled");
    assert!(cancelled.campaign.state.started_at().is_some());
    let told = fixture.command().await;
    assert_eq!(
        (told.command, told.update_id.as_str()),
        (CommandKind::Cancel, back.update_id.as_str())
    );

    // While one has not stopped, nobody can say which devices went back.
    let refused = engine
        .roll_back_campaign(&campaign, "after all", &tester())
        .await;
    assert_eq!(refused.unwrap_err().code(), "still_stopping");
    fixture
        .progress(&devices[0], &back, 2, "cancelled", "")
        .await;
    let counts = fixture.counts(&campaign).await;
    assert_eq!(
        (counts.rollbacks.cancelled, counts.rollbacks.total()),
        (2, 2)
    );
    let rows = rollback_rows(&fixture, &campaign).await;
    assert!(rows.iter().all(|(_, group)| *group == Group::Cancelled));
    fixture.online_again(&devices[1], "1.1.0").await;
    engine.dispatch_all().await.unwrap();
    assert!(
        fixture.nothing_sent(),
        "a cancelled rollback offers nothing"
    );

    roll_back(&fixture, &campaign).await;
    for _ in 0..2 {
        let back = fixture.offer().await;
        let device = fixture.known(back.device_id.as_str()).await;
        done(&fixture, &device, &back).await;
    }
    fixture.until(&campaign, "rolled_back").await;
    assert_eq!(fixture.counts(&campaign).await.rollbacks.completed, 2);
    fixture.stop().await;
}

#[tokio::test]
async fn a_resume_accepts_the_failures_so_far_and_counts_afresh() {
    let mut fixture = Fixture::new().await;
    let more = r#","max_concurrent_updates":1,"auto_rollback":false,"failure_threshold_percent":20,
        "failure_min_samples":2"#;
    let campaign = fixture.campaign_before("1.1.0", more, 7).await;
    for _ in 0..2 {
        fails(&mut fixture).await;
    }
    fixture.until(&campaign, "paused").await;
    let engine = fixture.engine.clone();
    let begun = engine.campaign(&campaign).await.unwrap().campaign;
    engine.resume_campaign(&campaign, &tester()).await.unwrap();
    fails(&mut fixture).await; // one alone is fewer than failure_min_samples
    let offer = fixture.offer().await;
    let device = fixture.known(offer.device_id.as_str()).await;
    let version = r#","version":"1.1.0""#;
    fixture
        .progress(&device, &offer, 1, "completed", version)
        .await;
    fixture.until(&campaign, "paused").await;
    let paused = engine.campaign(&campaign).await.unwrap().campaign;
    let reason = format!("{:?}", paused.state);
    assert!(
        reason.contains("50.0 % of 2 results since it was resumed"),
        "{reason}"
    );
    assert_eq!(paused.state.started_at(), begun.state.started_at());

    engine.resume_campaign(&campaign, &tester()).await.unwrap();
    for _ in 0..3 {
        let offer = fixture.offer().await;
        let device = fixture.known(offer.device_id.as_str()).await;
        fixture
            .progress(&device, &offer, 1, "completed", version)
            .await;
    }
    fixture.until(&campaign, "completed").await;
    let completed = engine.campaign(&campaign).await.unwrap().campaign;
    assert_eq!(completed.state.started_at(), begun.state.started_at());
    fixture.stop().await;
}

async fn fails(fixture: &mut Fixture) {
    let offer = fixture.offer().await;
    let device = fixture.known(offer.device_id.as_str()).await;
    let error = r#","error":{"code":"install_failed"}"#;
    fixture.progress(&device, &offer, 1, "failed", error).await;
}

#[tokio::test]
async fn a_single_rollback_ends_too() {
    let mut fixture = Fixture::new().await;
    let (_, devices) = completed_by(&mut fixture, 1).await;
    let made = fixture
        .engine
        .roll_back_device(&devices[0].id, "1.0.0", "it beeps", &tester())
        .await
        .unwrap();
    fixture.pass(ROLLBACK_TIMEOUT + LEASE).await;
    assert_eq!(fixture.status(made.update_id.as_str()).await, "failed");
    fixture.stop().await;
}

/// Its time is its own: not that of those who went back before it.
#[tokio::test]
async fn a_rollback_that_waits_for_a_slot_is_not_given_up() {
    let mut fixture = Fixture::new().await;
    fixture.upload("1.0.0", b"old").await;
    let more = r#","max_concurrent_updates":1,"timeout_minutes":43200"#;
    let campaign = fixture.campaign_before("1.1.0", more, 2).await;
    for _ in 0..2 {
        let offer = fixture.offer().await;
        let device = fixture.known(offer.device_id.as_str()).await;
        let version = r#","version":"1.1.0""#;
        fixture
            .progress(&device, &offer, 1, "completed", version)
            .await;
    }
    fixture.until(&campaign, "completed").await;
    roll_back(&fixture, &campaign).await;
    let slow = fixture.offer().await;
    let device = fixture.known(slow.device_id.as_str()).await;
    fixture.progress(&device, &slow, 1, "accepted", "").await;
    let step = LEASE / 2;
    let mut passed = SignedDuration::ZERO;
    while passed < ROLLBACK_TIMEOUT {
        let heartbeat = r#"{"version":"1.1.0"}"#;
        fixture.publish(&device, Up::Heartbeat, heartbeat).await;
        fixture.pass(step).await;
        passed += step;
    }
    assert_eq!(fixture.status(slow.update_id.as_str()).await, "failed");
    let next = fixture.offer().await;
    let device = fixture.known(next.device_id.as_str()).await;
    done(&fixture, &device, &next).await;
    fixture.until(&campaign, "rolled_back").await;
    let counts = fixture.counts(&campaign).await;
    assert_eq!(
        (counts.rollbacks.completed, counts.rollbacks.failed),
        (1, 1)
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_rollback_of_a_deleted_campaign_is_not_tried_again() {
    let mut fixture = Fixture::new().await;
    let (campaign, devices) = completed_by(&mut fixture, 1).await;
    roll_back(&fixture, &campaign).await;
    fixture.pass(ROLLBACK_TIMEOUT).await;
    fixture.until(&campaign, "rolled_back").await;
    let id = log(&fixture, &devices[0]).await[0].update_id.clone();
    let engine = fixture.engine.clone();
    engine
        .delete_campaign(&campaign, None, &tester())
        .await
        .unwrap();
    let refused = engine.retry_update(&id, &tester()).await.unwrap_err();
    assert_eq!(refused.code(), "deleted");
    fixture.until(&campaign, "rolled_back").await;
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_retried_is_no_longer_an_accepted_failure() {
    let mut fixture = Fixture::new().await;
    let more = r#","max_concurrent_updates":1,"auto_rollback":false,"failure_threshold_percent":20,
        "failure_min_samples":2"#;
    let campaign = fixture.campaign_before("1.1.0", more, 4).await;
    for _ in 0..2 {
        fails(&mut fixture).await;
    }
    fixture.until(&campaign, "paused").await;
    let engine = fixture.engine.clone();
    engine.resume_campaign(&campaign, &tester()).await.unwrap();
    let rows = fixture.updates(&campaign).await;
    let failed = rows.iter().find(|u| u.group() == Group::Failed).unwrap();
    engine.retry_update(&failed.id, &tester()).await.unwrap();
    let state = engine.campaign(&campaign).await.unwrap().campaign.state;
    let CampaignState::InProgress(running) = state else {
        panic!("{state:?}")
    };
    assert_eq!(running.accepted.failed, 1);
    fixture.stop().await;
}

#[tokio::test]
async fn a_device_that_became_another_model_is_not_offered_the_old_ones_image() {
    let mut fixture = Fixture::new().await;
    let (Uploaded::Created(firmware) | Uploaded::Existing(firmware)) =
        fixture.upload("1.1.0", b"new").await;
    let device = fixture.device("a").await;
    let engine = fixture.engine.clone();
    let request = format!(r#"{{"firmware_id":"{}"}}"#, firmware.id);
    let request = serde_json::from_str(&request).unwrap();
    let waits = engine
        .update_device(&device.id, request, &tester())
        .await
        .unwrap();
    let change = async |change: &str| {
        let change = serde_json::from_str(change).unwrap();
        engine
            .change_device(&device.id, change, None, &tester())
            .await
    };
    change(r#"{"tags":{"floor":"2"}}"#).await.unwrap();
    let id = waits.update.id.as_str();
    assert_eq!(fixture.status(id).await, "scheduled");
    change(r#"{"device_model":"N"}"#).await.unwrap();
    assert_eq!(fixture.status(id).await, "cancelled");
    let told = cancels(&fixture, &waits.update).await;
    assert_eq!(told, ["tester"], "an end that somebody caused has a record");
    fixture.online(&device).await;
    engine.dispatch_all().await.unwrap();
    assert!(fixture.nothing_sent());
    fixture.stop().await;
}

/// Who, by the audit trail, cancelled this update while it waited.
async fn cancels(fixture: &Fixture, update: &Update) -> Vec<String> {
    let filter = AuditFilter {
        action: Some(Act::UpdateCancelled),
        entity_id: Some(update.id.to_string()),
        ..AuditFilter::default()
    };
    let found = fixture.engine.audit(&filter, Page::default()).await;
    let told = found.unwrap().into_iter().map(|record| {
        let status = |state: &Option<String>| {
            let state: serde_json::Value = serde_json::from_str(state.as_ref().unwrap()).unwrap();
            state["status"].clone()
        };
        assert_eq!(status(&record.before), "scheduled");
        assert_eq!(status(&record.after), "cancelled");
        record.subject
    });
    told.collect()
}

/// On PostgreSQL, a transaction that does not see the deletion may still make an update.
#[tokio::test]
async fn what_was_made_for_a_device_in_the_moment_of_its_deletion_ends() {
    let (mut fixture, work) = Fixture::stopped().await;
    let (Uploaded::Created(firmware) | Uploaded::Existing(firmware)) =
        fixture.upload("1.1.0", b"new").await;
    let device = fixture.device("a").await;
    let engine = fixture.engine.clone();
    let request = format!(r#"{{"firmware_id":"{}"}}"#, firmware.id);
    let request = serde_json::from_str(&request).unwrap();
    let made = engine
        .update_device(&device.id, request, &tester())
        .await
        .unwrap();
    let late = Update {
        id: "upd_00000000000001a7".parse().unwrap(),
        ..made.update.clone()
    };
    engine
        .delete_device(&device.id, None, &tester())
        .await
        .unwrap();
    let mut tx = fixture.store.begin().await.unwrap();
    tx.insert_update(&late, None).await.unwrap();
    tx.commit().await.unwrap();
    fixture.start(work);
    let settled = async {
        while fixture.status(late.id.as_str()).await != "cancelled" {
            tokio::task::yield_now().await;
        }
    };
    let deadline = std::time::Duration::from_secs(30);
    tokio::time::timeout(deadline, settled).await.unwrap();
    assert_eq!(cancels(&fixture, &made.update).await, ["tester"]);
    assert_eq!(cancels(&fixture, &late).await, ["ota_service"]);
    fixture.stop().await;
}
