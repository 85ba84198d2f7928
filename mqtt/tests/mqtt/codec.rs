//! The reader against bytes from strangers.

use device_ota_mqtt::codec::{
    CodecError, Packet, Pid, Version, asked_version, read_connect, read_packet,
};
use device_ota_mqtt::limits::{MAX_CONNECT, MAX_PACKET};
use proptest::prelude::*;

use crate::wire::{self, BOTH, Connect, packet, string};

fn concat(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// One well-formed body of every packet there is, of both versions, also those that only servers send.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn seeds() -> Vec<(u8, Vec<u8>)> {
    let user = concat(&[&[38], &string("k"), &string("v")]);
    let properties = |parts: &[&[u8]]| packet(0, &parts.concat())[1..].to_vec();
    let connect = properties(&[
        &[
            17, 0, 0, 1, 0, 33, 0, 9, 39, 0, 0, 255, 255, 34, 0, 9, 25, 1, 23, 1,
        ],
        &user,
    ]);
    let will = properties(&[
        &[24, 0, 0, 0, 1, 1, 1, 2, 0, 0, 0, 9, 3],
        &string("t"),
        &[8],
        &string("r"),
        &user,
    ]);
    let message = properties(&[
        &[1, 1, 2, 0, 0, 0, 9, 8],
        &string("r/t"),
        &[9],
        &string("cd"),
        &user,
    ]);
    let reason = properties(&[&[31], &string("why"), &user]);
    let mut seeds = vec![
        (
            0x10,
            concat(&[
                &string("MQTT"),
                &[4, 0xc6, 0, 60],
                &string("d"),
                &string("w/t"),
                &string("x"),
                &string("u"),
                &string("p"),
            ]),
        ),
        (
            0x10,
            concat(&[&string("MQTT"), &[4, 2, 0, 60], &string("d")]),
        ),
        (
            0x10,
            concat(&[
                &string("MQTT"),
                &[5, 0xee, 0, 60],
                &connect,
                &string("d"),
                &will,
                &string("w/t"),
                &string("x"),
                &string("u"),
                &string("p"),
            ]),
        ),
        (0x30, concat(&[&string("ota/v1/x"), b"payload"])),
        (0x32, concat(&[&string("ota/v1/x"), &[0, 7], b"payload"])),
        (0x34, concat(&[&string("ota/v1/x"), &[0, 7], b"payload"])),
        (
            0x32,
            concat(&[&string("ota/v1/x"), &[0, 7], &message, b"payload"]),
        ),
        (0x30, concat(&[&string("ota/v1/x"), &message, b"payload"])),
        (
            0x82,
            concat(&[&[0, 9], &string("a/+"), &[1], &string("b/#"), &[0]]),
        ),
        (
            0x82,
            concat(&[
                &[0, 9],
                &properties(&[&[11, 0x80, 1], &user]),
                &string("$share/g/a/+"),
                &[0x2d],
            ]),
        ),
        (0xa2, concat(&[&[0, 9], &string("a/+"), &string("b")])),
        (
            0xa2,
            concat(&[&[0, 9], &properties(&[&user]), &string("a/+")]),
        ),
        (0xc0, vec![]),
        (0xd0, vec![]),
        (0xe0, vec![]),
        (0xe0, concat(&[&[4], &reason])),
        (
            0xf0,
            concat(&[
                &[0x18],
                &properties(&[&[21], &string("m"), &[22], &string("d")]),
            ]),
        ),
        (0x20, vec![0, 0]),
        (
            0x20,
            concat(&[
                &[0, 0],
                &properties(&[&[33, 0, 9, 36, 1, 37, 0, 18], &string("id")]),
            ]),
        ),
        (0x90, vec![0, 9, 0, 1]),
        (0xb0, vec![0, 9]),
        (0xb0, concat(&[&[0, 9], &properties(&[&user]), &[0]])),
    ];
    for first in [0x40, 0x50, 0x62, 0x70] {
        seeds.push((first, vec![0, 7]));
        seeds.push((first, vec![0, 7, 0x10]));
        seeds.push((first, concat(&[&[0, 7, 0], &reason])));
    }
    seeds
}

#[derive(Debug, Clone)]
pub(crate) enum Mutation {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, prop::sample::Index),
    First(u8),
    CutPacket(prop::sample::Index),
    SetLength(u8),
}

pub(crate) fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<prop::sample::Index>;
    let telling = prop::sample::select(vec![0, 1, 0x7f, 0x80, 0xff, 11, 38, 5, 4]);
    prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (index(), telling).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (index(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        index().prop_map(Mutation::Cut),
        (index(), prop::collection::vec(any::<u8>(), 1..5))
            .prop_map(|(at, b)| Mutation::Insert(at, b)),
        (index(), index()).prop_map(|(from, to)| Mutation::Repeat(from, to)),
        any::<u8>().prop_map(Mutation::First),
        index().prop_map(Mutation::CutPacket),
        any::<u8>().prop_map(Mutation::SetLength),
    ]
}

pub(crate) fn mutate((mut first, mut body): (u8, Vec<u8>), mutations: Vec<Mutation>) -> Vec<u8> {
    let (mut cut, mut length) = (None, None);
    for mutation in mutations {
        match mutation {
            Mutation::First(byte) => first = byte,
            Mutation::CutPacket(at) => cut = Some(at),
            Mutation::SetLength(byte) => length = Some(byte),
            Mutation::Insert(at, bytes) => {
                let at = at.index(body.len() + 1);
                body.splice(at..at, bytes);
            }
            _ if body.is_empty() => {}
            Mutation::Set(at, byte) => *at.get_mut(&mut body) = byte,
            Mutation::Flip(at, bit) => *at.get_mut(&mut body) ^= 1 << bit,
            Mutation::Cut(at) => body.truncate(at.index(body.len())),
            Mutation::Repeat(from, to) => {
                let from = from.index(body.len());
                let again = body[from..from + to.index(body.len() - from)].to_vec();
                body.splice(from..from, again);
            }
        }
    }
    let mut bytes = packet(first, &body);
    if let Some(length) = length {
        bytes[1] = length;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// No bytes make the reader panic, and what it says of a packet's length is true: within the bytes, and the same
    /// however many bytes follow.
    #[test]
    fn the_reader_survives_strangers(
        seed in prop::sample::select(seeds()),
        mutations in prop::collection::vec(mutation(), 0..6),
        after in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let bytes = mutate(seed, mutations);
        let more = [bytes.as_slice(), &after].concat();
        for version in BOTH {
            if let Ok(Some((packet, used))) = read_packet(version, &bytes, MAX_PACKET) {
                prop_assert!(used <= bytes.len());
                prop_assert_eq!(read_packet(version, &more, MAX_PACKET), Ok(Some((packet, used))));
            }
        }
        if let Ok(Some((connect, used))) = read_connect(&bytes, MAX_CONNECT) {
            prop_assert!(used <= bytes.len());
            prop_assert_eq!(read_connect(&more, MAX_CONNECT), Ok(Some((connect, used))));
        }
    }

    /// A packet that comes byte by byte is the same packet, and nothing is said of it before it is whole.
    #[test]
    fn a_packet_in_pieces_is_the_same(seed in prop::sample::select(seeds())) {
        let bytes = packet(seed.0, &seed.1);
        for version in BOTH {
            let Ok(Some(whole)) = read_packet(version, &bytes, MAX_PACKET) else { continue };
            for length in 0..bytes.len() {
                prop_assert_eq!(read_packet(version, &bytes[..length], MAX_PACKET), Ok(None));
            }
            prop_assert_eq!(whole.1, bytes.len());
        }
    }

    /// Pure noise.
    #[test]
    fn the_reader_survives_noise(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        for version in BOTH {
            let _ = read_packet(version, &bytes, MAX_PACKET);
        }
        let _ = read_connect(&bytes, MAX_CONNECT);
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_breaks_the_standard_is_refused() {
    let connect = |level: u8, flags: u8, rest: &[&[u8]]| {
        packet(
            0x10,
            &concat(&[&string("MQTT"), &[level, flags, 0, 60], &rest.concat()]),
        )
    };
    let id = string("d");
    let bad_connects: &[(&str, Vec<u8>)] = &[
        ("reserved flag", connect(4, 3, &[&id])),
        ("will qos without a will", connect(4, 0x0a, &[&id])),
        ("will retain without a will", connect(4, 0x22, &[&id])),
        (
            "password without a user",
            connect(4, 0x42, &[&id, &string("p")]),
        ),
        ("bytes after the end", connect(4, 2, &[&id, b"x"])),
        ("client id with NUL", connect(4, 2, &[&string("a\0b")])),
        ("user with NUL", connect(4, 0x82, &[&id, &string("a\0b")])),
        (
            "property beyond its length",
            connect(5, 2, &[&[2, 33], &id]),
        ),
        ("receive maximum 0", connect(5, 2, &[&[3, 33, 0, 0], &id])),
        (
            "maximum packet size 0",
            connect(5, 2, &[&[5, 39, 0, 0, 0, 0], &id]),
        ),
        (
            "property twice",
            connect(5, 2, &[&[6, 33, 0, 9, 33, 0, 9], &id]),
        ),
        (
            "authentication data alone",
            connect(5, 2, &[&[4, 22, 0, 1, 7], &id]),
        ),
    ];
    for (what, bytes) in bad_connects {
        assert_eq!(
            read_connect(bytes, MAX_CONNECT),
            Err(CodecError::Malformed),
            "{what}"
        );
    }
    let with_flags = {
        let mut bytes = connect(4, 2, &[&id]);
        bytes[0] = 0x11;
        bytes
    };
    assert_eq!(
        read_connect(&with_flags, MAX_CONNECT),
        Err(CodecError::Unexpected)
    );

    let t = string("t");
    let v3 = Version::V3;
    let v5 = Version::V5;
    let alias = packet(0x30, &concat(&[&t, &[3, 35, 0, 1]]));
    assert_eq!(
        read_packet(v5, &alias, MAX_PACKET),
        Err(CodecError::TopicAlias)
    );
    let bad: &[(&str, Version, Vec<u8>)] = &[
        ("topic with a wildcard", v3, packet(0x30, &string("a/+"))),
        ("topic not utf-8", v3, packet(0x30, &string([0xff, 0xfe]))),
        ("no topic", v3, packet(0x30, &string(""))),
        (
            "no topic and no alias",
            v5,
            packet(0x30, &concat(&[&string(""), &[0]])),
        ),
        (
            "subscription id from a client",
            v5,
            packet(0x30, &concat(&[&t, &[2, 11, 1]])),
        ),
        ("qos 3", v3, packet(0x36, &concat(&[&t, &[0, 1]]))),
        ("qos 0 repeated", v3, packet(0x38, &t)),
        ("packet id 0", v3, packet(0x32, &concat(&[&t, &[0, 0]]))),
        (
            "subscribe without its flags",
            v3,
            packet(0x80, &concat(&[&[0, 1], &t, &[0]])),
        ),
        (
            "bad filter",
            v3,
            packet(0x82, &concat(&[&[0, 1], &string("a#"), &[0]])),
        ),
        (
            "subscribe to qos 3",
            v3,
            packet(0x82, &concat(&[&[0, 1], &t, &[3]])),
        ),
        (
            "subscribe with packet id 0",
            v3,
            packet(0x82, &concat(&[&[0, 0], &t, &[0]])),
        ),
        ("subscribe to nothing", v3, packet(0x82, &[0, 1])),
        (
            "reserved options",
            v5,
            packet(0x82, &concat(&[&[0, 1, 0], &t, &[0xc0]])),
        ),
        ("ping with a body", v3, packet(0xc0, &[0])),
        ("bytes after a puback", v3, packet(0x40, &[0, 1, 2])),
        ("length not in its shortest form", v3, vec![0xc0, 0x80, 0]),
        (
            "length of five bytes",
            v3,
            vec![0x30, 0x80, 0x80, 0x80, 0x80, 1],
        ),
    ];
    for (what, version, bytes) in bad {
        assert_eq!(
            read_packet(*version, bytes, MAX_PACKET),
            Err(CodecError::Malformed),
            "{what}"
        );
    }
    let unexpected: &[(&str, Vec<u8>)] = &[
        ("connack", packet(0x20, &[0, 0])),
        ("pingresp", packet(0xd0, &[])),
        ("unsuback", packet(0xb0, &[0, 1])),
        ("suback", packet(0x90, &[0, 1, 0])),
        ("a second connect", Connect::new(v3, "d", "s").bytes()),
    ];
    for (what, bytes) in unexpected {
        assert_eq!(
            read_packet(v3, bytes, MAX_PACKET),
            Err(CodecError::Unexpected),
            "{what}"
        );
    }
}

#[test]
fn an_overlong_packet_is_refused_from_its_header() {
    let header = [0x32, 0xff, 0xff, 0x7f];
    assert_eq!(
        read_packet(Version::V5, &header, MAX_PACKET),
        Err(CodecError::TooLarge(4 + 0x1f_ffff))
    );
    assert!(matches!(
        read_connect(&[0x10, 0xff, 0x7f], MAX_CONNECT),
        Err(CodecError::TooLarge(_))
    ));
}

#[test]
fn the_beginning_of_a_connect_tells_its_version() {
    let connect = |level: u8| [&[0x10, 0xff, 0x7f, 0, 4][..], b"MQTT", &[level, 2]].concat();
    assert_eq!(asked_version(&connect(4)), Some(Version::V3));
    assert_eq!(asked_version(&connect(5)), Some(Version::V5));
    assert_eq!(asked_version(&connect(6)), None);
    for cut in 0..10 {
        assert_eq!(asked_version(&connect(4)[..cut]), None, "{cut}");
    }
    assert_eq!(
        asked_version(&[0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        None
    );
}

#[test]
fn other_versions_are_told_apart_from_garbage() {
    let old = packet(
        0x10,
        &concat(&[&string("MQIsdp"), &[3, 2, 0, 60], &string("d")]),
    );
    assert_eq!(
        read_connect(&old, MAX_CONNECT),
        Err(CodecError::UnknownVersion(3))
    );
    let new = packet(
        0x10,
        &concat(&[&string("MQTT"), &[6, 2, 0, 60], &string("d")]),
    );
    assert_eq!(
        read_connect(&new, MAX_CONNECT),
        Err(CodecError::UnknownVersion(6))
    );
    let other = packet(
        0x10,
        &concat(&[&string("HTTP"), &[4, 2, 0, 60], &string("d")]),
    );
    assert_eq!(
        read_connect(&other, MAX_CONNECT),
        Err(CodecError::Malformed)
    );
    assert_eq!(
        read_connect(b"GET / HTTP/1.1", MAX_CONNECT),
        Err(CodecError::Unexpected)
    );
}

#[test]
fn both_versions_read_the_same() {
    for version in BOTH {
        let bytes = wire::publish(version, 7, "ota/v1/d/up/check", b"{}");
        let (packet, used) = read_packet(version, &bytes, MAX_PACKET).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        let Packet::Publish(publish) = packet else {
            panic!("{packet:?}")
        };
        assert_eq!(
            (&*publish.topic, &publish.payload[..]),
            ("ota/v1/d/up/check", &b"{}"[..])
        );
        assert_eq!(publish.qos.pid().map(Pid::value), Some(7));
    }
}
