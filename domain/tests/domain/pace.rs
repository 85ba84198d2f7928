//! How a campaign prepares and flips, how fast it goes, and which failures stop it.

use device_ota_domain::campaign::{
    Abort, AbortAction, AbortOn, Accepted, Campaign, CampaignState, Counts, Every, Failures, Group,
    Growth, OpenFor, Rate, Tally,
};
use device_ota_domain::planner::{self, Action, Claim, Plan, next_offer, plan};
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::update::Action as UpdateAction;
use device_ota_domain::why::Why;
use proptest::prelude::*;
use serde_json::json;

use crate::planner::{claims, count, failing, running};
use crate::sample::{at, campaign, spec};

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_criterion_stops_it_by_its_kind_and_the_most_drastic_wins(
        failures in (0_u64..20, 0_u64..20, 0_u64..20), completed in 0_u64..50, staged in 0_u64..10,
        aborts in prop::collection::vec((0_usize..4, 0_u8..=100, 0_u64..30, 0_usize..3), 0..4),
        accepted in (0_u64..10, 0_u64..10, 0_u64..10, 0_u64..20),
    ) {
        let on = [AbortOn::Failed, AbortOn::Rejected, AbortOn::TimedOut, AbortOn::Any];
        let does = [AbortAction::Pause, AbortAction::Cancel, AbortAction::Rollback];
        let mut spec = spec(&json!({}));
        spec.failure_threshold_percent = 100.0; // the criteria alone decide
        spec.abort = aborts.iter().map(|(what, percent, min_samples, action)| Abort {
            on: on[*what], percent: f64::from(*percent), min_samples: *min_samples, action: does[*action],
        }).collect();
        let (failed, rejected, timed_out) = failures;
        let (was_failed, was_rejected, was_late, was_good) = accepted;
        let mut state = running(3, 0);
        state.accepted = Accepted {
            completed: was_good, failed: was_failed + was_rejected + was_late, rejected: was_rejected,
            timed_out: was_late, ..Accepted::default()
        };
        let mut counts = count(&[(0, Group::Pending)], 4);
        counts.stages[0].completed = completed;
        counts.stages[0].staged = staged;
        counts.stages[0].failed = failed + rejected + timed_out;
        counts.failures = Failures { failed, rejected, timed_out };
        let plan = plan(at(0), &campaign(spec, CampaignState::InProgress(state)), &counts);

        // The same once more, in whole numbers.
        let all = completed + staged + failed + rejected + timed_out;
        let results = all.saturating_sub(was_good + was_failed + was_rejected + was_late);
        let kinds = [(failed, was_failed), (rejected, was_rejected), (timed_out, was_late)];
        let breached = aborts.iter().filter(|(what, percent, min_samples, _)| {
            let which: Vec<_> = if *what == 3 { kinds.to_vec() } else { vec![kinds[*what]] };
            let now: u64 = which.iter().map(|(now, _)| now).sum();
            let since: u64 = which.iter().map(|(now, then)| now.saturating_sub(*then)).sum();
            let above = |part: u64, whole: u64| part * 100 > u64::from(*percent) * whole;
            results >= (*min_samples).max(1) && above(since, results) && above(now, all)
        });
        let wanted = breached.map(|(.., action)| does[*action]).max();
        let does = match plan.actions.as_slice() {
            [Action::RollBack { .. }] => Some(AbortAction::Rollback),
            [Action::Abort { .. }] => Some(AbortAction::Cancel),
            [Action::Pause { .. }] => Some(AbortAction::Pause),
            _ => None,
        };
        prop_assert_eq!(does, wanted, "{:?}", plan);
    }

    #[test]
    fn a_rate_and_the_room_of_the_service_are_kept(
        per_minute in 1_u32..3_000, room in prop::option::of(0_u64..40), batch in 1_u32..40,
        waits in prop::collection::vec(1_i64..5_000, 1..60),
    ) {
        // A pass now and then; whatever it may claim, it does.
        let json = json!({
            "deployment_strategy": "immediate", "rate": {"per_minute": per_minute}, "batch_size": batch,
            "max_concurrent_updates": 1_000_000,
        });
        let mut campaign = campaign(spec(&json), CampaignState::InProgress(running(0, 0)));
        let mut counts = Counts { stages: vec![Tally { pending: 1_000_000, ..Tally::default() }], ..Counts::default() };
        let (mut now, mut offers) = (at(0), Vec::new());
        for wait in waits {
            counts.room = room;
            let plan = plan(now, &campaign, &counts);
            match claims(&plan).as_slice() {
                [(UpdateAction::Update, 0, count)] => {
                    prop_assert!(*count > 0 && *count <= batch && room.is_none_or(|room| u64::from(*count) <= room));
                    counts.stages[0].pending -= u64::from(*count);
                    counts.stages[0].in_flight += u64::from(*count);
                    campaign.next_offer_at = next_offer(now, &campaign, &counts, *count);
                    offers.push((now, *count));
                }
                [] if room == Some(0) => prop_assert_eq!(&plan.waits, &[Why::NoRoom]),
                [] => {
                    let [Why::Rate { next }] = plan.waits.as_slice() else { panic!("{plan:?}") };
                    // Not before then, and then.
                    prop_assert!(*next > now);
                    prop_assert_eq!(campaign.next_offer_at, Some(*next));
                }
                other => prop_assert!(false, "{:?}", other),
            }
            now = now.checked_add(jiff::SignedDuration::from_millis(wait)).unwrap();
        }
        // In any minute no more than the rate, and what is made up for.
        for (from, _) in &offers {
            let to = from.checked_add(jiff::SignedDuration::from_secs(60)).unwrap();
            let within = offers.iter().filter(|(at, _)| at >= from && *at < to);
            let sum: u32 = within.map(|(_, count)| count).sum();
            prop_assert!(f64::from(sum) <= f64::from(per_minute) * 62.0 / 60.0 + 2.0, "{sum} in a minute");
        }
    }
}

#[test]
fn everybody_prepares_and_flips_when_the_last_stage_opens() {
    let json = json!({
        "deployment_strategy": "blue_green", "max_concurrent_updates": 10, "failure_threshold_percent": 50,
        "stages": [{"percent": 100, "gate": {"min_success_percent": 80, "manual": true}}],
    });
    let mut spec = spec(&json);
    let names: Vec<_> = spec.stages.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["100%", "activate"]);
    let planned = |spec: &_, open, tally| {
        let counts = Counts {
            stages: vec![tally, Tally::default()],
            ..Counts::default()
        };
        let state = CampaignState::InProgress(running(open, 0));
        plan(at(1), &campaign(Clone::clone(spec), state), &counts)
    };
    let claim = |up_to_stage, hold| Action::Claim {
        what: Claim {
            action: UpdateAction::Update,
            up_to_stage,
            hold,
            open_for: OpenFor::All,
            offers: true,
        },
        count: 10,
    };
    let some = Tally {
        pending: 3,
        staged: 7,
        ..Tally::default()
    };
    // They hold no slot, and are no result that could not be another one yet.
    let prepares = planned(&spec, 0, some);
    assert_eq!(prepares.actions, [claim(0, true)]);
    assert_eq!(prepares.waits, [Why::GateSamples { have: 7, need: 8 }]);
    let enough = Tally {
        pending: 1,
        staged: 8,
        failed: 1,
        ..Tally::default()
    };
    let stage = "activate".to_owned();
    assert_eq!(planned(&spec, 0, enough).waits, [Why::GateManual { stage }]);
    spec.stages[0].gate.manual = false;
    assert_eq!(planned(&spec, 0, enough).actions, [Action::OpenStage(1)]);
    // All flip, and who comes late goes all the way.
    assert_eq!(planned(&spec, 1, enough).actions, [claim(1, false)]);
    let flips = Tally {
        staged: 8,
        ..Tally::default()
    };
    assert_eq!(planned(&spec, 1, flips).actions, [claim(1, false)]);
    let busy = Tally {
        in_flight: 10,
        ..flips
    };
    assert_eq!(planned(&spec, 1, busy).waits, [Why::NoSlot]);
}

/// Of a hundred devices ten fail to prepare; then the others flip.
#[test]
fn once_devices_flip_only_those_that_have_flipped_count() {
    let spec = spec(&json!({"deployment_strategy": "blue_green", "failure_threshold_percent": 10}));
    let counts = |tally: Tally| {
        failing(Counts {
            stages: vec![tally, Tally::default()],
            ..Counts::default()
        })
    };
    let ready = counts(Tally {
        failed: 10,
        staged: 90,
        ..Tally::default()
    });
    let prepared = campaign(spec, CampaignState::InProgress(running(0, 0)));
    assert_eq!(
        plan(at(1), &prepared, &ready).actions,
        [Action::OpenStage(1)]
    );
    let state = planner::opened(at(1), &prepared, &ready, 1).unwrap();
    let flips = Campaign { state, ..prepared };
    let planned = |completed, in_flight, failed| {
        let tally = Tally {
            completed,
            in_flight,
            failed: 10 + failed,
            staged: 90 - completed - in_flight - failed,
            ..Tally::default()
        };
        plan(at(2), &flips, &counts(tally)).actions
    };
    let stops = |actions: &[Action]| match actions {
        [Action::RollBack { reason }] => Some(reason.clone()),
        _ => None,
    };
    // Neither what failed before nor the flip itself says anything.
    for in_flight in 0..=90 {
        assert_eq!(stops(&planned(0, in_flight, 0)), None, "{in_flight} flip");
    }
    assert_eq!(stops(&planned(9, 20, 1)), None, "one of ten");
    assert_eq!(
        stops(&planned(8, 20, 1)).unwrap(),
        "failure rate 11.1 % of 9 results since devices flip or it was resumed is above the threshold of 10 %"
    );
    assert!(stops(&planned(0, 0, 1)).is_some(), "the first of all");
}

#[test]
fn what_is_staged_counts_for_done_until_it_fails_and_is_cancelled_with_what_waits() {
    let json = json!({"deployment_strategy": "blue_green", "failure_threshold_percent": 20});
    let tally = |staged, failed| {
        failing(Counts {
            stages: vec![
                Tally {
                    staged,
                    failed,
                    in_flight: 1,
                    ..Tally::default()
                },
                Tally::default(),
            ],
            ..Counts::default()
        })
    };
    let started = campaign(spec(&json), CampaignState::InProgress(running(0, 0)));
    let rolls_back = |plan: Plan| matches!(plan.actions.as_slice(), [Action::RollBack { .. }]);
    assert!(!rolls_back(plan(at(1), &started, &tally(4, 1))));
    assert!(rolls_back(plan(at(1), &started, &tally(3, 1))));
    // Nobody is left who could still get there: the gate says no, for good.
    let mut ended = tally(3, 1);
    ended.stages[0].in_flight = 0;
    let mut lenient = started.clone();
    lenient.spec.failure_threshold_percent = 90.0;
    let paused = plan(at(1), &lenient, &ended).actions;
    assert!(
        matches!(paused.as_slice(), [Action::Pause { .. }]),
        "{paused:?}"
    );
    let resumed = lenient.state.clone().pause(at(1), "").unwrap();
    lenient.state = resumed.resume(at(1), &ended, false).unwrap();
    assert_eq!(
        plan(at(2), &lenient, &ended).actions,
        [Action::OpenStage(1)]
    );

    let mut left = tally(3, 0);
    left.stages[0].in_flight = 0;
    let back = |state: CampaignState| plan(at(2), &campaign(spec(&json), state), &left).actions;
    let state = || CampaignState::InProgress(running(0, 0));
    let cancels = Action::CancelPending(UpdateAction::Update);
    let trigger = RollbackTrigger::Manual;
    assert_eq!(
        back(state().roll_back(at(1), trigger, "bad").unwrap()),
        std::slice::from_ref(&cancels)
    );
    assert_eq!(back(state().cancel(at(1)).unwrap()), [cancels]);
}

#[test]
fn a_campaign_says_which_failures_stopped_it() {
    let json = json!({
        "deployment_strategy": "immediate", "failure_threshold_percent": 50,
        "abort": [
            {"on": "timed_out", "percent": 5, "min_samples": 10, "action": "pause"},
            {"on": "rejected", "percent": 0, "action": "cancel"},
        ],
    });
    let reason = |failures: Failures| {
        let failed = failures.on(AbortOn::Any);
        let tally = Tally {
            pending: 1,
            completed: 20 - failed,
            failed,
            ..Tally::default()
        };
        let counts = Counts {
            stages: vec![tally],
            failures,
            ..Counts::default()
        };
        let state = CampaignState::InProgress(running(0, 0));
        match plan(at(0), &campaign(spec(&json), state), &counts)
            .actions
            .as_slice()
        {
            [Action::Abort { reason } | Action::Pause { reason } | Action::RollBack { reason }] => {
                Some(reason.clone())
            }
            _ => None,
        }
    };
    let of = |failed, rejected, timed_out| {
        reason(Failures {
            failed,
            rejected,
            timed_out,
        })
    };
    let told = |text: &str| Some(text.to_owned());
    assert_eq!(of(9, 0, 1), None);
    assert_eq!(
        of(0, 0, 2),
        told(
            "timeout rate 10.0 % of 20 results is above the limit of 5 %; a resume accepts these results and counts afresh"
        )
    );
    assert_eq!(
        of(0, 1, 2),
        told("rejection rate 5.0 % of 20 results is above the limit of 0 %")
    );
    assert_eq!(
        of(9, 1, 1),
        told("failure rate 55.0 % of 20 results is above the threshold of 50 %")
    );
}

#[test]
fn a_rollback_is_not_held_up_by_the_rate() {
    let json = json!({"rate": {"per_minute": 1}, "batch_size": 50});
    let state = CampaignState::InProgress(running(0, 0));
    let state = state
        .roll_back(at(1), RollbackTrigger::Manual, "bad")
        .unwrap();
    let mut campaign = campaign(spec(&json), state);
    campaign.next_offer_at = Some(at(1_000));
    let done = Tally {
        completed: 40,
        ..Tally::default()
    };
    let waiting = Tally {
        pending: 40,
        ..Tally::default()
    };
    let counts = Counts {
        stages: vec![done],
        rollbacks: waiting,
        ..Counts::default()
    };
    assert_eq!(
        claims(&plan(at(2), &campaign, &counts)),
        [(UpdateAction::Rollback, u16::MAX, 50)]
    );
}

#[test]
fn a_rate_waits_for_no_time_before_the_clock_was_set_back() {
    let rate = Rate {
        per_minute: 60,
        growth: None,
    };
    let all = Tally::default();
    let next = rate.next(at(3_600), None, &all, 1);
    assert_eq!(rate.due(at(3_600), Some(next), &all), Err(at(3_601)));
    // An hour back: the next offer is due, and the one after it in a second.
    assert_eq!(rate.due(at(0), Some(next), &all), Ok(1));
    let next = rate.next(at(0), Some(next), &all, 1);
    assert_eq!(rate.due(at(0), Some(next), &all), Err(at(1)));
}

#[test]
fn a_rate_that_grows_lets_no_offer_go_out_before_its_time() {
    let growth = Growth {
        factor: 2.0,
        every: Every::Succeeded(1),
        max_per_minute: 9,
    };
    let rate = Rate {
        per_minute: 1,
        growth: Some(growth),
    };
    let with = |completed| Tally {
        completed,
        ..Tally::default()
    };
    let next = rate.next(at(100), None, &with(0), 1);
    // It was to wait for a minute, and would wait for half of one by now.
    assert_eq!(rate.due(at(103), Some(next), &with(1)), Err(at(160)));
    assert_eq!(rate.due(at(160), Some(next), &with(1)), Ok(1));
}
