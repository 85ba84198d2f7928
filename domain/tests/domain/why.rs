//! Why a device is, or is not, offered what a campaign has for it: all reasons, in their order.

use device_ota_domain::campaign::{Approval, Campaign, CampaignState, Named};
use device_ota_domain::device::{Device, DeviceKey, Latest};
use device_ota_domain::firmware::UploadMetadata;
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::update::{Phase, UpdateState};
use device_ota_domain::why::{Case, Why, explain};
use device_ota_domain::{Update, UpdateId};
use serde_json::json;

use crate::sample::{at, campaign, completed, in_phase, pending, spec};

fn image() -> UploadMetadata {
    serde_json::from_value(json!({
        "name": "frame", "version": "2.0.0", "device_model": "SF-100", "manufacturer": "Acme",
    }))
    .unwrap()
}

fn device() -> Device {
    let registration =
        json!({"device_id": "frame-1", "device_model": "SF-100", "firmware_version": "1.0.0"});
    Device {
        key: DeviceKey(1),
        registration: serde_json::from_value(registration).unwrap(),
        bucket: 7_000,
        revision: 0,
        registered_at: at(0),
        latest: Latest {
            online: true,
            ..Latest::default()
        },
    }
}

struct World {
    campaign: Campaign,
    waits: Vec<Why>,
    device: Option<Device>,
    updates: Vec<Update>,
    in_flight: Option<Update>,
    lines_free_at: Option<jiff::Timestamp>,
}

impl World {
    /// A campaign in progress that means the device, which waits in the third of four stages.
    fn new() -> Self {
        let requires =
            json!({"requires": {"min_battery_percent": 30, "min_free_storage_bytes": 1000}});
        Self {
            campaign: campaign(
                spec(&requires),
                CampaignState::Created.start(at(1), at(1)).unwrap(),
            ),
            waits: vec![Why::GateSoak],
            device: Some(device()),
            updates: vec![Update {
                stage: 2,
                ..pending()
            }],
            in_flight: None,
            lines_free_at: None,
        }
    }

    fn reasons(&self) -> Vec<Why> {
        explain(&Case {
            now: at(100),
            campaign: &self.campaign,
            named: &Named::default(),
            image: &image(),
            waits: &self.waits,
            device: self.device.as_ref(),
            updates: &self.updates,
            busy_with: self.in_flight.as_ref(),
            lines_free_at: self.lines_free_at,
        })
    }
}

#[test]
fn everything_that_holds_an_update_back_is_told_in_order() {
    let mut world = World::new();
    world.device.as_mut().unwrap().latest = Latest {
        last_seen: Some(at(50)),
        battery_percent: Some(20.5),
        free_storage_bytes: Some(10),
        reported_model: Some("XL-5".into()),
        ..Latest::default()
    };
    let due_at = at(200);
    world.updates[0].state = UpdateState::Pending {
        due_at,
        lost_at: None,
        last_failure: None,
    };
    let other = Update {
        id: UpdateId::from_entropy([9; 8]),
        campaign: None,
        ..in_phase(Phase::Downloading)
    };
    world.in_flight = Some(other.clone());
    let device_and_update = [
        Why::Offline {
            since: Some(at(50)),
        },
        Why::Battery {
            has: 20.5,
            needs: 30,
        },
        Why::Storage {
            has: 10,
            needs: 1_000,
        },
        Why::Model,
        Why::OtherUpdate {
            update: other.id,
            campaign: None,
        },
        Why::BackOff { until: due_at },
    ];
    let closed = [
        Why::StageClosed {
            stage: "broad".into(),
        },
        Why::GateSoak,
    ];
    assert_eq!(
        world.reasons(),
        [&closed[..], &device_and_update[..]].concat()
    );
    world.campaign.state = world.campaign.state.pause(at(90), "by admin").unwrap();
    assert_eq!(
        world.reasons(),
        [&[Why::Paused][..], &device_and_update[..]].concat()
    );
}

#[test]
fn who_is_held_back_by_nothing_waits_for_a_slot_or_for_its_turn() {
    let mut world = World::new();
    world.updates[0].stage = 0;
    assert_eq!(world.reasons(), [Why::Turn]);
    world.waits = vec![Why::GateSoak, Why::NoSlot];
    assert_eq!(world.reasons(), [Why::NoSlot]);
}

#[test]
fn what_was_offered_is_told_by_how_far_it_is() {
    let mut world = World::new();
    world.updates = vec![in_phase(Phase::Verifying)];
    let action = device_ota_domain::update::Action::Update;
    let phase = Phase::Verifying;
    assert_eq!(
        world.reasons(),
        [Why::InFlight {
            action,
            phase,
            attempt: 1
        }]
    );
    world.updates = vec![completed()];
    assert_eq!(world.reasons(), [Why::Completed { action, at: at(30) }]);
}

#[test]
fn who_has_no_update_is_none_of_the_campaigns_or_came_too_late() {
    let mut world = World::new();
    world.updates.clear();
    assert_eq!(world.reasons(), [Why::TooLate]);
    world.campaign.spec.continuous = true;
    assert_eq!(world.reasons(), [Why::Joining]);
    world.campaign.spec.continuous = false;
    let because = |because| Why::NotTarget { because };
    world.device.as_mut().unwrap().latest.version = Some("2.0.0".into());
    assert_eq!(world.reasons(), [because(Exclusion::AlreadyInstalled)]);
    world.device = None;
    assert_eq!(world.reasons(), [because(Exclusion::UnknownDevice)]);
    world.campaign.state = CampaignState::Created;
    world.campaign.approval = Approval::of_new(true, "author");
    assert_eq!(
        world.reasons(),
        [
            because(Exclusion::UnknownDevice),
            Why::Unapproved { rejected: false },
            Why::NotStarted
        ]
    );
}

/// The table of codes in `docs/targeting.md` has every one.
#[test]
fn every_code_is_in_the_table() {
    let schema = <Why as utoipa::PartialSchema>::schema();
    let schema = serde_json::to_value(schema).unwrap();
    let codes = schema["oneOf"].as_array().unwrap().iter();
    let codes = codes.map(|one| {
        one.pointer("/properties/code/enum/0")
            .or_else(|| one.pointer("/allOf/1/properties/code/enum/0"))
    });
    let codes: Vec<_> = codes.map(|code| code.unwrap().as_str().unwrap()).collect();
    assert!(
        codes.contains(&"not_promoted") && codes.len() > 20,
        "{codes:?}"
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/targeting.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (_, table) = page.split_once("\n## Why\n").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    for code in codes {
        assert!(table.contains(&format!("`{code}`")), "{code} is missing");
    }
}
