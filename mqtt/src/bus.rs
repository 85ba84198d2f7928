//! The bus: a broker on loopback where trusted in-house clients (Node-RED, Telegraf, `mosquitto_sub`) subscribe to events.
//!
//! It is rumqttd, in a runtime and threads of its own, and it is expected to fail: it is watched, and started again
//! when it does. Devices never touch it, and while it is down events wait in the outbox.

mod broker;
mod door;
mod probe;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use device_ota_domain::event::StoredEvent;
use device_ota_engine::ports::{EventSink, SinkError};
use device_ota_protocol::topics::Prefix;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};

use broker::{Broker, Letter, Publisher, Room};

/// What the names of its threads begin with.
pub const THREAD: &str = "bus";
/// Time that the broker has to take one event.
const DELIVERY: Duration = Duration::from_secs(5);
/// How often somebody knocks at the port, and is answered by CONNACK if all is well.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// Unanswered knocks until the broker counts as dead.
const MISSES: u32 = 2;
/// First and longest pause before another start.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A broker that lived this long starts again after the first pause.
const STEADY: Duration = Duration::from_mins(1);

/// Why there is no bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// Whoever connects is trusted, so only this machine may.
    #[error("the bus trusts whoever connects and listens on loopback only, not on {0}")]
    NotLoopback(SocketAddr),
    /// What is behind the port does not start.
    #[error("the broker of the bus does not start")]
    Broker(#[source] io::Error),
    /// The port cannot be had.
    #[error("the bus cannot listen on {addr}")]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The running bus; it ends when this is dropped.
#[derive(Debug)]
pub struct Bus {
    addr: SocketAddr,
    prefix: Prefix,
    publisher: Arc<Mutex<Option<Publisher>>>,
    _stop: DropGuard,
}

impl Bus {
    /// Starts it; port 0 takes a free one. To be called within a tokio runtime.
    pub async fn start(addr: SocketAddr, prefix: Prefix) -> Result<Self, BusError> {
        if !addr.ip().is_loopback() {
            return Err(BusError::NotLoopback(addr));
        }
        let bind = |source| BusError::Bind { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(bind)?;
        let addr = listener.local_addr().map_err(bind)?;
        let broker = Broker::start(addr.ip()).await.map_err(BusError::Broker)?;
        let publisher = Arc::new(Mutex::new(Some(broker.publisher())));
        let stop = CancellationToken::new();
        let (rooms, room) = watch::channel(Some(broker.room()));
        tokio::spawn(door::keep(listener, room, stop.clone()));
        tokio::spawn(watch_over(
            broker,
            addr,
            Arc::clone(&publisher),
            rooms,
            stop.clone(),
        ));
        Ok(Self {
            addr,
            prefix,
            publisher,
            _stop: stop.drop_guard(),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether it runs now, as far as is known.
    pub fn is_up(&self) -> bool {
        current(&self.publisher).is_some()
    }
}

fn current(publisher: &Mutex<Option<Publisher>>) -> Option<Publisher> {
    publisher
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

fn replace(publisher: &Mutex<Option<Publisher>>, by: Option<Publisher>) {
    *publisher.lock().unwrap_or_else(PoisonError::into_inner) = by;
}

/// Watches the broker, and starts another when it dies.
async fn watch_over(
    mut broker: Broker,
    addr: SocketAddr,
    publisher: Arc<Mutex<Option<Publisher>>>,
    rooms: watch::Sender<Option<Room>>,
    stop: CancellationToken,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        tokio::select! {
            () = stop.cancelled() => return,
            () = died(&broker, addr) => {}
        }
        replace(&publisher, None);
        rooms.send_replace(None);
        drop(broker);
        if started.elapsed() >= STEADY {
            pause = FIRST_PAUSE;
        }
        broker = loop {
            warn!(%addr, pause_ms = pause.as_millis(), "the bus is down and will be started again");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            match Broker::start(addr.ip()).await {
                Ok(broker) => break broker,
                Err(error) => error!(%addr, %error, "the bus does not start"),
            }
        };
        rooms.send_replace(Some(broker.room()));
        replace(&publisher, Some(broker.publisher()));
        info!(%addr, "the bus is up again");
    }
}

/// Returns when the broker is dead, by its own threads' ending or by silence.
async fn died(broker: &Broker, addr: SocketAddr) {
    let mut misses = 0;
    while misses < MISSES {
        tokio::select! {
            () = broker.died() => return,
            () = tokio::time::sleep(PROBE_EVERY) => {}
        }
        match probe::knock(addr).await {
            Ok(()) => misses = 0,
            Err(error) => {
                misses += 1;
                warn!(%addr, %error, "the bus does not answer");
            }
        }
    }
}

#[async_trait]
impl EventSink for Bus {
    fn name(&self) -> &'static str {
        "bus"
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn deliver(&self, event: &StoredEvent) -> Result<(), SinkError> {
        let publisher = current(&self.publisher).ok_or_else(|| SinkError("it is down".into()))?;
        let (taken, is_taken) = oneshot::channel();
        let topic = format!(
            "{}/events/{}",
            self.prefix,
            event.event_type.replace('.', "/")
        );
        let letter = Letter {
            topic,
            payload: event.envelope().to_string().into_bytes(),
            taken,
        };
        publisher
            .try_send(letter)
            .map_err(|_| SinkError("it is busy".into()))?;
        match timeout(DELIVERY, is_taken).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(SinkError("it went down".into())),
            Err(_) => Err(SinkError("it does not answer".into())),
        }
    }
}
