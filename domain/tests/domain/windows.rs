//! Maintenance windows: which clock counts, and when the next one opens.

use device_ota_domain::campaign::{CampaignState, Counts, OpenFor, Tally, Windows};
use device_ota_domain::planner::{Action, plan};
use device_ota_domain::why::Why;
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::planner::running;
use crate::sample::{campaign, spec};

fn windows(json: Value) -> Windows {
    serde_json::from_value(json).unwrap()
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn a_window_runs_over_midnight_and_over_days() {
    let night = windows(json!([
        {"days": ["fri"], "start": "23:00", "duration_minutes": 120, "time_zone": "UTC"},
    ]));
    // 2026-01-02 is a Friday.
    let opens = time("2026-01-02T23:00:00Z");
    assert_eq!(night.at(time("2026-01-01T23:30:00Z"), None), Err(opens));
    assert_eq!(night.at(opens, None), Ok(()));
    assert_eq!(night.at(time("2026-01-03T00:59:59Z"), None), Ok(()));
    let next = time("2026-01-09T23:00:00Z");
    assert_eq!(night.at(time("2026-01-03T01:00:00Z"), None), Err(next));
    let long = windows(json!([
        {"days": ["fri"], "start": "12:00", "duration_minutes": 4_320, "time_zone": "UTC"},
    ]));
    assert_eq!(long.at(time("2026-01-05T11:59:59Z"), None), Ok(()));
    assert!(long.at(time("2026-01-05T12:00:00Z"), None).is_err());
}

#[test]
fn a_window_opens_when_it_is_told_to_in_a_night_in_which_clocks_are_put_on_or_back() {
    for minutes in [30, 60, 120] {
        let early = windows(json!([
            {"start": "02:15", "duration_minutes": minutes, "time_zone": "Europe/Berlin"},
        ]));
        // There is no 02:15 on the 29th of March.
        let opens = time("2026-03-29T01:15:00Z");
        assert_eq!(early.at(time("2026-03-29T00:30:00Z"), None), Err(opens));
        assert_eq!(early.at(opens, None), Ok(()));
        let length = jiff::SignedDuration::from_mins(minutes);
        assert_eq!(early.closes(opens, None), Some(opens + length));
        assert!(early.at(opens + length, None).is_err());
        // There are two on the 25th of October.
        let opens = time("2026-10-25T00:15:00Z");
        assert_eq!(early.at(time("2026-10-25T00:00:00Z"), None), Err(opens));
        assert_eq!(early.at(opens, None), Ok(()));
    }
    let late = windows(json!([
        {"start": "01:30", "duration_minutes": 60, "time_zone": "Europe/Berlin"},
    ]));
    let second = time("2026-10-25T01:15:00Z");
    assert!(late.at(second, None).is_err(), "it has been 02:15 before");
}

#[test]
fn the_device_goes_by_its_own_clock_or_by_utc() {
    let lunch = windows(json!([
        {"start": "12:00", "duration_minutes": 60, "time_zone": "device"},
    ]));
    let noon = time("2026-07-01T12:30:00Z");
    for utc in [None, Some("Nowhere/Else"), Some("utc"), Some("UTC")] {
        assert_eq!(lunch.at(noon, utc), Ok(()), "{utc:?}");
    }
    let berlin = time("2026-07-02T10:00:00Z");
    assert_eq!(lunch.at(noon, Some("Europe/Berlin")), Err(berlin));
    let Ok(OpenFor::AllBut(closed)) = lunch.open_for(noon) else {
        panic!("{:?}", lunch.open_for(noon));
    };
    assert!(closed.iter().any(|zone| zone == "Europe/Berlin"));
    assert!(!closed.iter().any(|zone| zone == "Africa/Abidjan"));
    let Ok(OpenFor::Zones(open)) = lunch.open_for(time("2026-07-01T10:30:00Z")) else {
        panic!("it is lunch time in Berlin alone");
    };
    assert!(open.iter().any(|zone| zone == "Europe/Berlin"));
    assert!(!open.iter().any(|zone| zone == "UTC"));
    // No clock shows that minute.
    let short = windows(json!([
        {"start": "12:00", "duration_minutes": 1, "time_zone": "device"},
    ]));
    let opens = short.open_for(time("2026-07-01T12:07:00Z"));
    assert_eq!(opens, Err(time("2026-07-01T13:00:00Z")), "in Cape Verde");
    let also = windows(json!([
        {"start": "12:00", "duration_minutes": 1, "time_zone": "device"},
        {"start": "12:00", "duration_minutes": 60, "time_zone": "UTC"},
    ]));
    assert_eq!(also.open_for(noon), Ok(OpenFor::All));
}

#[test]
fn a_campaign_waits_for_its_window_and_goes_back_without_one() {
    let json = json!({
        "windows": [{"start": "12:00", "duration_minutes": 60, "time_zone": "UTC"}],
    });
    let counts = Counts {
        stages: vec![Tally {
            pending: 3,
            ..Tally::default()
        }],
        ..Counts::default()
    };
    let state = CampaignState::InProgress(running(3, 0));
    let closed = time("2026-07-01T13:00:00Z");
    let opens = time("2026-07-02T12:00:00Z");
    let waits = plan(closed, &campaign(spec(&json), state.clone()), &counts);
    assert_eq!(
        (waits.actions, waits.waits),
        (vec![], vec![Why::Window { opens }])
    );
    let goes = plan(opens, &campaign(spec(&json), state.clone()), &counts);
    assert!(matches!(goes.actions.as_slice(), [Action::Claim { .. }]));
    let trigger = device_ota_domain::RollbackTrigger::Manual;
    let back = state.roll_back(closed, trigger, "bad").unwrap();
    let waiting = Counts {
        rollbacks: Tally {
            pending: 2,
            ..Tally::default()
        },
        stages: vec![Tally {
            completed: 2,
            ..Tally::default()
        }],
        ..Counts::default()
    };
    let goes = plan(closed, &campaign(spec(&json), back), &waiting);
    assert!(matches!(goes.actions.as_slice(), [Action::Claim { .. }]));
}

proptest! {
    #[test]
    fn whom_it_is_open_for_is_what_each_device_is_told(
        minutes in prop_oneof![0_i64..600_000, 124_600_i64..127_000], hour in 0_u8..24, minute in 0_u8..60, long in 1_u32..3_000,
        named in any::<bool>(),
    ) {
        let now = Timestamp::from_second(1_767_225_600 + minutes * 60).unwrap();
        let mut all = vec![json!({
            "days": ["mon", "wed", "sun"], "start": format!("{hour:02}:{minute:02}"), "duration_minutes": long,
            "time_zone": "device",
        })];
        if named {
            all.push(json!({"start": "03:00", "duration_minutes": 30, "time_zone": "America/St_Johns"}));
        }
        let windows = windows(json!(all));
        let whom = windows.open_for(now);
        for zone in [None, Some("Europe/Berlin"), Some("Asia/Kathmandu"), Some("no zone"), Some("Pacific/Apia")] {
            let listed = |zones: &[String]| zones.iter().any(|name| Some(name.as_str()) == zone);
            let open = match &whom {
                Ok(OpenFor::All) => true,
                Ok(OpenFor::Zones(zones)) => listed(zones),
                Ok(OpenFor::AllBut(zones)) => !listed(zones),
                Err(_) => false,
            };
            let told = windows.at(now, zone);
            prop_assert_eq!(told.is_ok(), open, "{:?} {:?}", zone, told);
            let closes = windows.closes(now, zone);
            prop_assert_eq!(closes.is_some(), open);
            prop_assert!(closes.is_none_or(|closes| closes > now));
            if let Err(opens) = told {
                prop_assert!(opens > now);
                prop_assert_eq!(windows.at(opens, zone), Ok(()), "{:?} opens at {}", zone, opens);
            }
        }
        if let Err(opens) = whom {
            let before = opens.checked_sub(jiff::SignedDuration::from_secs(1)).unwrap();
            prop_assert!(windows.open_for(before).is_err() || before < now);
        }
    }
}
