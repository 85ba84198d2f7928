//! What the gateway allows, to all devices together and to each.

use std::time::Duration;

use device_ota_engine::Rate;
use device_ota_protocol::messages::MAX_PAYLOAD;

/// Room in a packet beside its payload: fixed header, packet id, a topic (below 256 bytes), and in MQTT 5 some properties.
const PACKET_OVERHEAD: usize = 1024;
/// Largest packet that we take, bytes.
pub const MAX_PACKET: usize = MAX_PAYLOAD + PACKET_OVERHEAD;
/// Largest CONNECT, bytes: two names, a secret, a small will. Held for peers that nobody knows yet.
pub const MAX_CONNECT: usize = 4096;
/// Most unacknowledged QoS 1 messages of one device; commits are recorded in one machine word.
pub const MAX_RECEIVE: u16 = 64;
/// Unacknowledged QoS 1 messages to one device, where it does not ask for fewer.
pub const MAX_INFLIGHT_DOWN: u16 = 16;
/// Smallest "Maximum Packet Size" of a client that can be served, bytes: our CONNACK has to fit.
pub const MIN_CLIENT_PACKET: u32 = 64;
/// Most filters of one device; it needs one, and there are four kinds of topics.
pub const MAX_FILTERS: usize = 8;
/// Messages that wait for one device.
pub const MAX_MAIL: usize = 64;
/// Of these, messages that only offers, commands and replies may use.
pub const RESERVED_MAIL: usize = 16;
/// Bytes that wait for one device: four of the largest chunks.
pub const MAX_MAIL_BYTES: usize = 256 * 1024;
/// Beyond these, bytes that only offers, commands and replies may use.
pub const RESERVED_MAIL_BYTES: usize = 64 * 1024;

/// The gateway's limits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connected devices; beyond, CONNECT is refused. With the next two, below the number of files that a process may open.
    pub max_connections: usize,
    /// Connections that have not proved who they are; beyond, a new one takes the place of the oldest that has not sent
    /// its CONNECT.
    pub max_unauthenticated: usize,
    /// Connections that were refused or ended, while they read why; beyond, the oldest is closed.
    pub max_lingering: usize,
    /// Time from accept to a whole CONNECT and its answer.
    pub connect_timeout: Duration,
    /// Time that a connection may take no byte of what waits for it.
    pub write_timeout: Duration,
    /// Keep-alive in place of 0, and at most (5 only), in seconds.
    pub max_keep_alive: u16,
    /// Unacknowledged QoS 1 messages of one device, at most [`MAX_RECEIVE`]; then its socket is not read.
    pub receive_maximum: u16,
    /// Connections of one device that prove who they are; beyond, they are refused. `None`: any number.
    pub connect: Option<Rate>,
    /// Heartbeats of one device (`RATE_LIMIT_HEARTBEAT`); `None`: any number.
    pub heartbeat: Option<Rate>,
    /// Checks of one device (`RATE_LIMIT_UPDATE_CHECK`); `None`: any number.
    pub check: Option<Rate>,
    /// Other reports of one device, together; `None`: any number. These are never dropped: the socket is read slower.
    pub report: Option<Rate>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 19_000,
            max_unauthenticated: 1_024,
            max_lingering: 256,
            connect_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(20),
            max_keep_alive: 600,
            receive_maximum: MAX_RECEIVE,
            connect: Rate::per_minute(600),
            heartbeat: Rate::per_minute(100),
            check: Rate::per_minute(10),
            report: Rate::per_minute(1_200),
        }
    }
}
