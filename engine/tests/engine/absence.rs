//! Devices that stay away are told of: once, after the grace, and only by a service that has listened.

use device_ota_engine::inbound::{DeviceRef, Uplink};
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;
use sqlx::{Connection as _, Executor as _};

use crate::fixture::{Fixture, alone, tester};

/// As the settings of the fixture have it.
const GRACE: SignedDuration = SignedDuration::from_mins(5);

impl Fixture {
    /// Of whom it was told that they are away, in order.
    async fn absences(&self) -> Vec<String> {
        let events = self.store.events_after(0, 1_000).await.unwrap();
        let away = events.iter().filter(|e| e.event_type == "device.offline");
        away.map(|e| e.entity.clone()).collect()
    }

    fn counted(&self, name: &str) -> u64 {
        let all = self.engine.metrics().snapshot();
        all.iter()
            .filter(|(known, ..)| *known == name)
            .map(|(_, _, count)| count)
            .sum()
    }

    async fn leaves(&self, device: &DeviceRef) {
        let session = self.engine.clock().now().as_microsecond();
        self.ends(device, session).await;
    }

    async fn ends(&self, device: &DeviceRef, session: i64) {
        self.submit(device, Uplink::Offline { session })
            .await
            .wait()
            .await;
    }
}

#[tokio::test]
async fn an_absence_is_told_once_and_the_next_one_again() {
    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.device("never-there").await;
    fixture.pass(GRACE).await;
    fixture.online(&device).await;
    fixture.pass(GRACE * 2).await;
    assert!(fixture.absences().await.is_empty(), "it is connected");
    let session = fixture.engine.clock().now().as_microsecond();
    fixture.ends(&device, session).await;
    fixture.pass(GRACE - SignedDuration::from_secs(1)).await;
    assert!(fixture.absences().await.is_empty());
    fixture.pass(SignedDuration::from_secs(2)).await;
    assert_eq!(fixture.absences().await, ["d1"]);
    // A second good-bye of the same session is no second absence, nor is a broker's late last will.
    fixture.ends(&device, session).await;
    fixture.leaves(&device).await;
    fixture.pass(GRACE * 3).await;
    assert_eq!(fixture.absences().await, ["d1"]);
    fixture.online(&device).await;
    fixture.leaves(&device).await;
    fixture.pass(GRACE * 2).await;
    assert_eq!(fixture.absences().await, ["d1", "d1"]);
    fixture.stop().await;
}

#[tokio::test]
async fn nobody_is_missed_before_the_service_has_listened() {
    let fixture = Fixture::new().await;
    let [gone, back] = [fixture.device("gone").await, fixture.device("back").await];
    for device in [&gone, &back] {
        fixture.online(device).await;
    }
    fixture.pass(GRACE).await;
    fixture.leaves(&gone).await;
    // Nobody looks for a day; then the service starts.
    fixture.advance(SignedDuration::from_hours(24));
    fixture.engine.join(alone()).await.unwrap();
    fixture.pass(GRACE - SignedDuration::from_secs(1)).await;
    assert!(fixture.absences().await.is_empty());
    fixture.online(&back).await;
    fixture.pass(GRACE * 2).await;
    assert_eq!(fixture.absences().await, ["gone"]);
    fixture.stop().await;
}

#[tokio::test]
async fn who_is_heard_otherwise_or_was_deleted_is_not_missed() {
    let fixture = Fixture::new().await;
    let [heard, deleted] = [
        fixture.device("heard").await,
        fixture.device("deleted").await,
    ];
    fixture.pass(GRACE).await;
    for device in [&heard, &deleted] {
        fixture.online(device).await;
        fixture.leaves(device).await;
    }
    fixture
        .engine
        .delete_device(&deleted.id, None, &tester())
        .await
        .unwrap();
    for _ in 0..4 {
        fixture.pass(GRACE / 2).await;
        let heartbeat = r#"{"version":"1.0.0"}"#;
        fixture.publish(&heard, Up::Heartbeat, heartbeat).await;
    }
    assert!(fixture.absences().await.is_empty());
    fixture.pass(GRACE * 2).await;
    assert_eq!(fixture.absences().await, ["heard"]);
    fixture.stop().await;
}

#[tokio::test]
async fn nobody_is_missed_whom_the_service_could_not_hear() {
    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.pass(GRACE).await;
    fixture.online(&device).await;
    fixture.leaves(&device).await;
    // The broker cannot be reached for a while, and then for long.
    fixture.pass(GRACE / 2).await;
    fixture.engine.hears(false);
    fixture.pass(GRACE / 4).await;
    fixture.engine.hears(true);
    fixture.pass(GRACE / 2).await;
    fixture.engine.hears(false);
    fixture.pass(GRACE * 3).await;
    fixture.engine.hears(true);
    fixture.pass(GRACE - SignedDuration::from_secs(1)).await;
    assert!(fixture.absences().await.is_empty(), "it may be back");
    fixture.pass(SignedDuration::from_secs(2)).await;
    assert_eq!(fixture.absences().await, ["d1"]);
    fixture.stop().await;
}

#[tokio::test]
async fn nobody_is_missed_whose_return_waited_for_the_database() {
    let fixture = Fixture::new().await;
    let [gone, back] = [fixture.device("gone").await, fixture.device("back").await];
    fixture.pass(GRACE).await;
    for device in [&gone, &back] {
        fixture.online(device).await;
        fixture.leaves(device).await;
    }
    fixture.pass(GRACE / 2).await;
    // It returns while the database does not take what it says.
    let mut database = sqlx::SqliteConnection::connect(&fixture.database.url())
        .await
        .unwrap();
    let [away, back_again] = [("device_latest", "away"), ("away", "device_latest")]
        .map(|(from, to)| format!("ALTER TABLE {from} RENAME TO {to}"));
    database.execute(sqlx::AssertSqlSafe(away)).await.unwrap();
    let session = fixture.engine.clock().now().as_microsecond();
    let returned = fixture.submit(&back, Uplink::Online { session }).await;
    while fixture.counted("ingest_retries") == 0 {
        tokio::task::yield_now().await;
    }
    // A pass before it is tried again finds it away for too long, and the other one, too.
    fixture.advance(GRACE * 3 / 4);
    database
        .execute(sqlx::AssertSqlSafe(back_again))
        .await
        .unwrap();
    fixture.engine.keep_time().await.unwrap();
    assert!(fixture.absences().await.is_empty(), "it may be back");
    returned.wait().await;
    fixture.pass(GRACE * 2).await;
    assert_eq!(fixture.absences().await, ["gone"]);
    fixture.stop().await;
}
