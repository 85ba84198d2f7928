//! Reads of single rows that share a statement: everybody gets their own row, as fresh as if they had read alone.

use std::sync::Arc;

use device_ota_domain::UpdateId;
use device_ota_domain::update::{Update, UpdateState};
use device_ota_engine::ports::StoreError;
use device_ota_engine::ports::store::Store;
use device_ota_store::testing::{PostgresDatabase, SqliteDatabase};
use device_ota_store::{Dialect, SqlStore};
use tokio::task::JoinSet;

use crate::fixture::*;

crate::stories!(
    a_reader_finds_what_was_just_committed,
    a_reader_that_leaves_disturbs_nobody
);

/// Updates of a small fleet; more than one statement answers.
const UPDATES: u8 = 150;

async fn updates(store: &dyn Store) -> Vec<Update> {
    let keys = fleet(store, usize::from(UPDATES)).await;
    let updates: Vec<Update> = (0..UPDATES)
        .zip(keys)
        .map(|(n, key)| single(n, key, &name(n.into()), "2.0.0"))
        .collect();
    insert(store, &updates).await;
    updates
}

/// Many readers at once: of each update and device three, and of ids that do not exist.
async fn a_crowd_reads_its_own_rows<D: Dialect>(store: SqlStore<D>) {
    let store = Arc::new(store);
    let updates = updates(&*store).await;
    let mut readers = JoinSet::new();
    for update in updates.iter().cycle().take(updates.len() * 3).cloned() {
        let store = Arc::clone(&store);
        readers.spawn(async move {
            let found = store.update(&update.id).await.unwrap();
            assert_eq!(found.as_ref(), Some(&update));
            let found = store.credentials(&update.device_id).await.unwrap().unwrap();
            let verifier = format!("$7$1$salt${}", update.device_id);
            assert_eq!((found.key, found.verifier), (update.device, verifier));
        });
    }
    for n in 0..UPDATES {
        let store = Arc::clone(&store);
        readers.spawn(async move {
            let missing = UpdateId::from_entropy([n, 1, 2, 3, 4, 5, 6, 7]);
            assert_eq!(store.update(&missing).await.unwrap(), None);
            let missing = format!("missing-{n}").parse().unwrap();
            assert_eq!(store.credentials(&missing).await.unwrap(), None);
        });
    }
    while let Some(done) = readers.join_next().await {
        done.unwrap();
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_reads_its_own_rows_on_sqlite() {
    let database = SqliteDatabase::new();
    a_crowd_reads_its_own_rows(database.open().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_reads_its_own_rows_on_postgres() {
    let database = PostgresDatabase::create().await;
    a_crowd_reads_its_own_rows(database.open().await).await;
}

async fn a_reader_finds_what_was_just_committed(store: &dyn Store) {
    let keys = fleet(store, 1).await;
    let mut update = single(1, keys[0], &name(0), "2.0.0");
    assert_eq!(store.update(&update.id).await.unwrap(), None);
    insert(store, std::slice::from_ref(&update)).await;
    for n in 0..50 {
        update.state = UpdateState::Completed { at: at(n) };
        let mut tx = store.begin().await.unwrap();
        tx.save_updates(std::slice::from_ref(&update))
            .await
            .unwrap();
        let other = UpdateId::from_entropy([9; 8]);
        // Others read while it is written.
        let (committed, a, b) =
            tokio::join!(tx.commit(), store.update(&update.id), store.update(&other));
        committed.unwrap();
        assert_eq!(a.unwrap().map(|found| found.id), Some(update.id.clone()));
        assert_eq!(b.unwrap(), None);
        let found = store.update(&update.id).await.unwrap();
        assert_eq!(found.as_ref(), Some(&update));
    }
}

async fn a_reader_that_leaves_disturbs_nobody(store: &dyn Store) {
    let updates = updates(store).await;
    let mut left = 0;
    for pair in updates.windows(2) {
        // The first reads for itself, the second has to queue.
        let both = async { tokio::join!(store.update(&pair[0].id), store.update(&pair[1].id)) };
        tokio::select! {
            biased;
            _ = both => {} // a busy machine may let the database answer between the two polls
            () = std::future::ready(()) => left += 1,
        }
    }
    assert_ne!(left, 0);
    for update in &updates {
        let found = store.update(&update.id).await.unwrap();
        assert_eq!(found.as_ref(), Some(update));
    }
}

async fn a_closed_store_says_so<D: Dialect>(store: SqlStore<D>) {
    let update = UpdateId::from_entropy([1; 8]);
    let device = "a".parse().unwrap();
    assert_eq!(store.update(&update).await.unwrap(), None);
    store.close().await;
    let (first, second, third) = tokio::join!(
        store.update(&update),
        store.update(&update),
        store.credentials(&device)
    );
    for error in [first.err(), second.err(), third.err()] {
        let Some(StoreError::Unavailable(source)) = error else {
            panic!("a closed store answered {error:?}")
        };
        assert!(source.to_string().contains("closed"), "{source}");
    }
}

#[tokio::test]
async fn a_closed_store_says_so_on_sqlite() {
    let database = SqliteDatabase::new();
    a_closed_store_says_so(database.open().await).await;
}

#[tokio::test]
async fn a_closed_store_says_so_on_postgres() {
    let database = PostgresDatabase::create().await;
    a_closed_store_says_so(database.open().await).await;
}
