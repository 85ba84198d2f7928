//! The audit trail: a chain in the order of commits, whoever writes.

use device_ota_domain::Roles;
use device_ota_domain::audit::{Act, Actor, Authentication, Break, Entity, Entry};
use device_ota_domain::page::Page;
use device_ota_engine::ports::audit::{AuditFilter, AuditLog};
use device_ota_engine::ports::store::Store;
use device_ota_engine::{AuditFailure, verify_audit};
use device_ota_store::testing::{PostgresDatabase, SqliteDatabase, run_sql};
use serde_json::json;

use crate::fixture::*;

crate::stories!(
    a_record_is_there_with_the_commit_and_not_without,
    records_are_read_back_by_what_they_say,
    a_long_chain_is_walked_in_pieces,
);

fn entry(subject: &str, act: Act, id: &str, seconds: i64) -> Entry {
    let actor = Actor {
        subject: subject.into(),
        roles: Roles::ADMIN,
        authentication: Authentication::Token,
        request_id: format!("r-{seconds}").into(),
        peer: Some("192.0.2.1".parse().unwrap()),
    };
    let states = (
        Some(json!({"a": "ü\"", "b": 1})),
        Some(json!({"a": 2, "b": 1})),
    );
    Entry::new(&actor, at(seconds), act, id, states)
}

async fn append(store: &dyn Store, entries: Vec<Entry>) {
    let mut tx = store.begin().await.unwrap();
    for entry in entries {
        tx.append_audit(entry).await.unwrap();
    }
    tx.commit().await.unwrap();
}

async fn a_record_is_there_with_the_commit_and_not_without(store: &dyn Store) {
    assert_eq!(verify_audit(store, None).await.unwrap().number, 0);
    append(store, vec![]).await;
    let two = vec![
        entry("u", Act::DeviceChanged, "d", 1),
        entry("u", Act::DeviceDeleted, "d", 2),
    ];
    append(store, two).await;
    let mut tx = store.begin().await.unwrap();
    tx.append_audit(entry("u", Act::KeyCreated, "k", 3))
        .await
        .unwrap();
    drop(tx);
    let head = verify_audit(store, None).await.unwrap();
    assert_eq!(head.number, 2);
    assert_eq!(store.audit_head().await.unwrap(), head);
    let records = store.audit_from(1, 10).await.unwrap();
    assert_eq!(records.len(), 2);
    assert_eq!(records[1].prev, records[0].hash);
    assert_eq!(records[0].before.as_deref(), Some(r#"{"a":"ü\""}"#));
    assert_eq!(records[0].at(), at(1));
    let remembered = verify_audit(store, Some(&records[0].hash)).await;
    assert_eq!(remembered.unwrap(), head);
    let other = verify_audit(store, Some("ab")).await;
    assert!(matches!(other, Err(AuditFailure::Rewritten(hash)) if hash == "ab"));
}

async fn records_are_read_back_by_what_they_say(store: &dyn Store) {
    let all = vec![
        entry("a", Act::DeviceRegistered, "d1", 1),
        entry("b", Act::DeviceChanged, "d1", 2),
        entry("a", Act::CampaignStarted, "c1", 3),
        entry("a", Act::CampaignPaused, "c1", 4),
    ];
    append(store, all).await;
    let found = async |filter: AuditFilter, page: Page| {
        let records = store.audit(&filter, page).await.unwrap();
        records
            .iter()
            .map(|record| record.number)
            .collect::<Vec<_>>()
    };
    let any = AuditFilter::default;
    let whole = Page::default();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(found(any(), whole).await, [4, 3, 2, 1], "newest first");
    assert_eq!(
        found(
            any(),
            Page {
                limit: 2,
                offset: 1
            }
        )
        .await,
        [3, 2]
    );
    let filter = AuditFilter {
        subject: some("a"),
        entity_id: some("c1"),
        ..any()
    };
    assert_eq!(found(filter, whole).await, [4, 3]);
    let filter = AuditFilter {
        action: Some(Act::DeviceChanged),
        ..any()
    };
    assert_eq!(found(filter, whole).await, [2]);
    let filter = AuditFilter {
        entity: Some(Entity::Device),
        from: Some(at(2)),
        ..any()
    };
    assert_eq!(found(filter, whole).await, [2]);
    let filter = AuditFilter {
        from: Some(at(2)),
        to: Some(at(4)),
        ..any()
    };
    assert_eq!(found(filter, whole).await, [3, 2]);
    let filter = AuditFilter {
        request_id: some("r-3"),
        ..any()
    };
    assert_eq!(found(filter, whole).await, [3]);
    let filter = AuditFilter {
        subject: some("c"),
        ..any()
    };
    assert!(found(filter, whole).await.is_empty());
}

async fn a_long_chain_is_walked_in_pieces(store: &dyn Store) {
    let many = (0..611).map(|n| entry("u", Act::KeyCreated, "k", n));
    append(store, many.collect()).await;
    assert_eq!(verify_audit(store, None).await.unwrap().number, 611);
}

/// Two replicas append side by side, with events, which have a lock of their own.
async fn one_chain_of_two_writers(replicas: [&dyn Store; 2]) {
    const TRANSACTIONS: i64 = 50;
    let write = async |store: &dyn Store, subject: &str| {
        for n in 0..TRANSACTIONS {
            let mut tx = store.begin().await.unwrap();
            tx.append_audit(entry(subject, Act::KeyCreated, "k", n))
                .await
                .unwrap();
            if n % 2 == 0 {
                tx.append_events(&[event(n, "a")]).await.unwrap();
            }
            tx.append_audit(entry(subject, Act::KeyRevoked, "k", n))
                .await
                .unwrap();
            tx.commit().await.unwrap();
        }
    };
    let [a, b] = replicas;
    tokio::join!(write(a, "a"), write(b, "b"));
    let head = verify_audit(a, None).await.unwrap();
    assert_eq!(head.number, 4 * TRANSACTIONS);
    let last = a.audit_from(1, 1_000).await.unwrap();
    for pair in last.chunks(2) {
        assert_eq!(pair[0].subject, pair[1].subject, "a commit is one piece");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_write_one_chain_on_postgres() {
    let database = PostgresDatabase::create().await;
    let (a, b) = (database.open().await, database.open().await);
    one_chain_of_two_writers([&a, &b]).await;
    a.close().await;
    b.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_write_one_chain_on_sqlite() {
    let database = SqliteDatabase::new();
    let (a, b) = (database.open().await, database.open().await);
    one_chain_of_two_writers([&a, &b]).await;
    a.close().await;
    b.close().await;
}

#[tokio::test]
async fn sqlite_does_not_replace_what_was_written() {
    let database = SqliteDatabase::new();
    let store = database.open().await;
    append(&store, vec![entry("u", Act::KeyCreated, "k", 1)]).await;
    let replace = "INSERT OR REPLACE INTO audit_log SELECT number, at, 'x', roles, authentication, request_id, peer, \
         action, entity, entity_id, state_before, state_after, prev, hash FROM audit_log";
    let refused = run_sql(&database.url(), replace).await.unwrap_err();
    assert!(refused.contains("only ever added to"), "{refused}");
    store.close().await;
}

#[tokio::test]
async fn what_stands_behind_the_end_is_found() {
    let database = PostgresDatabase::create().await;
    let store = database.open().await;
    append(&store, vec![entry("u", Act::KeyCreated, "k", 1)]).await;
    let head = store.audit_head().await.unwrap();
    let next =
        device_ota_domain::audit::Record::behind(&head, &entry("x", Act::KeyCreated, "k", 2));
    let insert = format!(
        "INSERT INTO audit_log SELECT {}, {}, '{}', roles, authentication, '{}', peer, action, entity, entity_id, \
         state_before, state_after, '{}', '{}' FROM audit_log",
        next.number, next.at, next.subject, next.request_id, next.prev, next.hash
    );
    run_sql(database.url(), &insert).await.unwrap();
    let found = verify_audit(&store, None).await;
    assert!(
        matches!(found, Err(AuditFailure::Broken(Break::Beyond(2)))),
        "{found:?}"
    );
    store.close().await;
}
