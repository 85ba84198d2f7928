//! Lists of devices and of updates by every filter there is.

use device_ota_domain::campaign::{Group, Priority};
use device_ota_domain::page::Page;
use device_ota_domain::ring::Ring;
use device_ota_domain::update::{Action, Failure, Phase, Retry, Update, UpdateState};
use device_ota_engine::ports::store::{Store, Touch, UpdateFilter};
use device_ota_engine::ports::telemetry::{DeviceFilter, Presence, TagFilter};

use crate::fixture::*;

crate::stories!(
    devices_are_filtered_and_counted,
    devices_that_are_alike_are_counted_together,
    updates_are_listed_by_what_was_asked_for_and_no_others,
);

/// Six devices, of whom the first two are connected and one tells how it is.
async fn six_devices(store: &dyn Store) {
    let mut new: Vec<_> = (0..6).map(|n| new_device(&name(n), 0)).collect();
    for device in &mut new[..4] {
        device.registration.groups = vec!["hall".into()];
    }
    new[0].registration.ring = Some(Ring::Canary);
    new[5].registration.device_model = "other".into();
    new[4].registration.device_type = Some("camera".into());
    for device in &mut new[4..] {
        device.registration.manufacturer = Some("Other".into());
    }
    for (device, value) in [(0, "Köln \"2\""), (3, "")] {
        let tags = &mut new[device].registration.tags;
        tags.insert("site".into(), value.into());
    }
    let keys = register(store, &new).await;
    online(store, &keys[..2]).await;
    let told = Touch {
        device: keys[0],
        battery_percent: Some(9.0),
        error_count: Some(2),
        version: Some("9".into()),
        ..Touch::default()
    };
    touch(store, &[told]).await;
}

fn tagged(key: &str, value: Option<&str>) -> DeviceFilter {
    DeviceFilter {
        tag: Some(TagFilter {
            key: key.into(),
            value: value.map(str::to_owned),
        }),
        ..DeviceFilter::default()
    }
}

async fn devices_are_filtered_and_counted(store: &dyn Store) {
    six_devices(store).await;
    let all = DeviceFilter::default;
    let of_model = DeviceFilter {
        device_model: Some("other".into()),
        ..all()
    };
    let of_type = DeviceFilter {
        device_type: Some("camera".into()),
        ..all()
    };
    let of_maker = DeviceFilter {
        manufacturer: Some("Other".into()),
        ..all()
    };
    // One says that it runs another than it was registered with.
    let runs = |version: &str| DeviceFilter {
        firmware_version: Some(version.into()),
        ..all()
    };
    let in_hall = DeviceFilter {
        group: Some("hall".into()),
        ..all()
    };
    let in_ring = DeviceFilter {
        ring: Some(Ring::Canary),
        ..all()
    };
    let is = |presence| DeviceFilter {
        presence: Some(presence),
        ..all()
    };
    let in_hall_and_offline = DeviceFilter {
        presence: Some(Presence::Offline),
        ..in_hall.clone()
    };
    let everything = DeviceFilter {
        device_model: Some(MODEL.into()),
        device_type: Some("smart_frame".into()),
        manufacturer: Some("Acme".into()),
        firmware_version: Some("9".into()),
        group: Some("hall".into()),
        ring: Some(Ring::Canary),
        presence: Some(Presence::Online),
        ..tagged("site", None)
    };
    for (filter, expected) in [
        (all(), 6),
        (of_model, 1),
        (of_type, 1),
        (of_maker, 2),
        (runs("9"), 1),
        (runs("1.0.0"), 5),
        (in_hall, 4),
        (in_ring, 1),
        (tagged("site", None), 2),
        (tagged("site", Some("Köln \"2\"")), 1),
        (tagged("site", Some("")), 1),
        (tagged("sit", None), 0),
        (is(Presence::Online), 2),
        (is(Presence::Offline), 4),
        (is(Presence::NeverSeen), 4),
        (in_hall_and_offline, 2),
        (everything, 1),
    ] {
        let listed = store.devices(&filter, Page::default()).await.unwrap();
        assert_eq!(listed.len(), expected, "{filter:?}");
        let groups = store.fleet(&filter, 20.0).await.unwrap();
        let counted: u64 = groups.iter().map(|group| group.devices).sum();
        assert_eq!(usize::try_from(counted).unwrap(), expected, "{filter:?}");
    }
}

async fn devices_that_are_alike_are_counted_together(store: &dyn Store) {
    six_devices(store).await;
    let everybody = DeviceFilter::default();
    let groups = store.fleet(&everybody, 20.0).await.unwrap();
    let ill = groups
        .iter()
        .find(|group| group.version.as_deref() == Some("9"));
    let ill = ill.unwrap();
    assert_eq!((ill.devices, ill.low_battery, ill.with_errors), (1, 1, 1));
    assert!(ill.online && ill.ring.as_deref() == Some("canary"));
    assert_eq!(groups.iter().map(|group| group.never_seen).sum::<u64>(), 4);
}

async fn updates_are_listed_by_what_was_asked_for_and_no_others(store: &dyn Store) {
    let (two, three) = (image("frame", "2.0.0", 1), image("frame", "3.0.0", 2));
    let keys = fleet(store, 10).await;
    let states: Vec<UpdateState> = Phase::ALL
        .map(|phase| UpdateState::InFlight {
            phase,
            since: at(10),
            lease_until: at(70),
            deadline: at(600),
            part_until: None,
            cancel_requested: false,
            hold: false,
        })
        .into_iter()
        .chain([
            UpdateState::Completed { at: at(20) },
            UpdateState::Cancelled {
                at: at(22),
                because: None,
            },
            UpdateState::Staged { since: at(23) },
        ])
        .collect();
    let mut rows: Vec<Update> = (0..)
        .zip(states)
        .map(|(n, state)| Update {
            state,
            firmware: Some(if n < 4 { &two } else { &three }.id.clone()),
            priority: Priority::ALL[usize::from(n) % 4],
            ..single(n, keys[usize::from(n)], &name(n.into()), "2.0.0")
        })
        .collect();
    rows.push(Update {
        firmware: Some(two.id.clone()),
        ..single(20, keys[0], &name(0), "2.0.0")
    });
    rows.push(Update {
        state: UpdateState::Failed {
            at: at(21),
            failure: Failure::new("hash_mismatch", "", Retry::Backoff),
        },
        firmware: Some(three.id.clone()),
        ..single(21, keys[0], &name(0), "3.0.0")
    });
    insert(store, &rows).await;
    rows.reverse();
    let all = UpdateFilter::default;
    let mut filters = vec![all()];
    filters.extend([&two, &three].map(|firmware| UpdateFilter {
        firmware: Some(firmware.id.clone()),
        ..all()
    }));
    filters.extend(Phase::ALL.map(|phase| UpdateFilter {
        phase: Some(phase),
        ..all()
    }));
    filters.extend(Priority::ALL.map(|priority| UpdateFilter {
        priority: Some(priority),
        ..all()
    }));
    filters.extend(GROUPS.map(|group| UpdateFilter {
        group: Some(group),
        ..all()
    }));
    filters.push(UpdateFilter {
        device: Some(name(0).parse().unwrap()),
        firmware: Some(two.id.clone()),
        group: Some(Group::Pending),
        ..all()
    });
    filters.push(UpdateFilter {
        firmware: Some(three.id.clone()),
        priority: Some(Priority::High),
        phase: Some(Phase::Rebooting),
        action: Some(Action::Update),
        ..all()
    });
    for filter in filters {
        let expected: Vec<&Update> = rows.iter().filter(|row| passes(&filter, row)).collect();
        assert!(!expected.is_empty(), "{filter:?} asks for something");
        let found = store.updates(&filter, Page::default()).await.unwrap();
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter:?}");
    }
}

const GROUPS: [Group; 6] = [
    Group::Pending,
    Group::InFlight,
    Group::Staged,
    Group::Completed,
    Group::Failed,
    Group::Cancelled,
];

fn passes(filter: &UpdateFilter, row: &Update) -> bool {
    let phase = match row.state {
        UpdateState::InFlight { phase, .. } => Some(phase),
        UpdateState::Staged { .. } => Some(Phase::Staged),
        _ => None,
    };
    (filter.device.is_none() || filter.device.as_ref() == Some(&row.device_id))
        && (filter.firmware.is_none() || filter.firmware == row.firmware)
        && (filter.group.is_none() || filter.group == Some(row.group()))
        && (filter.phase.is_none() || filter.phase == phase)
        && (filter.action.is_none() || filter.action == Some(row.action))
        && (filter.priority.is_none() || filter.priority == Some(row.priority))
}
