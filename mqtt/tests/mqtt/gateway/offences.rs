//! What a device may not say, each ending its own session and no other; and what is odd, but allowed.

use device_ota_mqtt::Limits;
use device_ota_mqtt::codec::Version;

use super::{heartbeat, is_served};
use crate::service::WithGateway;
use crate::wire::{self, BOTH, Connect, packet, string};

/// What, the bytes, and how the session ends.
type Case = (&'static str, Vec<u8>, Ends);

/// Reason code of 5, and label.
type Ends = (u8, &'static str);

const MALFORMED: Ends = (0x81, "malformed");
const UNEXPECTED: Ends = (0x82, "unexpected");
const TOO_LARGE: Ends = (0x95, "too_large");

const TOPIC: &str = "ota/v1/d1/up/heartbeat";

fn of_both(version: Version, secret: &str) -> Vec<Case> {
    let publish = |topic: &[u8]| {
        let properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        packet(0x30, &[&string(topic), properties].concat())
    };
    let with_flags = |first| wire::publish_with(version, first, 1, TOPIC, b"{}");
    let beyond = wire::publish(version, 1, TOPIC, &vec![b' '; 17 * 1024 + 1]);
    let no_filter = wire::subscribe(version, 1, &[("", 0)]);
    let auth = if version == Version::V5 {
        UNEXPECTED
    } else {
        MALFORMED
    };
    vec![
        ("type 0", vec![0, 0], MALFORMED),
        ("a ping with flags", vec![0xc1, 0], MALFORMED),
        ("a ping with a body", vec![0xc0, 1, 0], MALFORMED),
        ("a PUBACK with flags", vec![0x41, 2, 0, 1], MALFORMED),
        ("a PUBACK of nothing", vec![0x40, 2, 0, 0], MALFORMED),
        ("a good-bye with flags", vec![0xe1, 0], MALFORMED),
        (
            "SUBSCRIBE without its flags",
            packet(0x80, &[0, 1]),
            MALFORMED,
        ),
        (
            "SUBSCRIBE to nothing",
            wire::subscribe(version, 1, &[]),
            MALFORMED,
        ),
        (
            "SUBSCRIBE without a packet id",
            packet(0x82, &[0, 0]),
            MALFORMED,
        ),
        ("an empty filter", no_filter, MALFORMED),
        (
            "UNSUBSCRIBE from nothing",
            wire::unsubscribe(version, 1, &[]),
            MALFORMED,
        ),
        (
            "a length of five bytes",
            vec![0x30, 0x80, 0x80, 0x80, 0x80, 1],
            MALFORMED,
        ),
        (
            "a length not in its shortest form",
            vec![0xc0, 0x80, 0],
            MALFORMED,
        ),
        (
            "the largest length",
            vec![0x30, 0xff, 0xff, 0xff, 0x7f],
            TOO_LARGE,
        ),
        ("a packet beyond the maximum", beyond, TOO_LARGE),
        (
            "a topic of 65,535 bytes",
            publish(&vec![b'a'; 65_535]),
            TOO_LARGE,
        ),
        (
            "a topic beyond its packet",
            packet(0x30, &[0xff, 0xff, b'a']),
            MALFORMED,
        ),
        ("no topic", publish(b""), MALFORMED),
        ("a topic with NUL", publish(b"ota/v1/d1/up/\0"), MALFORMED),
        (
            "a topic with a wildcard",
            publish(b"ota/v1/d1/up/#"),
            MALFORMED,
        ),
        (
            "a surrogate in a topic",
            publish(b"ota/\xed\xa0\x80"),
            MALFORMED,
        ),
        ("an overlong character", publish(b"ota/\xc0\x80"), MALFORMED),
        ("half a character", publish(b"ota/\xe2\x82"), MALFORMED),
        ("QoS 2", with_flags(0x34), (0x9b, "qos2")),
        ("QoS 3", with_flags(0x36), MALFORMED),
        ("QoS 0, repeated", with_flags(0x38), MALFORMED),
        (
            "packet id 0",
            wire::publish_with(version, 0x32, 0, TOPIC, b"{}"),
            MALFORMED,
        ),
        ("a step of QoS 2", vec![0x62, 2, 0, 1], UNEXPECTED),
        ("AUTH", vec![0xf0, 0], auth),
        ("what only servers say", vec![0xd0, 0], UNEXPECTED),
        (
            "a second CONNECT",
            Connect::new(version, "d1", secret).bytes(),
            UNEXPECTED,
        ),
    ]
}

fn of_5() -> Vec<Case> {
    let publish = |properties: &[u8]| packet(0x30, &[&string(TOPIC), properties].concat());
    let identified = [&[0, 1, 2, 11, 7][..], &string("ota/v1/d1/down/#"), &[1]].concat();
    vec![
        ("a property twice", publish(&[4, 1, 0, 1, 0]), MALFORMED),
        (
            "a property of CONNECT",
            publish(&[5, 17, 0, 0, 0, 9]),
            MALFORMED,
        ),
        ("a property that is none", publish(&[2, 0x7e, 0]), MALFORMED),
        (
            "properties beyond the packet",
            publish(&[9, 1, 0]),
            MALFORMED,
        ),
        ("a format that is none", publish(&[2, 1, 2]), MALFORMED),
        (
            "a topic alias",
            publish(&[3, 35, 0, 1]),
            (0x94, "topic_alias"),
        ),
        (
            "a subscription identifier",
            packet(0x82, &identified),
            (0xa1, "subscription_id"),
        ),
        (
            "retained",
            wire::publish_with(Version::V5, 0x31, 0, TOPIC, b"{}"),
            (0x9a, "retained"),
        ),
        (
            "a PUBACK for no known reason",
            vec![0x40, 3, 0, 1, 5],
            MALFORMED,
        ),
        (
            "a good-bye for no known reason",
            vec![0xe0, 1, 0x7f],
            MALFORMED,
        ),
        ("AUTH in full", vec![0xf0, 2, 0x18, 0], UNEXPECTED),
    ]
}

#[tokio::test]
async fn an_offence_ends_its_session_and_no_other() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let witness_secret = gateway.service.register("witness").await;
    let mut witness = gateway
        .device(Version::V5, "witness", &witness_secret)
        .await;
    for version in BOTH {
        let mut cases = of_both(version, &secret);
        if version == Version::V5 {
            cases.extend(of_5());
        }
        for (what, bytes, (reason, label)) in cases {
            let before = gateway.service.counted("mqtt_disconnected", label);
            let mut device = gateway.device(version, "d1", &secret).await;
            // What was said before the offence counts.
            device.send(&heartbeat(version, 0, "d1", what)).await;
            device.send(&bytes).await;
            let told = (version == Version::V5).then(|| wire::disconnect(reason));
            assert_eq!(device.next().await, told, "{what}, {version:?}");
            assert_eq!(device.next().await, None, "{what}, {version:?}");
            let counted = gateway.service.counted("mqtt_disconnected", label);
            assert_eq!(counted, before + 1, "{what}, {version:?}");
        }
    }
    is_served(&mut witness, Version::V5, "witness").await;
    gateway.service.until("d1", |d| !d.latest.online).await;
    gateway.service.stop().await;
}

#[tokio::test]
async fn a_foreign_topic_is_refused_whatever_it_looks_like() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let long = "x/".repeat(8 * 1024);
    let topics = [
        "ota/v1/d2/up/heartbeat",
        "ota/v1/d1/down/offer",
        "ota/v1/d1/up",
        "$SYS/broker",
        "/",
        "\u{feff}ota/v1/d1/up/heartbeat",
        "ota/v1/d1\u{1}/up/heartbeat",
        "é",
        "ota/v1/d1/úp/heartbeat",
        "\u{1f4a5}",
        &long,
    ];
    let mut new = gateway.device(Version::V5, "d1", &secret).await;
    for (pid, topic) in (1..).zip(topics) {
        new.send(&wire::publish(Version::V5, pid, topic, b"{}"))
            .await;
        let refused = wire::puback_with(pid, 0x87);
        assert_eq!(new.next().await, Some(refused), "{topic}");
    }
    is_served(&mut new, Version::V5, "d1").await;
    for (ended, topic) in (1..).zip(topics) {
        let mut old = gateway.device(Version::V3, "d1", &secret).await;
        old.send(&wire::publish(Version::V3, 1, topic, b"{}")).await;
        old.ends().await;
        let counted = gateway
            .service
            .counted("mqtt_disconnected", "not_authorized");
        assert_eq!(counted, ended, "{topic}");
    }
    gateway.service.stop().await;
}

#[tokio::test]
async fn a_packet_id_used_again_is_answered_again() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    for version in BOTH {
        let mut device = gateway.device(version, "d1", &secret).await;
        let payload = br#"{"version":"1.0.0"}"#;
        let first = wire::publish(version, 5, TOPIC, payload);
        let repeated = wire::publish_with(version, 0x3a, 5, TOPIC, payload);
        device
            .send(&[first, repeated.clone(), repeated].concat())
            .await;
        for _ in 0..3 {
            assert_eq!(device.next().await, Some(wire::puback(5)));
        }
    }
    assert_eq!(gateway.service.heartbeats().await, 6);
    gateway.service.stop().await;
}
