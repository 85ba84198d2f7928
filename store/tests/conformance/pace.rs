//! When the next offer is due, and how many are in flight in all.

use device_ota_domain::campaign::Campaign;
use device_ota_engine::ports::store::{ClaimQuery, Store};
use device_ota_store::testing::PostgresDatabase;

use crate::fixture::*;

crate::stories!(
    the_pace_is_written_and_changes_no_revision,
    all_that_is_in_flight_is_counted
);

async fn the_pace_is_written_and_changes_no_revision(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 1).await;
    let begun = start(store, campaign(1, &firmware, ""), &firmware).await;
    assert_eq!(begun.next_offer_at, None);
    let mut tx = store.begin().await.unwrap();
    tx.pace(&begun.id, at(77)).await.unwrap();
    tx.commit().await.unwrap();
    let read = store.campaign(&begun.id).await.unwrap().unwrap();
    assert_eq!(
        (read.next_offer_at, read.revision),
        (Some(at(77)), begun.revision)
    );
    // Whoever has read it before may still write it.
    let mut tx = store.begin().await.unwrap();
    tx.save_campaign(&begun).await.unwrap();
    tx.commit().await.unwrap();
    let read = store.campaign(&begun.id).await.unwrap().unwrap();
    assert_eq!(read.next_offer_at, Some(at(77)));
}

async fn all_that_is_in_flight_is_counted(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let keys = fleet(store, 6).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    let query = ClaimQuery {
        limit: 3,
        ..all_due(&campaign, at(5))
    };
    let claimed = claim(store, &query).await;
    let free = keys
        .iter()
        .position(|key| claimed.iter().all(|u| u.device != *key))
        .unwrap();
    insert(store, &[single(1, keys[free], &name(free), "9.0.0")]).await;
    assert_eq!(store.all_in_flight().await.unwrap(), 3);
    claim_singles(store, at(5), 100).await;
    complete(store, &claimed[..1]).await;
    assert_eq!(store.all_in_flight().await.unwrap(), 3);
    let mut tx = store.begin().await.unwrap();
    assert_eq!(tx.hold_slots().await.unwrap(), 3);
}

/// Two replicas that claim as many as the limit leaves never claim more together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_keep_the_limit_together_on_postgres() {
    const LIMIT: u64 = 9;
    let database = PostgresDatabase::create().await;
    let (a, b) = (database.open().await, database.open().await);
    let firmware = image("frame", "2.0.0", 1);
    upload(&a, &firmware).await;
    fleet(&a, 60).await;
    let first = start(&a, campaign(1, &firmware, ""), &firmware).await;
    let second = start(&a, campaign(2, &firmware, ""), &firmware).await;
    let claims = async |store: &dyn Store, campaign: &Campaign| {
        for _ in 0..10 {
            let mut tx = store.begin().await.unwrap();
            let left = LIMIT.saturating_sub(tx.hold_slots().await.unwrap());
            let query = ClaimQuery {
                limit: u32::try_from(left.min(2)).unwrap(),
                ..all_due(campaign, at(5))
            };
            claim_in(tx.as_mut(), &query).await;
            tx.commit().await.unwrap();
        }
    };
    tokio::join!(claims(&a, &first), claims(&b, &second));
    assert_eq!(a.all_in_flight().await.unwrap(), LIMIT);
    a.close().await;
    b.close().await;
}
