//! Devices that say far too much: each pays with its own time.

use std::time::Duration;

use device_ota_mqtt::Limits;
use device_ota_mqtt::codec::Version;
use device_ota_mqtt::limits::MAX_FILTERS;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use super::{heartbeat, is_served};
use crate::service::WithGateway;
use crate::wire::{self, BOTH, PINGREQ, PINGRESP};

/// Packets that lead to nothing, a second and at once.
const IDLE_PACKETS: u64 = 1_000;

#[tokio::test]
async fn a_flood_of_pings_is_answered_slower() {
    let gateway = WithGateway::start(Limits::default()).await;
    let (s1, s2) = (
        gateway.service.register("d1").await,
        gateway.service.register("d2").await,
    );
    let mut flood = gateway.device(Version::V3, "d1", &s1).await;
    let mut other = gateway.device(Version::V5, "d2", &s2).await;
    let began = Instant::now();
    flood.send(&PINGREQ.repeat(3_000)).await;
    for _ in 0..3_000 {
        assert_eq!(flood.next().await, Some(PINGRESP.to_vec()));
    }
    is_served(&mut other, Version::V5, "d2").await;
    flood.send(&PINGREQ).await;
    assert_eq!(flood.next().await, Some(PINGRESP.to_vec()));
    // A thousand are free, and each other one costs a millisecond.
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    gateway.service.stop().await;
}

#[tokio::test]
async fn a_device_beyond_its_rate_takes_no_more_than_its_share() {
    let gateway = WithGateway::start(Limits::default()).await;
    let quiet = gateway.service.register("quiet").await;
    let began = Instant::now();
    let mut floods = Vec::new();
    for (id, version, pid) in [
        ("f1", Version::V3, 0),
        ("f2", Version::V3, 1),
        ("f3", Version::V5, 0),
        ("f4", Version::V5, 1),
    ] {
        let secret = gateway.service.register(id).await;
        let mut flood = gateway.device(version, id, &secret).await;
        let piece = heartbeat(version, pid, id, "1.0.0").repeat(1_000);
        floods.push(tokio::spawn(async move {
            // It never reads either.
            while flood.stream.write_all(&piece).await.is_ok() {}
        }));
    }
    let over_rate = |at_least| {
        gateway
            .service
            .until_counted("mqtt_dropped", "over_rate", at_least)
    };
    over_rate(4 * IDLE_PACKETS).await;
    let mut device = gateway.device(Version::V5, "quiet", &quiet).await;
    for _ in 0..50 {
        is_served(&mut device, Version::V5, "quiet").await;
    }
    over_rate(8 * IDLE_PACKETS).await;
    let dropped = gateway.service.counted("mqtt_dropped", "over_rate");
    // What was free, what was paid for, and what one turn may overdraw.
    let paid = IDLE_PACKETS * (began.elapsed().as_secs() + 3);
    assert!(dropped <= 4 * paid, "{dropped} in {:?}", began.elapsed());
    for flood in floods {
        flood.abort();
    }
    assert!(gateway.service.heartbeats().await <= 50 + 4 * 200);
    gateway.service.stop().await;
}

#[tokio::test]
async fn subscriptions_by_the_thousand_leave_a_handful() {
    let gateway = WithGateway::start(Limits::default()).await;
    let topics: Vec<String> = (0..400)
        .map(|n| format!("ota/v1/d1/down/chunk/{n}/+"))
        .collect();
    let filters: Vec<(&str, u8)> = topics.iter().map(|topic| (topic.as_str(), 0)).collect();
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    let secret = gateway.service.register("d1").await;
    for (version, no_room, no_such) in [(Version::V3, 0x80, 0), (Version::V5, 0x97, 0x11)] {
        let mut device = gateway.device(version, "d1", &secret).await;
        for round in 1..=2 {
            device
                .send(&wire::subscribe(version, round, &filters))
                .await;
            let mut codes = vec![0; MAX_FILTERS];
            codes.resize(filters.len(), no_room);
            let expected = wire::suback(version, round, &codes);
            assert_eq!(device.next().await, Some(expected));
            device
                .send(&wire::unsubscribe(version, round, &names))
                .await;
            let mut codes = vec![0; MAX_FILTERS];
            codes.resize(filters.len(), no_such);
            let expected = match version {
                Version::V3 => wire::packet(0xb0, &round.to_be_bytes()),
                Version::V5 => {
                    let mut body = round.to_be_bytes().to_vec();
                    body.push(0);
                    body.extend(codes);
                    wire::packet(0xb0, &body)
                }
            };
            assert_eq!(device.next().await, Some(expected));
        }
        is_served(&mut device, version, "d1").await;
    }
    gateway.service.stop().await;
}

#[tokio::test]
async fn acknowledgements_of_nothing_are_nothing() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    for version in BOTH {
        let mut device = gateway.device(version, "d1", &secret).await;
        let pubacks: Vec<u8> = (1..=900).flat_map(wire::puback).collect();
        device.send(&pubacks).await;
        is_served(&mut device, version, "d1").await;
    }
    gateway.service.stop().await;
}
