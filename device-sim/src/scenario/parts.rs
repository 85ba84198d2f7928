//! The parts of a story's file.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::faults::Share;
use crate::habits::Habits;
use crate::time::Time;

/// How long faults last where a story does not say: a story is short.
const FAULTS_LAST: Duration = Duration::from_secs(2);

/// `[fleet]`: who takes part, and how they behave when nothing is wrong. Quicker than life, so that a story is short.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FleetPart {
    pub(super) devices: usize,
    /// What everything random follows from.
    pub(super) seed: u64,
    /// Share that takes images in MQTT chunks instead of over HTTP.
    pub(super) chunks: Share,
    pub(super) image_bytes: usize,
    /// Most bytes a second of one download over HTTP.
    speed: Option<u64>,
    heartbeat: Time,
    check_interval: Time,
    reboot_time: Time,
    install_time: Time,
}

impl Default for FleetPart {
    fn default() -> Self {
        Self {
            devices: 12,
            seed: 1,
            chunks: Share::Percent(25.0),
            image_bytes: 200_000,
            speed: None,
            heartbeat: Time(Duration::from_secs(1)),
            check_interval: Time(Duration::from_secs(5)),
            reboot_time: Time(Duration::from_millis(100)),
            install_time: Time(Duration::from_millis(50)),
        }
    }
}

impl FleetPart {
    pub(super) fn set(&self, habits: &mut Habits) {
        habits.speed = self.speed;
        habits.heartbeat = self.heartbeat.0;
        habits.check_interval = self.check_interval.0;
        habits.reboot_time = self.reboot_time.0;
        habits.install_time = self.install_time.0;
        habits.relapse_after = FAULTS_LAST;
        habits.recover = FAULTS_LAST;
        habits.offline_for = FAULTS_LAST;
    }
}

/// `[schedule]`: when the campaign may offer, counted from its start.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SchedulePart {
    starts_in: Option<Time>,
    ends_in: Option<Time>,
    on_end: Option<String>,
}

impl SchedulePart {
    /// As the API has it.
    pub(super) fn counted_from(&self, now: Timestamp) -> Value {
        let mut schedule = Map::new();
        for (name, time) in [("start_at", self.starts_in), ("end_at", self.ends_in)] {
            if let Some(at) = time.and_then(|time| now.checked_add(time.0).ok()) {
                schedule.insert(name.to_owned(), json!(at.to_string()));
            }
        }
        if let Some(on_end) = &self.on_end {
            schedule.insert("on_end".to_owned(), json!(on_end));
        }
        Value::Object(schedule)
    }
}

/// `[[steps]]`: what the operator does once the campaign looks like this.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    /// What the service tells of the campaign then; left out: at once.
    #[serde(default)]
    pub(super) when: Map<String, Value>,
    /// And the devices run these versions; left out: whichever.
    #[serde(default)]
    pub(super) versions: BTreeMap<String, usize>,
    #[serde(rename = "do")]
    pub(super) act: Act,
    /// How long the network is cut.
    #[serde(rename = "for")]
    pub(super) lasts: Option<Time>,
}

/// What an operator does, and what befalls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Act {
    /// Nothing: it must be seen.
    See,
    Advance,
    Pause,
    Resume,
    Cancel,
    RollBack,
    /// No device reaches the service over MQTT for a while.
    CutNetwork,
}

impl Act {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::See => "see",
            Self::Advance => "advance",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
            Self::RollBack => "roll_back",
            Self::CutNetwork => "cut_network",
        }
    }
}

/// `[expect]`: how it ends.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    /// From the start of the campaign on.
    #[serde(default = "half_a_minute")]
    pub(super) within: Time,
    /// What the service tells of the campaign.
    pub(super) campaign: Map<String, Value>,
    /// Devices by the version that they run; left out: not looked at.
    #[serde(default)]
    pub(super) versions: BTreeMap<String, usize>,
    /// Sums over the fleet, as a summary names them; they show that a fault took effect.
    #[serde(default)]
    pub(super) totals: Map<String, Value>,
}

fn half_a_minute() -> Time {
    Time(Duration::from_secs(30))
}
