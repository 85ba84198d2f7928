//! The stages of a campaign as an admin sends them, and the one way from there to checked ones.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::SpecError;
use super::health::MAX_WATCH_SECONDS;
use super::named::Named;
use super::spec::{Gate, MAX_TARGET_DEVICES, Stage, Takes};
use crate::filter::Filter;
use crate::ids::DeviceId;
use crate::ring::{BUCKETS, Ring, Shares};

/// Most stages of a campaign.
pub const MAX_STAGES: usize = 64;
/// Most devices that a stage names by their number: more than any fleet here.
pub const MAX_STAGE_COUNT: u64 = 10_000_000;
/// Longest soak of a gate, in seconds: 30 days, as its devices are watched that long. A gate that opens later is a forgotten one.
pub const MAX_SOAK_SECONDS: u64 = MAX_WATCH_SECONDS;

/// The name of the stage whose opening activates, with `blue_green`.
const ACTIVATE: &str = "activate";

/// A stage as an admin sends it: one of `ring`, `percent`, `count`, `devices` and `filter`, with an optional gate. It takes, of the
/// devices that the campaign means, those that no stage before it takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StageDraft {
    /// A ring by name.
    #[serde(default)]
    pub ring: Option<Ring>,
    /// A cumulative share, 0 < percent ≤ 100.
    #[serde(default)]
    #[schema(exclusive_minimum = 0, maximum = 100)]
    pub percent: Option<f64>,
    /// That many devices, those before it in the same order included: numbers are cumulative as shares are.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 10_000_000)]
    pub count: Option<u64>,
    /// These devices.
    #[serde(default)]
    #[schema(max_items = 200_000)]
    pub devices: Option<Vec<DeviceId>>,
    /// Devices that are like this; as `target_filters`.
    #[serde(default)]
    #[schema(value_type = Option<Filter>)]
    pub filter: Option<serde_json::Value>,
    /// The gate behind this stage.
    #[serde(default)]
    pub gate: Option<GateDraft>,
}

/// A gate as an admin sends it. What is left out is as with a stage that names no gate.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewGate)]
pub struct GateDraft {
    /// Share of `completed` among the devices with a result, 0–100. Default: `100 − failure_threshold_percent`.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 100)]
    pub min_success_percent: Option<f64>,
    /// Results needed. Default: `min_success_percent` of the stage's devices.
    #[serde(default)]
    pub min_samples: Option<u64>,
    /// How long the stage must have been open, in seconds. Default 0.
    #[serde(default)]
    #[schema(maximum = 2_592_000)]
    pub soak_seconds: u64,
    /// Default false. True: when all else holds, the next stage still waits for a person, who opens it by `advance`.
    #[serde(default)]
    pub manual: bool,
}

impl GateDraft {
    /// The gate that is meant.
    fn checked(self, default: Gate) -> Result<Gate, SpecError> {
        let min_success_percent = self
            .min_success_percent
            .unwrap_or(default.min_success_percent);
        if !(0.0..=100.0).contains(&min_success_percent) {
            return Err(SpecError::Stages("min_success_percent must be 0 to 100"));
        }
        if self.soak_seconds > MAX_SOAK_SECONDS {
            return Err(SpecError::Stages("soak_seconds must be at most 2592000"));
        }
        Ok(Gate {
            min_success_percent,
            min_samples: self.min_samples,
            soak_seconds: self.soak_seconds,
            manual: self.manual,
        })
    }
}

/// A stage for each ring.
pub(super) fn by_rings(rings: Shares, gate: Gate) -> Vec<Stage> {
    Ring::ALL
        .into_iter()
        .map(|ring| Stage {
            name: ring.name().into(),
            end_bucket: rings.end_bucket(ring),
            takes: Takes::Share,
            gate,
        })
        .collect()
}

/// The drafts that these stages come of; the way back from [`given`], whose last stage goes without saying when the drafts are
/// full.
pub(super) fn drafts_of(stages: &[Stage], named: &Named) -> Vec<StageDraft> {
    let draft = |(number, stage): (u16, &Stage)| {
        let is_share = stage.takes == Takes::Share;
        let ring = is_share.then(|| Ring::from_name(&stage.name)).flatten();
        let (count, devices, filter) = match &stage.takes {
            Takes::Share => (None, None, None),
            Takes::First(count) => (Some(*count), None, None),
            Takes::Named => (None, Some(named.of_stage(number).to_vec()), None),
            Takes::Filter(filter) => (None, None, Some(filter.to_json())),
        };
        StageDraft {
            ring,
            percent: (is_share && ring.is_none()).then(|| share(stage)),
            count,
            devices,
            filter,
            gate: Some(drafted(stage.gate)),
        }
    };
    (0..).zip(stages).take(MAX_STAGES).map(draft).collect()
}

fn drafted(gate: Gate) -> GateDraft {
    GateDraft {
        min_success_percent: Some(gate.min_success_percent),
        min_samples: gate.min_samples,
        soak_seconds: gate.soak_seconds,
        manual: gate.manual,
    }
}

/// The share of a stage in percent, as it was sent: its name says it to the last digit.
fn share(stage: &Stage) -> f64 {
    let named = stage.name.strip_suffix('%');
    let named = named.and_then(|percent| percent.parse().ok());
    named.unwrap_or(f64::from(stage.end_bucket) / 100.0)
}

/// The stages of these drafts, and one for whoever is left.
pub(super) fn given(
    drafts: &[StageDraft],
    rings: Shares,
    default_gate: Gate,
) -> Result<Vec<Stage>, SpecError> {
    let mut stages: Vec<Stage> = Vec::with_capacity(drafts.len() + 1);
    let (mut share, mut count) = (0, 0);
    for draft in drafts {
        let (name, takes) = draft.takes()?;
        match (&takes, draft.ring, draft.percent) {
            (Takes::Share, ring, percent) => {
                let end = ring.map(|ring| rings.end_bucket(ring));
                let end = end.or(percent.map(buckets)).unwrap_or(0);
                if end <= share {
                    return Err(SpecError::Stages("shares are cumulative and must rise"));
                }
                share = end;
            }
            (Takes::First(first), ..) => {
                if *first <= count {
                    return Err(SpecError::Stages("counts are cumulative and must rise"));
                }
                count = *first;
            }
            (Takes::Named | Takes::Filter(_), ..) => {}
        }
        let gate = match draft.gate {
            Some(gate) => gate.checked(default_gate)?,
            None => default_gate,
        };
        stages.push(Stage {
            name: unlike(&stages, name),
            end_bucket: share,
            takes,
            gate,
        });
    }
    if share < BUCKETS {
        stages.push(Stage {
            name: unlike(&stages, "100%".into()),
            end_bucket: BUCKETS,
            takes: Takes::Share,
            gate: default_gate,
        });
    }
    Ok(stages)
}

impl StageDraft {
    /// Whom it takes, and what that is called.
    fn takes(&self) -> Result<(String, Takes), SpecError> {
        let one = SpecError::Stages(
            "each has one of ring, percent (above 0 and at most 100), count (1 to 10000000), devices (1 to 200000 ids) and filter",
        );
        let given = [
            self.ring.is_some(),
            self.percent.is_some(),
            self.count.is_some(),
            self.devices.is_some(),
            self.filter.is_some(),
        ];
        if given.into_iter().filter(|given| *given).count() != 1 {
            return Err(one);
        }
        if let Some(ring) = self.ring {
            return Ok((ring.name().to_owned(), Takes::Share));
        }
        if let Some(percent) = self.percent {
            let fits = percent > 0.0 && percent <= 100.0;
            return if fits {
                Ok((format!("{percent}%"), Takes::Share))
            } else {
                Err(one)
            };
        }
        if let Some(count) = self.count {
            let fits = (1..=MAX_STAGE_COUNT).contains(&count);
            return if fits {
                Ok((format!("{count} devices"), Takes::First(count)))
            } else {
                Err(one)
            };
        }
        if let Some(json) = &self.filter {
            let filter = Filter::parse(json).map_err(|error| error.within("stages.filter"))?;
            return Ok(("filter".to_owned(), Takes::Filter(filter)));
        }
        let devices = self.devices.as_ref().map_or(0, Vec::len);
        if !(1..=MAX_TARGET_DEVICES).contains(&devices) {
            return Err(one);
        }
        Ok(("named devices".to_owned(), Takes::Named))
    }
}

/// The stages of `blue_green`: those that prepare, and one that takes nobody and whose opening activates what all of them
/// hold.
pub(super) fn with_activation(mut stages: Vec<Stage>, gate: Gate) -> Vec<Stage> {
    stages.push(Stage {
        name: unlike(&stages, ACTIVATE.into()),
        end_bucket: BUCKETS,
        takes: Takes::Share,
        gate,
    });
    stages
}

/// The name, numbered when another stage has it.
fn unlike(stages: &[Stage], name: String) -> String {
    let taken = |name: &str| stages.iter().any(|stage| stage.name == name);
    if !taken(&name) {
        return name;
    }
    let mut numbered = (2..=MAX_STAGES + 1).map(|number| format!("{name} {number}"));
    numbered.find(|name| !taken(name)).unwrap_or(name)
}

/// The gate of a stage that names none.
pub(super) fn default_gate(threshold: f64) -> Gate {
    Gate {
        min_success_percent: 100.0 - threshold,
        min_samples: None,
        soak_seconds: 0,
        manual: false,
    }
}

/// One stage for all.
pub(super) fn everybody(gate: Gate) -> Vec<Stage> {
    vec![Stage {
        name: "all".into(),
        end_bucket: BUCKETS,
        takes: Takes::Share,
        gate,
    }]
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to lie in 0..=100"
)]
pub(super) fn buckets(percent: f64) -> u16 {
    ((percent * 100.0).round() as u16).max(1)
}
