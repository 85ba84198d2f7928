//! MQTT by the byte, for what a stock client would never send.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::link::MqttVersion;
use super::wait::within;

/// A packet as it came: first byte and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub first: u8,
    pub body: Vec<u8>,
}

impl Packet {
    pub const CONNACK: u8 = 2;
    pub const PUBACK: u8 = 4;
    pub const SUBACK: u8 = 9;
    pub const PINGRESP: u8 = 13;
    pub const DISCONNECT: u8 = 14;

    /// The packet's type.
    pub fn kind(&self) -> u8 {
        self.first >> 4
    }
}

/// A socket to the MQTT end.
pub struct Raw {
    stream: TcpStream,
    version: MqttVersion,
}

impl Raw {
    pub async fn open(address: &str, version: MqttVersion) -> Self {
        Self::try_open(address, version).await.unwrap()
    }

    pub async fn try_open(address: &str, version: MqttVersion) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, version })
    }

    /// A connection that has been let in.
    pub async fn connected(
        address: &str,
        version: MqttVersion,
        id: &str,
        password: &str,
        keep_alive: u16,
    ) -> Self {
        let mut raw = Self::open(address, version).await;
        raw.send(&connect(version, id, id, password, keep_alive))
            .await;
        let answer = raw.packet().await.expect("an answer to CONNECT");
        assert_eq!(
            (answer.kind(), answer.body.get(1)),
            (Packet::CONNACK, Some(&0))
        );
        raw
    }

    /// Sends bytes; a peer that has closed is no error here, what it answered tells.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next packet; `None` when the other side has ended the connection.
    pub async fn packet(&mut self) -> Option<Packet> {
        within("an answer, or the end of the connection", self.read()).await
    }

    async fn read(&mut self) -> Option<Packet> {
        let first = self.stream.read_u8().await.ok()?;
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let byte = self.stream.read_u8().await.ok()?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.ok()?;
        Some(Packet { first, body })
    }

    /// Everything up to the end of the connection, which must come.
    pub async fn until_closed(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some(packet) = self.packet().await {
            packets.push(packet);
        }
        packets
    }

    pub async fn subscribe(&mut self, filter: &str) -> Option<Packet> {
        self.send(&subscribe(self.version, filter)).await;
        self.packet().await
    }

    /// Whether the other side still answers.
    pub async fn answers(&mut self) -> bool {
        self.send(&[0xc0, 0]).await;
        loop {
            match self.packet().await {
                Some(packet) if packet.kind() == Packet::PINGRESP => return true,
                Some(_) => {}
                None => return false,
            }
        }
    }
}

/// A CONNECT with a clean session.
pub fn connect(
    version: MqttVersion,
    id: &str,
    user: &str,
    password: &str,
    keep_alive: u16,
) -> Vec<u8> {
    let mut body = text("MQTT");
    body.push(if version == MqttVersion::V5 { 5 } else { 4 });
    body.push(0b1100_0010);
    body.extend(keep_alive.to_be_bytes());
    properties(version, &mut body);
    for field in [id, user, password] {
        body.extend(text(field));
    }
    packet(0x10, &body)
}

/// A SUBSCRIBE for one filter, QoS 1, packet id 1.
pub fn subscribe(version: MqttVersion, filter: &str) -> Vec<u8> {
    let mut body = vec![0, 1];
    properties(version, &mut body);
    body.extend(text(filter));
    body.push(1);
    packet(0x82, &body)
}

/// A PUBLISH with packet id 7, when its QoS has one.
pub fn publish(version: MqttVersion, qos: u8, topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = text(topic);
    if qos > 0 {
        body.extend([0, 7]);
    }
    properties(version, &mut body);
    body.extend(payload);
    packet(0x30 | qos << 1, &body)
}

/// No properties: one byte in MQTT 5, nothing before.
fn properties(version: MqttVersion, body: &mut Vec<u8>) {
    if version == MqttVersion::V5 {
        body.push(0);
    }
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// A packet around a body.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let low = u8::try_from(length % 128).unwrap();
        length /= 128;
        bytes.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}
