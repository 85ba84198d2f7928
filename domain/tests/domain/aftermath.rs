//! What becomes of an update after it has completed: its device is watched, and one that does not stay well has regressed.

use device_ota_domain::campaign::{CampaignState, Counts, Group, Health, Running, Tally};
use device_ota_domain::planner::{Action as Planned, plan};
use device_ota_domain::update::{
    Action, Aftermath, Look, Outcome, Phase, Reported, Retry, Sight, WatchTerms,
};
use device_ota_domain::{Update, UpdateState};
use jiff::SignedDuration;
use proptest::prelude::*;
use serde_json::json;

use crate::planner::running;
use crate::sample::{LEASE, at, campaign, completed, draft, fails, in_phase, says, spec};

const TERMS: WatchTerms = WatchTerms {
    seconds: 600,
    silent_seconds: Some(100),
    max_restarts: 3,
};

/// Completed at second 30 and watched until second 630.
fn watched() -> Update {
    completed().watched(TERMS)
}

fn sees(running: &str, second: i64) -> Sight<'_> {
    Sight {
        running,
        restarted: false,
        nonce: None,
        at: at(second),
    }
}

fn look(now: i64) -> Look<'static> {
    Look {
        now: at(now),
        last_seen: Some(at(31)),
        online: true,
        running: Some("2.0.0"),
    }
}

fn code(update: &Update) -> &str {
    &update.regression().unwrap().failure.code
}

#[test]
fn the_old_version_after_the_completion_is_a_regression_and_ends_nothing_anew() {
    let update = watched().observe_afterwards(&sees("1.0.0", 40)).unwrap();
    assert_eq!(code(&update), "reverted");
    assert_eq!(update.regression().unwrap().at, at(40));
    assert_eq!(update.state, UpdateState::Completed { at: at(30) });
    assert_eq!(update.group(), Group::Completed);
    // Whatever it says from then on, it is said once.
    assert_eq!(
        update.clone().observe_afterwards(&sees("1.0.0", 41)),
        None,
        "again"
    );
    assert_eq!(update.clone().look_afterwards(&look(9_999)), None);
    let outcome = update.clone().report(&fails(9, Retry::Now), at(42), LEASE);
    assert_eq!(outcome, Outcome::Ignored(Box::new(update.clone()), "ended"));
    assert_eq!(update.clone().watched(TERMS), update);
}

#[test]
fn what_is_no_fall_back_is_no_regression() {
    for (running, second) in [("2.0.0", 40), ("9.9.9", 40), ("1.0.0", 631)] {
        let seen = watched().observe_afterwards(&sees(running, second));
        assert_eq!(seen, None, "{running} at {second}");
    }
    // Nobody knows what ran before: anything else than what it said is worse.
    let unknown = Update {
        from_version: None,
        ..watched()
    };
    let seen = unknown.observe_afterwards(&sees("9.9.9", 40)).unwrap();
    assert_eq!(code(&seen), "reverted");
    // Nor is a rollback watched, nor what has not completed, nor anything when nobody wants it.
    let rollback = Update {
        action: Action::Rollback,
        ..completed()
    };
    let forgotten = WatchTerms {
        seconds: 0,
        ..TERMS
    };
    let unwatched = [
        rollback.watched(TERMS),
        in_phase(Phase::Rebooting).watched(TERMS),
        completed().watched(forgotten),
    ];
    for update in unwatched {
        assert_eq!(update.aftermath, Aftermath::Unwatched);
        assert_eq!(update.observe_afterwards(&sees("1.0.0", 40)), None);
    }
}

#[test]
fn a_device_that_restarts_again_and_again_is_in_a_loop() {
    let mut update = watched();
    let boots = Sight {
        restarted: true,
        ..sees("2.0.0", 40)
    };
    for _ in 0..2 {
        update = update.observe_afterwards(&boots).unwrap();
        assert_eq!(update.regression(), None);
    }
    let update = update.observe_afterwards(&boots).unwrap();
    assert_eq!(code(&update), "boot_failed");
}

#[test]
fn a_check_that_is_delivered_again_and_again_tells_of_one_restart() {
    let boots = |nonce| Sight {
        restarted: true,
        nonce: Some(nonce),
        ..sees("2.0.0", 40)
    };
    let mut update = watched();
    for (n, nonce) in ["a", "b"].into_iter().enumerate() {
        update = update.observe_afterwards(&boots(nonce)).unwrap();
        let left = update.watch().unwrap().restarts_left;
        assert_eq!(left, 2 - u32::try_from(n).unwrap());
        assert_eq!(update.clone().observe_afterwards(&boots(nonce)), None);
    }
    let update = update.observe_afterwards(&boots("c")).unwrap();
    assert_eq!(code(&update), "boot_failed");
}

#[test]
fn a_device_that_is_away_for_too_long_has_fallen_silent() {
    let away = |now| Look {
        online: false,
        ..look(now)
    };
    assert_eq!(watched().look_afterwards(&away(129)), None, "not yet");
    // It was heard at second 31: at 130 it may still come back, at 131 not.
    let update = watched().look_afterwards(&away(130)).unwrap();
    assert_eq!(update.watch().unwrap().look_at, at(131));
    let update = update.look_afterwards(&away(131)).unwrap();
    assert_eq!(code(&update), "device_lost");
    // A connection is a sign of life.
    let there = watched().look_afterwards(&look(200)).unwrap();
    assert_eq!(there.watch().unwrap().look_at, at(300));
    // Who is not asked to be there may be away.
    let may_be_away = WatchTerms {
        silent_seconds: None,
        ..TERMS
    };
    let update = completed().watched(may_be_away);
    assert_eq!(update.watch().unwrap().look_at, at(630));
    let update = update.look_afterwards(&away(630)).unwrap();
    assert_eq!(update.aftermath, Aftermath::Unwatched);
    // Silence that begins within the watch and lasts beyond it proves nothing.
    let late = Look {
        last_seen: Some(at(600)),
        ..away(800)
    };
    let update = watched().look_afterwards(&late).unwrap();
    assert_eq!(update.aftermath, Aftermath::Unwatched);
}

#[test]
fn the_end_of_the_watch_is_the_last_look() {
    let shows_old = Look {
        running: Some("1.0.0"),
        ..look(630)
    };
    let update = watched().look_afterwards(&shows_old).unwrap();
    assert_eq!(code(&update), "reverted");
    let update = watched().look_afterwards(&look(630)).unwrap();
    assert_eq!(update.aftermath, Aftermath::Unwatched);
    assert_eq!(update.updated_at, at(30), "nothing has changed for people");
}

#[test]
fn a_device_may_say_by_itself_that_it_failed_after_all() {
    let outcome = watched().report(&fails(3, Retry::Now), at(50), LEASE);
    let Outcome::Changed(update) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((code(&update), update.last_seq), ("install_failed", 3));
    for late in [
        fails(2, Retry::Now),
        says(3, Reported::In(Phase::Rebooting)),
    ] {
        let outcome = watched().report(&late, at(50), LEASE);
        assert!(matches!(outcome, Outcome::Ignored(..)), "{outcome:?}");
    }
    let outcome = watched().report(&fails(3, Retry::Now), at(631), LEASE);
    assert!(matches!(outcome, Outcome::Ignored(..)), "{outcome:?}");
}

#[test]
fn a_stage_is_watched_for_its_soak_at_least_and_by_default_for_an_hour() {
    let spec = spec(&json!({
        "stages": [{"percent": 10, "gate": {"soak_seconds": 7_200}}, {"percent": 20, "gate": {"soak_seconds": 60}}],
    }));
    let watch = |stage| spec.watch(stage, SignedDuration::from_mins(5));
    let terms = |seconds, silent_seconds| WatchTerms {
        seconds,
        silent_seconds,
        max_restarts: 5,
    };
    assert_eq!(watch(0), terms(7_200, Some(300)));
    assert_eq!(watch(1), terms(3_600, Some(300)));
    assert_eq!(watch(2), terms(3_600, None));
    let refused = |health: serde_json::Value| {
        let draft = draft(&json!({ "health": health }));
        let shares = device_ota_domain::ring::Shares::default();
        draft.into_spec(10.0, 0, shares).unwrap_err().to_string()
    };
    assert_eq!(
        refused(json!({"watch_seconds": 2_592_001})),
        "health.watch_seconds must be at most 2592000"
    );
    assert_eq!(
        refused(json!({"silent_seconds": 0})),
        "health.silent_seconds must be 1 to 2592000"
    );
    assert_eq!(
        refused(json!({"max_restarts": 0})),
        "health.max_restarts must be 1 to 1000"
    );
    assert!(serde_json::from_value::<Health>(json!({"watch": 1})).is_err());
}

fn one_stage(completed: u64, regressed: u64) -> Counts {
    let tally = Tally {
        completed,
        regressed,
        ..Tally::default()
    };
    crate::planner::failing(Counts {
        stages: vec![tally],
        ..Counts::default()
    })
}

#[test]
fn what_regresses_after_the_end_still_takes_the_campaign_back() {
    let fields = json!({"deployment_strategy": "immediate", "failure_threshold_percent": 20});
    let done = CampaignState::InProgress(running(0, 0))
        .finish(at(9))
        .unwrap();
    let ended = campaign(spec(&fields), done.clone());
    for (regressed, stops) in [(0, false), (2, false), (3, true)] {
        let plan = plan(at(10), &ended, &one_stage(10, regressed));
        let back = matches!(plan.actions.as_slice(), [Planned::RollBack { reason }] if reason
            == "failure rate 30.0 % of 10 results is above the threshold of 20 %; 3 had completed and regressed");
        assert_eq!(back, stops, "{regressed}: {plan:?}");
    }
    // A campaign that asks a person has nothing to ask any more.
    let mut asks = fields.clone();
    asks["auto_rollback"] = json!(false);
    let asks = campaign(spec(&asks), done);
    assert_eq!(plan(at(10), &asks, &one_stage(10, 9)).actions, []);
}

#[test]
fn what_was_accepted_and_regresses_later_is_a_new_result() {
    let fields = json!({"deployment_strategy": "immediate", "failure_threshold_percent": 20});
    let paused = CampaignState::InProgress(running(0, 0)).pause(at(1), "");
    let resumed = paused
        .unwrap()
        .resume(at(2), &one_stage(10, 3), false)
        .unwrap();
    let CampaignState::InProgress(Running { accepted, .. }) = resumed else {
        panic!("{resumed:?}")
    };
    assert_eq!((accepted.completed, accepted.failed), (7, 3));
    let ended = campaign(spec(&fields), resumed.finish(at(3)).unwrap());
    assert_eq!(plan(at(4), &ended, &one_stage(10, 3)).actions, []);
    let again = plan(at(4), &ended, &one_stage(10, 4));
    assert!(
        matches!(again.actions.as_slice(), [Planned::RollBack { .. }]),
        "{again:?}"
    );
}

#[test]
fn a_gate_counts_what_regressed_as_failed() {
    let fields = json!({
        "failure_threshold_percent": 100,
        "stages": [{"percent": 10, "gate": {"min_success_percent": 80, "min_samples": 1}}],
    });
    let waits = |regressed| {
        let mut counts = one_stage(10, regressed);
        counts.stages.push(Tally {
            pending: 5,
            ..Tally::default()
        });
        let campaign = campaign(spec(&fields), CampaignState::InProgress(running(0, 0)));
        plan(at(10), &campaign, &counts).actions
    };
    assert_eq!(waits(2), [Planned::OpenStage(1)]);
    assert!(matches!(waits(3).as_slice(), [Planned::Pause { .. }]));
}

/// Anything that may happen to an update that has completed.
#[derive(Debug, Clone)]
enum Happens {
    Shows(u8, bool),
    Looks(bool, u8),
    Says(u64, bool),
}

fn anything() -> impl Strategy<Value = Happens> {
    prop_oneof![
        (0_u8..3, any::<bool>()).prop_map(|(version, boots)| Happens::Shows(version, boots)),
        (any::<bool>(), 0_u8..3).prop_map(|(online, version)| Happens::Looks(online, version)),
        (0_u64..6, any::<bool>()).prop_map(|(seq, fails)| Happens::Says(seq, fails)),
    ]
}

const VERSIONS: [&str; 3] = ["2.0.0", "1.0.0", "9.9.9"];

proptest! {
    #[test]
    fn an_end_never_changes_and_a_regression_is_said_once(
        seconds in 0_u64..1_000, silent in prop::option::of(1_u64..300), max_restarts in 1_u32..4,
        story in prop::collection::vec((anything(), 0_i64..200), 0..40),
    ) {
        let terms = WatchTerms { seconds, silent_seconds: silent, max_restarts };
        let mut update = completed().watched(terms);
        let (end, mut now, mut marks) = (update.state.clone(), 30, 0);
        for (event, later) in story {
            now += later;
            let before = update.clone();
            update = match event {
                Happens::Shows(version, restarted) => {
                    let running = VERSIONS[usize::from(version)];
                    let sight = Sight { running, restarted, nonce: None, at: at(now) };
                    before.clone().observe_afterwards(&sight).unwrap_or(update)
                }
                Happens::Looks(online, version) => {
                    let running = Some(VERSIONS[usize::from(version)]);
                    let look = Look { now: at(now), last_seen: Some(at(now - later)), online, running };
                    before.clone().look_afterwards(&look).unwrap_or(update)
                }
                Happens::Says(seq, true) => update.report(&fails(seq, Retry::Now), at(now), LEASE).into_update(),
                Happens::Says(seq, false) => {
                    update.report(&says(seq, Reported::Completed), at(now), LEASE).into_update()
                }
            };
            prop_assert_eq!(&update.state, &end);
            prop_assert!(update.last_seq >= before.last_seq);
            if before.regression().is_some() || before.aftermath == Aftermath::Unwatched {
                prop_assert_eq!(&update, &before, "nobody looks any more");
            }
            marks += u32::from(before.regression().is_none() && update.regression().is_some());
            if let Some(watch) = update.watch() {
                prop_assert!(watch.look_at <= watch.until && watch.restarts_left > 0);
            }
        }
        prop_assert!(marks <= 1);
        // Time alone ends every watch.
        for _ in 0..20 {
            let Some(watch) = update.watch() else { break };
            let look = Look { now: watch.look_at, last_seen: None, online: false, running: None };
            update = update.look_afterwards(&look).unwrap();
        }
        prop_assert_eq!(update.watch(), None);
    }
}
