//! Budgets of bandwidth: what lines carry, whatever is asked of them and when.

use std::collections::BTreeMap;

use device_ota_domain::bandwidth::{Budgets, Line, Lines};
use device_ota_domain::campaign::{CampaignState, Counts, Tally};
use device_ota_domain::planner::{Action, plan};
use device_ota_domain::update::Action as UpdateAction;
use device_ota_domain::why::Why;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;

use crate::planner::running;
use crate::sample::{at, campaign, draft, spec};

/// What a line may make up for at once, in microseconds.
const BURST: i64 = 2_000_000;

fn later(micros: i64) -> Timestamp {
    at(0) + SignedDuration::from_micros(micros)
}

/// What is known after a restart, which is what was written down.
fn restarted(lines: &Lines, known: &mut BTreeMap<Line, Timestamp>, now: Timestamp) -> Lines {
    let changes = lines.changes().map(|(line, next)| (line.clone(), next));
    known.extend(changes.collect::<Vec<_>>());
    known.retain(|_, next| *next > Lines::forgotten(now));
    known.clone().into_iter().collect()
}

proptest! {
    #[test]
    fn no_line_carries_more_than_its_budget_in_any_time(
        budgets in (1_u64..2_000, 1_u64..2_000),
        asks in prop::collection::vec((0_i64..4_000_000, 1_u64..5_000, 0..3_u8), 1..60),
    ) {
        let (one, other) = (Line::Service, Line::Group("shop".into()));
        let over = [
            vec![(one.clone(), budgets.0)],
            vec![(other.clone(), budgets.1)],
            vec![(one.clone(), budgets.0), (other.clone(), budgets.1)],
        ];
        let (mut lines, mut known) = (Lines::default(), BTreeMap::new());
        let mut now = 0;
        let mut carried: Vec<(i64, u64, u8)> = Vec::new();
        for (wait, bytes, which) in asks {
            now += wait;
            // The process dies and starts anew between any two.
            lines = restarted(&lines, &mut known, later(now));
            let over = &over[usize::from(which)];
            let free = lines.free_at(later(now), over).is_none();
            let took = lines.take(later(now), bytes, over);
            prop_assert_eq!(took, free, "whatever is free carries any image");
            if took {
                carried.push((now, bytes, which));
            }
        }
        for (only, budget) in [(1_u8, budgets.0), (0, budgets.1)] {
            let of: Vec<_> = carried.iter().filter(|(_, _, which)| *which != only).collect();
            for from in 0..of.len() {
                for to in from..of.len() {
                    // The last one is a debt that is paid off after it.
                    let sum: u64 = of[from..to].iter().map(|(_, bytes, _)| bytes).sum();
                    let time = u64::try_from(of[to].0 - of[from].0 + BURST).unwrap();
                    prop_assert!(u128::from(sum) * 1_000_000 <= u128::from(budget) * u128::from(time), "{sum} in {time} µs");
                }
            }
        }
    }

    #[test]
    fn a_line_that_is_always_asked_is_always_used(budget in 1_u64..1_000_000, bytes in 1_u64..1_000_000, ticks in 1_i64..60) {
        let (mut lines, over) = (Lines::default(), [(Line::Service, budget)]);
        let (mut sum, mut images) = (0_u128, 0_u128);
        // At most this many fit into a tick; more than that would take the test too long.
        prop_assume!(budget / bytes < 500);
        for tick in 0..ticks {
            while lines.take(at(tick), bytes, &over) {
                sum += u128::from(bytes);
                images += 1;
            }
            // Each image may be a microsecond late, so that none is too soon.
            let (budget, tick) = (u128::from(budget), u128::try_from(tick).unwrap());
            prop_assert!(sum * 1_000_000 + images * budget >= budget * tick * 1_000_000);
        }
        prop_assert!(lines.free_at(at(ticks - 1), &over).is_some());
    }
}

#[test]
fn a_device_is_behind_the_lines_of_its_groups_and_tags() {
    let budgets = Budgets {
        service: Some(9),
        groups: [("shop".to_owned(), 5)].into(),
        tags: [("site".to_owned(), 3)].into(),
    };
    let tags =
        [("site", "a"), ("floor", "2")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let groups = ["shop".to_owned(), "lab".to_owned()];
    let site = |value: &str| Line::Tag {
        name: "site".into(),
        value: value.into(),
    };
    assert_eq!(
        budgets.of_device(&groups, &tags.into()),
        [(Line::Group("shop".into()), 5), (site("a"), 3)]
    );
    assert_eq!(budgets.of_device(&[], &BTreeMap::new()), []);
    let mut own = campaign(spec(&json!({})), CampaignState::Created);
    assert_eq!(budgets.of_all(Some(&own)), [(Line::Service, 9)]);
    own.spec.bandwidth_bytes_per_second = Some(7);
    assert_eq!(
        budgets.of_all(Some(&own)),
        [(Line::Campaign(own.id.clone()), 7), (Line::Service, 9)]
    );
    // Each site has a line of its own.
    let mut lines = Lines::default();
    assert!(lines.take(at(0), 30, &[(site("a"), 3)]));
    assert!(!lines.take(at(9), 1, &[(site("a"), 3)]));
    assert!(lines.take(at(9), 30, &[(site("b"), 3)]));
    assert_eq!(
        lines.busy(at(9)).collect::<Vec<_>>(),
        [&site("a"), &site("b")]
    );
    assert_eq!(lines.busy(at(10)).collect::<Vec<_>>(), [&site("b")]);
    for line in [
        Line::Service,
        Line::Campaign(own.id),
        Line::Group("ü\"".into()),
        site("=,:"),
    ] {
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
    }
}

#[test]
fn a_budget_is_bounded() {
    for bytes in [0, 1_000_000_000_001_u64] {
        let refused = draft(&json!({"bandwidth_bytes_per_second": bytes}))
            .into_spec(20.0, 0, device_ota_domain::ring::Shares::default())
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "bandwidth_bytes_per_second must be 1 to 1000000000000"
        );
    }
}

#[test]
fn the_planner_waits_for_lines_with_offers_alone() {
    let spec = spec(&json!({"deployment_strategy": "blue_green"}));
    let claims = |open, tally| {
        let counts = Counts {
            stages: vec![tally, Tally::default()],
            lines_free_at: Some(at(100)),
            ..Counts::default()
        };
        let campaign = campaign(spec.clone(), CampaignState::InProgress(running(open, 0)));
        let plan = plan(at(1), &campaign, &counts);
        let offers = plan.actions.iter().find_map(|action| match action {
            Action::Claim { what, .. } => Some(what.offers),
            _ => None,
        });
        (offers, plan.waits)
    };
    let busy = Why::Bandwidth { next: at(100) };
    let pending = Tally {
        pending: 3,
        ..Tally::default()
    };
    assert_eq!(claims(1, pending), (None, vec![busy.clone()]));
    // What devices hold has been downloaded.
    let held = Tally {
        staged: 2,
        ..pending
    };
    assert_eq!(claims(1, held), (Some(false), vec![busy]));
    let held = Tally {
        staged: 2,
        ..Tally::default()
    };
    assert_eq!(claims(1, held), (Some(false), vec![]));

    let trigger = device_ota_domain::rollback::RollbackTrigger::Manual;
    let back = CampaignState::InProgress(running(0, 0)).roll_back(at(1), trigger, "bad");
    let counts = Counts {
        stages: vec![
            Tally {
                completed: 3,
                ..Tally::default()
            },
            Tally::default(),
        ],
        rollbacks: pending,
        lines_free_at: Some(at(100)),
        ..Counts::default()
    };
    let plan = plan(at(1), &campaign(spec, back.unwrap()), &counts);
    let goes = |action: &Action| matches!(action, Action::Claim { what, .. } if what.action == UpdateAction::Rollback);
    assert!(plan.actions.iter().any(goes), "{plan:?}");
}

#[test]
fn a_line_waits_for_no_time_before_the_clock_was_set_back() {
    let budgets = Budgets {
        service: Some(1_000_000),
        ..Budgets::default()
    };
    let line = [(Line::Service, 1_000_000)];
    let mut lines = Lines::default();
    assert!(lines.take(at(3_600), 100_000_000, &line));
    let soon = lines.clone().believed(at(3_650), &budgets, None);
    assert_eq!(soon.free_at(at(3_650), &line), Some(at(3_700)));
    // The largest image keeps it busy for 500 seconds.
    let back = lines.believed(at(0), &budgets, None);
    assert_eq!(back.free_at(at(0), &line), None);
}
