//! What time and admins do to an update: leases, deadlines, loss, cancel, retry.

use device_ota_domain::Update;
use device_ota_domain::campaign::Group;
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::update::{
    Action, Expiry, Failure, OfferTerms, Phase, Report, Reported, Retry, Times, UpdateState,
};

use crate::sample::{
    LEASE, at, cancelled, changed, completed, due, failed, fails, failure, heard, in_phase,
    offered, pending, says, staged, terms, unheard,
};

#[test]
fn silence_loses_the_slot_and_then_the_device() {
    assert_eq!(
        in_phase(Phase::Downloading).expire(&unheard(139)),
        None,
        "the lease still runs"
    );
    let waits = in_phase(Phase::Downloading).expire(&unheard(140)).unwrap();
    assert_eq!(
        waits.state,
        UpdateState::Pending {
            due_at: at(140),
            lost_at: Some(at(3_610)),
            last_failure: None
        }
    );
    assert_eq!(waits.clone().expire(&unheard(3_609)), None);
    let lost = waits.expire(&unheard(3_610)).unwrap();
    assert_eq!(
        (failure(&lost), lost.retries),
        (("device_lost", Group::Failed), 0)
    );
}

#[test]
fn a_device_that_came_back_and_waits_for_a_slot_is_not_lost() {
    let waits = in_phase(Phase::Downloading).expire(&unheard(140)).unwrap();
    let waits = waits.expire(&heard(3_610)).unwrap();
    assert_eq!(
        waits.state,
        UpdateState::Pending {
            due_at: at(140),
            lost_at: Some(at(7_210)),
            last_failure: None
        }
    );
    let lost = waits.expire(&unheard(7_210)).unwrap();
    assert_eq!(
        failure(&lost),
        ("device_lost", Group::Failed),
        "until it falls silent once more"
    );
}

#[test]
fn an_offer_that_nobody_took_waits_for_ever() {
    let waits = offered().expire(&unheard(140)).unwrap();
    assert_eq!(
        waits.state,
        UpdateState::Pending {
            due_at: at(140),
            lost_at: None,
            last_failure: None
        }
    );
    assert_eq!(waits.expire(&unheard(1_000_000)), None);
    let hasty = Update {
        timeout_seconds: 1,
        ..pending()
    }
    .offer(&terms(at(10)))
    .unwrap();
    let never_heard = Expiry {
        now: at(12),
        last_seen: None,
        lease: LEASE,
        kept_waiting: false,
    };
    let waits = hasty.expire(&never_heard).unwrap();
    assert_eq!(
        waits.group(),
        Group::Pending,
        "who never took it is not lost"
    );
}

#[test]
fn a_device_that_is_heard_keeps_its_slot_until_the_deadline() {
    let update = in_phase(Phase::Downloading).expire(&heard(140)).unwrap();
    let UpdateState::InFlight {
        lease_until,
        deadline,
        ..
    } = update.state
    else {
        panic!("no slot")
    };
    assert_eq!((lease_until, deadline), (at(260), at(3_610)));
    let late = update.expire(&heard(3_610)).unwrap();
    assert_eq!(
        (failure(&late), late.retries),
        (("timeout", Group::Pending), 1)
    );
    let again = due(&late) + 3_600;
    assert_eq!(late.clone().expire(&unheard(again - 1)), None);
    assert_eq!(
        failure(&late.expire(&unheard(again)).unwrap()),
        ("device_lost", Group::Failed)
    );
    let gone = in_phase(Phase::Downloading)
        .expire(&unheard(3_610))
        .unwrap();
    assert_eq!(failure(&gone), ("device_lost", Group::Failed));
}

#[test]
fn cancel_is_at_once_for_what_waits_and_a_request_for_what_runs() {
    assert_eq!(
        cancelled().state,
        UpdateState::Cancelled {
            at: at(5),
            because: None
        }
    );
    for phase in Phase::ALL.into_iter().skip(1) {
        let cancel = in_phase(phase).cancel(at(40));
        if matches!(phase, Phase::Installing | Phase::Rebooting) {
            let text = format!("an update that is {} cannot be cancelled", phase.name());
            assert_eq!(cancel.unwrap_err().to_string(), text);
            continue;
        }
        let asked = cancel.unwrap();
        assert!(matches!(
            asked.state,
            UpdateState::InFlight {
                cancel_requested: true,
                ..
            }
        ));
        assert_eq!(
            asked.clone().cancel(at(41)).unwrap().group(),
            Group::InFlight,
            "asking twice is asking once"
        );
        assert_eq!(
            changed(asked, &says(2, Reported::Cancelled)).group(),
            Group::Cancelled
        );
    }
}

#[test]
fn nothing_starts_again_after_a_cancel_was_asked_for() {
    let asked = || in_phase(Phase::Downloading).cancel(at(40)).unwrap();
    assert_eq!(
        changed(asked(), &fails(2, Retry::Now)).group(),
        Group::Failed
    );
    let failure = Failure::new("user_deferred", "", Retry::Backoff);
    let defers = says(
        2,
        Reported::Deferred {
            failure,
            retry_after_seconds: None,
        },
    );
    assert_eq!(changed(asked(), &defers).group(), Group::Cancelled);
    assert_eq!(
        asked().expire(&unheard(140)).unwrap().group(),
        Group::Cancelled
    );
    // It is there, and says nothing of what it never took.
    let never_took_it = in_phase(Phase::Offered).cancel(at(40)).unwrap();
    assert_eq!(
        never_took_it.expire(&heard(140)).unwrap().group(),
        Group::Cancelled
    );
    assert_eq!(
        asked().expire(&heard(3_610)).unwrap().group(),
        Group::Failed
    );
    let done = Report {
        version: Some("2.0.0".into()),
        ..says(2, Reported::Completed)
    };
    assert_eq!(
        changed(asked(), &done).group(),
        Group::Completed,
        "the device was faster"
    );
}

#[test]
fn an_admin_retries_what_failed_and_nothing_else() {
    let again = Update {
        retries: 2,
        ..failed()
    }
    .retry(at(60), None)
    .unwrap();
    assert_eq!((due(&again), again.retries, again.max_retries), (60, 3, 3));
    assert_eq!(failure(&again), ("install_failed", Group::Pending));
    assert_eq!(again.offer(&terms(at(61))).unwrap().attempt, 2);
    for update in [pending(), offered(), completed(), cancelled()] {
        let text = format!(
            "an update that is {} cannot be retried; only a failed one can",
            update.status()
        );
        assert_eq!(update.retry(at(60), None).unwrap_err().to_string(), text);
    }
}

#[test]
fn a_rollback_ends_when_its_time_is_over_whatever_its_device_does() {
    let until = |update: Update| Update {
        action: Action::Rollback,
        give_up_at: Some(at(100)),
        ..update
    };
    let message = |update: &Update| match &update.state {
        UpdateState::Failed { failure, .. } => failure.message.clone(),
        other => panic!("{other:?}"),
    };
    let waits_again = changed(in_phase(Phase::Installing), &fails(2, Retry::Now));
    for (update, says) in [
        (pending(), "it was never offered"),
        (
            in_phase(Phase::Rebooting),
            "the device was last known as rebooting",
        ),
        (waits_again, "its last attempt ended as install_failed"),
    ] {
        let update = until(update);
        assert_eq!(update.clone().expire(&heard(99)), None);
        let ended = update.expire(&heard(100)).unwrap();
        assert_eq!(failure(&ended), ("timeout", Group::Failed));
        assert_eq!(message(&ended), format!("not done within its time: {says}"));
    }
    let asked = in_phase(Phase::Downloading).cancel(at(40)).unwrap();
    let ended = until(asked).expire(&heard(100)).unwrap();
    assert_eq!(ended.group(), Group::Cancelled);

    // It is not forgotten: it may succeed after all, and an admin may give it more time.
    let ended = until(in_phase(Phase::Rebooting))
        .expire(&heard(100))
        .unwrap();
    assert_eq!(ended.clone().expire(&heard(1_000)), None);
    let done = Report {
        version: Some("2.0.0".into()),
        ..says(2, Reported::Completed)
    };
    assert_eq!(changed(ended.clone(), &done).group(), Group::Completed);
    let again = ended.retry(at(200), Some(at(300))).unwrap();
    assert_eq!(again.clone().expire(&heard(299)), None);
    assert_eq!(
        failure(&again.expire(&heard(300)).unwrap()),
        ("timeout", Group::Failed)
    );
}

/// The same after a report of this phase.
fn changed_at(update: Update, seq: u64, phase: Phase, second: i64) -> Update {
    let report = says(seq, Reported::In(phase));
    update.report(&report, at(second), LEASE).into_update()
}

fn timed(update: Update) -> Update {
    Update {
        times: Times {
            download_seconds: Some(600),
            install_seconds: Some(300),
            give_up_after_seconds: Some(7_200),
        },
        ..update
    }
}

fn message(update: &Update) -> &str {
    match &update.state {
        UpdateState::Pending {
            last_failure: Some(failure),
            ..
        }
        | UpdateState::Failed { failure, .. } => &failure.message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_part_of_an_attempt_that_takes_too_long_ends_it_and_is_named() {
    let accepted = changed_at(timed(offered()), 1, Phase::Accepted, 20);
    let downloading = changed_at(accepted.clone(), 2, Phase::Downloading, 100);
    assert!(
        downloading
            .clone()
            .expire(&heard(619))
            .is_none_or(|update| update.group() == Group::InFlight)
    );
    let late = downloading.clone().expire(&heard(620)).unwrap();
    assert_eq!(
        (failure(&late), late.retries),
        (("timeout", Group::Pending), 1)
    );
    assert_eq!(
        message(&late),
        "the download took longer than 600 s; the device was last known as downloading"
    );
    // The time of the installation is its own, from its first phase on.
    let verifying = changed_at(downloading, 3, Phase::Verifying, 600);
    let rebooting = changed_at(verifying, 4, Phase::Rebooting, 850);
    assert!(
        rebooting
            .clone()
            .expire(&heard(899))
            .is_none_or(|update| update.group() == Group::InFlight)
    );
    let late = rebooting.clone().expire(&heard(900)).unwrap();
    assert_eq!(
        message(&late),
        "the installation took longer than 300 s; the device was last known as rebooting"
    );
    // Who is not there has lost the slot, and is waited for until the attempt would have ended.
    let gone = rebooting.expire(&unheard(900)).unwrap();
    let UpdateState::Pending { lost_at, .. } = gone.state else {
        panic!("{:?}", gone.state)
    };
    assert_eq!(lost_at, Some(at(3_610)));
}

#[test]
fn what_is_held_has_no_part_and_its_activation_has_one_of_its_own() {
    let terms = OfferTerms {
        hold: true,
        ..terms(at(10))
    };
    let held = timed(pending()).offer(&terms).unwrap();
    let held = changed_at(held, 1, Phase::Installing, 20);
    let held = changed_at(held, 2, Phase::Staged, 100);
    assert_eq!(held.group(), Group::Staged);
    let told = held.activate(at(5_000), LEASE).unwrap();
    assert_eq!(told.clone().expire(&heard(5_001)), None);
    let flips = changed_at(told, 3, Phase::Rebooting, 5_010);
    assert_eq!(
        failure(&flips.expire(&heard(5_310)).unwrap()),
        ("timeout", Group::Pending)
    );
}

#[test]
fn an_update_that_its_device_never_begins_is_let_go_and_has_not_failed() {
    let until = |update: Update| Update {
        give_up_at: Some(at(7_200)),
        ..timed(update)
    };
    let unreached = offered().expire(&unheard(140)).unwrap();
    for update in [pending(), offered(), unreached, staged()] {
        let update = until(update);
        assert!(
            update
                .clone()
                .expire(&unheard(7_199))
                .is_none_or(|update| !update.is_terminal())
        );
        let ended = update.expire(&unheard(7_200)).unwrap();
        let because = Some(Exclusion::OutOfTime);
        let at = at(7_200);
        assert_eq!(ended.state, UpdateState::Cancelled { at, because });
        // Its campaign means it as before, and does not take it up again.
        assert_eq!(ended.clone().rejoin(at), None);
        let done = Report {
            version: Some("2.0.0".into()),
            ..says(2, Reported::Completed)
        };
        if ended.attempt == 1 {
            assert_eq!(changed(ended, &done).group(), Group::Completed, "after all");
        }
    }
    // Whoever began and got no further has failed.
    let again = changed(in_phase(Phase::Installing), &fails(2, Retry::Now));
    for update in [in_phase(Phase::Downloading), again] {
        let ended = until(update).expire(&heard(7_200)).unwrap();
        assert_eq!(failure(&ended), ("timeout", Group::Failed));
    }
}

#[test]
fn an_update_that_is_kept_waiting_has_its_whole_time_anew() {
    let update = Update {
        give_up_at: Some(at(7_200)),
        ..timed(pending())
    };
    let kept = Expiry {
        kept_waiting: true,
        ..unheard(7_200)
    };
    let waits = update.expire(&kept).unwrap();
    assert_eq!(
        (waits.group(), waits.give_up_at),
        (Group::Pending, Some(at(14_400)))
    );
    let at_work = Update {
        give_up_at: Some(at(7_200)),
        ..timed(in_phase(Phase::Downloading))
    };
    assert_eq!(
        failure(&at_work.expire(&kept).unwrap()),
        ("timeout", Group::Failed)
    );
}

#[test]
fn who_was_offered_something_at_the_last_moment_has_the_time_of_the_attempt() {
    let update = Update {
        give_up_at: Some(at(7_200)),
        timeout_seconds: 3_600,
        ..timed(pending())
    };
    let offered = update.offer(&terms(at(7_199))).unwrap();
    assert_eq!(offered.give_up_at, Some(at(7_199 + 3_600)));
    assert_eq!(offered.expire(&heard(7_201)), None);
}

#[test]
fn the_wait_for_a_first_slot_is_not_the_rollbacks_own_time() {
    let until = |update: Update| Update {
        action: Action::Rollback,
        give_up_at: Some(at(100)),
        ..update
    };
    let queued = Expiry {
        kept_waiting: true,
        ..heard(100)
    };
    let waits = until(pending()).expire(&queued).unwrap();
    assert_eq!(waits.group(), Group::Pending);
    assert_eq!(waits.give_up_at, Some(at(100 + 600)));
    assert_eq!(waits.clone().expire(&heard(699)), None);
    let ended = waits.expire(&heard(700)).unwrap();
    assert_eq!(failure(&ended), ("timeout", Group::Failed));
    let was_offered = until(in_phase(Phase::Installing)).expire(&queued).unwrap();
    assert_eq!(failure(&was_offered), ("timeout", Group::Failed));
}

#[test]
fn a_device_that_puts_it_off_for_ever_has_failed() {
    let (mut update, mut now) = (pending(), at(0));
    let mut pauses = Vec::new();
    for attempt in 1..=100 {
        update = update.offer(&terms(now)).unwrap();
        let failure = Failure::new("user_deferred", "", Retry::Backoff);
        let said = Reported::Deferred {
            failure,
            retry_after_seconds: Some(1),
        };
        let report = Report {
            attempt,
            ..says(1, said)
        };
        update = update.report(&report, now, LEASE).into_update();
        if let UpdateState::Pending { due_at, .. } = update.state {
            pauses.push(due_at.duration_since(now).as_secs());
            now = due_at;
        }
    }
    assert_eq!(failure(&update), ("deferred_too_often", Group::Failed));
    assert_eq!((update.retries, pauses.len()), (0, 99));
    assert!((30..=37).contains(&pauses[0]) && pauses[98] >= 4 * 3_600);
    assert!(
        now > at(14 * 24 * 3_600),
        "two weeks are enough for anybody"
    );
    // An admin has it offered once more.
    let again = update.retry(now, None).unwrap();
    assert_eq!(again.group(), Group::Pending);
}
