//! The bounded frame reader, and the library's packets turned into ours.

use mqtt_proto::{Error, PollHeader as _, Protocol, v3, v5};

use super::{CodecError, Connect, Packet, Publish, Version, Will, check};

/// Most bytes that the length of a packet takes.
const MAX_LENGTH_BYTES: usize = 4;
/// First byte of a CONNECT: its type, and no flags.
const CONNECT: u8 = 0x10;

/// The header of a packet, and its body.
struct Frame<'b> {
    first: u8,
    body: &'b [u8],
    total: usize,
}

/// The next frame, once it is all there. One longer than `max` is refused from its header alone.
fn frame(bytes: &[u8], max: usize) -> Result<Option<Frame<'_>>, CodecError> {
    let Some((&first, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    let mut length = 0;
    for (at, &byte) in rest.iter().take(MAX_LENGTH_BYTES).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let padded = at > 0 && byte == 0;
            let (head, total) = (2 + at, 2 + at + length);
            return match bytes.get(head..total) {
                _ if padded => Err(CodecError::Malformed),
                _ if total > max => Err(CodecError::TooLarge(total)),
                Some(body) => Ok(Some(Frame { first, body, total })),
                None => Ok(None),
            };
        }
    }
    if rest.len() < MAX_LENGTH_BYTES {
        Ok(None)
    } else {
        Err(CodecError::Malformed)
    }
}

impl Frame<'_> {
    /// Lengths as the library wants them; a frame is far below 4 GiB.
    fn lengths(&self) -> Result<(u32, u32), CodecError> {
        let as_u32 = |n: usize| u32::try_from(n).map_err(|_| CodecError::Malformed);
        Ok((as_u32(self.body.len())?, as_u32(self.total)?))
    }
}

/// Reads the first packet of a connection: the packet and its length, or `None` while more bytes are needed.
pub fn read_connect(bytes: &[u8], max: usize) -> Result<Option<(Connect, usize)>, CodecError> {
    if bytes.first().is_some_and(|first| *first != CONNECT) {
        return Err(CodecError::Unexpected);
    }
    let Some(frame) = frame(bytes, max)? else {
        return Ok(None);
    };
    let mut at = 0;
    let connect = match Protocol::decode(frame.body, &mut at).map_err(version_error)? {
        Protocol::V310 => return Err(CodecError::UnknownVersion(3)),
        protocol @ Protocol::V311 => {
            let connect = v3::Connect::decode_buffer_with_protocol(frame.body, &mut at, protocol);
            let connect = connect.map_err(|_| CodecError::Malformed)?;
            check::connect_v3(&connect)?;
            Connect::from(connect)
        }
        protocol @ Protocol::V500 => {
            let (length, total) = frame.lengths()?;
            let header = v5::Header::new_with(frame.first, length, total);
            let header = header.map_err(|_| CodecError::Malformed)?;
            let connect =
                v5::Connect::decode_buffer_with_protocol(frame.body, &mut at, header, protocol);
            let connect = connect.map_err(|_| CodecError::Malformed)?;
            check::connect_v5(&connect)?;
            Connect::from(connect)
        }
    };
    if at != frame.body.len() {
        return Err(CodecError::Malformed);
    }
    check::connect_flags(frame.body)?;
    Ok(Some((connect, frame.total)))
}

/// The version that a CONNECT asks for, of which the beginning is enough. `None`: that has not come yet, or is none of ours.
pub fn asked_version(bytes: &[u8]) -> Option<Version> {
    let mut lengths = bytes.iter().skip(1).take(MAX_LENGTH_BYTES);
    let length_bytes = 1 + lengths.position(|byte| byte & 0x80 == 0)?;
    match bytes.get(1 + length_bytes..)? {
        [0, 4, b'M', b'Q', b'T', b'T', 4, ..] => Some(Version::V3),
        [0, 4, b'M', b'Q', b'T', b'T', 5, ..] => Some(Version::V5),
        _ => None,
    }
}

fn version_error(error: Error) -> CodecError {
    match error {
        Error::InvalidProtocol(name, level) if name.as_ref() == "MQTT" => {
            CodecError::UnknownVersion(level)
        }
        _ => CodecError::Malformed,
    }
}

impl From<v3::Connect> for Connect {
    fn from(connect: v3::Connect) -> Self {
        Self {
            version: Version::V3,
            client_id: connect.client_id.as_ref().into(),
            user: connect.username.map(|user| user.as_ref().into()),
            password: connect.password,
            keep_alive: connect.keep_alive,
            will: connect.last_will.map(|will| Will {
                topic: will.topic_name,
                qos: will.qos,
                retain: will.retain,
            }),
            receive_maximum: None,
            max_packet: None,
            enhanced_authentication: false,
        }
    }
}

impl From<v5::Connect> for Connect {
    fn from(connect: v5::Connect) -> Self {
        Self {
            version: Version::V5,
            client_id: connect.client_id.as_ref().into(),
            user: connect.username.map(|user| user.as_ref().into()),
            password: connect.password,
            keep_alive: connect.keep_alive,
            will: connect.last_will.map(|will| Will {
                topic: will.topic_name,
                qos: will.qos,
                retain: will.retain,
            }),
            receive_maximum: connect.properties.receive_max,
            max_packet: connect.properties.max_packet_size,
            enhanced_authentication: connect.properties.auth_method.is_some(),
        }
    }
}

/// Reads the next packet after CONNECT: the packet and its length, or `None` while more bytes are needed.
pub fn read_packet(
    version: Version,
    bytes: &[u8],
    max: usize,
) -> Result<Option<(Packet, usize)>, CodecError> {
    let Some(frame) = frame(bytes, max)? else {
        return Ok(None);
    };
    let packet = match version {
        Version::V3 => read_v3(&frame)?,
        Version::V5 => read_v5(&frame)?,
    };
    Ok(Some((packet, frame.total)))
}

fn read_v3(frame: &Frame<'_>) -> Result<Packet, CodecError> {
    let (length, total) = frame.lengths()?;
    let header = v3::Header::new_with(frame.first, length, total);
    let header = header.map_err(|_| CodecError::Malformed)?;
    // The library's `decode_buffer` must never see a type that has no body.
    let packet = match header.build_empty_packet() {
        Some(packet) if frame.body.is_empty() => packet,
        Some(_) => return Err(CodecError::Malformed),
        None => {
            let mut at = 0;
            let packet = header.decode_buffer(frame.body, &mut at);
            let packet = packet.map_err(|_| CodecError::Malformed)?;
            if at != frame.body.len() {
                return Err(CodecError::Malformed);
            }
            packet
        }
    };
    match packet {
        v3::Packet::Publish(publish) => {
            check::publish_v3(&publish)?;
            Ok(Packet::Publish(Publish {
                topic: publish.topic_name,
                qos: publish.qos_pid,
                retain: publish.retain,
                payload: publish.payload,
            }))
        }
        v3::Packet::Puback(pid) => Ok(Packet::Puback(pid)),
        v3::Packet::Pubrec(_) | v3::Packet::Pubrel(_) | v3::Packet::Pubcomp(_) => {
            Ok(Packet::Qos2Step)
        }
        v3::Packet::Subscribe(subscribe) => Ok(Packet::Subscribe {
            pid: subscribe.pid,
            filters: subscribe.topics,
            identified: false,
        }),
        v3::Packet::Unsubscribe(unsubscribe) => Ok(Packet::Unsubscribe {
            pid: unsubscribe.pid,
            filters: unsubscribe.topics,
        }),
        v3::Packet::Pingreq => Ok(Packet::Pingreq),
        v3::Packet::Disconnect => Ok(Packet::Disconnect),
        _ => Err(CodecError::Unexpected),
    }
}

fn read_v5(frame: &Frame<'_>) -> Result<Packet, CodecError> {
    let (length, total) = frame.lengths()?;
    let header = v5::Header::new_with(frame.first, length, total);
    let header = header.map_err(|_| CodecError::Malformed)?;
    let packet = match header.build_empty_packet() {
        Some(packet) if frame.body.is_empty() => packet,
        Some(_) => return Err(CodecError::Malformed),
        None => {
            let mut at = 0;
            let packet = header.decode_buffer(frame.body, &mut at);
            let packet = packet.map_err(|_| CodecError::Malformed)?;
            if at != frame.body.len() {
                return Err(CodecError::Malformed);
            }
            packet
        }
    };
    match packet {
        v5::Packet::Publish(publish) => {
            check::publish_v5(&publish)?;
            Ok(Packet::Publish(Publish {
                topic: publish.topic_name,
                qos: publish.qos_pid,
                retain: publish.retain,
                payload: publish.payload,
            }))
        }
        v5::Packet::Puback(ack) => Ok(Packet::Puback(ack.pid)),
        v5::Packet::Pubrec(_) | v5::Packet::Pubrel(_) | v5::Packet::Pubcomp(_) => {
            Ok(Packet::Qos2Step)
        }
        v5::Packet::Subscribe(subscribe) => Ok(Packet::Subscribe {
            pid: subscribe.pid,
            identified: subscribe.properties.subscription_id.is_some(),
            filters: subscribe
                .topics
                .into_iter()
                .map(|(f, options)| (f, options.max_qos))
                .collect(),
        }),
        v5::Packet::Unsubscribe(unsubscribe) => Ok(Packet::Unsubscribe {
            pid: unsubscribe.pid,
            filters: unsubscribe.topics,
        }),
        v5::Packet::Pingreq => Ok(Packet::Pingreq),
        v5::Packet::Disconnect(_) => Ok(Packet::Disconnect),
        // AUTH too: no enhanced authentication is offered.
        _ => Err(CodecError::Unexpected),
    }
}
