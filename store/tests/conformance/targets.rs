//! Whom a campaign means: the database's answer is the domain's, for any fleet and any filter.

use std::collections::BTreeMap;

use device_ota_domain::Firmware;
use device_ota_domain::campaign::{Campaign, Named, Takes};
use device_ota_domain::device::Device;
use device_ota_domain::page::Page;
use device_ota_domain::ring::{Ring, Shares};
use device_ota_domain::targeting::{Cuts, Exclusion, Place, Stages, judge};
use device_ota_engine::ports::store::{Aim, NewDevice, Store, Touch, UpdateFilter};
use device_ota_engine::ports::telemetry::DeviceFilter;
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::fixture::*;

crate::stories!(
    the_database_means_whom_the_domain_means,
    named_devices_that_are_left_out_are_told_with_the_reason,
    targets_are_paged_by_stage_and_say_what_they_wait_for,
    versions_without_an_image_are_told,
);

/// Devices of the random fleet.
const FLEET: usize = 80;
/// Random campaigns that are judged over it.
const CAMPAIGNS: usize = 250;
const NOW: i64 = 100_000;

const VERSIONS: [&str; 9] = [
    "1.0.0",
    "1.2.0",
    "1.10.0",
    "1.9.9",
    "2.0.0",
    "2.0.0-rc.1",
    "2.0.0+b7",
    "nightly",
    "01.2",
];
const TEXTS: [&str; 6] = ["a", "A", "ab", "a%_", "\"q\"", "ü\\"];
const KEYS: [&str; 4] = ["site", "a.b", "ü \"x\"", "back\\slash"];

fn text() -> impl Strategy<Value = String> {
    proptest::sample::select(&TEXTS[..]).prop_map(str::to_owned)
}

fn key() -> impl Strategy<Value = String> {
    proptest::sample::select(&KEYS[..]).prop_map(str::to_owned)
}

fn version() -> impl Strategy<Value = String> {
    proptest::sample::select(&VERSIONS[..]).prop_map(str::to_owned)
}

fn number() -> impl Strategy<Value = f64> {
    proptest::sample::select(&[-1.5, 0.0, 0.1, 20.0, 50.0, 1e15][..])
}

prop_compose! {
    fn device(n: usize)(
        texts in (any::<bool>(), proptest::option::of(text()), proptest::option::of(text()), proptest::option::of(text())),
        version in proptest::option::of(version()),
        groups in proptest::collection::btree_set(text(), 0..3),
        tags in proptest::collection::btree_map(key(), text(), 0..3),
        ring in proptest::option::weighted(0.4, proptest::sample::select(&Ring::ALL[..])),
        bucket in 0_u16..10_000,
    ) -> NewDevice {
        let mut new = new_device(&name(n), bucket);
        let said = &mut new.registration;
        if texts.0 {
            said.device_model = "other".into();
        }
        (said.device_type, said.manufacturer, said.hw_revision) = (texts.1, texts.2, texts.3);
        (said.firmware_version, said.ring, said.tags) = (version, ring, tags);
        said.groups = groups.into_iter().collect();
        new
    }
}

prop_compose! {
    fn said()(
        version in proptest::option::of(version()),
        seen in proptest::option::of(0_i64..NOW),
        numbers in (proptest::option::of(number()), proptest::option::of(number()), any::<bool>()),
        metrics in proptest::option::of(proptest::collection::btree_map(key(), number(), 0..3)),
        security_floor in proptest::option::weighted(0.3, 0_i64..6),
    ) -> Touch {
        #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
        Touch {
            version,
            last_seen: seen.map(at),
            battery_percent: numbers.0,
            free_storage_bytes: numbers.1.map(|bytes| bytes as i64),
            online: Some((numbers.2, 1)),
            metrics,
            security_floor,
            ..Touch::default()
        }
    }
}

fn test() -> impl Strategy<Value = Value> {
    let field = |field: &'static str, op: &'static str| move |value: Value| json!({"field": field, "op": op, "value": value});
    let plain = proptest::sample::select(
        &[
            "device_type",
            "manufacturer",
            "hw_revision",
            "device_model",
            "groups",
        ][..],
    );
    let plain = prop_oneof![
        4 => plain.prop_map(str::to_owned),
        1 => key().prop_map(|key| format!("tags.{key}")),
    ];
    let on_text = (
        plain,
        prop_oneof![
            (
                proptest::sample::select(&["eq", "ne", "prefix"][..]),
                text()
            )
                .prop_map(|(op, value)| (op, json!(value))),
            proptest::collection::vec(text(), 1..4).prop_map(|values| ("in", json!(values))),
            any::<bool>().prop_map(|wanted| ("exists", json!(wanted))),
        ],
    )
        .prop_map(|(field, (op, value))| json!({"field": field, "op": op, "value": value}));
    let order = || proptest::sample::select(&["eq", "ne", "lt", "le", "gt", "ge"][..]);
    let on_version = prop_oneof![
        (order(), proptest::sample::select(&VERSIONS[..7]))
            .prop_map(|(op, value)| (op, json!(value))),
        proptest::sample::select(&[">=1.2, <2", "^1", "=2.0.0", "*", "<2.0.0-rc.2"][..])
            .prop_map(|range| ("semver", json!(range))),
        version().prop_map(|value| ("prefix", json!(value))),
        proptest::collection::vec(version(), 1..3).prop_map(|values| ("in", json!(values))),
        any::<bool>().prop_map(|wanted| ("exists", json!(wanted))),
    ]
    .prop_map(|(op, value)| json!({"field": "firmware_version", "op": op, "value": value}));
    let numeric = prop_oneof![
        Just("battery_percent".to_owned()),
        Just("free_storage_bytes".to_owned()),
        key().prop_map(|key| format!("metrics.{key}")),
    ];
    let on_number = (
        numeric,
        prop_oneof![
            (order(), number()).prop_map(|(op, value)| (op, json!(value))),
            proptest::collection::vec(number(), 1..3).prop_map(|values| ("in", json!(values))),
            any::<bool>().prop_map(|wanted| ("exists", json!(wanted))),
        ],
    )
        .prop_map(|(field, (op, value))| json!({"field": field, "op": op, "value": value}));
    let seconds = (
        proptest::sample::select(&["lt", "le", "gt", "ge"][..]),
        0..NOW,
    );
    prop_oneof![
        3 => on_text,
        2 => on_version,
        2 => on_number,
        1 => seconds.clone().prop_map(|(op, s)| json!({"field": "last_seen", "op": op, "value": format!("-{s}s")})),
        1 => seconds.prop_map(|(op, s)| json!({"field": "last_seen", "op": op, "value": at(s).to_string()})),
        1 => any::<bool>().prop_map(Value::Bool).prop_map(field("last_seen", "exists")),
        1 => any::<bool>().prop_map(Value::Bool).prop_map(field("online", "eq")),
        1 => proptest::sample::select(&Ring::ALL[..]).prop_map(|ring| json!(ring)).prop_map(field("ring", "ne")),
        1 => proptest::collection::vec(proptest::sample::select(&Ring::ALL[..]), 1..3).prop_map(|rings| json!(rings)).prop_map(field("ring", "in")),
    ]
}

fn filter() -> impl Strategy<Value = Value> {
    test().prop_recursive(3, 12, 4, |part| {
        prop_oneof![
            proptest::collection::vec(part.clone(), 0..4).prop_map(|parts| json!({"all": parts})),
            proptest::collection::vec(part.clone(), 0..4).prop_map(|parts| json!({"any": parts})),
            part.prop_map(|part| json!({"not": part})),
        ]
    })
}

/// The members of a draft that say whom and how many.
fn draft() -> impl Strategy<Value = Value> {
    let names = proptest::collection::vec(0..FLEET + 5, 0..6);
    (
        proptest::option::weighted(0.85, filter()),
        proptest::collection::vec(text(), 0..2),
        names,
        prop_oneof![3 => Just(100.0), 1 => Just(33.3)],
        prop_oneof![2 => Just(Vec::new()), 1 => stages()],
    )
        .prop_map(|(filter, groups, names, share, stages)| {
            let names: Vec<String> = names.into_iter().map(name).collect();
            json!({
                "target_filters": filter, "target_groups": groups, "target_devices": names,
                "rollout_percentage": share, "stages": stages,
            })
        })
}

/// Stages of every kind, in any order.
fn stages() -> impl Strategy<Value = Vec<Value>> {
    let names = proptest::collection::vec(0..FLEET + 5, 1..6);
    (names, filter(), 1..10_u64, 5..40_u64, 0..24_usize).prop_map(
        |(names, filter, few, more, turn)| {
            let names: Vec<String> = names.into_iter().map(name).collect();
            let mut stages = vec![
                json!({"devices": names}),
                json!({"filter": filter}),
                json!({"count": few}),
                json!({"percent": 30}),
            ];
            stages.rotate_left(turn % 4);
            stages.swap(0, turn / 8);
            stages.push(json!({"count": few + more}));
            stages
        },
    )
}

fn drawn<T: std::fmt::Debug>(runner: &mut TestRunner, strategy: impl Strategy<Value = T>) -> T {
    strategy.new_tree(runner).expect("a value").current()
}

async fn random_fleet(store: &dyn Store, runner: &mut TestRunner) -> Vec<Device> {
    let devices: Vec<NewDevice> = (0..FLEET).map(|n| drawn(runner, device(n))).collect();
    let keys = register(store, &devices).await;
    let touches: Vec<Touch> = keys
        .into_iter()
        .map(|device| Touch {
            device,
            ..drawn(runner, said())
        })
        .collect();
    touch(store, &touches).await;
    let page = Page::new(200, 0).expect("a page");
    store.devices(&DeviceFilter::default(), page).await.unwrap()
}

/// A JSON object's members as text, to be put among others.
fn members(json: &Value) -> String {
    let mut given = json.as_object().expect("an object").clone();
    // An empty list is no list.
    given.retain(|_, value| *value != json!([]));
    let text = Value::Object(given).to_string();
    let inner = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'));
    inner.expect("an object").to_owned()
}

async fn the_database_means_whom_the_domain_means(store: &dyn Store) {
    let mut runner = TestRunner::deterministic();
    let fleet = random_fleet(store, &mut runner).await;
    assert_eq!(fleet.len(), FLEET);
    let mut firmware = image("frame", "2.0.0", 1);
    firmware.metadata.hw_revisions = vec!["a".into(), "ab".into(), "A".into()];
    let everywhere = image("frame", "1.2.0", 1);
    upload(store, &firmware).await;
    let mut meant = 0;
    for n in 0..CAMPAIGNS {
        let firmware = if n % 2 == 0 { &firmware } else { &everywhere };
        let json = drawn(&mut runner, draft());
        let (mut campaign, named) = with_members(firmware, &json);
        campaign.spec.bucket_offset = 1_234;
        let ends = [[500, 2_500, 7_500], [1, 2, 9_999], [4_000, 5_000, 6_000]][n % 3];
        let [canary, early, broad] = ends;
        campaign.spec.rings = Shares::of_buckets([canary, early, broad, 10_000]).unwrap();
        meant += agrees(store, (&campaign, &named), firmware, &fleet, &json).await;
    }
    assert!(meant > CAMPAIGNS, "the fleet is not missed altogether");
}

/// A campaign of a draft's JSON members.
fn with_members(firmware: &Firmware, json: &Value) -> (Campaign, Named) {
    campaign_naming(1, firmware, &members(json))
}

/// Compares one campaign's targets, stages and exclusions with the domain's; answers how many it means.
async fn agrees(
    store: &dyn Store,
    (campaign, named): (&Campaign, &Named),
    firmware: &Firmware,
    fleet: &[Device],
    json: &Value,
) -> usize {
    let spec = &campaign.spec;
    let aim = Aim {
        spec,
        named,
        firmware,
        now: at(NOW),
    };
    let summary = store.target_summary(aim).await.unwrap();
    counts_hold(aim, fleet, &summary.cuts, json);
    let mut stages = vec![0; spec.stages.len()];
    let mut of_stages = vec![Vec::new(); spec.stages.len()];
    let mut left_out: BTreeMap<Exclusion, u64> = BTreeMap::new();
    let mut expected = Vec::new();
    let taken = Stages::new(spec, named, &summary.cuts);
    for device in fleet {
        match judge(spec, named, &firmware.metadata, device, at(NOW)) {
            Ok(_) => {
                let stage = taken.stage_of(device, at(NOW));
                let stage = usize::from(stage.expect("a stage"));
                stages[stage] += 1;
                of_stages[stage].push(device.registration.device_id.to_string());
                expected.push(device.registration.device_id.to_string());
            }
            Err(Exclusion::NotMeant) => {}
            Err(reason) => *left_out.entry(reason).or_default() += 1,
        }
    }
    let known =
        |id: &device_ota_domain::DeviceId| fleet.iter().any(|d| d.registration.device_id == *id);
    let unknown = named.targets.iter().filter(|id| !known(id));
    let unknown: std::collections::BTreeSet<_> = unknown.collect();
    if !unknown.is_empty() {
        left_out.insert(Exclusion::UnknownDevice, unknown.len() as u64);
    }
    let cuts = &summary.cuts;
    let found = async |stage: Option<u16>| {
        let page = Page::new(200, 0).expect("a page");
        let found = store.targets(aim, cuts, stage, page).await.unwrap();
        let ids = found
            .iter()
            .map(|t| t.device.registration.device_id.to_string());
        ids.collect::<Vec<String>>()
    };
    assert_eq!(found(None).await, expected, "{json}");
    for (stage, expected) in (0..).zip(&of_stages) {
        assert_eq!(
            found(Some(stage)).await,
            *expected,
            "stage {stage} of {json}"
        );
    }
    assert_eq!(
        (summary.stages, summary.left_out),
        (stages, left_out),
        "{json}"
    );
    expected.len()
}

/// A stage that takes a number of devices ends behind that many of them, wherever they stand.
fn counts_hold(aim: Aim<'_>, fleet: &[Device], cuts: &Cuts, json: &Value) {
    let (spec, image) = (aim.spec, &aim.firmware.metadata);
    let places = fleet
        .iter()
        .filter_map(|device| judge(spec, aim.named, image, device, aim.now).ok());
    let mut places: Vec<Place> = places.collect();
    places.sort_unstable();
    for (number, stage) in (0..).zip(&spec.stages) {
        if let Takes::First(count) = stage.takes {
            let last = usize::try_from(count).unwrap() - 1;
            assert_eq!(cuts.get(&number), places.get(last), "{json}");
        }
    }
}

async fn named_devices_that_are_left_out_are_told_with_the_reason(store: &dyn Store) {
    let mut firmware = image("frame", "2.0.0", 1);
    firmware.metadata.hw_revisions = vec!["B".into()];
    let mut devices: Vec<_> = (0..5).map(|n| new_device(&name(n), 0)).collect();
    devices[1].registration.device_model = "X".into();
    devices[2].registration.hw_revision = Some("C".into());
    devices[3].registration.firmware_version = Some("2.0.0".into());
    devices[4].bucket = 9_000;
    register(store, &devices).await;
    let seven: Vec<String> = (0..7).map(name).collect();
    let json = json!({"target_devices": seven, "rollout_percentage": 50});
    let (campaign, named) = with_members(&firmware, &json);
    let aim = Aim {
        spec: &campaign.spec,
        named: &named,
        firmware: &firmware,
        now: at(2),
    };
    let told = async |page: Page| {
        let found = store.left_out(aim, page).await.unwrap();
        let reason = |device: Option<&Device>| {
            device.map_or(Exclusion::UnknownDevice, |device| {
                judge(&campaign.spec, &named, &firmware.metadata, device, at(2)).unwrap_err()
            })
        };
        found
            .iter()
            .map(|(id, device)| (id.to_string(), reason(device.as_ref())))
            .collect::<Vec<_>>()
    };
    let all = [
        (name(1), Exclusion::WrongModel),
        (name(2), Exclusion::WrongHwRevision),
        (name(3), Exclusion::AlreadyInstalled),
        (name(4), Exclusion::OutsideRollout),
        (name(5), Exclusion::UnknownDevice),
        (name(6), Exclusion::UnknownDevice),
    ];
    assert_eq!(told(Page::default()).await, all);
    assert_eq!(told(Page::new(2, 1).unwrap()).await, all[1..3]);
    let summary = store.target_summary(aim).await.unwrap();
    assert_eq!(summary.left_out.values().sum::<u64>(), 6);
    assert_eq!(summary.left_out[&Exclusion::UnknownDevice], 2);
    assert_eq!(summary.total(), 1);
}

/// A version has an image when one of the device's own model has it, in use or not.
async fn versions_without_an_image_are_told(store: &dyn Store) {
    let new = image("frame", "3.0.0", 1);
    let mut other = image("frame", "1.0.0", 3);
    other.metadata.device_model = "other".into();
    for image in [&new, &image("frame", "2.0.0", 2), &other] {
        upload(store, image).await;
    }
    let runs = [
        Some("2.0.0"),
        Some("1.0.0"),
        Some("1.0.0"),
        Some("0.9.0"),
        None,
        Some("3.0.0"),
    ];
    let devices = (0..).zip(runs).map(|(n, version)| {
        let mut new = new_device(&name(n), 0);
        new.registration.firmware_version = version.map(str::to_owned);
        new
    });
    register(store, &devices.collect::<Vec<_>>()).await;
    let campaign = campaign_naming(1, &new, "");
    let aim = Aim {
        spec: &campaign.0.spec,
        named: &campaign.1,
        firmware: &new,
        now: at(NOW),
    };
    let told = |version: Option<&str>, devices| (version.map(str::to_owned), devices);
    let found = store.no_way_back(aim).await.unwrap();
    assert_eq!(found.first(), Some(&told(Some("1.0.0"), 2)));
    let rest: std::collections::BTreeSet<_> = found.into_iter().skip(1).collect();
    let others = [told(None, 1), told(Some("0.9.0"), 1)];
    assert_eq!(rest, others.into_iter().collect());
}

async fn targets_are_paged_by_stage_and_say_what_they_wait_for(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 100).await;
    let other = start_naming(
        store,
        campaign_naming(
            9,
            &firmware,
            &format!(r#""target_devices":["{}"]"#, name(6)),
        ),
        &firmware,
    )
    .await;
    let (campaign, nobody) = campaign_naming(1, &firmware, "");
    let aim = Aim {
        spec: &campaign.spec,
        named: &nobody,
        firmware: &firmware,
        now: Timestamp::UNIX_EPOCH,
    };
    let cuts = Cuts::new();
    let names = async |stage: Option<u16>, page: Page| {
        let found = store.targets(aim, &cuts, stage, page).await.unwrap();
        found
            .iter()
            .map(|t| t.device.registration.device_id.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(Some(0), Page::default()).await,
        [0, 1, 2, 3, 4].map(name)
    );
    assert_eq!(
        names(Some(1), Page::new(2, 1).unwrap()).await,
        [6, 7].map(name)
    );
    assert_eq!(names(None, Page::new(200, 0).unwrap()).await.len(), 100);
    assert!(names(Some(4), Page::default()).await.is_empty());
    let early = store.targets(aim, &cuts, Some(1), Page::default()).await;
    let early = early.unwrap();
    let waits: Vec<_> = early.iter().filter_map(|t| t.waits_for.clone()).collect();
    assert_eq!(waits.as_slice(), std::slice::from_ref(&other.id));
    let filter = UpdateFilter {
        campaign: Some(other.id),
        ..UpdateFilter::default()
    };
    assert_eq!(
        store.updates(&filter, Page::default()).await.unwrap().len(),
        1
    );
}
