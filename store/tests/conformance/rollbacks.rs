//! Taking back what completed.

use device_ota_domain::event::{Event, EventType, SOURCE};
use device_ota_domain::page::Page;
use device_ota_domain::rollback::{Rollback, RollbackTrigger};
use device_ota_domain::update::{Action, UpdateState};
use device_ota_engine::ports::store::{
    ClaimQuery, NewDevice, RollbackFilter, Store, Touch, UpdateFilter,
};

use crate::fixture::*;

crate::stories!(
    what_completed_is_taken_back_once,
    a_device_that_was_deleted_does_not_hold_up_the_others,
    the_image_to_go_back_to_is_the_best_there_is,
    a_single_rollback_is_logged,
    rollbacks_go_from_the_last_stage_to_the_first,
    a_rollback_is_tried_again_though_its_update_was_not,
    every_rollback_and_what_is_cancelled_is_told,
    a_cancelled_rollback_waits_again_where_it_has_something_to_take_back,
);

/// What is made or ended at a stroke is told by the database itself, in the form that the domain gives it.
async fn every_rollback_and_what_is_cancelled_is_told(store: &dyn Store) {
    let (old, new) = (image("frame", "1.0.0", 1), image("frame", "2.0.0", 2));
    upload(store, &old).await;
    upload(store, &new).await;
    let keys = fleet(store, 5).await;
    touch(
        store,
        &[Touch {
            device: keys[0],
            version: Some("0.9.0".into()),
            ..Touch::default()
        }],
    )
    .await;
    let campaign = start(store, campaign(1, &new, ""), &new).await;
    let claimed = claim(
        store,
        &ClaimQuery {
            limit: 3,
            ..all_due(&campaign, at(5))
        },
    )
    .await;
    complete(store, &claimed).await;
    let mut tx = store.begin().await.unwrap();
    tx.cancel_pending(&campaign.id, Action::Update, at(59))
        .await
        .unwrap();
    let made = tx
        .make_rollbacks(
            &campaign,
            &rollback_terms(RollbackTrigger::FailureThreshold, "it \"fails\"", 60),
        )
        .await
        .unwrap();
    assert_eq!(made, 3);
    // The same transaction may go on with them.
    let back = ClaimQuery {
        action: Action::Rollback,
        limit: 1,
        ..all_due(&campaign, at(60))
    };
    claim_in(tx.as_mut(), &back).await;
    tx.commit().await.unwrap();

    let events = store.events_for("test", 100).await.unwrap();
    let rows = store
        .updates(&UpdateFilter::default(), Page::default())
        .await
        .unwrap();
    assert_eq!(events.len(), 5, "{events:#?}");
    for event in &events {
        let id = event.data["update_id"].as_str().unwrap();
        let row = rows.iter().find(|row| row.id.as_str() == id).unwrap();
        assert_eq!(event.entity, row.device_id.as_str());
        let at = if row.action == Action::Update {
            at(59)
        } else {
            at(60)
        };
        let mut wanted = match Event::ended(row, at) {
            Some(wanted) => wanted,
            None => Event::asked(row, Some("it \"fails\""), SOURCE, at),
        };
        if wanted.event_type == EventType::RollbackInitiated {
            wanted.data["trigger"] = "failure_threshold".into();
        }
        assert_eq!(event.event_type, wanted.event_type.name());
        assert_eq!((&event.data, event.at), (&wanted.data, wanted.at));
    }
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event.event_type.as_str())
        .collect();
    assert_eq!(
        kinds,
        [
            "update.cancelled",
            "update.cancelled",
            "rollback.initiated",
            "rollback.initiated",
            "rollback.failed"
        ]
    );
}

/// Every completed update has its rollback, or the campaign would wait for one for ever; also where another device has
/// come under the id of one that was deleted.
async fn a_device_that_was_deleted_does_not_hold_up_the_others(store: &dyn Store) {
    let (old, new) = (image("frame", "1.0.0", 1), image("frame", "2.0.0", 2));
    upload(store, &old).await;
    upload(store, &new).await;
    fleet(store, 3).await;
    let campaign = start(store, campaign(1, &new, ""), &new).await;
    let claimed = claim(store, &all_due(&campaign, at(5))).await;
    complete(store, &claimed).await;
    let mut tx = store.begin().await.unwrap();
    for update in claimed.iter().take(2) {
        assert!(tx.delete_device(&update.device_id, at(50)).await.unwrap());
    }
    let successor = NewDevice {
        at: at(55),
        ..new_device(claimed[1].device_id.as_str(), 7)
    };
    tx.register(&[successor]).await.unwrap();
    let terms = rollback_terms(RollbackTrigger::Manual, "it flickers", 60);
    assert_eq!(tx.make_rollbacks(&campaign, &terms).await.unwrap(), 3);
    tx.commit().await.unwrap();
    let counts = store.counts(&campaign.id).await.unwrap();
    assert_eq!(
        (counts.rollbacks.pending, counts.rollbacks.cancelled),
        (1, 2)
    );
    assert_eq!(counts, store.counts_by_rows(&campaign.id).await.unwrap());
}

async fn what_completed_is_taken_back_once(store: &dyn Store) {
    let (old, new) = (image("frame", "1.0.0", 1), image("frame", "2.0.0", 2));
    upload(store, &old).await;
    upload(store, &new).await;
    let keys = fleet(store, 10).await;
    touch(
        store,
        &[Touch {
            device: keys[0],
            version: Some("0.9.0".into()),
            ..Touch::default()
        }],
    )
    .await;
    let campaign = start(store, campaign(1, &new, ""), &new).await;
    let claimed = claim(
        store,
        &ClaimQuery {
            limit: 6,
            ..all_due(&campaign, at(5))
        },
    )
    .await;
    complete(store, &claimed[..4]).await;

    let mut tx = store.begin().await.unwrap();
    let made = tx
        .make_rollbacks(
            &campaign,
            &rollback_terms(RollbackTrigger::FailureThreshold, "too many", 60),
        )
        .await
        .unwrap();
    assert_eq!(made, 4);
    let again = tx
        .make_rollbacks(
            &campaign,
            &rollback_terms(RollbackTrigger::FailureThreshold, "too many", 60),
        )
        .await
        .unwrap();
    assert_eq!(again, 0);
    tx.commit().await.unwrap();
    complete(store, &claimed[4..5]).await;
    let mut tx = store.begin().await.unwrap();
    let late = tx
        .make_rollbacks(
            &campaign,
            &rollback_terms(RollbackTrigger::Manual, "late", 60),
        )
        .await
        .unwrap();
    assert_eq!(late, 1, "one that completed afterwards");
    tx.commit().await.unwrap();

    let counts = store.counts(&campaign.id).await.unwrap();
    assert_eq!((counts.rollbacks.pending, counts.rollbacks.failed), (4, 1));
    assert_eq!(counts, store.counts_by_rows(&campaign.id).await.unwrap());
    let log = store
        .rollbacks(&RollbackFilter::default(), Page::default())
        .await
        .unwrap();
    assert_eq!(log.len(), 5);
    // Each that waits is looked at when its time is over; the one that was born failed is not.
    let rollbacks_at = async |now| {
        let mut ripe = store.expired(at(now), None, 10).await.unwrap();
        ripe.retain(|r| r.update.action == Action::Rollback);
        ripe
    };
    assert!(rollbacks_at(1_059).await.is_empty());
    let ripe = rollbacks_at(1_060).await;
    assert_eq!(ripe.len(), 4);
    assert!(ripe.iter().all(|r| r.update.give_up_at == Some(at(1_060))));
    assert_eq!(
        (log[0].trigger, log[0].reason.as_str()),
        (RollbackTrigger::Manual, "late")
    );
    nothing_to_go_back_to(store, &log[4]).await;

    let back = ClaimQuery {
        action: Action::Rollback,
        ..all_due(&campaign, at(61))
    };
    let offered = claim(store, &back).await;
    assert_eq!(offered.len(), 4);
    assert!(
        offered
            .iter()
            .all(|u| u.firmware.as_ref() == Some(&old.id) && u.to_version == "1.0.0")
    );
    complete(store, &offered).await;
    let filter = RollbackFilter {
        campaign: Some(campaign.id.clone()),
        device: Some(name(1).parse().unwrap()),
    };
    let log = store.rollbacks(&filter, Page::default()).await.unwrap();
    assert_eq!(
        (log.len(), log[0].status, log[0].success),
        (1, "completed", true)
    );
    assert_eq!(log[0].completed_at, Some(at(50)));
    let counts = store.counts(&campaign.id).await.unwrap();
    assert_eq!(counts, store.counts_by_rows(&campaign.id).await.unwrap());
}

/// The device came from a version that nobody uploaded.
async fn nothing_to_go_back_to(store: &dyn Store, lost: &Rollback) {
    assert_eq!(lost.device_id.as_str(), name(0));
    assert_eq!(
        (lost.status, lost.success, lost.completed_at),
        ("failed", false, Some(at(60)))
    );
    assert!(lost.error_message.as_deref().unwrap().contains("registry"));
    let found = store.update(&lost.update_id).await.unwrap().unwrap();
    assert!(
        matches!(&found.state, UpdateState::Failed { failure, .. } if failure.code == "no_previous_firmware")
    );
    assert_eq!(
        (found.from_version.as_deref(), found.to_version.as_str()),
        (Some("2.0.0"), "0.9.0")
    );
}

async fn the_image_to_go_back_to_is_the_best_there_is(store: &dyn Store) {
    let new = image("frame", "2.0.0", 9);
    let mut withdrawn = image("frame", "1.0.0", 1);
    withdrawn.deprecated_at = Some(at(2));
    let (other, newer) = (image("other", "1.0.0", 3), image("newer", "1.0.0", 4));
    let mut foreign = image("frame", "1.0.0", 5);
    foreign.metadata.device_model = "X".into();
    foreign.id = foreign.metadata.firmware_id();
    for firmware in [&new, &withdrawn, &other, &newer, &foreign] {
        upload(store, firmware).await;
    }
    fleet(store, 1).await;
    let campaign = start(store, campaign(1, &new, ""), &new).await;
    complete(store, &claim(store, &all_due(&campaign, at(5))).await).await;
    let mut tx = store.begin().await.unwrap();
    tx.make_rollbacks(&campaign, &rollback_terms(RollbackTrigger::Manual, "", 6))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let filter = UpdateFilter {
        action: Some(Action::Rollback),
        ..UpdateFilter::default()
    };
    let made = store.updates(&filter, Page::default()).await.unwrap();
    assert_eq!(
        made[0].firmware,
        Some(newer.id),
        "none of the same name is left: the newest of the model"
    );
}

async fn rollbacks_go_from_the_last_stage_to_the_first(store: &dyn Store) {
    let (old, new) = (image("frame", "1.0.0", 1), image("frame", "2.0.0", 2));
    upload(store, &old).await;
    upload(store, &new).await;
    fleet(store, 40).await;
    let campaign = start(store, campaign(1, &new, ""), &new).await;
    complete(store, &claim(store, &all_due(&campaign, at(5))).await).await;
    let mut tx = store.begin().await.unwrap();
    tx.make_rollbacks(&campaign, &rollback_terms(RollbackTrigger::Manual, "", 6))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let mut order = Vec::new();
    loop {
        let back = ClaimQuery {
            action: Action::Rollback,
            limit: 7,
            ..all_due(&campaign, at(9))
        };
        let claimed = claim(store, &back).await;
        if claimed.is_empty() {
            break;
        }
        order.extend(claimed.iter().map(|update| update.stage));
    }
    assert_eq!(order.len(), 40);
    assert!(order.is_sorted_by(|a, b| a >= b), "{order:?}");
    assert_eq!((order[0], order[39]), (3, 0));
}

async fn a_rollback_is_tried_again_though_its_update_was_not(store: &dyn Store) {
    let (old, new) = (image("frame", "1.0.0", 1), image("frame", "2.0.0", 2));
    upload(store, &old).await;
    upload(store, &new).await;
    fleet(store, 1).await;
    for (n, retries, expected) in [(1, 0, 3), (2, 7, 7)] {
        let draft = format!(r#""max_retries":{retries}"#);
        let campaign = start(store, campaign(n, &new, &draft), &new).await;
        complete(store, &claim(store, &all_due(&campaign, at(5))).await).await;
        let mut tx = store.begin().await.unwrap();
        tx.make_rollbacks(&campaign, &rollback_terms(RollbackTrigger::Manual, "", 6))
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let filter = UpdateFilter {
            action: Some(Action::Rollback),
            campaign: Some(campaign.id),
            ..UpdateFilter::default()
        };
        let made = store.updates(&filter, Page::default()).await.unwrap();
        assert_eq!(made[0].max_retries, expected);
    }
}

async fn a_single_rollback_is_logged(store: &dyn Store) {
    let keys = fleet(store, 1).await;
    let mut update = single(1, keys[0], &name(0), "1.0.0");
    update.action = Action::Rollback;
    let mut tx = store.begin().await.unwrap();
    tx.insert_update(&update, Some((RollbackTrigger::Manual, "it beeps")))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let filter = RollbackFilter {
        device: Some(name(0).parse().unwrap()),
        campaign: None,
    };
    let log = store.rollbacks(&filter, Page::default()).await.unwrap();
    assert_eq!(log.len(), 1);
    assert_eq!(log[0].update_id, update.id);
    assert_eq!(
        (
            log[0].status,
            log[0].reason.as_str(),
            log[0].campaign_id.as_ref()
        ),
        ("pending", "it beeps", None)
    );
    assert_eq!(
        log[0].rollback_id,
        device_ota_domain::RollbackId::of(&update.id)
    );
}

async fn a_cancelled_rollback_waits_again_where_it_has_something_to_take_back(store: &dyn Store) {
    let (old, new) = (image("frame", "1.0.0", 1), image("frame", "2.0.0", 2));
    upload(store, &old).await;
    upload(store, &new).await;
    let keys = fleet(store, 3).await;
    let campaign = start(store, campaign(1, &new, ""), &new).await;
    complete(store, &claim(store, &all_due(&campaign, at(5))).await).await;
    let runs = async |n: usize, version: &str| {
        let said = Touch {
            device: keys[n],
            version: Some(version.into()),
            ..Touch::default()
        };
        touch(store, &[said]).await;
    };
    for n in 0..3 {
        runs(n, "2.0.0").await;
    }
    let mut tx = store.begin().await.unwrap();
    tx.make_rollbacks(&campaign, &rollback_terms(RollbackTrigger::Manual, "", 6))
        .await
        .unwrap();
    let cancelled = tx.cancel_pending(&campaign.id, Action::Rollback, at(7));
    assert_eq!(cancelled.await.unwrap(), 3);
    tx.commit().await.unwrap();
    let counts = store.counts(&campaign.id).await.unwrap();
    assert_eq!(
        (counts.rollbacks.cancelled, counts.updates().completed),
        (3, 3)
    );
    assert_eq!(counts, store.counts_by_rows(&campaign.id).await.unwrap());

    // One has gone back by other means.
    runs(1, "1.0.0").await;
    let mut tx = store.begin().await.unwrap();
    assert_eq!(
        tx.revive_rollbacks(&campaign.id, at(8), at(1_000))
            .await
            .unwrap(),
        2
    );
    assert_eq!(
        tx.revive_rollbacks(&campaign.id, at(8), at(1_000))
            .await
            .unwrap(),
        0
    );
    tx.commit().await.unwrap();
    let counts = store.counts(&campaign.id).await.unwrap();
    assert_eq!(
        (counts.rollbacks.pending, counts.rollbacks.cancelled),
        (2, 1)
    );
    assert_eq!(counts, store.counts_by_rows(&campaign.id).await.unwrap());
    let back = ClaimQuery {
        action: Action::Rollback,
        ..all_due(&campaign, at(9))
    };
    assert_eq!(claim(store, &back).await.len(), 2);
}
