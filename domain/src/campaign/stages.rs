//! The stages of a campaign as an admin sends them, and the one way from there to checked ones.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::draft::{SpecError, buckets};
use super::spec::{Gate, Stage};
use crate::ring::{BUCKETS, Ring, Shares};

/// Most stages of a campaign.
pub const MAX_STAGES: usize = 64;
/// Longest soak of a gate, in seconds: 30 days. A gate that opens later than that is a forgotten one.
pub const MAX_SOAK_SECONDS: u64 = 30 * 24 * 3_600;

/// A stage as an admin sends it: `{"ring": …}` or `{"percent": …}`, with an optional gate.
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
            gate,
        })
        .collect()
}

/// The stages of these drafts, and one for whoever is left.
pub(super) fn given(
    drafts: &[StageDraft],
    rings: Shares,
    default_gate: Gate,
) -> Result<Vec<Stage>, SpecError> {
    let mut stages: Vec<Stage> = Vec::with_capacity(drafts.len() + 1);
    for draft in drafts {
        let (name, end_bucket) = match (draft.ring, draft.percent) {
            (Some(ring), None) => (ring.name().to_owned(), rings.end_bucket(ring)),
            (None, Some(pc)) if pc > 0.0 && pc <= 100.0 => (format!("{pc}%"), buckets(pc)),
            _ => {
                return Err(SpecError::Stages(
                    "each has either a ring or a percent above 0 and at most 100",
                ));
            }
        };
        let gate = match draft.gate {
            Some(gate) => gate.checked(default_gate)?,
            None => default_gate,
        };
        if stages
            .last()
            .is_some_and(|last| last.end_bucket >= end_bucket)
        {
            return Err(SpecError::Stages("shares are cumulative and must rise"));
        }
        stages.push(Stage {
            name,
            end_bucket,
            gate,
        });
    }
    if stages.last().is_some_and(|last| last.end_bucket < BUCKETS) {
        stages.push(Stage {
            name: "100%".into(),
            end_bucket: BUCKETS,
            gate: default_gate,
        });
    }
    Ok(stages)
}
