//! From accept to CONNACK: reading a CONNECT from somebody unknown, under a deadline, and finding out who it is.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use device_ota_domain::DeviceId;
use device_ota_engine::inbound::{DeviceRef, Uplink};
use device_ota_protocol::ids::DeviceId as ProtocolId;
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls as tls;
use tracing::{debug, info};

use super::Hub;
use super::connection::{Connection, Opened};
use super::farewell::farewell;
use super::mailbox::Mailbox;
use super::rooms::Place;
use super::wire::{Certified, Wire};
use crate::codec::{self, CodecError, Connect, Refusal, Version};
use crate::limits::MAX_CONNECT;
use crate::session::{Admission, Class, Session, admit};

/// Bytes asked for at a time; a CONNECT usually fits.
const READ_BYTES: usize = 512;

/// Takes a connection as far as CONNACK: TLS, if there is to be some, then a CONNECT, then who it is. `None`: it was
/// refused, or went away.
pub(super) async fn open<W: Wire>(
    wire: impl Future<Output = io::Result<W>>,
    peer: SocketAddr,
    mut place: Place,
    hub: Arc<Hub>,
) -> Option<Connection<W>> {
    let deadline = Instant::now() + hub.limits.connect_timeout;
    let introduction = timeout_at(deadline, introduce(wire));
    let introduced = match place.while_unknown(introduction).await {
        None => Err((None, Unread::Silent("crowded_out"))),
        Some(Err(_)) => Err((None, Unread::Silent("connect_timeout"))),
        Some(Ok(introduced)) => introduced,
    };
    let (mut wire, connect, bytes) = match introduced {
        Ok(introduced) => introduced,
        Err((wire, unread)) => {
            drop(place);
            give_up(wire, peer, unread, &hub).await;
            return None;
        }
    };
    let version = connect.version;
    match timeout_at(deadline, let_in(&connect, wire.certified(), &hub))
        .await
        .unwrap_or(Err(Refusal::Unavailable))
    {
        Ok((admission, device, mailbox)) => {
            let mut out = Vec::new();
            codec::connack(&mut out, version, admission.offered);
            let written = wire.write_at_once(&out);
            out.drain(..written);
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
            Some(Connection::new(wire, hub, opened))
        }
        Err(refusal) => {
            drop(place);
            hub.count("mqtt_refused", refusal.label());
            if hub.may_log() {
                let user = connect.user.as_deref().unwrap_or_default();
                info!(mqtt.user = %user.escape_debug(), reason = refusal.label(), "connection refused");
            }
            turn_away(wire, version, connect.max_packet, refusal, &hub).await;
            None
        }
    }
}

/// Why there is no CONNECT.
enum Unread {
    /// The peer went away.
    Gone,
    /// There is no TLS with it: the label it is counted by, and what is said of it.
    Insecure(&'static str, io::Error),
    /// Nothing that an answer would mean something to; the label it is counted by.
    Silent(&'static str),
    /// To be told why.
    Refused(Version, Refusal),
}

impl Unread {
    /// Why a handshake of TLS has failed.
    fn insecure(error: io::Error) -> Self {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
        match cause {
            // What it shows is revoked, of another authority, or over; or there is none and there must be one.
            Some(tls::Error::InvalidCertificate(_) | tls::Error::NoCertificatesPresented) => {
                Self::Insecure("tls_certificate", error)
            }
            Some(_) => Self::Insecure("tls_handshake", error),
            None => Self::Gone,
        }
    }
}

/// The wire with its CONNECT and what came after it; or why there is none, with a wire that can still be answered by.
type Introduced<W> = Result<(W, Connect, Vec<u8>), (Option<W>, Unread)>;

async fn introduce<W: Wire>(wire: impl Future<Output = io::Result<W>>) -> Introduced<W> {
    let secured = wire.await;
    let mut wire = secured.map_err(|error| (None, Unread::insecure(error)))?;
    // A client says CONNECT as soon as it is connected, so this is usually all of it.
    let mut first = [0; READ_BYTES];
    let read = wire.read_at_once(&mut first);
    let mut bytes = first.get(..read).unwrap_or_default().to_vec();
    match read_connect(&mut wire, &mut bytes).await {
        Ok(connect) => Ok((wire, connect, bytes)),
        Err(unread) => Err((Some(wire), unread)),
    }
}

/// Reads the CONNECT and leaves in `bytes` what came after it.
async fn read_connect(stream: &mut impl Wire, bytes: &mut Vec<u8>) -> Result<Connect, Unread> {
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
            Err(CodecError::Malformed | CodecError::TopicAlias) => {
                return Err(Unread::Silent("malformed"));
            }
            Err(CodecError::Unexpected) => return Err(Unread::Silent("not_connect")),
        }
        bytes.reserve(READ_BYTES);
        match stream.read_buf(bytes).await {
            Ok(0) | Err(_) => return Err(Unread::Gone),
            Ok(_) => {}
        }
    }
}

async fn give_up(wire: Option<impl Wire>, peer: SocketAddr, unread: Unread, hub: &Hub) {
    let (label, error) = match &unread {
        Unread::Gone => return,
        Unread::Insecure(label, error) => (*label, Some(error)),
        Unread::Silent(label) => (*label, None),
        Unread::Refused(_, refusal) => (refusal.label(), None),
    };
    hub.count("mqtt_refused", label);
    if hub.may_log() {
        let error = error.map(tracing::field::display);
        info!(client.address = %peer, reason = label, error, "connection refused");
    }
    if let (Some(wire), Unread::Refused(version, refusal)) = (wire, unread) {
        turn_away(wire, version, None, refusal, hub).await;
    }
}

/// Finds out who it is, and enters its session.
async fn let_in(
    connect: &Connect,
    certified: Certified,
    hub: &Hub,
) -> Result<(Admission, DeviceRef, Arc<Mailbox>), Refusal> {
    let certified = match certified {
        Certified::Nobody => None,
        Certified::Device(id) => Some(id),
        Certified::Stranger => return Err(Refusal::Certificate),
    };
    let admission = admit(
        connect,
        certified.as_ref(),
        hub.sessions.prefix(),
        &hub.limits,
    )?;
    let proof = match certified {
        Some(_) => Proof::Certificate,
        None => Proof::Secret(connect.password.as_deref().unwrap_or_default()),
    };
    let revocations = hub.engine.revocations();
    let device = prove(&admission.id, proof, hub).await?;
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
        prove(&admission.id, proof, hub).await?;
    }
    let told = hub.tell(device.clone(), Uplink::Online { session }).await;
    told.map_err(|_| Refusal::Unavailable)?;
    entered.device = None;
    drop(entered);
    Ok((admission, device, mailbox))
}

/// By what a device has proved its name.
#[derive(Clone, Copy)]
enum Proof<'a> {
    Secret(&'a [u8]),
    /// In the handshake; whether there is such a device, only the database knows.
    Certificate,
}

/// The device whose name is proved.
async fn prove(id: &ProtocolId, proof: Proof<'_>, hub: &Hub) -> Result<DeviceRef, Refusal> {
    let id: DeviceId = id.as_str().parse().map_err(|_| Refusal::BadCredentials)?;
    if let Proof::Secret(secret) = proof
        && let Some(device) = hub.engine.recognise(&id, secret)
    {
        return Ok(device);
    }
    // The semaphore is never closed.
    let _turn = hub.lookups.acquire().await;
    let known = match proof {
        Proof::Secret(secret) => hub.engine.authenticate(&id, secret).await,
        Proof::Certificate => hub.engine.resolve(&id).await,
    };
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
    stream: impl Wire,
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
