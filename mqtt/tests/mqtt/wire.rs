//! Packets by hand, so that tests do not trust the code that they test.

use device_ota_mqtt::codec::Version;

/// Both versions.
pub(crate) const BOTH: [Version; 2] = [Version::V3, Version::V5];

/// A packet of this first byte and body.
pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut left = body.len();
    loop {
        let byte = u8::try_from(left % 128).unwrap();
        left /= 128;
        packet.push(if left > 0 { byte | 0x80 } else { byte });
        if left == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

/// A string with its length.
pub(crate) fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    let mut out = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(text);
    out
}

/// Empty properties, in the version that has them.
fn no_properties(version: Version) -> &'static [u8] {
    match version {
        Version::V3 => &[],
        Version::V5 => &[0],
    }
}

/// A CONNECT.
#[derive(Clone)]
pub(crate) struct Connect<'a> {
    pub(crate) version: Version,
    pub(crate) client_id: &'a str,
    pub(crate) user: Option<&'a str>,
    pub(crate) password: Option<&'a str>,
    pub(crate) keep_alive: u16,
    /// Topic, QoS, retained.
    pub(crate) will: Option<(&'a str, u8, bool)>,
    /// 5 only.
    pub(crate) properties: &'a [u8],
}

impl<'a> Connect<'a> {
    pub(crate) fn new(version: Version, id: &'a str, secret: &'a str) -> Self {
        Self {
            version,
            client_id: id,
            user: Some(id),
            password: Some(secret),
            keep_alive: 60,
            will: None,
            properties: &[],
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut flags = 2;
        if let Some((_, qos, retain)) = self.will {
            flags |= 4 | qos << 3 | u8::from(retain) << 5;
        }
        flags |= u8::from(self.user.is_some()) << 7 | u8::from(self.password.is_some()) << 6;
        let mut body = string("MQTT");
        body.extend([if self.version == Version::V3 { 4 } else { 5 }, flags]);
        body.extend(self.keep_alive.to_be_bytes());
        if self.version == Version::V5 {
            body.push(u8::try_from(self.properties.len()).unwrap());
            body.extend_from_slice(self.properties);
        }
        body.extend(string(self.client_id));
        if let Some((topic, _, _)) = self.will {
            body.extend_from_slice(no_properties(self.version));
            body.extend(string(topic));
            body.extend(string(r#"{"online":false,"reason":"will"}"#));
        }
        body.extend(self.user.map(string).unwrap_or_default());
        body.extend(self.password.map(string).unwrap_or_default());
        packet(0x10, &body)
    }
}

/// A PUBLISH of QoS 1 with this packet id, or of QoS 0 for 0.
pub(crate) fn publish(version: Version, pid: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
    publish_with(
        version,
        if pid == 0 { 0x30 } else { 0x32 },
        pid,
        topic,
        payload,
    )
}

/// A PUBLISH with this first byte.
pub(crate) fn publish_with(
    version: Version,
    first: u8,
    pid: u16,
    topic: &str,
    payload: &[u8],
) -> Vec<u8> {
    let mut body = string(topic);
    if first & 6 != 0 {
        body.extend(pid.to_be_bytes());
    }
    body.extend_from_slice(no_properties(version));
    body.extend_from_slice(payload);
    packet(first, &body)
}

/// A SUBSCRIBE.
pub(crate) fn subscribe(version: Version, pid: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = pid.to_be_bytes().to_vec();
    body.extend_from_slice(no_properties(version));
    for (filter, qos) in filters {
        body.extend(string(filter));
        body.push(*qos);
    }
    packet(0x82, &body)
}

/// An UNSUBSCRIBE.
pub(crate) fn unsubscribe(version: Version, pid: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = pid.to_be_bytes().to_vec();
    body.extend_from_slice(no_properties(version));
    for filter in filters {
        body.extend(string(filter));
    }
    packet(0xa2, &body)
}

/// A PUBACK: success.
pub(crate) fn puback(pid: u16) -> Vec<u8> {
    packet(0x40, &pid.to_be_bytes())
}

/// A PUBACK of 5 with a reason.
pub(crate) fn puback_with(pid: u16, reason: u8) -> Vec<u8> {
    let [high, low] = pid.to_be_bytes();
    packet(0x40, &[high, low, reason])
}

/// A SUBACK.
pub(crate) fn suback(version: Version, pid: u16, codes: &[u8]) -> Vec<u8> {
    let mut body = pid.to_be_bytes().to_vec();
    body.extend_from_slice(no_properties(version));
    body.extend_from_slice(codes);
    packet(0x90, &body)
}

pub(crate) const PINGREQ: [u8; 2] = [0xc0, 0];
pub(crate) const PINGRESP: [u8; 2] = [0xd0, 0];

/// A DISCONNECT of 5 from the server.
pub(crate) fn disconnect(reason: u8) -> Vec<u8> {
    packet(0xe0, &[reason])
}

/// Splits bytes into packets; they must be whole.
pub(crate) fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    while !bytes.is_empty() {
        let length = length(bytes).expect("a whole packet");
        let (packet, rest) = bytes.split_at(length);
        packets.push(packet.to_vec());
        bytes = rest;
    }
    packets
}

/// The length of the packet that these bytes begin with, once it is all there.
pub(crate) fn length(bytes: &[u8]) -> Option<usize> {
    let (mut body, mut at) = (0, 1);
    loop {
        let byte = *bytes.get(at)?;
        body |= usize::from(byte & 0x7f) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (bytes.len() >= at + body).then_some(at + body)
}
