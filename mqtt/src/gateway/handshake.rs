//! From accept to CONNACK: reading a CONNECT from somebody unknown, under a deadline, and finding out who it is.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use device_ota_domain::DeviceId;
use device_ota_engine::inbound::{DeviceRef, Uplink};
use device_ota_protocol::ids::DeviceId as ProtocolId;
use socket2::SockRef;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info};

use super::Hub;
use super::connection::{Connection, Opened};
use super::farewell::farewell;
use super::mailbox::Mailbox;
use super::rooms::Place;
use crate::codec::{self, CodecError, Connect, Refusal, Version};
use crate::limits::MAX_CONNECT;
use crate::session::{Admission, Class, Session, admit};

/// Bytes asked for at a time; a CONNECT usually fits.
const READ_BYTES: usize = 512;

/// Takes a connection as far as CONNACK. `None`: it was refused, or went away.
pub(super) async fn open(
    mut stream: TcpStream,
    mut place: Place,
    hub: Arc<Hub>,
) -> Option<Connection> {
    let deadline = Instant::now() + hub.limits.connect_timeout;
    let mut bytes = read_at_once(&stream);
    let reading = timeout_at(deadline, read_connect(&mut stream, &mut bytes));
    let connect = match place.while_unknown(reading).await {
        Some(Ok(Ok(connect))) => connect,
        failed => {
            drop(place);
            let error = match failed {
                None => Unread::Silent("crowded_out"),
                Some(Err(_)) => Unread::Silent("connect_timeout"),
                Some(Ok(read)) => read.err()?,
            };
            give_up(stream, error, &hub).await;
            return None;
        }
    };
    let version = connect.version;
    match timeout_at(deadline, let_in(&connect, &hub))
        .await
        .unwrap_or(Err(Refusal::Unavailable))
    {
        Ok((admission, device, mailbox)) => {
            let mut out = Vec::new();
            codec::connack(&mut out, version, admission.offered);
            write_at_once(&stream, &mut out);
            let session = Session::new(&admission, device.key);
            let silence = admission.silence;
            let opened = Opened {
                device,
                mailbox,
                session,
                silence,
                // Its room is given back: most CONNECTs come alone.
                unread: bytes.as_slice().to_vec(),
                out,
            };
            Some(Connection::new(stream, hub, opened))
        }
        Err(refusal) => {
            drop(place);
            hub.count("mqtt_refused", refusal.label());
            if hub.may_log() {
                let user = connect.user.as_deref().unwrap_or_default();
                info!(mqtt.user = %user.escape_debug(), reason = refusal.label(), "connection refused");
            }
            turn_away(stream, version, connect.max_packet, refusal, &hub).await;
            None
        }
    }
}

/// Why there is no CONNECT.
enum Unread {
    /// The peer went away.
    Gone,
    /// Nothing that an answer would mean something to; the label it is counted by.
    Silent(&'static str),
    /// To be told why.
    Refused(Version, Refusal),
}

/// What has come already. A client says CONNECT as soon as it is connected, so this is usually all of it, and nobody
/// waits until the runtime has heard of the socket.
fn read_at_once(stream: &TcpStream) -> Vec<u8> {
    let mut bytes = [0; READ_BYTES];
    // Nothing yet, an end or an error: who waits for more finds out.
    let read = (&*SockRef::from(stream)).read(&mut bytes).unwrap_or(0);
    bytes.get(..read).unwrap_or_default().to_vec()
}

/// Sends what the socket takes, and leaves the rest.
fn write_at_once(stream: &TcpStream, out: &mut Vec<u8>) {
    let written = (&*SockRef::from(stream)).write(out).unwrap_or(0);
    out.drain(..written);
}

/// Reads the CONNECT and leaves in `bytes` what came after it.
async fn read_connect(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<Connect, Unread> {
    loop {
        match codec::read_connect(bytes, MAX_CONNECT) {
            Ok(Some((connect, used))) => {
                bytes.drain(..used);
                return Ok(connect);
            }
            Ok(None) => {}
            Err(CodecError::UnknownVersion(level)) => {
                let version = if level > 5 { Version::V5 } else { Version::V3 };
                return Err(Unread::Refused(version, Refusal::Version));
            }
            // Where so little has come that nobody knows what it speaks: a client of 3.1.1 takes either for the end.
            Err(CodecError::TooLarge(_)) => {
                let version = codec::asked_version(bytes).unwrap_or(Version::V5);
                return Err(Unread::Refused(version, Refusal::TooLarge));
            }
            Err(CodecError::Malformed) => return Err(Unread::Silent("malformed")),
            Err(CodecError::Unexpected) => return Err(Unread::Silent("not_connect")),
        }
        bytes.reserve(READ_BYTES);
        match stream.read_buf(bytes).await {
            Ok(0) | Err(_) => return Err(Unread::Gone),
            Ok(_) => {}
        }
    }
}

async fn give_up(stream: TcpStream, error: Unread, hub: &Hub) {
    match error {
        Unread::Gone => {}
        Unread::Silent(label) => tell_refused(&stream, label, hub),
        Unread::Refused(version, refusal) => {
            tell_refused(&stream, refusal.label(), hub);
            turn_away(stream, version, None, refusal, hub).await;
        }
    }
}

/// Counts the refusal of somebody without a name, and logs it.
fn tell_refused(stream: &TcpStream, reason: &'static str, hub: &Hub) {
    hub.count("mqtt_refused", reason);
    if hub.may_log() {
        let client = stream.peer_addr().ok().map(tracing::field::display);
        info!(client.address = client, reason, "connection refused");
    }
}

/// Finds out who it is, and enters its session.
async fn let_in(
    connect: &Connect,
    hub: &Hub,
) -> Result<(Admission, DeviceRef, Arc<Mailbox>), Refusal> {
    let admission = admit(connect, hub.sessions.prefix(), &hub.limits)?;
    let secret = connect.password.as_deref().unwrap_or_default();
    let revocations = hub.engine.revocations();
    let device = prove(&admission.id, secret, hub).await?;
    // Two clients with one id would take over from each other without end.
    let rate = hub.sessions.meter().allow(Class::Connect, device.key);
    rate.map_err(|_| Refusal::ConnectRate)?;
    let session = hub.next_session();
    let mailbox = Arc::new(Mailbox::new(session));
    hub.sessions.enter(&device.id, Arc::clone(&mailbox))?;
    let mut entered = Entered {
        hub,
        device: Some(&device),
        session,
    };
    // Whoever takes a secret back ends the session that he finds: there was none yet.
    if hub.engine.revocations() != revocations {
        prove(&admission.id, secret, hub).await?;
    }
    let told = hub.tell(device.clone(), Uplink::Online { session }).await;
    told.map_err(|_| Refusal::Unavailable)?;
    entered.device = None;
    drop(entered);
    Ok((admission, device, mailbox))
}

/// The device that this secret proves.
async fn prove(id: &ProtocolId, secret: &[u8], hub: &Hub) -> Result<DeviceRef, Refusal> {
    let id: DeviceId = id.as_str().parse().map_err(|_| Refusal::BadCredentials)?;
    if let Some(device) = hub.engine.recognise(&id, secret) {
        return Ok(device);
    }
    // The semaphore is never closed.
    let _turn = hub.lookups.acquire().await;
    let known = hub.engine.authenticate(&id, secret).await;
    let known = known.map_err(|error| {
        debug!(
            error = &error as &dyn std::error::Error,
            "a device could not be checked"
        );
        Refusal::Unavailable
    })?;
    known.ok_or(Refusal::BadCredentials)
}

/// Takes the session out again if its opening is given up half-way.
struct Entered<'a> {
    hub: &'a Hub,
    device: Option<&'a DeviceRef>,
    session: i64,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(device) = self.device {
            self.hub.sessions.leave(&device.id, self.session);
        }
    }
}

async fn turn_away(
    stream: TcpStream,
    version: Version,
    max_packet: Option<u32>,
    refusal: Refusal,
    hub: &Hub,
) {
    let mut word = Vec::new();
    codec::refuse(&mut word, version, refusal);
    // MQTT-3.1.2-24: a client is sent nothing larger than it takes.
    if max_packet.is_some_and(|max| word.len() as u64 > u64::from(max)) {
        return;
    }
    farewell(stream, &word, hub).await;
}
