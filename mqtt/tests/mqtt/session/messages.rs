//! Subscriptions, and messages to the device.

use device_ota_mqtt::codec::{QoS, Version};
use device_ota_mqtt::limits::{Limits, MAX_FILTERS, MAX_INFLIGHT_DOWN};
use device_ota_mqtt::session::{End, NoteKind};
use device_ota_protocol::topics::Down;

use super::Device;
use crate::wire::{self, BOTH};

#[test]
fn a_device_subscribes_below_its_own_down_and_nowhere_else() {
    let filters = [
        ("ota/v1/d1/down/#", 2),
        ("ota/v1/d1/down/offer", 0),
        ("ota/v1/+/down/#", 1),
        ("#", 0),
        ("ota/v1/d2/down/offer", 1),
        ("$share/g/ota/v1/d1/down/#", 1),
    ];
    let mut device = Device::new(Version::V3);
    device
        .send(&wire::subscribe(Version::V3, 5, &filters))
        .unwrap();
    let codes = [1, 0, 0x80, 0x80, 0x80, 0x80];
    assert_eq!(device.answers(), [wire::suback(Version::V3, 5, &codes)]);
    let mut device = Device::new(Version::V5);
    device
        .send(&wire::subscribe(Version::V5, 5, &filters))
        .unwrap();
    let codes = [1, 0, 0x87, 0x87, 0x87, 0x9e];
    assert_eq!(device.answers(), [wire::suback(Version::V5, 5, &codes)]);
    assert_eq!(device.notes(), [(NoteKind::SubscribeRefused, true)]);
}

#[test]
fn a_subscription_identifier_ends_the_session() {
    let mut body = vec![0, 1, 2, 11, 7];
    body.extend(wire::string("ota/v1/d1/down/#"));
    body.push(1);
    let end = Device::new(Version::V5).send(&wire::packet(0x82, &body));
    assert_eq!(end, Err(End::SubscriptionId));
    assert_eq!(
        End::SubscriptionId.reason().map(|reason| reason as u8),
        Some(0xa1)
    );
}

#[test]
fn filters_are_counted() {
    let topics: Vec<String> = (0..=MAX_FILTERS)
        .map(|n| format!("ota/v1/d1/down/chunk/{n}/+"))
        .collect();
    let filters: Vec<(&str, u8)> = topics.iter().map(|topic| (topic.as_str(), 0)).collect();
    let mut device = Device::new(Version::V5);
    device
        .send(&wire::subscribe(Version::V5, 1, &filters))
        .unwrap();
    let mut codes = vec![0; MAX_FILTERS];
    codes.push(0x97);
    assert_eq!(device.answers(), [wire::suback(Version::V5, 1, &codes)]);
}

const KINDS: [Down; 4] = [
    Down::Offer,
    Down::Command,
    Down::Reply,
    Down::Chunk {
        request: 17,
        offset: 0,
    },
];

fn taken_kinds(device: &Device) -> [bool; 4] {
    KINDS.map(|kind| device.session.subscribed().takes(&kind))
}

#[test]
fn a_message_goes_only_where_it_was_asked_for() {
    let cases: &[(&str, [bool; 4])] = &[
        ("#", [true, true, true, true]),
        ("+", [true, true, true, false]),
        ("reply", [false, false, true, false]),
        ("chunk/#", [false, false, false, true]),
        ("chunk/17/+", [false, false, false, true]),
        ("+/+/0", [false, false, false, true]),
        ("chunk/x/+", [false, false, false, false]),
        ("chunk", [false, false, false, false]),
        ("chunk/+/+/+", [false, false, false, false]),
    ];
    for version in BOTH {
        for (tail, expected) in cases {
            let filter = format!("ota/v1/d1/down/{tail}");
            let mut device = Device::new(version);
            assert_eq!(taken_kinds(&device), [false; 4]);
            device
                .send(&wire::subscribe(version, 1, &[(&filter, 1)]))
                .unwrap();
            assert_eq!(taken_kinds(&device), *expected, "{tail}");
            device.answers();
            for (kind, expected) in KINDS.into_iter().zip(expected) {
                device.down(kind, b"x");
                assert_eq!(
                    device.answers().len(),
                    usize::from(*expected),
                    "{tail} {kind}"
                );
            }
            device
                .send(&wire::unsubscribe(
                    version,
                    2,
                    &[&filter, "ota/v1/d1/down/x", "#"],
                ))
                .unwrap();
            assert_eq!(taken_kinds(&device), [false; 4], "{tail}");
            let expected = match version {
                Version::V3 => wire::packet(0xb0, &[0, 2]),
                Version::V5 => wire::packet(0xb0, &[0, 2, 0, 0, 0x11, 0x11]),
            };
            assert_eq!(device.answers(), [expected]);
        }
    }
}

#[test]
fn some_chunks_are_not_all_chunks() {
    let mut device = Device::new(Version::V3);
    device
        .send(&wire::subscribe(
            Version::V3,
            1,
            &[("ota/v1/d1/down/chunk/17/+", 0)],
        ))
        .unwrap();
    device.answers();
    device.down(
        Down::Chunk {
            request: 18,
            offset: 0,
        },
        b"x",
    );
    assert!(device.answers().is_empty());
    device.down(
        Down::Chunk {
            request: 17,
            offset: 5,
        },
        b"x",
    );
    let expected = wire::publish(Version::V3, 0, "ota/v1/d1/down/chunk/17/5", b"x");
    assert_eq!(device.answers(), [expected]);
}

#[test]
fn messages_to_a_device_wait_for_its_acknowledgements() {
    for version in BOTH {
        let mut device = Device::with(
            version,
            &Limits::default(),
            if version == Version::V5 {
                &[33, 0, 2]
            } else {
                &[]
            },
        );
        device
            .send(&wire::subscribe(version, 1, &[("ota/v1/d1/down/#", 1)]))
            .unwrap();
        device.answers();
        let window = if version == Version::V5 {
            2
        } else {
            MAX_INFLIGHT_DOWN
        };
        for pid in 1..=window {
            assert!(device.session.may_send(&Down::Offer));
            device.down(Down::Offer, b"o");
            let expected = wire::publish(version, pid, "ota/v1/d1/down/offer", b"o");
            assert_eq!(device.answers(), [expected]);
        }
        assert!(!device.session.may_send(&Down::Reply));
        assert!(device.session.may_send(&KINDS[3]));
        device.send(&wire::puback(99)).unwrap();
        assert!(!device.session.may_send(&Down::Reply));
        device.send(&wire::puback(2)).unwrap();
        assert!(device.session.may_send(&Down::Reply));
    }
}

#[test]
fn a_message_larger_than_the_device_takes_is_not_sent() {
    let mut device = Device::with(Version::V5, &Limits::default(), &[39, 0, 0, 0, 64]);
    device
        .send(&wire::subscribe(Version::V5, 1, &[("ota/v1/d1/down/#", 1)]))
        .unwrap();
    device.answers();
    device.down(Down::Offer, &[b' '; 64]);
    assert!(device.answers().is_empty());
    assert_eq!(device.notes(), [(NoteKind::DownTooLarge, true)]);
    device.down(Down::Offer, b"ok");
    assert_eq!(device.answers().len(), 1);
}

#[test]
fn qos_0_is_asked_for_and_given() {
    let mut device = Device::new(Version::V5);
    device
        .send(&wire::subscribe(Version::V5, 1, &[("ota/v1/d1/down/#", 0)]))
        .unwrap();
    device.answers();
    device.down(Down::Offer, b"o");
    assert_eq!(
        device.answers(),
        [wire::publish(Version::V5, 0, "ota/v1/d1/down/offer", b"o")]
    );
    assert_eq!(QoS::Level0 as u8, 0);
}
