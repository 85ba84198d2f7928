//! A defect of our own, met by one connection.

use device_ota_mqtt::Limits;
use device_ota_mqtt::codec::Version;

use super::{heartbeat, is_served};
use crate::service::WithGateway;
use crate::wire::{Connect, PINGREQ, PINGRESP};

#[tokio::test]
async fn a_panic_ends_one_connection_and_no_other() {
    // While the engine's loops do not run, only the gateway asks for the time.
    let mut gateway = WithGateway::idle(Limits::default()).await;
    let mut secrets = Vec::new();
    for id in ["d1", "d2"] {
        secrets.push(gateway.service.register(id).await);
    }
    let version = Version::V3;
    let mut unlucky = gateway.device(version, "d1", &secrets[0]).await;
    let mut other = gateway.device(version, "d2", &secrets[1]).await;
    gateway.service.clock.break_once();
    unlucky.send(&heartbeat(version, 1, "d1", "1.0.0")).await;
    unlucky.ends().await;
    let counted = gateway.service.counted("mqtt_connection", "panicked");
    assert_eq!(counted, 1);
    other.send(&PINGREQ).await;
    assert_eq!(other.next().await, Some(PINGRESP.to_vec()));

    gateway.service.run();
    gateway.service.until("d1", |d| !d.latest.online).await;
    assert_eq!(gateway.sessions.connected(), 1);
    is_served(&mut other, version, "d2").await;
    let mut again = gateway.device(version, "d1", &secrets[0]).await;
    is_served(&mut again, version, "d1").await;
    assert!(gateway.service.device("d1").await.latest.online);
    gateway.service.stop().await;
}

#[tokio::test]
async fn a_panic_while_a_device_is_let_in_gives_its_place_back() {
    let limits = Limits {
        max_unauthenticated: 1,
        ..Limits::default()
    };
    let gateway = WithGateway::idle(limits).await;
    // All stay: one that left would meet the next defect.
    let mut inside = Vec::new();
    for id in ["d1", "d2", "d3"] {
        let secret = gateway.service.register(id).await;
        let connect = Connect::new(Version::V5, id, &secret);
        gateway.service.clock.break_once();
        let mut unlucky = gateway.client(&connect.bytes()).await;
        unlucky.ends().await;
        inside.push(gateway.admitted(&connect).await);
    }
    for device in &mut inside {
        device.send(&PINGREQ).await;
        assert_eq!(device.next().await, Some(PINGRESP.to_vec()));
    }
    let counted = gateway.service.counted("mqtt_connection", "panicked");
    assert_eq!(counted, 3);
    gateway.service.stop().await;
}
