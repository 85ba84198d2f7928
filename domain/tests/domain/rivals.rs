//! Which of several updates gets a device, what a campaign keeps for itself, and what is left to do once another one was there.

use device_ota_domain::campaign::{CampaignState, Group, OpenFor, Priority};
use device_ota_domain::planner::{Claim, wants};
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::update::{Action, Retry, Update, UpdateState};
use device_ota_domain::{CampaignId, UpdateId};
use proptest::prelude::*;
use serde_json::json;

use crate::planner::running;
use crate::sample::*;

fn one_of_many() -> impl Strategy<Value = Update> {
    (0..4_i16, any::<bool>(), any::<bool>(), 0..3_i64, 0..4_u8).prop_map(
        |(rank, back, single, made, id)| Update {
            id: UpdateId::from_entropy([id; 8]),
            campaign: (!single).then(|| CampaignId::from_entropy([8; 8])),
            action: if back {
                Action::Rollback
            } else {
                Action::Update
            },
            priority: Priority::from_rank(rank).unwrap(),
            created_at: at(made),
            ..pending()
        },
    )
}

proptest! {
    /// So that none of them wait for each other.
    #[test]
    fn updates_of_a_device_have_one_order([a, b, c] in [one_of_many(), one_of_many(), one_of_many()]) {
        prop_assert!(!a.goes_before(&a));
        prop_assert!(!(a.goes_before(&b) && b.goes_before(&a)));
        prop_assert!(a.id == b.id || a.goes_before(&b) || b.goes_before(&a));
        prop_assert!(!(a.goes_before(&b) && b.goes_before(&c)) || a.goes_before(&c));
        if a.action == Action::Rollback && b.action == Action::Update {
            prop_assert!(a.goes_before(&b));
        }
    }
}

/// What waits for anything but its pace may wait for ever.
#[test]
fn a_campaign_keeps_what_it_would_offer_if_it_had_room() {
    let windows = json!([{"start": "00:00", "duration_minutes": 1, "time_zone": "UTC"}]);
    let of = |fields: &serde_json::Value, state: &CampaignState| {
        wants(at(10), &campaign(spec(fields), state.clone()))
    };
    let going = CampaignState::InProgress(running(1, 0));
    let forward = Claim {
        action: Action::Update,
        up_to_stage: 1,
        hold: false,
        open_for: OpenFor::All,
        offers: true,
    };
    let plain = json!({"deployment_strategy": "staged"});
    assert_eq!(of(&plain, &going), Some(forward));
    let night = json!({"windows": windows});
    let over = json!({"deployment_strategy": "scheduled", "schedule": {"start_at": at(0), "end_at": at(5)}});
    let later = json!({"deployment_strategy": "scheduled", "schedule": {"start_at": at(20)}});
    for fields in [night, over, later] {
        assert_eq!(of(&fields, &going), None, "{fields}");
    }
    let paused = going.clone().pause(at(5), "by admin").unwrap();
    let cancelled = going.clone().cancel(at(5)).unwrap();
    let done = going.clone().finish(at(5)).unwrap();
    for state in [CampaignState::Created, paused, cancelled, done] {
        assert_eq!(of(&plain, &state), None, "{state:?}");
    }
    let back = going.roll_back(at(5), RollbackTrigger::Manual, "").unwrap();
    let back = of(&plain, &back).unwrap();
    assert_eq!(
        (back.action, back.up_to_stage),
        (Action::Rollback, u16::MAX)
    );
}

#[test]
fn what_another_one_brought_meanwhile_leaves_nothing_to_do() {
    let ran = |running: &str| Update {
        from_version: Some(running.into()),
        ..pending()
    };
    let because = |update: Option<Update>| match update?.state {
        UpdateState::Cancelled { because, .. } => because,
        state => panic!("{state:?}"),
    };
    let found = |update: Update, running| because(update.found_running(running, at(9)));
    assert_eq!(
        found(ran("1.0.0"), "2.0.0"),
        Some(Exclusion::AlreadyInstalled)
    );
    for newer in ["2.0.1", "10.0.0"] {
        assert_eq!(found(ran("1.0.0"), newer), Some(Exclusion::NewerInstalled));
    }
    for older in ["1.0.0", "1.5.0", "2.0.0-rc.1", "2.0.0+build", "nightly"] {
        assert_eq!(found(ran("1.0.0"), older), None, "{older}");
    }
    // Whoever asked for less than what ran all along hears it from the device.
    assert_eq!(found(ran("3.0.0"), "3.0.0"), None);
    // An attempt that came to nothing, and then another campaign: the device would refuse the next one.
    let failed = |update: Update| {
        let failed = changed(update, &fails(1, Retry::Now));
        assert_eq!(failed.group(), Group::Pending);
        failed
    };
    assert_eq!(
        found(failed(offered()), "2.1.0"),
        Some(Exclusion::NewerInstalled)
    );
    assert_eq!(found(failed(offered()), "2.0.0"), None, "it says so itself");
    for under_way in [offered(), staged(), completed(), cancelled()] {
        assert_eq!(under_way.found_running("3.0.0", at(99)), None);
    }
    let single = Update {
        campaign: None,
        ..ran("1.0.0")
    };
    let arrived = single.clone().found_running("2.0.0", at(9)).unwrap();
    assert_eq!(arrived.group(), Group::Completed);
    assert_eq!(found(single, "3.0.0"), Some(Exclusion::NewerInstalled));
    let back = Update {
        action: Action::Rollback,
        to_version: "1.0.0".into(),
        ..ran("2.0.0")
    };
    assert_eq!(
        found(back, "2.0.0"),
        None,
        "a way back leads to what is older"
    );
}
