//! How devices do, by their heartbeats: one figure a device and metric, trimmed means over devices, and the criteria that compare them with
//! those of the time before the update, or of devices that have not had it yet (ADR 16).

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::abort::AbortAction;
use super::error::SpecError;

/// Most criteria of a campaign.
pub const MAX_CRITERIA: usize = 16;
/// Devices that are looked at on each side: their mean stays within a tenth of the spread of all.
pub const SAMPLE: u32 = 100;
/// Shortest time that a rate is told of, in seconds: within less, one event is a multiple of any rate.
const SHORTEST_SPAN: SignedDuration = SignedDuration::from_secs(60);
/// Figures beyond are taken for this: sums of them stay exact enough, and people can read them.
const MAX_FIGURE: f64 = 1e12;
/// What custom metrics begin with.
const CUSTOM: &str = "metrics.";
/// Longest name of a custom metric, in bytes.
const MAX_NAME: usize = 128;

/// What is measured. On the wire `errors`, `reboots`, `battery_drain`, or `metrics.` and a name out of the heartbeat's `metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Metric {
    /// Errors an hour.
    Errors,
    /// Restarts an hour.
    Reboots,
    /// Battery that is lost, in percent points an hour, while it is not charged.
    BatteryDrain,
    /// The mean of a number of the device's own.
    Custom(String),
}

/// A text that is no metric.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "health.criteria.metric must be errors, reboots, battery_drain, or metrics. and the name of a heartbeat's own number"
)]
pub struct NotAMetric;

impl TryFrom<String> for Metric {
    type Error = NotAMetric;

    fn try_from(text: String) -> Result<Self, NotAMetric> {
        match text.as_str() {
            "errors" => Ok(Self::Errors),
            "reboots" => Ok(Self::Reboots),
            "battery_drain" => Ok(Self::BatteryDrain),
            other => match other.strip_prefix(CUSTOM) {
                Some(name) if (1..=MAX_NAME).contains(&name.len()) => {
                    Ok(Self::Custom(name.to_owned()))
                }
                _ => Err(NotAMetric),
            },
        }
    }
}

impl From<Metric> for String {
    fn from(metric: Metric) -> Self {
        metric.to_string()
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Errors => f.write_str("errors"),
            Self::Reboots => f.write_str("reboots"),
            Self::BatteryDrain => f.write_str("battery_drain"),
            Self::Custom(name) => write!(f, "{CUSTOM}{name}"),
        }
    }
}

/// With what the devices are compared that have completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// With themselves before their update.
    Before,
    /// With devices of the campaign that wait for it.
    Control,
}

/// How much more is too much.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Increase {
    /// In the metric's own unit.
    Absolute(f64),
    /// In percent of what it is compared with; of nothing, any increase is more.
    Percent(f64),
}

/// An increase that stops the campaign: strictly above `max_increase`, from `min_samples` devices on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Criterion {
    /// What is measured: `errors` or `reboots` an hour, `battery_drain` in percent points an hour, or `metrics.` and the name of one of
    /// the heartbeat's own numbers.
    #[schema(value_type = String)]
    pub metric: Metric,
    /// With what.
    pub compare: Compare,
    /// By how much it may rise.
    pub max_increase: Increase,
    /// Devices that must have told of it, on each side. Default 10.
    #[serde(default = "ten")]
    #[schema(minimum = 1, maximum = 100)]
    pub min_samples: u32,
    /// What happens then.
    pub action: AbortAction,
}

fn ten() -> u32 {
    10
}

/// Refuses criteria out of bounds.
pub(super) fn check(criteria: &[Criterion]) -> Result<(), SpecError> {
    let range = |field, rule| Err(SpecError::Range { field, rule });
    if criteria.len() > MAX_CRITERIA {
        return range("health.criteria", "at most 16");
    }
    for criterion in criteria {
        let (Increase::Absolute(most) | Increase::Percent(most)) = criterion.max_increase;
        if !(most.is_finite() && most >= 0.0) {
            return range("health.criteria.max_increase", "0 or more");
        }
        if !(1..=SAMPLE).contains(&criterion.min_samples) {
            return range("health.criteria.min_samples", "1 to 100");
        }
    }
    Ok(())
}

/// What one heartbeat tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Beat {
    /// When it came.
    pub at: Timestamp,
    /// Errors since the one before.
    pub errors: u64,
    /// Seconds since the device started.
    pub uptime_seconds: Option<u64>,
    /// Which start that was.
    pub boot_id: Option<String>,
    /// Battery in percent, while it is not charged.
    pub battery_percent: Option<f64>,
    /// Its own numbers.
    pub metrics: std::collections::BTreeMap<String, f64>,
}

impl Metric {
    /// The figure of one device over these heartbeats, oldest first; `None`: they do not tell.
    pub fn of(&self, beats: &[Beat]) -> Option<f64> {
        let figure = self.measured(beats)?;
        (!figure.is_nan()).then(|| figure.clamp(-MAX_FIGURE, MAX_FIGURE))
    }

    fn measured(&self, beats: &[Beat]) -> Option<f64> {
        let pairs = || beats.iter().zip(beats.iter().skip(1));
        match self {
            Self::Errors => {
                let errors = beats.iter().skip(1).map(|beat| beat.errors);
                rate(count(errors.fold(0, u64::saturating_add)), span(beats))
            }
            Self::Reboots => {
                let told = pairs().filter_map(|(before, after)| restarted(before, after));
                let told: Vec<bool> = told.collect();
                let restarts = told.iter().filter(|restarted| **restarted).count();
                (!told.is_empty())
                    .then(|| rate(count(restarts as u64), span(beats)))
                    .flatten()
            }
            Self::BatteryDrain => {
                let (mut lost, mut over) = (0.0, SignedDuration::ZERO);
                for (before, after) in pairs() {
                    if let (Some(from), Some(to)) = (before.battery_percent, after.battery_percent)
                    {
                        lost += from - to;
                        over += after.at.duration_since(before.at);
                    }
                }
                rate(lost, over)
            }
            Self::Custom(name) => {
                let values = beats.iter().filter_map(|beat| beat.metrics.get(name));
                mean(values.copied())
            }
        }
    }
}

/// Whether the device restarted between two heartbeats, if they tell.
fn restarted(before: &Beat, after: &Beat) -> Option<bool> {
    let boots = before.boot_id.as_ref().zip(after.boot_id.as_ref());
    let uptimes = before.uptime_seconds.zip(after.uptime_seconds);
    boots
        .map(|(before, after)| before != after)
        .or(uptimes.map(|(before, after)| after < before))
}

fn span(beats: &[Beat]) -> SignedDuration {
    match (beats.first(), beats.last()) {
        (Some(first), Some(last)) => last.at.duration_since(first.at),
        _ => SignedDuration::ZERO,
    }
}

/// So much an hour.
fn rate(amount: f64, over: SignedDuration) -> Option<f64> {
    (over >= SHORTEST_SPAN).then(|| amount * 3_600.0 / over.as_secs_f64())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of events are far below 2^52"
)]
fn count(events: u64) -> f64 {
    events as f64
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, many) = values.fold((0.0, 0_u64), |(sum, many), value| (sum + value, many + 1));
    (many > 0).then(|| sum / count(many))
}

/// What a number of devices have in common: the mean without the tenth that is highest and the tenth that is lowest, rounded up, of three
/// or more. Heartbeats say whatever their devices like, and one that lies shall neither stop a campaign nor hide that others are unwell.
fn common(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_unstable_by(f64::total_cmp);
    let cut = match figures.len() {
        0..3 => 0,
        many => many.div_ceil(10),
    };
    let kept = figures.len() - 2 * cut;
    mean(figures.into_iter().skip(cut).take(kept))
}

/// The heartbeats of one device on both sides of its update, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sides {
    /// Before it was offered the update.
    pub before: Vec<Beat>,
    /// Since it completed.
    pub after: Vec<Beat>,
}

/// What a criterion has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The criterion, by its place.
    pub criterion: usize,
    /// What it is compared with: the mean over devices, without the highest and the lowest tenth.
    pub base: Option<f64>,
    /// The same over the devices that have completed.
    pub now: Option<f64>,
    /// Devices that have told of it, on the side of fewer.
    pub samples: u32,
    /// When.
    pub at: Timestamp,
}

/// Reads every criterion from these devices: those that have completed, and those that wait, each with its latest heartbeats.
pub fn read(
    criteria: &[Criterion],
    completed: &[Sides],
    control: &[Vec<Beat>],
    at: Timestamp,
) -> Vec<Reading> {
    let reading = |(index, criterion): (usize, &Criterion)| {
        let metric = &criterion.metric;
        let (base, now): (Vec<f64>, Vec<f64>) = match criterion.compare {
            Compare::Before => {
                let both = completed.iter().filter_map(|sides| {
                    Some((metric.of(&sides.before)?, metric.of(&sides.after)?))
                });
                both.unzip()
            }
            Compare::Control => (
                control
                    .iter()
                    .filter_map(|beats| metric.of(beats))
                    .collect(),
                completed
                    .iter()
                    .filter_map(|sides| metric.of(&sides.after))
                    .collect(),
            ),
        };
        Reading {
            criterion: index,
            samples: u32::try_from(base.len().min(now.len())).unwrap_or(u32::MAX),
            base: common(base),
            now: common(now),
            at,
        }
    };
    criteria.iter().enumerate().map(reading).collect()
}

impl Criterion {
    /// Why this reading breaches it, if it does.
    pub fn breach(&self, reading: &Reading) -> Option<String> {
        let (base, now) = (reading.base?, reading.now?);
        let limit = match self.max_increase {
            Increase::Absolute(most) => most,
            Increase::Percent(most) => base.abs() * most / 100.0,
        };
        let breached = reading.samples >= self.min_samples && now - base > limit;
        let (of, than) = match self.compare {
            Compare::Before => ("the same devices", "before their update"),
            Compare::Control => ("others", "that wait for it"),
        };
        let most = match self.max_increase {
            Increase::Absolute(most) => format!("{most}"),
            Increase::Percent(most) => format!("{most} %"),
        };
        breached.then(|| {
            format!(
                "{} of devices after their update is {now:.2}, of {of} {than} {base:.2} ({} devices): more than {most} above",
                self.metric, reading.samples
            )
        })
    }
}
