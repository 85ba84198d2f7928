//! What a gate makes of a stage that shows too little.

use device_ota_domain::campaign::{
    Abort, AbortAction, AbortOn, Campaign, CampaignState, Counts, Tally,
};
use device_ota_domain::planner::{Action, plan, resume};
use device_ota_domain::why::Why;
use serde_json::json;

use crate::planner::{failing, running};
use crate::sample::{at, campaign, spec};

/// Ten canaries, then ninety devices that wait.
fn behind(canaries: Tally) -> Counts {
    let rest = Tally {
        pending: 90,
        ..Tally::default()
    };
    Counts {
        stages: vec![canaries, rest],
        ..Counts::default()
    }
}

fn staged(gate: &serde_json::Value, continuous: bool) -> Campaign {
    let stages = json!([{"percent": 10, "gate": gate}]);
    let mut spec = spec(&json!({"stages": stages, "continuous": continuous}));
    spec.failure_threshold_percent = 100.0; // the gate alone decides
    campaign(spec, CampaignState::InProgress(running(0, 0)))
}

fn paused_because(campaign: &Campaign, counts: &Counts) -> String {
    match plan(at(0), campaign, counts).actions.as_slice() {
        [Action::Pause { reason }] => reason.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn canaries_that_were_all_withdrawn_open_nothing() {
    let withdrawn = Tally {
        cancelled: 10,
        ..Tally::default()
    };
    for gate in [
        json!({"min_success_percent": 100, "min_samples": 10}),
        json!({"min_success_percent": 0}),
        json!({"min_success_percent": 90, "manual": true}),
    ] {
        let campaign = staged(&gate, false);
        let reason = paused_because(&campaign, &behind(withdrawn));
        assert!(
            reason.starts_with("stage 10% ended with 0 results of the "),
            "{reason}"
        );
        let mut resumed = campaign.clone();
        resumed.state = campaign.state.pause(at(1), "").unwrap();
        resumed.state = resume(at(2), &resumed, &behind(withdrawn)).unwrap();
        let next = plan(at(3), &resumed, &behind(withdrawn));
        let waits = |why: &Why| matches!(why, Why::GateManual { .. });
        assert!(
            next.actions == [Action::OpenStage(1)] || next.waits.iter().any(waits),
            "a person has opened it: {next:?}"
        );
    }
}

#[test]
fn who_was_withdrawn_is_none_of_the_samples_that_were_asked_for() {
    let gate = json!({"min_success_percent": 100, "min_samples": 10});
    let most = Tally {
        completed: 1,
        cancelled: 9,
        ..Tally::default()
    };
    let reason = paused_because(&staged(&gate, false), &behind(most));
    assert_eq!(
        reason,
        "stage 10% ended with 1 results of the 10 it takes to open the next; a resume opens it all the same"
    );
    // Without a number, the share is of those who are left.
    let share = staged(&json!({"min_success_percent": 100}), false);
    let opens = plan(at(0), &share, &behind(most)).actions;
    assert_eq!(opens, [Action::OpenStage(1)]);
    // Whoever comes later may be a canary.
    let wait = plan(at(0), &staged(&gate, true), &behind(most)).waits;
    assert_eq!(wait, [Why::GateSamples { have: 1, need: 10 }]);
}

#[test]
fn a_continuous_campaign_keeps_its_stages_for_those_who_come() {
    let campaign = staged(&json!({"min_success_percent": 100}), true);
    let nobody = Counts {
        stages: vec![Tally::default(); 2],
        ..Counts::default()
    };
    let empty = plan(at(0), &campaign, &nobody);
    assert_eq!((empty.actions, empty.waits), (vec![], vec![Why::Newcomers]));
    let came = behind(Tally {
        pending: 1,
        ..Tally::default()
    });
    let first = plan(at(0), &campaign, &came);
    assert!(
        matches!(first.actions.as_slice(), [Action::Claim { what, .. }] if what.up_to_stage == 0),
        "{first:?}"
    );
}

#[test]
fn the_soak_counts_from_the_results_and_not_while_it_is_paused() {
    let gate = json!({"min_success_percent": 100, "min_samples": 2, "soak_seconds": 60});
    let campaign = staged(&gate, false);
    let canaries = |completed, failed| {
        behind(Tally {
            completed,
            failed,
            pending: 10 - completed - failed,
            ..Tally::default()
        })
    };
    let state = |state: CampaignState| Campaign {
        state,
        ..campaign.clone()
    };
    // It has been open for long, and shows nothing yet.
    let early = plan(at(500), &campaign, &canaries(1, 0));
    assert_eq!(early.waits, [Why::GateSamples { have: 1, need: 2 }]);
    let begins = plan(at(500), &campaign, &canaries(2, 0)).actions;
    assert_eq!(begins, [Action::BeginSoak]);
    let soaks = state(campaign.state.clone().soak(Some(at(500))).unwrap());
    let waits = |campaign: &Campaign, now| plan(at(now), campaign, &canaries(2, 0)).waits;
    assert_eq!(waits(&soaks, 559), [Why::GateSoak]);
    let over = plan(at(560), &soaks, &canaries(2, 0)).actions;
    assert_eq!(over, [Action::OpenStage(1)]);
    // One of them regresses: it has shown less, and begins anew.
    let worse = plan(at(559), &soaks, &canaries(1, 0)).actions;
    assert_eq!(worse, [Action::EndSoak]);
    // An hour of a pause is no soak.
    let paused = state(soaks.state.clone().pause(at(530), "lunch").unwrap());
    let resumed = resume(at(4_130), &paused, &canaries(2, 0)).unwrap();
    let resumed = state(resumed);
    assert_eq!(waits(&resumed, 4_159), [Why::GateSoak]);
    let over = plan(at(4_160), &resumed, &canaries(2, 0)).actions;
    assert_eq!(over, [Action::OpenStage(1)]);
    // What a resume has accepted was not shown: it soaks anew.
    let bad = behind(Tally {
        completed: 1,
        failed: 9,
        ..Tally::default()
    });
    let accepted = state(resume(at(4_130), &paused, &bad).unwrap());
    let again = plan(at(4_131), &accepted, &bad).actions;
    assert_eq!(again, [Action::BeginSoak]);
    let opened = resumed.state.clone().open_stage(1, at(4_160)).unwrap();
    assert!(
        matches!(opened, CampaignState::InProgress(running) if running.soak_since.is_none()),
        "the next stage has a soak of its own"
    );
}

#[test]
fn a_gate_that_cannot_hold_any_more_is_told_at_once() {
    let gate = json!({"min_success_percent": 90, "min_samples": 10});
    let campaign = staged(&gate, false);
    let canaries = |failed| {
        behind(Tally {
            completed: 2,
            failed,
            in_flight: 1,
            pending: 7 - failed,
            ..Tally::default()
        })
    };
    let waits = plan(at(0), &campaign, &canaries(1)).waits;
    assert_eq!(waits[0], Why::GateSamples { have: 3, need: 10 });
    // Eight of ten would succeed at best.
    let reason = paused_because(&campaign, &canaries(2));
    assert_eq!(
        reason,
        "stage 10% will end with too few successes to open the next; a resume opens it all the same"
    );
    // A resume goes on with the stage, and opens the next.
    let mut resumed = campaign.clone();
    resumed.state = campaign.state.clone().pause(at(1), "").unwrap();
    resumed.state = resume(at(2), &resumed, &canaries(2)).unwrap();
    let next = plan(at(3), &resumed, &canaries(2)).actions;
    assert_eq!(next, [Action::OpenStage(1)]);
    // Where the share can still be reached it accepts failures, and the gate asks for all that it did.
    resumed.state = campaign.state.pause(at(1), "").unwrap();
    resumed.state = resume(at(2), &resumed, &canaries(1)).unwrap();
    let waits = plan(at(3), &resumed, &canaries(1)).waits;
    assert_eq!(waits[0], Why::GateSamples { have: 3, need: 10 });
}

#[test]
fn a_pause_keeps_offers_back_and_no_failures() {
    let mut campaign = staged(&json!({"min_success_percent": 50}), false);
    campaign.spec.failure_threshold_percent = 10.0;
    campaign.state = campaign.state.pause(at(1), "by an admin").unwrap();
    let counts = failing(behind(Tally {
        completed: 1,
        failed: 9,
        ..Tally::default()
    }));
    let taken_back = plan(at(2), &campaign, &counts).actions;
    assert!(
        matches!(taken_back.as_slice(), [Action::RollBack { .. }]),
        "{taken_back:?}"
    );
    // What a criterion would only pause is paused already.
    campaign.spec.auto_rollback = false;
    let waits = plan(at(2), &campaign, &counts);
    assert_eq!((waits.actions, waits.waits), (vec![], vec![Why::Paused]));
    campaign.spec.abort = vec![Abort {
        on: AbortOn::Any,
        percent: 50.0,
        min_samples: 1,
        action: AbortAction::Cancel,
    }];
    let cancelled = plan(at(2), &campaign, &counts).actions;
    let [Action::Abort { reason }] = cancelled.as_slice() else {
        panic!("{cancelled:?}");
    };
    let ended = campaign.state.abort(at(2), reason.as_str()).unwrap();
    assert_eq!(ended.status(), "cancelled");
}
