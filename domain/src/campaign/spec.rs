//! What a campaign shall do: the checked spec, which [`super::draft`] makes of what an admin sends.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::abort::{Abort, AbortAction, AbortOn};
use super::health::Health;
use super::rate::Rate;
use super::window::Windows;
use crate::exclusion::Exclusion;
use crate::filter::Filter;
use crate::ids::FirmwareId;
use crate::ring::Shares;
use crate::update::{Priority, Times, WatchTerms};

/// How the fleet is divided (PRD, FR-6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// All at once, within the limits.
    Immediate,
    /// From a time on; all at once, or by given stages.
    Scheduled,
    /// Ring by ring, or by given stages.
    Staged,
    /// A small first group, then the rest.
    Canary,
    /// Everybody prepares, stage by stage: downloads, verifies, installs into the idle slot and holds there. Then, when the last
    /// stage opens, all flip.
    BlueGreen,
}

impl Strategy {
    /// The name in the PRD.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Immediate => "immediate",
            Self::Scheduled => "scheduled",
            Self::Staged => "staged",
            Self::Canary => "canary",
            Self::BlueGreen => "blue_green",
        }
    }
}

/// Whom a campaign means: named devices, groups and the filter are united; none given means every device of the
/// firmware's model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Targets {
    /// So many devices are named; which, is in [`super::Named`].
    #[serde(default)]
    pub named: u32,
    /// How many devices that are meant were left out when this was written, by reason; reasons without devices are not there.
    #[serde(default)]
    pub left_out: BTreeMap<Exclusion, u64>,
    /// Named groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What devices are like.
    #[serde(default)]
    pub filter: Option<Filter>,
}

impl Targets {
    /// Nobody is named: every device of the firmware's model is meant.
    pub fn is_everybody(&self) -> bool {
        self.named == 0 && self.groups.is_empty() && self.filter.is_none()
    }
}

/// Most devices named one by one in a campaign (PRD, NFR-3: 100,000+ targets a campaign).
pub const MAX_TARGET_DEVICES: usize = 200_000;

/// What must hold of a stage before the next one opens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Share of `completed` among the devices with a result, 0–100.
    #[schema(minimum = 0, maximum = 100)]
    pub min_success_percent: f64,
    /// Results needed; left out: `min_success_percent` of the stage's devices, so that a ring opens only after that
    /// share of the whole ring before it has succeeded.
    #[serde(default)]
    pub min_samples: Option<u64>,
    /// How long the stage must have shown all that, in seconds; the time in which the campaign is paused does not count.
    #[serde(default)]
    #[schema(maximum = 2_592_000)]
    pub soak_seconds: u64,
    /// When all else holds, a person opens the next stage. A stage without devices, which shows nobody anything, does
    /// not wait for one.
    #[serde(default)]
    pub manual: bool,
}

/// A stage: the devices that it takes and no earlier stage has taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// For people: a ring's name, `10%`, `50 devices`.
    pub name: String,
    /// Cumulative share in hundredths of a percent: of this stage, or of those before it when it takes no share.
    pub end_bucket: u16,
    /// Whom it takes.
    #[serde(default)]
    pub takes: Takes,
    /// What opens the stage after this one.
    pub gate: Gate,
}

/// Whom a stage takes, of the devices that the campaign means.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Takes {
    /// Those whose turned bucket lies below the stage's `end_bucket`.
    #[default]
    Share,
    /// That many, the first on the wheel as the campaign has turned it; cumulative.
    First(u64),
    /// Those that it names; which, is in [`super::Named`].
    Named,
    /// Those that are like this.
    Filter(Filter),
}

/// What a device must have, by its last heartbeat, to be offered the update; it waits otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Requires {
    /// Battery, 0–100.
    #[serde(default)]
    #[schema(maximum = 100)]
    pub min_battery_percent: Option<u8>,
    /// Free storage, bytes.
    #[serde(default)]
    #[schema(minimum = 0)]
    pub min_free_storage_bytes: Option<i64>,
}

/// When a campaign that was started may offer. Any strategy may have one; `scheduled` must say `start_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Schedule)]
pub struct Schedule {
    /// Nothing is offered before. Left out: from the start on.
    #[serde(default)]
    pub start_at: Option<Timestamp>,
    /// Nothing is offered from then on. Left out: until every device has ended.
    #[serde(default)]
    pub end_at: Option<Timestamp>,
    /// What becomes then of devices that have not ended.
    #[serde(default)]
    pub on_end: OnEnd,
}

/// What becomes of devices that have not ended when a campaign's time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnEnd {
    /// Who has an offer may end with it, the others' updates are cancelled; the campaign has completed then.
    #[default]
    Stop,
    /// As an admin's cancel: who has an offer is asked to stop as well.
    Cancel,
}

/// Where the present lies in a [`Schedule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Too early.
    Before(Timestamp),
    /// Offers may go out.
    Open,
    /// Too late, with what to do about it.
    Over(OnEnd),
}

impl CampaignSpec {
    /// Devices are named, among the targets or by a stage.
    pub fn names_devices(&self) -> bool {
        self.targets.named > 0 || self.stages.iter().any(|stage| stage.takes == Takes::Named)
    }

    /// How the devices of a stage are watched once they have completed.
    pub fn watch(&self, stage: u16, lease: SignedDuration) -> WatchTerms {
        let stage = self.stages.get(usize::from(stage));
        let soak = stage.map_or(0, |stage| stage.gate.soak_seconds);
        self.health.terms(soak, lease)
    }

    /// Devices that are offered it go no further than `staged` while no stage beyond this one is open.
    pub fn holds_at(&self, open_stage: u16) -> bool {
        self.strategy == Strategy::BlueGreen && open_stage < self.last_stage()
    }

    /// Devices that hold it flip to it once this stage is open.
    pub fn flips_at(&self, open_stage: u16) -> bool {
        self.strategy == Strategy::BlueGreen && !self.holds_at(open_stage)
    }

    /// All that stops it; first the threshold.
    pub fn criteria(&self) -> impl Iterator<Item = Abort> {
        let threshold = Abort {
            on: AbortOn::Any,
            percent: self.failure_threshold_percent,
            min_samples: self.failure_min_samples,
            action: if self.auto_rollback {
                AbortAction::Rollback
            } else {
                AbortAction::Pause
            },
        };
        std::iter::once(threshold).chain(self.abort.iter().copied())
    }

    /// The number of the last stage. With `blue_green` that is the one that takes nobody, and whose opening activates
    /// what the devices of the others hold.
    pub fn last_stage(&self) -> u16 {
        u16::try_from(self.stages.len().saturating_sub(1)).unwrap_or(u16::MAX)
    }
}

impl Schedule {
    /// Where `now` lies. The start belongs to the open time, the end does not.
    ///
    /// ```
    /// # use device_ota_domain::campaign::{OnEnd, Period, Schedule};
    /// let schedule: Schedule = serde_json::from_str(r#"{"start_at": "2026-01-01T08:00:00Z", "end_at": "2026-01-01T09:00:00Z"}"#).unwrap();
    /// let at = |time: &str| schedule.period(format!("2026-01-01T{time}Z").parse().unwrap());
    /// assert_eq!(at("07:59:59"), Period::Before("2026-01-01T08:00:00Z".parse().unwrap()));
    /// assert_eq!(at("08:00:00"), Period::Open);
    /// assert_eq!(at("09:00:00"), Period::Over(OnEnd::Stop));
    /// ```
    pub fn period(&self, now: Timestamp) -> Period {
        if self.end_at.is_some_and(|end| end <= now) {
            return Period::Over(self.on_end);
        }
        match self.start_at {
            Some(start) if start > now => Period::Before(start),
            _ => Period::Open,
        }
    }
}

/// A checked spec; immutable once the campaign has started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CampaignSpec {
    /// Name.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// What is rolled out.
    pub firmware_id: FirmwareId,
    /// To whom.
    pub targets: Targets,
    /// How.
    pub strategy: Strategy,
    /// Before whom.
    pub priority: Priority,
    /// Share of the targets that takes part at all, in hundredths of a percent (of the wheel of buckets).
    pub rollout_buckets: u16,
    /// Slots: devices that may have an update in flight at the same time.
    pub max_concurrent_updates: u32,
    /// Devices that may have been told something and not have answered, at the same time.
    pub batch_size: u32,
    /// Offers in a minute; `None`: as many as the slots let.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// Bytes of the image in a second that its offers may bring about; `None`: as many as they do.
    #[serde(default)]
    pub bandwidth_bytes_per_second: Option<u64>,
    /// Longest that one attempt may take.
    pub timeout_seconds: u64,
    /// Longest that parts of an attempt, and an update as a whole from the opening of its stage on, may take.
    #[serde(default)]
    pub times: Times,
    /// Roll back when the threshold is passed; otherwise pause.
    pub auto_rollback: bool,
    /// The share of failed among the results that must not be exceeded.
    pub failure_threshold_percent: f64,
    /// Results before the threshold is looked at.
    pub failure_min_samples: u64,
    /// What stops it beside the threshold.
    #[serde(default)]
    pub abort: Vec<Abort>,
    /// What is looked at after the update.
    #[serde(default)]
    pub health: Health,
    /// Retries a device, after failures that may pass.
    pub max_retries: u32,
    /// At least one; the last ends at 10,000.
    pub stages: Vec<Stage>,
    /// What a device must have.
    pub requires: Requires,
    /// Turns the wheel of buckets for this campaign.
    pub bucket_offset: u16,
    /// It takes in devices that it comes to mean after its start, and goes on until it is cancelled or its schedule ends.
    #[serde(default)]
    pub continuous: bool,
    /// When it may offer.
    #[serde(default)]
    pub schedule: Schedule,
    /// The hours in which it may offer and activate.
    #[serde(default)]
    pub windows: Windows,
    /// What of the wheel each ring takes, for pinned devices and stages by name.
    #[serde(default)]
    pub rings: Shares,
    /// It deploys its image ring by ring, as far as it is promoted (rings-and-heartbeat document, *deploy*).
    #[serde(default)]
    pub ring_deployment: bool,
}
