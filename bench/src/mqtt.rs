//! Just enough MQTT 3.1.1 for load: packets made once, written many at a time, and acknowledgements counted by their
//! bytes. A real client would cost the machine more than what is measured.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::fleet::SECRET;

/// A heartbeat as devices send it.
pub(crate) const PAYLOAD: &str = r#"{"version":"1.0.0","slot":"a","confirmed":true,"boot_id":"b-5d1e","uptime_s":86400,"sent_at":"2026-01-02T03:04:05Z","battery":{"percent":87.5,"charging":false},"storage":{"free_bytes":734003200,"total_bytes":1073741824},"cpu_percent":12.5,"temperature_c":41.0}"#;

/// How long a server may take to answer CONNECT or SUBSCRIBE.
const ANSWER_TIME: Duration = Duration::from_mins(1);
/// Bytes of a PUBACK.
pub(crate) const PUBACK_BYTES: usize = 4;
/// Seconds of silence that clients ask for: longer than any run.
const KEEP_ALIVE: u16 = 600;

/// Addresses of this machine that clients connect from in turn. From one alone, the kernel's search for a port that is free
/// costs more than the rest of a connection, once ten thousand are taken.
const SOURCES: u16 = 16;

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
}

/// Where clients connect, and how they prove who they are.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    addr: SocketAddr,
    /// The password of every client, each by its own name; without one none is sent.
    password: Option<Arc<str>>,
    /// Connections so far.
    opened: Arc<AtomicU16>,
}

impl Target {
    /// Nobody is asked for a password.
    pub(crate) fn open_to_all(addr: SocketAddr) -> Self {
        Self {
            addr,
            password: None,
            opened: Arc::default(),
        }
    }

    /// Everybody is a device of [`crate::fleet`].
    pub(crate) fn of_devices(addr: SocketAddr) -> Self {
        Self {
            addr,
            password: Some(SECRET.into()),
            opened: Arc::default(),
        }
    }

    /// Connects and says who it is; the answer is on its way.
    fn introduce(&self, id: &str) -> anyhow::Result<std::net::TcpStream> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed) % SOURCES;
        let [_, last] = number.to_be_bytes();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        let source: SocketAddr = (Ipv4Addr::new(127, 0, 0, last + 1), 0).into();
        socket.bind(&source.into())?;
        socket.connect(&self.addr.into())?;
        socket.set_read_timeout(Some(ANSWER_TIME))?;
        let mut stream: std::net::TcpStream = socket.into();
        stream.write_all(&connect(id, self.password.as_deref()))?;
        Ok(stream)
    }
}

/// A connection whose CONNECT is answered, and which belongs to no runtime yet.
#[derive(Debug)]
pub(crate) struct Opened {
    name: String,
    stream: std::net::TcpStream,
}

impl Opened {
    /// Waits for the CONNACK.
    fn answered(name: String, mut stream: std::net::TcpStream) -> anyhow::Result<Self> {
        let mut answer = [0; 4];
        stream
            .read_exact(&mut answer)
            .with_context(|| format!("no CONNACK for {name}"))?;
        anyhow::ensure!(
            answer == [0x20, 2, 0, 0],
            "CONNECT of {name} was answered with {answer:02x?}"
        );
        Ok(Self { name, stream })
    }

    /// Gives the connection to the runtime that this is called in.
    fn adopt(self) -> anyhow::Result<(String, Connection)> {
        self.stream.set_nodelay(true)?;
        self.stream.set_nonblocking(true)?;
        let stream = TcpStream::from_std(self.stream)?;
        Ok((self.name, Connection { stream }))
    }
}

/// Opens a connection for each name, in their order, with so many unanswered at a time. By blocking calls, and no more of them
/// than it takes: a generator that does more work for a connection than the server measures itself.
pub(crate) fn open_each(
    target: &Target,
    names: Vec<String>,
    at_a_time: usize,
) -> anyhow::Result<Vec<Opened>> {
    let mut open = Vec::with_capacity(names.len());
    let mut waiting = VecDeque::with_capacity(at_a_time);
    for name in names {
        if waiting.len() >= at_a_time
            && let Some((name, stream)) = waiting.pop_front()
        {
            open.push(Opened::answered(name, stream)?);
        }
        let stream = target.introduce(&name)?;
        waiting.push_back((name, stream));
    }
    for (name, stream) in waiting {
        open.push(Opened::answered(name, stream)?);
    }
    Ok(open)
}

/// Gives connections to the runtime that this is called in.
pub(crate) fn adopt_all(opened: Vec<Opened>) -> anyhow::Result<Vec<(String, Connection)>> {
    opened.into_iter().map(Opened::adopt).collect()
}

/// Opens a connection for each name, so many at a time, for the runtime that this is called in.
pub(crate) fn open_all(
    target: &Target,
    names: Vec<String>,
    at_a_time: usize,
) -> anyhow::Result<Vec<(String, Connection)>> {
    adopt_all(open_each(target, names, at_a_time)?)
}

impl Connection {
    /// Connects and waits for the CONNACK.
    pub(crate) fn open(target: &Target, id: &str) -> anyhow::Result<Self> {
        let stream = target.introduce(id)?;
        Ok(Opened::answered(id.to_owned(), stream)?.adopt()?.1)
    }

    /// Subscribes to one filter with `QoS` 1 and waits for the SUBACK.
    pub(crate) async fn subscribe(&mut self, filter: &str) -> anyhow::Result<()> {
        let subscribing = async {
            let mut body = vec![0, 1];
            text(&mut body, filter.as_bytes());
            body.push(1);
            self.stream.write_all(&packet(0x82, &body)).await?;
            let mut answer = [0; 5];
            self.stream.read_exact(&mut answer).await?;
            anyhow::ensure!(
                answer == [0x90, 3, 0, 1, 1],
                "SUBSCRIBE to {filter} was answered with {answer:02x?}"
            );
            Ok(())
        };
        tokio::time::timeout(ANSWER_TIME, subscribing)
            .await
            .context("no SUBACK in time")?
    }
}

/// Subscribes every connection to its own `down/` tree, so many at a time.
pub(crate) async fn subscribe_all(
    connections: Vec<(String, Connection)>,
    at_a_time: usize,
) -> anyhow::Result<Vec<(String, Connection)>> {
    let places = Arc::new(Semaphore::new(at_a_time));
    let mut subscribing = JoinSet::new();
    for (name, mut connection) in connections {
        let places = places.clone();
        subscribing.spawn(async move {
            let _place = places.acquire_owned().await?;
            connection
                .subscribe(&format!("ota/v1/{name}/down/#"))
                .await?;
            anyhow::Ok((name, connection))
        });
    }
    let mut done = Vec::with_capacity(subscribing.len());
    while let Some(subscribed) = subscribing.join_next().await {
        done.push(subscribed??);
    }
    Ok(done)
}

fn connect(id: &str, password: Option<&str>) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, b"MQTT");
    body.push(4);
    body.push(if password.is_some() { 0xc2 } else { 0x02 });
    body.extend(KEEP_ALIVE.to_be_bytes());
    text(&mut body, id.as_bytes());
    if let Some(password) = password {
        text(&mut body, id.as_bytes());
        text(&mut body, password.as_bytes());
    }
    packet(0x10, &body)
}

/// A PUBLISH with `QoS` 1.
pub(crate) fn publish(topic: &str, packet_id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(topic.len() + payload.len() + 4);
    text(&mut body, topic.as_bytes());
    body.extend(packet_id.to_be_bytes());
    body.extend_from_slice(payload);
    packet(0x32, &body)
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 5);
    out.push(first);
    let mut left = body.len();
    loop {
        let low = u8::try_from(left % 128).unwrap_or(0);
        left /= 128;
        out.push(if left > 0 { low | 0x80 } else { low });
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

/// One packet: its first byte, its body, and the bytes that it takes in all. `None`: more bytes are needed.
pub(crate) fn split(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (&first, rest) = bytes.split_first()?;
    let mut length = 0;
    for (at, &byte) in rest.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let head = 2 + at;
            return Some((first, bytes.get(head..head + length)?, head + length));
        }
    }
    None
}

/// The parts of a PUBLISH with `QoS` 1: packet id (big-endian) and payload.
pub(crate) fn publish_parts(body: &[u8]) -> Option<([u8; 2], &[u8])> {
    let (length, rest) = body.split_first_chunk::<2>()?;
    let (_, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    let (id, payload) = rest.split_first_chunk::<2>()?;
    Some((*id, payload))
}

/// What a subscriber reads: calls `take` for every PUBLISH with `QoS` 1 and acknowledges it. Ends with the connection.
pub(crate) async fn receive(stream: &TcpStream, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut waiting: Vec<u8> = Vec::new();
    loop {
        stream.readable().await?;
        if read_more(stream, &mut waiting)? == 0 {
            continue;
        }
        let mut acks = Vec::new();
        let mut used = 0;
        while let Some((first, body, length)) = waiting.get(used..).and_then(split) {
            if first & 0xf6 == 0x32
                && let Some((id, payload)) = publish_parts(body)
            {
                take(payload);
                acks.extend([0x40, 2]);
                acks.extend(id);
            }
            used += length;
        }
        waiting.drain(..used);
        if waiting.is_empty() {
            waiting = Vec::new();
        }
        write_whole(stream, &acks).await?;
    }
}

/// Reads once, without waiting.
fn read_more(stream: &TcpStream, into: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = [0; 8 * 1024];
    match stream.try_read(&mut buffer) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => {
            into.extend_from_slice(buffer.get(..count).unwrap_or_default());
            Ok(count)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error),
    }
}

/// Writes all of it through a shared reference.
pub(crate) async fn write_whole(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Counts acknowledgements that have come, without waiting. `carried` keeps the bytes of a PUBACK that came in parts.
pub(crate) fn take_acks(stream: &TcpStream, carried: &mut usize) -> io::Result<u64> {
    let mut buffer = [0; 4 * 1024];
    let mut count = 0;
    loop {
        match stream.try_read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                let all = *carried + bytes;
                *carried = all % PUBACK_BYTES;
                count += (all / PUBACK_BYTES) as u64;
                if bytes < buffer.len() {
                    return Ok(count);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_is_read_back_as_written() {
        let bytes = publish("a/b", 258, &[7; 200]);
        let whole = split(&bytes);
        assert!(matches!(whole, Some((0x32, _, length)) if length == bytes.len()));
        let parts = whole.and_then(|(_, body, _)| publish_parts(body));
        assert_eq!(parts, Some(([1, 2], &[7; 200][..])));
        assert!(split(bytes.get(..100).unwrap_or_default()).is_none());
    }
}
