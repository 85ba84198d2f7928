//! What a campaign's draft means, and the text of each refusal.

use device_ota_domain::DeviceId;
use device_ota_domain::campaign::{CampaignDraft, CampaignSpec, Named, Schedule, Strategy, Takes};
use serde_json::{Value, json};

use crate::sample::{draft, spec};

fn ends(spec: &CampaignSpec) -> Vec<(&str, u16)> {
    spec.stages
        .iter()
        .map(|s| (s.name.as_str(), s.end_bucket))
        .collect()
}

fn refused(fields: &Value, text: &str) {
    assert_eq!(
        draft(fields)
            .into_spec(20.0, 0, device_ota_domain::ring::Shares::default())
            .unwrap_err()
            .to_string(),
        text,
        "{fields}"
    );
}

#[test]
fn names_show_all_that_is_in_them() {
    let told =
        "must hold no invisible characters (of no width, or that change the direction of writing)";
    refused(&json!({"name": "winter\u{200b}"}), &format!("name {told}"));
    refused(
        &json!({"target_groups": ["lob\u{202e}by"]}),
        &format!("target_groups {told}"),
    );
}

#[test]
fn a_bare_draft_goes_over_the_four_rings() {
    let spec = spec(&json!({}));
    assert_eq!(
        ends(&spec),
        [
            ("canary", 500),
            ("early", 2_500),
            ("broad", 7_500),
            ("production", 10_000)
        ]
    );
    assert!(
        spec.stages
            .iter()
            .all(|s| s.gate.min_samples.is_none() && s.gate.soak_seconds == 0)
    );
    assert!(
        spec.stages
            .iter()
            .all(|s| (s.gate.min_success_percent - 80.0).abs() < 1e-9)
    );
    assert_eq!(
        (
            spec.max_concurrent_updates,
            spec.batch_size,
            spec.timeout_seconds
        ),
        (100, 100, 3_600)
    );
    assert_eq!(
        (
            spec.max_retries,
            spec.failure_min_samples,
            spec.rollout_buckets
        ),
        (3, 1, 10_000)
    );
    assert!(spec.auto_rollback && spec.strategy == Strategy::Staged);
}

#[test]
fn the_wheel_turns_by_the_entropy_given() {
    assert_eq!(
        draft(&json!({}))
            .into_spec(20.0, 65_535, device_ota_domain::ring::Shares::default())
            .unwrap()
            .bucket_offset,
        5_535
    );
}

#[test]
fn immediate_is_one_stage() {
    assert_eq!(
        ends(&spec(&json!({"deployment_strategy": "immediate"}))),
        [("all", 10_000)]
    );
    let staged = json!({"deployment_strategy": "immediate", "stages": [{"ring": "canary"}]});
    refused(&staged, "stages: immediate has none; use staged");
}

#[test]
fn given_stages_are_filled_up_to_everybody() {
    let stages = json!([{"percent": 1}, {"ring": "early", "gate": {"min_success_percent": 50, "soak_seconds": 60}}]);
    let spec = spec(&json!({"stages": stages}));
    assert_eq!(
        ends(&spec),
        [("1%", 100), ("early", 2_500), ("100%", 10_000)]
    );
    assert_eq!(spec.stages[1].gate.soak_seconds, 60);
    let gate = json!({"stages": [{"percent": 1, "gate": {"manual": true}}], "failure_threshold_percent": 5});
    let by_hand = crate::sample::spec(&gate).stages[0].gate;
    assert!(by_hand.manual);
    assert_eq!(by_hand.min_success_percent.to_bits(), 95_f64.to_bits());
    let tiny =
        crate::sample::spec(&json!({"stages": [{"percent": 0.001}], "rollout_percentage": 0.001}));
    assert_eq!(
        (tiny.stages[0].end_bucket, tiny.rollout_buckets),
        (1, 1),
        "a share above nothing is never nothing"
    );
}

#[test]
fn a_stage_takes_a_number_a_list_or_what_a_filter_finds() {
    let stages = json!([
        {"devices": ["a", "b"]}, {"count": 10}, {"filter": {"field": "ring", "op": "eq", "value": "canary"}},
        {"percent": 20}, {"devices": ["c"]}, {"count": 500},
    ]);
    let fields = json!({"stages": stages, "deployment_strategy": "canary"});
    let spec = spec(&fields);
    assert_eq!(
        ends(&spec),
        [
            ("named devices", 0),
            ("10 devices", 0),
            ("filter", 0),
            ("20%", 2_000),
            ("named devices 2", 2_000),
            ("500 devices", 2_000),
            ("100%", 10_000)
        ]
    );
    assert_eq!(spec.stages[1].takes, Takes::First(10));
    let named = draft(&fields).named();
    let of_stage = |stage: u16| named.of_stage(stage).iter().map(DeviceId::as_str);
    assert_eq!(spec.stages[4].takes, Takes::Named);
    assert!(of_stage(0).eq(["a", "b"]) && of_stage(4).eq(["c"]) && of_stage(1).eq([""; 0]));
    let kept = serde_json::to_string(&spec).unwrap();
    assert_eq!(
        serde_json::from_str::<CampaignSpec>(&kept).unwrap(),
        spec,
        "as the store keeps it"
    );
}

#[test]
fn stages_that_make_no_sense_are_refused() {
    let stages = |stages: Value, text| refused(&json!({"stages": stages}), text);
    let one = "stages: each has one of ring, percent (above 0 and at most 100), count (1 to 10000000), devices (1 to 200000 \
        ids) and filter";
    for stage in [
        json!({"count": 0}),
        json!({"count": 5, "percent": 5}),
        json!({"devices": []}),
        json!({"devices": ["a"], "count": 1}),
        json!({}),
        json!({"ring": "canary", "percent": 5}),
        json!({"percent": 0}),
        json!({"percent": 100.1}),
    ] {
        stages(json!([stage]), one);
    }
    let rise = "stages: shares are cumulative and must rise";
    stages(json!([{"ring": "broad"}, {"ring": "early"}]), rise);
    stages(json!([{"percent": 5}, {"ring": "canary"}]), rise);
    let counts = "stages: counts are cumulative and must rise";
    stages(json!([{"count": 5}, {"percent": 5}, {"count": 5}]), counts);
    stages(
        json!([{"filter": {"field": "colour", "op": "eq", "value": "red"}}]),
        "stages.filter.field: \"colour\" is no field; the fields are device_id, device_type, device_model, manufacturer, \
            hw_revision, firmware_version, groups, tags.<key>, ring, last_seen, battery_percent, free_storage_bytes, \
            online and metrics.<name>",
    );
    stages(
        json!([{"percent": 5, "gate": {"min_success_percent": 101}}]),
        "stages: min_success_percent must be 0 to 100",
    );
    stages(
        json!([{"percent": 5, "gate": {"min_success_percent": 90, "soak_seconds": 2_592_001}}]),
        "stages: soak_seconds must be at most 2592000",
    );
    let many: Vec<_> = (1..=65).map(|i| json!({"percent": i})).collect();
    stages(json!(many), "stages must be at most 64");
}

#[test]
fn every_strategy_has_its_stages() {
    let names = |fields: serde_json::Value| -> Vec<String> {
        let stages = spec(&fields).stages;
        stages.into_iter().map(|stage| stage.name).collect()
    };
    let mut blue_green = json!({"deployment_strategy": "blue_green"});
    assert_eq!(names(blue_green.clone()), ["all", "activate"]);
    blue_green["stages"] = json!([{"percent": 10}]);
    assert_eq!(names(blue_green.clone()), ["10%", "100%", "activate"]);
    let spec_of = spec(&blue_green);
    assert_eq!(
        [0, 1, 2].map(|stage| spec_of.holds_at(stage)),
        [true, true, false]
    );
    assert!(!spec(&json!({})).holds_at(0));
    for strategy in [
        Strategy::Immediate,
        Strategy::Staged,
        Strategy::Canary,
        Strategy::BlueGreen,
    ] {
        assert_eq!(
            spec(&json!({"deployment_strategy": strategy.name()})).strategy,
            strategy
        );
    }
}

#[test]
fn what_stops_a_campaign_is_bounded() {
    let abort = |percent: f64| json!({"on": "any", "percent": percent, "action": "pause"});
    refused(
        &json!({"abort": [abort(100.5)]}),
        "abort.percent must be 0 to 100",
    );
    refused(
        &json!({"abort": vec![abort(5.0); 17]}),
        "abort must be at most 16",
    );
    let made = spec(&json!({"abort": [abort(5.0)], "auto_rollback": false}))
        .criteria()
        .collect::<Vec<_>>();
    let limits: Vec<_> = made.iter().map(|a| (a.percent, a.min_samples)).collect();
    assert_eq!(limits, [(20.0, 1), (5.0, 1)], "the threshold comes first");
}

#[test]
fn a_window_has_a_clock() {
    let refuses = |field: &str, value: Value, text: &str| {
        let mut window = json!({"start": "22:00", "duration_minutes": 60, "time_zone": "UTC"});
        window[field] = value;
        refused(&json!({"windows": [window]}), &format!("windows: {text}"));
    };
    let start = "start must be a time as in 22:00";
    for wrong in ["24:00", "7:30", "22:60", "+1:00", "22", "22:00:00"] {
        refuses("start", json!(wrong), start);
    }
    let length = "duration_minutes must be 1 to 10080";
    refuses("duration_minutes", json!(0), length);
    refuses("duration_minutes", json!(10_081), length);
    let zone = "time_zone \"europe/berlin\" is none; use device, or a name as Europe/Berlin";
    refuses("time_zone", json!("europe/berlin"), zone);
    refuses("days", json!(vec!["mon"; 8]), "days has at most seven");
    let one = json!({"start": "22:00", "duration_minutes": 60, "time_zone": "device"});
    refused(&json!({"windows": vec![one; 33]}), "windows: at most 32");
}

#[test]
fn a_rate_is_one_number_or_grows() {
    let rate = |rate: Value| json!({"rate": rate});
    let both = "rate: give per_minute, or all of base_per_minute, factor, every and max_per_minute";
    let growing = json!({"base_per_minute": 5, "factor": 1.5, "every": {"notified": 10}, "max_per_minute": 50});
    let with = |field: &str, value: Value| {
        let mut changed = growing.clone();
        changed[field] = value;
        rate(changed)
    };
    refused(&rate(json!({})), both);
    refused(&with("per_minute", json!(5)), both);
    refused(&with("factor", json!(null)), both);
    refused(
        &rate(json!({"per_minute": 0})),
        "rate: per_minute must be 1 to 1000000",
    );
    refused(
        &with("factor", json!(1.0)),
        "rate: factor must be above 1 and at most 5",
    );
    refused(
        &with("every", json!({"succeeded": 0})),
        "rate: every must be at least one device",
    );
    refused(
        &with("max_per_minute", json!(4)),
        "rate: base_per_minute and max_per_minute must be 1 to 1000000, and the second not below the first",
    );
    let spec = spec(&rate(growing.clone()));
    assert_eq!(
        serde_json::to_value(spec.to_draft(&Named::default(), false)).unwrap()["rate"],
        growing
    );
}

#[test]
fn a_schedule_says_when() {
    let (start, end) = ("2026-01-01T08:00:00Z", "2026-01-01T09:00:00Z");
    refused(
        &json!({"deployment_strategy": "scheduled"}),
        "schedule: the strategy scheduled needs start_at, a time as in 2026-01-31T22:00:00Z",
    );
    let backwards = json!({"schedule": {"start_at": end, "end_at": start}});
    refused(&backwards, "schedule: end_at must be after start_at");
    let given = json!({"start_at": start, "end_at": end, "on_end": "cancel"});
    let scheduled = spec(&json!({"deployment_strategy": "scheduled", "schedule": given}));
    assert_eq!(scheduled.stages.len(), 1);
    assert_eq!(serde_json::to_value(scheduled.schedule).unwrap(), given);
    let staged =
        json!({"deployment_strategy": "scheduled", "schedule": given, "stages": [{"percent": 5}]});
    assert_eq!(spec(&staged).stages.len(), 2);
    assert_eq!(spec(&json!({})).schedule, Schedule::default());
}

#[test]
fn a_list_that_came_out_empty_is_not_everybody() {
    for field in ["target_devices", "target_groups"] {
        let told = format!(
            "{field} must be at least one; leave it out to mean every device of the image's model"
        );
        refused(&json!({field: []}), &told);
    }
    let one_names_somebody = json!({"target_devices": [], "target_groups": ["lab"]});
    assert_eq!(spec(&one_names_somebody).targets.groups, ["lab"]);
}

#[test]
fn numbers_and_texts_are_bounded() {
    let one = |field: &str, value: Value, text: &str| refused(&json!({field: value}), text);
    one("name", json!(""), "name must not be empty");
    one(
        "name",
        json!("n".repeat(129)),
        "name must be at most 128 bytes without control characters",
    );
    one(
        "description",
        json!("d".repeat(16_385)),
        "description must be at most 16384 bytes",
    );
    one(
        "target_devices",
        json!(vec!["d"; 200_001]),
        "target_devices must be at most 200000 ids",
    );
    one(
        "target_groups",
        json!(vec!["g"; 1_001]),
        "target_groups must be at most 1000 names",
    );
    one(
        "target_groups",
        json!([""]),
        "target_groups must not be empty",
    );
    for percent in [0.0, -1.0, 100.5] {
        one(
            "rollout_percentage",
            json!(percent),
            "rollout_percentage must be above 0 and at most 100",
        );
    }
    for slots in [0, 1_000_001] {
        one(
            "max_concurrent_updates",
            json!(slots),
            "max_concurrent_updates must be 1 to 1000000",
        );
        one(
            "batch_size",
            json!(slots),
            "batch_size must be 1 to 1000000",
        );
    }
    for minutes in [0.0, -1.0, 0.01, 43_200.1] {
        one(
            "timeout_minutes",
            json!(minutes),
            "timeout_minutes must be at least one second and at most 43200",
        );
    }
    for (timeouts, field) in [
        (json!({"download_minutes": 60.1}), "download_minutes"),
        (json!({"download_minutes": 0.01}), "download_minutes"),
        (json!({"install_minutes": 61}), "install_minutes"),
    ] {
        one(
            "timeouts",
            timeouts,
            &format!(
                "timeouts.{field} must be at least one second and at most timeout_minutes, the time of a whole attempt"
            ),
        );
    }
    for hours in [0.99, 8_760.1] {
        one(
            "give_up_after_hours",
            json!(hours),
            "give_up_after_hours must be at least timeout_minutes, the time of a whole attempt, and at most 8760",
        );
    }
    one("max_retries", json!(101), "max_retries must be at most 100");
    for threshold in [-0.1, 100.1] {
        one(
            "failure_threshold_percent",
            json!(threshold),
            "failure_threshold_percent must be 0 to 100",
        );
    }
    let battery = json!({"min_battery_percent": 101});
    one(
        "requires",
        battery,
        "requires.min_battery_percent must be 0 to 100",
    );
    one(
        "requires",
        json!({"min_free_storage_bytes": -1}),
        "requires.min_free_storage_bytes must be 0 or more",
    );
    let by_service = draft(&json!({}))
        .into_spec(f64::NAN, 0, device_ota_domain::ring::Shares::default())
        .unwrap_err()
        .to_string();
    assert_eq!(by_service, "failure_threshold_percent must be 0 to 100");
}

#[test]
fn fields_that_are_not_served_are_refused_by_name() {
    let json = json!({"name": "a", "firmware_id": "0".repeat(32), "canary_share": 5});
    let error = serde_json::from_value::<CampaignDraft>(json)
        .unwrap_err()
        .to_string();
    assert!(error.contains("unknown field `canary_share`"), "{error}");
}

/// Drafts of every strategy that is served, with and without stages of their own.
fn drafts() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let gate = (
        0..=400_u32,
        any::<Option<u32>>(),
        0..1_000_u64,
        any::<bool>(),
    );
    let gate = gate.prop_map(|(percent, samples, soak, manual)| {
        json!({"min_success_percent": f64::from(percent) / 4.0, "min_samples": samples, "soak_seconds": soak, "manual": manual})
    });
    let stage = (1..100_000_u32, proptest::option::of(gate));
    let stages = prop_oneof![
        Just(json!([])),
        Just(json!([{"ring": "canary"}, {"ring": "early"}, {"ring": "broad"}, {"ring": "production"}])),
        Just(json!([{"devices": ["frame-2"]}, {"count": 3, "gate": {"soak_seconds": 5}}, {"count": 30}, {"ring": "early"},
            {"filter": {"field": "firmware_version", "op": "eq", "value": "1.0.0"}}])),
        Just(json!([{"percent": 0.5}, {"ring": "broad", "gate": {"manual": true}}])),
        proptest::collection::vec(stage, 1..=64).prop_map(|mut stages| {
            stages.sort_by_key(|(share, _)| *share);
            stages.dedup_by_key(|(share, _)| *share / 10);
            let stage = |(share, gate): (u32, Option<Value>)| json!({"percent": f64::from(share) / 1_000.0, "gate": gate});
            stages.into_iter().map(stage).collect::<Value>()
        }),
    ];
    let numbers = (
        1..=10_000_u32,
        1..1_000_000_u32,
        0..=1_000_u32,
        any::<bool>(),
    );
    let strategy = prop_oneof!["immediate", "scheduled", "staged", "canary", "blue_green"];
    (stages, numbers, strategy).prop_map(|(stages, (share, seconds, threshold, flag), strategy)| {
        let stages = if strategy == "immediate" { json!([]) } else { stages };
        json!({
            "deployment_strategy": strategy, "stages": stages, "rollout_percentage": f64::from(share) / 100.0,
            "timeout_minutes": f64::from(seconds) / 60.0, "failure_threshold_percent": f64::from(threshold) / 10.0,
            "timeouts": if flag { json!({"download_minutes": f64::from(seconds) / 60.0}) } else { json!({"install_minutes": f64::from(seconds) / 60.0}) },
            "give_up_after_hours": flag.then(|| f64::from(seconds) / 3_600.0),
            "auto_rollback": flag, "continuous": flag, "requires_approval": flag, "description": flag.then_some("of spring"),
            "target_devices": if flag { json!(["frame-1", "frame-2"]) } else { json!([]) },
            "target_groups": ["lab"], "priority": "critical", "max_concurrent_updates": seconds, "batch_size": 7,
            "bandwidth_bytes_per_second": flag.then_some(seconds),
            "target_filters": {"not": {"field": "firmware_version", "op": "semver", "value": ">=2.0.0"}},
            "schedule": {"start_at": "2026-01-01T08:00:00Z", "end_at": null, "on_end": "cancel"},
            "requires": {"min_battery_percent": 30}, "max_retries": 5,
            "windows": [{"days": ["sat", "sun"], "start": "22:30", "duration_minutes": 90, "time_zone": "Asia/Tokyo"},
                {"days": [], "start": "00:00", "duration_minutes": 5, "time_zone": "device"}],
            "rate": if flag { json!({"per_minute": seconds}) } else {
                json!({"base_per_minute": 1, "factor": 1.5, "every": {"succeeded": share}, "max_per_minute": seconds})
            },
            "abort": [{"on": "timed_out", "percent": 2.5, "min_samples": 7, "action": "rollback"}], "failure_min_samples": 3,
        })
    })
}

proptest::proptest! {
    #[test]
    fn what_is_read_of_a_campaign_makes_the_same_campaign(fields in drafts()) {
        let rings = device_ota_domain::ring::Shares::default();
        let named = draft(&fields).named();
        let made = draft(&fields).into_spec(20.0, 7, rings);
        proptest::prop_assume!(made.is_ok()); // shares that round to the same place are refused
        let spec = made.unwrap();
        let shown = serde_json::to_value(spec.to_draft(&named, true)).unwrap();
        let read: CampaignDraft = serde_json::from_value(shown).unwrap();
        proptest::prop_assert!(read.requires_approval);
        proptest::prop_assert_eq!(read.named(), named);
        // Whatever the service's own threshold is by then.
        proptest::prop_assert_eq!(read.into_spec(90.0, 7, rings).unwrap(), spec);
    }
}

#[test]
fn a_spec_survives_storage() {
    let spec = spec(&json!({"target_groups": ["lab"], "requires": {"min_battery_percent": 30}}));
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<CampaignSpec>(&json).unwrap(), spec);
}
