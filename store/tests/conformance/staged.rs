//! Devices that hold the image of an update: found to activate it, kept from others, given to those that it gives way to.

use device_ota_domain::campaign::{Campaign, Group};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::update::{Action, Update, UpdateState};
use device_ota_engine::ports::StoreError;
use device_ota_engine::ports::store::{ClaimQuery, Store};

use crate::fixture::*;

crate::stories!(
    those_that_hold_are_found_first_and_only_when_they_are_to_flip,
    a_device_that_holds_is_kept_from_what_comes_after,
    a_device_that_holds_is_given_to_what_comes_before,
    a_single_device_is_updated_whatever_it_holds,
    what_is_held_is_cancelled_with_what_waits,
    a_device_holds_one_image,
    a_deleted_device_leaves_nothing_held,
);

/// A started campaign over `count` online devices, of which the first `held` hold its image.
async fn holding(store: &dyn Store, count: usize, held: u32) -> (Campaign, Vec<DeviceKey>) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let keys = fleet(store, count).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    let query = ClaimQuery {
        limit: held,
        hold: true,
        ..all_due(&campaign, at(5))
    };
    let claimed = claim(store, &query).await;
    stage(store, claimed).await;
    (campaign, keys)
}

/// Their devices say that they hold it.
async fn stage(store: &dyn Store, claimed: Vec<Update>) {
    let mut tx = store.begin().await.unwrap();
    let staged = claimed.into_iter().map(|update| {
        let before = update.standing();
        let state = UpdateState::Staged { since: at(6) };
        (before, Update { state, ..update })
    });
    save(tx.as_mut(), &staged.collect::<Vec<_>>()).await;
    tx.commit().await.unwrap();
}

fn groups(updates: &[Update]) -> Vec<(Group, u32)> {
    updates.iter().map(|u| (u.group(), u.attempt)).collect()
}

async fn those_that_hold_are_found_first_and_only_when_they_are_to_flip(store: &dyn Store) {
    let (campaign, keys) = holding(store, 6, 3).await;
    let mut query = ClaimQuery {
        limit: 100,
        hold: true,
        ..all_due(&campaign, at(7))
    };
    let found = claimable(store, &query).await;
    assert_eq!(found.len(), 3, "those that wait for an offer");
    assert!(found.iter().all(|f| f.update.group() == Group::Pending));
    let mut counts = store.counts(&campaign.id).await.unwrap().updates();
    assert_eq!((counts.staged, counts.pending), (3, 3));

    query.hold = false;
    query.limit = 4;
    let claimed = claim(store, &query).await;
    assert_eq!(groups(&claimed), [(Group::InFlight, 1); 4]);
    let told = |update: &Update| matches!(update.state, UpdateState::InFlight { hold: true, .. });
    assert_eq!(claimed.iter().filter(|u| told(u)).count(), 3);
    let saved = store.update(&claimed[0].id).await.unwrap();
    assert_eq!(saved.as_ref(), Some(&claimed[0]));
    counts = store.counts(&campaign.id).await.unwrap().updates();
    assert_eq!((counts.in_flight, counts.staged, counts.pending), (4, 0, 2));
    assert_eq!(store.busy_with(&keys).await.unwrap().len(), 4);
    // Whoever is away is not found: it flips when it returns.
    let (away, _) = holding_away(store).await;
    let query = ClaimQuery {
        ..all_due(&away, at(9))
    };
    assert!(claim(store, &query).await.is_empty());
}

/// A second campaign, whose only device holds its image and is away.
async fn holding_away(store: &dyn Store) -> (Campaign, DeviceKey) {
    let firmware = image("other", "2.0.0", 3);
    upload(store, &firmware).await;
    let device = new_device("away", 7);
    let keys = register(store, &[device]).await;
    online(store, &keys).await;
    let named = r#""target_devices":["away"]"#;
    let campaign = start_naming(store, campaign_naming(3, &firmware, named), &firmware).await;
    let query = ClaimQuery {
        hold: true,
        ..all_due(&campaign, at(5))
    };
    let claimed = claim(store, &query).await;
    assert_eq!(claimed.len(), 1);
    stage(store, claimed).await;
    let gone = device_ota_engine::ports::store::Touch {
        device: keys[0],
        online: Some((false, i64::MAX)),
        ..Default::default()
    };
    touch(store, &[gone]).await;
    (campaign, keys[0])
}

async fn a_device_that_holds_is_kept_from_what_comes_after(store: &dyn Store) {
    let (campaign, keys) = holding(store, 4, 3).await;
    let firmware = image("frame", "3.0.0", 2);
    upload(store, &firmware).await;
    for (n, draft) in [(2, ""), (4, r#""priority":"low""#)] {
        let other = crate::fixture::campaign(n, &firmware, draft);
        let other = start(store, other, &firmware).await;
        let found = claimable(store, &all_due(&other, at(7))).await;
        let devices: Vec<_> = found.iter().map(|f| f.update.device).collect();
        assert_eq!(devices, [keys[3]], "{draft}");
        assert!(found[0].displaces.is_none());
    }
    let held = store.busy_with(&keys).await.unwrap();
    assert!(
        held.iter()
            .all(|u| u.campaign.as_ref() == Some(&campaign.id))
    );
    assert_eq!(held.len(), 3);
}

async fn a_device_that_holds_is_given_to_what_comes_before(store: &dyn Store) {
    let (campaign, keys) = holding(store, 4, 3).await;
    let firmware = image("frame", "3.0.0", 2);
    upload(store, &firmware).await;
    let urgent = crate::fixture::campaign(2, &firmware, r#""priority":"critical""#);
    let urgent = start(store, urgent, &firmware).await;
    let query = ClaimQuery {
        hold: true,
        ..all_due(&urgent, at(7))
    };
    let found = claimable(store, &query).await;
    assert_eq!(found.len(), 4);
    for found in &found {
        let gives_way = found.displaces.as_ref();
        assert_eq!(gives_way.is_some(), found.update.device != keys[3]);
        assert!(gives_way.is_none_or(|held| held.gives_way_to(&found.update)));
    }
    let claimed = claim(store, &query).await;
    stage(store, claimed).await;
    let counts = store.counts(&campaign.id).await.unwrap();
    assert_eq!((counts.updates().staged, counts.updates().pending), (0, 4));
    assert_eq!(counts, store.counts_by_rows(&campaign.id).await.unwrap());
    assert_eq!(
        store.ledger().await.unwrap(),
        store.ledger_by_rows().await.unwrap()
    );
    // It does not go the other way.
    assert!(claim(store, &all_due(&campaign, at(8))).await.is_empty());
}

async fn a_single_device_is_updated_whatever_it_holds(store: &dyn Store) {
    let (campaign, keys) = holding(store, 2, 2).await;
    insert(store, &[single(1, keys[0], &name(0), "9.0.0")]).await;
    let claimed = claim_singles(store, at(7), 100).await;
    assert_eq!(claimed.len(), 1);
    let counts = store.counts(&campaign.id).await.unwrap().updates();
    assert_eq!((counts.staged, counts.pending), (1, 1));
    // It is at that, and not told to flip, nor offered what it has lost.
    let claimed = claim(store, &all_due(&campaign, at(8))).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].device, keys[1]);
}

async fn what_is_held_is_cancelled_with_what_waits(store: &dyn Store) {
    let (campaign, _) = holding(store, 7, 3).await;
    let mut tx = store.begin().await.unwrap();
    let cancelled = tx
        .cancel_pending(&campaign.id, Action::Update, at(9))
        .await
        .unwrap();
    assert_eq!(cancelled, 7);
    tx.commit().await.unwrap();
    let counts = store.counts(&campaign.id).await.unwrap();
    assert_eq!(counts.updates().cancelled, 7);
    assert_eq!(counts, store.counts_by_rows(&campaign.id).await.unwrap());
    assert_eq!(
        store.ledger().await.unwrap(),
        store.ledger_by_rows().await.unwrap()
    );
    let told = store.events_for("nobody", 100).await.unwrap();
    let told = told.iter().filter(|e| e.event_type == "update.cancelled");
    assert_eq!(told.count(), 7);
}

async fn a_device_holds_one_image(store: &dyn Store) {
    let (_, keys) = holding(store, 1, 1).await;
    let second = Update {
        state: UpdateState::Staged { since: at(8) },
        ..single(9, keys[0], &name(0), "9.0.0")
    };
    let mut tx = store.begin().await.unwrap();
    let refused = tx.insert_update(&second, None).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict("the device's update"))),
        "{refused:?}"
    );
}

async fn a_deleted_device_leaves_nothing_held(store: &dyn Store) {
    let (_, keys) = holding(store, 2, 1).await;
    let mut tx = store.begin().await.unwrap();
    let open = tx.open_updates(keys[0]).await.unwrap();
    assert_eq!(groups(&open), [(Group::Staged, 1)]);
    assert!(tx.delete_device(&open[0].device_id, at(9)).await.unwrap());
    tx.commit().await.unwrap();
    let left = store.left_behind(at(8), 10).await.unwrap();
    assert_eq!(left, [open[0].id.clone()]);
}
