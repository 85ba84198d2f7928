//! The link: devices connect to an external broker, whose rules (`mosquitto.conf`) keep them to their own topics, and we
//! are a client of it, acknowledging each report once it is committed.
//!
//! Two connections: one takes reports, in a session that the broker keeps while we are away; one sends. Each gets a new
//! client after every failure, with nothing left over of the old one: what was not acknowledged, the broker sends again,
//! and what was not sent, the engine says again.
//!
//! Reports may be shared with other replicas ([`Sharing`]): each of them has connections and a session of its own.

mod connection;
mod group;
mod intake;
mod ledger;
mod options;
mod presence;
mod tunnel;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_domain::DeviceId;
use device_ota_engine::Engine;
use device_ota_engine::ports::{Delivery, Downlink};
use device_ota_protocol::topics::{Down, Prefix};
use governor::clock::DefaultClock;
use rumqttc::{AsyncClient, Event, Packet, QoS};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use group::{Group, InvalidGroup, Sharing};
pub use options::{BrokerUrlError, LinkOptions};
pub use tunnel::ClientTls;

use connection::{Connection, Lost, MAX_PACKET, Role};

use crate::limits::Limits;
use crate::session::RateLimits;

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
    /// What connections are secured by; `None`: they are not.
    tls: Option<ClientTls>,
    prefix: Prefix,
    /// What one device may say: the broker keeps nobody to a rate.
    rates: RateLimits,
    /// The client that sends, while it is connected.
    sender: RwLock<Option<AsyncClient>>,
    /// Whether reports are subscribed to.
    receiving: AtomicBool,
    /// Devices whose secret was taken back, for the intake to look up anew.
    ended: Mutex<Vec<DeviceId>>,
    /// What went wrong last, for everybody to read.
    trouble: Mutex<Option<String>>,
}

impl Link {
    /// A link that is not connected yet, over TLS where there is what secures it. Of `limits` it keeps those of heartbeats and
    /// checks; all else is the broker's.
    pub fn new(
        options: LinkOptions,
        tls: Option<ClientTls>,
        prefix: Prefix,
        limits: &Limits,
    ) -> Self {
        let receiving = AtomicBool::new(false);
        Self(Arc::new(Inner {
            options,
            tls,
            prefix,
            rates: RateLimits::new(limits, DefaultClock::default()),
            sender: RwLock::new(None),
            receiving,
            ended: Mutex::default(),
            trouble: Mutex::default(),
        }))
    }

    /// Whether both connections stand: for health.
    pub fn connected(&self) -> bool {
        self.sender().is_some() && self.0.receiving.load(Ordering::Relaxed)
    }

    /// What went wrong last; tells nothing of our own files.
    pub fn trouble(&self) -> Option<String> {
        self.locked_trouble().clone()
    }

    fn locked_trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.0
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

    /// A new connection, with nothing of an earlier one.
    async fn connect(&self, role: Role) -> Result<Connection, Lost> {
        Connection::open(&self.0.options, self.0.tls.as_ref(), role).await
    }

    async fn send_until(self, shutdown: CancellationToken) {
        let role = Role {
            name: "down",
            keeps_session: false,
            max_incoming: MAX_PACKET,
        };
        let mut pause = Pause::new(role.name);
        while !shutdown.is_cancelled() {
            let lost = match shutdown.run_until_cancelled(self.connect(role)).await {
                None => return,
                Some(Err(lost)) => Some(lost),
                Some(Ok(mut connection)) => {
                    let sending = self.send_over(&mut connection, &mut pause);
                    let lost = shutdown.run_until_cancelled(sending).await;
                    self.set_sender(None);
                    connection.close().await;
                    lost
                }
            };
            if let Some(lost) = lost {
                pause.after(&self, &lost, &shutdown).await;
            }
        }
    }

    /// Serves one connection; answers why it was lost.
    async fn send_over(&self, connection: &mut Connection, pause: &mut Pause) -> Lost {
        loop {
            match connection.next().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    pause.reset();
                    self.set_sender(Some(connection.client.clone()));
                }
                Ok(_) => {}
                Err(lost) => return lost,
            }
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

/// The pause between attempts, which grows; tells each trouble once, and once that it is over.
struct Pause {
    role: &'static str,
    next: Duration,
    told: Option<String>,
}

impl Pause {
    const fn new(role: &'static str) -> Self {
        Self {
            role,
            next: FIRST_PAUSE,
            told: None,
        }
    }

    fn reset(&mut self) {
        if self.told.is_some() {
            info!(role = self.role, "the broker is back");
        }
        *self = Self::new(self.role);
    }

    async fn after(&mut self, link: &Link, lost: &Lost, stop: &CancellationToken) {
        *link.locked_trouble() = Some(lost.for_everybody());
        let trouble = lost.to_string();
        if self.told.as_ref() != Some(&trouble) {
            warn!(role = self.role, error = %lost, "the broker cannot be reached; trying again");
            self.told = Some(trouble);
        }
        let pause = tokio::time::sleep(self.next);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        tokio::select! {
            () = stop.cancelled() => {}
            () = pause => {}
        }
    }
}
