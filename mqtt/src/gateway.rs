//! The gateway: devices connect here by MQTT 3.1.1 or 5, and nobody else does.
//!
//! Each connection is a task of its own; what it may do is [`crate::session`]'s, which sessions there are is
//! [`Sessions`]'. A device's fault ends its own connection and touches no other.

mod connection;
mod farewell;
mod handshake;
mod mailbox;
mod presence;
mod rooms;
mod sessions;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use device_ota_engine::Engine;
use device_ota_engine::inbound::{Closed, DeviceRef, Inbound, Uplink};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

pub use sessions::Sessions;
pub use wire::TlsConfigs;

use connection::Connection;
use rooms::{Lobby, PATIENCE_WITH_CONNECT, PATIENCE_WITH_HANDSHAKE, Place, Porch};
use wire::Wire;

use crate::limits::Limits;
use crate::session::{End, Rules};

/// Connections that the kernel keeps while we are busy: a fleet that comes back at once.
const BACKLOG: i32 = 8192;
/// Pause after an accept that failed for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often idle devices are forgotten by the rate limits.
const HOUSEKEEPING: Duration = Duration::from_mins(1);
/// Time for connections to say good-bye at shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// Secrets that are looked up at a time: a flood of wrong ones queues here, and not before the whole database.
const MAX_LOOKUPS: usize = 32;
/// Lines a second about what devices did wrong; the counters know of all.
const LOGGED_A_SECOND: NonZeroU32 = NonZeroU32::new(20).unwrap();

/// Listeners for devices, bound and not yet serving.
#[derive(Debug)]
pub struct Gateway {
    listeners: Vec<Listener>,
    sessions: Sessions,
    limits: Limits,
}

impl Gateway {
    /// Listens nowhere yet.
    pub fn new(sessions: Sessions, limits: Limits) -> Self {
        Self {
            listeners: Vec::new(),
            sessions,
            limits,
        }
    }

    /// Listens for devices, with TLS or as they are; port 0 takes a free one, and the real address is answered. To be
    /// called within a tokio runtime.
    pub fn listen(&mut self, addr: SocketAddr, tls: Option<TlsConfigs>) -> io::Result<SocketAddr> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        // Taken over by every connection that it accepts.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        let socket = TcpListener::from_std(socket.into())?;
        let addr = socket.local_addr()?;
        self.listeners.push(Listener { socket, tls });
        Ok(addr)
    }

    /// Serves devices until `shutdown`, then says good-bye to them.
    pub async fn serve(self, engine: Arc<Engine>, shutdown: CancellationToken) {
        let hub = Arc::new(Hub {
            engine,
            sessions: self.sessions,
            limits: self.limits,
            porch: Porch::new(self.limits.max_lingering),
            lookups: Semaphore::new(MAX_LOOKUPS),
            log: RateLimiter::direct(Quota::per_second(LOGGED_A_SECOND)),
            unlogged: AtomicU64::new(0),
            last_session: AtomicI64::new(0),
        });
        let tasks = TaskTracker::new();
        tasks.spawn(read_ahead(Arc::clone(&hub), shutdown.clone()));
        tasks.spawn(keep_house(Arc::clone(&hub), shutdown.clone()));
        let listening = self
            .listeners
            .into_iter()
            .map(|listener| listener.serve(&hub, &tasks, &shutdown));
        join_all(listening).await;
        // Also where nothing listens.
        shutdown.cancelled().await;
        hub.sessions.close();
        tasks.close();
        if tokio::time::timeout(SHUTDOWN_GRACE, tasks.wait())
            .await
            .is_err()
        {
            warn!(
                connections = tasks.len(),
                "connections still open at shutdown"
            );
        }
    }
}

/// One place where devices come in.
#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    tls: Option<TlsConfigs>,
}

impl Listener {
    /// Gives each connection a task of its own, where its handshake is done too, until `shutdown`.
    async fn serve(self, hub: &Arc<Hub>, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let patience = match self.tls {
            None => PATIENCE_WITH_CONNECT,
            Some(_) => PATIENCE_WITH_HANDSHAKE,
        };
        let lobby = Arc::new(Lobby::new(hub.limits.max_unauthenticated, patience));
        let next = async || {
            let (stream, peer) = accept(&self.socket, hub).await;
            (stream, peer, lobby.enter().await)
        };
        while let Some((stream, peer, place)) = shutdown.run_until_cancelled(next()).await {
            let guest = Guest {
                peer,
                place,
                hub: Arc::clone(hub),
                shutdown: shutdown.clone(),
            };
            match &self.tls {
                None => tasks.spawn(guarded(guest.attend(wire::plain(stream)), Arc::clone(hub))),
                Some(configs) => {
                    let config = Arc::clone(&configs.borrow());
                    let secured = wire::secured(stream, config);
                    tasks.spawn(guarded(guest.attend(secured), Arc::clone(hub)))
                }
            };
        }
    }
}

/// What all connections share.
struct Hub {
    engine: Arc<Engine>,
    sessions: Sessions,
    limits: Limits,
    porch: Porch,
    lookups: Semaphore,
    log: DefaultDirectRateLimiter,
    /// Lines that `log` has held back.
    unlogged: AtomicU64,
    last_session: AtomicI64,
}

impl Hub {
    /// A session number above all before it, also above those of an earlier run.
    fn next_session(&self) -> i64 {
        let now = self.engine.clock().now().as_microsecond();
        let next = |last: i64| now.max(last + 1);
        let last = self
            .last_session
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(next(last))
            });
        next(last.unwrap_or_else(|last| last))
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            prefix: self.sessions.prefix(),
            meter: self.sessions.meter(),
        }
    }

    fn count(&self, name: &'static str, label: &'static str) {
        self.engine.metrics().add(name, label, 1);
    }

    /// Whether one more line about a device's fault may be logged: strangers must not fill the log.
    fn may_log(&self) -> bool {
        let may = self.log.check().is_ok();
        if may {
            self.tell_unlogged();
        } else {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
        }
        may
    }

    /// Says how many lines were left out since it was said last.
    fn tell_unlogged(&self) {
        let lines = self.unlogged.swap(0, Ordering::Relaxed);
        if lines > 0 {
            info!(
                lines,
                "lines about devices' faults were left out of the log; the metrics count all"
            );
        }
    }

    /// Tells the engine that a session began or ended.
    async fn tell(&self, device: DeviceRef, uplink: Uplink) -> Result<(), Closed> {
        let at = self.engine.clock().now();
        self.engine
            .uplinks()
            .submit(Inbound {
                device,
                at,
                uplink,
                ack: None,
            })
            .await
    }
}

/// Makes ready for devices that come back.
async fn read_ahead(hub: Arc<Hub>, shutdown: CancellationToken) {
    let reading = hub.engine.read_credentials_ahead();
    if let Some(Err(error)) = shutdown.run_until_cancelled(reading).await {
        debug!(%error, "devices' credentials are read when they come");
    }
}

/// Forgets idle devices, now and then.
async fn keep_house(hub: Arc<Hub>, shutdown: CancellationToken) {
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    while shutdown
        .run_until_cancelled(housekeeping.tick())
        .await
        .is_some()
    {
        hub.sessions.forget_idle();
        hub.tell_unlogged();
    }
}

/// The next connection.
async fn accept(listener: &TcpListener, hub: &Hub) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept connections");
                hub.count("mqtt_accept", "failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors of a connection that went away before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Keeps a defect in the code of one connection from hurting others.
async fn guarded(task: impl Future<Output = ()>, hub: Arc<Hub>) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        hub.count("mqtt_connection", "panicked");
        error!("a connection's task panicked");
    }
}

/// A connection that has just been accepted.
struct Guest {
    peer: SocketAddr,
    place: Place,
    hub: Arc<Hub>,
    shutdown: CancellationToken,
}

impl Guest {
    /// The whole life of one connection. What is needed only at its ends is boxed, so that an idle one stays small.
    fn attend<W: Wire>(
        self,
        wire: impl Future<Output = io::Result<W>> + Send + 'static,
    ) -> impl Future<Output = ()> + Send {
        let opening: Opening<W> = Box::pin(async move {
            let connection = handshake::open(wire, self.peer, self.place, self.hub);
            self.shutdown
                .run_until_cancelled_owned(connection)
                .await
                .flatten()
        });
        attend(opening)
    }
}

type Opening<W> = Pin<Box<dyn Future<Output = Option<Connection<W>>> + Send>>;

async fn attend<W: Wire>(opening: Opening<W>) {
    let Some(mut connection) = opening.await else {
        return;
    };
    let end = std::future::poll_fn(|cx| connection.poll(cx)).await;
    if end.is_offence() {
        connection.hub().count("mqtt_disconnected", end.label());
        if connection.hub().may_log() {
            info!(device.id = %connection.device(), reason = end.label(), "connection ended by the gateway");
        }
    }
    Box::pin(connection.close(end)).await;
}

impl From<End> for u8 {
    fn from(end: End) -> u8 {
        match end {
            End::TakenOver => 1,
            End::Administrative => 2,
            _ => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a connection without TLS, the packets on their way and its mailbox not counted: there are tens of thousands.
    const MAX_IDLE: usize = 512;

    #[test]
    fn an_idle_connection_is_small_and_its_task_holds_little_else() {
        let opening: Opening<TcpStream> = Box::pin(std::future::pending());
        let task = size_of_val(&attend(opening));
        let connection = size_of::<Connection<TcpStream>>();
        assert!(connection <= MAX_IDLE, "{connection} bytes");
        assert!(task <= connection + 64, "{task} bytes around {connection}");
    }
}
