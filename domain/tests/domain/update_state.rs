//! Each transition of an update, and each refusal.

use device_ota_domain::Update;
use device_ota_domain::campaign::Group;
use device_ota_domain::update::{
    Action, Failure, Outcome, Phase, Report, Reported, Retry, UpdateState,
};

use crate::sample::{
    LEASE, at, cancelled, changed, completed, due, failed, fails, failure, heard, in_phase,
    offered, pending, says, staged, terms, unheard,
};

fn ignored(update: Update, report: &Report, reason: &str) {
    let before = update.clone();
    match update.report(report, at(50), LEASE) {
        Outcome::Ignored(update, why) => assert_eq!((*update, why), (before, reason)),
        Outcome::Changed(update) => panic!("went to {}", update.status()),
    }
}

#[test]
fn an_offer_takes_a_slot_and_a_new_attempt() {
    let update = offered();
    assert_eq!(
        (update.attempt, update.last_seq, update.group()),
        (1, 0, Group::InFlight)
    );
    assert_eq!(update.from_version.as_deref(), Some("1.0.0"));
    assert_eq!(update.started_at, Some(at(10)));
    assert_eq!(
        update.state,
        UpdateState::InFlight {
            phase: Phase::Offered,
            since: at(10),
            lease_until: at(130),
            deadline: at(3_610),
            part_until: None,
            cancel_requested: false,
            hold: false,
        }
    );
    assert_eq!(update.status(), "offered");
}

#[test]
fn a_second_offer_keeps_the_first_start_and_forgets_the_progress() {
    let mut waits = in_phase(Phase::Downloading).expire(&unheard(200)).unwrap();
    waits.progress.percent = 40.0;
    let again = waits.offer(&terms(at(300))).unwrap();
    assert_eq!(
        (again.attempt, again.last_seq, again.progress.percent),
        (2, 0, 0.0)
    );
    assert_eq!(again.started_at, Some(at(10)));
}

#[test]
fn a_prolonged_lease_is_no_new_offer() {
    let prolonged = offered().expire(&heard(200)).unwrap();
    let UpdateState::InFlight { lease_until, .. } = prolonged.state else {
        panic!("{prolonged:?}")
    };
    assert_eq!(lease_until, at(320));
    // From then on it is unanswered.
    assert!(prolonged.is_unanswered());
    assert_eq!(prolonged.updated_at, at(10));
}

#[test]
fn only_what_waits_is_offered() {
    for update in [offered(), completed(), failed(), cancelled()] {
        assert_eq!(update.offer(&terms(at(60))), None);
    }
}

#[test]
fn phases_only_advance() {
    for (i, from) in Phase::ALL.into_iter().enumerate().skip(1) {
        for (j, to) in Phase::ALL.into_iter().enumerate() {
            let report = Report {
                percent: Some(12.5),
                ..says(2, Reported::In(to))
            };
            if j < i {
                ignored(in_phase(from), &report, "backwards");
                continue;
            }
            let update = changed(in_phase(from), &report);
            assert_eq!((update.status(), update.last_seq), (to.name(), 2));
            assert!((update.progress.percent - 12.5).abs() < f64::EPSILON);
            let UpdateState::InFlight {
                since,
                lease_until,
                deadline,
                ..
            } = update.state
            else {
                panic!("no slot")
            };
            assert_eq!(
                since,
                if i == j { at(20) } else { at(50) },
                "a phase begins once"
            );
            assert_eq!(
                (lease_until, deadline),
                (at(170), at(3_610)),
                "a report renews the lease, never the deadline"
            );
        }
    }
}

#[test]
fn a_new_phase_starts_from_nothing_but_keeps_the_bytes() {
    let report = Report {
        percent: Some(80.0),
        bytes_done: Some(8),
        speed_bps: Some(3),
        ..says(2, Reported::In(Phase::Downloading))
    };
    let update = changed(in_phase(Phase::Accepted), &report);
    assert_eq!(
        (
            update.progress.bytes_done,
            update.progress.bytes_total,
            update.progress.speed_bps
        ),
        (8, 10, 3)
    );
    let update = changed(update, &says(3, Reported::In(Phase::Verifying)));
    assert_eq!(
        (update.progress.percent, update.progress.bytes_done),
        (0.0, 8)
    );
}

#[test]
fn repeats_and_other_attempts_change_nothing() {
    ignored(
        in_phase(Phase::Downloading),
        &says(1, Reported::In(Phase::Verifying)),
        "repeated",
    );
    ignored(
        in_phase(Phase::Downloading),
        &says(0, Reported::Cancelled),
        "repeated",
    );
    for attempt in [0, 2] {
        ignored(
            offered(),
            &Report {
                attempt,
                ..says(9, Reported::Cancelled)
            },
            "other_attempt",
        );
    }
    ignored(
        pending(),
        &Report {
            attempt: 0,
            ..says(9, Reported::Cancelled)
        },
        "other_attempt",
    );
}

#[test]
fn nobody_withdraws_an_update_but_who_was_asked_to() {
    for (phase, seq) in [(Phase::Accepted, 2), (Phase::Rebooting, 2)] {
        let stopped = changed(in_phase(phase), &says(seq, Reported::Cancelled));
        assert_eq!(failure(&stopped), ("cancelled_unasked", Group::Failed));
    }
    let silent = in_phase(Phase::Downloading)
        .expire(&unheard(1_000))
        .unwrap();
    assert_eq!(silent.group(), Group::Pending, "it has lost its slot");
    for waits in [silent, staged()] {
        let stopped = changed(waits, &says(2, Reported::Cancelled));
        assert_eq!(failure(&stopped), ("cancelled_unasked", Group::Failed));
    }
    let mut back = in_phase(Phase::Accepted);
    back.action = Action::Rollback;
    let stopped = changed(back, &says(2, Reported::Cancelled));
    assert_eq!(stopped.group(), Group::Failed, "nor a rollback");
}

#[test]
fn what_has_ended_stays_but_for_a_success_after_all() {
    let truth = Report {
        version: Some("2.0.0".into()),
        ..says(99, Reported::Completed)
    };
    let lie = Report {
        version: Some("1.0.0".into()),
        ..truth.clone()
    };
    ignored(completed(), &truth, "ended");
    let asked = in_phase(Phase::Downloading).cancel(at(40)).unwrap();
    let stopped = changed(asked, &says(2, Reported::Cancelled));
    ignored(cancelled(), &truth, "ended"); // it was never offered
    for update in [failed(), stopped] {
        ignored(update.clone(), &lie, "ended");
        assert_eq!(changed(update, &truth).group(), Group::Completed);
    }
    for update in [completed(), failed(), cancelled()] {
        assert!(update.is_terminal());
        ignored(update.clone(), &fails(99, Retry::Now), "ended");
        assert_eq!(update.clone().observe_version("1.0.0", at(60)), None);
        assert_eq!(update.clone().expire(&unheard(1_000_000)), None);
        let status = update.status();
        assert_eq!(
            update.cancel(at(60)).unwrap_err().to_string(),
            format!("an update that is {status} cannot be cancelled")
        );
    }
}

#[test]
fn completed_needs_the_offered_version() {
    let update = completed();
    assert_eq!(
        (update.state.clone(), update.group()),
        (UpdateState::Completed { at: at(30) }, Group::Completed)
    );
    assert!((update.progress.percent - 100.0).abs() < f64::EPSILON);
    for version in [None, Some("1.0.0".to_owned())] {
        let update = changed(
            in_phase(Phase::Rebooting),
            &Report {
                version,
                ..says(2, Reported::Completed)
            },
        );
        assert_eq!(
            failure(&update),
            ("version_mismatch", Group::Failed),
            "a lie is never tried again"
        );
    }
}

#[test]
fn a_retry_makes_no_lie_true() {
    let lie = |attempt, seq| Report {
        attempt,
        version: Some("1.0.0".into()),
        ..says(seq, Reported::Completed)
    };
    // While the retry waits, neither of its own kind nor by an admin does the lie about the attempt before count.
    let waits = changed(in_phase(Phase::Installing), &fails(2, Retry::Now));
    let by_admin = failed().retry(at(40), None).unwrap();
    for update in [waits.clone(), by_admin.clone()] {
        ignored(update, &lie(1, 3), "attempt_over");
    }
    for update in [waits, by_admin] {
        let again = update.offer(&terms(at(60))).unwrap();
        assert!((again.attempt, again.retries) == (2, 1));
        ignored(again.clone(), &lie(1, 3), "other_attempt");
        let lied = changed(again.clone(), &lie(2, 1));
        assert_eq!(failure(&lied), ("version_mismatch", Group::Failed));
        // And after the lie was found out, and tried again once more.
        let again = lied.retry(at(70), None).unwrap();
        ignored(again, &lie(2, 2), "attempt_over");
    }
}

#[test]
fn completed_is_taken_from_a_device_that_lost_its_slot() {
    let update = in_phase(Phase::Rebooting).expire(&unheard(200)).unwrap();
    assert_eq!(update.group(), Group::Pending);
    ignored(
        update.clone(),
        &says(2, Reported::In(Phase::Rebooting)),
        "no_slot",
    );
    let update = changed(
        update,
        &Report {
            version: Some("2.0.0".into()),
            ..says(3, Reported::Completed)
        },
    );
    assert_eq!(update.group(), Group::Completed);
}

#[test]
fn a_failure_is_tried_again_as_its_class_says() {
    let never = changed(in_phase(Phase::Installing), &fails(2, Retry::Never));
    assert_eq!(
        (failure(&never), never.retries),
        (("install_failed", Group::Failed), 0)
    );

    let now = changed(in_phase(Phase::Installing), &fails(2, Retry::Now));
    assert_eq!(
        (failure(&now), due(&now), now.retries),
        (("install_failed", Group::Pending), 50, 1)
    );

    let later = changed(in_phase(Phase::Installing), &fails(2, Retry::Backoff));
    assert_eq!(due(&later), 50 + 31, "30 s, and the device's own spread");

    let spent = Update {
        retries: 2,
        ..in_phase(Phase::Installing)
    };
    assert_eq!(
        failure(&changed(spent, &fails(2, Retry::Now))),
        ("install_failed", Group::Failed)
    );
}

/// Whoever could not leave what is taken back tries again; what is refused by the offer itself is refused again.
#[test]
fn a_rollback_that_was_tried_and_failed_is_tried_again() {
    let back = |phase| Update {
        action: Action::Rollback,
        ..in_phase(phase)
    };
    let fails_by = |code: &str| {
        let failure = Failure::new(code, "", Retry::Never);
        changed(back(Phase::Installing), &says(2, Reported::Failed(failure)))
    };
    for code in [
        "install_failed",
        "boot_failed",
        "health_check_failed",
        "version_mismatch",
    ] {
        let again = fails_by(code);
        assert_eq!(
            (failure(&again), again.retries),
            ((code, Group::Pending), 1)
        );
        assert_eq!(due(&again), 50 + 31, "after a pause");
    }
    let reverted = back(Phase::Rebooting).observe_version("1.0.0", at(40));
    assert_eq!(failure(&reverted.unwrap()), ("reverted", Group::Pending));
    let spent = Update {
        retries: 2,
        ..back(Phase::Installing)
    };
    let told = changed(spent, &fails(2, Retry::Never));
    assert_eq!(failure(&told), ("install_failed", Group::Failed));
    for code in [
        "signature_invalid",
        "wrong_target",
        "downgrade_refused",
        "unsupported",
    ] {
        assert_eq!(failure(&fails_by(code)), (code, Group::Failed));
    }
}

#[test]
fn an_attempt_fails_once_however_often_the_device_says_so() {
    let waits = changed(in_phase(Phase::Installing), &fails(2, Retry::Backoff));
    ignored(waits.clone(), &fails(3, Retry::Backoff), "attempt_over");
    ignored(waits.clone(), &says(3, Reported::Cancelled), "attempt_over");
    ignored(waits.clone(), &says(3, Reported::Completed), "attempt_over");
    let came_good = Report {
        version: Some("2.0.0".into()),
        ..says(3, Reported::Completed)
    };
    assert_eq!(changed(waits, &came_good).group(), Group::Completed);
}

#[test]
fn a_deferral_waits_as_long_as_the_device_says_within_a_week() {
    let defers = |retry_after_seconds| {
        let failure = Failure::new("low_battery", "", Retry::Backoff);
        changed(
            in_phase(Phase::Accepted),
            &says(
                2,
                Reported::Deferred {
                    failure,
                    retry_after_seconds,
                },
            ),
        )
    };
    let within = |update: &Update, least: i64, most: i64| {
        let pause = due(update) - 50;
        assert!((least..=most).contains(&pause), "{pause}");
    };
    within(&defers(Some(60)), 60, 75);
    within(&defers(None), 900, 1_125);
    let week = 7 * 24 * 3_600;
    within(&defers(Some(u64::MAX)), week, week + 600);
    let mut again = defers(None);
    for (least, most) in [
        (1_800, 2_250),
        (3_600, 4_500),
        (7_200, 9_000),
        (14_400, 18_000),
        (14_400, 18_000),
    ] {
        again = again.offer(&terms(at(50))).unwrap();
        let failure = Failure::new("user_deferred", "", Retry::Backoff);
        let said = Reported::Deferred {
            failure,
            retry_after_seconds: None,
        };
        let report = Report {
            attempt: again.attempt,
            ..says(1, said)
        };
        again = again.report(&report, at(50), LEASE).into_update();
        within(&again, least, most);
        assert_eq!(again.retries, 0, "it costs no retry");
    }
    assert_eq!(
        (failure(&defers(None)), defers(None).retries),
        (("low_battery", Group::Pending), 0)
    );
}

#[test]
fn the_old_version_after_a_reboot_is_a_reversion() {
    let update = in_phase(Phase::Rebooting)
        .observe_version("1.0.0", at(60))
        .unwrap();
    assert_eq!(
        (failure(&update), update.updated_at),
        (("reverted", Group::Failed), at(60))
    );
    assert_eq!(
        in_phase(Phase::Rebooting).observe_version("2.0.0", at(60)),
        None,
        "its own word follows"
    );
    assert_eq!(
        in_phase(Phase::Installing).observe_version("1.0.0", at(60)),
        None,
        "it has not restarted yet"
    );
    assert_eq!(pending().observe_version("1.0.0", at(60)), None);
}

#[test]
fn the_names_of_states_and_phases_stand() {
    let statuses = [
        pending(),
        in_phase(Phase::Staged),
        completed(),
        failed(),
        cancelled(),
    ]
    .map(|u| u.status());
    assert_eq!(
        statuses,
        ["scheduled", "staged", "completed", "failed", "cancelled"]
    );
    let names = Phase::ALL.map(Phase::name);
    assert_eq!(
        names,
        [
            "offered",
            "accepted",
            "downloading",
            "verifying",
            "installing",
            "staged",
            "rebooting"
        ]
    );
    assert!(
        Phase::ALL
            .into_iter()
            .all(|p| Phase::from_name(p.name()) == Some(p))
    );
    assert_eq!(Phase::from_name("scheduled"), None);
}

#[test]
fn an_attempt_downloads_the_image_at_most_once_whatever_its_device_says() {
    let said = |seq, bytes| Report {
        bytes_done: Some(bytes),
        ..says(seq, Reported::In(Phase::Downloading))
    };
    let mut update = changed(in_phase(Phase::Accepted), &said(2, 6));
    assert_eq!(update.progress.downloaded(), 6);
    update = changed(update, &said(3, 2));
    assert_eq!(
        update.progress.downloaded(),
        6,
        "what is downloaded stays so"
    );
    update = changed(update, &said(4, u64::MAX));
    assert_eq!(update.progress.downloaded(), 10, "the image has ten bytes");
    update = changed(update, &fails(5, Retry::Now));
    let update = update.offer(&terms(at(60))).unwrap();
    let progress = update.progress;
    assert_eq!(
        (
            progress.bytes_done,
            progress.bytes_earlier,
            progress.bytes_total
        ),
        (0, 10, 10)
    );
}

#[test]
fn an_attempt_that_goes_on_where_the_last_one_stopped_adds_the_rest_alone() {
    let said = |seq, attempt, bytes| Report {
        attempt,
        bytes_done: Some(bytes),
        ..says(seq, Reported::In(Phase::Downloading))
    };
    let mut update = changed(in_phase(Phase::Accepted), &said(2, 1, 6));
    update = changed(update, &fails(3, Retry::Now));
    update = update.offer(&terms(at(60))).unwrap();
    let attempt = update.attempt;
    assert_eq!(
        update.progress.downloaded(),
        6,
        "what there is stays counted"
    );
    update = changed(update, &said(1, attempt, 7));
    assert_eq!(update.progress.downloaded(), 7);
    update = changed(update, &said(2, attempt, 10));
    assert_eq!(update.progress.downloaded(), 10);
}
