//! From accept to CONNACK: reading a CONNECT from somebody unknown, under a deadline, and finding out who it is.

use std::sync::Arc;
use std::time::Duration;

use device_ota_engine::inbound::{DeviceRef, Uplink};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info};

use super::Hub;
use super::connection::{Connection, Opened};
use super::mailbox::Mailbox;
use crate::codec::{self, CodecError, Connect, Refusal, Version};
use crate::limits::MAX_CONNECT;
use crate::session::{Admission, Session, admit};

/// Bytes asked for at a time; a CONNECT usually fits.
const READ_BYTES: usize = 512;
/// While every place for unknown connections is taken, they get this long instead of the whole time.
const PATIENCE_WHEN_FULL: Duration = Duration::from_secs(1);
/// Time that a refused peer gets to read why, before the connection closes.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes that are still read from it, so that closing does not destroy what it was told.
const MAX_DRAINED: usize = 64 * 1024;

/// Takes a connection as far as CONNACK. `None`: it was refused, or went away.
pub(super) async fn open(
    mut stream: TcpStream,
    hub: Arc<Hub>,
    accepted: Instant,
) -> Option<Connection> {
    // A socket that cannot take the option is about to fail anyway.
    let _ = stream.set_nodelay(true);
    let deadline = accepted + hub.limits.connect_timeout;
    let mut bytes = Vec::new();
    let connect = match read_connect(&mut stream, &mut bytes, accepted, deadline, &hub).await {
        Ok(connect) => connect,
        Err(Some((version, refusal))) => {
            hub.count("mqtt_refused", refusal.label());
            debug!(reason = refusal.label(), "connection refused");
            turn_away(stream, version, refusal).await;
            return None;
        }
        Err(None) => return None,
    };
    let version = connect.version;
    match timeout_at(deadline, let_in(&connect, &hub))
        .await
        .unwrap_or(Err(Refusal::Unavailable))
    {
        Ok((admission, device, mailbox)) => {
            let mut out = Vec::new();
            codec::connack(&mut out, version, admission.offered);
            let session = Session::new(&admission, device.key);
            let silence = admission.silence;
            let opened = Opened {
                device,
                mailbox,
                session,
                silence,
                unread: bytes,
                out,
            };
            Some(Connection::new(stream, hub, opened))
        }
        Err(refusal) => {
            hub.count("mqtt_refused", refusal.label());
            let user = connect.user.as_deref().unwrap_or_default();
            info!(mqtt.user = %user.escape_debug(), reason = refusal.label(), "connection refused");
            turn_away(stream, version, refusal).await;
            None
        }
    }
}

/// Reads the CONNECT and leaves in `bytes` what came after it. An error without content needs no answer.
async fn read_connect(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
    accepted: Instant,
    deadline: Instant,
    hub: &Hub,
) -> Result<Connect, Option<(Version, Refusal)>> {
    let failed = |label| {
        hub.count("mqtt_refused", label);
        None
    };
    loop {
        match codec::read_connect(bytes, MAX_CONNECT) {
            Ok(Some((connect, used))) => {
                bytes.drain(..used);
                return Ok(connect);
            }
            Ok(None) => {}
            Err(CodecError::UnknownVersion(level)) => {
                let version = if level > 5 { Version::V5 } else { Version::V3 };
                return Err(Some((version, Refusal::Version)));
            }
            // Whether it speaks 5 is not known yet; a client of 3.1.1 takes either for the end.
            Err(CodecError::TooLarge(_)) => return Err(Some((Version::V5, Refusal::TooLarge))),
            Err(CodecError::Malformed) => return Err(failed("malformed")),
            Err(CodecError::Unexpected) => return Err(failed("not_connect")),
        }
        bytes.reserve(READ_BYTES);
        let now = Instant::now();
        let patience = if now < accepted + PATIENCE_WHEN_FULL {
            (accepted + PATIENCE_WHEN_FULL).min(deadline)
        } else {
            (now + PATIENCE_WHEN_FULL).min(deadline)
        };
        match timeout_at(patience, stream.read_buf(bytes)).await {
            Ok(Ok(0) | Err(_)) => return Err(None),
            Err(_) if Instant::now() >= deadline => return Err(failed("connect_timeout")),
            Err(_) if hub.unauthenticated.available_permits() == 0 => {
                return Err(failed("connect_timeout_when_full"));
            }
            Ok(Ok(_)) | Err(_) => {}
        }
    }
}

/// Finds out who it is, and enters its session.
async fn let_in(
    connect: &Connect,
    hub: &Hub,
) -> Result<(Admission, DeviceRef, Arc<Mailbox>), Refusal> {
    let admission = admit(connect, hub.sessions.prefix(), &hub.limits)?;
    let secret = connect.password.as_deref().unwrap_or_default();
    let known = hub.engine.authenticate(admission.id.as_str(), secret).await;
    let device = known
        .map_err(|error| {
            debug!(
                error = &error as &dyn std::error::Error,
                "a device could not be checked"
            );
            Refusal::Unavailable
        })?
        .ok_or(Refusal::BadCredentials)?;
    let session = hub.next_session();
    let mailbox = Arc::new(Mailbox::new(session));
    hub.sessions.enter(&device.id, Arc::clone(&mailbox))?;
    let mut entered = Entered {
        hub,
        device: Some(&device),
        session,
    };
    let told = hub.tell(device.clone(), Uplink::Online { session }).await;
    told.map_err(|_| Refusal::Unavailable)?;
    entered.device = None;
    drop(entered);
    Ok((admission, device, mailbox))
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

async fn turn_away(stream: TcpStream, version: Version, refusal: Refusal) {
    let mut out = Vec::new();
    codec::refuse(&mut out, version, refusal);
    farewell(stream, &out).await;
}

/// Says a last word, and gives the peer a moment to read it.
pub(super) async fn farewell(mut stream: TcpStream, word: &[u8]) {
    let last = async {
        stream.write_all(word).await?;
        stream.shutdown().await?;
        let (mut waste, mut drained) = ([0; READ_BYTES], 0);
        while drained < MAX_DRAINED {
            match stream.read(&mut waste).await? {
                0 => break,
                read => drained += read,
            }
        }
        std::io::Result::Ok(())
    };
    // It may be gone, or not listen: either way this is the end.
    let _ = timeout(FAREWELL, last).await;
}
