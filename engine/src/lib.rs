//! What happens: use cases and background loops over the [`ports`], which this crate defines and adapters implement.
//!
//! The database says who should get what (level-triggered): messages only hint, and anything lost is said again.
//! The domain decides, the engine carries out.
//!
//! # How to add …
//! * **a use case**: an `impl Engine` block in the file of its resource; refusals are variants of [`Error`].
//! * **a background loop**: a file with a `run`, started in [`Engine::run`].
//! * **a port**: a trait in [`ports`], an adapter crate, a field of [`Parts`].

mod absence;
mod api_keys;
mod audit;
mod bandwidth;
mod caller;
mod campaigns;
mod changes;
mod chunks;
mod credentials;
mod devices;
mod dispatch;
mod downloads;
mod error;
pub mod feed;
mod firmware;
mod following;
mod health;
mod heartbeats;
pub mod inbound;
mod ingest;
mod introduction;
mod introspection;
pub mod keyring;
mod listening;
pub mod metrics;
mod offers;
mod overdue;
mod permits;
pub mod ports;
mod precedence;
mod rate;
mod recent;
mod relay;
mod replica;
mod rests;
mod revision;
mod rings;
pub mod secrets;
mod settings;
mod statistics;
mod telemetry;
mod to_the_end;
mod trust;
mod updates;
mod upkeep;
mod vitals;
mod webhooks;
mod why;
mod windows;
mod wire;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use api_keys::{ApiKeys, Uses};
pub use audit::{AuditFailure, verify_audit};
pub use caller::Caller;
pub use campaigns::{CampaignView, Deployed, DryRun, DryRunQuery};
pub use devices::{DeviceRegistered, MAX_REGISTRATIONS, RegistrationOutcome};
pub use downloads::{Download, DownloadGrant, Grants};
pub use error::{Error, Result};
pub use firmware::{Upload, Uploaded};
pub use health::Health;
use inbound::{Inbound, Uplinks};
pub use introspection::Introspection;
use keyring::Keyring;
use metrics::Metrics;
use ports::{Clock, DeviceService, Downlink, Entropy, EventSink, Objects, Store};
pub use rate::{NotARate, Rate};
pub use replica::{Member, Standing};
pub use settings::Settings;
pub use statistics::{CampaignStatistics, Recent, Statistics, Totals};
pub use telemetry::FleetStatus;
pub use updates::{UpdateRequest, UpdateView};
pub use webhooks::{MAX_WEBHOOKS, WebhookDraft, Webhooks};

/// What an engine is made of.
pub struct Parts {
    /// The database.
    pub store: Arc<dyn Store>,
    /// Firmware bytes.
    pub objects: Arc<dyn Objects>,
    /// The way down to devices.
    pub downlink: Arc<dyn Downlink>,
    /// Receivers of events.
    pub sinks: Vec<Arc<dyn EventSink>>,
    /// The service that may know devices which are not registered here; `None`: nobody else does.
    pub device_service: Option<Arc<dyn DeviceService>>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Keys and roots.
    pub keyring: Keyring,
    /// Signs download URLs.
    pub grants: Grants,
    /// Settings.
    pub settings: Settings,
}

/// Everything the use cases work with.
pub struct Engine {
    store: Arc<dyn Store>,
    objects: Arc<dyn Objects>,
    downlink: Arc<dyn Downlink>,
    device_service: Option<Arc<dyn DeviceService>>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    keyring: Keyring,
    grants: Grants,
    settings: Settings,
    uplinks: Uplinks,
    metrics: Arc<Metrics>,
    snapshot: metrics::Kept,
    /// The receivers of events: their names, and whether replicas share them.
    sinks: Vec<(&'static str, bool)>,
    offers: offers::OfferCache,
    known: credentials::KeptCredentials,
    rebooting: ingest::Rebooting,
    watched: ingest::Watched,
    listening: listening::Listening,
    attentive: listening::Listening,
    dispatch: Notify,
    credentials: Notify,
    registrations: AtomicU64,
    recording: firmware::Recording,
    handover: firmware::Standing,
    chunks: chunks::Waiting,
    api_keys: ApiKeys,
    last_looks: health::LastLooks,
    feed: feed::Feed,
    following: following::Following,
    rests: rests::Rests,
    membership: replica::Membership,
}

/// The far ends of the engine's queues; [`Engine::run`] empties them.
pub struct Work {
    uplinks: mpsc::Receiver<Inbound>,
    uses: Uses,
    sinks: Vec<Arc<dyn EventSink>>,
}

impl Engine {
    /// Puts the parts together; nothing runs before [`Engine::run`].
    pub fn new(parts: Parts) -> (Arc<Self>, Work) {
        let (uplinks, uplinks_end) = Uplinks::channel();
        let (api_keys, uses) = ApiKeys::new(
            parts.store.clone(),
            parts.clock.clone(),
            parts.entropy.clone(),
        );
        let engine = Self {
            store: parts.store,
            objects: parts.objects,
            downlink: parts.downlink,
            device_service: parts.device_service,
            clock: parts.clock,
            entropy: parts.entropy,
            keyring: parts.keyring,
            grants: parts.grants,
            settings: parts.settings,
            uplinks,
            metrics: Arc::default(),
            snapshot: metrics::Kept::default(),
            sinks: parts
                .sinks
                .iter()
                .map(|sink| (sink.name(), sink.is_shared()))
                .collect(),
            offers: offers::OfferCache::default(),
            known: credentials::KeptCredentials::default(),
            rebooting: ingest::Rebooting::default(),
            watched: ingest::Watched::default(),
            listening: listening::Listening::default(),
            attentive: listening::Listening::default(),
            dispatch: Notify::new(),
            credentials: Notify::new(),
            registrations: AtomicU64::new(0),
            recording: firmware::Recording::default(),
            handover: firmware::Standing::default(),
            chunks: chunks::Waiting::default(),
            api_keys,
            last_looks: health::LastLooks::default(),
            feed: feed::Feed::default(),
            following: following::Following::default(),
            rests: rests::Rests::default(),
            membership: replica::Membership::default(),
        };
        let work = Work {
            uplinks: uplinks_end,
            uses,
            sinks: parts.sinks,
        };
        (Arc::new(engine), work)
    }

    /// Runs the background loops until `shutdown`, then lets ingest finish what it has taken. Returns early, with
    /// the loop's name, when a loop ends by itself: that is a defect, and the caller should stop the process.
    pub async fn run(
        self: Arc<Self>,
        work: Work,
        shutdown: CancellationToken,
    ) -> std::result::Result<(), &'static str> {
        // Before the first report is taken.
        self.keep_heartbeat_days().await;
        let mut loops: JoinSet<&'static str> = JoinSet::new();
        let Work {
            uplinks,
            uses,
            sinks,
        } = work;
        let (engine, stop) = (self.clone(), shutdown.clone());
        loops.spawn(async move {
            ingest::run(engine, uplinks, stop).await;
            "ingest"
        });
        let (engine, stop) = (self.clone(), shutdown.clone());
        loops.spawn(async move {
            dispatch::run(engine, stop).await;
            "dispatch"
        });
        let (engine, stop) = (self.clone(), shutdown.clone());
        loops.spawn(async move {
            replica::run(engine, stop).await;
            "replica"
        });
        let (engine, stop) = (self.clone(), shutdown.clone());
        loops.spawn(async move {
            chunks::run(engine, stop).await;
            "chunks"
        });
        let (engine, stop) = (self.clone(), shutdown.clone());
        loops.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = api_keys::run(engine, uses) => {}
            }
            "api keys"
        });
        let (engine, stop) = (self.clone(), shutdown.clone());
        loops.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = feed::run(engine) => {}
            }
            "feed"
        });
        let (engine, stop) = (self.clone(), shutdown.clone());
        loops.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = firmware::handover::run(engine) => {}
            }
            "handover"
        });
        let (engine, stop) = (self.clone(), shutdown.clone());
        loops.spawn(async move {
            following::run(engine, stop).await;
            "following"
        });
        let (engine, stop) = (self.clone(), shutdown.clone());
        loops.spawn(async move {
            upkeep::run(engine, stop).await;
            "upkeep"
        });
        for sink in sinks {
            let (engine, stop) = (self.clone(), shutdown.clone());
            loops.spawn(async move {
                relay::run(engine, sink, stop).await;
                "relay"
            });
        }
        let ended = loops.join_next().await;
        if shutdown.is_cancelled() {
            while loops.join_next().await.is_some() {}
            return Ok(());
        }
        Err(ended
            .and_then(std::result::Result::ok)
            .unwrap_or("a loop that panicked"))
    }

    /// Takes reports until `shutdown` and does nothing else: for who makes the dispatcher's passes by hand, and wants
    /// the same to happen each time.
    pub async fn take_reports(self: Arc<Self>, work: Work, shutdown: CancellationToken) {
        ingest::run(self, work.uplinks, shutdown).await;
    }

    /// Lets go of the database, once nothing else of the service runs.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// The way in for device messages.
    pub fn uplinks(&self) -> &Uplinks {
        &self.uplinks
    }

    /// API keys.
    pub fn api_keys(&self) -> &ApiKeys {
        &self.api_keys
    }

    /// The figures of this process.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The present time.
    pub fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }
}
