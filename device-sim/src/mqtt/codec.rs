//! Packets as a client writes and reads them, for MQTT 3.1.1 and 5 alike: the `mqtt-proto` codec
//! behind a frame function that bounds what is buffered and never lets a packet read past its end.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mqtt_proto::{
    Encodable, Pid, PollHeader, Protocol, QoS, QosPid, TopicFilter, TopicName, v3, v5,
};

use super::{Error, Options, Version};

/// Most length bytes of a fixed header.
const MAX_LENGTH_BYTES: usize = 4;
/// Largest packet taken from a server: the largest image chunk (64 KiB) and its topic, doubled.
pub(super) const MAX_PACKET: usize = 128 * 1024;
/// Messages a server may send before the first one is acknowledged (MQTT 5).
const RECEIVE_MAXIMUM: u16 = 64;
/// From this reason code on, an MQTT 5 acknowledgement is a refusal.
const FIRST_REFUSAL: u8 = 0x80;

/// What a server sends.
#[derive(Debug)]
pub(super) enum Packet {
    Connack(Connack),
    Publish(Message),
    Puback { pid: u16, code: u8 },
    Suback { pid: u16, granted: bool },
    Pingresp,
    Disconnect { code: u8 },
    Other,
}

/// The server's answer to CONNECT.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connack {
    pub(super) code: u8,
    pub(super) receive_maximum: u16,
    pub(super) keep_alive_s: Option<u16>,
}

/// A message from the server.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where it was published.
    pub topic: TopicName,
    /// What it says.
    pub payload: Bytes,
    /// Its packet id, when it came with `QoS` 1.
    pub(super) pid: Option<Pid>,
}

/// Reads the next packet. `Ok(None)`: more bytes are needed.
pub(super) fn read(version: Version, buf: &mut BytesMut) -> Result<Option<Packet>, Error> {
    let Some(frame) = frame(buf)? else {
        return Ok(None);
    };
    let Some(body) = buf.get(frame.head..frame.total()) else {
        return Ok(None);
    };
    let packet = match version {
        Version::V3 => from_v3(decode::<v3::Header>(frame.first, frame.head, body)?),
        Version::V5 => from_v5(decode::<v5::Header>(frame.first, frame.head, body)?),
    };
    buf.advance(frame.total());
    Ok(Some(packet))
}

/// Bytes still missing of the packet that `buf` begins with, when its length is known.
pub(super) fn missing(buf: &[u8]) -> Option<usize> {
    let frame = frame(buf).ok()??;
    frame.total().checked_sub(buf.len())
}

struct Frame {
    first: u8,
    head: usize,
    body: usize,
}

impl Frame {
    fn total(&self) -> usize {
        self.head + self.body
    }
}

/// The fixed header, once it has arrived. An over-long packet is refused from it alone.
fn frame(buf: &[u8]) -> Result<Option<Frame>, Error> {
    let Some((&first, rest)) = buf.split_first() else {
        return Ok(None);
    };
    let mut body = 0_usize;
    for (at, &byte) in rest.iter().take(MAX_LENGTH_BYTES).enumerate() {
        body |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let head = 2 + at;
            if head + body > MAX_PACKET {
                return Err(Error::TooLarge(head + body));
            }
            return Ok(Some(Frame { first, head, body }));
        }
    }
    if rest.len() >= MAX_LENGTH_BYTES {
        Err(Error::Malformed)
    } else {
        Ok(None)
    }
}

fn decode<H: PollHeader>(first: u8, head: usize, body: &[u8]) -> Result<H::Packet, Error> {
    let length = |n: usize| u32::try_from(n).map_err(|_| Error::Malformed);
    let header = H::new_with(first, length(body.len())?, length(head + body.len())?)
        .map_err(|_| Error::Malformed)?;
    // `decode_buffer` must not see a type that has no body, nor be trusted to use all of one.
    match header.build_empty_packet() {
        Some(packet) if body.is_empty() => Ok(packet),
        Some(_) => Err(Error::Malformed),
        None => {
            let mut at = 0;
            let packet = header
                .decode_buffer(body, &mut at)
                .map_err(|_| Error::Malformed)?;
            if at == body.len() {
                Ok(packet)
            } else {
                Err(Error::Malformed)
            }
        }
    }
}

fn from_v3(packet: v3::Packet) -> Packet {
    match packet {
        v3::Packet::Connack(ack) => Packet::Connack(Connack {
            code: ack.code as u8,
            receive_maximum: u16::MAX,
            keep_alive_s: None,
        }),
        v3::Packet::Publish(message) => Packet::Publish(Message {
            topic: message.topic_name,
            payload: message.payload,
            pid: message.qos_pid.pid(),
        }),
        v3::Packet::Puback(pid) => Packet::Puback {
            pid: pid.value(),
            code: 0,
        },
        v3::Packet::Suback(ack) => Packet::Suback {
            pid: ack.pid.value(),
            granted: !ack.topics.contains(&v3::SubscribeReturnCode::Failure),
        },
        v3::Packet::Pingresp => Packet::Pingresp,
        _ => Packet::Other,
    }
}

fn from_v5(packet: v5::Packet) -> Packet {
    match packet {
        v5::Packet::Connack(ack) => Packet::Connack(Connack {
            code: ack.reason_code as u8,
            receive_maximum: ack.properties.receive_max.unwrap_or(u16::MAX),
            keep_alive_s: ack.properties.server_keep_alive,
        }),
        v5::Packet::Publish(message) => Packet::Publish(Message {
            topic: message.topic_name,
            payload: message.payload,
            pid: message.qos_pid.pid(),
        }),
        v5::Packet::Puback(ack) => Packet::Puback {
            pid: ack.pid.value(),
            code: ack.reason_code as u8,
        },
        v5::Packet::Suback(ack) => Packet::Suback {
            pid: ack.pid.value(),
            granted: ack.topics.iter().all(|code| (*code as u8) < FIRST_REFUSAL),
        },
        v5::Packet::Pingresp => Packet::Pingresp,
        v5::Packet::Disconnect(bye) => Packet::Disconnect {
            code: bye.reason_code as u8,
        },
        _ => Packet::Other,
    }
}

/// Whether the code of an acknowledgement says no.
pub(super) fn is_refusal(code: u8) -> bool {
    code >= FIRST_REFUSAL
}

/// CONNECT, always with a clean session: the service says again what got lost.
pub(super) fn connect(out: &mut BytesMut, options: &Options) -> Result<(), Error> {
    match options.version {
        Version::V3 => put(out, &connect_v3(options).into(), v3::Packet::encode),
        Version::V5 => put(out, &connect_v5(options).into(), v5::Packet::encode),
    }
}

fn connect_v3(options: &Options) -> v3::Connect {
    v3::Connect {
        protocol: Protocol::V311,
        clean_session: true,
        keep_alive: options.keep_alive_s,
        client_id: options.client_id.clone(),
        last_will: options.will.as_ref().map(|will| v3::LastWill {
            qos: QoS::Level1,
            retain: false,
            topic_name: will.topic.clone(),
            message: will.payload.clone(),
        }),
        username: options.user.as_ref().map(|user| user.name.clone()),
        password: options.user.as_ref().map(|user| user.password.clone()),
    }
}

fn connect_v5(options: &Options) -> v5::Connect {
    v5::Connect {
        protocol: Protocol::V500,
        clean_start: true,
        keep_alive: options.keep_alive_s,
        properties: v5::ConnectProperties {
            receive_max: Some(RECEIVE_MAXIMUM),
            max_packet_size: u32::try_from(MAX_PACKET).ok(),
            ..v5::ConnectProperties::default()
        },
        client_id: options.client_id.clone(),
        last_will: options
            .will
            .as_ref()
            .map(|will| v5::LastWill::new(QoS::Level1, will.topic.clone(), will.payload.clone())),
        username: options.user.as_ref().map(|user| user.name.clone()),
        password: options.user.as_ref().map(|user| user.password.clone()),
    }
}

/// PUBLISH; with `QoS` 1 when there is a packet id.
pub(super) fn publish(
    out: &mut BytesMut,
    version: Version,
    topic: &TopicName,
    payload: Bytes,
    pid: Option<Pid>,
) -> Result<(), Error> {
    let (qos, first) = match pid {
        Some(pid) => (QosPid::Level1(pid), 0x32),
        None => (QosPid::Level0, 0x30),
    };
    match version {
        Version::V3 => put_body(out, first, &v3::Publish::new(qos, topic.clone(), payload)),
        Version::V5 => put_body(out, first, &v5::Publish::new(qos, topic.clone(), payload)),
    }
}

/// SUBSCRIBE to one filter with `QoS` 1.
pub(super) fn subscribe(
    out: &mut BytesMut,
    version: Version,
    filter: &str,
    pid: Pid,
) -> Result<(), Error> {
    let filter = TopicFilter::try_from(filter)?;
    match version {
        Version::V3 => put(
            out,
            &v3::Subscribe::new(pid, vec![(filter, QoS::Level1)]).into(),
            v3::Packet::encode,
        ),
        Version::V5 => {
            let options = v5::SubscriptionOptions::new(QoS::Level1);
            let subscribe = v5::Subscribe::new(pid, vec![(filter, options)]);
            put(out, &subscribe.into(), v5::Packet::encode)
        }
    }
}

/// PUBACK: the same four bytes in both versions.
pub(super) fn puback(out: &mut BytesMut, pid: Pid) {
    out.put_slice(&[0x40, 2]);
    out.put_u16(pid.value());
}

/// PINGREQ.
pub(super) fn pingreq(out: &mut BytesMut) {
    out.put_slice(&[0xc0, 0]);
}

/// DISCONNECT, normal: the Last Will is not published. An empty body means reason 0 in MQTT 5.
pub(super) fn disconnect(out: &mut BytesMut) {
    out.put_slice(&[0xe0, 0]);
}

fn put<P>(
    out: &mut BytesMut,
    packet: &P,
    encode: fn(&P) -> Result<mqtt_proto::VarBytes, mqtt_proto::Error>,
) -> Result<(), Error> {
    out.extend_from_slice(encode(packet)?.as_ref());
    Ok(())
}

/// A body straight into the buffer, without a vector in between.
fn put_body(out: &mut BytesMut, first: u8, body: &impl Encodable) -> Result<(), Error> {
    let mut left = body.encode_len();
    out.reserve(mqtt_proto::total_len(left)?);
    out.put_u8(first);
    loop {
        let low = u8::try_from(left % 128).map_err(|_| Error::Malformed)?;
        left /= 128;
        out.put_u8(if left > 0 { low | 0x80 } else { low });
        if left == 0 {
            break;
        }
    }
    body.encode(&mut out.writer())?;
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn server_publish(version: Version, payload: &'static [u8]) -> BytesMut {
        let mut out = BytesMut::new();
        let topic = TopicName::try_from("a/b").unwrap();
        let pid = Pid::try_from(7).ok();
        publish(&mut out, version, &topic, Bytes::from_static(payload), pid).unwrap();
        out
    }

    #[test]
    fn a_packet_is_read_only_when_whole_and_leaves_the_next_one_alone() {
        for version in [Version::V3, Version::V5] {
            let whole = server_publish(version, b"one");
            let mut buf = BytesMut::new();
            for &byte in &whole {
                assert!(read(version, &mut buf).unwrap().is_none());
                buf.put_u8(byte);
            }
            puback(&mut buf, Pid::try_from(9).unwrap());
            let Some(Packet::Publish(message)) = read(version, &mut buf).unwrap() else {
                panic!("a publish");
            };
            assert_eq!((&*message.topic, &*message.payload), ("a/b", &b"one"[..]));
            assert_eq!(message.pid.map(Pid::value), Some(7));
            let ack = read(version, &mut buf).unwrap().unwrap();
            assert!(matches!(ack, Packet::Puback { pid: 9, code: 0 }));
            assert!(buf.is_empty());
        }
    }

    #[test]
    fn a_packet_that_is_too_large_is_refused_from_its_header() {
        let mut buf = BytesMut::from(&[0x30, 0xff, 0xff, 0x7f][..]);
        assert!(matches!(
            read(Version::V5, &mut buf),
            Err(Error::TooLarge(_))
        ));
        let mut buf = BytesMut::from(&[0x30, 0xff, 0xff, 0xff, 0xff][..]);
        assert!(matches!(read(Version::V3, &mut buf), Err(Error::Malformed)));
    }

    #[test]
    fn a_body_that_lies_about_its_length_is_refused() {
        // PINGRESP with a body, and a PUBACK with a byte too many.
        for bytes in [&[0xd0, 1, 0][..], &[0x40, 3, 0, 1, 0][..]] {
            let mut buf = BytesMut::from(bytes);
            assert!(matches!(read(Version::V3, &mut buf), Err(Error::Malformed)));
        }
    }
}
