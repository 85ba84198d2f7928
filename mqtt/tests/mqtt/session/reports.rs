//! Reports of a device, and their acknowledgements.

use device_ota_engine::inbound::Uplink;
use device_ota_mqtt::codec::Version;
use device_ota_mqtt::limits::Limits;
use device_ota_mqtt::session::{End, NoteKind};
use proptest::prelude::*;

use super::{Device, HEARTBEAT, VERSION};
use crate::codec;
use crate::wire::{self, BOTH, PINGREQ, PINGRESP};

#[test]
fn a_report_is_acknowledged_when_it_is_committed() {
    for version in BOTH {
        let mut device = Device::new(version);
        device.publish(11, HEARTBEAT, VERSION).unwrap();
        let [(Uplink::Heartbeat(heartbeat, text), Some(token))] = &device.taken()[..] else {
            panic!()
        };
        assert_eq!(heartbeat.version, "1.0.0");
        assert_eq!(text.as_bytes(), VERSION);
        assert_eq!(device.answers(), Vec::<Vec<u8>>::new());
        device.committed(&[*token]);
        assert_eq!(device.answers(), [wire::puback(11)]);
    }
}

#[test]
fn acknowledgements_keep_the_order_of_the_messages() {
    let mut device = Device::new(Version::V5);
    for pid in [3, 9, 4] {
        device.publish(pid, HEARTBEAT, VERSION).unwrap();
    }
    // Decided at once, and still answered in its turn.
    device
        .publish(5, "ota/v1/other/up/heartbeat", VERSION)
        .unwrap();
    let tokens: Vec<u64> = device
        .taken()
        .into_iter()
        .filter_map(|(_, token)| token)
        .collect();
    device.committed(&[tokens[1], tokens[2]]);
    assert_eq!(device.answers(), Vec::<Vec<u8>>::new());
    device.committed(&[tokens[0]]);
    let expected = [
        wire::puback(3),
        wire::puback(9),
        wire::puback(4),
        wire::puback_with(5, 0x87),
    ];
    assert_eq!(device.answers(), expected);
}

#[test]
fn tokens_stay_right_over_many_rounds() {
    let mut device = Device::with(
        Version::V3,
        &Limits {
            heartbeat: None,
            ..Limits::default()
        },
        &[],
    );
    for round in 0..100_u16 {
        let pids: Vec<u16> = (1..=50).map(|n| round * 50 + n).collect();
        for pid in &pids {
            device.publish(*pid, HEARTBEAT, VERSION).unwrap();
        }
        let mut tokens: Vec<u64> = device
            .taken()
            .into_iter()
            .filter_map(|(_, token)| token)
            .collect();
        tokens.reverse();
        for token in tokens {
            device.committed(&[token]);
        }
        assert_eq!(
            device.answers(),
            pids.iter()
                .map(|pid| wire::puback(*pid))
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn beyond_the_receive_maximum_nothing_is_read() {
    let mut device = Device::with(
        Version::V3,
        &Limits {
            receive_maximum: 2,
            ..Limits::default()
        },
        &[],
    );
    let one = wire::publish(Version::V3, 1, HEARTBEAT, VERSION);
    let mut bytes = one.repeat(3);
    bytes.extend(PINGREQ);
    assert_eq!(device.send(&bytes), Ok(2 * one.len()));
    assert!(!device.session.is_open());
    assert_eq!(device.answers(), Vec::<Vec<u8>>::new());
    let (_, token) = device.taken().remove(0);
    device.committed(&[token.unwrap()]);
    assert_eq!(device.send(&bytes[2 * one.len()..]), Ok(one.len()));
    device.committed(&[1, 2]);
    assert_eq!(device.send(&PINGREQ), Ok(2));
    assert_eq!(device.answers().last().unwrap(), &PINGRESP);
}

#[test]
fn qos_2_ends_the_session() {
    for version in BOTH {
        let mut device = Device::new(version);
        let publish = wire::publish_with(version, 0x34, 1, HEARTBEAT, VERSION);
        assert_eq!(device.send(&publish), Err(End::Qos2));
        assert_eq!(
            device.send(&wire::packet(0x62, &[0, 1])),
            Err(End::Unexpected)
        );
    }
    assert_eq!(End::Qos2.reason().map(|reason| reason as u8), Some(0x9b));
}

#[test]
fn a_retained_message_ends_a_session_of_5_and_is_an_ordinary_one_in_3() {
    let retained = |version| wire::publish_with(version, 0x33, 1, HEARTBEAT, VERSION);
    assert_eq!(
        Device::new(Version::V5).send(&retained(Version::V5)),
        Err(End::Retained)
    );
    assert_eq!(
        End::Retained.reason().map(|reason| reason as u8),
        Some(0x9a)
    );
    let mut device = Device::new(Version::V3);
    device.send(&retained(Version::V3)).unwrap();
    device.send(&retained(Version::V3)).unwrap();
    assert_eq!(device.taken().len(), 2);
    let ignored = NoteKind::RetainIgnored;
    assert_eq!(device.notes(), [(ignored, true), (ignored, false)]);
}

#[test]
fn a_device_publishes_below_its_own_up_and_nowhere_else() {
    let foreign = [
        "ota/v1/d2/up/heartbeat",
        "ota/v1/d1/down/offer",
        "ota/v1/d1/up",
        "x",
        "$SYS/x",
        "ota/v1/d1/up/",
    ];
    for topic in foreign {
        let mut device = Device::new(Version::V5);
        device.publish(1, topic, VERSION).unwrap();
        device.publish(0, topic, VERSION).unwrap();
        assert!(device.taken().is_empty(), "{topic}");
        assert_eq!(device.answers(), [wire::puback_with(1, 0x87)], "{topic}");
        let refused = NoteKind::PublishRefused;
        assert_eq!(
            device.notes(),
            [(refused, true), (refused, false)],
            "{topic}"
        );
        assert_eq!(
            Device::new(Version::V3).publish(1, topic, VERSION),
            Err(End::NotAuthorized)
        );
    }
}

#[test]
fn an_invalid_report_is_dropped_and_acknowledged_in_its_turn() {
    let cases: &[(&str, &[u8], &str)] = &[
        (HEARTBEAT, b"{", "not_json"),
        (HEARTBEAT, b"{}", "missing_field"),
        ("ota/v1/d1/up/nonsense", b"{}", "unknown_channel"),
        (HEARTBEAT, &vec![b' '; 16 * 1024 + 1], "too_large"),
    ];
    for (topic, payload, reason) in cases {
        let mut device = Device::new(Version::V3);
        device.publish(1, topic, payload).unwrap();
        device.publish(2, HEARTBEAT, VERSION).unwrap();
        assert!(matches!(
            device.taken()[..],
            [
                (Uplink::Discarded, Some(0)),
                (Uplink::Heartbeat(..), Some(1))
            ]
        ));
        assert_eq!(device.notes(), [(NoteKind::Invalid(reason), true)]);
        device.committed(&[0, 1]);
        assert_eq!(device.answers(), [wire::puback(1), wire::puback(2)]);
        device.publish(0, topic, payload).unwrap();
        assert!(device.taken().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a device sends, its session answers in whole packets, hands on only what it may, and does not panic.
    #[test]
    fn a_session_survives_its_device(
        packets in prop::collection::vec(
            (prop::sample::select(codec::seeds()), prop::collection::vec(codec::mutation(), 0..3)),
            1..12,
        ),
        commits in prop::collection::vec(any::<u64>(), 0..12),
    ) {
        for version in BOTH {
            let mut device = Device::new(version);
            let mut commits = commits.iter();
            for (seed, mutations) in &packets {
                let mut bytes = codec::mutate(seed.clone(), mutations.clone());
                bytes.extend(wire::publish(version, 3, HEARTBEAT, VERSION));
                let Ok(used) = device.send(&bytes) else { break };
                prop_assert!(used <= bytes.len());
                if let Some(bits) = commits.next() {
                    device.session.committed(*bits, &mut device.reaction.out);
                }
            }
            device.answers();
        }
    }
}
