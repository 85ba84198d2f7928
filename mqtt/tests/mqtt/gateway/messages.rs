//! Messages to devices, also to those that do not read or do not acknowledge.

use std::time::Duration;

use bytes::Bytes;
use device_ota_engine::ports::{Delivery, Downlink as _};
use device_ota_mqtt::Limits;
use device_ota_mqtt::codec::Version;
use device_ota_mqtt::limits::{MAX_MAIL, RESERVED_MAIL};
use device_ota_protocol::topics::Down;

use crate::service::{PATIENCE, WithGateway, device_id};
use crate::wire::{self, BOTH, Connect};

#[tokio::test]
async fn messages_reach_the_device_that_asked_for_them() {
    let gateway = WithGateway::start(Limits::default()).await;
    for version in BOTH {
        let name = if version == Version::V3 { "d1" } else { "d5" };
        let secret = gateway.service.register(name).await;
        let send = |to: Down| gateway.send(name, to, b"hello");
        assert_eq!(send(Down::Offer).await, Delivery::NotConnected);
        let mut device = gateway.device(version, name, &secret).await;
        assert_eq!(send(Down::Offer).await, Delivery::NotConnected);
        let filter = format!("ota/v1/{name}/down/offer");
        device
            .send(&wire::subscribe(version, 9, &[(&filter, 1)]))
            .await;
        assert_eq!(device.next().await, Some(wire::suback(version, 9, &[1])));
        assert_eq!(send(Down::Reply).await, Delivery::NotConnected);
        assert_eq!(send(Down::Offer).await, Delivery::Queued);
        assert_eq!(
            device.next().await,
            Some(wire::publish(version, 1, &filter, b"hello"))
        );
    }
    gateway.service.stop().await;
}

/// Fills what the system and the gateway hold for a device that does not read.
async fn stall(gateway: &WithGateway, id: &str) {
    let chunk = Bytes::from(vec![7; 64 * 1024]);
    let stalled = async {
        let mut offset = 0;
        let mut busy = 0;
        while busy < 20 {
            let to = Down::Chunk { request: 1, offset };
            match gateway
                .sessions
                .send(&device_id(id), &to, chunk.clone())
                .await
            {
                Delivery::Queued => (offset, busy) = (offset + 1, 0),
                Delivery::Busy => {
                    busy += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Delivery::NotConnected => panic!("gone"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, stalled)
        .await
        .expect("never busy");
}

#[tokio::test]
async fn a_device_that_does_not_read_harms_nobody_else() {
    let limits = Limits {
        write_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let gateway = WithGateway::start(limits).await;
    let (s1, s2) = (
        gateway.service.register("d1").await,
        gateway.service.register("d2").await,
    );
    // Its keep-alive ends first; but that it is not heard is our doing, since nothing more is read from it.
    let connect = Connect {
        keep_alive: 1,
        ..Connect::new(Version::V3, "d1", &s1)
    };
    let mut stalled = gateway.admitted(&connect).await;
    stalled.subscribe(Version::V3, "d1").await;
    let mut other = gateway.subscribed(Version::V3, "d2", &s2).await;
    stall(&gateway, "d1").await;
    // Room is kept for what matters more than chunks.
    let kinds = [Down::Offer, Down::Reply, Down::Command];
    let mut queued = 0;
    for to in kinds.into_iter().cycle() {
        match gateway.send("d1", to, b"{}").await {
            Delivery::Queued => queued += 1,
            Delivery::Busy => break,
            Delivery::NotConnected => panic!("gone"),
        }
    }
    assert!((RESERVED_MAIL..=MAX_MAIL).contains(&queued), "{queued}");
    let offer = gateway.send("d2", Down::Offer, b"o").await;
    assert_eq!(offer, Delivery::Queued);
    assert_eq!(other.next().await.map(|publish| publish[0]), Some(0x32));
    gateway.service.until("d1", |d| !d.latest.online).await;
    assert_eq!(gateway.service.counted("mqtt_disconnected", "stalled"), 1);
    assert!(gateway.service.device("d2").await.latest.online);
    drop(stalled);
    gateway.service.stop().await;
}

#[tokio::test]
async fn mail_for_a_device_is_bounded() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let mut device = gateway.subscribed(Version::V3, "d1", &secret).await;
    // It never acknowledges: the first go out, the others wait, the last find no room.
    let mut queued = 0;
    loop {
        let sent = gateway.send("d1", Down::Offer, b"o").await;
        if sent == Delivery::Busy {
            break;
        }
        queued += 1;
        assert!(queued <= MAX_MAIL + 16, "no bound");
        if queued <= 16 {
            assert!(device.next().await.is_some());
        }
    }
    assert_eq!(queued, MAX_MAIL + 16);
    assert_eq!(RESERVED_MAIL, 16);
    for pid in 1..=16 {
        device.send(&wire::puback(pid)).await;
        assert!(device.next().await.is_some());
    }
    gateway.service.stop().await;
}

#[tokio::test]
async fn nothing_larger_than_a_device_takes_is_sent() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let connect = Connect {
        properties: &[39, 0, 0, 0, 64],
        ..Connect::new(Version::V5, "d1", &secret)
    };
    let version = Version::V5;
    let mut device = gateway.admitted(&connect).await;
    device.subscribe(version, "d1").await;
    // Three bytes of header, the topic with its length, a packet id and no properties: 27, and the payload.
    let (fits, too_large) = (b"{}", &[b' '; 38]);
    gateway.send("d1", Down::Offer, too_large).await;
    gateway.send("d1", Down::Offer, fits).await;
    let publish = device.next().await.unwrap();
    assert!(publish.len() <= 64);
    assert!(publish.ends_with(fits));
    let counted = gateway.service.counted("mqtt_dropped", "down_too_large");
    assert_eq!(counted, 1);
    // Neither is an answer; and who cannot be answered is told so.
    let filters = vec![("ota/v1/d1/down/offer", 1); 60];
    device.send(&wire::subscribe(version, 2, &filters)).await;
    assert_eq!(device.next().await, Some(wire::disconnect(0x95)));
    device.ends().await;
    gateway.service.stop().await;
}
