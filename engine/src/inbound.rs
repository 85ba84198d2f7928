//! What comes up from devices, and the queue it waits in until it is in the database.
//!
//! The MQTT ends parse topic and payload, then [`Uplinks::submit`]. The queue is bounded: when the database is
//! slow, `submit` waits, the socket is not read, and the device's own TCP window closes. Nothing grows.

use std::sync::Arc;

use device_ota_domain::{DeviceId, DeviceKey};
use device_ota_protocol::messages::{Heartbeat, Report};
use jiff::Timestamp;
use tokio::sync::mpsc;

/// Messages that may wait for the database, over all devices; some eight batches.
pub const QUEUE_MESSAGES: usize = 32_768;

/// A device as a session knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRef {
    /// The registry's number.
    pub key: DeviceKey,
    /// Its id.
    pub id: DeviceId,
}

/// One message of one device.
#[derive(Debug)]
pub struct Inbound {
    /// Who sent it: proved by the connection (gateway) or by the broker's rules (external).
    pub device: DeviceRef,
    /// When it came.
    pub at: Timestamp,
    /// What it says.
    pub uplink: Uplink,
    /// Whom to tell once it is committed; `None` for QoS 0.
    pub ack: Option<Ack>,
}

impl Inbound {
    /// It came in over a device's connection.
    pub(crate) fn is_of_connection(&self) -> bool {
        self.ack.as_ref().is_none_or(|ack| ack.sink.is_connection())
    }

    /// Nobody waits for what comes of it.
    pub(crate) fn is_unhurried(&self) -> bool {
        matches!(self.uplink, Uplink::Online { .. } | Uplink::Offline { .. })
    }
}

/// What a message says.
#[derive(Debug)]
pub enum Uplink {
    /// A session opened. Session numbers rise with time.
    Online {
        /// Which.
        session: i64,
    },
    /// A session ended, or the device's will said so.
    Offline {
        /// Which.
        session: i64,
    },
    /// A valid heartbeat and the text it was read from.
    Heartbeat(Box<Heartbeat>, Arc<str>),
    /// The text of a valid heartbeat that has been under way for nobody knows how long: it is kept, and says nothing of now.
    Past(Arc<str>),
    /// Any other valid report.
    Report(Box<Report>),
    /// A report that was dropped as invalid; it passes through only so that acknowledgements keep their order.
    Discarded,
}

impl Uplink {
    /// A valid report and the payload it was read from.
    pub fn report(report: Report, payload: &[u8]) -> Self {
        match report {
            Report::Heartbeat(heartbeat) => Self::Heartbeat(heartbeat, text(payload)),
            report => Self::Report(Box::new(report)),
        }
    }

    /// A valid heartbeat that may be long past, by the payload it was read from.
    pub fn past(payload: &[u8]) -> Self {
        Self::Past(text(payload))
    }
}

/// It was parsed as JSON, so it is text.
fn text(payload: &[u8]) -> Arc<str> {
    std::str::from_utf8(payload).unwrap_or("{}").into()
}

/// Told, once, when a message is committed. A message that is never committed is never acknowledged.
pub trait AckSink: Send + Sync + 'static {
    /// The message with this token is in the database.
    fn committed(&self, token: u64);

    /// Whether a device's connection is behind it.
    fn is_connection(&self) -> bool {
        true
    }
}

/// One message's acknowledgement to come.
#[derive(Clone)]
pub struct Ack {
    sink: Arc<dyn AckSink>,
    token: u64,
}

impl Ack {
    /// The sink's token for one message.
    pub fn new(sink: Arc<dyn AckSink>, token: u64) -> Self {
        Self { sink, token }
    }

    /// The message is in the database.
    pub fn committed(self) {
        self.sink.committed(self.token);
    }
}

impl std::fmt::Debug for Ack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ack({})", self.token)
    }
}

/// The service is shutting down; nothing more is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the service is shutting down")]
pub struct Closed;

/// The way in for the MQTT ends.
#[derive(Debug, Clone)]
pub struct Uplinks {
    queue: mpsc::Sender<Inbound>,
}

impl Uplinks {
    /// A queue and its far end, which `crate::ingest` empties.
    pub fn channel() -> (Self, mpsc::Receiver<Inbound>) {
        let (queue, far_end) = mpsc::channel(QUEUE_MESSAGES);
        (Self { queue }, far_end)
    }

    /// Hands a message over; waits while the queue is full.
    pub async fn submit(&self, message: Inbound) -> Result<(), Closed> {
        self.queue.send(message).await.map_err(|_| Closed)
    }

    /// Hands over as many messages as there is room for, from the front, in one go and without waiting; the others
    /// stay. One call for all that a read from a socket brought.
    pub fn try_submit_many(&self, messages: &mut Vec<Inbound>) -> Result<(), Closed> {
        let fitting = messages.len().min(self.queue.capacity());
        match self.queue.try_reserve_many(fitting) {
            Ok(room) => {
                for (permit, message) in room.zip(messages.drain(..fitting)) {
                    permit.send(message);
                }
                Ok(())
            }
            // Somebody else took the room meanwhile.
            Err(mpsc::error::TrySendError::Full(())) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(())) => Err(Closed),
        }
    }

    /// Messages that wait now.
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }
}
