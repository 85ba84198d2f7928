//! Ids, rings, formats, pages, registrations, upload metadata: what they take and what they refuse.

use device_ota_domain::campaign::{Group, Priority, Tally};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::device::{DeviceChange, Registration};
use device_ota_domain::firmware::{Format, UploadMetadata};
use device_ota_domain::page::{MAX_LIMIT, Page};
use device_ota_domain::ring::{BUCKETS, Ring, bucket, turned};
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::update::{back_off, put_off};
use device_ota_domain::{CampaignId, DeviceId, FirmwareId, RollbackId, UpdateId};
use proptest::prelude::*;
use serde_json::json;

/// A registration's names, beside its groups and tags.
const TEXTS: [&str; 5] = [
    "device_model",
    "device_type",
    "manufacturer",
    "hw_revision",
    "firmware_version",
];

#[test]
fn device_ids_are_one_plain_topic_level() {
    for good in ["a", "7", "frame-1", "AA:BB:CC", "x_.:-", &"d".repeat(64)] {
        assert_eq!(good.parse::<DeviceId>().unwrap().as_str(), good);
    }
    let long = "d".repeat(65);
    for bad in [
        "",
        "-a",
        "_a",
        ".a",
        ":a",
        "a/b",
        "a+",
        "#",
        "$SYS",
        "a b",
        "a\n",
        "a\0",
        "é",
        "aé",
        long.as_str(),
    ] {
        let error = bad.parse::<DeviceId>().unwrap_err().to_string();
        let shown: String = bad.chars().take(64).collect();
        let rule =
            "it must start with a letter or digit and hold at most 64 of A-Z a-z 0-9 _ . : -";
        assert_eq!(error, format!("device_id {shown:?} is not valid: {rule}"));
    }
}

#[test]
fn other_ids_have_a_prefix_and_digits() {
    let refused = |error: String, rule: &str| assert!(error.ends_with(rule), "{error}");
    for bad in [
        "",
        "camp_",
        "camp_0123456789abcde",
        "camp_0123456789abcdef0",
        "camp_0123456789ABCDEF",
        "upd_0123456789abcdef",
    ] {
        refused(
            bad.parse::<CampaignId>().unwrap_err().to_string(),
            "it is camp_ and 16 lower-case hex digits",
        );
    }
    for bad in [
        "",
        "upd_",
        "upd_0123456789abcde",
        &format!("upd_{}", "0".repeat(41)),
        "rb_0123456789abcdef",
    ] {
        refused(
            bad.parse::<UpdateId>().unwrap_err().to_string(),
            "it is upd_ and 16 to 40 lower-case hex digits",
        );
    }
    for bad in ["", "rb_", "upd_0123456789abcdef", "rb_0123456789abcdeg"] {
        refused(
            bad.parse::<RollbackId>().unwrap_err().to_string(),
            "it is rb_ and 16 to 40 lower-case hex digits",
        );
    }
    for bad in ["", &"a".repeat(31), &"a".repeat(33), &"A".repeat(32)] {
        refused(
            bad.parse::<FirmwareId>().unwrap_err().to_string(),
            "it is 32 lower-case hex digits",
        );
    }
    assert_eq!(
        CampaignId::from_entropy([0xab; 8]).as_str(),
        "camp_abababababababab"
    );
    let update = UpdateId::from_entropy([1; 8]);
    assert_eq!(RollbackId::of(&update).as_str(), "rb_0101010101010101");
}

#[test]
fn a_firmware_id_is_its_document_s_hash() {
    // printf 'frame:2.0.0:SF-100' | sha256sum | cut -c-32
    assert_eq!(
        FirmwareId::of("frame", "2.0.0", "SF-100").as_str(),
        FRAME_ID
    );
}

const FRAME_ID: &str = "31c057f66bbbcb2a0fbe762b87355031";

#[test]
fn ids_are_checked_when_they_are_read() {
    assert!(serde_json::from_str::<DeviceId>("\"a/b\"").is_err());
    let id: DeviceId = serde_json::from_str("\"frame-1\"").unwrap();
    assert_eq!(serde_json::to_string(&id).unwrap(), "\"frame-1\"");
}

proptest! {
    #[test]
    fn whatever_is_taken_as_a_device_id_is_safe_in_a_topic(text in "\\PC{0,70}") {
        if let Ok(id) = text.parse::<DeviceId>() {
            prop_assert_eq!(id.as_str(), &text);
            prop_assert!(text.len() <= 64 && text.is_ascii());
            prop_assert!(!text.contains(['/', '+', '#', '$', ' ']));
        }
    }

    #[test]
    fn the_wheel_turns_for_any_number(place: u16, offset: u16) {
        prop_assert!(turned(place, offset) < BUCKETS);
    }

    #[test]
    fn a_pause_doubles_up_to_its_longest_with_up_to_a_quarter_more(retry in 1..40_u32, device: i64) {
        let device = DeviceKey(device);
        for (code, first, longest) in [
            ("download_failed", 15, 900), ("hash_mismatch", 30, 3_600), ("timeout", 30, 3_600), ("anything", 30, 3_600),
            ("low_battery", 900, 14_400), ("low_storage", 900, 14_400), ("user_deferred", 900, 14_400),
        ] {
            let base = (1..retry).fold(first, |pause: u64, _| (pause * 2).min(longest));
            let pause = back_off(code, retry, device);
            prop_assert!((base..=base * 5 / 4).contains(&pause), "{code}: {pause} instead of {base}");
            prop_assert_eq!(pause, back_off(code, retry, device), "always the same");
        }
    }

    #[test]
    fn a_device_puts_off_as_long_as_it_says_within_bounds(asked: Option<u64>, times: u32, device: i64) {
        let pause = put_off(asked, times, DeviceKey(device));
        let least = asked.map_or(900, |asked| asked.clamp(30, 604_800));
        let most = asked.map_or(18_000, |asked| asked.clamp(14_400, 604_800) + 600);
        prop_assert!((least..=most).contains(&pause), "{pause}");
    }
}

#[test]
fn a_fleet_that_failed_together_does_not_return_together() {
    // Whatever the numbers of its devices have in common.
    for step in [1, 2, 7, 1_000, 4_096] {
        for (code, seconds) in [("download_failed", 60_usize), ("hash_mismatch", 120)] {
            let mut seen = std::collections::BTreeMap::<u64, usize>::new();
            for device in 0..1_000 {
                let pause = back_off(code, 5, DeviceKey(device * step));
                *seen.entry(pause).or_default() += 1;
            }
            let most = seen.values().max().unwrap();
            assert!(
                *most <= 3_000 / seconds,
                "{most} of 1000 in one second, {code}, {step}"
            );
        }
    }
}

#[test]
fn rings_take_their_shares_of_a_large_fleet_whatever_the_offset() {
    let buckets: Vec<u16> = (0..100_000)
        .map(|i| bucket(&format!("device-{i}")))
        .collect();
    for offset in [0, 1, 4_999, 9_999] {
        let mut devices = [0_u32; 4];
        for b in &buckets {
            let ring = Ring::ALL
                .into_iter()
                .position(|r| {
                    turned(*b, offset) < device_ota_domain::ring::Shares::default().end_bucket(r)
                })
                .unwrap();
            devices[ring] += 1;
        }
        for (have, want) in devices.into_iter().zip([5_000_u32, 20_000, 50_000, 25_000]) {
            assert!(
                have.abs_diff(want) < 600,
                "{have} devices where {want} belong, offset {offset}"
            );
        }
    }
}

#[test]
fn a_device_s_place_on_the_wheel_never_changes() {
    assert_eq!(
        ["frame-1", "frame-2", "AA:BB:CC"].map(bucket),
        [6_431, 2_659, 9_779]
    );
    assert_eq!(
        Ring::ALL.map(Ring::name),
        ["canary", "early", "broad", "production"]
    );
    assert!(
        Ring::ALL
            .into_iter()
            .all(|r| Ring::from_name(r.name()) == Some(r))
    );
    assert_eq!(Ring::from_name("Canary"), None);
}

#[test]
fn formats_are_told_by_the_suffix() {
    for (name, format) in [
        ("a.bin", Some(Format::Bin)),
        ("a.HEX", Some(Format::Hex)),
        ("v1.2.elf", Some(Format::Elf)),
        ("a.tar.gz", Some(Format::TarGz)),
        ("a.zip", Some(Format::Zip)),
        ("a.gz", None),
        ("abin", None),
        (".tar.gz", None),
        ("a.bin.exe", None),
        ("", None),
        ("é.bin", Some(Format::Bin)),
    ] {
        assert_eq!(Format::of_file_name(name), format, "{name}");
    }
    for format in Format::ALL {
        assert_eq!(Format::from_name(format.name()), Some(format));
        assert_eq!(serde_json::to_value(format).unwrap(), format.name());
    }
    assert_eq!(Format::from_name("exe"), None);
}

#[test]
fn small_names_stand() {
    assert!(
        Priority::ALL
            .into_iter()
            .all(|p| Priority::from_rank(p.rank()) == Some(p))
    );
    assert_eq!(
        Priority::ALL.map(Priority::name),
        ["low", "normal", "high", "critical"]
    );
    assert_eq!(Priority::from_rank(4), None);
    assert_eq!(
        RollbackTrigger::from_name("manual"),
        Some(RollbackTrigger::Manual)
    );
    assert_eq!(
        RollbackTrigger::from_name("failure_threshold"),
        Some(RollbackTrigger::FailureThreshold)
    );
    assert_eq!(RollbackTrigger::from_name("whim"), None);
}

#[test]
fn pages_are_bounded() {
    assert_eq!(Page::new(0, 0), None);
    assert_eq!(Page::new(MAX_LIMIT + 1, 0), None);
    assert_eq!(
        Page::new(MAX_LIMIT, 7),
        Some(Page {
            limit: MAX_LIMIT,
            offset: 7
        })
    );
}

#[test]
fn tallies_add_up_and_never_overflow() {
    let mut tally = Tally::default();
    let groups = [
        Group::Pending,
        Group::InFlight,
        Group::Completed,
        Group::Failed,
        Group::Cancelled,
    ];
    for (n, group) in (1_u64..).zip(groups) {
        *tally.of_mut(group) += n;
        assert_eq!(tally.of(group), n);
    }
    assert_eq!((tally.total(), tally.settled(), tally.open()), (15, 7, 3));
    assert_eq!(tally.plus(&tally).total(), 30);
    assert!((tally.failure_percent().unwrap() - 400.0 / 7.0).abs() < 1e-9);
    assert_eq!(Tally::default().failure_percent(), None);
    *tally.of_mut(Group::Failed) = u64::MAX;
    assert_eq!(tally.plus(&tally).total(), u64::MAX);
}

fn registration(fields: &serde_json::Value) -> Result<(), String> {
    let mut json = serde_json::json!({"device_id": "frame-1", "device_model": "SF-100"});
    for (name, value) in fields.as_object().unwrap() {
        json[name] = value.clone();
    }
    serde_json::from_value::<Registration>(json)
        .unwrap()
        .check()
        .map_err(|e| e.to_string())
}

#[test]
fn registrations_are_bounded_field_by_field() {
    let refused = |fields: serde_json::Value, text: &str| {
        assert_eq!(registration(&fields).unwrap_err(), text);
    };
    let long = "x".repeat(129);
    let groups: Vec<_> = (0..33).map(|i| i.to_string()).collect();
    let tags: std::collections::BTreeMap<_, _> = (0..65).map(|i| (i.to_string(), "")).collect();
    registration(&serde_json::json!({"groups": ["lab"], "tags": {"floor": ""}, "ring": "canary"}))
        .unwrap();
    refused(
        serde_json::json!({"device_model": ""}),
        "device_model must not be empty",
    );
    refused(
        serde_json::json!({"tags": {"": "x"}}),
        "tags must not be empty",
    );
    for field in TEXTS {
        let text = format!("{field} must be at most 128 bytes without control characters");
        refused(serde_json::json!({field: long}), &text);
        refused(serde_json::json!({field: "a\u{7}b"}), &text);
    }
    let text = "groups must be at most 128 bytes without control characters";
    refused(serde_json::json!({"groups": ["a\nb"]}), text);
    refused(
        serde_json::json!({"tags": {"a": "b\n"}}),
        "tags must be at most 128 bytes without control characters",
    );
    refused(
        serde_json::json!({"groups": groups}),
        "groups has too many entries, at most 32",
    );
    refused(
        serde_json::json!({"tags": tags}),
        "tags has too many entries, at most 64",
    );
}

fn metadata(fields: &serde_json::Value) -> Result<(), String> {
    let mut json = serde_json::json!(
        {"name": "frame", "version": "2.0.0", "device_model": "SF-100", "manufacturer": "Acme"}
    );
    for (name, value) in fields.as_object().unwrap() {
        json[name] = value.clone();
    }
    serde_json::from_value::<UploadMetadata>(json)
        .unwrap()
        .check()
        .map_err(|e| e.to_string())
}

#[test]
fn upload_metadata_are_bounded_field_by_field() {
    let refused =
        |fields: serde_json::Value, text: &str| assert_eq!(metadata(&fields).unwrap_err(), text);
    metadata(&serde_json::json!({"version": "2.1.0-rc.1+build.5", "checksum_md5": "0".repeat(32)}))
        .unwrap();
    for field in ["name", "version", "device_model", "manufacturer"] {
        refused(
            serde_json::json!({field: ""}),
            &format!("{field} must not be empty"),
        );
    }
    for version in ["2", "2.1", "v2.1.0", "two"] {
        let text = format!("version {version:?} is not a semantic version such as 2.1.0");
        refused(serde_json::json!({"version": version}), &text);
    }
    let notes = "n".repeat(16 * 1024 + 1);
    refused(
        serde_json::json!({"description": notes}),
        "description must be at most 16384 bytes",
    );
    refused(
        serde_json::json!({"release_notes": notes}),
        "release_notes must be at most 16384 bytes",
    );
    refused(
        serde_json::json!({"min_battery_percent": 101}),
        "min_battery_percent must be 0 to 100",
    );
    refused(
        serde_json::json!({"min_free_storage_bytes": -1}),
        "min_free_storage_bytes must be 0 or more",
    );
    refused(
        serde_json::json!({"hw_revisions": vec!["r"; 65]}),
        "hw_revisions must be a list of at most 32",
    );
    refused(
        serde_json::json!({"hw_revisions": [""]}),
        "hw_revisions must not be empty",
    );
    refused(
        serde_json::json!({"checksum_md5": "0".repeat(31)}),
        "checksum_md5 must be 32 hex digits",
    );
    refused(
        serde_json::json!({"checksum_sha256": "g".repeat(64)}),
        "checksum_sha256 must be 64 hex digits",
    );
}

#[test]
fn of_an_image_what_is_not_signed_changes_and_only_while_it_is_in_use() {
    use device_ota_domain::firmware::FirmwareChange;
    use serde_json::json;
    let change = |json| serde_json::from_value::<FirmwareChange>(json);
    let image = crate::events::firmware();
    let asked = change(json!({"description": "new", "min_battery_percent": 30, "is_beta": true}));
    let changed = image
        .clone()
        .change(asked.unwrap(), crate::sample::at(5))
        .unwrap();
    let said = &changed.metadata;
    assert_eq!(
        (
            said.description.as_deref(),
            said.min_battery_percent,
            said.is_beta
        ),
        (Some("new"), Some(30), true)
    );
    let cleared = change(json!({"description": null})).unwrap();
    let changed = changed.change(cleared, crate::sample::at(6)).unwrap();
    let said = &changed.metadata;
    assert_eq!(
        (&said.description, said.min_battery_percent),
        (&None, Some(30))
    );
    assert_eq!(changed.updated_at, crate::sample::at(6));
    assert!(change(json!({"version": "3.0.0"})).is_err());
    let gone = changed.deprecate(crate::sample::at(7)).unwrap();
    assert_eq!(gone.deprecated_at, Some(crate::sample::at(7)));
    let refused = gone.change(FirmwareChange::default(), crate::sample::at(8));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "Smart Frame Firmware 2.1.0 for SF-100 was deprecated; upload it under a new version"
    );
}

#[test]
fn a_change_of_a_device_leaves_what_it_does_not_name_and_clears_what_is_null() {
    let known =
        r#"{"device_id":"a","device_model":"m","hw_revision":"B","groups":["g"],"ring":"early"}"#;
    let known: Registration = serde_json::from_str(known).unwrap();
    let change = |given: &str| {
        let change: Result<DeviceChange, _> = serde_json::from_str(given);
        change.map(|change| known.clone().change(change))
    };
    let changed = change(r#"{"ring":null,"groups":null,"tags":{"floor":"2"}}"#).unwrap();
    assert_eq!(
        (changed.ring, changed.groups.len(), changed.tags.len()),
        (None, 0, 1)
    );
    assert_eq!(changed.hw_revision.as_deref(), Some("B"));
    assert_eq!(change("{}").unwrap(), known);
    assert_eq!(change(r#"{"device_id":"a"}"#).unwrap(), known);
    let other = change(r#"{"device_model":"n","hw_revision":null}"#).unwrap();
    assert_eq!(
        (other.device_model.as_str(), other.hw_revision),
        ("n", None)
    );
    for (wrong, says) in [
        (r#"{"ring":"red"}"#, "unknown variant `red`"),
        (r#"{"colour":"red"}"#, "unknown field `colour`"),
        (r#"{"device_model":null}"#, "invalid type: null"),
        (r#"{"device_id":null}"#, "invalid type: null"),
    ] {
        let complaint = change(wrong).unwrap_err().to_string();
        assert!(complaint.starts_with(says), "{complaint}");
    }
}

/// Zero-width, joiners, directions, fillers.
const UNSEEN: [char; 6] = [
    '\u{200b}', '\u{200d}', '\u{202e}', '\u{2066}', '\u{feff}', '\u{3164}',
];

#[test]
fn no_name_holds_what_is_not_seen() {
    let refused = |json: serde_json::Value| {
        let device: Registration = serde_json::from_value(json).unwrap();
        device.check().unwrap_err().to_string()
    };
    for unseen in UNSEEN {
        let text = format!("SF{unseen}-100");
        for field in TEXTS {
            let mut device = json!({"device_id": "a", "device_model": "m"});
            device[field] = json!(text);
            assert_eq!(
                refused(device),
                format!(
                    "{field} must hold no invisible characters (of no width, or that change the direction of writing)"
                )
            );
        }
        let group = refused(json!({"device_id": "a", "device_model": "m", "groups": [text]}));
        assert!(
            group.starts_with("groups must hold no invisible"),
            "{group}"
        );
        let tag =
            refused(json!({"device_id": "a", "device_model": "m", "tags": {text.clone(): "v"}}));
        assert!(tag.starts_with("tags must hold no invisible"), "{tag}");
        let told = metadata(&json!({"name": text})).unwrap_err();
        assert!(told.starts_with("name must hold no invisible"), "{told}");
    }
    // The value of a tag is no name.
    let device = json!({"device_id": "a", "device_model": "m", "tags": {"by": "👩\u{200d}🔧"}});
    let device: Registration = serde_json::from_value(device).unwrap();
    device.check().unwrap();
}
