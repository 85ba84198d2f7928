//! The history of heartbeats, before and after it is indexed, and what is let go of it and of the outbox.

use device_ota_domain::device::DeviceKey;
use device_ota_domain::page::Page;
use device_ota_engine::ports::store::Store;
use device_ota_engine::ports::telemetry::HeartbeatQuery;
use device_ota_engine::ports::telemetry::HeartbeatRow;
use jiff::Timestamp;

use crate::fixture::*;

crate::stories!(
    heartbeats_are_found_the_same_before_and_after_they_are_indexed,
    few_heartbeats_are_indexed_when_they_are_overdue,
    old_heartbeats_are_let_go_and_young_ones_stay,
    a_history_that_was_let_go_begins_anew,
    old_events_go_once_everybody_has_taken_them,
    an_event_that_nobody_takes_goes_in_the_end,
);

const DEVICES: i64 = 7;
/// Enough for two full segments and some more.
const HEARTBEATS: i64 = 40_000;
/// What is older than this is not overdue: nothing is.
const NEVER: Timestamp = Timestamp::UNIX_EPOCH;

async fn beat(store: &dyn Store, keys: &[DeviceKey], seconds: std::ops::Range<i64>) {
    let rows: Vec<HeartbeatRow> = seconds
        .map(|n| HeartbeatRow {
            device: keys[usize::try_from(n % DEVICES).unwrap()],
            received_at: at(n),
            payload: format!(r#"{{"n":{n}}}"#).into(),
        })
        .collect();
    let mut tx = store.begin().await.unwrap();
    tx.insert_heartbeats(&rows).await.unwrap();
    tx.commit().await.unwrap();
}

/// The seconds at which the device's heartbeats came, as a page of its history shows them.
async fn page(
    store: &dyn Store,
    device: DeviceKey,
    span: (Option<i64>, Option<i64>),
    page: Page,
) -> Vec<String> {
    let query = HeartbeatQuery {
        device,
        from: span.0.map(at),
        to: span.1.map(at),
    };
    let rows = store.heartbeats(&query, page).await.unwrap();
    assert!(rows.iter().all(|row| row.device == device));
    rows.iter().map(|row| row.payload.to_string()).collect()
}

async fn heartbeats_are_found_the_same_before_and_after_they_are_indexed(store: &dyn Store) {
    let keys = fleet(store, usize::try_from(DEVICES).unwrap()).await;
    beat(store, &keys, 0..HEARTBEATS).await;
    let everything = async || {
        let mut pages = Vec::new();
        for (span, limit, offset) in [
            ((None, None), 3, 0),
            ((None, None), 200, 0),
            ((None, None), 200, 2_200),
            ((None, None), 200, 5_650),
            ((None, None), 10, 6_000),
            ((Some(10_000), Some(20_000)), 200, 1_300),
            ((Some(39_990), None), 50, 0),
            ((None, Some(15)), 50, 0),
            ((Some(50_000), None), 50, 0),
        ] {
            let window = Page::new(limit, offset).unwrap();
            pages.push(page(store, keys[1], span, window).await);
        }
        pages
    };
    let behind = everything().await;
    assert_eq!(
        behind[0],
        [39_999, 39_992, 39_985].map(|n| format!(r#"{{"n":{n}}}"#))
    );
    assert_eq!(behind[1].len(), 200);
    assert_eq!(behind[4], [""; 0]);
    assert_eq!(behind[7], [8, 1].map(|n| format!(r#"{{"n":{n}}}"#)));
    assert_eq!(behind[8], [""; 0]);
    for more in [true, true, false] {
        assert_eq!(store.index_heartbeats(NEVER, 0).await.unwrap(), more);
        assert_eq!(everything().await, behind);
    }
    beat(store, &keys, HEARTBEATS..HEARTBEATS + DEVICES).await;
    let newest = page(store, keys[1], (None, None), Page::new(1, 0).unwrap()).await;
    assert_eq!(newest, [r#"{"n":40006}"#]);
    assert_eq!(
        page(store, DeviceKey(4_711), (None, None), Page::default()).await,
        [""; 0]
    );
}

async fn few_heartbeats_are_indexed_when_they_are_overdue(store: &dyn Store) {
    let keys = fleet(store, usize::try_from(DEVICES).unwrap()).await;
    assert!(
        !store.index_heartbeats(at(1_000), 0).await.unwrap(),
        "there are none"
    );
    beat(store, &keys, 0..70).await;
    assert!(!store.index_heartbeats(NEVER, 0).await.unwrap());
    assert!(store.index_heartbeats(at(1), 0).await.unwrap());
    assert!(!store.index_heartbeats(at(1), 0).await.unwrap());
    assert_eq!(
        page(store, keys[0], (None, None), Page::default())
            .await
            .len(),
        10
    );

    beat(store, &keys, 70..20_000).await;
    assert!(
        !store.index_heartbeats(NEVER, 20_000).await.unwrap(),
        "so many may wait"
    );
    assert!(store.index_heartbeats(NEVER, 16_000).await.unwrap());
}

async fn old_heartbeats_are_let_go_and_young_ones_stay(store: &dyn Store) {
    let keys = fleet(store, usize::try_from(DEVICES).unwrap()).await;
    beat(store, &keys, 0..HEARTBEATS).await;
    assert!(
        !store
            .prune_heartbeats(at(HEARTBEATS), at(HEARTBEATS))
            .await
            .unwrap(),
        "nothing is indexed"
    );
    while store.index_heartbeats(NEVER, 0).await.unwrap() {}
    let count = async || {
        let mut found = 0;
        for offset in (0..6_000).step_by(200) {
            let window = Page::new(200, offset).unwrap();
            found += page(store, keys[1], (None, None), window).await.len();
        }
        found
    };
    let all = count().await;
    assert!(
        !store
            .prune_heartbeats(at(16_383), at(HEARTBEATS))
            .await
            .unwrap(),
        "one of its rows is young"
    );
    assert_eq!(count().await, all);
    assert!(
        store
            .prune_heartbeats(at(16_384), at(HEARTBEATS))
            .await
            .unwrap()
    );
    assert!(
        !store
            .prune_heartbeats(at(16_384), at(HEARTBEATS))
            .await
            .unwrap()
    );
    assert_eq!(count().await, all - 16_384 / 7 - 1);
}

async fn a_history_that_was_let_go_begins_anew(store: &dyn Store) {
    let keys = fleet(store, usize::try_from(DEVICES).unwrap()).await;
    for round in 0..3 {
        let from = round * 100;
        beat(store, &keys, from..from + 70).await;
        assert!(store.index_heartbeats(at(1_000), 0).await.unwrap());
        assert_eq!(
            page(store, keys[0], (None, None), Page::default())
                .await
                .len(),
            10
        );
        assert!(store.prune_heartbeats(at(1_000), at(1_000)).await.unwrap());
        assert_eq!(
            page(store, keys[0], (None, None), Page::default()).await,
            [""; 0]
        );
    }
    beat(store, &keys, 700..707).await;
    assert_eq!(
        page(store, keys[0], (None, None), Page::default())
            .await
            .len(),
        1
    );
}

async fn append(store: &dyn Store, count: i64) {
    let events: Vec<_> = (0..count).map(|n| event(n, "a")).collect();
    let mut tx = store.begin().await.unwrap();
    tx.append_events(&events).await.unwrap();
    tx.commit().await.unwrap();
}

async fn taken(store: &dyn Store, sink: &str, up_to: i64) {
    let mut tx = store.begin().await.unwrap();
    tx.events_delivered(sink, up_to).await.unwrap();
    tx.commit().await.unwrap();
}

async fn old_events_go_once_everybody_has_taken_them(store: &dyn Store) {
    append(store, 10).await;
    let stored = store.events_for("new", 100).await.unwrap();
    let (fourth, last) = (&stored[3], stored[9].id);
    let prune = async |sinks: &[&str], before: Timestamp| {
        store.prune_events(sinks, before, NEVER, 100).await.unwrap()
    };
    taken(store, "bus", last).await;
    assert_eq!(
        prune(&["bus", "hook"], Timestamp::MAX).await,
        0,
        "the hook has taken none"
    );
    taken(store, "hook", fourth.id).await;
    taken(store, "nobody", 0).await;
    assert_eq!(
        prune(&["bus", "hook"], fourth.at).await,
        3,
        "the fourth is young"
    );
    assert_eq!(prune(&["bus", "hook"], Timestamp::MAX).await, 1);
    assert_eq!(store.events_for("new", 100).await.unwrap().len(), 6);
    assert_eq!(
        prune(&[], Timestamp::MAX).await,
        5,
        "nobody waits for them, but the newest stays"
    );
    let kept = store.events_kept().await.unwrap().unwrap();
    assert_eq!((kept.oldest, kept.newest), (last, last));
}

async fn an_event_that_nobody_takes_goes_in_the_end(store: &dyn Store) {
    append(store, 10).await;
    let stored = store.events_for("new", 100).await.unwrap();
    let whatever = stored[5].at;
    let prune = async |limit| {
        store
            .prune_events(&["hook"], Timestamp::MAX, whatever, limit)
            .await
            .unwrap()
    };
    assert_eq!([prune(3).await, prune(3).await, prune(3).await], [3, 2, 0]);
}
