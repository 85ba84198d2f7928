//! Events: what other services are told, written with the change they tell of.
//!
//! [`EventType`] is the closed list of kinds, the constructors of [`Event`] are the one place where payloads are made,
//! [`StoredEvent::envelope`] is the form in which every receiver gets them, and [`EventFilter`] is what a receiver may
//! ask for. `docs/events.md` is the catalogue, and a test holds it to the list.

mod filter;
mod payload;
mod types;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use filter::{EventFilter, EventSelector, SelectorError};
pub use types::EventType;

/// `source` of every event (PRD, E6-US1).
pub const SOURCE: &str = "ota_service";

/// An event before it has its place in the outbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What happened.
    pub event_type: EventType,
    /// The entity it is about; events of one entity are delivered in order.
    pub entity: String,
    /// Payload (PRD, E6).
    pub data: Value,
    /// When it happened.
    pub at: Timestamp,
}

/// An event in the outbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredEvent {
    /// Rises with the order of commits; also the id by which receivers drop repeats.
    pub id: i64,
    /// The name of an [`EventType`]; as text, because a later version may have written it.
    pub event_type: String,
    /// The entity it is about.
    pub entity: String,
    /// Payload.
    pub data: Value,
    /// When it happened.
    pub at: Timestamp,
}

impl StoredEvent {
    /// What receivers read (PRD, E6-US1): the event, and the id by which they know a repeat.
    pub fn envelope(&self) -> Value {
        json!({
            "id": self.id,
            "event_type": self.event_type,
            "source": SOURCE,
            "timestamp": self.at,
            "data": self.data,
        })
    }

    /// The campaign it belongs to, if any.
    pub fn campaign(&self) -> Option<&str> {
        self.data.get("campaign_id").and_then(Value::as_str)
    }

    /// The device it is about, if any.
    pub fn device(&self) -> Option<&str> {
        self.data.get("device_id").and_then(Value::as_str)
    }
}
