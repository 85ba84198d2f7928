//! One life of the embedded rumqttd.
//!
//! It serves MQTT 3.1.1 alone: its decoder for 5 panics on an UNSUBACK from a client. The router runs in a thread that
//! has no way to be stopped; it ends with the process, or when it panics, which is the death we watch for.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use rumqttd::local::{LinkBuilder, LinkRx, LinkTx};
use rumqttd::protocol::v4::V4;
use rumqttd::{
    ConnectionSettings, LinkType, Notification, Router, RouterConfig, Server, ServerSettings,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::error;

use super::probe;

/// Clients at a time. Reaching it breaks rumqttd's listener, so it is far above what in-house services need.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// Largest message that a subscriber may send, bytes.
const MAX_PAYLOAD: usize = 64 * 1024;
/// Bytes of one segment of a topic's log, and how many of them are kept for slow subscribers.
const SEGMENT_BYTES: usize = 1024 * 1024;
const SEGMENTS: usize = 4;
/// Messages that one subscriber may have unacknowledged.
const MAX_INFLIGHT: usize = 100;
/// Time for a client's CONNECT.
const CONNECT_TIMEOUT_MS: u16 = 5_000;
/// Events that wait for the broker; the relay sends one after the other.
const LETTERS: usize = 4;
/// Tries to reach a broker that was just started, and the pause between them.
const KNOCKS: u32 = 200;
const KNOCK_PAUSE: Duration = Duration::from_millis(10);
/// Tries to start it, each on another port.
const TRIES: u32 = 3;
/// How often the thread that takes what the router says looks whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Our own client id within it.
const OWN_ID: &str = "device-ota";

/// One event for the broker.
pub(super) struct Letter {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    /// Told when the broker has it.
    pub(super) taken: oneshot::Sender<()>,
}

/// The way in for events.
pub(super) type Publisher = SyncSender<Letter>;

/// What is behind the door at present.
#[derive(Debug, Clone)]
pub(super) struct Room {
    /// Where it listens.
    pub(super) addr: SocketAddr,
    /// Cancelled when it has ended; so have its connections, then.
    pub(super) dead: CancellationToken,
}

/// A running broker.
pub(super) struct Broker {
    addr: SocketAddr,
    publisher: Publisher,
    /// Until it is stopped.
    runtime: Option<Runtime>,
    dead: CancellationToken,
}

impl Broker {
    /// Starts one on a free port of this address, and waits until it answers.
    pub(super) async fn start(ip: IpAddr) -> io::Result<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            match Self::try_to_start(ip).await {
                Err(_) if tries < TRIES => {}
                outcome => return outcome,
            }
        }
    }

    async fn try_to_start(ip: IpAddr) -> io::Result<Self> {
        // It cannot say which port it got. So a free one is found first, which somebody else may take before it does.
        let addr = std::net::TcpListener::bind((ip, 0))?.local_addr()?;
        let broker = tokio::task::spawn_blocking(move || Self::assemble(addr));
        let broker = broker.await.map_err(io::Error::other)??;
        for _ in 0..KNOCKS {
            if broker.dead.is_cancelled() {
                break;
            }
            if probe::knock(addr).await.is_ok() {
                return Ok(broker);
            }
            tokio::time::sleep(KNOCK_PAUSE).await;
        }
        Err(io::Error::other("it does not answer"))
    }

    fn assemble(addr: SocketAddr) -> io::Result<Self> {
        let router = Router::new(
            0,
            RouterConfig {
                max_connections: MAX_CONNECTIONS,
                max_outgoing_packet_count: MAX_INFLIGHT as u64,
                max_segment_size: SEGMENT_BYTES,
                max_segment_count: SEGMENTS,
                ..RouterConfig::default()
            },
        );
        let events = router.spawn();
        let dead = CancellationToken::new();
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(super::THREAD)
            .enable_all()
            .build()?;
        let (server_events, alive) = (events.clone(), dead.clone().drop_guard());
        runtime.spawn(async move {
            let _alive = alive;
            // It returns only when it cannot listen.
            if let Err(error) = Server::new(server_settings(addr), server_events, V4)
                .start(LinkType::Remote)
                .await
            {
                error!(%addr, %error, "the bus cannot listen");
            }
        });
        let link = LinkBuilder::new(OWN_ID, events).build();
        let (tx, rx, _) = link.map_err(io::Error::other)?;
        let (publisher, letters) = sync_channel(LETTERS);
        let (publishing, draining) = (dead.clone().drop_guard(), dead.clone());
        thread::Builder::new()
            .name("bus-publisher".into())
            .spawn(move || publish(tx, &letters, publishing))?;
        thread::Builder::new()
            .name("bus-drain".into())
            .spawn(move || drain(rx, &draining))?;
        Ok(Self {
            addr,
            publisher,
            runtime: Some(runtime),
            dead,
        })
    }

    pub(super) fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// What clients are led to.
    pub(super) fn room(&self) -> Room {
        Room {
            addr: self.addr,
            dead: self.dead.clone(),
        }
    }

    /// Returns when it is dead, by its own threads' ending.
    pub(super) async fn died(&self) {
        self.dead.cancelled().await;
    }
}

/// Ends its connections, and what of it can be ended, without waiting for anything. A thread of a runtime that waits for a router
/// that has died waits for ever, and keeps its port: that is why the next one has another.
impl Drop for Broker {
    fn drop(&mut self) {
        self.dead.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn server_settings(addr: SocketAddr) -> ServerSettings {
    ServerSettings {
        name: "bus".into(),
        listen: addr,
        tls: None,
        next_connection_delay_ms: 1,
        connections: ConnectionSettings {
            connection_timeout_ms: CONNECT_TIMEOUT_MS,
            max_payload_size: MAX_PAYLOAD,
            max_inflight_count: MAX_INFLIGHT,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    }
}

/// Publishes until nobody sends any more or the router is gone. Subscribers get each event with the QoS they asked for.
fn publish(mut router: LinkTx, letters: &Receiver<Letter>, _alive: DropGuard) {
    while let Ok(letter) = letters.recv() {
        if router.publish(letter.topic, letter.payload).is_err() {
            return;
        }
        // The sender may have given up.
        let _ = letter.taken.send(());
    }
}

/// Takes what the router says to us, so that it does not pile up; ends when the router is gone, or its broker is dropped.
fn drain(mut router: LinkRx, dead: &CancellationToken) {
    let _alive = dead.clone().drop_guard();
    while !dead.is_cancelled() {
        let deadline = std::time::Instant::now() + LOOK_EVERY;
        match router.recv_deadline(deadline) {
            Ok(Some(Notification::Unschedule)) if router.ready().is_err() => return,
            Ok(_) => {}
            // Nothing was said. Before that time it means that the router has let us go.
            Err(_) if std::time::Instant::now() >= deadline => {}
            Err(_) => return,
        }
    }
}
