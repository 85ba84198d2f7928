//! Counters by name and one label, each described once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

/// Most series; a guard against a label made from input.
const MAX_SERIES: usize = 256;

/// Name, the name of its label, and what it counts, name by name.
const DESCRIBED: &[(&str, &str, &str)] = &[
    (
        "auth_service",
        "outcome",
        "Questions to the Auth Service that had no answer to believe",
    ),
    (
        "chunk_requests_dropped",
        "reason",
        "Requests for pieces of an image that were asked anew, or too many, before their turn came",
    ),
    (
        "chunk_requests_refused",
        "reason",
        "Requests for pieces of an image that were not served, or not to their end",
    ),
    (
        "device_events",
        "outcome",
        "Deletions of devices that another service told of over NATS",
    ),
    (
        "device_service",
        "outcome",
        "Questions to the Device Service for devices that are not registered here",
    ),
    (
        "downlink_busy",
        "kind",
        "Messages to devices whose session had no room for more",
    ),
    (
        "downlink_not_connected",
        "kind",
        "Messages to devices that were not connected",
    ),
    (
        "downlink_queued",
        "kind",
        "Messages handed to devices' sessions",
    ),
    (
        "events_delayed",
        "receiver",
        "Times that a receiver did not take an event and is offered it again",
    ),
    (
        "ingest_retries",
        "reason",
        "Times that a batch of device messages waited for the database",
    ),
    (
        "mqtt_accept",
        "outcome",
        "Connections that could not be accepted",
    ),
    (
        "mqtt_connection",
        "outcome",
        "Connections that ended by a defect of the service",
    ),
    (
        "mqtt_disconnected",
        "reason",
        "Connections that the gateway ended",
    ),
    (
        "mqtt_dropped",
        "reason",
        "Messages of devices that were not taken",
    ),
    (
        "mqtt_farewell",
        "outcome",
        "Last words to a refused client that it did not take",
    ),
    (
        "mqtt_link",
        "state",
        "Changes of the link to an external broker",
    ),
    (
        "mqtt_refused",
        "reason",
        "Connections that the gateway refused",
    ),
    (
        "offers_again",
        "reason",
        "Offers and cancels that were said again",
    ),
    ("reports_ignored", "reason", "Reports that changed nothing"),
    (
        "webhook_dead_letters",
        "outcome",
        "Events that were laid aside because their webhook has not taken them",
    ),
    (
        "updates_claimed",
        "action",
        "Updates and rollbacks that took a slot",
    ),
];

type Series = BTreeMap<(&'static str, &'static str), u64>;

/// Counters by name and label. Names and labels are constants of the code, never input.
#[derive(Debug, Default, Clone)]
pub(super) struct Counters(Arc<Mutex<Series>>);

impl Counters {
    fn series(&self) -> MutexGuard<'_, Series> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, name: &'static str, label: &'static str, by: u64) {
        debug_assert!(
            DESCRIBED.iter().any(|(known, ..)| *known == name),
            "{name} is not described"
        );
        let mut series = self.series();
        if series.len() < MAX_SERIES || series.contains_key(&(name, label)) {
            *series.entry((name, label)).or_default() += by;
        }
    }

    /// All counters, in name order.
    pub(super) fn snapshot(&self) -> Vec<(&'static str, &'static str, u64)> {
        let series = self.series();
        series
            .iter()
            .map(|((name, label), value)| (*name, *label, *value))
            .collect()
    }
}

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let all = self.snapshot();
        for (name, key, help) in DESCRIBED {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (_, label, value) in all.iter().filter(|(known, ..)| known == name) {
                let labels = [(*key, *label)];
                let labelled = family.encode_family(&labels)?;
                ConstCounter::new(*value).encode(labelled)?;
            }
        }
        Ok(())
    }
}
