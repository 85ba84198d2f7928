//! From a report to its acknowledgement.

use device_ota_engine::inbound::Uplink;
use device_ota_engine::ports::Store as _;
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;

use crate::fixture::{Acked, Fixture, report};

#[tokio::test]
async fn a_report_is_acknowledged_after_its_commit_and_not_before() {
    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    let elsewhere = fixture.database.open().await;
    let lock = elsewhere.begin().await.unwrap(); // nobody else can write while this lives

    let mut acked = fixture
        .submit(&device, report(Up::Heartbeat, r#"{"version":"1.0.0"}"#))
        .await;
    while fixture.engine.uplinks().waiting() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(
        !acked.is_there(),
        "taken from the queue, not in the database, and acknowledged"
    );

    drop(lock);
    acked.wait().await;
    let seen = fixture.engine.device(&device.id).await.unwrap().latest;
    assert_eq!(seen.version.as_deref(), Some("1.0.0"));
    fixture.stop().await;
}

#[tokio::test]
async fn batches_that_follow_each_other_are_acknowledged_in_order() {
    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    let elsewhere = fixture.database.open().await;
    let lock = elsewhere.begin().await.unwrap(); // nobody else can write while this lives

    let mut waiting = Vec::new();
    for n in 0..3 {
        let payload = format!(r#"{{"version":"1.0.{n}"}}"#);
        let uplink = report(Up::Heartbeat, &payload);
        waiting.push(fixture.submit(&device, uplink).await);
        // The first is with the database, the second is ready, and there is no room for more.
        while n < 2 && fixture.engine.uplinks().waiting() > 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(fixture.engine.uplinks().waiting(), 1);
    assert!(!waiting.iter_mut().any(Acked::is_there));

    drop(lock);
    waiting.pop().unwrap().wait().await;
    assert!(waiting.iter_mut().all(Acked::is_there));
    let latest = fixture.engine.device(&device.id).await.unwrap().latest;
    assert_eq!(latest.version.as_deref(), Some("1.0.2"));
    fixture.stop().await;
}

#[tokio::test]
async fn what_was_taken_before_the_end_is_committed() {
    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    let mut waiting = Vec::new();
    for n in 0..500 {
        let payload = format!(r#"{{"version":"1.0.{n}"}}"#);
        waiting.push(
            fixture
                .submit(&device, report(Up::Heartbeat, &payload))
                .await,
        );
    }
    let (engine, id) = (fixture.engine.clone(), device.id.clone());
    fixture.stop().await;
    for acked in waiting {
        acked.wait().await;
    }
    assert_eq!(
        engine.device(&id).await.unwrap().latest.version.as_deref(),
        Some("1.0.499")
    );
}

#[tokio::test]
async fn a_session_that_ended_late_does_not_hide_the_one_that_followed() {
    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture
        .submit(&device, Uplink::Online { session: 2 })
        .await
        .wait()
        .await;
    fixture
        .submit(&device, Uplink::Offline { session: 1 })
        .await
        .wait()
        .await;
    assert!(
        fixture
            .engine
            .device(&device.id)
            .await
            .unwrap()
            .latest
            .online
    );
    fixture
        .submit(&device, Uplink::Offline { session: 2 })
        .await
        .wait()
        .await;
    assert!(
        !fixture
            .engine
            .device(&device.id)
            .await
            .unwrap()
            .latest
            .online
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_device_cannot_report_on_the_update_of_another() {
    let mut fixture = Fixture::new().await;
    let (victim, thief) = (
        fixture.device("victim").await,
        fixture.device("thief").await,
    );
    let campaign = fixture
        .campaign("1.1.0", r#","target_devices":["victim"]"#)
        .await;
    fixture.online(&victim).await;
    let offer = fixture.offer().await;

    fixture
        .progress(&thief, &offer, 9, "completed", r#","version":"1.1.0""#)
        .await;
    assert_eq!(fixture.status(&offer.update_id).await, "offered");
    fixture
        .progress(&victim, &offer, 1, "completed", r#","version":"1.1.0""#)
        .await;
    assert_eq!(fixture.status(&offer.update_id).await, "completed");
    assert_eq!(fixture.counts(&campaign).await.updates().completed, 1);
    fixture.stop().await;
}

#[tokio::test]
async fn an_old_version_is_a_fallback_only_after_the_restart() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.campaign("1.1.0", "").await;
    fixture.online(&device).await;
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "rebooting", "").await;

    // Sent before it went down: it has been up for longer than it has been rebooting.
    fixture
        .publish(
            &device,
            Up::Heartbeat,
            r#"{"version":"1.0.0","uptime_s":5000}"#,
        )
        .await;
    assert_eq!(fixture.status(&offer.update_id).await, "rebooting");

    fixture
        .publish(
            &device,
            Up::Check,
            r#"{"version":"1.0.0","nonce":"n2","reason":"boot"}"#,
        )
        .await;
    assert_eq!(fixture.status(&offer.update_id).await, "failed");
    fixture.stop().await;
}

#[tokio::test]
async fn a_heartbeat_shows_the_fallback_even_to_a_process_that_was_not_there() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.campaign("1.1.0", r#","max_retries":0"#).await;
    fixture.online(&device).await;
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "rebooting", "").await;

    // It connects, and its check is lost: the heartbeat is all that shows it.
    fixture.restart().await;
    let uplink = Uplink::Online { session: i64::MAX };
    fixture.submit(&device, uplink).await.wait().await;
    fixture.advance(SignedDuration::from_secs(30));
    fixture
        .publish(
            &device,
            Up::Heartbeat,
            r#"{"version":"1.0.0","uptime_s":10}"#,
        )
        .await;
    assert_eq!(fixture.failure(&offer.update_id).await, "reverted");
    fixture.stop().await;
}

#[tokio::test]
async fn completed_without_a_version_is_a_failure() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    fixture.campaign("1.1.0", r#","max_retries":0"#).await;
    fixture.online(&device).await;
    let offer = fixture.offer().await;
    fixture.progress(&device, &offer, 1, "completed", "").await;
    assert_eq!(fixture.failure(&offer.update_id).await, "version_mismatch");
    fixture.stop().await;
}

#[tokio::test]
async fn repeated_and_late_reports_count_once() {
    let mut fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    let campaign = fixture.campaign("1.1.0", "").await;
    fixture.online(&device).await;
    let offer = fixture.offer().await;
    for (seq, phase, more) in [
        (1, "accepted", ""),
        (4, "installing", ""),
        (3, "verifying", ""),
        (4, "failed", r#","error":{"code":"install_failed"}"#),
        (5, "completed", r#","version":"1.1.0""#),
        (5, "completed", r#","version":"1.1.0""#),
        (6, "failed", r#","error":{"code":"install_failed"}"#),
    ] {
        fixture.progress(&device, &offer, seq, phase, more).await;
    }
    let all = fixture.counts(&campaign).await.updates();
    assert_eq!((all.completed, all.total()), (1, 1));
    fixture.stop().await;
}

#[tokio::test]
async fn a_report_that_the_database_never_takes_stops_nobody_behind_it() {
    use sqlx::{Connection as _, Executor as _};

    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    let mut schema = sqlx::SqliteConnection::connect(&fixture.database.url())
        .await
        .unwrap();
    schema
        .execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON device_heartbeats \
             WHEN NEW.payload LIKE '%poison%' BEGIN SELECT RAISE(ABORT, 'refused'); END",
        )
        .await
        .unwrap();
    let elsewhere = fixture.database.open().await;
    let lock = elsewhere.begin().await.unwrap(); // so that all of them come into few batches
    let mut waiting = Vec::new();
    for n in 0..50 {
        let word = if n % 20 == 7 { "poison" } else { "fine" };
        let payload = format!(r#"{{"version":"1.0.{n}","boot_id":"{word}"}}"#);
        waiting.push(
            fixture
                .submit(&device, report(Up::Heartbeat, &payload))
                .await,
        );
    }
    drop(lock);
    for acked in waiting {
        acked.wait().await;
    }
    let latest = fixture.engine.device(&device.id).await.unwrap().latest;
    assert_eq!(latest.version.as_deref(), Some("1.0.49"));
    let dropped = ("reports_ignored", "refused_by_database", 3);
    assert!(fixture.engine.metrics().snapshot().contains(&dropped));
    fixture.stop().await;
}

#[tokio::test]
async fn the_last_heartbeat_leaves_its_telemetry_and_what_it_leaves_out_stays() {
    let fixture = Fixture::new().await;
    let device = fixture.device("d1").await;
    for payload in [
        r#"{"version":"1","battery":{"percent":80,"charging":true},"metrics":{"fan":0.5,"jobs":3},
            "errors":[{"code":"e1"},{"code":"e2","message":"hot","at":"2026-01-02T03:04:05Z","count":4}]}"#,
        r#"{"version":"1"}"#,
    ] {
        let report = report(Up::Heartbeat, payload);
        fixture.submit(&device, report).await.wait().await;
        let seen = fixture.engine.device(&device.id).await.unwrap().latest;
        let told_of_errors = payload.contains("e2");
        assert_eq!(seen.error_count, if told_of_errors { 5 } else { 0 });
        let last = seen.last_error.unwrap();
        assert_eq!(
            (last.code.as_str(), last.message.as_deref()),
            ("e2", Some("hot"))
        );
        assert_eq!(last.at.to_string(), "2026-01-02T03:04:05Z");
        assert_eq!(seen.charging, Some(true));
        let metrics = [("fan".to_owned(), 0.5), ("jobs".to_owned(), 3.0)];
        assert_eq!(seen.metrics, metrics.into());
    }
    fixture.stop().await;
}
