//! The database's side of telemetry: the history of heartbeats and its upkeep, and the fleet at a glance.

use std::sync::Arc;

use async_trait::async_trait;
use device_ota_domain::CampaignId;
use device_ota_domain::device::DeviceKey;
use device_ota_domain::page::Page;
use device_ota_domain::ring::Ring;
use jiff::Timestamp;

use super::error::Result;

/// Filters of a device list and of an overview; all that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct DeviceFilter {
    /// Of this model.
    pub device_model: Option<String>,
    /// Of this kind.
    pub device_type: Option<String>,
    /// Of this maker.
    pub manufacturer: Option<String>,
    /// Runs this, by its own last word, else as registered.
    pub firmware_version: Option<String>,
    /// In this group.
    pub group: Option<String>,
    /// With this tag.
    pub tag: Option<TagFilter>,
    /// Pinned to this ring.
    pub ring: Option<Ring>,
    /// Connected, or not.
    pub presence: Option<Presence>,
}

/// A tag that devices have to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagFilter {
    /// Its name.
    pub key: String,
    /// Its value; `None`: whatever it is.
    pub value: Option<String>,
}

/// Whether a device is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Connected now.
    Online,
    /// Not connected now, or never.
    Offline,
    /// Never heard.
    NeverSeen,
}

/// A heartbeat for the history.
#[derive(Debug, Clone)]
pub struct HeartbeatRow {
    /// The device.
    pub device: DeviceKey,
    /// When it came.
    pub received_at: Timestamp,
    /// As sent: JSON text.
    pub payload: Arc<str>,
}

/// Which heartbeats of one device.
#[derive(Debug, Clone, Copy)]
pub struct HeartbeatQuery {
    /// Whose.
    pub device: DeviceKey,
    /// Received at this time or later.
    pub from: Option<Timestamp>,
    /// Received before this time.
    pub to: Option<Timestamp>,
}

/// Devices of a campaign whose heartbeats are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthSample {
    /// Completed and watched, those that have been for longest first.
    pub completed: Vec<SampledDevice>,
    /// Connected, and their update waits.
    pub waiting: Vec<DeviceKey>,
}

/// A device that has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampledDevice {
    /// The device.
    pub device: DeviceKey,
    /// First offer of its update.
    pub started_at: Timestamp,
    /// When it completed.
    pub completed_at: Timestamp,
}

/// Devices that are alike, and how many they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetGroup {
    /// What they run by their own last word, else as registered.
    pub version: Option<String>,
    /// Their model.
    pub device_model: String,
    /// The ring they are pinned to.
    pub ring: Option<String>,
    /// They are connected.
    pub online: bool,
    /// How many.
    pub devices: u64,
    /// Of these, with a battery below the mark.
    pub low_battery: u64,
    /// Of these, with errors in their last heartbeat.
    pub with_errors: u64,
    /// Of these, never heard.
    pub never_seen: u64,
}

/// What metrics show of the database, read in one go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Campaigns that have not ended: each status, how many.
    pub campaigns: Vec<(&'static str, u64)>,
    /// Updates and rollbacks of those among them that have started: each action and state, how many.
    pub updates: Vec<(&'static str, &'static str, u64)>,
    /// All updates and rollbacks that there are: each action and state, how many.
    pub all_updates: Vec<(&'static str, &'static str, u64)>,
    /// Connections to the database that are open: of which pool, whether in use, how many.
    pub connections: Vec<(&'static str, &'static str, u64)>,
    /// Events in the outbox.
    pub events_kept: u64,
    /// Receivers of events that were asked for, and [`WEBHOOK`]: how many they have not taken yet.
    pub waiting: Vec<(&'static str, u64)>,
    /// Webhooks: each status, how many.
    pub webhooks: Vec<(&'static str, u64)>,
}

/// The webhook among the active ones that is furthest behind, as a receiver of events.
pub const WEBHOOK: &str = "webhook";

/// Reads of telemetry, and its upkeep. Each call is a short transaction of its own.
#[async_trait]
pub trait Telemetry: Send + Sync + 'static {
    /// Heartbeats of one device, newest first, up to the last that was committed.
    async fn heartbeats(&self, query: &HeartbeatQuery, page: Page) -> Result<Vec<HeartbeatRow>>;
    /// Devices of this campaign that have completed since then and are watched, or have regressed, always the same of them; and devices that
    /// wait for their first offer. At most so many of each.
    async fn health_sample(
        &self,
        campaign: &CampaignId,
        since: Timestamp,
        limit: u32,
    ) -> Result<HealthSample>;
    /// What metrics show, from counters and indexes alone; of receivers of events, those of these names, each with that of its place in
    /// the outbox, and the webhooks.
    async fn snapshot(&self, sinks: &[(&'static str, String)]) -> Result<Snapshot>;
    /// Counts devices by what they have in common.
    async fn fleet(&self, filter: &DeviceFilter, low_battery: f64) -> Result<Vec<FleetGroup>>;

    /// Indexes the oldest run of heartbeats that is not indexed, when it is full and more than `spare` heartbeats wait,
    /// or when it begins before `overdue`. Answers whether there was one; there may be more.
    async fn index_heartbeats(&self, overdue: Timestamp, spare: u64) -> Result<bool>;
    /// Lets the oldest run of indexed heartbeats go when all of it is from before `before`. Answers whether there was one. Where a
    /// database keeps heartbeats by day and a day of them or more is kept, the heartbeats themselves go with their day.
    async fn prune_heartbeats(&self, before: Timestamp, now: Timestamp) -> Result<bool>;
    /// Makes room for the day of `now` and some days after it, and lets days go that were over at `before`, where a database keeps
    /// heartbeats by day. Nobody waits long for it: what is in use stays as it is until the next call.
    async fn keep_heartbeat_days(&self, now: Timestamp, before: Timestamp) -> Result<()>;
    /// Deletes up to `limit` of the oldest events: those from before `before` that all of `sinks` have taken, and those
    /// from before `whatever`. Answers how many.
    async fn prune_events(
        &self,
        sinks: &[&str],
        before: Timestamp,
        whatever: Timestamp,
        limit: u32,
    ) -> Result<u64>;
}
