//! Where events go: the bus for in-house subscribers, and NATS.

use async_trait::async_trait;
use device_ota_domain::event::StoredEvent;

/// The receiver could not take an event; it is offered again.
#[derive(Debug, thiserror::Error)]
#[error("the event could not be delivered: {0}")]
pub struct SinkError(pub String);

/// A receiver of events, served in order and at least once, with a place of its own in the outbox.
#[async_trait]
pub trait EventSink: Send + Sync + 'static {
    /// Names its place in the outbox; stable for ever.
    fn name(&self) -> &'static str;

    /// Whether all replicas speak to the same one: then one of them serves it. Otherwise each serves its own, from its own place.
    fn is_shared(&self) -> bool {
        true
    }

    /// Takes one event.
    async fn deliver(&self, event: &StoredEvent) -> Result<(), SinkError>;

    /// Waits until the receiver is there again: once for each time that it comes back, also where nobody waited then. For ever
    /// where nothing tells.
    async fn is_back(&self) {
        std::future::pending::<()>().await;
    }
}
