//! A light MQTT 3.1.1 and 5 client: one socket, two buffers that are given back when empty, no
//! task and no queue of its own. Thousands fit into one process; its owner polls [`Client::next`].

mod codec;
mod wire;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mqtt_proto::Pid;
use tokio::io::{AsyncWrite as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::io::poll_read_buf;

pub use codec::Message;
pub use mqtt_proto::TopicName as Topic;
pub use wire::Tls;

use codec::Packet;
use wire::Wire;

/// How long a server may take to accept a connection and to answer CONNECT: it may be starting up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes made room for at a time when no packet's length is known: most packets fit.
const READ_STEP: usize = 2 * 1024;
/// Most bytes that wait to be written: a sender must let the server keep up.
const MAX_UNSENT: usize = 1024 * 1024;

/// Which MQTT to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// MQTT 3.1.1.
    V3,
    /// MQTT 5.
    V5,
}

/// Who connects, where and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub server: SocketAddr,
    /// TLS to it; `None`: none.
    pub tls: Option<Tls>,
    /// Which MQTT to speak.
    pub version: Version,
    /// The client's name.
    pub client_id: std::sync::Arc<str>,
    /// Its credentials, if it has some.
    pub user: Option<User>,
    /// What the server publishes when the connection ends without DISCONNECT.
    pub will: Option<Will>,
    /// Longest silence in seconds; 0 means no limit. The server may choose another one (MQTT 5).
    pub keep_alive_s: u16,
}

/// A user name and its password.
#[derive(Clone)]
pub struct User {
    /// The name.
    pub name: std::sync::Arc<str>,
    /// The secret.
    pub password: Bytes,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "User({})", self.name)
    }
}

/// A Last Will, published with `QoS` 1.
#[derive(Debug, Clone)]
pub struct Will {
    /// Where.
    pub topic: Topic,
    /// What.
    pub payload: Bytes,
}

/// Why a connection failed. None of these can be mended on the same connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("connection failed")]
    Io(#[from] io::Error),
    /// The server closed the connection.
    #[error("connection closed by the server")]
    Closed,
    /// The server answered CONNECT with a refusal.
    #[error("connection refused with code {0:#04x}")]
    Refused(u8),
    /// The server said goodbye (MQTT 5).
    #[error("disconnected by the server with code {0:#04x}")]
    Disconnected(u8),
    /// The server did not answer in time.
    #[error("the server does not answer")]
    TimedOut,
    /// What the server sent is not MQTT.
    #[error("malformed packet from the server")]
    Malformed,
    /// The server sent more than a client of this protocol has to take.
    #[error("packet of {0} bytes from the server")]
    TooLarge(usize),
    /// More is waiting to be sent than may wait.
    #[error("more than {MAX_UNSENT} bytes are waiting to be sent")]
    Full,
    /// A packet cannot be written, such as one with an invalid topic.
    #[error("packet cannot be encoded")]
    Encode(#[from] mqtt_proto::Error),
}

impl Error {
    /// Whether the server refused the credentials, rather than failed.
    pub const fn is_not_authorised(&self) -> bool {
        matches!(self, Self::Refused(4 | 5 | 0x86 | 0x87))
    }
}

/// What happened on a connection.
#[derive(Debug, Clone)]
pub enum Event {
    /// A message came. It was acknowledged, if it asked for that.
    Message(Message),
    /// The server acknowledged a publish.
    Acked {
        /// What [`Client::publish`] returned for it.
        pid: u16,
        /// Whether the server took it. MQTT 3.1.1 cannot say no.
        accepted: bool,
    },
    /// The server answered a subscription.
    Subscribed {
        /// What [`Client::subscribe`] returned for it.
        pid: u16,
        /// Whether the filter was granted.
        granted: bool,
    },
}

/// What [`Client::pipeline`] achieved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pipelined {
    /// Messages the server acknowledged and took.
    pub accepted: u64,
    /// Messages it acknowledged with a refusal (MQTT 5).
    pub refused: u64,
    /// Messages that came in meanwhile.
    pub received: u64,
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    wire: Wire,
    /// What the wire has taken has not all gone out.
    unflushed: bool,
    version: Version,
    input: BytesMut,
    output: BytesMut,
    next_pid: Pid,
    in_flight: usize,
    window: usize,
    keep_alive: Option<Duration>,
    last_sent: Instant,
    /// When the PINGREQ was sent that no answer has come to.
    pinged: Option<Instant>,
}

impl Client {
    /// Connects and waits for the server's answer.
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        timeout(CONNECT_TIMEOUT, Self::open(options))
            .await
            .map_err(|_| Error::TimedOut)?
    }

    async fn open(options: &Options) -> Result<Self, Error> {
        let mut client = Self {
            wire: Wire::connect(options.server, options.tls.as_ref()).await?,
            unflushed: false,
            version: options.version,
            input: BytesMut::new(),
            output: BytesMut::new(),
            next_pid: Pid::default(),
            in_flight: 0,
            window: usize::from(u16::MAX),
            keep_alive: None,
            last_sent: Instant::now(),
            pinged: None,
        };
        codec::connect(&mut client.output, options)?;
        let ack = loop {
            match codec::read(client.version, &mut client.input)? {
                Some(Packet::Connack(ack)) => break ack,
                Some(Packet::Disconnect { code }) => return Err(Error::Disconnected(code)),
                Some(_) => return Err(Error::Malformed),
                None => client.step().await?,
            }
        };
        if ack.code != 0 {
            return Err(Error::Refused(ack.code));
        }
        client.window = usize::from(ack.receive_maximum);
        let keep_alive = ack.keep_alive_s.unwrap_or(options.keep_alive_s);
        client.keep_alive = (keep_alive > 0).then(|| Duration::from_secs(u64::from(keep_alive)));
        Ok(client)
    }

    /// Puts a message with `QoS` 1 into the buffer and returns its packet id, which
    /// [`Event::Acked`] brings back. It is sent by [`Client::next`] or [`Client::flush`].
    pub fn publish(&mut self, topic: &Topic, payload: Bytes) -> Result<u16, Error> {
        self.ensure_room()?;
        let pid = self.take_pid();
        codec::publish(&mut self.output, self.version, topic, payload, Some(pid))?;
        self.in_flight += 1;
        Ok(pid.value())
    }

    /// Puts a message with `QoS` 0 into the buffer: no answer comes to it.
    pub fn publish_unacknowledged(&mut self, topic: &Topic, payload: Bytes) -> Result<(), Error> {
        self.ensure_room()?;
        codec::publish(&mut self.output, self.version, topic, payload, None)
    }

    /// Asks for a subscription with `QoS` 1; [`Event::Subscribed`] brings the answer.
    pub fn subscribe(&mut self, filter: &str) -> Result<u16, Error> {
        self.ensure_room()?;
        let pid = self.take_pid();
        codec::subscribe(&mut self.output, self.version, filter, pid)?;
        Ok(pid.value())
    }

    /// Messages with `QoS` 1 that the server has not acknowledged yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether the server is ready for one more message with `QoS` 1.
    pub fn has_window(&self) -> bool {
        self.in_flight < self.window
    }

    /// Waits for the next event, writing what waits and keeping the connection alive meanwhile.
    /// May be dropped and called again without losing anything.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.buffered()? {
                return Ok(event);
            }
            self.step().await?;
        }
    }

    /// Waits until everything is written.
    pub async fn flush(&mut self) -> Result<(), Error> {
        poll_fn(|context| {
            self.write(context)?;
            if self.output.is_empty() && !self.unflushed {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        })
        .await
    }

    /// Publishes messages with `QoS` 1 as fast as acknowledgements come, with at most `window` on
    /// their way, until `payloads` ends and all are acknowledged.
    pub async fn pipeline(
        &mut self,
        topic: &Topic,
        window: usize,
        payloads: impl IntoIterator<Item = Bytes>,
    ) -> Result<Pipelined, Error> {
        let mut payloads = payloads.into_iter().fuse();
        let window = window.clamp(1, self.window);
        let mut done = Pipelined::default();
        loop {
            while self.in_flight < window
                && let Some(payload) = payloads.next()
            {
                self.publish(topic, payload)?;
            }
            if self.in_flight == 0 {
                return Ok(done);
            }
            match self.next().await? {
                Event::Acked { accepted: true, .. } => done.accepted += 1,
                Event::Acked { .. } => done.refused += 1,
                Event::Message(_) => done.received += 1,
                Event::Subscribed { .. } => {}
            }
        }
    }

    /// Ends the connection in order: the Last Will is not published.
    pub async fn disconnect(mut self) -> Result<(), Error> {
        codec::disconnect(&mut self.output);
        self.flush().await?;
        self.wire.shutdown().await?;
        Ok(())
    }

    /// Ends the connection with a TCP reset, as a lost link or a power cut looks.
    pub fn abort(self) {
        // Without it the socket closes in order, which serves nearly as well.
        let _ = self.wire.socket().set_zero_linger();
    }

    fn ensure_room(&self) -> Result<(), Error> {
        if self.output.len() > MAX_UNSENT {
            return Err(Error::Full);
        }
        Ok(())
    }

    /// Ids come round after 65,535 publishes, far more than are ever in flight.
    fn take_pid(&mut self) -> Pid {
        let pid = self.next_pid;
        self.next_pid += 1;
        pid
    }

    /// The next event among the bytes at hand.
    fn buffered(&mut self) -> Result<Option<Event>, Error> {
        while let Some(packet) = codec::read(self.version, &mut self.input)? {
            match packet {
                Packet::Publish(message) => {
                    if let Some(pid) = message.pid {
                        codec::puback(&mut self.output, pid);
                    }
                    return Ok(Some(Event::Message(message)));
                }
                Packet::Puback { pid, code } => {
                    self.in_flight = self.in_flight.saturating_sub(1);
                    let accepted = !codec::is_refusal(code);
                    return Ok(Some(Event::Acked { pid, accepted }));
                }
                Packet::Suback { pid, granted } => {
                    return Ok(Some(Event::Subscribed { pid, granted }));
                }
                Packet::Pingresp => self.pinged = None,
                Packet::Disconnect { code } => return Err(Error::Disconnected(code)),
                Packet::Connack(_) | Packet::Other => return Err(Error::Malformed),
            }
        }
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        Ok(None)
    }

    /// Moves bytes once, in either direction, or does what keep-alive asks for.
    async fn step(&mut self) -> Result<(), Error> {
        let due = self.due();
        let moved = tokio::select! {
            moved = poll_fn(|context| self.poll_move(context)) => Some(moved?),
            () = sleep_until(due) => None,
        };
        moved.map_or_else(|| self.keep_alive(), Ok)
    }

    fn poll_move(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let wrote = self.write(context)?;
        match self.poll_read(context) {
            Poll::Pending if wrote => Poll::Ready(Ok(())),
            read => read,
        }
    }

    /// Writes what the wire takes; true when that was something.
    fn write(&mut self, context: &mut Context<'_>) -> Result<bool, Error> {
        let mut wrote = false;
        while !self.output.is_empty() {
            match Pin::new(&mut self.wire).poll_write(context, &self.output)? {
                Poll::Ready(0) => return Err(Error::Closed),
                Poll::Ready(written) => bytes::Buf::advance(&mut self.output, written),
                Poll::Pending => break,
            }
            (wrote, self.unflushed) = (true, true);
        }
        if self.unflushed && Pin::new(&mut self.wire).poll_flush(context)?.is_ready() {
            self.unflushed = false;
        }
        if wrote && self.output.is_empty() {
            self.output = BytesMut::new();
            self.last_sent = Instant::now();
        }
        Ok(wrote)
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let room = codec::missing(&self.input).unwrap_or(0).max(READ_STEP);
        self.input.reserve(room);
        let read = poll_read_buf(Pin::new(&mut self.wire), context, &mut self.input);
        if self.input.is_empty() {
            // Who waits holds no buffer.
            self.input = BytesMut::new();
        }
        match ready!(read)? {
            0 => Poll::Ready(Err(Error::Closed)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// When to ping, or to give up waiting for the answer to a ping.
    fn due(&self) -> Instant {
        match (self.keep_alive, self.pinged) {
            (Some(limit), Some(pinged)) => pinged + limit,
            (Some(limit), None) => self.last_sent + limit * 3 / 4,
            (None, _) => self.last_sent + Duration::from_hours(24),
        }
    }

    fn keep_alive(&mut self) -> Result<(), Error> {
        if self.pinged.is_some() {
            return Err(Error::TimedOut);
        }
        if self.keep_alive.is_some() {
            codec::pingreq(&mut self.output);
            self.pinged = Some(Instant::now());
        }
        self.last_sent = Instant::now();
        Ok(())
    }
}
