//! What may be offered, to whom, and that nobody is offered two things at once.

use std::collections::BTreeSet;

use device_ota_domain::campaign::{Campaign, Priority, Requires};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::update::{Update, UpdateState};
use device_ota_domain::why::held_by_device;
use device_ota_engine::ports::StoreError;
use device_ota_engine::ports::store::{ClaimQuery, Store, Touch};
use device_ota_store::testing::PostgresDatabase;

use crate::fixture::*;

crate::stories!(
    claims_come_stage_by_stage_and_never_twice,
    only_devices_that_are_online_and_fit_are_claimed,
    a_device_with_an_update_in_flight_is_passed_over,
    a_second_live_update_is_impossible,
    an_update_that_is_not_due_waits,
    single_devices_have_claims_of_their_own,
    single_devices_wait_until_they_are_fit_for_the_image,
    the_most_urgent_of_single_devices_comes_first,
    the_running_version_comes_along,
);

/// A started campaign over `count` online devices.
async fn running(store: &dyn Store, count: usize) -> (Campaign, Vec<DeviceKey>) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let keys = fleet(store, count).await;
    (
        start(store, campaign(1, &firmware, ""), &firmware).await,
        keys,
    )
}

fn ids(updates: &[Update]) -> BTreeSet<String> {
    updates
        .iter()
        .map(|update| update.device_id.to_string())
        .collect()
}

async fn claims_come_stage_by_stage_and_never_twice(store: &dyn Store) {
    let (campaign, _) = running(store, 40).await;
    let mut query = ClaimQuery {
        up_to_stage: 1,
        limit: 4,
        ..all_due(&campaign, at(5))
    };
    let first = claim(store, &query).await;
    assert_eq!(
        first.iter().map(|u| u.stage).collect::<Vec<_>>(),
        [0, 0, 1, 1]
    );
    assert!(first.iter().all(|u| u.attempt == 1));
    query.limit = 100;
    let second = claim(store, &query).await;
    assert_eq!(second.len(), 6, "the rest of stages 0 and 1");
    assert!(ids(&first).is_disjoint(&ids(&second)));
    assert!(claim(store, &query).await.is_empty());
    let saved = store.update(&first[0].id).await.unwrap();
    assert_eq!(saved.as_ref(), Some(&first[0]));
    assert_eq!(store.in_flight(first[0].device).await.unwrap(), saved);
    let keys: Vec<_> = first.iter().map(|update| update.device).collect();
    let live = store.busy_with(&keys[..2]).await.unwrap();
    assert_eq!(ids(&live), ids(&first[..2]));
    let devices = store.devices_by_key(&keys[..2]).await.unwrap();
    let named = devices.iter().map(|d| d.registration.device_id.to_string());
    assert_eq!(named.collect::<BTreeSet<_>>(), ids(&first[..2]));
}

async fn only_devices_that_are_online_and_fit_are_claimed(store: &dyn Store) {
    let (campaign, keys) = running(store, 8).await;
    let said = |n: usize| Touch {
        device: keys[n],
        ..Touch::default()
    };
    touch(
        store,
        &[
            Touch {
                online: Some((false, 2)),
                ..said(0)
            },
            Touch {
                battery_percent: Some(19.9),
                ..said(1)
            },
            Touch {
                battery_percent: Some(20.0),
                ..said(2)
            },
            Touch {
                free_storage_bytes: Some(999),
                ..said(3)
            },
            Touch {
                free_storage_bytes: Some(1_000),
                ..said(4)
            },
            Touch {
                reported_model: Some("X".into()),
                ..said(5)
            },
            Touch {
                reported_model: Some(MODEL.into()),
                ..said(6)
            },
        ],
    )
    .await;
    let requires = Requires {
        min_battery_percent: Some(20),
        min_free_storage_bytes: Some(1_000),
    };
    let claimed = claim(
        store,
        &ClaimQuery {
            requires,
            ..all_due(&campaign, at(5))
        },
    )
    .await;
    assert_eq!(ids(&claimed), [2, 4, 6, 7].map(name).into());
}

async fn a_device_with_an_update_in_flight_is_passed_over(store: &dyn Store) {
    let (campaign, keys) = running(store, 2).await;
    let mut other = single(1, keys[0], &name(0), "9.0.0");
    other.state = flying(0);
    insert(store, &[other]).await;
    let claimed = claim(store, &all_due(&campaign, at(5))).await;
    assert_eq!(ids(&claimed), [name(1)].into());
}

/// In flight since the given second.
fn flying(since: i64) -> UpdateState {
    UpdateState::InFlight {
        phase: device_ota_domain::update::Phase::Offered,
        since: at(since),
        lease_until: at(since + 60),
        deadline: at(since + 600),
        part_until: None,
        cancel_requested: false,
        hold: false,
    }
}

async fn a_second_live_update_is_impossible(store: &dyn Store) {
    let keys = fleet(store, 1).await;
    let [first, mut second] = [1, 2].map(|n| single(n, keys[0], &name(0), "2.0.0"));
    insert(
        store,
        &[
            Update {
                state: flying(0),
                ..first.clone()
            },
            second.clone(),
        ],
    )
    .await;
    let mut tx = store.begin().await.unwrap();
    second.state = flying(1);
    let refused = tx.save_updates(std::slice::from_ref(&second)).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict("the device's update"))),
        "{refused:?}"
    );
    drop(tx);
    let mut tx = store.begin().await.unwrap();
    let third = Update {
        state: flying(1),
        ..single(3, keys[0], &name(0), "3.0.0")
    };
    let refused = tx.insert_update(&third, None).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict("the device's update"))),
        "{refused:?}"
    );
    drop(tx);
    assert_eq!(
        store.in_flight(keys[0]).await.unwrap().unwrap().id,
        first.id
    );
}

async fn an_update_that_is_not_due_waits(store: &dyn Store) {
    let keys = fleet(store, 1).await;
    let mut update = single(1, keys[0], &name(0), "2.0.0");
    update.state = UpdateState::Pending {
        due_at: at(100),
        lost_at: None,
        last_failure: None,
    };
    insert(store, &[update]).await;
    assert!(!store.has_due_singles(at(99), None).await.unwrap());
    assert!(store.has_due_singles(at(100), None).await.unwrap());
}

async fn single_devices_have_claims_of_their_own(store: &dyn Store) {
    let (campaign, keys) = running(store, 3).await;
    let waiting = [1, 2].map(|n| single(n, keys[0], &name(0), &format!("{n}.0.0")));
    insert(store, &waiting).await;
    let claimed = claim_singles(store, at(5), 100).await;
    assert_eq!(claimed.len(), 1, "one at a time for one device");
    assert_eq!(claimed[0].id, waiting[0].id);
    assert!(!store.has_due_singles(at(5), None).await.unwrap());
    assert_eq!(claim(store, &all_due(&campaign, at(5))).await.len(), 2);
}

/// Whatever images ask for and devices have said, the database claims those whom the domain does not hold back.
async fn single_devices_wait_until_they_are_fit_for_the_image(store: &dyn Store) {
    let asks = [
        (None, None),
        (Some(20), None),
        (None, Some(1_000)),
        (Some(20), Some(1_000)),
    ];
    let mut images = Vec::new();
    for ((min_battery_percent, min_free_storage_bytes), n) in asks.into_iter().zip(2..) {
        let mut image = image("frame", &format!("{n}.0.0"), n);
        image.metadata.min_battery_percent = min_battery_percent;
        image.metadata.min_free_storage_bytes = min_free_storage_bytes;
        upload(store, &image).await;
        images.push(image);
    }
    let batteries = [None, Some(19.9), Some(20.0), Some(100.0)];
    let storages = [None, Some(0), Some(999), Some(1_000)];
    let said = batteries.into_iter().flat_map(|b| storages.map(|s| (b, s)));
    let cases: Vec<_> = said
        .flat_map(|said| [0, 1, 2, 3].map(|i| (said, i)))
        .collect();
    let keys = fleet(store, cases.len()).await;
    let touches = keys
        .iter()
        .zip(&cases)
        .map(|(key, ((battery, storage), _))| Touch {
            device: *key,
            battery_percent: *battery,
            free_storage_bytes: *storage,
            ..Touch::default()
        });
    touch(store, &touches.collect::<Vec<_>>()).await;
    let singles = keys
        .iter()
        .zip(&cases)
        .zip(0..)
        .map(|((key, (_, image)), n)| Update {
            firmware: Some(images[*image].id.clone()),
            ..single(u8::try_from(n).unwrap(), *key, &name(n), "2.0.0")
        });
    insert(store, &singles.collect::<Vec<_>>()).await;
    let held = async || {
        let devices = store.devices_by_key(&keys).await.unwrap();
        let mut held = BTreeSet::new();
        for device in devices {
            let n = keys.iter().position(|key| *key == device.key).unwrap();
            let asked = &images[cases[n].1].metadata;
            let requires = Requires {
                min_battery_percent: asked.min_battery_percent,
                min_free_storage_bytes: asked.min_free_storage_bytes,
            };
            if !held_by_device(&device, requires).is_empty() {
                held.insert(name(n));
            }
        }
        held
    };
    let held = held().await;
    assert!(!held.is_empty() && held.len() < cases.len());
    let claimed = ids(&claim_singles(store, at(5), 1_000).await);
    let all: BTreeSet<_> = (0..cases.len()).map(name).collect();
    assert_eq!(claimed, &all - &held);
    assert!(
        !store.has_due_singles(at(5), None).await.unwrap(),
        "nobody else is fit"
    );

    // What an image asks for by now is what holds.
    let mut tx = store.begin().await.unwrap();
    for image in &mut images {
        image.metadata.min_battery_percent = None;
        image.metadata.min_free_storage_bytes = None;
        tx.save_firmware(image).await.unwrap();
    }
    tx.commit().await.unwrap();
    assert!(store.has_due_singles(at(5), None).await.unwrap());
    assert_eq!(ids(&claim_singles(store, at(5), 1_000).await), held);
}

async fn the_most_urgent_of_single_devices_comes_first(store: &dyn Store) {
    let keys = fleet(store, 5).await;
    // The device, how urgent it is, and since when it is due.
    let waiting = [
        (0, Priority::Low, 1),
        (1, Priority::Normal, 1),
        (2, Priority::Critical, 4),
        (3, Priority::High, 3),
        (4, Priority::High, 2),
        (0, Priority::Normal, 3),
    ];
    let singles = waiting
        .into_iter()
        .zip(1..)
        .map(|((device, priority, due), n)| Update {
            priority,
            state: UpdateState::Pending {
                due_at: at(due),
                lost_at: None,
                last_failure: None,
            },
            ..single(n, keys[device], &name(device), "2.0.0")
        });
    let singles: Vec<_> = singles.collect();
    insert(store, &singles).await;
    let mut order = Vec::new();
    for limit in [2, 1, 100] {
        order.extend(claim_singles(store, at(5), limit).await);
    }
    let order: Vec<_> = order.iter().map(|update| &update.id).collect();
    let expected = [2, 4, 3, 1, 5].map(|n: usize| &singles[n].id);
    assert_eq!(
        order, expected,
        "of two for one device, the more urgent one"
    );
}

async fn the_running_version_comes_along(store: &dyn Store) {
    let (campaign, keys) = running(store, 2).await;
    touch(
        store,
        &[Touch {
            device: keys[1],
            version: Some("1.5.0".into()),
            ..Touch::default()
        }],
    )
    .await;
    let found = claimable(store, &all_due(&campaign, at(5))).await;
    let running: Vec<_> = found
        .iter()
        .map(|f| f.running.as_deref().unwrap())
        .collect();
    assert_eq!(running, ["1.0.0", "1.5.0"]);
}

/// Two replicas hold claims at the same time: no device is in both, and neither waits for the other.
#[tokio::test]
async fn two_replicas_claim_different_devices_on_postgres() {
    let database = PostgresDatabase::create().await;
    let (a, b) = (database.open().await, database.open().await);
    let (campaign, _) = running(&a, 100).await;
    let query = ClaimQuery {
        limit: 30,
        ..all_due(&campaign, at(5))
    };
    let (mut first, mut second) = (a.begin().await.unwrap(), b.begin().await.unwrap());
    let mine = claim_in(first.as_mut(), &query).await;
    // The first transaction has not ended: its rows are locked. Nothing but the counters is shared.
    let found = second.claimable(&query).await.unwrap();
    let theirs: Vec<Update> = found.into_iter().map(|f| f.update).collect();
    assert_eq!((mine.len(), theirs.len()), (30, 30));
    assert!(ids(&mine).is_disjoint(&ids(&theirs)));
    first.commit().await.unwrap();
    drop(second);
    // What was let go of is free again, as soon as the server has heard of it.
    let mut free = 0;
    while free < 70 {
        free += claim(&b, &all_due(&campaign, at(5))).await.len();
    }
    assert_eq!(free, 70);
    a.close().await;
    b.close().await;
}

/// Replicas that claim until nothing is left have claimed everything once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_a_campaign_on_postgres() {
    let database = PostgresDatabase::create().await;
    let (a, b) = (database.open().await, database.open().await);
    let (campaign, _) = running(&a, 400).await;
    let query = ClaimQuery {
        limit: 25,
        ..all_due(&campaign, at(5))
    };
    let until_empty = async |store: &dyn Store| {
        let mut all = Vec::new();
        loop {
            let claimed = claim(store, &query).await;
            if claimed.is_empty() {
                return all;
            }
            all.extend(claimed);
        }
    };
    let (mine, theirs) = tokio::join!(until_empty(&a), until_empty(&b));
    assert!(ids(&mine).is_disjoint(&ids(&theirs)));
    let rest = until_empty(&a).await;
    assert_eq!(mine.len() + theirs.len() + rest.len(), 400);
    let counts = a.counts(&campaign.id).await.unwrap();
    assert_eq!(counts.updates().in_flight, 400);
    assert_eq!(counts, a.counts_by_rows(&campaign.id).await.unwrap());
    a.close().await;
    b.close().await;
}
