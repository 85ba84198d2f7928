//! The database: reads on [`Store`], changes in a [`Tx`].
//!
//! A transaction is all or nothing and sees its own writes. Everything that decides stays above: the store keeps
//! rows, it has no opinion. Counters are changed only by deltas, in the transaction that moves the rows.

use std::collections::BTreeMap;

use async_trait::async_trait;
use device_ota_domain::api_key::ApiKey;
use device_ota_domain::audit::Entry;
use device_ota_domain::bandwidth::Line;
use device_ota_domain::campaign::{
    Campaign, CampaignSpec, Counts, Delta, Group, Named, OpenFor, Priority, Reading, Requires,
};
use device_ota_domain::device::{Device, DeviceKey, LastError, Registration};
use device_ota_domain::event::{Event, StoredEvent};
use device_ota_domain::firmware::{Firmware, FirmwareFilter, Results, Storage};
use device_ota_domain::page::Page;
use device_ota_domain::permit::Permit;
use device_ota_domain::planner::Claim;
use device_ota_domain::ring::RingSettings;
use device_ota_domain::rollback::{Rollback, RollbackTrigger};
use device_ota_domain::statistics::Ledger;
use device_ota_domain::targeting::{Cuts, Exclusion};
use device_ota_domain::update::{Action, Look, Phase, Update};
use device_ota_domain::{ApiKeyId, CampaignId, DeviceId, FirmwareId, UpdateId};
use jiff::Timestamp;

use super::audit::AuditLog;
use super::bandwidth::{Bandwidth, BandwidthChanges};
pub use super::error::Result;
use super::figures::Figures;
use super::outbox::Outbox;
use super::replicas::{Here, ReplicaChanges, ReplicaKey, Replicas};
use super::telemetry::{DeviceFilter, HeartbeatRow, Telemetry};
use super::webhooks::{WebhookChanges, Webhooks};

/// What the gateway checks a connection against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The device's number.
    pub key: DeviceKey,
    /// A verifier of its secret (see `engine::secrets`).
    pub verifier: String,
}

/// A device to register.
#[derive(Debug, Clone)]
pub struct NewDevice {
    /// What is said of it.
    pub registration: Registration,
    /// Its place on the wheel.
    pub bucket: u16,
    /// A verifier of its secret.
    pub verifier: String,
    /// When.
    pub at: Timestamp,
}

/// What became of a registration, in the order asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// A new device.
    Created(DeviceKey),
    /// That id was registered before; nothing changed.
    Exists,
}

/// Filters of a campaign list (PRD, FR-18).
#[derive(Debug, Clone, Default)]
pub struct CampaignFilter {
    /// One of [`device_ota_domain::CampaignState::STATUSES`].
    pub status: Option<String>,
    /// Exact priority.
    pub priority: Option<Priority>,
    /// Of this firmware.
    pub firmware: Option<FirmwareId>,
}

/// Whom a campaign means, seen at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Aim<'c> {
    /// What the campaign shall do.
    pub spec: &'c CampaignSpec,
    /// Whom it names.
    pub named: &'c Named,
    /// With what.
    pub firmware: &'c Firmware,
    /// The present, for tests of age.
    pub now: Timestamp,
}

/// As many versions without an image are told at once.
pub const NO_WAY_BACK: u32 = 100;

/// What a campaign's targets come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetSummary {
    /// Devices of each stage.
    pub stages: Vec<u64>,
    /// Where stages end that take a number of devices.
    pub cuts: Cuts,
    /// Devices that are meant and left out, by reason; reasons without devices are not there.
    pub left_out: BTreeMap<Exclusion, u64>,
}

impl TargetSummary {
    /// Devices of all stages.
    pub fn total(&self) -> u64 {
        self.stages.iter().sum()
    }
}

/// A device that a campaign would mean.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetDevice {
    /// The device.
    pub device: Device,
    /// The campaign of which it has an open update; it takes one after the other.
    pub waits_for: Option<CampaignId>,
}

/// How a campaign's updates have come apart from whom it means by now; of those alone that were offered nothing yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drift {
    /// Devices that it means, and has no update for.
    pub newcomers: Vec<DeviceKey>,
    /// Updates that wait, of devices that it no longer means.
    pub leaves: Vec<(UpdateId, Exclusion)>,
    /// Updates that had ended because it did not mean their device, which it does once more; and its stage.
    pub returns: Vec<(UpdateId, u16)>,
    /// Updates that wait in another stage than that of their device.
    pub moves: Vec<(UpdateId, u16)>,
}

impl Drift {
    /// Nothing has come apart.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many devices and updates that are; the more of both.
    pub fn len(&self) -> usize {
        let updates = self.leaves.len() + self.returns.len() + self.moves.len();
        self.newcomers.len().max(updates)
    }
}

/// Filters of an update list; newest first.
#[derive(Debug, Clone, Default)]
pub struct UpdateFilter {
    /// Of this campaign.
    pub campaign: Option<CampaignId>,
    /// Of this device.
    pub device: Option<DeviceId>,
    /// With this image.
    pub firmware: Option<FirmwareId>,
    /// In this group.
    pub group: Option<Group>,
    /// In this phase: in flight, or staged and waiting.
    pub phase: Option<Phase>,
    /// Forward or back.
    pub action: Option<Action>,
    /// Of this priority.
    pub priority: Option<Priority>,
}

/// Filters of the rollback log; newest first.
#[derive(Debug, Clone, Default)]
pub struct RollbackFilter {
    /// Of this campaign.
    pub campaign: Option<CampaignId>,
    /// Of this device.
    pub device: Option<DeviceId>,
}

/// What else waits for devices of a campaign, as it is at the moment.
#[derive(Debug, Clone, Default)]
pub struct Rivals {
    /// Campaigns of which something waits: those in progress whose priority is not lower, and all that go back.
    pub campaigns: Vec<Campaign>,
    /// Some update outside of campaigns waits.
    pub singles: bool,
}

/// What goes before the updates that are claimed: a device is not found while one of these waits for it, and for nothing but its
/// pace.
#[derive(Debug, Clone, Default)]
pub struct Ahead {
    /// Of these campaigns.
    pub campaigns: Vec<Prior>,
    /// Outside of campaigns, of devices that are fit for them.
    pub singles: bool,
}

/// A campaign that goes before another one.
#[derive(Debug, Clone)]
pub struct Prior {
    /// Which.
    pub campaign: CampaignId,
    /// Those of its updates, or rollbacks, that nothing but its pace holds back.
    pub wants: Claim,
    /// What it asks of a device.
    pub requires: Requires,
    /// Its priority is the same: of a device's updates, the older one goes first.
    pub by_age: bool,
}

impl Ahead {
    /// Nothing does.
    pub fn is_empty(&self) -> bool {
        self.campaigns.is_empty() && !self.singles
    }
}

/// Which updates of a campaign may be offered now.
#[derive(Debug, Clone)]
pub struct ClaimQuery {
    /// Whose.
    pub campaign: CampaignId,
    /// Forward or back.
    pub action: Action,
    /// Highest stage.
    pub up_to_stage: u16,
    /// Rows at most.
    pub limit: u32,
    /// Devices that another replica than this one holds are not found.
    pub here: Option<ReplicaKey>,
    /// Due at or before this.
    pub now: Timestamp,
    /// What the device must have, by its last heartbeat; what it never said does not hold it back.
    pub requires: Requires,
    /// Those that are found are to hold what they are offered. Otherwise those that hold it are found first, and are to
    /// activate it.
    pub hold: bool,
    /// Devices whose maintenance window is closed are not found.
    pub open_for: OpenFor,
    /// Updates that are to be offered are found. Otherwise only those that their devices hold.
    pub offers: bool,
    /// Devices behind these lines are not found for an offer.
    pub busy: Vec<Line>,
    /// Devices that this waits for are not found.
    pub ahead: Ahead,
}

/// Which updates outside of campaigns may be offered now.
#[derive(Debug, Clone)]
pub struct SingleQuery {
    /// Forward or back.
    pub action: Action,
    /// Due at or before this.
    pub now: Timestamp,
    /// Rows at most.
    pub limit: u32,
    /// Devices that another replica than this one holds are not found.
    pub here: Option<ReplicaKey>,
    /// Devices behind these lines are not found.
    pub busy: Vec<Line>,
    /// Devices that this waits for are not found.
    pub ahead: Ahead,
}

/// The terms of a campaign's rollbacks.
#[derive(Debug, Clone, Copy)]
pub struct RollbackTerms<'r> {
    /// By whom or what.
    pub trigger: RollbackTrigger,
    /// For people.
    pub reason: &'r str,
    /// Now.
    pub at: Timestamp,
    /// Those that are not done by then end as failed.
    pub give_up_at: Timestamp,
}

/// An update that may be offered, and what its device runs.
#[derive(Debug, Clone)]
pub struct Claimable {
    /// The row, locked until the transaction ends.
    pub update: Update,
    /// The device's running version.
    pub running: Option<String>,
    /// The update whose image the device holds, which gives way to this one; locked.
    pub displaces: Option<Update>,
    /// The image's `security_version` is below the floor that the device reports.
    pub below_floor: bool,
}

/// What an assignment to a device is built on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferGround {
    /// The device.
    pub device: DeviceKey,
    /// Its id.
    pub device_id: DeviceId,
    /// The `seq` drawn for this assignment: higher than all before it.
    pub seq: i64,
    /// The nonce of the device's last check.
    pub nonce: Option<String>,
}

/// What a batch of reports says of one device's present state. `None` leaves what is there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Touch {
    /// The device.
    pub device: DeviceKey,
    /// When it was last heard.
    pub last_seen: Option<Timestamp>,
    /// Whether it is connected, and the session that says so: ignored when the row knows a later session.
    pub online: Option<(bool, i64)>,
    /// When it left, if `online` says that it is gone.
    pub left_at: Option<Timestamp>,
    /// It was connected by that session before it left: whoever was not there cannot leave, and no other absence begins.
    pub was_there: bool,
    /// Running version.
    pub version: Option<String>,
    /// Running slot.
    pub slot: Option<&'static str>,
    /// The running image has confirmed itself.
    pub confirmed: Option<bool>,
    /// Battery, percent.
    pub battery_percent: Option<f64>,
    /// The battery is being charged.
    pub charging: Option<bool>,
    /// Free storage, bytes.
    pub free_storage_bytes: Option<i64>,
    /// Errors in its last heartbeat.
    pub error_count: Option<i64>,
    /// The last of them.
    pub last_error: Option<LastError>,
    /// Its own numbers; all of them are replaced.
    pub metrics: Option<BTreeMap<String, f64>>,
    /// Lowest `security_version` it takes.
    pub security_floor: Option<i64>,
    /// The model it says it is.
    pub reported_model: Option<String>,
    /// Nonce of its last check.
    pub nonce: Option<String>,
}

/// A device that is not connected, of whom that was not told yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absence {
    /// Its number.
    pub device: DeviceKey,
    /// Its id.
    pub device_id: DeviceId,
    /// When it was last heard, perhaps in another way than over its connection.
    pub last_seen: Option<Timestamp>,
    /// Since when it has been away.
    pub since: Timestamp,
}

/// An update whose time may have run out, and what is known of its device.
#[derive(Debug, Clone)]
pub struct InFlight {
    /// The update: in flight, waiting for a device that fell silent, or completed and watched.
    pub update: Update,
    /// Any message of the device.
    pub last_seen: Option<Timestamp>,
    /// It is connected.
    pub online: bool,
    /// What it runs, by its last word.
    pub running: Option<String>,
}

impl InFlight {
    /// What is known of the device when it is watched.
    pub fn look(&self, now: Timestamp) -> Look<'_> {
        Look {
            now,
            last_seen: self.last_seen,
            online: self.online,
            running: self.running.as_deref(),
        }
    }
}

/// Reads. Each is one statement of its own and sees what is committed.
#[async_trait]
pub trait Store: Webhooks + Telemetry + Figures + Outbox + AuditLog + Bandwidth + Replicas {
    /// Ends it: what is under way is waited for, and a database in a file is left at rest.
    async fn close(&self);
    /// Begins a change. Dropped without [`Tx::commit`], it leaves nothing.
    async fn begin(&self) -> Result<Box<dyn Tx>>;
    /// The database answers, and takes what is written as far as is known: when a write has failed, one is tried, seldom.
    async fn ping(&self) -> Result<()>;

    /// What a connecting device is checked against.
    async fn credentials(&self, device: &DeviceId) -> Result<Option<Credentials>>;
    /// The same for every device after this id, in id order; for a broker's password file, and to read ahead.
    async fn all_credentials(
        &self,
        after: Option<&DeviceId>,
        limit: u32,
    ) -> Result<Vec<(DeviceId, Credentials)>>;
    /// One device.
    async fn device(&self, device: &DeviceId) -> Result<Option<Device>>;
    /// Devices by their numbers, in no particular order; unknown ones are left out.
    async fn devices_by_key(&self, devices: &[DeviceKey]) -> Result<Vec<Device>>;
    /// Devices in id order.
    async fn devices(&self, filter: &DeviceFilter, page: Page) -> Result<Vec<Device>>;

    /// Devices that have been away since `before` or longer, and of whom that was not told, longest first.
    async fn away(&self, before: Timestamp, limit: u32) -> Result<Vec<Absence>>;

    /// One firmware, deprecated or not.
    async fn firmware(&self, firmware: &FirmwareId) -> Result<Option<Firmware>>;
    /// Firmware, newest first; that which is deprecated only when the filter asks for it.
    async fn firmware_list(&self, filter: &FirmwareFilter, page: Page) -> Result<Vec<Firmware>>;
    /// The newest firmware of that model and version; a deprecated one only when there is no other.
    async fn firmware_of_version(
        &self,
        device_model: &str,
        version: &str,
    ) -> Result<Option<Firmware>>;
    /// Whether any firmware, deprecated or not, has these bytes.
    async fn object_is_used(&self, sha256: &str) -> Result<bool>;
    /// Whether the bytes of any firmware, deprecated or not, lie there.
    async fn storage_is_used(&self, storage: Storage) -> Result<bool>;

    /// The shares of the rings that new campaigns get.
    async fn rings(&self) -> Result<RingSettings>;
    /// One campaign.
    async fn campaign(&self, campaign: &CampaignId) -> Result<Option<Campaign>>;
    /// Whom it names; read only where its spec says that it does.
    async fn named(&self, campaign: &Campaign) -> Result<Named>;
    /// Campaigns that are not deleted, newest first.
    async fn campaigns(&self, filter: &CampaignFilter, page: Page) -> Result<Vec<Campaign>>;
    /// Campaigns that are active, cancelled with updates still open, or completed with a device that has regressed since `regressed_since`;
    /// highest priority first, then oldest.
    async fn campaigns_to_plan(&self, regressed_since: Timestamp) -> Result<Vec<Campaign>>;
    /// Campaigns that have completed and are not deleted, of which a device is watched; oldest first.
    async fn campaigns_watched(&self) -> Result<Vec<Campaign>>;
    /// A campaign's counters.
    async fn counts(&self, campaign: &CampaignId) -> Result<Counts>;
    /// Updates and rollbacks in flight, of all campaigns and single devices.
    async fn all_in_flight(&self) -> Result<u64>;
    /// The same counted from the rows, for tests and `/health/detailed`.
    async fn counts_by_rows(&self, campaign: &CampaignId) -> Result<Counts>;
    /// How many devices of each stage a campaign would mean if it started now, and how many it would leave out.
    async fn target_summary(&self, aim: Aim<'_>) -> Result<TargetSummary>;
    /// The versions that devices which it would mean run, and of which no image for their model is there to go back to, each with how
    /// many devices run it (`None`: nobody knows which); the most frequent ones, at most [`NO_WAY_BACK`].
    async fn no_way_back(&self, aim: Aim<'_>) -> Result<Vec<(Option<String>, u64)>>;
    /// The devices that it would mean, of one stage or of all, in id order; stages end at the `cuts` of the summary.
    async fn targets(
        &self,
        aim: Aim<'_>,
        cuts: &Cuts,
        stage: Option<u16>,
        page: Page,
    ) -> Result<Vec<TargetDevice>>;
    /// The devices that are meant and that it would leave out for this reason, in id order.
    async fn excluded(&self, aim: Aim<'_>, because: Exclusion, page: Page)
    -> Result<Vec<DeviceId>>;
    /// How the updates of a campaign that has started have come apart from whom it means, up to `limit` devices that have none
    /// and as many updates. What a stage takes a number of stays as it was at the start.
    async fn drift(&self, campaign: &CampaignId, aim: Aim<'_>, limit: u32) -> Result<Drift>;
    /// The named devices that it would leave out, in id order, with what is known of them.
    async fn left_out(&self, aim: Aim<'_>, page: Page) -> Result<Vec<(DeviceId, Option<Device>)>>;

    /// One update.
    async fn update(&self, update: &UpdateId) -> Result<Option<Update>>;
    /// Updates, newest first.
    async fn updates(&self, filter: &UpdateFilter, page: Page) -> Result<Vec<Update>>;
    /// How the updates of this device ended, rollbacks left out.
    async fn results_of(&self, device: &DeviceId) -> Result<Results>;
    /// The newest completed update that brought this version to the device, or else one that took it off that version; of the
    /// time since it was registered.
    async fn ran(&self, device: &Device, version: &str) -> Result<Option<Update>>;
    /// The device's update in flight: at most one.
    async fn in_flight(&self, device: DeviceKey) -> Result<Option<Update>>;
    /// What the device has open: first what is in flight, then what waits, then what it holds; newest first.
    async fn newest_open(&self, device: DeviceKey, limit: u32) -> Result<Vec<Update>>;
    /// The updates that these devices are given to, in no particular order: those in flight, and those whose image they hold.
    async fn busy_with(&self, devices: &[DeviceKey]) -> Result<Vec<Update>>;
    /// The updates and rollbacks that wait for their first or next offer, of these devices, in no particular order.
    async fn waiting(&self, devices: &[DeviceKey]) -> Result<Vec<Update>>;
    /// Offers that were sent before this and not answered, of devices that are online and that no replica but `here` holds, and
    /// updates whose requested cancel has not been answered since; oldest first. So are those of a time after `now`: the clock was set
    /// back since.
    async fn unanswered(
        &self,
        before: Timestamp,
        now: Timestamp,
        here: Option<ReplicaKey>,
        limit: u32,
    ) -> Result<Vec<Update>>;
    /// Whether any pending update or rollback outside of campaigns may be offered by the replica `here`.
    async fn has_due_singles(&self, now: Timestamp, here: Option<ReplicaKey>) -> Result<bool>;
    /// Updates whose lease, deadline or loss has come due, or whose watch has, of devices that no replica but `here` holds.
    async fn expired(
        &self,
        now: Timestamp,
        here: Option<ReplicaKey>,
        limit: u32,
    ) -> Result<Vec<InFlight>>;
    /// Devices whose update in flight has announced the restart into the new image.
    async fn rebooting(&self) -> Result<Vec<DeviceKey>>;
    /// Devices that are watched after their update, and the version that each has to show.
    async fn watched(&self) -> Result<Vec<(DeviceKey, String)>>;
    /// Updates that are open although their device was deleted, at or after `since`.
    async fn left_behind(&self, since: Timestamp, limit: u32) -> Result<Vec<UpdateId>>;
    /// The rollback log.
    async fn rollbacks(&self, filter: &RollbackFilter, page: Page) -> Result<Vec<Rollback>>;
    /// Events behind the sink's place, in order.
    async fn events_for(&self, sink: &str, limit: u32) -> Result<Vec<StoredEvent>>;

    /// Rollback permits, newest first.
    async fn permits(&self, page: Page) -> Result<Vec<Permit>>;
    /// The envelope of a permit for this rollback: for its device or campaign, from what its device runs, in force and not used by it.
    async fn permit_for(&self, rollback: &UpdateId, now: Timestamp) -> Result<Option<String>>;

    /// The API key whose secret has this SHA-256 (hex), whether or not it opens.
    async fn api_key_of_secret(&self, sha256: &str) -> Result<Option<ApiKey>>;
    /// One API key.
    async fn api_key(&self, key: &ApiKeyId) -> Result<Option<ApiKey>>;
    /// API keys, newest first.
    async fn api_keys(&self, page: Page) -> Result<Vec<ApiKey>>;
}

/// One transaction.
#[async_trait]
pub trait Tx: Send + WebhookChanges + BandwidthChanges + ReplicaChanges {
    /// Makes it durable. Answers how the figures have moved with it.
    async fn commit(self: Box<Self>) -> Result<Ledger>;

    /// Registers devices; one answer for each, in order.
    async fn register(&mut self, devices: &[NewDevice]) -> Result<Vec<Registered>>;
    /// One device, locked until the transaction ends: nobody else changes what is registered of it, deletes it, or asks for an
    /// update of it alone. To be locked before its updates, and after images and campaigns.
    async fn device(&mut self, device: &DeviceId) -> Result<Option<Device>>;
    /// Replaces a device's verifier; false when there is no such device.
    async fn set_verifier(
        &mut self,
        device: &DeviceId,
        verifier: &str,
        at: Timestamp,
    ) -> Result<bool>;
    /// Writes what is registered of a device, its groups included; false when there is no such device.
    async fn save_device(&mut self, device: &Registration) -> Result<bool>;
    /// Deletes a device: it keeps its number for records and is found nowhere else. False when there is no such device.
    async fn delete_device(&mut self, device: &DeviceId, at: Timestamp) -> Result<bool>;
    /// Every device is offline from now on that no replica holds: a gateway that has just started has no sessions.
    async fn reset_presence(&mut self, at: Timestamp) -> Result<()>;
    /// Lets each absence begin at the given time instead, or, with none, be one that was told. Answers of which devices:
    /// those whose absence was still as it had been read.
    async fn settle_absences(
        &mut self,
        absences: &[(&Absence, Option<Timestamp>)],
    ) -> Result<Vec<DeviceKey>>;
    /// Applies what a batch says of devices' present states; one entry a device. Of sessions, nothing when the replica `here` was ended
    /// meanwhile: it announces all of them when it is back. Who is taken over from another replica is noted for that one.
    async fn touch_here(&mut self, touches: &[Touch], here: Here) -> Result<()>;
    /// The same of sessions that no replica holds.
    async fn touch(&mut self, touches: &[Touch]) -> Result<()> {
        self.touch_here(touches, Here::default()).await
    }
    /// Appends to the heartbeat history.
    async fn insert_heartbeats(&mut self, rows: &[HeartbeatRow]) -> Result<()>;
    /// Draws the next `seq` for each device, once a device, in no particular order.
    async fn draw_seqs(&mut self, devices: &[DeviceKey]) -> Result<Vec<OfferGround>>;

    /// Inserts a firmware; `Conflict` when the id is taken.
    async fn insert_firmware(&mut self, firmware: &Firmware) -> Result<()>;
    /// One firmware, locked until the transaction ends.
    async fn firmware(&mut self, firmware: &FirmwareId) -> Result<Option<Firmware>>;
    /// One firmware, which nobody locks or deprecates before the transaction ends; several transactions may hold it.
    async fn hold_firmware(&mut self, firmware: &FirmwareId) -> Result<Option<Firmware>>;
    /// Writes metadata, `deprecated_at` and `updated_at`.
    async fn save_firmware(&mut self, firmware: &Firmware) -> Result<()>;
    /// Writes where these bytes lie, of every firmware that has them.
    async fn set_storage(&mut self, sha256: &str, storage: Storage) -> Result<()>;
    /// Campaigns in progress or paused that roll this firmware out, locked.
    async fn campaigns_offering(&mut self, firmware: &FirmwareId) -> Result<Vec<Campaign>>;
    /// Updates to this firmware outside of campaigns that have not ended.
    async fn open_singles(&mut self, firmware: &FirmwareId, limit: u32) -> Result<Vec<UpdateId>>;
    /// The same, of those that wait or whose cancel has not been asked for and still helps, locked.
    async fn cancellable_singles(
        &mut self,
        firmware: &FirmwareId,
        limit: u32,
    ) -> Result<Vec<Update>>;
    /// The newest campaign that deploys this firmware ring by ring and is not deleted, locked.
    async fn ring_deployment(&mut self, firmware: &FirmwareId) -> Result<Option<Campaign>>;
    /// Adds downloads to a firmware's count.
    async fn count_downloads(&mut self, firmware: &FirmwareId, downloads: u64) -> Result<()>;

    /// The shares of the rings, locked until the transaction ends.
    async fn rings(&mut self) -> Result<RingSettings>;
    /// Writes the shares of the rings.
    async fn save_rings(&mut self, rings: &RingSettings) -> Result<()>;
    /// Inserts a campaign; to be followed by [`Tx::save_named`] when it names devices.
    async fn insert_campaign(&mut self, campaign: &Campaign) -> Result<()>;
    /// One campaign, locked until the transaction ends.
    async fn campaign(&mut self, campaign: &CampaignId) -> Result<Option<Campaign>>;
    /// The same as it is at the moment: not locked.
    async fn peek_campaign(&mut self, campaign: &CampaignId) -> Result<Option<Campaign>>;
    /// Writes what the campaign shall do, and makes its stages anew; for campaigns that have no rows yet. To be followed
    /// by [`Tx::save_named`] and by [`Tx::save_campaign`], which looks at the revision.
    async fn replace_spec(&mut self, campaign: &Campaign) -> Result<()>;
    /// Writes whom the campaign names, in place of whom it named before.
    async fn save_named(&mut self, campaign: &CampaignId, named: &Named) -> Result<()>;
    /// Writes state, approval, `target_count`, `updated_at` and `deleted_at`, and raises the revision; `Conflict` when `campaign.revision`
    /// is no longer the row's.
    async fn save_campaign(&mut self, campaign: &Campaign) -> Result<()>;
    /// Writes when the campaign's next offer is due; its revision stays.
    async fn pace(&mut self, campaign: &CampaignId, next_offer_at: Timestamp) -> Result<()>;
    /// Writes what the criteria of its health have found; its revision stays.
    async fn save_readings(&mut self, campaign: &CampaignId, readings: &[Reading]) -> Result<()>;
    /// Updates and rollbacks in flight, of all campaigns and single devices; until the transaction ends no other one gets
    /// an answer.
    async fn hold_slots(&mut self) -> Result<u64>;
    /// The campaign's counters, within this transaction.
    async fn counts(&mut self, campaign: &CampaignId) -> Result<Counts>;
    /// Makes one pending update for every device that the campaign means (of the firmware's model, not already
    /// running its version, hardware revision among the firmware's, inside the rollout share), its stage by ring pin
    /// or turned bucket, in one `INSERT … SELECT`, and sets the counters. Answers how many.
    async fn make_updates(
        &mut self,
        campaign: &Campaign,
        firmware: &Firmware,
        at: Timestamp,
    ) -> Result<u64>;
    /// The same for those of these devices that the campaign means by now and has no update for, into the stages that they have now.
    async fn take_in(
        &mut self,
        campaign: &Campaign,
        firmware: &Firmware,
        at: Timestamp,
        devices: &[DeviceKey],
    ) -> Result<u64>;
    /// Moves updates that wait to other stages, and the counters with them. Answers how many.
    async fn restage(
        &mut self,
        campaign: &CampaignId,
        moves: &[(UpdateId, u16)],
        at: Timestamp,
    ) -> Result<u64>;
    /// Makes one rollback, and its log entry, for every completed update of the campaign that has none: pending when
    /// the version it came from is in the registry (of the same model, deprecated only when there is no other), failed with code
    /// `no_previous_firmware` when not. Sets the counters. Answers how many.
    async fn make_rollbacks(
        &mut self,
        campaign: &Campaign,
        terms: &RollbackTerms<'_>,
    ) -> Result<u64>;
    /// Cancels every pending or staged update, or every pending rollback, of the campaign and moves the counters. Answers
    /// how many.
    async fn cancel_pending(
        &mut self,
        campaign: &CampaignId,
        action: Action,
        at: Timestamp,
    ) -> Result<u64>;
    /// Begins the time as a whole of the campaign's updates that are given up in the end and whose time has not begun, in the stages
    /// up to this one; of those that are staged, with the last stage.
    async fn begin_time(
        &mut self,
        campaign: &CampaignId,
        up_to_stage: u16,
        at: Timestamp,
    ) -> Result<()>;
    /// Lets every cancelled rollback of the campaign wait once more until `give_up_at`, of devices that still run what
    /// it takes them off, and moves the counters. Answers how many.
    async fn revive_rollbacks(
        &mut self,
        campaign: &CampaignId,
        at: Timestamp,
        give_up_at: Timestamp,
    ) -> Result<u64>;

    /// Inserts one update outside of any campaign, with its log entry when it is a rollback.
    async fn insert_update(
        &mut self,
        update: &Update,
        log: Option<(RollbackTrigger, &str)>,
    ) -> Result<()>;
    /// What else waits for devices of this campaign's model, and may go before its updates; without a campaign: before those outside
    /// of any, which only what goes back does. Not locked.
    async fn rivals(&mut self, campaign: Option<&Campaign>) -> Result<Rivals>;
    /// Updates of a campaign that may be offered or activated: due, in an open stage, of devices that are online, fit by their last
    /// heartbeat, and without another update in flight; locked, and passed over where another replica holds the
    /// lock; staged ones first, unless the query is to hold, then lowest stage first, then oldest due; of rollbacks, the
    /// other way round. A device that holds the image of another update is found only for what that one gives way to (see [`Update::gives_way_to`]).
    async fn claimable(&mut self, query: &ClaimQuery) -> Result<Vec<Claimable>>;
    /// The same outside of campaigns, at most one a device: of devices that are fit for what the image asks by now; the highest
    /// priority first, then oldest due.
    async fn claimable_singles(&mut self, query: &SingleQuery) -> Result<Vec<Claimable>>;
    /// Updates by id, locked; unknown ids are left out.
    async fn updates(&mut self, ids: &[UpdateId]) -> Result<Vec<Update>>;
    /// The updates in flight of these devices, locked.
    async fn in_flight(&mut self, devices: &[DeviceKey]) -> Result<Vec<Update>>;
    /// The completed updates of these devices that are watched, locked.
    async fn watched(&mut self, devices: &[DeviceKey]) -> Result<Vec<Update>>;
    /// Of these updates, which have not completed, those whose device was given to another one since: one that it has in hand, or
    /// that it has completed since these were first offered.
    async fn superseded(&mut self, updates: &[UpdateId]) -> Result<Vec<UpdateId>>;
    /// Nobody watches these devices any more.
    async fn end_watches(&mut self, devices: &[DeviceKey]) -> Result<()>;
    /// The updates and rollbacks of this device that have not ended, as they are at the moment: not locked.
    async fn peek_open(&mut self, device: DeviceKey) -> Result<Vec<Update>>;
    /// The same, locked.
    async fn open_updates(&mut self, device: DeviceKey) -> Result<Vec<Update>>;
    /// Updates, or rollbacks, of the campaign in flight whose cancel has not been asked for and still helps, of devices that no replica
    /// but `here` holds; locked.
    async fn cancellable(
        &mut self,
        campaign: &CampaignId,
        action: Action,
        here: Option<ReplicaKey>,
        limit: u32,
    ) -> Result<Vec<Update>>;
    /// Writes attempt, seq, retries, progress, versions, state, what became of it, and times of existing rows, in bulk.
    async fn save_updates(&mut self, updates: &[Update]) -> Result<()>;
    /// Moves counters: each delta as many times as its number.
    async fn add_counts(&mut self, deltas: &[(Delta, u64)]) -> Result<()>;
    /// Moves the figures with the commit. What is made, ended or revived at a stroke counts itself, as do updates that are
    /// inserted one by one.
    fn count(&mut self, ledger: Ledger);

    /// Appends to the outbox; ids rise in the order of commits.
    async fn append_events(&mut self, events: &[Event]) -> Result<()>;
    /// Appends to the audit trail: the record gets its number and hash at the commit.
    async fn append_audit(&mut self, entry: Entry) -> Result<()>;
    /// Moves the sink's place in the outbox.
    async fn events_delivered(&mut self, sink: &str, up_to: i64) -> Result<()>;

    /// Keeps a permit; false when one of its id is there.
    async fn insert_permit(&mut self, permit: &Permit) -> Result<bool>;
    /// See [`Store::permit_for`].
    async fn permit_for(&mut self, rollback: &UpdateId, now: Timestamp) -> Result<Option<String>>;
    /// Inserts an API key whose secret has this SHA-256 (hex).
    async fn insert_api_key(&mut self, key: &ApiKey, sha256: &str) -> Result<()>;
    /// Revokes an API key; false when there is none that was not revoked before.
    async fn revoke_api_key(&mut self, key: &ApiKeyId, at: Timestamp) -> Result<bool>;
    /// Notes that an API key was used.
    async fn api_key_used(&mut self, key: &ApiKeyId, at: Timestamp) -> Result<()>;
}
