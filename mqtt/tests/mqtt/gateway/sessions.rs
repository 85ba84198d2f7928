//! The life of a session: presence, take-over, and how it ends without anybody's fault.

use std::time::Duration;

use device_ota_domain::device::Device;
use device_ota_engine::ports::{Delivery, Downlink as _};
use device_ota_mqtt::Limits;
use device_ota_mqtt::codec::Version;
use device_ota_protocol::topics::Down;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::heartbeat;
use crate::service::{Client, PATIENCE, WithGateway, device_id};
use crate::wire::{self, BOTH, Connect, PINGREQ, PINGRESP};

#[tokio::test]
async fn presence_follows_the_connection() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    for version in BOTH {
        let mut device = gateway.device(version, "d1", &secret).await;
        gateway.service.until("d1", |d| d.latest.online).await;
        device.send(&[0xe0, 0]).await;
        device.ends().await;
        gateway.service.until("d1", |d| !d.latest.online).await;
        // Without a word, too.
        let device = gateway.device(version, "d1", &secret).await;
        gateway.service.until("d1", |d| d.latest.online).await;
        drop(device);
        gateway.service.until("d1", |d| !d.latest.online).await;
    }
    assert_eq!(gateway.sessions.connected(), 0);
    gateway.service.stop().await;
}

#[tokio::test]
async fn the_second_connection_of_a_device_ends_the_first() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let mut first = gateway.device(Version::V5, "d1", &secret).await;
    let mut second = gateway.device(Version::V3, "d1", &secret).await;
    assert_eq!(first.next().await, Some(wire::disconnect(0x8e)));
    first.ends().await;
    let mut third = gateway.subscribed(Version::V5, "d1", &secret).await;
    second.ends().await;
    // The end of the first must not be taken for the end of the last.
    third.send(&heartbeat(Version::V5, 1, "d1", "1.0.0")).await;
    assert_eq!(third.next().await, Some(wire::puback(1)));
    assert!(gateway.service.device("d1").await.latest.online);
    assert_eq!(gateway.sessions.connected(), 1);
    let sent = gateway.send("d1", Down::Offer, b"o").await;
    assert_eq!(sent, Delivery::Queued);
    assert!(third.next().await.is_some());
    gateway.service.stop().await;
}

#[tokio::test]
async fn new_credentials_end_the_session() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let mut device = gateway.device(Version::V5, "d1", &secret).await;
    gateway.sessions.disconnect(&device_id("d1")).await;
    assert_eq!(device.next().await, Some(wire::disconnect(0x98)));
    device.ends().await;
    gateway.service.stop().await;
}

#[tokio::test]
async fn a_device_that_falls_silent_is_let_go() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let connect = Connect {
        keep_alive: 1,
        ..Connect::new(Version::V5, "d1", &secret)
    };
    let mut device = gateway.client(&connect.bytes()).await;
    assert_eq!(device.next().await.map(|connack| connack[0]), Some(0x20));
    device.send(&PINGREQ).await;
    assert_eq!(device.next().await, Some(PINGRESP.to_vec()));
    let heard = Instant::now();
    assert_eq!(device.next().await, Some(wire::disconnect(0x8d)));
    assert!(
        heard.elapsed() >= Duration::from_millis(1_400),
        "{:?}",
        heard.elapsed()
    );
    gateway.service.until("d1", |d| !d.latest.online).await;
    gateway.service.stop().await;
}

#[tokio::test]
async fn a_packet_that_never_ends_is_silence() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let connect = Connect {
        keep_alive: 1,
        ..Connect::new(Version::V5, "d1", &secret)
    };
    let device = gateway.admitted(&connect).await;
    let (mut reader, mut writer) = device.stream.into_split();
    let drip = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(50));
        // Most of it never comes; what does, comes all the time.
        let _ = writer.write_all(&[0x30, 0x80, 0x40]).await;
        while writer.write_all(b"x").await.is_ok() {
            pace.tick().await;
        }
    });
    let mut said = Vec::new();
    let read = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut said));
    read.await.expect("it is never let go").unwrap();
    assert_eq!(said, wire::disconnect(0x8d));
    drop(reader);
    drip.abort();
    gateway.service.until("d1", |d| !d.latest.online).await;
    gateway.service.stop().await;
}

#[tokio::test]
async fn at_shutdown_devices_are_told() {
    let gateway = WithGateway::start(Limits::default()).await;
    let (s1, s2) = (
        gateway.service.register("d1").await,
        gateway.service.register("d2").await,
    );
    let mut new = gateway.device(Version::V5, "d1", &s1).await;
    let mut old = gateway.device(Version::V3, "d2", &s2).await;
    let stranger: Client = gateway.client(b"\x10").await;
    let stop = tokio::spawn(gateway.service.stop());
    assert_eq!(new.next().await, Some(wire::disconnect(0x8b)));
    new.ends().await;
    old.ends().await;
    drop((new, old, stranger));
    stop.await.unwrap();
}

#[tokio::test]
async fn a_half_closed_connection_has_said_all_it_will() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    for (version, running) in [(Version::V3, "1.0.0"), (Version::V5, "2.0.0")] {
        let mut device = gateway.device(version, "d1", &secret).await;
        device.send(&heartbeat(version, 1, "d1", running)).await;
        device.stream.shutdown().await.unwrap();
        while device.next().await.is_some() {}
        let said = |d: &Device| d.latest.version.as_deref() == Some(running) && !d.latest.online;
        gateway.service.until("d1", said).await;
    }
    assert_eq!(gateway.sessions.connected(), 0);
    gateway.service.stop().await;
}
