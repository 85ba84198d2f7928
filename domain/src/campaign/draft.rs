//! A campaign as an admin sends it, and the one way from there to a checked spec.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::abort::{self, Abort};
use super::error::SpecError;
use super::health::Health;
use super::named::Named;
use super::rate::RateDraft;
use super::spec::{CampaignSpec, MAX_TARGET_DEVICES, Requires, Schedule, Strategy, Targets};
use super::stages::{
    MAX_STAGES, StageDraft, buckets, by_rings, default_gate, everybody, given, with_activation,
};
use super::timeouts::{TimeoutsDraft, seconds};
use super::window::{Window, Windows};
use crate::bandwidth::MAX_BYTES_PER_SECOND;
use crate::device::text_ok;
use crate::filter::{Filter, FilterError};
use crate::ids::{DeviceId, FirmwareId};
use crate::ring::{BUCKETS, Shares};
use crate::update::Priority;

/// Most groups named in a campaign.
pub const MAX_TARGET_GROUPS: usize = 1_000;
/// Most slots of a campaign; a bound on what one pass may claim.
pub const MAX_CONCURRENT: u32 = 1_000_000;

/// A campaign as an admin sends it (PRD, E2-US1; DESIGN.md, *HTTP*).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewCampaign, examples(json!({"name": "Security Patch Q4 2025", "firmware_id": "770987aca3a746dfa5bef4f8b0e59f22", "target_devices": ["device_001", "device_002"], "deployment_strategy": "staged", "priority": "high", "auto_rollback": true, "failure_threshold_percent": 20})))]
pub struct CampaignDraft {
    /// Name.
    #[schema(min_length = 1, max_length = 128)]
    pub name: String,
    /// Free text.
    #[serde(default)]
    #[schema(max_length = 16384)]
    pub description: Option<String>,
    /// What to roll out.
    pub firmware_id: FirmwareId,
    /// Devices by id. Default: with no other target either, every device of the image's model.
    #[serde(
        default,
        deserialize_with = "given_list",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Vec<DeviceId>, max_items = 200_000)]
    pub target_devices: Option<Vec<DeviceId>>,
    /// Devices by group.
    #[serde(
        default,
        deserialize_with = "given_list",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Vec<String>, max_items = 1000)]
    pub target_groups: Option<Vec<String>>,
    /// Devices by what they are like.
    #[serde(default)]
    #[schema(value_type = Option<Filter>)]
    pub target_filters: Option<serde_json::Value>,
    /// Default `staged`.
    #[serde(default = "default_strategy")]
    pub deployment_strategy: Strategy,
    /// Default `normal`.
    #[serde(default)]
    pub priority: Priority,
    /// Default 100.
    #[serde(default = "hundred")]
    #[schema(exclusive_minimum = 0, maximum = 100)]
    pub rollout_percentage: f64,
    /// Default 100.
    #[serde(default = "hundred_devices")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub max_concurrent_updates: u32,
    /// Offers that may be out and not taken up, at the same time: the next go out as devices take those. Default 100.
    #[serde(default = "hundred_devices")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub batch_size: u32,
    /// Offers in a minute. Default: as many as the slots let.
    #[serde(default)]
    pub rate: Option<RateDraft>,
    /// Bytes of the image in a second that its offers may bring about. Default: as many as they do.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1_000_000_000_000.0)]
    pub bandwidth_bytes_per_second: Option<u64>,
    /// Default 60; fractions are taken.
    #[serde(default = "hour")]
    #[schema(minimum = 0.016_666_666_666_666_666, maximum = 43_200)]
    pub timeout_minutes: f64,
    /// Default: each part of an attempt may take as long as all of it.
    #[serde(default)]
    pub timeouts: TimeoutsDraft,
    /// An update that is not done so long after its stage opened is given up, also that of a device which never appears; fractions are
    /// taken. Default: it waits for as long as it takes.
    #[serde(default)]
    #[schema(maximum = 8760)]
    pub give_up_after_hours: Option<f64>,
    /// Default true.
    #[serde(default = "yes")]
    pub auto_rollback: bool,
    /// Default: the service's `AUTO_ROLLBACK_FAILURE_THRESHOLD`.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 100)]
    pub failure_threshold_percent: Option<f64>,
    /// Default 1.
    #[serde(default = "one")]
    pub failure_min_samples: u64,
    /// Shares of failures of one kind, or of all, that stop it beside the threshold. Default: none.
    #[serde(default)]
    #[schema(max_items = 16)]
    pub abort: Vec<Abort>,
    /// What is looked at after the update. Default: for an hour, whether a device falls back or restarts again and again.
    #[serde(default)]
    pub health: Health,
    /// Default 3.
    #[serde(default = "three")]
    #[schema(maximum = 100)]
    pub max_retries: u32,
    /// Default false: it means the devices of the moment in which it starts. Otherwise it takes in those that it comes to mean, and
    /// goes on until it is cancelled or its schedule ends.
    #[serde(default)]
    pub continuous: bool,
    /// Default: from the start on, with no end. The strategy `scheduled` must say `start_at`.
    #[serde(default)]
    pub schedule: Schedule,
    /// The hours in which it may offer and activate; a rollback goes at any. Default: always.
    #[serde(default)]
    #[schema(max_items = 32)]
    pub windows: Vec<Window>,
    /// Default: the four rings with `staged` and `canary`, everybody with the others. With `blue_green` they prepare, and a
    /// last stage follows them, `activate`, which takes nobody: when it opens, everybody flips.
    #[serde(default)]
    #[schema(max_items = 64)]
    pub stages: Vec<StageDraft>,
    /// Default: nothing.
    #[serde(default)]
    pub requires: Requires,
    /// Default false: it may start without anybody's approval.
    #[serde(default)]
    pub requires_approval: bool,
}

/// A list that is left out is none; `null` is no list.
fn given_list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    json: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Vec::deserialize(json).map(Some)
}

fn default_strategy() -> Strategy {
    Strategy::Staged
}
fn hundred() -> f64 {
    100.0
}
fn hundred_devices() -> u32 {
    100
}
fn hour() -> f64 {
    60.0
}
fn yes() -> bool {
    true
}
fn one() -> u64 {
    1
}
fn three() -> u32 {
    3
}

fn count<T>(list: Option<&Vec<T>>) -> usize {
    list.map_or(0, Vec::len)
}

fn range(ok: bool, field: &'static str, rule: &'static str) -> Result<(), SpecError> {
    if ok {
        Ok(())
    } else {
        Err(SpecError::Range { field, rule })
    }
}

impl CampaignDraft {
    /// The devices that it names, which its spec goes without. Stages keep their places in the spec.
    pub fn named(&self) -> Named {
        let stages = (0..).zip(&self.stages);
        let stages = stages.filter_map(|(number, stage)| Some((number, stage.devices.clone()?)));
        Named {
            targets: self.target_devices.clone().unwrap_or_default(),
            stages: stages.collect(),
        }
    }

    /// The spec that this draft means; whom it names, is in [`Self::named`], and who of them is left out, the fleet says.
    /// `default_threshold` and `rings` are the service's settings; `entropy` turns the
    /// wheel.
    pub fn into_spec(
        self,
        default_threshold: f64,
        entropy: u16,
        rings: Shares,
    ) -> Result<CampaignSpec, SpecError> {
        self.check()?;
        let threshold = self.failure_threshold_percent.unwrap_or(default_threshold);
        range(
            (0.0..=100.0).contains(&threshold),
            "failure_threshold_percent",
            "0 to 100",
        )?;
        let windows = Windows(self.windows);
        windows.check()?;
        let gate = default_gate(threshold);
        let stages = match (self.deployment_strategy, self.stages.is_empty()) {
            (Strategy::Immediate | Strategy::Scheduled, true) => everybody(gate),
            (Strategy::Immediate, false) => {
                return Err(SpecError::Stages("immediate has none; use staged"));
            }
            (Strategy::Staged | Strategy::Canary, true) => by_rings(rings, gate),
            (Strategy::BlueGreen, true) => with_activation(everybody(gate), gate),
            (Strategy::BlueGreen, false) => {
                with_activation(given(&self.stages, rings, gate)?, gate)
            }
            (Strategy::Scheduled | Strategy::Staged | Strategy::Canary, false) => {
                given(&self.stages, rings, gate)?
            }
        };
        Ok(CampaignSpec {
            name: self.name,
            description: self.description,
            firmware_id: self.firmware_id,
            targets: Targets {
                named: u32::try_from(count(self.target_devices.as_ref())).unwrap_or(u32::MAX),
                left_out: BTreeMap::new(),
                groups: self.target_groups.unwrap_or_default(),
                filter: filter(self.target_filters.as_ref())?,
            },
            strategy: self.deployment_strategy,
            priority: self.priority,
            rollout_buckets: buckets(self.rollout_percentage),
            max_concurrent_updates: self.max_concurrent_updates,
            batch_size: self.batch_size,
            rate: self.rate.map(RateDraft::checked).transpose()?,
            bandwidth_bytes_per_second: self.bandwidth_bytes_per_second,
            timeout_seconds: seconds(self.timeout_minutes * 60.0),
            times: self
                .timeouts
                .checked(self.timeout_minutes, self.give_up_after_hours)?,
            auto_rollback: self.auto_rollback,
            failure_threshold_percent: threshold,
            failure_min_samples: self.failure_min_samples,
            abort: self.abort,
            health: self.health,
            max_retries: self.max_retries,
            stages,
            requires: self.requires,
            bucket_offset: entropy % BUCKETS,
            rings,
            ring_deployment: false,
            continuous: self.continuous,
            schedule: self.schedule,
            windows,
        })
    }

    /// A list that came out empty means nobody; that nothing else is named must not make it everybody.
    fn check_targets(&self) -> Result<(), SpecError> {
        let rule = "at least one; leave it out to mean every device of the image's model";
        let lists = [
            (
                "target_devices",
                self.target_devices.as_ref().map(Vec::is_empty),
            ),
            (
                "target_groups",
                self.target_groups.as_ref().map(Vec::is_empty),
            ),
        ];
        let names_somebody = self.target_filters.is_some()
            || lists.iter().any(|(_, is_empty)| *is_empty == Some(false));
        for (field, is_empty) in lists {
            range(names_somebody || is_empty.is_none(), field, rule)?;
        }
        Ok(())
    }

    fn check_schedule(&self) -> Result<(), SpecError> {
        let Schedule {
            start_at, end_at, ..
        } = self.schedule;
        if self.deployment_strategy == Strategy::Scheduled && start_at.is_none() {
            return Err(SpecError::Schedule(
                "the strategy scheduled needs start_at, a time as in 2026-01-31T22:00:00Z",
            ));
        }
        match (start_at, end_at) {
            (Some(start), Some(end)) if end <= start => {
                Err(SpecError::Schedule("end_at must be after start_at"))
            }
            _ => Ok(()),
        }
    }

    fn check(&self) -> Result<(), SpecError> {
        self.check_targets()?;
        self.check_schedule()?;
        abort::check(&self.abort)?;
        self.health.check()?;
        text_ok("name", &self.name)?;
        range(
            self.description
                .as_ref()
                .is_none_or(|d| d.len() <= crate::firmware::MAX_NOTES_BYTES),
            "description",
            "at most 16384 bytes",
        )?;
        range(
            count(self.target_devices.as_ref()) <= MAX_TARGET_DEVICES,
            "target_devices",
            "at most 200000 ids",
        )?;
        range(
            count(self.target_groups.as_ref()) <= MAX_TARGET_GROUPS,
            "target_groups",
            "at most 1000 names",
        )?;
        self.target_groups
            .iter()
            .flatten()
            .try_for_each(|g| text_ok("target_groups", g))?;
        let pc = self.rollout_percentage;
        range(
            pc > 0.0 && pc <= 100.0,
            "rollout_percentage",
            "above 0 and at most 100",
        )?;
        let slots = 1..=MAX_CONCURRENT;
        range(
            slots.contains(&self.max_concurrent_updates),
            "max_concurrent_updates",
            "1 to 1000000",
        )?;
        range(
            slots.contains(&self.batch_size),
            "batch_size",
            "1 to 1000000",
        )?;
        let bandwidth = 1..=MAX_BYTES_PER_SECOND;
        range(
            self.bandwidth_bytes_per_second
                .is_none_or(|bytes| bandwidth.contains(&bytes)),
            "bandwidth_bytes_per_second",
            "1 to 1000000000000",
        )?;
        range(self.max_retries <= 100, "max_retries", "at most 100")?;
        range(self.stages.len() <= MAX_STAGES, "stages", "at most 64")?;
        range(
            self.requires.min_battery_percent.is_none_or(|p| p <= 100),
            "requires.min_battery_percent",
            "0 to 100",
        )?;
        range(
            self.requires.min_free_storage_bytes.is_none_or(|b| b >= 0),
            "requires.min_free_storage_bytes",
            "0 or more",
        )
    }
}

fn filter(json: Option<&serde_json::Value>) -> Result<Option<Filter>, FilterError> {
    let filter = json.map(Filter::parse).transpose();
    filter.map_err(|error| error.within("target_filters"))
}
