//! The gate between two stages.

use jiff::{SignedDuration, Timestamp};

use crate::campaign::{Campaign, Counts, Running};
use crate::why::Why;

/// Whether the stage after the open one may open.
pub(super) fn gate(
    now: Timestamp,
    campaign: &Campaign,
    running: &Running,
    counts: &Counts,
) -> Result<(), Why> {
    let index = usize::from(running.open_stage);
    let (Some(stage), Some(tally)) = (campaign.spec.stages.get(index), counts.stages.get(index))
    else {
        return Ok(()); // a stage that has no devices and no tally holds nobody up
    };
    // A device that holds what it was offered has done all that its stage asks for.
    let tally = tally.so_far();
    let devices = tally.settled().saturating_add(tally.open());
    if devices == 0 {
        return Ok(());
    }
    let gate = &stage.gate;
    let share = share_of(devices, gate.min_success_percent);
    let need = gate.min_samples.unwrap_or(share).clamp(1, devices);
    if tally.settled() < need {
        return Err(Why::GateSamples {
            have: tally.settled(),
            need,
        });
    }
    let accepted = running.accepted.stage == Some(running.open_stage);
    if !accepted && tally.completed < share_of(tally.settled(), gate.min_success_percent) {
        return Err(Why::GateSuccess);
    }
    let soak = SignedDuration::from_secs(i64::try_from(gate.soak_seconds).unwrap_or(i64::MAX));
    let ripe = running
        .stage_opened_at
        .checked_add(soak)
        .is_ok_and(|at| at <= now);
    if !ripe {
        return Err(Why::GateSoak);
    }
    let next = campaign.spec.stages.get(index + 1);
    match next.filter(|_| gate.manual) {
        Some(next) => Err(Why::GateManual {
            stage: next.name.clone(),
        }),
        None => Ok(()),
    }
}

/// `percent` of `devices`, rounded up.
fn share_of(devices: u64, percent: f64) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "device counts are far below 2^52 and percent lies in 0..=100"
    )]
    let share = (devices as f64 * percent / 100.0 - 1e-9).ceil().max(0.0) as u64;
    share
}
