//! The outbox.

use device_ota_domain::page::Page;
use device_ota_engine::ports::store::Store;
use device_ota_engine::ports::telemetry::DeviceFilter;
use device_ota_store::testing::{PostgresDatabase, SqliteDatabase};

use crate::fixture::*;

crate::stories!(
    every_receiver_has_its_own_place,
    a_place_never_goes_back,
    the_outbox_is_read_from_any_place,
);

async fn the_outbox_is_read_from_any_place(store: &dyn Store) {
    assert_eq!(store.events_kept().await.unwrap(), None);
    let mut tx = store.begin().await.unwrap();
    tx.append_events(&[event(1, "a"), event(2, "b"), event(3, "a")])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let all = store.events_after(0, 10).await.unwrap();
    let said: Vec<_> = all.iter().map(|e| e.data["n"].as_i64().unwrap()).collect();
    assert_eq!(said, [1, 2, 3]);
    assert_eq!(store.events_after(all[0].id, 1).await.unwrap(), all[1..2]);
    assert_eq!(store.events_after(all[2].id, 10).await.unwrap(), []);
    let kept = store.events_kept().await.unwrap().unwrap();
    assert_eq!((kept.oldest, kept.newest), (all[0].id, all[2].id));
}

async fn every_receiver_has_its_own_place(store: &dyn Store) {
    let mut tx = store.begin().await.unwrap();
    tx.append_events(&[event(1, "a"), event(2, "b")])
        .await
        .unwrap();
    tx.append_events(&[event(3, "a")]).await.unwrap();
    tx.commit().await.unwrap();
    let events = store.events_for("bus", 10).await.unwrap();
    let said: Vec<_> = events
        .iter()
        .map(|e| e.data["n"].as_i64().unwrap())
        .collect();
    assert_eq!(said, [1, 2, 3]);
    assert_eq!(
        (
            events[0].event_type.as_str(),
            events[0].entity.as_str(),
            events[0].at
        ),
        ("campaign.started", "a", at(1))
    );
    let mut tx = store.begin().await.unwrap();
    tx.events_delivered("bus", events[1].id).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.events_for("bus", 10).await.unwrap(), events[2..]);
    assert_eq!(store.events_for("nats", 2).await.unwrap(), events[..2]);
}

async fn a_place_never_goes_back(store: &dyn Store) {
    let mut tx = store.begin().await.unwrap();
    tx.append_events(&[event(1, "a"), event(2, "b")])
        .await
        .unwrap();
    tx.events_delivered("bus", 2).await.unwrap();
    tx.events_delivered("bus", 1).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.events_for("bus", 10).await.unwrap(), []);
}

/// Two replicas append in transactions that overlap. A reader that follows along must never see an id below one that it
/// has passed.
async fn nobody_overtakes(replicas: [&dyn Store; 2], reader: &dyn Store) {
    const TRANSACTIONS: i64 = 100;
    let append = async |store: &dyn Store, base: i64| {
        for n in 0..TRANSACTIONS {
            let mut tx = store.begin().await.unwrap();
            tx.append_events(&[event(base + n, "a"), event(base + n, "a")])
                .await
                .unwrap();
            tx.devices_are_touched().await;
            tx.commit().await.unwrap();
        }
    };
    let follow = async || {
        let mut seen: Vec<i64> = Vec::new();
        while seen.len() < usize::try_from(TRANSACTIONS * 4).unwrap() {
            let events = reader.events_for("bus", 100).await.unwrap();
            let Some(last) = events.last() else { continue };
            let mut tx = reader.begin().await.unwrap();
            tx.events_delivered("bus", last.id).await.unwrap();
            tx.commit().await.unwrap();
            seen.extend(events.iter().map(|event| event.id));
        }
        seen
    };
    let [first, second] = replicas;
    let ((), (), seen) = tokio::join!(append(first, 0), append(second, 1_000), follow());
    assert!(seen.is_sorted_by(|a, b| a < b));
    assert_eq!(
        seen.len(),
        usize::try_from(TRANSACTIONS * 4).unwrap(),
        "none was passed over"
    );
}

/// A little work in the same transaction, so that transactions overlap.
trait Work {
    async fn devices_are_touched(&mut self);
}

impl Work for Box<dyn device_ota_engine::ports::store::Tx> {
    async fn devices_are_touched(&mut self) {
        self.reset_presence(at(0)).await.unwrap();
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_passed_over_with_two_replicas_on_postgres() {
    let database = PostgresDatabase::create().await;
    let (a, b) = (database.open().await, database.open().await);
    nobody_overtakes([&a, &b], &b).await;
    a.close().await;
    b.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_passed_over_on_sqlite() {
    let database = SqliteDatabase::new();
    let store = database.open().await;
    nobody_overtakes([&store, &store], &store).await;
    assert!(
        store
            .devices(&DeviceFilter::default(), Page::default())
            .await
            .unwrap()
            .is_empty()
    );
    store.close().await;
}
