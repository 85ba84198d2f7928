//! Campaigns that go on: what the planner does when every device has ended, and what becomes of updates whose device changes.

use device_ota_domain::campaign::{CampaignState, Counts, Group, Tally};
use device_ota_domain::planner::{Action, plan};
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::update::{Action as UpdateAction, UpdateState};
use device_ota_domain::why::Why;
use serde_json::json;

use crate::planner::running;
use crate::sample::{at, campaign, completed, failed, offered, pending, spec, staged};

fn begun(fields: &serde_json::Value) -> device_ota_domain::Campaign {
    let mut fields = fields.clone();
    fields["continuous"] = json!(true);
    let spec = spec(&fields);
    campaign(spec, CampaignState::Created.start(at(1), at(1)).unwrap())
}

fn counts(stages: &[Tally]) -> Counts {
    Counts {
        stages: stages.to_vec(),
        ..Counts::default()
    }
}

const DONE: Tally = Tally {
    completed: 3,
    pending: 0,
    in_flight: 0,
    staged: 0,
    failed: 0,
    regressed: 0,
    cancelled: 0,
};

#[test]
fn it_goes_on_when_every_device_has_ended_and_ends_with_its_schedule() {
    let fields = json!({"deployment_strategy": "immediate", "schedule": {"end_at": at(1_000)}});
    let campaign = begun(&fields);
    for tally in [DONE, Tally::default()] {
        let plan = plan(at(10), &campaign, &counts(&[tally]));
        assert_eq!((plan.actions, plan.waits), (vec![], vec![Why::Newcomers]));
    }
    let came = Tally { pending: 1, ..DONE };
    let next = plan(at(10), &campaign, &counts(&[came])).actions;
    assert!(matches!(next[..], [Action::Claim { .. }]), "{next:?}");
    assert!(campaign.follows_its_fleet(at(999)));
    assert!(!campaign.follows_its_fleet(at(1_000)));
    let over = |tally| plan(at(1_000), &campaign, &counts(&[tally])).actions;
    assert_eq!(over(came), [Action::CancelPending(UpdateAction::Update)]);
    assert_eq!(over(DONE), [Action::Finish]);
}

#[test]
fn stages_open_once_and_whoever_comes_late_finds_them_as_they_are() {
    let stages = json!([{"percent": 10}, {"percent": 50}]);
    let mut campaign = begun(&json!({"deployment_strategy": "staged", "stages": stages}));
    // The last of the first stage has ended: the next opens, though nobody is there yet.
    let first = counts(&[DONE, Tally::default(), Tally::default()]);
    assert_eq!(
        plan(at(10), &campaign, &first).actions,
        [Action::OpenStage(1)]
    );
    campaign.state = CampaignState::InProgress(running(1, 10));
    // Somebody comes to the first stage: it is offered, and holds up no stage behind the open one.
    let late = Tally { pending: 1, ..DONE };
    let came = counts(&[late, Tally::default(), Tally::default()]);
    assert_eq!(
        plan(at(11), &campaign, &came).actions,
        [Action::OpenStage(2)]
    );
    campaign.state = CampaignState::InProgress(running(2, 10));
    let next = plan(at(12), &campaign, &came).actions;
    assert!(matches!(next[..], [Action::Claim { .. }]), "{next:?}");
}

#[test]
fn only_what_was_never_offered_is_settled() {
    let settled = pending().settle(Exclusion::NotMeant, at(7)).unwrap();
    assert_eq!((settled.group(), settled.attempt), (Group::Cancelled, 0));
    let because = Some(Exclusion::NotMeant);
    assert_eq!(settled.state, UpdateState::Cancelled { at: at(7), because });
    for others in [offered(), staged(), completed(), failed(), settled] {
        assert_eq!(others.clone().settle(Exclusion::NotMeant, at(8)), None);
    }
}

#[test]
fn only_what_was_settled_or_abandoned_comes_back() {
    let settled = pending().settle(Exclusion::OutsideRollout, at(7)).unwrap();
    let back = settled.rejoin(at(9)).unwrap();
    assert_eq!(back.group(), Group::Pending);
    assert!(matches!(back.state, UpdateState::Pending { due_at, .. } if due_at == at(9)));
    let abandoned = offered().abandon(Exclusion::UnknownDevice, at(20)).unwrap();
    let back = abandoned.rejoin(at(30)).unwrap();
    assert_eq!(
        (back.group(), back.attempt),
        (Group::Pending, 1),
        "attempts rise"
    );
    let withdrawn = pending().cancel(at(7)).unwrap();
    for others in [
        pending(),
        offered(),
        staged(),
        completed(),
        failed(),
        withdrawn,
    ] {
        assert_eq!(others.clone().rejoin(at(9)), None);
    }
}
