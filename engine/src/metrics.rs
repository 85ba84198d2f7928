//! Figures of what happens: counters and durations, noted where it happens and kept in this process, and with them what
//! the database knows, as `/metrics` shows all of it to Prometheus. `/health/detailed` shows the counters alone.
//!
//! Labels are names from the code: never an id, never input, so that the number of series is bounded.

mod counters;
mod exposition;

use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use counters::Counters;
use device_ota_domain::statistics::Ledger;
pub(crate) use exposition::Kept;

/// What every name begins with.
const PREFIX: &str = "device_ota";

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// The figures of this process.
#[derive(Debug)]
pub struct Metrics {
    counters: Counters,
    updates: Histograms<2>,
    ingest_commits: Histogram,
    ingest_batches: Histogram,
    deliveries: Histograms<1>,
    requests: Histograms<1>,
    answers: Family<Labels<2>, Counter>,
    uploads: Histogram,
    sessions: Gauge,
    certificates: Family<Labels<1>, Gauge>,
    registry: Registry,
}

/// From a millisecond to half a minute.
fn moments() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

/// From a second to some four days.
fn long_times() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 3.0, 13))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            counters: Counters::default(),
            updates: Family::new_with_constructor(long_times),
            ingest_commits: moments(),
            ingest_batches: Histogram::new(exponential_buckets(1.0, 4.0, 8)),
            deliveries: Family::new_with_constructor(moments),
            requests: Family::new_with_constructor(moments),
            answers: Family::default(),
            // From 64 KiB to 512 MiB.
            uploads: Histogram::new(exponential_buckets(65_536.0, 2.0, 14)),
            sessions: Gauge::default(),
            certificates: Family::default(),
            registry: Registry::with_prefix(PREFIX),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register_with_unit(
            "update",
            "Time from the first offer of an update or rollback to the report that ended it",
            Unit::Seconds,
            self.updates.clone(),
        );
        registry.register_with_unit(
            "ingest_commit",
            "Time that the database took for a batch of device messages",
            Unit::Seconds,
            self.ingest_commits.clone(),
        );
        registry.register(
            "ingest_batch_messages",
            "Device messages committed together",
            self.ingest_batches.clone(),
        );
        registry.register_with_unit(
            "event_delivery",
            "Time until a receiver had taken an event, or had failed to",
            Unit::Seconds,
            self.deliveries.clone(),
        );
        registry.register_with_unit(
            "http_request",
            "Time until the head of an answer",
            Unit::Seconds,
            self.requests.clone(),
        );
        registry.register(
            "http_requests",
            "HTTP requests by what they ask for and the class of the answer's status",
            self.answers.clone(),
        );
        registry.register_with_unit(
            "upload",
            "Size of images that were taken",
            Unit::Bytes,
            self.uploads.clone(),
        );
        registry.register(
            "mqtt_sessions",
            "Devices connected to the embedded gateway",
            self.sessions.clone(),
        );
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "When the certificate of a listener expires, as seconds since 1970",
            Unit::Seconds,
            self.certificates.clone(),
        );
        registry.register_collector(Box::new(self.counters.clone()));
    }

    /// Adds to `name{label}`, which `counters` describes. Meant for rare events and for batches, not for a call a message.
    pub fn add(&self, name: &'static str, label: &'static str, by: u64) {
        self.counters.add(name, label, by);
    }

    /// All counters, in name order.
    pub fn snapshot(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.counters.snapshot()
    }

    /// An HTTP request was answered: what it asked for, the class of its status such as `2xx`, and how long it took.
    pub fn answered(&self, class: &'static str, status: &'static str, took: Duration) {
        let asked = self.requests.get_or_create(&[("class", class)]);
        asked.observe(took.as_secs_f64());
        drop(asked);
        let labels = [("class", class), ("status", status)];
        self.answers.get_or_create(&labels).inc();
    }

    /// A device's session began.
    pub fn session_began(&self) {
        self.sessions.inc();
    }

    /// A device's session ended.
    pub fn session_ended(&self) {
        self.sessions.dec();
    }

    /// The certificate of a listener, such as `http`, expires then.
    pub fn certificate_expires(&self, listener: &'static str, at: Timestamp) {
        let certificate = self.certificates.get_or_create(&[("listener", listener)]);
        certificate.set(at.as_second());
    }

    pub(crate) fn committed(&self, messages: usize, took: Duration) {
        self.ingest_commits.observe(took.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a batch has some thousands")]
        self.ingest_batches.observe(messages as f64);
    }

    pub(crate) fn delivered(&self, receiver: &'static str, took: Duration) {
        let delivery = self.deliveries.get_or_create(&[("receiver", receiver)]);
        delivery.observe(took.as_secs_f64());
    }

    pub(crate) fn uploaded(&self, bytes: u64) {
        #[expect(
            clippy::cast_precision_loss,
            reason = "an image has less than 2^53 bytes"
        )]
        self.uploads.observe(bytes as f64);
    }

    /// Something was committed.
    pub(crate) fn moved(&self, ledger: &Ledger) {
        for took in &ledger.took {
            let labels = [
                ("action", took.action.name()),
                ("status", took.group.name()),
            ];
            let updates = self.updates.get_or_create(&labels);
            updates.observe(took.after.as_secs_f64().max(0.0)); // the clock may have been set
        }
    }
}
