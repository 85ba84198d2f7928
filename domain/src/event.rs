//! Events: what other services are told, written with the change they tell of.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `source` of every event (PRD, E6-US1).
pub const SOURCE: &str = "ota_service";

/// An event before it has its place in the outbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// E.g. `campaign.started`.
    pub event_type: &'static str,
    /// The entity it is about; events of one entity are delivered in order.
    pub entity: String,
    /// Payload (PRD, E6).
    pub data: serde_json::Value,
    /// When it happened.
    pub at: Timestamp,
}

/// An event in the outbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredEvent {
    /// Rises with the order of commits; also the id by which receivers drop repeats.
    pub id: i64,
    /// E.g. `campaign.started`.
    pub event_type: String,
    /// The entity it is about.
    pub entity: String,
    /// Payload.
    pub data: serde_json::Value,
    /// When it happened.
    pub at: Timestamp,
}
