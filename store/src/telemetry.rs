//! The engine's ports for telemetry and for figures.

use async_trait::async_trait;
use device_ota_domain::CampaignId;
use device_ota_domain::campaign::Group;
use device_ota_domain::page::Page;
use device_ota_domain::statistics::{Amount, Ledger};
use device_ota_domain::update::Action;
use device_ota_engine::ports::error::Result;
use device_ota_engine::ports::figures::{Figure, Figures};
use device_ota_engine::ports::telemetry::{DeviceFilter, HeartbeatRow};
use device_ota_engine::ports::telemetry::{
    FleetGroup, HealthSample, HeartbeatQuery, Snapshot, Telemetry,
};
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::writes::seen;
use crate::{SqlStore, days, figures, fleet, history, outbox, snapshot, vitals};

#[async_trait]
impl<D: Dialect> Telemetry for SqlStore<D> {
    async fn heartbeats(&self, query: &HeartbeatQuery, page: Page) -> Result<Vec<HeartbeatRow>> {
        Ok(history::heartbeats::<D>(&mut *self.read().await?, query, page).await?)
    }
    async fn health_sample(
        &self,
        campaign: &CampaignId,
        since: Timestamp,
        limit: u32,
    ) -> Result<HealthSample> {
        Ok(vitals::sample::<D>(&mut *self.read().await?, campaign, since, limit).await?)
    }
    async fn snapshot(&self, sinks: &[(&'static str, String)]) -> Result<Snapshot> {
        let connections = self.connections();
        let read = snapshot::read::<D>(&mut *self.read().await?, sinks).await?;
        Ok(Snapshot {
            connections,
            ..read
        })
    }
    async fn fleet(&self, filter: &DeviceFilter, low_battery: f64) -> Result<Vec<FleetGroup>> {
        Ok(fleet::fleet::<D>(&mut *self.read().await?, filter, low_battery).await?)
    }

    async fn index_heartbeats(&self, overdue: Timestamp, spare: u64) -> Result<bool> {
        seen(history::index(self, overdue, spare).await, &self.writes)
    }
    async fn prune_heartbeats(&self, before: Timestamp, now: Timestamp) -> Result<bool> {
        seen(history::prune(self, before, now).await, &self.writes)
    }
    async fn keep_heartbeat_days(&self, now: Timestamp, before: Timestamp) -> Result<()> {
        // Whatever comes of it says nothing of whether rows are taken.
        Ok(days::keep(self, now, before).await?)
    }
    async fn prune_events(
        &self,
        sinks: &[&str],
        before: Timestamp,
        whatever: Timestamp,
        limit: u32,
    ) -> Result<u64> {
        seen(
            outbox::prune(self, sinks, before, whatever, limit).await,
            &self.writes,
        )
    }
}

#[async_trait]
impl<D: Dialect> Figures for SqlStore<D> {
    async fn campaigns_by_status(&self) -> Result<Vec<(String, u64)>> {
        Ok(figures::campaigns_by_status::<D>(&mut *self.read().await?).await?)
    }
    async fn figures(&self, campaign: Option<&CampaignId>) -> Result<Vec<Figure>> {
        Ok(figures::figures::<D>(&mut *self.read().await?, campaign).await?)
    }
    async fn ends_since(&self, minute: i64) -> Result<Vec<(Action, Group, Amount)>> {
        Ok(figures::ends_since::<D>(&mut *self.read().await?, minute).await?)
    }
    async fn prune_ends(&self, minute: i64) -> Result<()> {
        seen(figures::prune_ends(self, minute).await, &self.writes)
    }

    async fn ledger(&self) -> Result<Ledger> {
        Ok(figures::ledger::<D>(&mut *self.read().await?).await?)
    }
    async fn ledger_by_rows(&self) -> Result<Ledger> {
        Ok(figures::ledger_by_rows::<D>(&mut *self.read().await?).await?)
    }
}
