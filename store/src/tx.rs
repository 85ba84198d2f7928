//! The engine's `Tx` port: one database transaction.

use async_trait::async_trait;
use device_ota_domain::api_key::ApiKey;
use device_ota_domain::audit::Entry;
use device_ota_domain::campaign::{Campaign, Counts, Delta, Reading};
use device_ota_domain::device::{Device, DeviceKey, Registration};
use device_ota_domain::event::Event;
use device_ota_domain::firmware::Firmware;
use device_ota_domain::ring::RingSettings;
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::statistics::Ledger;
use device_ota_domain::update::{Action, Update};
use device_ota_domain::{ApiKeyId, CampaignId, DeviceId, FirmwareId, UpdateId};
use device_ota_engine::ports::error::Result;
use device_ota_engine::ports::store::{
    Absence, ClaimQuery, Claimable, NewDevice, OfferGround, Registered, RollbackTerms, Touch, Tx,
};
use device_ota_engine::ports::telemetry::HeartbeatRow;
use jiff::Timestamp;
use sqlx::{Pool, Transaction};

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::firmware::Lock;
use crate::outbox::Stroke;
use crate::{
    api_keys, audit, campaigns, counts, devices, dispatch, figures, firmware, materialise, outbox,
    presence, rings, rollbacks, updates, vitals,
};

/// A transaction in progress; it is rolled back when it is dropped.
pub(crate) struct SqlTx<D: Dialect> {
    inner: Transaction<'static, D>,
    /// Written at the very end, so that the lock that keeps their order is held for the commit alone.
    events: Vec<Event>,
    /// The same for what was made or ended at a stroke.
    strokes: Vec<Stroke>,
    /// The same for the figures.
    ledger: Ledger,
    /// Likewise: the end of the audit trail is held for the commit alone.
    audit: Vec<Entry>,
}

impl<D: Dialect> SqlTx<D> {
    /// Takes a connection and begins.
    pub(crate) async fn begin(pool: &Pool<D>) -> std::result::Result<Self, DbError> {
        let inner = pool.begin_with(D::BEGIN_WRITE).await?;
        Ok(Self {
            inner,
            events: Vec::new(),
            strokes: Vec::new(),
            ledger: Ledger::default(),
            audit: Vec::new(),
        })
    }

    /// Its connection, for the changes of other files.
    pub(crate) fn connection(&mut self) -> &mut D::Connection {
        &mut self.inner
    }

    fn at_a_stroke(&mut self, numbers: Vec<i64>, at: Timestamp) -> u64 {
        let many = numbers.len() as u64;
        self.strokes.push(Stroke { numbers, at });
        many
    }
}

#[async_trait]
impl<D: Dialect> Tx for SqlTx<D> {
    async fn commit(mut self: Box<Self>) -> Result<Ledger> {
        figures::write::<D>(&mut *self.inner, &self.ledger).await?;
        for stroke in std::mem::take(&mut self.strokes) {
            outbox::tell::<D>(&mut *self.inner, &stroke).await?;
        }
        let events = std::mem::take(&mut self.events);
        outbox::append::<D>(&mut *self.inner, &events).await?;
        let head = audit::append::<D>(&mut *self.inner, &self.audit).await?;
        self.inner.commit().await.map_err(DbError::from)?;
        if let Some(head) = head {
            // For whoever keeps logs elsewhere: what was said there cannot be written anew here.
            tracing::info!(
                audit.number = head.number,
                audit.hash = head.hash,
                "audit trail"
            );
        }
        Ok(self.ledger)
    }

    async fn register(&mut self, devices: &[NewDevice]) -> Result<Vec<Registered>> {
        Ok(devices::register::<D>(&mut *self.inner, devices).await?)
    }
    async fn device(&mut self, device: &DeviceId) -> Result<Option<Device>> {
        Ok(devices::locked::<D>(&mut *self.inner, device).await?)
    }
    async fn set_verifier(&mut self, device: &DeviceId, verifier: &str) -> Result<bool> {
        Ok(devices::set_verifier::<D>(&mut *self.inner, device, verifier).await?)
    }
    async fn save_device(&mut self, device: &Registration) -> Result<bool> {
        Ok(devices::save::<D>(&mut *self.inner, device).await?)
    }
    async fn delete_device(&mut self, device: &DeviceId, at: Timestamp) -> Result<bool> {
        Ok(devices::delete::<D>(&mut *self.inner, device, at).await?)
    }
    async fn reset_presence(&mut self, at: Timestamp) -> Result<()> {
        Ok(presence::reset::<D>(&mut *self.inner, at).await?)
    }
    async fn settle_absences(
        &mut self,
        absences: &[(&Absence, Option<Timestamp>)],
    ) -> Result<Vec<DeviceKey>> {
        Ok(presence::settle::<D>(&mut *self.inner, absences).await?)
    }
    async fn touch(&mut self, touches: &[Touch]) -> Result<()> {
        Ok(presence::touch::<D>(&mut *self.inner, touches).await?)
    }
    async fn insert_heartbeats(&mut self, rows: &[HeartbeatRow]) -> Result<()> {
        Ok(presence::insert_heartbeats::<D>(&mut *self.inner, rows).await?)
    }
    async fn draw_seqs(&mut self, devices: &[DeviceKey]) -> Result<Vec<OfferGround>> {
        Ok(presence::draw_seqs::<D>(&mut *self.inner, devices).await?)
    }

    async fn insert_firmware(&mut self, firmware: &Firmware) -> Result<()> {
        Ok(firmware::insert::<D>(&mut *self.inner, firmware).await?)
    }
    async fn firmware(&mut self, firmware: &FirmwareId) -> Result<Option<Firmware>> {
        Ok(firmware::locked::<D>(&mut *self.inner, firmware, Lock::Change).await?)
    }
    async fn hold_firmware(&mut self, firmware: &FirmwareId) -> Result<Option<Firmware>> {
        Ok(firmware::locked::<D>(&mut *self.inner, firmware, Lock::Hold).await?)
    }
    async fn save_firmware(&mut self, firmware: &Firmware) -> Result<()> {
        Ok(firmware::save::<D>(&mut *self.inner, firmware).await?)
    }
    async fn campaigns_offering(&mut self, firmware: &FirmwareId) -> Result<Vec<Campaign>> {
        Ok(campaigns::offering::<D>(&mut *self.inner, firmware).await?)
    }
    async fn open_singles(&mut self, firmware: &FirmwareId, limit: u32) -> Result<Vec<UpdateId>> {
        Ok(firmware::open_singles::<D>(&mut *self.inner, firmware, limit).await?)
    }
    async fn cancellable_singles(
        &mut self,
        firmware: &FirmwareId,
        limit: u32,
    ) -> Result<Vec<Update>> {
        Ok(firmware::cancellable_singles::<D>(&mut *self.inner, firmware, limit).await?)
    }
    async fn ring_deployment(&mut self, firmware: &FirmwareId) -> Result<Option<Campaign>> {
        Ok(campaigns::ring_deployment::<D>(&mut *self.inner, firmware).await?)
    }
    async fn count_downloads(&mut self, firmware: &FirmwareId, downloads: u64) -> Result<()> {
        Ok(firmware::count_downloads::<D>(&mut *self.inner, firmware, downloads).await?)
    }

    async fn rings(&mut self) -> Result<RingSettings> {
        Ok(rings::locked::<D>(&mut *self.inner).await?)
    }
    async fn save_rings(&mut self, settings: &RingSettings) -> Result<()> {
        Ok(rings::save::<D>(&mut *self.inner, settings).await?)
    }
    async fn insert_campaign(&mut self, campaign: &Campaign) -> Result<()> {
        Ok(campaigns::insert::<D>(&mut *self.inner, campaign).await?)
    }
    async fn campaign(&mut self, campaign: &CampaignId) -> Result<Option<Campaign>> {
        Ok(campaigns::locked::<D>(&mut *self.inner, campaign).await?)
    }
    async fn peek_campaign(&mut self, campaign: &CampaignId) -> Result<Option<Campaign>> {
        Ok(campaigns::campaign::<D>(&mut *self.inner, campaign).await?)
    }
    async fn replace_spec(&mut self, campaign: &Campaign) -> Result<()> {
        Ok(campaigns::replace_spec::<D>(&mut *self.inner, campaign).await?)
    }
    async fn save_campaign(&mut self, campaign: &Campaign) -> Result<()> {
        Ok(campaigns::save::<D>(&mut *self.inner, campaign).await?)
    }
    async fn pace(&mut self, campaign: &CampaignId, next_offer_at: Timestamp) -> Result<()> {
        Ok(campaigns::pace::<D>(&mut *self.inner, campaign, next_offer_at).await?)
    }
    async fn save_readings(&mut self, campaign: &CampaignId, readings: &[Reading]) -> Result<()> {
        Ok(vitals::save::<D>(&mut *self.inner, campaign, readings).await?)
    }
    async fn hold_slots(&mut self) -> Result<u64> {
        Ok(dispatch::hold_slots::<D>(&mut *self.inner).await?)
    }
    async fn counts(&mut self, campaign: &CampaignId) -> Result<Counts> {
        Ok(counts::counts::<D>(&mut *self.inner, campaign).await?)
    }
    async fn make_updates(
        &mut self,
        campaign: &Campaign,
        firmware: &Firmware,
        at: Timestamp,
    ) -> Result<u64> {
        let (conn, ledger) = (&mut *self.inner, &mut self.ledger);
        Ok(materialise::make_updates::<D>(conn, ledger, campaign, firmware, at).await?)
    }
    async fn make_rollbacks(
        &mut self,
        campaign: &Campaign,
        terms: &RollbackTerms<'_>,
    ) -> Result<u64> {
        let (conn, ledger) = (&mut *self.inner, &mut self.ledger);
        let numbers = materialise::make_rollbacks::<D>(conn, ledger, campaign, terms).await?;
        Ok(self.at_a_stroke(numbers, terms.at))
    }
    async fn cancel_pending(
        &mut self,
        campaign: &CampaignId,
        action: Action,
        at: Timestamp,
    ) -> Result<u64> {
        let (conn, ledger) = (&mut *self.inner, &mut self.ledger);
        let numbers = materialise::cancel_pending::<D>(conn, ledger, campaign, action, at).await?;
        Ok(self.at_a_stroke(numbers, at))
    }
    async fn revive_rollbacks(
        &mut self,
        campaign: &CampaignId,
        at: Timestamp,
        give_up_at: Timestamp,
    ) -> Result<u64> {
        let (conn, ledger) = (&mut *self.inner, &mut self.ledger);
        let numbers =
            materialise::revive_rollbacks::<D>(conn, ledger, campaign, at, give_up_at).await?;
        Ok(self.at_a_stroke(numbers, at))
    }

    async fn insert_update(
        &mut self,
        update: &Update,
        log: Option<(RollbackTrigger, &str)>,
    ) -> Result<()> {
        updates::insert::<D>(&mut *self.inner, update).await?;
        if let Some((trigger, reason)) = log {
            rollbacks::log_one::<D>(&mut *self.inner, &update.id, trigger, reason).await?;
        }
        self.ledger.born(update);
        Ok(())
    }
    async fn claimable(&mut self, query: &ClaimQuery) -> Result<Vec<Claimable>> {
        Ok(dispatch::claimable::<D>(&mut *self.inner, query).await?)
    }
    async fn claimable_singles(
        &mut self,
        action: Action,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Claimable>> {
        Ok(dispatch::claimable_singles::<D>(&mut *self.inner, action, now, limit).await?)
    }
    async fn updates(&mut self, ids: &[UpdateId]) -> Result<Vec<Update>> {
        Ok(updates::locked::<D>(&mut *self.inner, ids).await?)
    }
    async fn in_flight(&mut self, devices: &[DeviceKey]) -> Result<Vec<Update>> {
        Ok(dispatch::in_flight_locked::<D>(&mut *self.inner, devices).await?)
    }
    async fn watched(&mut self, devices: &[DeviceKey]) -> Result<Vec<Update>> {
        Ok(dispatch::watched_locked::<D>(&mut *self.inner, devices).await?)
    }
    async fn end_watches(&mut self, device: DeviceKey) -> Result<()> {
        Ok(dispatch::end_watches::<D>(&mut *self.inner, device).await?)
    }
    async fn peek_open(&mut self, device: DeviceKey) -> Result<Vec<Update>> {
        Ok(dispatch::open::<D>(&mut *self.inner, device).await?)
    }
    async fn open_updates(&mut self, device: DeviceKey) -> Result<Vec<Update>> {
        Ok(dispatch::open_locked::<D>(&mut *self.inner, device).await?)
    }
    async fn cancellable(
        &mut self,
        campaign: &CampaignId,
        action: Action,
        limit: u32,
    ) -> Result<Vec<Update>> {
        Ok(dispatch::cancellable::<D>(&mut *self.inner, campaign, action, limit).await?)
    }
    async fn save_updates(&mut self, updates: &[Update]) -> Result<()> {
        Ok(updates::save::<D>(&mut *self.inner, updates).await?)
    }
    async fn add_counts(&mut self, deltas: &[(Delta, u64)]) -> Result<()> {
        Ok(counts::add::<D>(&mut *self.inner, deltas).await?)
    }
    fn count(&mut self, ledger: Ledger) {
        self.ledger.merge(ledger);
    }

    async fn append_events(&mut self, events: &[Event]) -> Result<()> {
        self.events.extend_from_slice(events);
        Ok(())
    }
    async fn append_audit(&mut self, entry: Entry) -> Result<()> {
        self.audit.push(entry);
        Ok(())
    }
    async fn events_delivered(&mut self, sink: &str, up_to: i64) -> Result<()> {
        Ok(outbox::delivered::<D>(&mut *self.inner, sink, up_to).await?)
    }

    async fn insert_api_key(&mut self, key: &ApiKey, sha256: &str) -> Result<()> {
        Ok(api_keys::insert::<D>(&mut *self.inner, key, sha256).await?)
    }
    async fn revoke_api_key(&mut self, key: &ApiKeyId, at: Timestamp) -> Result<bool> {
        Ok(api_keys::revoke::<D>(&mut *self.inner, key, at).await?)
    }
    async fn api_key_used(&mut self, key: &ApiKeyId, at: Timestamp) -> Result<()> {
        Ok(api_keys::used::<D>(&mut *self.inner, key, at).await?)
    }
}
