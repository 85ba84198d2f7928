//! Properties of the planner over arbitrary campaigns and counts.

use device_ota_domain::campaign::{
    Accepted, Campaign, CampaignState, Counts, Gate, Group, OpenFor, Running, Stage, Takes, Tally,
};
use device_ota_domain::planner::{
    Action, Advance, AdvanceError, Claim, Plan, advance, plan, resume,
};
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::update::Action as UpdateAction;
use device_ota_domain::why::Why;
use proptest::prelude::*;
use serde_json::json;

use crate::sample::{at, campaign, spec};

/// A device's row as far as the planner cares: its stage and its group.
pub(crate) type Row = (u16, Group);

fn group() -> impl Strategy<Value = Group> {
    prop::sample::select(vec![
        Group::Pending,
        Group::InFlight,
        Group::Staged,
        Group::Completed,
        Group::Failed,
        Group::Cancelled,
    ])
}

pub(crate) fn count(rows: &[Row], stages: usize) -> Counts {
    let mut counts = Counts {
        stages: vec![Tally::default(); stages],
        ..Counts::default()
    };
    for (stage, group) in rows {
        *counts.stages[usize::from(*stage)].of_mut(*group) += 1;
    }
    failing(counts)
}

prop_compose! {
    fn any_tally()(pending: u64, in_flight: u64, staged: u64, completed: u64, regressed: u64, failed: u64, cancelled: u64) -> Tally {
        Tally { pending, in_flight, staged, completed, regressed, failed, cancelled }
    }
}

/// With all failures and regressions on the devices.
pub(crate) fn failing(mut counts: Counts) -> Counts {
    counts.failures.failed = counts.updates().judged().failed;
    counts
}

/// A few dozen at most, and often nobody: what ends a campaign are the zeros.
fn few() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0_u64), 1 => 0_u64..50]
}

prop_compose! {
    fn small_tally()(n in [few(), few(), few(), few(), few(), few(), few()]) -> Tally {
        Tally { pending: n[0], in_flight: n[1], completed: n[2], failed: n[3], cancelled: n[4], staged: n[5], regressed: n[6].min(n[2]) }
    }
}

prop_compose! {
    /// Anything that the types hold, sensible or not.
    fn any_counts()(stages in prop::collection::vec(any_tally(), 0..6), rollbacks in any_tally()) -> Counts {
        Counts { stages, rollbacks, ..Counts::default() }
    }
}

prop_compose! {
    fn small_counts()(stages in prop::collection::vec(prop_oneof![Just(Tally::default()), small_tally()], 4), rollbacks in small_tally()) -> Counts {
        failing(Counts { stages, rollbacks, ..Counts::default() })
    }
}

pub(crate) fn running(open_stage: u16, opened: i64) -> Running {
    Running {
        started_at: at(0),
        open_stage,
        stage_opened_at: at(opened),
        soak_since: None,
        accepted: Accepted::default(),
        up_to_stage: None,
    }
}

fn any_state() -> impl Strategy<Value = CampaignState> {
    let trigger = RollbackTrigger::Manual;
    (any::<u16>(), 0..8_u8).prop_map(move |(stage, which)| match which {
        0 => CampaignState::Created,
        1 => CampaignState::Paused {
            running: running(stage, 0),
            paused_at: at(0),
            reason: String::new(),
        },
        2 => CampaignState::RollingBack {
            started_at: None,
            rollback_started_at: at(0),
            trigger,
            reason: String::new(),
        },
        3 => CampaignState::RolledBack {
            started_at: None,
            ended_at: at(0),
            trigger,
            reason: String::new(),
        },
        4 => CampaignState::Completed {
            started_at: None,
            ended_at: at(0),
            accepted: Accepted::default(),
        },
        5 => CampaignState::Cancelled {
            started_at: None,
            ended_at: at(0),
            reason: None,
        },
        _ => CampaignState::InProgress(running(if which == 6 { stage % 4 } else { stage }, 0)),
    })
}

prop_compose! {
    /// Numbers that no draft would pass: infinities, zeros, soaks beyond the end of time.
    fn wild_campaign()(
        state in any_state(),
        gates in prop::collection::vec((any::<f64>(), any::<Option<u64>>(), any::<u64>()), 0..6),
        slots: u32, batch: u32, threshold: f64, samples: u64, auto_rollback: bool,
    ) -> Campaign {
        let mut spec = spec(&json!({}));
        spec.stages = gates.into_iter().map(|(min_success_percent, min_samples, soak_seconds)| Stage {
            name: String::new(),
            end_bucket: 0,
            takes: Takes::Share,
            gate: Gate { min_success_percent, min_samples, soak_seconds, manual: soak_seconds % 3 == 0 },
        }).collect();
        spec.max_concurrent_updates = slots;
        spec.batch_size = batch;
        spec.failure_threshold_percent = threshold;
        spec.failure_min_samples = samples;
        spec.auto_rollback = auto_rollback;
        campaign(spec, state)
    }
}

pub(crate) fn claims(plan: &Plan) -> Vec<(UpdateAction, u16, u32)> {
    let claim = |action: &Action| match action {
        Action::Claim { what, count } => Some((what.action, what.up_to_stage, *count)),
        _ => None,
    };
    plan.actions.iter().filter_map(claim).collect()
}

/// What a stage must have shown, once more, in whole numbers and from the rows themselves.
fn has_shown(gate: &Gate, rows: &[Row], stage: u16) -> bool {
    let of = |group| rows.iter().filter(|row| **row == (stage, group)).count();
    let completed = of(Group::Completed) + of(Group::Staged);
    let failed = of(Group::Failed);
    let devices = completed + failed + of(Group::Pending) + of(Group::InFlight);
    let ever = devices + of(Group::Cancelled);
    if ever == 0 {
        return true;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "made from 0..=100"
    )]
    let percent = gate.min_success_percent as usize;
    let share = (devices * percent).div_ceil(100);
    let need = gate
        .min_samples
        .map_or(share, |n| usize::try_from(n).unwrap())
        .max(1)
        .min(ever);
    completed + failed >= need && completed * 100 >= percent * (completed + failed)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_input_gives_a_plan_and_a_plan_acts_or_says_why(
        campaign in wild_campaign(), counts in any_counts(), now in any::<i32>(),
    ) {
        let plan = plan(at(i64::from(now)), &campaign, &counts);
        prop_assert!(!plan.actions.is_empty() || !plan.waits.is_empty(), "a silent plan");
        prop_assert!(plan.actions.len() <= 4, "{plan:?}");
    }

    #[test]
    fn a_claim_never_asks_for_more_than_the_free_slots_and_one_batch(
        state in any_state(), counts in small_counts(), slots in 1_u32..300, batch in 1_u32..100, unanswered in 0_u64..120,
    ) {
        let mut spec = spec(&json!({}));
        (spec.max_concurrent_updates, spec.batch_size) = (slots, batch);
        let counts = Counts { unanswered_updates: unanswered, unanswered_rollbacks: unanswered, ..counts };
        let plan = plan(at(0), &campaign(spec, state), &counts);
        let claimed: u64 = claims(&plan).iter().map(|(_, _, count)| u64::from(*count)).sum();
        prop_assert!(claimed <= u64::from(batch).saturating_sub(unanswered));
        prop_assert!(claimed == 0 || counts.in_flight() + claimed <= u64::from(slots), "{plan:?}");
    }

    #[test]
    fn a_claim_never_reaches_a_closed_stage(open in 0_u16..4, counts in small_counts()) {
        let campaign = campaign(spec(&json!({})), CampaignState::InProgress(running(open, 0)));
        for (action, up_to, _) in claims(&plan(at(0), &campaign, &counts)) {
            prop_assert_eq!((action, up_to), (UpdateAction::Update, open));
        }
    }

    #[test]
    fn a_stage_opens_when_its_gate_holds_and_never_before(
        rows in prop::collection::vec((0_u16..4, group()), 0..60),
        open in 0_u16..4, percent in 0_u8..=100, min_samples in prop::option::of(0_u64..20),
        soak_seconds in 0_u64..100, soaked in prop::option::of(0_u64..100), promoted in prop::option::of(0_u16..4),
        manual: bool,
    ) {
        let gate = Gate { min_success_percent: f64::from(percent), min_samples, soak_seconds, manual };
        let mut spec = spec(&json!({}));
        spec.failure_threshold_percent = 100.0; // the gate alone decides
        spec.stages.iter_mut().for_each(|stage| stage.gate = gate);
        let now = at(100);
        let soak_since = soaked.map(|seconds| at(100 - i64::try_from(seconds).unwrap()));
        let running = Running { up_to_stage: promoted, soak_since, ..running(open, 0) };
        let campaign = campaign(spec, CampaignState::InProgress(running));
        let plan = plan(now, &campaign, &count(&rows, 4));
        let opens = plan.actions.iter().any(|action| matches!(action, Action::OpenStage(_)));
        let work_left = rows.iter().any(|(_, g)| matches!(g, Group::Pending | Group::InFlight | Group::Staged));
        let may = open < 3 && promoted.is_none_or(|limit| open < limit);
        let counts = count(&rows, 4);
        let nobody = counts.stages[usize::from(open)].total() == 0;
        let shown = has_shown(&gate, &rows, open);
        let soaks = shown && !nobody && soak_seconds > 0;
        if open < 3 && work_left && soaks != soaked.is_some() {
            let next = if soaks { Action::BeginSoak } else { Action::EndSoak };
            prop_assert_eq!(plan.actions, [next]);
            return Ok(());
        }
        let ripe = !soaks || soaked.is_some_and(|soaked| soaked >= soak_seconds);
        let ready = may && work_left && shown && ripe;
        prop_assert_eq!(opens, ready && (nobody || !manual));
        // A person opens what waits for one, and nothing else, and that once.
        let waits = plan.waits.iter().any(|why| matches!(why, Why::GateManual { .. }));
        prop_assert_eq!(waits, ready && manual && !nobody);
        match advance(now, campaign.clone(), &counts, Advance::default()) {
            Ok(opened) => {
                prop_assert!(waits);
                prop_assert_eq!(opened.state.clone(), campaign.state.clone().open_stage(open + 1, now).unwrap());
                let twice = advance(now, opened, &counts, Advance { stage: Some(&campaign.spec.stages[usize::from(open) + 1].name), force: true });
                prop_assert!(matches!(twice, Err(AdvanceError::OpenAlready(_))), "{:?}", twice);
            }
            Err(_) => prop_assert!(!waits),
        }
        if open < 3 && !may && work_left {
            let held = |why: &Why| matches!(why, Why::NotPromoted { .. });
            prop_assert!(plan.waits.iter().any(held), "it says why: {:?}", plan.waits);
        }
        if opens {
            prop_assert_eq!(plan.actions, [Action::OpenStage(open + 1)], "one stage at a time");
        }
    }

    #[test]
    fn nothing_happens_when_it_is_paused_or_has_not_begun_or_has_ended(
        state in any_state(), counts in any_counts(),
    ) {
        let campaign = campaign(spec(&json!({})), state);
        let plan = plan(at(0), &campaign, &counts);
        match campaign.state {
            CampaignState::InProgress(_) | CampaignState::RollingBack { .. } => {}
            CampaignState::Cancelled { .. } => {
                let stops = |a: &Action| matches!(a, Action::CancelPending(_) | Action::CancelInFlight(_));
                prop_assert!(plan.actions.iter().all(stops), "{plan:?}");
            }
            // A device completed after the others had gone back: it goes back, too.
            CampaignState::RolledBack { .. } if counts.rollbacks.total() < counts.updates().completed => {
                let back = matches!(plan.actions.as_slice(), [Action::RollBack { .. }]);
                prop_assert!(back, "{plan:?}");
            }
            _ => prop_assert_eq!(plan.actions, []),
        }
    }

    #[test]
    fn the_threshold_stops_it_before_anything_else(
        open in 0_u16..4, counts in small_counts(), threshold in 0_u8..=100, samples in 0_u64..100,
        auto_rollback: bool,
    ) {
        let mut spec = spec(&json!({}));
        spec.failure_threshold_percent = f64::from(threshold);
        spec.failure_min_samples = samples;
        spec.auto_rollback = auto_rollback;
        let campaign = campaign(spec, CampaignState::InProgress(running(open, 0)));
        let plan = plan(at(0), &campaign, &counts);
        let all = counts.updates().so_far();
        let breached =
            all.settled() >= samples.max(1) && all.failed * 100 > u64::from(threshold) * all.settled();
        let stops = match plan.actions.as_slice() {
            [Action::RollBack { reason }] => auto_rollback && reason.contains("above the threshold"),
            [Action::Pause { reason }] => !auto_rollback && reason.contains("above the threshold"),
            _ => false,
        };
        prop_assert_eq!(stops, breached, "{:?}", plan);
    }

    #[test]
    fn a_resume_accepts_what_there_is_and_the_threshold_looks_at_what_comes(
        open in 0_u16..4, before in small_counts(), (completed, failed) in (0_u64..20, 0_u64..20),
        threshold in 0_u8..=100, samples in 0_u64..10, auto_rollback: bool,
    ) {
        let mut spec = spec(&json!({}));
        spec.failure_threshold_percent = f64::from(threshold);
        spec.failure_min_samples = samples;
        spec.auto_rollback = auto_rollback;
        // At a gate that cannot hold it may pause as well.
        let stops = |plan: &Plan| match plan.actions.as_slice() {
            [Action::RollBack { .. }] => true,
            [Action::Pause { reason }] => !reason.starts_with("stage "),
            _ => false,
        };
        let state = CampaignState::InProgress(running(open, 0)).pause(at(1), "").unwrap();
        let campaign = campaign(spec, state.resume(at(1), &before, false).unwrap());
        let at_once = plan(at(2), &campaign, &before);
        prop_assert!(!stops(&at_once), "{:?}", at_once);

        // As much again happens, and somebody still waits in the stage that is open.
        let mut after = before.clone();
        after.stages[0].pending += 1;
        after.stages[0].completed += completed;
        after.stages[0].failed += failed;
        let after = failing(after);
        let all = after.updates().so_far();
        let above = |failed: u64, settled: u64| failed * 100 > u64::from(threshold) * settled;
        let since = completed + failed + before.updates().staged;
        let breached = since >= samples.max(1)
            && above(failed, since)
            && above(all.failed, all.settled());
        let later = plan(at(3), &campaign, &after);
        prop_assert_eq!(stops(&later), breached, "{:?}", later);
    }

    #[test]
    fn a_campaign_finishes_exactly_when_every_row_has_ended(counts in small_counts(), back: bool) {
        let mut spec = spec(&json!({}));
        spec.failure_threshold_percent = 100.0;
        let reason = String::new();
        let state = if back {
            CampaignState::RollingBack { started_at: None, rollback_started_at: at(0), trigger: RollbackTrigger::Manual, reason }
        } else {
            CampaignState::InProgress(running(3, 0))
        };
        let plan = plan(at(0), &campaign(spec, state), &counts);
        let all = counts.updates();
        let ended = all.open() == 0
            && (!back || (counts.rollbacks.open() == 0 && counts.rollbacks.total() >= all.completed));
        prop_assert_eq!(plan.actions.contains(&Action::Finish), ended, "{:?}", plan);
    }
}

#[test]
fn a_stage_that_ended_below_its_gate_stops_and_says_which() {
    let mut spec = spec(&json!({"stages": [{"percent": 5, "gate": {"min_success_percent": 90}}]}));
    spec.failure_threshold_percent = 50.0;
    let campaign = campaign(spec, CampaignState::InProgress(running(0, 0)));
    let canary = Tally {
        completed: 8,
        failed: 2,
        ..Tally::default()
    };
    let rest = Tally {
        pending: 90,
        ..Tally::default()
    };
    let counts = Counts {
        stages: vec![canary, rest],
        ..Counts::default()
    };
    let reason =
        "stage 5% ended with too few successes to open the next; a resume opens it all the same"
            .to_owned();
    assert_eq!(
        plan(at(0), &campaign, &counts).actions,
        [Action::Pause { reason }]
    );
    // A resume opens the next stage, once the soak is over, too.
    let mut resumed = campaign.clone();
    resumed.state = campaign.state.pause(at(1), "").unwrap();
    resumed.state = resume(at(1), &resumed, &counts).unwrap();
    assert_eq!(
        plan(at(2), &resumed, &counts).actions,
        [Action::OpenStage(1)]
    );
    resumed.spec.stages[0].gate.soak_seconds = 100;
    assert_eq!(plan(at(2), &resumed, &counts).actions, [Action::BeginSoak]);
}

#[test]
fn a_cancelled_rollback_stops_what_waits_and_asks_what_is_in_flight() {
    let state = CampaignState::InProgress(running(1, 0));
    let state = state.roll_back(at(5), RollbackTrigger::Manual, "bad");
    let state = state.unwrap().cancel(at(6)).unwrap();
    let campaign = campaign(spec(&json!({})), state);
    let open = Tally {
        pending: 2,
        in_flight: 1,
        ..Tally::default()
    };
    let counts = Counts {
        stages: vec![Tally::default()],
        rollbacks: open,
        ..Counts::default()
    };
    let back = UpdateAction::Rollback;
    assert_eq!(
        plan(at(7), &campaign, &counts).actions,
        [Action::CancelPending(back), Action::CancelInFlight(back)]
    );
}

#[test]
fn a_rollback_cancels_what_waits_takes_back_what_completed_and_keeps_the_limits() {
    let state = CampaignState::InProgress(running(1, 0));
    let state = state
        .roll_back(at(5), RollbackTrigger::FailureThreshold, "too many")
        .unwrap();
    let campaign = campaign(
        spec(&json!({"max_concurrent_updates": 5, "batch_size": 2})),
        state,
    );
    let mut counts = Counts {
        stages: vec![Tally {
            pending: 3,
            in_flight: 2,
            completed: 4,
            failed: 1,
            ..Tally::default()
        }],
        ..Counts::default()
    };
    let first = plan(at(5), &campaign, &counts).actions;
    assert_eq!(
        first,
        [
            Action::CancelPending(UpdateAction::Update),
            Action::CancelInFlight(UpdateAction::Update),
            Action::MakeRollbacks
        ]
    );
    counts.stages[0] = Tally {
        in_flight: 2,
        completed: 4,
        failed: 1,
        cancelled: 3,
        ..Tally::default()
    };
    counts.rollbacks.pending = 4;
    let what = Claim {
        action: UpdateAction::Rollback,
        up_to_stage: u16::MAX,
        hold: false,
        open_for: OpenFor::All,
        offers: true,
    };
    let claim = Action::Claim { what, count: 2 };
    assert_eq!(
        plan(at(6), &campaign, &counts).actions,
        [Action::CancelInFlight(UpdateAction::Update), claim]
    );
    counts.stages[0] = Tally {
        completed: 4,
        failed: 1,
        cancelled: 5,
        ..Tally::default()
    };
    counts.rollbacks = Tally {
        completed: 3,
        failed: 1,
        ..Tally::default()
    };
    assert_eq!(plan(at(7), &campaign, &counts).actions, [Action::Finish]);
}

#[test]
fn a_schedule_opens_and_closes_a_campaign() {
    let row = |group| count(&[(0, group)], 4);
    let state = CampaignState::InProgress(running(0, 0));
    let during = |on_end: &str, state: &CampaignState, now, counts: &Counts| {
        let schedule = json!({"start_at": at(100), "end_at": at(200), "on_end": on_end});
        let spec = spec(&json!({"schedule": schedule}));
        plan(at(now), &campaign(spec, state.clone()), counts)
    };
    let waits = during("stop", &state, 99, &row(Group::Pending));
    assert_eq!(
        (waits.actions, waits.waits),
        (vec![], vec![Why::Scheduled { at: at(100) }])
    );
    let open = during("stop", &state, 199, &row(Group::Pending));
    assert!(matches!(open.actions.as_slice(), [Action::Claim { .. }]));
    let paused = state.clone().pause(at(150), "lunch").unwrap();
    assert_eq!(
        during("stop", &paused, 199, &row(Group::Pending)).waits,
        [Why::Paused]
    );
    for state in [&state, &paused] {
        let over = |on_end, group| during(on_end, state, 200, &row(group));
        let stops = [Action::CancelPending(UpdateAction::Update)];
        assert_eq!(over("stop", Group::Pending).actions, stops);
        assert_eq!(over("stop", Group::InFlight).waits, [Why::Answers]);
        for ended in [Group::Completed, Group::Cancelled] {
            assert_eq!(over("stop", ended).actions, [Action::Finish]);
            assert_eq!(over("cancel", ended).actions, [Action::Finish]);
        }
        for left in [Group::Pending, Group::InFlight] {
            assert_eq!(over("cancel", left).actions, [Action::Cancel]);
        }
    }
}

#[test]
fn a_person_is_told_what_a_stage_waits_for_and_forces_it_only_by_its_name() {
    let stages =
        json!([{"percent": 10, "gate": {"manual": true, "min_samples": 2}}, {"percent": 50}]);
    let campaign = campaign(
        spec(&json!({"stages": stages})),
        CampaignState::InProgress(running(0, 0)),
    );
    let of = |completed| Counts {
        stages: vec![
            Tally {
                completed,
                pending: 3 - completed,
                ..Tally::default()
            },
            Tally {
                pending: 5,
                ..Tally::default()
            },
            Tally::default(),
        ],
        ..Counts::default()
    };
    let ask = |completed, stage, force| {
        let asked = Advance { stage, force };
        let done = advance(at(1), campaign.clone(), &of(completed), asked);
        done.map(|c| match c.state {
            CampaignState::InProgress(running) => running.open_stage,
            _ => 0,
        })
        .map_err(|error| error.to_string())
    };
    let told = |text: &str| Err(text.to_owned());
    assert_eq!(
        ask(1, None, false),
        told("nothing waits for a person: the stage has 1 results and needs 2")
    );
    assert_eq!(ask(2, None, false), Ok(1));
    assert_eq!(ask(2, Some("50%"), false), Ok(1));
    assert_eq!(ask(0, Some("50%"), true), Ok(1));
    assert_eq!(
        ask(0, None, true),
        told("name the stage that shall open by force")
    );
    assert_eq!(ask(2, Some("10%"), true), told("stage 10% is open already"));
    assert_eq!(
        ask(2, Some("100%"), true),
        told("stage 100% cannot open before stage 50%")
    );
    assert_eq!(
        ask(2, Some("60%"), true),
        told("the campaign has no stage \"60%\"; it has 10%, 50%, 100%")
    );
    let plan = plan(at(1), &campaign, &of(2));
    assert_eq!(
        plan.waits
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["stage 50% waits for a person to open it (advance)"]
    );
}

#[test]
fn the_time_of_updates_begins_when_their_stage_opens_and_once() {
    let spec = spec(&json!({"give_up_after_hours": 24, "batch_size": 1}));
    let running = CampaignState::InProgress(running(1, 0));
    let campaign = campaign(spec, running.clone());
    let stage = Tally {
        pending: 3,
        ..Tally::default()
    };
    let counts = |timeless| Counts {
        stages: vec![stage; 4],
        timeless,
        ..Counts::default()
    };
    let begins = |state: &CampaignState, timeless| {
        let campaign = Campaign {
            state: state.clone(),
            ..campaign.clone()
        };
        let plan = plan(at(5), &campaign, &counts(timeless));
        plan.actions.first() == Some(&Action::BeginTime(1))
    };
    assert!(begins(&running, Some(0)) && begins(&running, Some(1)));
    assert!(!begins(&running, Some(2)) && !begins(&running, None));
    let paused = running.clone().pause(at(4), "lunch").unwrap();
    assert!(!begins(&paused, Some(0)));
}
