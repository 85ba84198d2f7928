//! The session as a machine: bytes in, bytes and messages for the engine out.

use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use device_ota_domain::DeviceKey;
use device_ota_engine::Rate;
use device_ota_engine::inbound::Uplink;
use device_ota_mqtt::codec::{QoS, Refusal, Version, read_connect};
use device_ota_mqtt::limits::{Limits, MAX_CONNECT, MAX_FILTERS, MAX_INFLIGHT_DOWN};
use device_ota_mqtt::session::{
    End, NoteKind, RateLimits, Reaction, Rules, Session, admit, consume,
};
use device_ota_protocol::messages::Report;
use device_ota_protocol::topics::{Down, Prefix};
use governor::clock::FakeRelativeClock;
use proptest::prelude::*;

use crate::codec;
use crate::wire::{self, BOTH, Connect, PINGREQ, PINGRESP, split};

const HEARTBEAT: &str = "ota/v1/d1/up/heartbeat";
const PROGRESS: &str = "ota/v1/d1/up/progress";
const VERSION: &[u8] = br#"{"version":"1.0.0"}"#;

struct Device {
    session: Session,
    version: Version,
    prefix: Prefix,
    rates: RateLimits<FakeRelativeClock>,
    clock: FakeRelativeClock,
    reaction: Reaction,
}

impl Device {
    fn new(version: Version) -> Self {
        Self::with(version, &Limits::default(), &[])
    }

    fn with(version: Version, limits: &Limits, properties: &[u8]) -> Self {
        let connect = Connect {
            properties,
            ..Connect::new(version, "d1", "s")
        }
        .bytes();
        let (connect, _) = read_connect(&connect, MAX_CONNECT).unwrap().unwrap();
        let prefix = Prefix::default();
        let admission = admit(&connect, &prefix, limits).unwrap();
        let clock = FakeRelativeClock::default();
        Self {
            session: Session::new(&admission, DeviceKey(7)),
            version,
            prefix,
            rates: RateLimits::new(limits, clock.clone()),
            clock,
            reaction: Reaction::default(),
        }
    }

    /// Sends bytes; how many were used.
    fn send(&mut self, bytes: &[u8]) -> Result<usize, End> {
        self.reaction.pause = None;
        let rules = Rules {
            prefix: &self.prefix,
            meter: &self.rates,
        };
        consume(&mut self.session, bytes, rules, &mut self.reaction)
    }

    fn publish(&mut self, pid: u16, topic: &str, payload: &[u8]) -> Result<usize, End> {
        self.send(&wire::publish(self.version, pid, topic, payload))
    }

    fn committed(&mut self, tokens: &[u64]) {
        let bits = tokens
            .iter()
            .fold(0, |bits, token| bits | 1 << (token % 64));
        self.session.committed(bits, &mut self.reaction.out);
    }

    fn down(&mut self, to: Down, payload: &'static [u8]) {
        let payload = Bytes::from_static(payload);
        self.session
            .send(&to, payload, &self.prefix, &mut self.reaction);
    }

    /// What the device was sent since the last call.
    fn answers(&mut self) -> Vec<Vec<u8>> {
        split(&std::mem::take(&mut self.reaction.out))
    }

    fn taken(&mut self) -> Vec<(Uplink, Option<u64>)> {
        self.reaction
            .taken
            .drain(..)
            .map(|taken| (taken.uplink, taken.token))
            .collect()
    }

    fn notes(&mut self) -> Vec<(NoteKind, bool)> {
        self.reaction
            .notes
            .drain(..)
            .map(|note| (note.kind, note.first))
            .collect()
    }
}

#[test]
fn a_report_is_acknowledged_when_it_is_committed() {
    for version in BOTH {
        let mut device = Device::new(version);
        device.publish(11, HEARTBEAT, VERSION).unwrap();
        let [(Uplink::Report(report, bytes), Some(token))] = &device.taken()[..] else {
            panic!()
        };
        assert!(matches!(&**report, Report::Heartbeat(heartbeat) if heartbeat.version == "1.0.0"));
        assert_eq!(&bytes[..], VERSION);
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
            [(Uplink::Discarded, Some(0)), (Uplink::Report(..), Some(1))]
        ));
        assert_eq!(device.notes(), [(NoteKind::Invalid(reason), true)]);
        device.committed(&[0, 1]);
        assert_eq!(device.answers(), [wire::puback(1), wire::puback(2)]);
        device.publish(0, topic, payload).unwrap();
        assert!(device.taken().is_empty());
    }
}

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
    let mut device = Device::with(Version::V5, &Limits::default(), &[39, 0, 0, 0, 32]);
    device
        .send(&wire::subscribe(Version::V5, 1, &[("ota/v1/d1/down/#", 1)]))
        .unwrap();
    device.answers();
    device.down(Down::Offer, b"much more than fits");
    assert!(device.answers().is_empty());
    assert_eq!(device.notes(), [(NoteKind::DownTooLarge, true)]);
    device.down(Down::Offer, b"ok");
    assert_eq!(device.answers().len(), 1);
}

#[test]
fn heartbeats_beyond_the_rate_are_dropped_and_progress_never_is() {
    let limits = Limits {
        heartbeat: Rate::per_minute(2),
        report: Some(Rate {
            count: NonZeroU32::MIN,
            per: Duration::from_secs(1),
        }),
        ..Limits::default()
    };
    for version in BOTH {
        let mut device = Device::with(version, &limits, &[]);
        for pid in 1..=3 {
            device.publish(pid, HEARTBEAT, VERSION).unwrap();
        }
        device.publish(0, HEARTBEAT, VERSION).unwrap();
        assert_eq!(device.taken().len(), 2);
        assert_eq!(
            device.notes(),
            [(NoteKind::OverRate, true), (NoteKind::OverRate, false)]
        );
        device.committed(&[0, 1]);
        let over = if version == Version::V5 {
            wire::puback_with(3, 0x97)
        } else {
            wire::puback(3)
        };
        assert_eq!(device.answers(), [wire::puback(1), wire::puback(2), over]);
        device.clock.advance(Duration::from_secs(30));
        device.publish(4, HEARTBEAT, VERSION).unwrap();
        assert_eq!(device.taken().len(), 1);

        let progress =
            br#"{"update_id":"upd_0123456789abcdef","attempt":1,"seq":1,"phase":"accepted"}"#;
        let one = wire::publish(version, 5, PROGRESS, progress);
        // The second is taken, and the third not read for as long as the rate says.
        assert_eq!(device.send(&one.repeat(3)), Ok(2 * one.len()));
        assert_eq!(device.taken().len(), 2);
        assert_eq!(device.reaction.pause, Some(Duration::from_secs(1)));
    }
}

#[test]
fn connecting_again_does_not_reset_the_rate() {
    let limits = Limits {
        heartbeat: Rate::per_minute(1),
        ..Limits::default()
    };
    let mut first = Device::with(Version::V3, &limits, &[]);
    first.publish(1, HEARTBEAT, VERSION).unwrap();
    let second = Device::with(Version::V3, &limits, &[]);
    first.session = second.session;
    first.taken();
    first.publish(2, HEARTBEAT, VERSION).unwrap();
    assert!(first.taken().is_empty());
}

#[test]
fn pings_are_answered_and_a_good_bye_ends_the_session() {
    for version in BOTH {
        let mut device = Device::new(version);
        device.send(&PINGREQ).unwrap();
        assert_eq!(device.answers(), [PINGRESP]);
        assert_eq!(device.send(&[0xe0, 0]), Err(End::Disconnected));
    }
    // 5: with the will, please. It makes no difference: an end is told in any case.
    assert_eq!(
        Device::new(Version::V5).send(&[0xe0, 1, 4]),
        Err(End::Disconnected)
    );
}

fn admission(connect: &Connect<'_>) -> Result<(Duration, Option<u16>), Refusal> {
    let (connect, _) = read_connect(&connect.bytes(), MAX_CONNECT)
        .unwrap()
        .unwrap();
    let admission = admit(&connect, &Prefix::default(), &Limits::default())?;
    Ok((admission.silence, admission.offered.keep_alive))
}

#[test]
fn who_may_come_in() {
    for version in BOTH {
        let good = Connect::new(version, "d1", "s");
        let status = "ota/v1/d1/up/status";
        let with_will = |topic, qos, retain| Connect {
            will: Some((topic, qos, retain)),
            ..good.clone()
        };
        assert!(admission(&good).is_ok());
        assert!(admission(&with_will(status, 1, false)).is_ok());
        let retained = if version == Version::V5 {
            Err(Refusal::WillRetained)
        } else {
            Ok(())
        };
        let cases: &[(Connect<'_>, Result<(), Refusal>)] = &[
            (with_will(status, 1, true), retained),
            (with_will(status, 2, false), Err(Refusal::WillQos)),
            (
                with_will("ota/v1/d2/up/status", 1, false),
                Err(Refusal::WillNotAuthorized),
            ),
            (
                with_will("ota/v1/d1/up/progress", 1, false),
                Err(Refusal::WillNotAuthorized),
            ),
            (
                Connect {
                    user: None,
                    password: None,
                    ..good.clone()
                },
                Err(Refusal::BadCredentials),
            ),
            (
                Connect {
                    password: None,
                    ..good.clone()
                },
                Err(Refusal::BadCredentials),
            ),
            (
                Connect {
                    user: Some("a/b"),
                    ..good.clone()
                },
                Err(Refusal::BadCredentials),
            ),
            (
                Connect {
                    client_id: "d2",
                    ..good.clone()
                },
                Err(Refusal::ClientId),
            ),
            (
                Connect {
                    client_id: "",
                    ..good.clone()
                },
                Err(Refusal::ClientId),
            ),
        ];
        for (connect, expected) in cases {
            assert_eq!(admission(connect).map(|_| ()), *expected, "{version:?}");
        }
    }
    let method = Connect {
        properties: &[21, 0, 1, b'x'],
        ..Connect::new(Version::V5, "d1", "s")
    };
    assert_eq!(admission(&method), Err(Refusal::AuthenticationMethod));
}

#[test]
fn how_long_a_device_may_be_silent() {
    let silence = |version, keep_alive| {
        let connect = Connect {
            keep_alive,
            ..Connect::new(version, "d1", "s")
        };
        admission(&connect).unwrap()
    };
    let seconds = Duration::from_secs;
    assert_eq!(silence(Version::V3, 60), (seconds(90), None));
    assert_eq!(silence(Version::V5, 60), (seconds(90), None));
    assert_eq!(silence(Version::V5, 0), (seconds(900), Some(600)));
    assert_eq!(silence(Version::V5, 5000), (seconds(900), Some(600)));
    // 3.1.1 cannot be told, so it keeps what it asked for; never is not something to ask for.
    assert_eq!(silence(Version::V3, 0).0, seconds(900));
    assert_eq!(silence(Version::V3, 5000).0, seconds(7500));
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
