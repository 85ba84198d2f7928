//! The link: devices connect to an external broker, whose rules (`mosquitto.conf`) keep them to their own topics, and we
//! are a client of it, acknowledging each report once it is committed.
//!
//! Two connections: one takes reports, in a session that the broker keeps while we are away; one sends. Each gets a new
//! client after every failure, with nothing left over of the old one: what was not acknowledged, the broker sends again,
//! and what was not sent, the engine says again.

mod intake;
mod ledger;
mod options;
mod presence;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_domain::DeviceId;
use device_ota_engine::Engine;
use device_ota_engine::ports::{Delivery, Downlink};
use device_ota_protocol::messages::MAX_PAYLOAD;
use device_ota_protocol::topics::{Down, Prefix};
use governor::clock::DefaultClock;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, NetworkOptions, Packet, QoS};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use options::{BrokerUrlError, LinkOptions};

use crate::limits::Limits;
use crate::session::RateLimits;

/// Silence after which the broker is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Time for a connection to come about, in seconds.
const CONNECT_TIMEOUT_S: u64 = 5;
/// Messages that wait for the socket; beyond, senders wait.
const REQUESTS: usize = 1_024;
/// QoS 1 messages on the way to the broker.
const MAX_INFLIGHT: u16 = 1_000;
/// Largest packet either way, bytes: a report, or a chunk of 64 KiB with its topic.
const MAX_PACKET: usize = MAX_PAYLOAD + 64 * 1024;
/// Longest that a sender waits for the connection to take a message: the dispatcher has other campaigns, too.
const SEND_PATIENCE: Duration = Duration::from_secs(2);
/// First and longest pause before another attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The link to an external broker; to the engine, the way down. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

struct Inner {
    options: LinkOptions,
    prefix: Prefix,
    /// What one device may say: the broker keeps nobody to a rate.
    rates: RateLimits,
    /// The client that sends, while it is connected.
    sender: RwLock<Option<AsyncClient>>,
    /// Whether reports are subscribed to.
    receiving: AtomicBool,
    /// Devices whose secret was taken back, for the intake to look up anew.
    ended: Mutex<Vec<DeviceId>>,
}

impl Link {
    /// A link that is not connected yet. Of `limits` it keeps those of heartbeats and checks; all else is the broker's.
    pub fn new(options: LinkOptions, prefix: Prefix, limits: &Limits) -> Self {
        let receiving = AtomicBool::new(false);
        Self(Arc::new(Inner {
            options,
            prefix,
            rates: RateLimits::new(limits, DefaultClock::default()),
            sender: RwLock::new(None),
            receiving,
            ended: Mutex::default(),
        }))
    }

    /// Whether both connections stand: for health.
    pub fn connected(&self) -> bool {
        self.sender().is_some() && self.0.receiving.load(Ordering::Relaxed)
    }

    /// Keeps both connections until `shutdown`; a broker that cannot be reached is tried again and again.
    pub async fn serve(self, engine: Arc<Engine>, shutdown: CancellationToken) {
        let sending = tokio::spawn(self.clone().send_until(shutdown.clone()));
        intake::receive_until(&self, &engine, &shutdown).await;
        // It ends by the same token; a panic in it was printed, and nothing depends on it any more.
        let _ = sending.await;
    }

    fn sender(&self) -> Option<AsyncClient> {
        self.0
            .sender
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_sender(&self, client: Option<AsyncClient>) {
        *self
            .0
            .sender
            .write()
            .unwrap_or_else(PoisonError::into_inner) = client;
    }

    fn set_receiving(&self, receiving: bool) {
        self.0.receiving.store(receiving, Ordering::Relaxed);
    }

    /// Whose secret was taken back since it was last asked.
    fn take_ended(&self) -> Vec<DeviceId> {
        std::mem::take(&mut self.0.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new client, with nothing of an earlier one, that takes packets up to `max_incoming` bytes. `role` tells the two
    /// connections apart.
    fn client(
        &self,
        role: &str,
        keeps_session: bool,
        max_incoming: usize,
    ) -> (AsyncClient, EventLoop) {
        let LinkOptions {
            host,
            port,
            login,
            client_id,
        } = &self.0.options;
        let mut options = MqttOptions::new(format!("{client_id}-{role}"), host, *port);
        options
            .set_keep_alive(KEEP_ALIVE)
            .set_clean_session(!keeps_session)
            .set_manual_acks(true)
            .set_max_packet_size(max_incoming, MAX_PACKET)
            .set_inflight(MAX_INFLIGHT);
        if let Some((user, password)) = login {
            options.set_credentials(user, password);
        }
        let (client, mut events) = AsyncClient::new(options, REQUESTS);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(CONNECT_TIMEOUT_S);
        events.set_network_options(network);
        (client, events)
    }

    async fn send_until(self, shutdown: CancellationToken) {
        let mut pause = Pause::default();
        while !shutdown.is_cancelled() {
            let (client, mut events) = self.client("down", false, MAX_PACKET);
            let lost = loop {
                let event = tokio::select! {
                    () = shutdown.cancelled() => return self.set_sender(None),
                    event = events.poll() => event,
                };
                match event {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        pause.reset();
                        self.set_sender(Some(client.clone()));
                    }
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            self.set_sender(None);
            pause.after("sending", &lost, &shutdown).await;
        }
    }
}

#[async_trait]
impl Downlink for Link {
    async fn send(&self, device: &DeviceId, to: &Down, payload: Bytes) -> Delivery {
        let Some(client) = self.sender() else {
            return Delivery::NotConnected;
        };
        let qos = match to {
            Down::Chunk { .. } => QoS::AtMostOnce,
            Down::Offer | Down::Command | Down::Reply => QoS::AtLeastOnce,
        };
        let topic = format!("{}/{device}/down/{to}", self.0.prefix);
        // It waits while the connection pushes back, though not for ever, and fails when the connection is lost.
        let publish = client.publish_bytes(topic, qos, false, payload);
        match tokio::time::timeout(SEND_PATIENCE, publish).await {
            Ok(Ok(())) => Delivery::Queued,
            Ok(Err(_)) => Delivery::NotConnected,
            Err(_) => Delivery::Busy,
        }
    }

    /// A client cannot end another's session: the broker checks the new secret when it is told to, or at the next connect.
    /// What is known of the device is forgotten: it may be deleted, and it shows itself anew.
    async fn disconnect(&self, device: &DeviceId) {
        let mut ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.push(device.clone());
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("connected", &self.connected())
            .finish_non_exhaustive()
    }
}

/// The pause between attempts, which grows; says once that there is trouble, and once that it is over.
struct Pause {
    next: Duration,
    said: bool,
}

impl Default for Pause {
    fn default() -> Self {
        Self {
            next: FIRST_PAUSE,
            said: false,
        }
    }
}

impl Pause {
    fn reset(&mut self) {
        if self.said {
            info!("the broker is back");
        }
        *self = Self::default();
    }

    async fn after(
        &mut self,
        role: &str,
        error: &rumqttc::ConnectionError,
        stop: &CancellationToken,
    ) {
        if !self.said {
            warn!(role, %error, "the broker cannot be reached; trying again");
            self.said = true;
        }
        let pause = tokio::time::sleep(self.next);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        tokio::select! {
            () = stop.cancelled() => {}
            () = pause => {}
        }
    }
}
