//! Each transition of a campaign, and each refusal.

use device_ota_domain::campaign::{
    Accepted, CampaignState, Counts, FailureKind, Failures, Running, Tally, TransitionError,
};
use device_ota_domain::rollback::RollbackTrigger;

use crate::sample::at;

const RUNNING: fn(u16) -> Running = |open_stage| Running {
    started_at: at(1),
    open_stage,
    stage_opened_at: at(2),
    soak_since: None,
    accepted: ACCEPTED,
    up_to_stage: None,
};

const ACCEPTED: Accepted = Accepted {
    completed: 0,
    failed: 0,
    rejected: 0,
    timed_out: 0,
    stage: None,
    at: None,
};

fn all() -> [CampaignState; 7] {
    use CampaignState::{
        Cancelled, Completed, Created, InProgress, Paused, RolledBack, RollingBack,
    };
    let trigger = RollbackTrigger::Manual;
    [
        Created,
        InProgress(RUNNING(1)),
        Paused {
            running: RUNNING(1),
            paused_at: at(3),
            reason: "lunch".into(),
        },
        RollingBack {
            started_at: Some(at(1)),
            rollback_started_at: at(4),
            trigger,
            reason: "bad".into(),
        },
        RolledBack {
            started_at: Some(at(1)),
            ended_at: at(5),
            trigger,
            reason: "bad".into(),
        },
        Completed {
            started_at: Some(at(1)),
            ended_at: at(6),
            accepted: Accepted::default(),
        },
        Cancelled {
            started_at: Some(at(1)),
            ended_at: at(7),
            reason: None,
        },
    ]
}

/// Applies the transition to every state: those of `allowed` take it, all others refuse it with this text.
fn takes<T>(allowed: &[&str], verb: &str, hint: &str, transition: T) -> Vec<CampaignState>
where
    T: Fn(CampaignState) -> Result<CampaignState, TransitionError>,
{
    let mut next = Vec::new();
    for state in all() {
        let from = state.status();
        match transition(state) {
            Ok(state) if allowed.contains(&from) => next.push(state),
            Ok(state) => panic!("{from} went to {}", state.status()),
            Err(error) => {
                assert!(!allowed.contains(&from), "{from} refused: {error}");
                assert_eq!(
                    error.to_string(),
                    format!("a campaign that is {from} cannot be {verb}{hint}")
                );
            }
        }
    }
    assert_eq!(next.len(), allowed.len());
    next
}

#[test]
fn start() {
    let next = takes(&["created"], "started", "", |s| s.start(at(9), at(11)));
    let begun = Running {
        started_at: at(9),
        open_stage: 0,
        stage_opened_at: at(11),
        soak_since: None,
        accepted: ACCEPTED,
        up_to_stage: None,
    };
    assert_eq!(next, [CampaignState::InProgress(begun)]);
}

#[test]
fn pause_and_resume_come_back_to_the_same_place() {
    let next = takes(&["in_progress"], "paused", "", |s| s.pause(at(9), "lunch"));
    let paused = CampaignState::Paused {
        running: RUNNING(1),
        paused_at: at(9),
        reason: "lunch".into(),
    };
    assert_eq!(next, [paused]);
    let next = takes(&["paused"], "resumed", "; only a paused one can", |s| {
        s.resume(at(9), &counts(1), false)
    });
    let resumed = |stage| {
        CampaignState::InProgress(Running {
            accepted: Accepted {
                completed: 7,
                failed: 4,
                stage,
                at: Some(at(9)),
                ..ACCEPTED
            },
            ..RUNNING(1)
        })
    };
    assert_eq!(next, [resumed(None)]);
    let over = all()[2].clone().resume(at(9), &counts(0), false).unwrap();
    assert_eq!(over, resumed(Some(1)), "both open stages have ended");
}

#[test]
fn a_failure_that_is_retried_is_no_longer_accepted() {
    let resumed = all()[2].clone().resume(at(9), &counts(1), false).unwrap();
    let accepts = |state: &CampaignState| match state {
        CampaignState::InProgress(running) => running.accepted.failed,
        other => panic!("{other:?}"),
    };
    assert_eq!(accepts(&resumed), 4);
    assert_eq!(
        accepts(&resumed.clone().retried(at(10), FailureKind::Failed)),
        4,
        "failed after the resume"
    );
    assert_eq!(accepts(&resumed.retried(at(9), FailureKind::Rejected)), 3);
}

/// Three stages, two of them with results; so many devices of the second one wait.
fn counts(pending: u64) -> Counts {
    let tally = |completed, failed, pending| Tally {
        completed,
        failed,
        pending,
        ..Tally::default()
    };
    Counts {
        stages: vec![tally(5, 3, 0), tally(2, 1, pending), tally(0, 0, 9)],
        ..Counts::default()
    }
}

#[test]
fn cancel() {
    let next = takes(
        &["created", "in_progress", "paused", "rolling_back"],
        "cancelled",
        "",
        |s| s.cancel(at(9)),
    );
    let cancelled = |started_at| CampaignState::Cancelled {
        started_at,
        ended_at: at(9),
        reason: None,
    };
    let [created, others @ ..] = next.as_slice() else {
        panic!("{next:?}");
    };
    assert_eq!(*created, cancelled(None));
    assert!(others.iter().all(|s| *s == cancelled(Some(at(1)))));
}

#[test]
fn abort_says_why() {
    let hint = "; only one in progress or paused can";
    let next = takes(&["in_progress", "paused"], "aborted", hint, |s| {
        s.abort(at(9), "too many")
    });
    let aborted = CampaignState::Cancelled {
        started_at: Some(at(1)),
        ended_at: at(9),
        reason: Some("too many".into()),
    };
    assert_eq!(next, [aborted.clone(), aborted]);
    // What an earlier version wrote has no reason.
    let older = r#"{"status": "cancelled", "ended_at": "2026-01-01T00:00:00Z"}"#;
    let older: CampaignState = serde_json::from_str(older).unwrap();
    assert!(matches!(
        older,
        CampaignState::Cancelled { reason: None, .. }
    ));
}

#[test]
fn a_retry_takes_the_failure_of_its_kind_back() {
    let mut now = counts(1);
    now.failures = Failures {
        failed: 1,
        rejected: 2,
        timed_out: 1,
    };
    let resumed = all()[2].clone().resume(at(9), &now, false).unwrap();
    let accepts = |state: CampaignState| match state {
        CampaignState::InProgress(Running { accepted: a, .. }) => {
            (a.failed, a.rejected, a.timed_out)
        }
        other => panic!("{other:?}"),
    };
    let retried = |kind| accepts(resumed.clone().retried(at(9), kind));
    assert_eq!(retried(FailureKind::Failed), (3, 2, 1));
    assert_eq!(retried(FailureKind::Rejected), (3, 1, 1));
    assert_eq!(retried(FailureKind::TimedOut), (3, 2, 0));
}

#[test]
fn stages_open_one_after_the_other() {
    let next = takes(&["in_progress"], "opened further", "", |s| {
        s.open_stage(2, at(9))
    });
    let opened = Running {
        started_at: at(1),
        open_stage: 2,
        stage_opened_at: at(9),
        soak_since: None,
        accepted: ACCEPTED,
        up_to_stage: None,
    };
    assert_eq!(next, [CampaignState::InProgress(opened)]);
    for stage in [0, 1, 3, u16::MAX] {
        takes(&[], "opened further", "", |s| s.open_stage(stage, at(9)));
    }
    let last = CampaignState::InProgress(RUNNING(u16::MAX));
    assert!(
        last.open_stage(0, at(9)).is_err(),
        "stages do not wrap around"
    );
}

#[test]
fn roll_back() {
    let allowed = [
        "in_progress",
        "paused",
        "completed",
        "cancelled",
        "rolled_back",
    ];
    let trigger = RollbackTrigger::FailureThreshold;
    let next = takes(&allowed, "rolled back", "", |s| {
        s.roll_back(at(9), trigger, "too many")
    });
    let back = CampaignState::RollingBack {
        started_at: Some(at(1)),
        rollback_started_at: at(9),
        trigger,
        reason: "too many".into(),
    };
    assert!(next.into_iter().all(|s| s == back));
}

#[test]
fn reopen_keeps_why_it_was_rolled_back() {
    let hint = "; only one that was rolled back can";
    let next = takes(&["rolled_back"], "reopened", hint, |s| s.reopen(at(9)));
    let back = CampaignState::RollingBack {
        started_at: Some(at(1)),
        rollback_started_at: at(9),
        trigger: RollbackTrigger::Manual,
        reason: "bad".into(),
    };
    assert_eq!(next, [back]);
}

#[test]
fn finish_ends_a_rollout_and_a_rollback() {
    let takes_it = ["in_progress", "paused", "rolling_back"];
    let next = takes(&takes_it, "finished", "", |s| s.finish(at(9)));
    let back = CampaignState::RolledBack {
        started_at: Some(at(1)),
        ended_at: at(9),
        trigger: RollbackTrigger::Manual,
        reason: "bad".into(),
    };
    let done = CampaignState::Completed {
        started_at: Some(at(1)),
        ended_at: at(9),
        accepted: Accepted::default(),
    };
    assert_eq!(next, [done.clone(), done, back]);
}

#[test]
fn statuses_are_the_ones_of_the_filters_and_survive_storage() {
    assert_eq!(all().map(|s| s.status()), CampaignState::STATUSES);
    for state in all() {
        let json = serde_json::to_value(&state).unwrap();
        assert_eq!(json["status"], state.status());
        assert_eq!(
            serde_json::from_value::<CampaignState>(json).unwrap(),
            state
        );
    }
    let active: Vec<_> = all()
        .iter()
        .filter(|s| s.is_active())
        .map(CampaignState::status)
        .collect();
    assert_eq!(active, ["in_progress", "paused", "rolling_back"]);
}

#[test]
fn when_it_started_is_kept_to_the_end() {
    for state in all() {
        let begun = (state.status() != "created").then(|| at(1));
        assert_eq!(state.started_at(), begun, "{}", state.status());
    }
    // A state that an earlier version wrote.
    let older = r#"{"status": "completed", "ended_at": "2026-01-01T00:00:00Z"}"#;
    let older: CampaignState = serde_json::from_str(older).unwrap();
    assert_eq!(older.started_at(), None);
    let older = r#"{"status": "in_progress", "started_at": "2026-01-01T00:00:00Z", "open_stage": 1,
        "stage_opened_at": "2026-01-01T00:00:00Z"}"#;
    let older: CampaignState = serde_json::from_str(older).unwrap();
    assert!(matches!(older, CampaignState::InProgress(running) if running.accepted == ACCEPTED));
}

#[test]
fn a_promotion_is_how_far_the_stages_may_open() {
    let hint = "; only one in progress can";
    let next = takes(&["in_progress"], "promoted", hint, |s| s.promote(2));
    let promoted = CampaignState::InProgress(Running {
        up_to_stage: Some(2),
        ..RUNNING(1)
    });
    assert_eq!(next, [promoted]);
    let opened = next[0].clone().open_stage(2, at(9)).unwrap();
    let refused = opened.clone().open_stage(3, at(9)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "a campaign that is in_progress cannot be opened further"
    );
    assert!(opened.clone().promote(2).is_ok(), "it is there already");
    let refused = opened.clone().promote(1).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "a campaign that is in_progress cannot be taken back to an earlier ring"
    );
    let further = opened.promote(3).unwrap().open_stage(3, at(10));
    assert!(further.is_ok());
}
