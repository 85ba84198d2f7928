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

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use device_ota_engine::Engine;
use device_ota_engine::inbound::{Closed, DeviceRef, Inbound, Uplink};
use futures_util::FutureExt as _;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

pub use sessions::Sessions;

use rooms::{Lobby, Place, Porch};

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

/// A listener for devices, bound and not yet serving.
#[derive(Debug)]
pub struct Gateway {
    listener: TcpListener,
    sessions: Sessions,
    limits: Limits,
}

impl Gateway {
    /// Binds the listener; port 0 takes a free one. To be called within a tokio runtime.
    pub fn bind(addr: SocketAddr, sessions: Sessions, limits: Limits) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        // Taken over by every connection that it accepts.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        Ok(Self {
            listener,
            sessions,
            limits,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves devices until `shutdown`, then says good-bye to them.
    pub async fn serve(self, engine: Arc<Engine>, shutdown: CancellationToken) {
        let hub = Arc::new(Hub {
            engine,
            sessions: self.sessions,
            limits: self.limits,
            lobby: Arc::new(Lobby::new(self.limits.max_unauthenticated)),
            porch: Porch::new(self.limits.max_lingering),
            lookups: Semaphore::new(MAX_LOOKUPS),
            log: RateLimiter::direct(Quota::per_second(LOGGED_A_SECOND)),
            last_session: AtomicI64::new(0),
        });
        let tasks = TaskTracker::new();
        tasks.spawn(read_ahead(Arc::clone(&hub), shutdown.clone()));
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = housekeeping.tick() => hub.sessions.forget_idle(),
                stream = accept(&self.listener, &hub) => {
                    let Some(place) = shutdown.run_until_cancelled(hub.lobby.enter()).await else {
                        break;
                    };
                    let task = attend(stream, place, Arc::clone(&hub), shutdown.clone());
                    tasks.spawn(guarded(task, Arc::clone(&hub)));
                }
            }
        }
        drop(self.listener);
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

/// What all connections share.
struct Hub {
    engine: Arc<Engine>,
    sessions: Sessions,
    limits: Limits,
    lobby: Arc<Lobby>,
    porch: Porch,
    lookups: Semaphore,
    log: DefaultDirectRateLimiter,
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
        self.log.check().is_ok()
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

/// The next connection.
async fn accept(listener: &TcpListener, hub: &Hub) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
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

/// The whole life of one connection. What is needed only at its ends is boxed, so that an idle one stays small.
async fn attend(stream: TcpStream, place: Place, hub: Arc<Hub>, shutdown: CancellationToken) {
    let opening = Box::pin(async move {
        let connection = handshake::open(stream, place, hub);
        shutdown
            .run_until_cancelled_owned(connection)
            .await
            .flatten()
    });
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
