//! The gate between two stages.

use jiff::{SignedDuration, Timestamp};

use super::Action;
use crate::campaign::{Campaign, Counts, Gate, Running, Stage, Tally};
use crate::why::Why;

/// Whether the stage after the open one may open.
pub(super) fn gate(
    now: Timestamp,
    campaign: &Campaign,
    running: &Running,
    counts: &Counts,
) -> Result<(), Why> {
    let Some((stage, tally)) = open(campaign, running, counts) else {
        return Ok(()); // a stage that never had devices holds nobody up
    };
    let gate = &stage.gate;
    results(running, gate, &tally)?;
    let soak = SignedDuration::from_secs(i64::try_from(gate.soak_seconds).unwrap_or(i64::MAX));
    let since = running.soak_since;
    let over = since.and_then(|since| since.checked_add(soak).ok());
    if !soak.is_zero() && over.is_none_or(|over| over > now) {
        return Err(Why::GateSoak);
    }
    let next = usize::from(running.open_stage) + 1;
    match campaign.spec.stages.get(next).filter(|_| gate.manual) {
        Some(next) => Err(Why::GateManual {
            stage: next.name.clone(),
        }),
        None => Ok(()),
    }
}

/// The soak of the open stage begins, or ends before its time, with what the stage has shown.
pub(super) fn soak(campaign: &Campaign, running: &Running, counts: &Counts) -> Option<Action> {
    let shows = open(campaign, running, counts).is_some_and(|(stage, tally)| {
        stage.gate.soak_seconds > 0 && results(running, &stage.gate, &tally).is_ok()
    });
    match (shows, running.soak_since) {
        (true, None) => Some(Action::BeginSoak),
        (false, Some(_)) => Some(Action::EndSoak),
        _ => None,
    }
}

/// The open stage and how its devices stand so far, if it ever had any. A device that holds what it was offered has done all
/// that its stage asks for.
pub(super) fn open<'c>(
    campaign: &'c Campaign,
    running: &Running,
    counts: &Counts,
) -> Option<(&'c Stage, Tally)> {
    let index = usize::from(running.open_stage);
    let tally = counts.stages.get(index)?.so_far();
    let stage = campaign.spec.stages.get(index)?;
    (tally.total() > 0).then_some((stage, tally))
}

/// Why the gate of the open stage cannot hold any more, whatever becomes of its devices that have not ended; for people.
pub(super) fn lost(campaign: &Campaign, running: &Running, counts: &Counts) -> Option<String> {
    let (stage, tally) = open(campaign, running, counts)?;
    let at_best = Tally {
        completed: tally.completed.saturating_add(tally.unready()),
        pending: 0,
        in_flight: 0,
        ..tally
    };
    let (name, ends) = match tally.unready() {
        0 => (&stage.name, "ended"),
        _ => (&stage.name, "will end"),
    };
    let so_few = match results(running, &stage.gate, &at_best).err()? {
        // Whoever comes later may be of this stage.
        Why::GateSamples { .. } if campaign.spec.continuous => return None,
        Why::GateSamples { have, need } => format!("{have} results of the {need} it takes"),
        _ => "too few successes".to_owned(),
    };
    Some(format!(
        "stage {name} {ends} with {so_few} to open the next; a resume opens it all the same"
    ))
}

/// Whether there are results enough, and successes enough among them, or a resume has accepted those there are. A device whose update was withdrawn is no result: a stage of
/// which nothing else is left has shown nothing.
fn results(running: &Running, gate: &Gate, tally: &Tally) -> Result<(), Why> {
    if running.accepted.stage == Some(running.open_stage) {
        return Ok(());
    }
    let devices = tally.settled().saturating_add(tally.open());
    let share = share_of(devices, gate.min_success_percent);
    let need = gate.min_samples.unwrap_or(share).clamp(1, tally.total());
    let have = tally.settled();
    if have < need {
        return Err(Why::GateSamples { have, need });
    }
    if tally.completed < share_of(have, gate.min_success_percent) {
        return Err(Why::GateSuccess);
    }
    Ok(())
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
