//! Listening and connections: their number, their deadlines, and an end in bounded time.
//!
//! HTTP/1 alone is spoken here: a connection has one request at a time, so that its deadlines bound all that a client can hold.
//! Each stream of HTTP/2 would be a place of its own; with TLS, clients are told in the handshake that it is not spoken.

mod stall;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::header::{CONNECTION, HeaderValue};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use warp::reply::Response;

use crate::gate::Gate;
use crate::limits::network;
use crate::request::linger::Lingering;
use crate::seats::places::Places;
use crate::shared::Shared;
use crate::{Api, routes};
use stall::Stall;

/// With less room than this part of all, connections end after their present answer instead of waiting for a next
/// request, and new ones have less time for their head.
const SCARCE_PART: usize = 4;
/// Connections that the kernel keeps waiting for us.
const BACKLOG: u32 = 1_024;
/// Longest that a client may take for the head of a request, for its handshake, and stay idle between two requests.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// The same of a connection that came when room was scarce.
const HASTY_HEAD_TIME: Duration = Duration::from_secs(5);
/// Longest that a client may take nothing of an answer.
const STALL_TIME: Duration = Duration::from_mins(1);
/// Pause after the system refused to accept, e.g. because it is out of file handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests may go on after the shutdown began: the process has 5 s, and the engine ends after us.
const SHUTDOWN_TIME: Duration = Duration::from_secs(2);
/// Most bytes of a request's head, and of a body that are read ahead.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// How the next connections of a listener are secured; those that there are stay as they are.
pub type TlsConfigs = watch::Receiver<Arc<ServerConfig>>;

/// A listener that does not serve yet.
#[derive(Debug)]
pub struct Http {
    listener: TcpListener,
    local_addr: SocketAddr,
    tls: Option<TlsConfigs>,
}

impl Http {
    /// Listens; port 0 takes a free one. Must be called within a Tokio runtime.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = if addr.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        let listener = socket.listen(BACKLOG)?;
        Ok(Self {
            local_addr: listener.local_addr()?,
            listener,
            tls: None,
        })
    }

    /// HTTPS in place of HTTP.
    #[must_use]
    pub fn secured(self, configs: TlsConfigs) -> Self {
        let tls = Some(configs);
        Self { tls, ..self }
    }

    /// The real address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown`, then lets requests finish for a few seconds and cuts what is left.
    pub async fn serve(self, api: Api, shutdown: CancellationToken) {
        let shared = Shared::new(&api, self.local_addr, shutdown.clone());
        let service = TowerToHyperService::new(warp::service(routes::routes(&Arc::new(shared))));
        let metrics = Arc::clone(api.engine.metrics());
        let gate = Gate::new(
            service, api.access, api.limits, api.cors, metrics, api.run_id,
        );
        let bounds = Bounds {
            connections: api.seats.connections,
            of_address: api.seats.connections_of_address,
        };
        serve_gate(self.listener, self.tls, gate, bounds, shutdown).await;
    }
}

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    connections: usize,
    of_address: usize,
}

/// What every connection needs.
struct Server<S> {
    gate: Gate<S>,
    tls: Option<TlsConfigs>,
    room: Arc<Semaphore>,
    scarce: usize,
    shutdown: CancellationToken,
}

async fn serve_gate<S>(
    listener: TcpListener,
    tls: Option<TlsConfigs>,
    gate: Gate<S>,
    bounds: Bounds,
    shutdown: CancellationToken,
) where
    S: Service<Request<Lingering>, Response = Response, Error = Infallible, Future: Send>
        + Send
        + Sync
        + 'static,
{
    let places = Places::new(bounds.connections, bounds.of_address);
    let server = Arc::new(Server {
        gate,
        tls,
        room: Arc::new(Semaphore::new(bounds.connections)),
        scarce: bounds.connections / SCARCE_PART,
        shutdown,
    });
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let next = async {
            let permit = Arc::clone(&server.room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = server.shutdown.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Ok(place) = places.take(network(peer.ip())) else {
                    debug!(client.address = %peer, "the address has as many connections as it may");
                    continue;
                };
                let head_time = if server.is_scarce() {
                    HASTY_HEAD_TIME
                } else {
                    HEAD_TIME
                };
                let serving = attend(Arc::clone(&server), stream, peer, head_time);
                let serving = cut.clone().run_until_cancelled_owned(serving);
                connections.spawn(async move {
                    let _held = (place, permit);
                    serving.await;
                });
            }
            Err(error) => {
                warn!(%error, "a connection was not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if timeout(SHUTDOWN_TIME, connections.wait()).await.is_err() {
        warn!(
            connections = connections.len(),
            "cutting connections that did not end in time"
        );
        cut.cancel();
        connections.wait().await;
    }
}

fn builder(head_time: Duration) -> Builder {
    let mut builder = Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(head_time)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(true);
    builder
}

/// Serves one connection to its end, after its handshake where there is one.
async fn attend<S>(server: Arc<Server<S>>, stream: TcpStream, peer: SocketAddr, head_time: Duration)
where
    S: Service<Request<Lingering>, Response = Response, Error = Infallible, Future: Send>
        + Send
        + Sync
        + 'static,
{
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, client.address = %peer, "no TCP_NODELAY");
    }
    let Some(config) = server.tls.as_ref().map(|tls| Arc::clone(&tls.borrow())) else {
        return connection(server, stream, peer, head_time).await;
    };
    let handshake = timeout(head_time, TlsAcceptor::from(config).accept(stream));
    match server.shutdown.run_until_cancelled(handshake).await {
        Some(Ok(Ok(stream))) => Box::pin(connection(server, stream, peer, head_time)).await,
        Some(Ok(Err(error))) => debug!(%error, client.address = %peer, "no handshake"),
        Some(Err(_)) => debug!(client.address = %peer, "no handshake in time"),
        None => {}
    }
}

async fn connection<S>(
    server: Arc<Server<S>>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: SocketAddr,
    head_time: Duration,
) where
    S: Service<Request<Lingering>, Response = Response, Error = Infallible, Future: Send>
        + Send
        + Sync
        + 'static,
{
    let answering = Arc::clone(&server);
    let service = service_fn(move |request: Request<Incoming>| {
        let server = Arc::clone(&answering);
        async move { Ok::<_, Infallible>(server.answer(peer, request).await) }
    });
    let stream = TokioIo::new(Stall::new(stream, STALL_TIME));
    let mut serving = pin!(builder(head_time).serve_connection(stream, service));
    let mut ending = false;
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    debug!(error = %error, client.address = %peer, "connection ended");
                }
                return;
            }
            () = server.shutdown.cancelled(), if !ending => {
                ending = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

impl<S> Server<S> {
    /// Whether there is little room left.
    fn is_scarce(&self) -> bool {
        self.room.available_permits() < self.scarce
    }
}

impl<S> Server<S>
where
    S: Service<Request<Lingering>, Response = Response, Error = Infallible>,
{
    async fn answer(&self, peer: SocketAddr, request: Request<Incoming>) -> Response {
        let mut response = self.gate.answer(peer.ip(), request).await;
        if self.is_scarce() {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests;
