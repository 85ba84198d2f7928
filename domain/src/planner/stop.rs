//! Too many failures.

use super::Action;
use crate::campaign::{
    Abort, AbortAction, AbortOn, Accepted, Campaign, CampaignState, Counts, Reading, Strategy,
    Tally,
};

/// The most drastic of what the campaign's criteria ask for now. The failure threshold (PRD, E4-US1 AC2) is one of them.
pub(super) fn stop(campaign: &Campaign, accepted: &Accepted, counts: &Counts) -> Option<Action> {
    let criteria = campaign.spec.criteria();
    let (all, since) = results(campaign, counts);
    let breached = criteria.filter_map(|criterion| {
        let reason = breach(&criterion, accepted, counts, (&all, since))?;
        Some((criterion.action, reason))
    });
    let breached = breached.chain(unhealthy(campaign, accepted));
    // Of several that ask for the same, the first tells why.
    let (action, reason) =
        breached.reduce(|first, next| if next.0 > first.0 { next } else { first })?;
    Some(match action {
        AbortAction::Rollback => Action::RollBack { reason },
        AbortAction::Cancel => Action::Abort { reason },
        AbortAction::Pause => Action::Pause {
            reason: format!("{reason}; a resume accepts these results and counts afresh"),
        },
    })
}

/// What the last readings of heartbeats ask for. Those from before a resume were accepted with it.
fn unhealthy<'c>(
    campaign: &'c Campaign,
    accepted: &'c Accepted,
) -> impl Iterator<Item = (AbortAction, String)> + 'c {
    let new = move |reading: &&Reading| accepted.at.is_none_or(|at| reading.at > at);
    campaign
        .readings
        .iter()
        .filter(new)
        .filter_map(move |reading| {
            let criterion = campaign.spec.health.criteria.get(reading.criterion)?;
            Some((criterion.action, criterion.breach(reading)?))
        })
}

/// The results that criteria look at, and since when those count that were not accepted. What is staged is a success so far, and what
/// has regressed a failure. Once devices flip, what they hold says nothing any more: only those count that have flipped.
fn results(campaign: &Campaign, counts: &Counts) -> (Tally, &'static str) {
    let all = counts.updates();
    let all = match &campaign.state {
        CampaignState::InProgress(running) | CampaignState::Paused { running, .. }
            if campaign.spec.flips_at(running.open_stage)
                && running.accepted.at >= Some(running.stage_opened_at) =>
        {
            all.judged()
        }
        _ => all.so_far(),
    };
    let since = match campaign.spec.strategy {
        Strategy::BlueGreen => " since devices flip or it was resumed",
        _ => " since it was resumed",
    };
    (all, since)
}

/// Why a criterion is breached, if it is: by all results, and by those since some were accepted: by a resume, or because devices
/// began to flip.
/// Both, so that a resume never makes a campaign stop sooner.
fn breach(
    criterion: &Abort,
    accepted: &Accepted,
    counts: &Counts,
    (all, since): (&Tally, &str),
) -> Option<String> {
    let failures = counts.failures.since(accepted.failures());
    // A success that was accepted and regresses is a new result, and no further device with one.
    let results = all.settled().saturating_sub(accepted.settled());
    let regressed = counts.updates().regressed;
    let results = results.max(failures.on(AbortOn::Any).min(regressed));
    let share = |failed, results| crate::campaign::percent(failed, results);
    let rate = share(failures.on(criterion.on), results)?;
    let limit = criterion.percent;
    let above = |rate: f64| rate > limit;
    let passed = results >= criterion.min_samples
        && above(rate)
        && share(counts.failures.on(criterion.on), all.settled()).is_some_and(above);
    let since = if results < all.settled() { since } else { "" };
    let limited = if criterion.on == AbortOn::Any {
        "threshold"
    } else {
        "limit"
    };
    let regressed = match counts.updates().regressed {
        0 => String::new(),
        many => format!("; {many} had completed and regressed"),
    };
    passed.then(|| {
        format!(
            "{} {rate:.1} % of {results} results{since} is above the {limited} of {limit} %{regressed}",
            criterion.on.rate(),
        )
    })
}
