//! The engine's `Tx` port: one database transaction.

use async_trait::async_trait;
use device_ota_domain::api_key::ApiKey;
use device_ota_domain::audit::Entry;
use device_ota_domain::campaign::{Campaign, Counts, Delta, Named, Reading};
use device_ota_domain::device::{Device, DeviceKey, Registration};
use device_ota_domain::event::Event;
use device_ota_domain::firmware::{Firmware, Storage};
use device_ota_domain::permit::Permit;
use device_ota_domain::ring::RingSettings;
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::statistics::Ledger;
use device_ota_domain::update::{Action, Update};
use device_ota_domain::{ApiKeyId, CampaignId, DeviceId, FirmwareId, UpdateId};
use device_ota_engine::ports::error::Result;
use device_ota_engine::ports::replicas::{Here, ReplicaKey};
use device_ota_engine::ports::store::{
    Absence, ClaimQuery, Claimable, NewDevice, OfferGround, Registered, Rivals, RollbackTerms,
    SingleQuery, Touch, Tx,
};
use device_ota_engine::ports::telemetry::HeartbeatRow;
use jiff::Timestamp;
use sqlx::Transaction;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::firmware::Lock;
use crate::outbox::Stroke;
use crate::writes::{Writes, seen};
use crate::{
    SqlStore, api_keys, audit, campaigns, counts, devices, dispatch, drift, figures, firmware,
    materialise, outbox, permits, presence, rings, rollbacks, updates, vitals,
};

/// Runs what a port asks for on the transaction's connection; a failure is noted.
macro_rules! run {
    ($tx:ident, $call:path $(, $arg:expr)*) => {
        seen($call(&mut *$tx.inner $(, $arg)*).await, &$tx.writes)
    };
}

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
    /// Told when something is not written.
    pub(crate) writes: Writes,
    #[cfg(any(test, feature = "testing"))]
    watched: crate::testing::Watched,
}

impl<D: Dialect> SqlTx<D> {
    /// Takes a connection and begins.
    pub(crate) async fn begin(store: &SqlStore<D>) -> Result<Self> {
        #[cfg(any(test, feature = "testing"))]
        store.watched.begins().await;
        let writes = store.writes.clone();
        let begun = store.writer.begin_with(D::BEGIN_WRITE).await;
        let inner = seen(begun.map_err(DbError::from), &writes)?;
        Ok(Self {
            inner,
            events: Vec::new(),
            strokes: Vec::new(),
            ledger: Ledger::default(),
            audit: Vec::new(),
            writes,
            #[cfg(any(test, feature = "testing"))]
            watched: store.watched.clone(),
        })
    }

    /// Writes what was kept for the end, and commits.
    async fn finish(mut self) -> std::result::Result<Ledger, DbError> {
        figures::write::<D>(&mut *self.inner, &self.ledger).await?;
        for stroke in std::mem::take(&mut self.strokes) {
            outbox::tell::<D>(&mut *self.inner, &stroke).await?;
        }
        let events = std::mem::take(&mut self.events);
        outbox::append::<D>(&mut *self.inner, &events).await?;
        let head = audit::append::<D>(&mut *self.inner, &self.audit).await?;
        #[cfg(any(test, feature = "testing"))]
        self.watched.may_commit()?;
        self.inner.commit().await?;
        #[cfg(any(test, feature = "testing"))]
        self.watched.committed().await;
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
    async fn commit(self: Box<Self>) -> Result<Ledger> {
        let writes = self.writes.clone();
        seen(self.finish().await, &writes)
    }

    async fn register(&mut self, devices: &[NewDevice]) -> Result<Vec<Registered>> {
        run!(self, devices::register::<D>, devices)
    }
    async fn device(&mut self, device: &DeviceId) -> Result<Option<Device>> {
        run!(self, devices::locked::<D>, device)
    }
    async fn set_verifier(
        &mut self,
        device: &DeviceId,
        verifier: &str,
        at: Timestamp,
    ) -> Result<bool> {
        run!(self, devices::set_verifier::<D>, device, verifier, at)
    }
    async fn save_device(&mut self, device: &Registration) -> Result<bool> {
        run!(self, devices::save::<D>, device)
    }
    async fn delete_device(&mut self, device: &DeviceId, at: Timestamp) -> Result<bool> {
        run!(self, devices::delete::<D>, device, at)
    }
    async fn reset_presence(&mut self, at: Timestamp) -> Result<()> {
        run!(self, presence::reset::<D>, at)
    }
    async fn settle_absences(
        &mut self,
        absences: &[(&Absence, Option<Timestamp>)],
    ) -> Result<Vec<DeviceKey>> {
        run!(self, presence::settle::<D>, absences)
    }
    async fn touch_here(&mut self, touches: &[Touch], here: Here) -> Result<()> {
        run!(self, presence::touch::<D>, touches, here)
    }
    async fn insert_heartbeats(&mut self, rows: &[HeartbeatRow]) -> Result<()> {
        run!(self, presence::insert_heartbeats::<D>, rows)
    }
    async fn draw_seqs(&mut self, devices: &[DeviceKey]) -> Result<Vec<OfferGround>> {
        run!(self, presence::draw_seqs::<D>, devices)
    }

    async fn insert_firmware(&mut self, firmware: &Firmware) -> Result<()> {
        run!(self, firmware::insert::<D>, firmware)
    }
    async fn firmware(&mut self, firmware: &FirmwareId) -> Result<Option<Firmware>> {
        run!(self, firmware::locked::<D>, firmware, Lock::Change)
    }
    async fn hold_firmware(&mut self, firmware: &FirmwareId) -> Result<Option<Firmware>> {
        run!(self, firmware::locked::<D>, firmware, Lock::Hold)
    }
    async fn save_firmware(&mut self, firmware: &Firmware) -> Result<()> {
        run!(self, firmware::save::<D>, firmware)
    }
    async fn set_storage(&mut self, sha256: &str, storage: Storage) -> Result<()> {
        run!(self, firmware::set_storage::<D>, sha256, storage)
    }
    async fn campaigns_offering(&mut self, firmware: &FirmwareId) -> Result<Vec<Campaign>> {
        run!(self, campaigns::offering::<D>, firmware)
    }
    async fn open_singles(&mut self, firmware: &FirmwareId, limit: u32) -> Result<Vec<UpdateId>> {
        run!(self, firmware::open_singles::<D>, firmware, limit)
    }
    async fn cancellable_singles(
        &mut self,
        firmware: &FirmwareId,
        limit: u32,
    ) -> Result<Vec<Update>> {
        run!(self, firmware::cancellable_singles::<D>, firmware, limit)
    }
    async fn ring_deployment(&mut self, firmware: &FirmwareId) -> Result<Option<Campaign>> {
        run!(self, campaigns::ring_deployment::<D>, firmware)
    }
    async fn count_downloads(&mut self, firmware: &FirmwareId, downloads: u64) -> Result<()> {
        run!(self, firmware::count_downloads::<D>, firmware, downloads)
    }

    async fn rings(&mut self) -> Result<RingSettings> {
        run!(self, rings::locked::<D>)
    }
    async fn save_rings(&mut self, settings: &RingSettings) -> Result<()> {
        run!(self, rings::save::<D>, settings)
    }
    async fn insert_campaign(&mut self, campaign: &Campaign) -> Result<()> {
        run!(self, campaigns::insert::<D>, campaign)
    }
    async fn campaign(&mut self, campaign: &CampaignId) -> Result<Option<Campaign>> {
        run!(self, campaigns::locked::<D>, campaign)
    }
    async fn peek_campaign(&mut self, campaign: &CampaignId) -> Result<Option<Campaign>> {
        run!(self, campaigns::campaign::<D>, campaign)
    }
    async fn replace_spec(&mut self, campaign: &Campaign) -> Result<()> {
        run!(self, campaigns::replace_spec::<D>, campaign)
    }
    async fn save_named(&mut self, campaign: &CampaignId, named: &Named) -> Result<()> {
        Ok(campaigns::save_named::<D>(&mut *self.inner, campaign, named).await?)
    }
    async fn save_campaign(&mut self, campaign: &Campaign) -> Result<()> {
        run!(self, campaigns::save::<D>, campaign)
    }
    async fn pace(&mut self, campaign: &CampaignId, next_offer_at: Timestamp) -> Result<()> {
        run!(self, campaigns::pace::<D>, campaign, next_offer_at)
    }
    async fn save_readings(&mut self, campaign: &CampaignId, readings: &[Reading]) -> Result<()> {
        run!(self, vitals::save::<D>, campaign, readings)
    }
    async fn hold_slots(&mut self) -> Result<u64> {
        run!(self, dispatch::hold_slots::<D>)
    }
    async fn counts(&mut self, campaign: &CampaignId) -> Result<Counts> {
        run!(self, counts::counts::<D>, campaign)
    }
    async fn make_updates(
        &mut self,
        campaign: &Campaign,
        firmware: &Firmware,
        at: Timestamp,
    ) -> Result<u64> {
        let (conn, ledger) = (&mut *self.inner, &mut self.ledger);
        let of = (campaign, firmware);
        seen(
            materialise::make_updates::<D>(conn, ledger, of, at, None).await,
            &self.writes,
        )
    }
    async fn take_in(
        &mut self,
        campaign: &Campaign,
        firmware: &Firmware,
        at: Timestamp,
        devices: &[DeviceKey],
    ) -> Result<u64> {
        let (conn, ledger) = (&mut *self.inner, &mut self.ledger);
        let taken = drift::take_in::<D>(conn, ledger, campaign, firmware, at, devices).await;
        seen(taken, &self.writes)
    }
    async fn restage(
        &mut self,
        campaign: &CampaignId,
        moves: &[(UpdateId, u16)],
        at: Timestamp,
    ) -> Result<u64> {
        run!(self, drift::restage::<D>, campaign, moves, at)
    }
    async fn make_rollbacks(
        &mut self,
        campaign: &Campaign,
        terms: &RollbackTerms<'_>,
    ) -> Result<u64> {
        let (conn, ledger) = (&mut *self.inner, &mut self.ledger);
        let numbers = seen(
            materialise::make_rollbacks::<D>(conn, ledger, campaign, terms).await,
            &self.writes,
        )?;
        Ok(self.at_a_stroke(numbers, terms.at))
    }
    async fn cancel_pending(
        &mut self,
        campaign: &CampaignId,
        action: Action,
        at: Timestamp,
    ) -> Result<u64> {
        let (conn, ledger) = (&mut *self.inner, &mut self.ledger);
        let numbers = seen(
            materialise::cancel_pending::<D>(conn, ledger, campaign, action, at).await,
            &self.writes,
        )?;
        Ok(self.at_a_stroke(numbers, at))
    }
    async fn begin_time(
        &mut self,
        campaign: &CampaignId,
        up_to_stage: u16,
        at: Timestamp,
    ) -> Result<()> {
        let conn = &mut *self.inner;
        let begun = materialise::begin_time::<D>(conn, campaign, up_to_stage, at).await;
        seen(begun, &self.writes)
    }
    async fn revive_rollbacks(
        &mut self,
        campaign: &CampaignId,
        at: Timestamp,
        give_up_at: Timestamp,
    ) -> Result<u64> {
        let (conn, ledger) = (&mut *self.inner, &mut self.ledger);
        let revived =
            materialise::revive_rollbacks::<D>(conn, ledger, campaign, at, give_up_at).await;
        let numbers = seen(revived, &self.writes)?;
        Ok(self.at_a_stroke(numbers, at))
    }

    async fn insert_update(
        &mut self,
        update: &Update,
        log: Option<(RollbackTrigger, &str)>,
    ) -> Result<()> {
        run!(self, updates::insert::<D>, update)?;
        if let Some((trigger, reason)) = log {
            run!(self, rollbacks::log_one::<D>, &update.id, trigger, reason)?;
        }
        self.ledger.born(update);
        Ok(())
    }
    async fn rivals(&mut self, campaign: Option<&Campaign>) -> Result<Rivals> {
        run!(self, dispatch::rivals::<D>, campaign)
    }
    async fn claimable(&mut self, query: &ClaimQuery) -> Result<Vec<Claimable>> {
        run!(self, dispatch::claimable::<D>, query)
    }
    async fn claimable_singles(&mut self, query: &SingleQuery) -> Result<Vec<Claimable>> {
        run!(self, dispatch::claimable_singles::<D>, query)
    }
    async fn updates(&mut self, ids: &[UpdateId]) -> Result<Vec<Update>> {
        run!(self, updates::locked::<D>, ids)
    }
    async fn in_flight(&mut self, devices: &[DeviceKey]) -> Result<Vec<Update>> {
        run!(self, dispatch::in_flight_locked::<D>, devices)
    }
    async fn watched(&mut self, devices: &[DeviceKey]) -> Result<Vec<Update>> {
        run!(self, dispatch::watched_locked::<D>, devices)
    }
    async fn superseded(&mut self, updates: &[UpdateId]) -> Result<Vec<UpdateId>> {
        run!(self, dispatch::superseded::<D>, updates)
    }
    async fn end_watches(&mut self, devices: &[DeviceKey]) -> Result<()> {
        run!(self, dispatch::end_watches::<D>, devices)
    }
    async fn peek_open(&mut self, device: DeviceKey) -> Result<Vec<Update>> {
        run!(self, dispatch::open::<D>, device)
    }
    async fn open_updates(&mut self, device: DeviceKey) -> Result<Vec<Update>> {
        run!(self, dispatch::open_locked::<D>, device)
    }
    async fn cancellable(
        &mut self,
        campaign: &CampaignId,
        action: Action,
        here: Option<ReplicaKey>,
        limit: u32,
    ) -> Result<Vec<Update>> {
        run!(
            self,
            dispatch::cancellable::<D>,
            campaign,
            action,
            here,
            limit
        )
    }
    async fn save_updates(&mut self, updates: &[Update]) -> Result<()> {
        run!(self, updates::save::<D>, updates)
    }
    async fn add_counts(&mut self, deltas: &[(Delta, u64)]) -> Result<()> {
        run!(self, counts::add::<D>, deltas)
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
        run!(self, outbox::delivered::<D>, sink, up_to)
    }

    async fn insert_permit(&mut self, permit: &Permit) -> Result<bool> {
        run!(self, permits::insert::<D>, permit)
    }
    async fn permit_for(&mut self, rollback: &UpdateId, now: Timestamp) -> Result<Option<String>> {
        run!(self, permits::permit_for::<D>, rollback, now)
    }

    async fn insert_api_key(&mut self, key: &ApiKey, sha256: &str) -> Result<()> {
        run!(self, api_keys::insert::<D>, key, sha256)
    }
    async fn revoke_api_key(&mut self, key: &ApiKeyId, at: Timestamp) -> Result<bool> {
        run!(self, api_keys::revoke::<D>, key, at)
    }
    async fn api_key_used(&mut self, key: &ApiKeyId, at: Timestamp) -> Result<()> {
        run!(self, api_keys::used::<D>, key, at)
    }
}
