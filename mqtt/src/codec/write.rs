//! What the server says, appended to a buffer.

use bytes::Bytes;
use mqtt_proto::{Encodable, Error, Pid, QoS, QosPid, TopicName, v3, v5};

use super::{DisconnectReasonCode, Refusal, Verdict, Version};

/// What a connection is told when it is accepted (5 only; 3.1.1 cannot be told).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offered {
    /// QoS 1 messages that we take without acknowledging.
    pub receive_maximum: u16,
    /// Largest packet that we take, bytes.
    pub max_packet: u32,
    /// Seconds, when another keep-alive is to be kept than the one asked for.
    pub keep_alive: Option<u16>,
}

/// One filter's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    /// Messages come with this QoS at most.
    Yes(QoS),
    /// Outside the device's own `down/`.
    NotAuthorized,
    /// A shared subscription.
    Shared,
    /// More filters than a device needs.
    QuotaExceeded,
}

/// The library's encoders fail only on lengths that no packet of ours has; such a packet is left out.
fn put(out: &mut Vec<u8>, packet: Result<mqtt_proto::VarBytes, Error>) {
    if let Ok(packet) = packet {
        out.extend_from_slice(packet.as_ref());
    }
}

/// CONNACK: accepted, with no session kept from before.
pub fn connack(out: &mut Vec<u8>, version: Version, offered: Offered) {
    match version {
        Version::V3 => {
            let ack = v3::Connack::new(false, v3::ConnectReturnCode::Accepted);
            put(out, v3::Packet::from(ack).encode());
        }
        Version::V5 => {
            let mut ack = v5::Connack::new(false, v5::ConnectReasonCode::Success);
            ack.properties = v5::ConnackProperties {
                session_expiry_interval: Some(0),
                receive_max: Some(offered.receive_maximum),
                max_qos: Some(QoS::Level1),
                retain_available: Some(false),
                max_packet_size: Some(offered.max_packet),
                topic_alias_max: Some(0),
                wildcard_subscription_available: Some(true),
                subscription_id_available: Some(false),
                shared_subscription_available: Some(false),
                server_keep_alive: offered.keep_alive,
                ..v5::ConnackProperties::default()
            };
            put(out, v5::Packet::from(ack).encode());
        }
    }
}

/// CONNACK: refused.
pub fn refuse(out: &mut Vec<u8>, version: Version, refusal: Refusal) {
    match version {
        Version::V3 => put(
            out,
            v3::Packet::from(v3::Connack::new(false, refusal.v3())).encode(),
        ),
        Version::V5 => put(
            out,
            v5::Packet::from(v5::Connack::new(false, refusal.v5())).encode(),
        ),
    }
}

/// PUBACK. "Taken" is the same four bytes in both versions.
pub fn puback(out: &mut Vec<u8>, version: Version, pid: Pid, verdict: Verdict) {
    let code = match (version, verdict) {
        (Version::V3, _) | (_, Verdict::Taken) => None,
        (_, Verdict::NotAuthorized) => Some(v5::PubackReasonCode::NotAuthorized),
        (_, Verdict::QuotaExceeded) => Some(v5::PubackReasonCode::QuotaExceeded),
    };
    match code {
        None => {
            let [high, low] = pid.value().to_be_bytes();
            out.extend_from_slice(&[0x40, 2, high, low]);
        }
        Some(code) => put(out, v5::Packet::from(v5::Puback::new(pid, code)).encode()),
    }
}

/// SUBACK.
pub fn suback(out: &mut Vec<u8>, version: Version, pid: Pid, granted: &[Granted]) {
    match version {
        // By hand: the library writes a refused filter as 3, where the standard has 0x80.
        Version::V3 => {
            put_header(out, 0x90, 2 + granted.len());
            out.extend(pid.value().to_be_bytes());
            out.extend(granted.iter().map(|granted| match granted {
                Granted::Yes(qos) => *qos as u8,
                _ => 0x80,
            }));
        }
        Version::V5 => {
            let codes = granted.iter().map(|granted| match granted {
                Granted::Yes(QoS::Level0) => v5::SubscribeReasonCode::GrantedQoS0,
                Granted::Yes(_) => v5::SubscribeReasonCode::GrantedQoS1,
                Granted::NotAuthorized => v5::SubscribeReasonCode::NotAuthorized,
                Granted::Shared => v5::SubscribeReasonCode::SharedSubscriptionNotSupported,
                Granted::QuotaExceeded => v5::SubscribeReasonCode::QuotaExceeded,
            });
            put(
                out,
                v5::Packet::from(v5::Suback::new(pid, codes.collect())).encode(),
            );
        }
    }
}

/// UNSUBACK; `existed` says of each filter whether it was subscribed to.
pub fn unsuback(out: &mut Vec<u8>, version: Version, pid: Pid, existed: &[bool]) {
    match version {
        Version::V3 => put(out, v3::Packet::Unsuback(pid).encode()),
        Version::V5 => {
            let codes = existed.iter().map(|existed| {
                if *existed {
                    v5::UnsubscribeReasonCode::Success
                } else {
                    v5::UnsubscribeReasonCode::NoSubscriptionExisted
                }
            });
            put(
                out,
                v5::Packet::from(v5::Unsuback::new(pid, codes.collect())).encode(),
            );
        }
    }
}

/// PINGRESP.
pub fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xd0, 0]);
}

/// DISCONNECT; 3.1.1 has none from the server.
pub fn disconnect(out: &mut Vec<u8>, version: Version, reason: DisconnectReasonCode) {
    if version == Version::V5 {
        put(out, v5::Packet::from(v5::Disconnect::new(reason)).encode());
    }
}

/// PUBLISH, never retained and never a repeat. False, and nothing written, when it would be larger than `max` bytes.
pub fn publish(
    out: &mut Vec<u8>,
    version: Version,
    qos: QosPid,
    topic: TopicName,
    payload: Bytes,
    max: usize,
) -> bool {
    let first = 0x30 | (qos.qos() as u8) << 1;
    match version {
        Version::V3 => put_body(out, first, &v3::Publish::new(qos, topic, payload), max),
        Version::V5 => put_body(out, first, &v5::Publish::new(qos, topic, payload), max),
    }
}

/// Header and body straight into the buffer, without a copy of the payload in between.
fn put_body(out: &mut Vec<u8>, first: u8, body: &impl Encodable, max: usize) -> bool {
    let length = body.encode_len();
    let Some(total) = mqtt_proto::total_len(length)
        .ok()
        .filter(|total| *total <= max)
    else {
        return false;
    };
    let start = out.len();
    out.reserve(total);
    put_header(out, first, length);
    if body.encode(out).is_err() {
        out.truncate(start);
        return false;
    }
    true
}

/// A fixed header: first byte, and the length of what follows.
fn put_header(out: &mut Vec<u8>, first: u8, mut length: usize) {
    out.push(first);
    loop {
        let [byte, ..] = (length % 128).to_le_bytes();
        length /= 128;
        out.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
}
