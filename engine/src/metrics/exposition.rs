//! What `/metrics` shows: the figures of this process, and with them what the database knows, read at most every few
//! seconds however often somebody looks.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::PREFIX;
use crate::Engine;
use crate::ports::telemetry::Snapshot;

/// How long what the database said is shown before it is asked again.
const FRESH: Duration = Duration::from_secs(5);
/// How long the database is waited for: half of what Prometheus waits for all of it, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the database said last. One asks, the others wait for its answer.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    /// When it was waited for, and what came; `None` when it did not answer.
    last: Option<(Instant, Option<Snapshot>)>,
    /// A question that it has not answered yet, and goes on with: a second one would only take another of its connections.
    asked: Option<JoinHandle<Option<Snapshot>>>,
}

impl Engine {
    /// All figures in the text format of Prometheus, version 0.0.4.
    pub async fn exposition(&self) -> String {
        let kept = self.kept_snapshot().await;
        let mut text = String::new();
        let now = self.present(kept.as_ref());
        for registry in [&self.metrics.registry, &now] {
            // Writing to a String cannot fail.
            let _ = prometheus_text::encode(&mut text, registry);
        }
        text
    }

    async fn kept_snapshot(&self) -> Option<Snapshot> {
        let mut said = self.snapshot.0.lock().await;
        if let Some((at, snapshot)) = &said.last
            && at.elapsed() < FRESH
        {
            return snapshot.clone();
        }
        let asked = said.asked.get_or_insert_with(|| self.ask());
        let answer = timeout(PATIENCE, asked).await;
        if answer.is_ok() {
            said.asked = None;
        }
        let snapshot = answer.ok().and_then(Result::ok).flatten();
        said.last = Some((Instant::now(), snapshot.clone()));
        snapshot
    }

    fn ask(&self) -> JoinHandle<Option<Snapshot>> {
        let places = self.sinks.iter();
        let places = places.map(|sink| (sink.0, self.membership.place(*sink)));
        let (places, store): (Vec<_>, _) = (places.collect(), Arc::clone(&self.store));
        tokio::spawn(async move {
            let read = store.snapshot(&places).await;
            read.inspect_err(|error| tracing::debug!(%error, "metrics without the database's part"))
                .ok()
        })
    }

    /// What is true at the moment.
    fn present(&self, kept: Option<&Snapshot>) -> Registry {
        let mut registry = Registry::with_prefix(PREFIX);
        let mut gauge = |name: &str, help: &str, value: u64| {
            let gauge = Gauge::<i64>::default();
            gauge.set(signed(value));
            registry.register(name, help, gauge);
        };
        gauge(
            "database_up",
            "Whether the database answered when it was asked last",
            u64::from(kept.is_some()),
        );
        gauge(
            "ingest_waiting_messages",
            "Device messages that wait for the database",
            self.uplinks.waiting() as u64,
        );
        gauge(
            "images_waiting",
            "Images in the local folder that could not be handed over to the bucket",
            self.handover.waiting() as u64,
        );
        gauge(
            "devices_heard",
            "Whether devices can be heard: not while their broker cannot be reached",
            u64::from(self.listening.can_hear()),
        );
        gauge(
            "event_streams",
            "Streams of server-sent events that are open",
            self.feed.readers() as u64,
        );
        if let Some(standing) = self.membership.standing() {
            gauge(
                "replicas",
                "Replicas on this database that live, as this one saw them last",
                standing.live as u64,
            );
            gauge(
                "replica_leads",
                "Whether this replica does what one does for all: webhooks, NATS",
                u64::from(standing.leader == standing.here),
            );
        }
        let Some(kept) = kept else {
            return registry;
        };
        gauge("events_kept", "Events in the outbox", kept.events_kept);
        register(
            &mut registry,
            "campaigns",
            "Campaigns that have not ended, by status",
            kept.campaigns
                .iter()
                .map(|(status, count)| ([("status", *status)], *count)),
        );
        register(
            &mut registry,
            "campaign_updates",
            "Updates and rollbacks of the campaigns that are active, by state",
            kept.updates
                .iter()
                .map(|(action, state, count)| ([("action", *action), ("state", *state)], *count)),
        );
        register(
            &mut registry,
            "updates",
            "All updates and rollbacks that there are, of campaigns that have ended and of single devices too, by state",
            kept.all_updates
                .iter()
                .map(|(action, state, count)| ([("action", *action), ("state", *state)], *count)),
        );
        register(
            &mut registry,
            "database_connections",
            "Connections to the database that are open, by pool and whether they are in use",
            kept.connections
                .iter()
                .map(|(pool, state, count)| ([("pool", *pool), ("state", *state)], *count)),
        );
        register(
            &mut registry,
            "events_waiting",
            "Events that a receiver has not taken yet; of webhooks, the one that is furthest behind",
            kept.waiting
                .iter()
                .map(|(receiver, count)| ([("receiver", *receiver)], *count)),
        );
        register(
            &mut registry,
            "webhooks",
            "Webhooks by status",
            kept.webhooks
                .iter()
                .map(|(status, count)| ([("status", *status)], *count)),
        );
        registry
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A gauge for each set of labels.
fn register<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    values: impl Iterator<Item = ([(&'static str, &'static str); N], u64)>,
) {
    let family = Family::<[(&'static str, &'static str); N], Gauge>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(signed(value));
    }
    registry.register(name, help, family);
}
