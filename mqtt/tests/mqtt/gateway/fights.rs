//! Two clients that both believe to be the device.

use device_ota_engine::Rate;
use device_ota_mqtt::Limits;
use device_ota_mqtt::codec::Version;

use super::is_served;
use crate::service::WithGateway;
use crate::wire::{BOTH, Connect};

#[tokio::test]
async fn a_fight_over_one_id_is_bounded() {
    let limits = Limits {
        connect: Rate::per_minute(20),
        ..Limits::default()
    };
    let gateway = WithGateway::start(limits).await;
    let secret = gateway.service.register("d1").await;
    let other_secret = gateway.service.register("d2").await;
    let (mut inside, mut refused) = (None, 0);
    for version in BOTH.into_iter().cycle().take(100) {
        let connect = Connect::new(version, "d1", &secret);
        let mut client = gateway.client(&connect.bytes()).await;
        let connack = client.next().await.unwrap();
        match (connack[3], version) {
            (0, _) => inside = Some((client, version)),
            (3, Version::V3) | (0x9f, Version::V5) => {
                refused += 1;
                client.ends().await;
            }
            _ => panic!("{connack:?}"),
        }
    }
    assert!(refused >= 70, "{refused}");
    let counted = gateway.service.counted("mqtt_refused", "connect_rate");
    assert_eq!(counted, refused);
    // Whoever was let in last stays, and others are not concerned.
    let (mut device, version) = inside.unwrap();
    is_served(&mut device, version, "d1").await;
    let mut other = gateway.device(Version::V5, "d2", &other_secret).await;
    is_served(&mut other, Version::V5, "d2").await;
    assert!(gateway.service.device("d1").await.latest.online);
    assert_eq!(gateway.sessions.connected(), 2);
    drop(device);
    gateway.service.until("d1", |d| !d.latest.online).await;
    assert_eq!(gateway.sessions.connected(), 1);
    gateway.service.stop().await;
}

#[tokio::test]
async fn a_wrong_password_does_not_spend_the_devices_own_connections() {
    let limits = Limits {
        connect: Rate::per_minute(1),
        ..Limits::default()
    };
    let gateway = WithGateway::start(limits).await;
    let secret = gateway.service.register("d1").await;
    for _ in 0..5 {
        let connect = Connect::new(Version::V3, "d1", "wrong");
        let mut client = gateway.client(&connect.bytes()).await;
        assert_eq!(client.next().await, Some(vec![0x20, 2, 0, 4]));
    }
    let mut device = gateway.device(Version::V3, "d1", &secret).await;
    is_served(&mut device, Version::V3, "d1").await;
    gateway.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_is_right_after_a_fight() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let fighter = async |version| {
        let mut clients = Vec::new();
        for _ in 0..60 {
            clients.push(gateway.device(version, "d1", &secret).await);
        }
        clients
    };
    let (mut old, mut new) = tokio::join!(fighter(Version::V3), fighter(Version::V5));
    let mut device = gateway.device(Version::V3, "d1", &secret).await;
    for loser in old.iter_mut().chain(&mut new) {
        while loser.next().await.is_some() {}
    }
    is_served(&mut device, Version::V3, "d1").await;
    assert!(gateway.service.device("d1").await.latest.online);
    assert_eq!(gateway.sessions.connected(), 1);
    drop(device);
    gateway.service.until("d1", |d| !d.latest.online).await;
    assert_eq!(gateway.sessions.connected(), 0);
    gateway.service.stop().await;
}
