//! The database's side of bandwidth: how far the lines are taken over which images go.

use std::collections::BTreeMap;

use async_trait::async_trait;
use device_ota_domain::bandwidth::Lines;
use device_ota_domain::device::DeviceKey;
use jiff::Timestamp;

use super::error::Result;

/// What says behind which lines a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// The device.
    pub device: DeviceKey,
    /// Its groups.
    pub groups: Vec<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// Reads of lines.
#[async_trait]
pub trait Bandwidth: Send + Sync + 'static {
    /// The lines that are not forgotten at `now` (see [`Lines::forgotten`]).
    async fn lines(&self, now: Timestamp) -> Result<Lines>;
}

/// Changes of lines within a transaction.
#[async_trait]
pub trait BandwidthChanges: Send {
    /// The lines that are not forgotten; until the transaction ends no other one gets an answer.
    async fn hold_lines(&mut self, now: Timestamp) -> Result<Lines>;
    /// Writes what has changed of them, and forgets what may be.
    async fn take_lines(&mut self, lines: &Lines, now: Timestamp) -> Result<()>;
    /// The labels of these devices, in no particular order.
    async fn labels(&mut self, devices: &[DeviceKey]) -> Result<Vec<Labels>>;
}
