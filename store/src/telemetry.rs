//! The engine's `Telemetry` port.

use async_trait::async_trait;
use device_ota_domain::page::Page;
use device_ota_engine::ports::store::{DeviceFilter, HeartbeatRow, Result};
use device_ota_engine::ports::telemetry::{FleetGroup, HeartbeatQuery, Telemetry};
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::{SqlStore, fleet, history, outbox};

#[async_trait]
impl<D: Dialect> Telemetry for SqlStore<D> {
    async fn heartbeats(&self, query: &HeartbeatQuery, page: Page) -> Result<Vec<HeartbeatRow>> {
        Ok(history::heartbeats::<D>(&mut *self.read().await?, query, page).await?)
    }
    async fn fleet(&self, filter: &DeviceFilter, low_battery: f64) -> Result<Vec<FleetGroup>> {
        Ok(fleet::fleet::<D>(&mut *self.read().await?, filter, low_battery).await?)
    }

    async fn index_heartbeats(&self, overdue: Timestamp, spare: u64) -> Result<bool> {
        Ok(history::index(self, overdue, spare).await?)
    }
    async fn prune_heartbeats(&self, before: Timestamp) -> Result<bool> {
        Ok(history::prune(self, before).await?)
    }
    async fn prune_events(
        &self,
        sinks: &[&str],
        before: Timestamp,
        whatever: Timestamp,
        limit: u32,
    ) -> Result<u64> {
        Ok(outbox::prune(self, sinks, before, whatever, limit).await?)
    }
}
