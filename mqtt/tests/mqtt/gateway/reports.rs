//! Reports: in the database first, then acknowledged, and no faster than the database takes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use device_ota_engine::inbound::QUEUE_MESSAGES;
use device_ota_mqtt::Limits;
use device_ota_mqtt::codec::Version;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::heartbeat;
use crate::service::{PATIENCE, WithGateway};
use crate::wire;

#[tokio::test]
async fn a_report_is_in_the_database_before_it_is_acknowledged() {
    let gateway = WithGateway::start(Limits::default()).await;
    for (version, id) in [(Version::V3, "old"), (Version::V5, "new")] {
        let secret = gateway.service.register(id).await;
        let mut device = gateway.device(version, id, &secret).await;
        for pid in 1..=20 {
            let running = format!("1.0.{pid}");
            device.send(&heartbeat(version, pid, id, &running)).await;
            assert_eq!(device.next().await, Some(wire::puback(pid)));
            let latest = gateway.service.device(id).await.latest;
            assert_eq!(latest.version, Some(running));
            assert!(latest.online);
        }
    }
    gateway.service.stop().await;
}

#[tokio::test]
async fn many_reports_in_one_go_are_acknowledged_in_order() {
    let limits = Limits {
        heartbeat: None,
        ..Limits::default()
    };
    let gateway = WithGateway::start(limits).await;
    let secret = gateway.service.register("d1").await;
    let mut device = gateway.device(Version::V3, "d1", &secret).await;
    // Far more than may be unacknowledged: the rest waits unread.
    let bytes: Vec<u8> = (1..=2_000)
        .flat_map(|pid| heartbeat(Version::V3, pid, "d1", "2.0.0"))
        .collect();
    device.send(&bytes).await;
    for pid in 1..=2_000 {
        assert_eq!(device.next().await, Some(wire::puback(pid)));
    }
    gateway.service.stop().await;
}

#[tokio::test]
async fn while_nothing_is_committed_sockets_are_not_read() {
    let limits = Limits {
        heartbeat: None,
        ..Limits::default()
    };
    let mut gateway = WithGateway::idle(limits).await;
    let secret = gateway.service.register("d1").await;
    let device = gateway.device(Version::V3, "d1", &secret).await;
    let (mut reader, mut writer) = device.stream.into_split();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let sending = tokio::spawn(async move {
        // More than the queue and the system's buffers hold together.
        let piece = heartbeat(Version::V3, 0, "d1", "1.0.0").repeat(1_000);
        for _ in 0..300 {
            writer.write_all(&piece).await.unwrap();
            counter.fetch_add(1_000, Ordering::Relaxed);
        }
        writer
            .write_all(&heartbeat(Version::V3, 1, "d1", "2.0.0"))
            .await
            .unwrap();
        writer
    });
    let engine = gateway.service.engine.clone();
    let full = async {
        while engine.uplinks().waiting() < QUEUE_MESSAGES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Full, and it stays so: what is sent no longer grows.
        let mut before = 0;
        while sent.load(Ordering::Relaxed) > before {
            before = sent.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(PATIENCE, full)
        .await
        .expect("the queue never fills");
    assert!(
        sent.load(Ordering::Relaxed) < 300_000,
        "it was read all the same"
    );
    gateway.service.run();
    let mut puback = [0; 4];
    tokio::time::timeout(Duration::from_mins(1), reader.read_exact(&mut puback))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(puback.to_vec(), wire::puback(1));
    drop(sending.await.unwrap());
    assert_eq!(gateway.service.heartbeats().await, 300_001);
    gateway.service.stop().await;
}
