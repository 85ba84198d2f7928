//! The engine's `Store` port: a read takes a connection of the reading pool and runs one statement, or
//! shares one with others (see `combine`).

use async_trait::async_trait;
use device_ota_domain::api_key::ApiKey;
use device_ota_domain::campaign::{Campaign, Counts, Named};
use device_ota_domain::device::{Device, DeviceKey};
use device_ota_domain::event::StoredEvent;
use device_ota_domain::firmware::{Firmware, FirmwareFilter, Results, Storage};
use device_ota_domain::page::Page;
use device_ota_domain::permit::Permit;
use device_ota_domain::ring::RingSettings;
use device_ota_domain::rollback::Rollback;
use device_ota_domain::targeting::{Cuts, Exclusion};
use device_ota_domain::update::Update;
use device_ota_domain::{ApiKeyId, CampaignId, DeviceId, FirmwareId, UpdateId};
use device_ota_engine::ports::error::Result;
use device_ota_engine::ports::replicas::ReplicaKey;
use device_ota_engine::ports::store::{
    Absence, Aim, CampaignFilter, Credentials, Drift, InFlight, RollbackFilter, Store,
    TargetDevice, TargetSummary, Tx, UpdateFilter,
};
use device_ota_engine::ports::telemetry::DeviceFilter;
use jiff::Timestamp;
use sqlx::pool::PoolConnection;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::tx::SqlTx;
use crate::{
    SqlStore, api_keys, campaigns, counts, devices, dispatch, drift, firmware, lists, outbox,
    permits, presence, rings, rollbacks, targets, updates,
};

impl<D: Dialect> SqlStore<D> {
    pub(crate) async fn read(&self) -> std::result::Result<PoolConnection<D>, DbError> {
        Ok(self.reader.acquire().await?)
    }
}

#[async_trait]
impl<D: Dialect> Store for SqlStore<D> {
    async fn close(&self) {
        Self::close(self).await;
    }
    async fn begin(&self) -> Result<Box<dyn Tx>> {
        Ok(Box::new(SqlTx::begin(self).await?))
    }
    async fn ping(&self) -> Result<()> {
        D::batch(&mut *self.read().await?, "SELECT 1".to_owned())
            .await
            .map_err(DbError::from)?;
        self.writes.work(&self.writer).await
    }

    async fn credentials(&self, device: &DeviceId) -> Result<Option<Credentials>> {
        let found = self.credentials.get(device.as_str()).await;
        found.map_err(DbError::shared)
    }
    async fn all_credentials(
        &self,
        after: Option<&DeviceId>,
        limit: u32,
    ) -> Result<Vec<(DeviceId, Credentials)>> {
        Ok(devices::all_credentials::<D>(&mut *self.read().await?, after, limit).await?)
    }
    async fn device(&self, device: &DeviceId) -> Result<Option<Device>> {
        Ok(devices::device::<D>(&mut *self.read().await?, device).await?)
    }
    async fn devices_by_key(&self, devices: &[DeviceKey]) -> Result<Vec<Device>> {
        Ok(devices::by_key::<D>(&mut *self.read().await?, devices).await?)
    }
    async fn devices(&self, filter: &DeviceFilter, page: Page) -> Result<Vec<Device>> {
        Ok(lists::devices::<D>(&mut *self.read().await?, filter, page).await?)
    }

    async fn away(&self, before: Timestamp, limit: u32) -> Result<Vec<Absence>> {
        Ok(presence::away::<D>(&mut *self.read().await?, before, limit).await?)
    }

    async fn firmware(&self, firmware: &FirmwareId) -> Result<Option<Firmware>> {
        Ok(firmware::firmware::<D>(&mut *self.read().await?, firmware).await?)
    }
    async fn firmware_list(&self, filter: &FirmwareFilter, page: Page) -> Result<Vec<Firmware>> {
        Ok(firmware::list::<D>(&mut *self.read().await?, filter, page).await?)
    }
    async fn firmware_of_version(
        &self,
        device_model: &str,
        version: &str,
    ) -> Result<Option<Firmware>> {
        Ok(firmware::of_version::<D>(&mut *self.read().await?, device_model, version).await?)
    }
    async fn object_is_used(&self, sha256: &str) -> Result<bool> {
        Ok(firmware::object_is_used::<D>(&mut *self.read().await?, sha256).await?)
    }
    async fn storage_is_used(&self, storage: Storage) -> Result<bool> {
        Ok(firmware::storage_is_used::<D>(&mut *self.read().await?, storage).await?)
    }

    async fn rings(&self) -> Result<RingSettings> {
        Ok(rings::rings::<D>(&mut *self.read().await?).await?)
    }
    async fn campaign(&self, campaign: &CampaignId) -> Result<Option<Campaign>> {
        Ok(campaigns::campaign::<D>(&mut *self.read().await?, campaign).await?)
    }
    async fn named(&self, campaign: &Campaign) -> Result<Named> {
        Ok(campaigns::named::<D>(&mut *self.read().await?, campaign).await?)
    }
    async fn campaigns(&self, filter: &CampaignFilter, page: Page) -> Result<Vec<Campaign>> {
        Ok(campaigns::list::<D>(&mut *self.read().await?, filter, page).await?)
    }
    async fn campaigns_watched(&self) -> Result<Vec<Campaign>> {
        Ok(campaigns::watched::<D>(&mut *self.read().await?).await?)
    }
    async fn campaigns_to_plan(&self, regressed_since: Timestamp) -> Result<Vec<Campaign>> {
        Ok(campaigns::to_plan::<D>(&mut *self.read().await?, regressed_since).await?)
    }
    async fn counts(&self, campaign: &CampaignId) -> Result<Counts> {
        Ok(counts::counts::<D>(&mut *self.read().await?, campaign).await?)
    }
    async fn all_in_flight(&self) -> Result<u64> {
        Ok(dispatch::all_in_flight::<D>(&mut *self.read().await?).await?)
    }
    async fn counts_by_rows(&self, campaign: &CampaignId) -> Result<Counts> {
        Ok(counts::counts_by_rows::<D>(&mut *self.read().await?, campaign).await?)
    }
    async fn target_summary(&self, aim: Aim<'_>) -> Result<TargetSummary> {
        Ok(targets::summary::<D>(&mut *self.read().await?, aim).await?)
    }
    async fn no_way_back(&self, aim: Aim<'_>) -> Result<Vec<(Option<String>, u64)>> {
        Ok(targets::no_way_back::<D>(&mut *self.read().await?, aim).await?)
    }
    async fn targets(
        &self,
        aim: Aim<'_>,
        cuts: &Cuts,
        stage: Option<u16>,
        page: Page,
    ) -> Result<Vec<TargetDevice>> {
        Ok(targets::targets::<D>(&mut *self.read().await?, aim, cuts, stage, page).await?)
    }
    async fn excluded(
        &self,
        aim: Aim<'_>,
        because: Exclusion,
        page: Page,
    ) -> Result<Vec<DeviceId>> {
        Ok(targets::excluded::<D>(&mut *self.read().await?, aim, because, page).await?)
    }
    async fn drift(&self, campaign: &CampaignId, aim: Aim<'_>, limit: u32) -> Result<Drift> {
        Ok(drift::drift::<D>(&mut *self.read().await?, campaign, aim, limit).await?)
    }
    async fn left_out(&self, aim: Aim<'_>, page: Page) -> Result<Vec<(DeviceId, Option<Device>)>> {
        Ok(targets::left_out::<D>(&mut *self.read().await?, aim, page).await?)
    }

    async fn update(&self, update: &UpdateId) -> Result<Option<Update>> {
        let found = self.updates.get(update.as_str()).await;
        found.map_err(DbError::shared)
    }
    async fn updates(&self, filter: &UpdateFilter, page: Page) -> Result<Vec<Update>> {
        Ok(lists::updates::<D>(&mut *self.read().await?, filter, page).await?)
    }
    async fn results_of(&self, device: &DeviceId) -> Result<Results> {
        Ok(updates::results_of::<D>(&mut *self.read().await?, device).await?)
    }
    async fn ran(&self, device: &Device, version: &str) -> Result<Option<Update>> {
        Ok(updates::ran::<D>(&mut *self.read().await?, device, version).await?)
    }
    async fn in_flight(&self, device: DeviceKey) -> Result<Option<Update>> {
        Ok(dispatch::in_flight::<D>(&mut *self.read().await?, device).await?)
    }
    async fn newest_open(&self, device: DeviceKey, limit: u32) -> Result<Vec<Update>> {
        Ok(dispatch::newest_open::<D>(&mut *self.read().await?, device, limit).await?)
    }
    async fn busy_with(&self, devices: &[DeviceKey]) -> Result<Vec<Update>> {
        Ok(dispatch::busy_with::<D>(&mut *self.read().await?, devices).await?)
    }
    async fn waiting(&self, devices: &[DeviceKey]) -> Result<Vec<Update>> {
        Ok(dispatch::waiting::<D>(&mut *self.read().await?, devices).await?)
    }
    async fn unanswered(
        &self,
        before: Timestamp,
        now: Timestamp,
        here: Option<ReplicaKey>,
        limit: u32,
    ) -> Result<Vec<Update>> {
        let conn = &mut *self.read().await?;
        Ok(dispatch::unanswered::<D>(conn, before, now, here, limit).await?)
    }
    async fn has_due_singles(&self, now: Timestamp, here: Option<ReplicaKey>) -> Result<bool> {
        Ok(dispatch::has_due_singles::<D>(&mut *self.read().await?, now, here).await?)
    }
    async fn expired(
        &self,
        now: Timestamp,
        here: Option<ReplicaKey>,
        limit: u32,
    ) -> Result<Vec<InFlight>> {
        Ok(dispatch::expired::<D>(&mut *self.read().await?, now, here, limit).await?)
    }
    async fn rebooting(&self) -> Result<Vec<DeviceKey>> {
        Ok(dispatch::rebooting::<D>(&mut *self.read().await?).await?)
    }
    async fn watched(&self) -> Result<Vec<(DeviceKey, String)>> {
        Ok(dispatch::watched::<D>(&mut *self.read().await?).await?)
    }

    async fn left_behind(&self, since: Timestamp, limit: u32) -> Result<Vec<UpdateId>> {
        Ok(dispatch::left_behind::<D>(&mut *self.read().await?, since, limit).await?)
    }
    async fn rollbacks(&self, filter: &RollbackFilter, page: Page) -> Result<Vec<Rollback>> {
        Ok(rollbacks::list::<D>(&mut *self.read().await?, filter, page).await?)
    }
    async fn events_for(&self, sink: &str, limit: u32) -> Result<Vec<StoredEvent>> {
        Ok(outbox::events_for::<D>(&mut *self.read().await?, sink, limit).await?)
    }

    async fn permits(&self, page: Page) -> Result<Vec<Permit>> {
        Ok(permits::list::<D>(&mut *self.read().await?, page).await?)
    }
    async fn permit_for(&self, rollback: &UpdateId, now: Timestamp) -> Result<Option<String>> {
        Ok(permits::permit_for::<D>(&mut *self.read().await?, rollback, now).await?)
    }

    async fn api_key_of_secret(&self, sha256: &str) -> Result<Option<ApiKey>> {
        Ok(api_keys::of_secret::<D>(&mut *self.read().await?, sha256).await?)
    }
    async fn api_key(&self, key: &ApiKeyId) -> Result<Option<ApiKey>> {
        Ok(api_keys::key::<D>(&mut *self.read().await?, key).await?)
    }
    async fn api_keys(&self, page: Page) -> Result<Vec<ApiKey>> {
        Ok(api_keys::list::<D>(&mut *self.read().await?, page).await?)
    }
}
