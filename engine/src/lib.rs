//! What happens: use cases and background loops over the [`ports`], which this crate defines and adapters implement.
//!
//! The database says who should get what (level-triggered): messages only hint, and anything lost is said again.
//! The domain decides, the engine carries out.

pub mod error;
pub mod inbound;
pub mod metrics;
pub mod ports;
pub mod secrets;

mod devices;

use std::sync::Arc;

pub use error::{Error, Result};
use inbound::Uplinks;
use metrics::Metrics;
use ports::{Clock, Downlink, Entropy, Objects, Store};

/// Everything the use cases work with.
pub struct Engine {
    store: Arc<dyn Store>,
    objects: Arc<dyn Objects>,
    downlink: Arc<dyn Downlink>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    uplinks: Uplinks,
    metrics: Arc<Metrics>,
}

impl Engine {
    /// The way in for device messages.
    pub fn uplinks(&self) -> &Uplinks {
        &self.uplinks
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The present time.
    pub fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }
}
