//! The days of the history: where PostgreSQL keeps them, and that they are read and let go the same on both databases.

use std::time::Duration;

use device_ota_domain::device::DeviceKey;
use device_ota_domain::page::Page;
use device_ota_engine::ports::store::Store;
use device_ota_engine::ports::telemetry::{HeartbeatQuery, HeartbeatRow, Telemetry as _};
use device_ota_store::Dialect as _;
use device_ota_store::testing::{PostgresDatabase, run_sql};
use jiff::{SignedDuration, Timestamp};
use sqlx::migrate::Migrator;
use sqlx::{Connection as _, PgConnection, Postgres};

crate::stories!(
    days_that_are_over_go_and_the_rest_is_read,
    who_keeps_less_than_a_day_waits_for_no_end_of_it,
    what_is_left_of_a_day_is_not_indexed_anew,
);

const DEVICE: DeviceKey = DeviceKey(7);
const OTHER: DeviceKey = DeviceKey(8);
/// What is older than this is not kept: nothing is.
const NEVER: Timestamp = Timestamp::UNIX_EPOCH;
/// How long a test waits for what takes half a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Hours after the year 2100 began, which no partition holds that a migration has made.
fn at(hours: i64) -> Timestamp {
    Timestamp::from_second(4_102_444_800 + hours * 3_600).unwrap()
}

/// A heartbeat of each device in each of these hours, as one batch; `n` is the hour.
async fn beat(store: &dyn Store, hours: impl IntoIterator<Item = i64>) {
    let rows: Vec<HeartbeatRow> = hours
        .into_iter()
        .flat_map(|hour| [(hour, DEVICE), (hour, OTHER)])
        .map(|(hour, device)| HeartbeatRow {
            device,
            received_at: at(hour),
            payload: hour.to_string().into(),
        })
        .collect();
    let mut tx = store.begin().await.unwrap();
    tx.insert_heartbeats(&rows).await.unwrap();
    tx.commit().await.unwrap();
}

/// The hours of the device's heartbeats from `from` on, as its history shows them.
async fn hours(store: &dyn Store, from: Option<Timestamp>) -> Vec<i64> {
    let query = HeartbeatQuery {
        device: DEVICE,
        from,
        to: None,
    };
    let page = Page::new(200, 0).unwrap();
    let rows = store.heartbeats(&query, page).await.unwrap();
    assert!(rows.iter().all(|row| row.device == DEVICE));
    rows.iter()
        .map(|row| row.payload.parse().unwrap())
        .collect()
}

/// Indexes all that there is, as one segment.
async fn index(store: &dyn Store) {
    let indexed = store.index_heartbeats(Timestamp::MAX, 0).await.unwrap();
    assert!(indexed, "there was something to index");
}

/// Segments that went.
async fn prune(store: &dyn Store, before: Timestamp, now: Timestamp) -> usize {
    let mut segments = 0;
    while store.prune_heartbeats(before, now).await.unwrap() {
        segments += 1;
    }
    segments
}

/// Five segments, each of a day from noon to noon.
async fn five_days(store: &dyn Store) {
    for day in 0..5 {
        let now = at(day * 24 + 12);
        store.keep_heartbeat_days(now, NEVER).await.unwrap();
        beat(store, day * 24 + 12..day * 24 + 36).await;
        index(store).await;
    }
}

async fn days_that_are_over_go_and_the_rest_is_read(store: &dyn Store) {
    five_days(store).await;
    beat(store, 132..135).await;
    let all: Vec<i64> = (12..135).rev().collect();
    assert_eq!(hours(store, None).await, all);
    let (before, now) = (at(48), at(135));
    assert_eq!(
        prune(store, before, now).await,
        1,
        "of the next one some is young"
    );
    store.keep_heartbeat_days(now, before).await.unwrap();
    let kept: Vec<i64> = (48..135).rev().collect();
    assert_eq!(hours(store, Some(before)).await, kept);
    assert!(!hours(store, None).await.contains(&12));
}

async fn who_keeps_less_than_a_day_waits_for_no_end_of_it(store: &dyn Store) {
    store.keep_heartbeat_days(at(0), NEVER).await.unwrap();
    beat(store, 0..5).await;
    index(store).await;
    beat(store, 5..10).await;
    index(store).await;
    beat(store, 10..12).await;
    assert_eq!(prune(store, at(6), at(12)).await, 1);
    assert_eq!(hours(store, None).await, [11, 10, 9, 8, 7, 6, 5]);
    assert_eq!(prune(store, at(12), at(12)).await, 1);
    assert_eq!(hours(store, None).await, [11, 10]);
}

async fn what_is_left_of_a_day_is_not_indexed_anew(store: &dyn Store) {
    store.keep_heartbeat_days(at(0), NEVER).await.unwrap();
    beat(store, 0..10).await;
    index(store).await;
    assert_eq!(prune(store, at(12), at(60)).await, 1);
    let again = store.index_heartbeats(Timestamp::MAX, 0).await.unwrap();
    assert!(!again);
}

/// The partitions that there are, without what their names have in common.
async fn partitions(database: &PostgresDatabase) -> Vec<String> {
    let sql = "SELECT SUBSTR(c.relname, 19) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
         WHERE i.inhparent = 'device_heartbeats'::REGCLASS ORDER BY 1";
    let mut conn = PgConnection::connect(database.url()).await.unwrap();
    let names = sqlx::query_scalar(sql).fetch_all(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    names
}

/// How many rows lie in a table.
async fn rows_in(database: &PostgresDatabase, table: &str) -> i64 {
    let sql = format!("SELECT COUNT(*) FROM {table}");
    let mut conn = PgConnection::connect(database.url()).await.unwrap();
    let query = sqlx::query_scalar(sqlx::AssertSqlSafe(sql));
    let rows = query.fetch_one(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    rows
}

#[tokio::test]
async fn a_day_has_its_partition_before_it_begins_and_goes_with_it() {
    let database = PostgresDatabase::create().await;
    let store = database.open().await;
    assert_eq!(partitions(&database).await, ["default", "initial"]);
    five_days(&store).await;
    let days = [1, 2, 3, 4, 5, 6, 7, 8].map(|day| format!("2100010{day}"));
    let with = |days: &[String]| {
        let others = ["default", "initial"].map(str::to_owned);
        [days, &others].concat()
    };
    assert_eq!(partitions(&database).await, with(&days));
    assert_eq!(rows_in(&database, "device_heartbeats_21000101").await, 24);
    assert_eq!(rows_in(&database, "device_heartbeats_21000102").await, 48);
    assert_eq!(rows_in(&database, "device_heartbeats_default").await, 0);
    // Segments go, and their rows stay until their day goes.
    let (before, now) = (at(48), at(132));
    assert_eq!(prune(&store, before, now).await, 1);
    assert_eq!(rows_in(&database, "device_heartbeats").await, 240);
    store
        .keep_heartbeat_days(now, before - SignedDuration::from_micros(1))
        .await
        .unwrap();
    let mut left = days[1..].to_vec();
    left.push("21000109".to_owned());
    left.push("default".to_owned());
    assert_eq!(
        partitions(&database).await,
        left,
        "the last microsecond of the second day is kept"
    );
    store.keep_heartbeat_days(now, before).await.unwrap();
    assert_eq!(partitions(&database).await, left[1..]);
    // Whatever is said to be old, no day goes that is not over.
    store
        .keep_heartbeat_days(now, Timestamp::MAX)
        .await
        .unwrap();
    assert_eq!(
        partitions(&database).await,
        ["21000106", "21000107", "21000108", "21000109", "default"]
    );
    store.close().await;
}

#[tokio::test]
async fn replicas_change_the_same_days_at_once() {
    let database = PostgresDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    for round in 0..20 {
        let (now, before) = (at(round * 96), at(round * 96 - 24));
        let (here, there) = tokio::join!(
            one.keep_heartbeat_days(now, before),
            other.keep_heartbeat_days(now, before)
        );
        here.unwrap();
        there.unwrap();
        // The present day with three to come, and the one that has just ended.
        let first = if round == 0 { 0 } else { -1 };
        let mut days: Vec<String> = (first..4)
            .map(|day| {
                (now + SignedDuration::from_hours(24 * day))
                    .strftime("%Y%m%d")
                    .to_string()
            })
            .collect();
        days.push("default".to_owned());
        assert_eq!(partitions(&database).await, days);
    }
    one.close().await;
    other.close().await;
}

#[tokio::test]
async fn heartbeats_of_no_day_are_kept_all_the_same() {
    let database = PostgresDatabase::create().await;
    let store = database.open().await;
    store.keep_heartbeat_days(at(0), NEVER).await.unwrap();
    // A clock that runs ahead, and is set right.
    beat(&store, [900_000, 0, 1, 240, 2]).await;
    assert_eq!(rows_in(&database, "device_heartbeats_default").await, 4);
    let all = [2, 240, 1, 0, 900_000];
    assert_eq!(hours(&store, None).await, all);
    index(&store).await;
    assert_eq!(hours(&store, None).await, all);
    beat(&store, [3]).await;
    index(&store).await;
    // The day of which some has no place in a partition gets none, and those after it do.
    store.keep_heartbeat_days(at(241), at(0)).await.unwrap();
    let made = [
        "21000101", "21000102", "21000103", "21000104", "21000112", "21000113", "21000114",
        "default",
    ];
    assert_eq!(partitions(&database).await, made);
    beat(&store, [241]).await;
    assert_eq!(rows_in(&database, "device_heartbeats_default").await, 6);
    assert_eq!(hours(&store, None).await, [241, 3, 2, 240, 1, 0, 900_000]);
    // It goes with its segment.
    assert_eq!(prune(&store, at(900_001), at(900_100)).await, 2);
    assert_eq!(hours(&store, None).await, [241]);
    store.close().await;
}

#[tokio::test]
async fn what_has_no_day_goes_with_its_segment() {
    let database = PostgresDatabase::create().await;
    let store = database.open().await;
    for hour in [0, 1] {
        beat(&store, [hour]).await;
        index(&store).await;
    }
    assert_eq!(rows_in(&database, "device_heartbeats_default").await, 4);
    assert_eq!(prune(&store, at(1), at(100)).await, 1);
    assert_eq!(rows_in(&database, "device_heartbeats_default").await, 2);
    store.close().await;
}

#[tokio::test]
async fn who_reads_for_long_stops_no_report() {
    let database = PostgresDatabase::create().await;
    let store = database.open().await;
    store.keep_heartbeat_days(at(0), NEVER).await.unwrap();
    let mut reader = PgConnection::connect(database.url()).await.unwrap();
    let mut reads = reader.begin().await.unwrap();
    sqlx::query("SELECT * FROM device_heartbeats")
        .fetch_all(&mut *reads)
        .await
        .unwrap();
    // The dump of a large database, say. The old partition stays, and so does the day to come without one.
    let there = partitions(&database).await;
    let works = async {
        store.keep_heartbeat_days(at(24), at(0)).await.unwrap();
        assert_eq!(partitions(&database).await, there);
        beat(&store, [0, 24, 120]).await;
    };
    tokio::time::timeout(PATIENCE, works)
        .await
        .expect("nobody waits for the reader");
    store.ping().await.unwrap();
    reads.rollback().await.unwrap();
    store.keep_heartbeat_days(at(24), at(0)).await.unwrap();
    let now = [
        "21000101", "21000102", "21000103", "21000104", "21000105", "default",
    ];
    assert_eq!(partitions(&database).await, now);
    reader.close().await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_history_of_before_there_were_days_is_read_and_let_go() {
    let database = PostgresDatabase::create().await;
    let anew = "DROP SCHEMA public CASCADE; CREATE SCHEMA public";
    run_sql(database.url(), anew).await.unwrap();
    let mut conn = PgConnection::connect(database.url()).await.unwrap();
    let steps = Postgres::migrator();
    let steps = steps.iter().filter(|step| step.version < 42).cloned();
    let migrator = Migrator::with_migrations(steps.collect());
    migrator.run_direct(None, &mut conn, false).await.unwrap();
    conn.close().await.unwrap();
    // Long ago, a moment ago, and by a clock that was wrong; one that was taken back has drawn a number.
    let insert = |times: &str| {
        format!(
            "INSERT INTO device_heartbeats (device_key, received_at, payload) \
             SELECT {}, CAST(at AS BIGINT), n FROM (VALUES {times}) v (at, n)",
            DEVICE.0
        )
    };
    let rows = insert(&format!(
        "(0, '-3'), (EXTRACT(EPOCH FROM NOW()) * 1000000, '-2'), ({}, '-1')",
        at(0).as_microsecond()
    ));
    run_sql(database.url(), &rows).await.unwrap();
    let taken_back = format!("BEGIN; {}; ROLLBACK", insert("(0, '0')"));
    run_sql(database.url(), &taken_back).await.unwrap();

    let store = database.open().await;
    assert_eq!(partitions(&database).await, ["default", "initial"]);
    assert_eq!(hours(&store, None).await, [-1, -2, -3]);
    assert_eq!(rows_in(&database, "device_heartbeats_default").await, 1);
    assert_eq!(
        rows_in(
            &database,
            "(SELECT nextval('device_heartbeats_number_seq') AS n) s WHERE n = 5"
        )
        .await,
        1
    );
    index(&store).await;
    beat(&store, [1]).await;
    assert_eq!(hours(&store, None).await, [1, -1, -2, -3]);
    store.keep_heartbeat_days(at(24), at(0)).await.unwrap();
    assert_eq!(hours(&store, None).await, [1, -1]);
    index(&store).await;
    assert_eq!(prune(&store, at(2), at(30)).await, 2);
    assert_eq!(hours(&store, None).await, [0; 0]);
    store.close().await;
}
