//! What becomes of updates after they have completed: devices that are watched, and those that have regressed.

use device_ota_domain::campaign::{Campaign, Failures};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::update::{
    Aftermath, Failure, Retry, Sight, Update, UpdateState, WatchTerms,
};
use device_ota_engine::ports::store::Store;

use crate::fixture::*;

crate::stories!(
    a_watch_is_kept_and_found_by_its_device,
    a_watch_comes_due_with_what_is_known_of_its_device,
    who_was_given_to_another_update_since_is_known,
    a_regression_is_counted_where_its_update_completed,
    a_completed_campaign_is_planned_after_a_regression,
    a_deleted_device_is_not_watched,
);

const TERMS: WatchTerms = WatchTerms {
    seconds: 600,
    silent_seconds: Some(60),
    max_restarts: 2,
};

/// A campaign all of whose devices have completed at second 50 and are watched.
async fn watched(store: &dyn Store, count: usize) -> (Campaign, Vec<DeviceKey>, Vec<Update>) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let keys = fleet(store, count).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    let claimed = claim(store, &all_due(&campaign, at(5))).await;
    let mut updates = Vec::new();
    let mut tx = store.begin().await.unwrap();
    for update in claimed {
        let before = update.standing();
        let state = UpdateState::Completed { at: at(50) };
        let updated_at = at(50);
        let done = Update {
            state,
            updated_at,
            ..update
        };
        updates.push((before, done.watched(TERMS)));
    }
    save(tx.as_mut(), &updates).await;
    tx.commit().await.unwrap();
    let updates = updates.into_iter().map(|(_, update)| update).collect();
    (campaign, keys, updates)
}

fn reverted(update: &Update) -> Update {
    let sight = Sight {
        running: "1.0.0",
        restarted: true,
        nonce: None,
        at: at(70),
    };
    update.clone().observe_afterwards(&sight).unwrap()
}

async fn regress(store: &dyn Store, update: &Update) -> Update {
    let mut tx = store.begin().await.unwrap();
    let after = reverted(update);
    save(tx.as_mut(), &[(update.standing(), after.clone())]).await;
    tx.commit().await.unwrap();
    after
}

async fn a_watch_is_kept_and_found_by_its_device(store: &dyn Store) {
    let (_, keys, updates) = watched(store, 3).await;
    for update in &updates {
        let kept = store.update(&update.id).await.unwrap().unwrap();
        assert_eq!(&kept, update);
        assert!(kept.watch().is_some());
    }
    let mut all = store.watched().await.unwrap();
    all.sort_unstable();
    let due: Vec<_> = keys.iter().map(|key| (*key, "2.0.0".to_owned())).collect();
    assert_eq!(all, due);
    let mut tx = store.begin().await.unwrap();
    let found = tx.watched(&[keys[1], DeviceKey(9_999)]).await.unwrap();
    assert_eq!(
        found.iter().map(|u| u.device).collect::<Vec<_>>(),
        [keys[1]]
    );
    drop(tx);
    // A restart is remembered, so that it counts once.
    let boots = Sight {
        running: "2.0.0",
        restarted: true,
        nonce: Some("5f"),
        at: at(60),
    };
    let booted = updates[2].clone().observe_afterwards(&boots).unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.save_updates(std::slice::from_ref(&booted))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.update(&booted.id).await.unwrap(), Some(booted));
    // What has regressed, or proved itself, is not watched any more.
    let gone = regress(store, &updates[0]).await;
    assert_eq!(store.update(&gone.id).await.unwrap(), Some(gone));
    let proved = Update {
        aftermath: Aftermath::Unwatched,
        ..updates[1].clone()
    };
    let mut tx = store.begin().await.unwrap();
    tx.save_updates(std::slice::from_ref(&proved))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.update(&proved.id).await.unwrap(), Some(proved));
    assert_eq!(store.watched().await.unwrap().len(), 1);
}

async fn a_watch_comes_due_with_what_is_known_of_its_device(store: &dyn Store) {
    let (_, keys, updates) = watched(store, 2).await;
    let mut said = online_touch(keys[0]);
    said.version = Some("1.0.0".into());
    said.last_seen = Some(at(80));
    let mut left = online_touch(keys[1]);
    left.online = Some((false, 1));
    left.was_there = true;
    touch(store, &[said, left]).await;
    let due = store.expired(at(109), None, 100).await.unwrap();
    assert_eq!(due.len(), 0, "nobody can have been silent for a minute yet");
    let mut due = store.expired(at(110), None, 100).await.unwrap();
    due.sort_by_key(|due| due.update.device);
    assert_eq!(due[0].update, updates[0]);
    let seen: Vec<_> = due
        .iter()
        .map(|d| (d.online, d.running.as_deref(), d.last_seen))
        .collect();
    let expected = [
        (true, Some("1.0.0"), Some(at(80))),
        (false, None, Some(at(1))),
    ];
    assert_eq!(seen, expected);
}

/// Whether what a device says of an update that was thought to have ended is its last word of what it runs.
async fn who_was_given_to_another_update_since_is_known(store: &dyn Store) {
    let keys = fleet(store, 5).await;
    let offered = |n: u8, state| Update {
        attempt: 1,
        started_at: Some(at(10)),
        state,
        ..single(
            n,
            keys[usize::from(n % 5)],
            &name(usize::from(n % 5)),
            "2.0.0",
        )
    };
    let failed = || UpdateState::Failed {
        at: at(20),
        failure: Failure::new("install_failed", "", Retry::Never),
    };
    let olds: Vec<_> = (0..5).map(|n| offered(n, failed())).collect();
    let others = [
        offered(5, UpdateState::Staged { since: at(30) }),
        offered(6, UpdateState::Completed { at: at(10) }),
        // Before it, only waiting, or brought nothing.
        offered(7, UpdateState::Completed { at: at(9) }),
        single(8, keys[3], &name(3), "3.0.0"),
        offered(9, failed()),
    ];
    insert(store, &olds).await;
    insert(store, &others).await;
    let ids: Vec<_> = olds.iter().map(|update| update.id.clone()).collect();
    let mut tx = store.begin().await.unwrap();
    let mut found = tx.superseded(&ids).await.unwrap();
    found.sort_unstable();
    assert_eq!(found, ids[..2]);
}

async fn a_regression_is_counted_where_its_update_completed(store: &dyn Store) {
    let (campaign, _, updates) = watched(store, 3).await;
    regress(store, &updates[0]).await;
    let counts = store.counts(&campaign.id).await.unwrap();
    assert_eq!(counts, store.counts_by_rows(&campaign.id).await.unwrap());
    let all = counts.updates();
    assert_eq!((all.completed, all.regressed, all.failed), (3, 1, 0));
    let reverted = Failures {
        failed: 1,
        ..Failures::default()
    };
    assert_eq!(counts.failures, reverted);
    assert_eq!(
        store.ledger().await.unwrap(),
        store.ledger_by_rows().await.unwrap()
    );
}

async fn a_completed_campaign_is_planned_after_a_regression(store: &dyn Store) {
    let (mut campaign, _, updates) = watched(store, 2).await;
    campaign.state = campaign.state.finish(at(60)).unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.save_campaign(&campaign).await.unwrap();
    tx.commit().await.unwrap();
    let to_plan = async |since| store.campaigns_to_plan(at(since)).await.unwrap().len();
    assert_eq!(to_plan(0).await, 0);
    regress(store, &updates[1]).await;
    assert_eq!((to_plan(69).await, to_plan(70).await), (1, 0));
}

async fn a_deleted_device_is_not_watched(store: &dyn Store) {
    let (_, keys, updates) = watched(store, 2).await;
    let mut tx = store.begin().await.unwrap();
    tx.end_watches(&keys[..1]).await.unwrap();
    tx.commit().await.unwrap();
    let kept = store.update(&updates[0].id).await.unwrap().unwrap();
    assert_eq!(kept.aftermath, Aftermath::Unwatched);
    let due = store.expired(at(9_999), None, 100).await.unwrap();
    assert_eq!(
        due.iter().map(|d| d.update.device).collect::<Vec<_>>(),
        [keys[1]]
    );
}
