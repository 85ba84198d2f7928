//! How devices do by their heartbeats, and the criteria that compare them.

use std::collections::BTreeMap;

use device_ota_domain::campaign::{
    AbortAction, Accepted, Beat, CampaignState, Compare, Counts, Criterion, Increase, Metric,
    Reading, Running, Sides, Tally, read_vitals,
};
use device_ota_domain::planner::{Action, plan};
use proptest::prelude::*;
use serde_json::json;

use crate::planner::running;
use crate::sample::{at, campaign, draft, spec};

/// A heartbeat in that minute.
fn beat(minute: i64) -> Beat {
    Beat {
        at: at(minute * 60),
        errors: 0,
        uptime_seconds: None,
        boot_id: None,
        battery_percent: None,
        metrics: BTreeMap::new(),
    }
}

fn close(seen: Option<f64>, expected: f64) {
    assert!(
        seen.is_some_and(|seen| (seen - expected).abs() < 1e-9),
        "{seen:?}"
    );
}

#[test]
fn errors_are_counted_by_the_hour_and_the_first_heartbeat_tells_of_the_time_before() {
    let beats: Vec<Beat> = (0..=3)
        .map(|n| Beat {
            errors: [100, 1, 0, 2][usize::try_from(n).unwrap()],
            ..beat(n * 10)
        })
        .collect();
    close(Metric::Errors.of(&beats), 6.0);
    assert_eq!(Metric::Errors.of(&beats[..1]), None, "one tells of no time");
    assert_eq!(Metric::Errors.of(&[]), None);
}

#[test]
fn a_restart_is_another_boot_or_an_uptime_that_goes_back() {
    let up = |minute, seconds| Beat {
        uptime_seconds: Some(seconds),
        ..beat(minute)
    };
    close(
        Metric::Reboots.of(&[up(0, 500), up(30, 20), up(60, 10)]),
        2.0,
    );
    let boot = |minute, id: &str| Beat {
        boot_id: Some(id.to_owned()),
        ..up(minute, 7)
    };
    close(
        Metric::Reboots.of(&[boot(0, "a"), boot(30, "b"), boot(60, "b")]),
        1.0,
    );
    assert_eq!(
        Metric::Reboots.of(&[beat(0), beat(60)]),
        None,
        "it does not tell"
    );
}

#[test]
fn what_a_battery_loses_is_told_of_the_time_in_which_it_is_not_charged() {
    let charge = |minute, percent| Beat {
        battery_percent: percent,
        ..beat(minute)
    };
    let beats = [
        charge(0, Some(80.0)),
        charge(30, Some(79.0)),
        charge(60, None),
        charge(90, Some(100.0)),
        charge(120, Some(96.0)),
    ];
    close(Metric::BatteryDrain.of(&beats), 5.0);
    let custom = Beat {
        metrics: [("fan".to_owned(), 4.0)].into(),
        ..beat(0)
    };
    close(Metric::Custom("fan".into()).of(&[custom, beat(1)]), 4.0);
}

fn criterion(compare: Compare, max_increase: Increase) -> Criterion {
    Criterion {
        metric: Metric::Custom("fan".into()),
        compare,
        max_increase,
        min_samples: 2,
        action: AbortAction::Pause,
    }
}

fn fan(values: &[f64]) -> Vec<Beat> {
    let beat = |value: &f64| Beat {
        metrics: [("fan".to_owned(), *value)].into(),
        ..beat(0)
    };
    values.iter().map(beat).collect()
}

#[test]
fn devices_are_compared_with_themselves_and_with_those_that_wait() {
    let sides = |before: &[f64], after: &[f64]| Sides {
        before: fan(before),
        after: fan(after),
    };
    // One that said nothing before is no sample of a comparison with before.
    let completed = [
        sides(&[1.0], &[2.0]),
        sides(&[3.0], &[4.0]),
        sides(&[], &[9.0]),
    ];
    let control = [fan(&[5.0]), fan(&[7.0])];
    let criteria = [
        criterion(Compare::Before, Increase::Absolute(1.0)),
        criterion(Compare::Control, Increase::Absolute(1.0)),
    ];
    let readings = read_vitals(&criteria, &completed, &control, at(1));
    let seen: Vec<_> = readings
        .iter()
        .map(|r| (r.base, r.now, r.samples))
        .collect();
    assert_eq!(seen, [(Some(2.0), Some(3.0), 2), (Some(6.0), Some(4.0), 2)]);
    assert_eq!(criteria[0].breach(&readings[0]), None, "at the limit");
    let less = criterion(Compare::Before, Increase::Percent(49.0));
    assert_eq!(
        less.breach(&readings[0]).unwrap(),
        "metrics.fan of devices after their update is 3.00, of the same devices before their update 2.00 (2 devices): more than 49 % above"
    );
    let few = Reading {
        samples: 1,
        ..readings[0].clone()
    };
    assert_eq!(less.breach(&few), None);
}

#[test]
fn one_device_that_lies_neither_stops_a_campaign_nor_hides_what_others_say() {
    let sides = |before, after| Sides {
        before: fan(&[before]),
        after: fan(&[after]),
    };
    let criteria = [criterion(Compare::Before, Increase::Percent(50.0))];
    let breach = |honest: (f64, f64), liar: (f64, f64)| {
        let mut completed = vec![sides(honest.0, honest.1); 10];
        completed.push(sides(liar.0, liar.1));
        let readings = read_vitals(&criteria, &completed, &[], at(1));
        criteria[0].breach(&readings[0])
    };
    for lie in [1e300, f64::MAX, f64::INFINITY, f64::NAN] {
        assert_eq!(breach((20.0, 20.0), (20.0, lie)), None, "{lie}");
        assert_eq!(breach((20.0, 20.0), (-lie, 20.0)), None, "{lie}");
        let told = breach((20.0, 40.0), (lie, 20.0)).unwrap();
        assert!(
            told.contains(" is 40.00, of the same devices before their update 20.00"),
            "{told}"
        );
        assert!(breach((20.0, 40.0), (20.0, -lie)).is_some(), "{lie}");
    }
    // Whoever is few enough has no liar cut off, and at least legible figures.
    let two = [sides(20.0, 20.0), sides(20.0, f64::MAX)];
    let told = criteria[0].breach(&read_vitals(&criteria, &two, &[], at(1))[0]);
    assert!(told.unwrap().contains(" is 500000000010.00,"));
    // Two of ten are unwell, and that is seen.
    let mut fleet = vec![sides(20.0, 20.0); 8];
    fleet.extend(vec![sides(20.0, 200.0); 2]);
    let seen = &read_vitals(&criteria, &fleet, &[], at(1))[0];
    assert_eq!((seen.base, seen.now), (Some(20.0), Some(42.5)));
}

fn unhealthy(action: AbortAction, read_at: i64) -> device_ota_domain::Campaign {
    let mut spec = spec(&json!({"deployment_strategy": "immediate"}));
    spec.health.criteria = vec![Criterion {
        action,
        ..criterion(Compare::Before, Increase::Absolute(1.0))
    }];
    let mut campaign = campaign(spec, CampaignState::InProgress(running(0, 0)));
    campaign.readings = vec![Reading {
        criterion: 0,
        base: Some(1.0),
        now: Some(9.0),
        samples: 5,
        at: at(read_at),
    }];
    campaign
}

#[test]
fn a_reading_stops_a_campaign_as_its_criterion_says_and_a_resume_accepts_it() {
    let counts = Counts {
        stages: vec![Tally {
            pending: 3,
            completed: 5,
            ..Tally::default()
        }],
        ..Counts::default()
    };
    let first = |action| {
        plan(at(9), &unhealthy(action, 5), &counts)
            .actions
            .remove(0)
    };
    assert!(matches!(
        first(AbortAction::Rollback),
        Action::RollBack { .. }
    ));
    assert!(matches!(first(AbortAction::Cancel), Action::Abort { .. }));
    let Action::Pause { reason } = first(AbortAction::Pause) else {
        panic!("it goes on")
    };
    assert!(
        reason.starts_with("metrics.fan of devices after"),
        "{reason}"
    );
    let mut resumed = unhealthy(AbortAction::Pause, 5);
    resumed.state = CampaignState::InProgress(Running {
        accepted: Accepted {
            at: Some(at(6)),
            ..Accepted::default()
        },
        ..running(0, 0)
    });
    let goes_on = plan(at(9), &resumed, &counts).actions;
    assert!(
        matches!(goes_on.as_slice(), [Action::Claim { .. }]),
        "{goes_on:?}"
    );
}

#[test]
fn a_campaign_that_has_completed_goes_back_by_a_reading_and_by_nothing_less() {
    let counts = Counts {
        stages: vec![Tally {
            completed: 5,
            ..Tally::default()
        }],
        ..Counts::default()
    };
    let after_end = |action| {
        let mut campaign = unhealthy(action, 5);
        campaign.state = campaign.state.finish(at(4)).unwrap();
        plan(at(9), &campaign, &counts).actions
    };
    let back = after_end(AbortAction::Rollback);
    assert!(
        matches!(back.as_slice(), [Action::RollBack { .. }]),
        "{back:?}"
    );
    for action in [AbortAction::Pause, AbortAction::Cancel] {
        assert_eq!(after_end(action), [], "there is nothing left to stop");
    }
}

#[test]
fn criteria_are_read_strictly() {
    let refused = |criterion: serde_json::Value| {
        let mut json = json!({"metric": "errors", "compare": "before", "max_increase": {"absolute": 1}, "action": "pause"});
        let fields = json.as_object_mut().unwrap();
        fields.extend(criterion.as_object().unwrap().clone());
        let criterion = serde_json::from_value::<Criterion>(json);
        match criterion {
            Err(error) => error.to_string(),
            Ok(criterion) => {
                let draft = draft(&json!({"health": {"criteria": [criterion]}}));
                let shares = device_ota_domain::ring::Shares::default();
                draft.into_spec(10.0, 0, shares).unwrap_err().to_string()
            }
        }
    };
    for (wrong, says) in [
        (
            json!({"metric": "speed"}),
            "health.criteria.metric must be errors",
        ),
        (json!({"compare": "later"}), "unknown variant `later`"),
        (
            json!({"max_increase": {"absolute": -1}}),
            "health.criteria.max_increase must be 0 or more",
        ),
        (
            json!({"min_samples": 0}),
            "health.criteria.min_samples must be 1 to 100",
        ),
        (json!({"window": 7}), "unknown field `window`"),
    ] {
        let said = refused(wrong);
        assert!(said.contains(says), "{said}");
    }
    let json = json!({"metric": "metrics.fan", "compare": "control", "max_increase": {"percent": 20.0}, "min_samples": 10, "action": "rollback"});
    let criterion: Criterion = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(criterion).unwrap(), json);
}

proptest! {
    #[test]
    fn figures_are_finite_and_a_fleet_that_does_as_before_is_never_stopped(
        beats in prop::collection::vec((0_i64..5, 0_u64..9, 0_u64..1_000, 0_u32..=100), 0..20),
        limit in 0.0_f64..50.0, percent: bool,
    ) {
        let mut minute = 0;
        let beats: Vec<Beat> = beats.into_iter().map(|(later, errors, uptime, battery)| {
            minute += later;
            Beat { errors, uptime_seconds: Some(uptime), battery_percent: Some(f64::from(battery)), ..beat(minute) }
        }).collect();
        for metric in [Metric::Errors, Metric::Reboots, Metric::BatteryDrain] {
            let figure = metric.of(&beats);
            prop_assert!(figure.is_none_or(f64::is_finite), "{metric}: {figure:?}");
            let max_increase = if percent { Increase::Percent(limit) } else { Increase::Absolute(limit) };
            let criterion = Criterion { metric, max_increase, min_samples: 1, ..criterion(Compare::Before, max_increase) };
            let same = Sides { before: beats.clone(), after: beats.clone() };
            let readings = read_vitals(std::slice::from_ref(&criterion), &[same], &[], at(0));
            prop_assert_eq!(criterion.breach(&readings[0]), None);
        }
    }
}
