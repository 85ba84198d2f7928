//! Parsers against any bytes: none panics, and what is built is read back the same.

use device_ota_protocol::digest::Digest;
use device_ota_protocol::dsse::Envelope;
use device_ota_protocol::ids::DeviceId;
use device_ota_protocol::keys::{Keypair, PublicKey};
use device_ota_protocol::messages::{
    Check, CheckReason, ChunkRequest, ErrorCode, Heartbeat, MAX_ERRORS, MAX_METRICS, MAX_NAME,
    MAX_PAYLOAD, MAX_TEXT, Offer, Phase, Progress, Reply, Report, SeenError, parse_report,
};
use device_ota_protocol::topics::{Down, Prefix, Topic, Up, filter_matches, is_valid_filter};
use proptest::prelude::*;

fn any_up() -> impl Strategy<Value = Up> {
    prop::sample::select(Up::ALL)
}

fn any_topic() -> impl Strategy<Value = Topic> {
    let down = prop_oneof![
        Just(Down::Offer),
        Just(Down::Command),
        Just(Down::Reply),
        (any::<u32>(), any::<u64>()).prop_map(|(request, offset)| Down::Chunk { request, offset }),
    ];
    let id = "[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}".prop_map(|id| DeviceId::try_from(id).expect("id"));
    prop_oneof![
        (id.clone(), any_up()).prop_map(|(id, up)| Topic::Up(id, up)),
        (id, down).prop_map(|(id, down)| Topic::Down(id, down)),
    ]
}

/// Text that is nearly a topic, or anything at all.
fn near_topic() -> impl Strategy<Value = String> {
    let level = prop_oneof![
        Just("ota".to_owned()),
        Just("v1".to_owned()),
        Just("+".to_owned()),
        Just("#".to_owned()),
        Just("up".to_owned()),
        Just("down".to_owned()),
        Just("chunk".to_owned()),
        Just("offer".to_owned()),
        Just("frame-1".to_owned()),
        Just("$SYS".to_owned()),
        "\\PC{0,4}",
        "[0-9+-]{0,22}",
        Just(String::new()),
    ];
    prop_oneof![
        prop::collection::vec(level, 0..8).prop_map(|levels| levels.join("/")),
        any::<String>(),
    ]
}

/// A JSON document whose keys are those of the protocol and whose values are anything.
fn near_message() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "version",
        "slot",
        "uptime_s",
        "battery",
        "percent",
        "errors",
        "metrics",
        "location",
        "network",
        "update_id",
        "attempt",
        "seq",
        "phase",
        "error",
        "code",
        "request",
        "sha256",
        "offset",
        "length",
        "count",
        "online",
        "reason",
        "nonce",
        "offer",
        "time",
        "release",
        "assignment",
        "payload",
        "payloadType",
        "signatures",
        "keyid",
        "sig",
        "sent_at",
    ]);
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<u64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        "\\PC{0,8}".prop_map(|s| serde_json::to_string(&s).expect("a string")),
        prop::sample::select(vec![
            "\"completed\"",
            "\"failed\"",
            "\"2.0.0\"",
            "\"boot\"",
            "1e999"
        ])
        .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[{}]", v.join(","))),
            prop::collection::vec((key.clone(), inner), 0..8).prop_map(|fields| {
                let fields: Vec<_> = fields.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

fn read_everything(bytes: &[u8]) {
    for up in Up::ALL {
        let _ = parse_report(*up, bytes);
    }
    let _ = Offer::parse(bytes);
    let _ = Reply::parse(bytes);
    let _ = Envelope::from_json(bytes);
}

proptest! {
    #[test]
    fn every_topic_is_read_back(topic in any_topic()) {
        let prefix: Prefix = "fleet/ota/v1".parse().expect("a prefix");
        let text = prefix.format(&topic);
        prop_assert_eq!(prefix.parse(&text), Ok(topic.clone()));
        let (Topic::Up(id, _) | Topic::Down(id, _)) = &topic;
        let up = matches!(topic, Topic::Up(..));
        prop_assert_eq!(prefix.may_publish(id, &text), up);
        prop_assert_eq!(prefix.may_subscribe(id, &text), !up);
        prop_assert_eq!(filter_matches(&prefix.up_all(id), &text), up);
        prop_assert_eq!(filter_matches(&prefix.down_all(id), &text), !up);
    }

    #[test]
    fn no_string_panics_as_a_topic_and_what_parses_is_canonical(text in near_topic()) {
        let prefix = Prefix::default();
        if let Ok(topic) = prefix.parse(&text) {
            prop_assert_eq!(prefix.format(&topic), text.clone());
        }
        let _ = text.parse::<Prefix>();
        let _ = text.parse::<DeviceId>();
        let _ = text.parse::<Digest>();
        let _ = text.parse::<PublicKey>();
        let _ = Keypair::from_pkcs8_pem(&text);
    }

    #[test]
    fn a_granted_filter_matches_nothing_outside_the_devices_own_tree(
        filter in near_topic(), tail in near_topic(), topic in near_topic(),
    ) {
        let prefix = Prefix::default();
        let id: DeviceId = "frame-1".parse().expect("an id");
        for filter in [filter, format!("ota/v1/frame-1/down/{tail}")] {
            if !prefix.may_subscribe(&id, &filter) {
                continue;
            }
            prop_assert!(is_valid_filter(&filter));
            for topic in [topic.clone(), format!("ota/v1/{topic}"), format!("ota/v1/frame-1/{topic}")] {
                if filter_matches(&filter, &topic) {
                    prop_assert!(filter_matches("ota/v1/frame-1/down/#", &topic));
                }
            }
        }
    }

    #[test]
    fn no_bytes_panic_a_reader(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        read_everything(&bytes);
    }

    #[test]
    fn no_near_message_panics_a_reader_and_what_is_read_is_written_back(text in near_message()) {
        read_everything(text.as_bytes());
        if let Ok(report) = parse_report(Up::Heartbeat, text.as_bytes())
            && let Report::Heartbeat(heartbeat) = report
        {
            prop_assert_eq!(Heartbeat::parse(&heartbeat.to_bytes()), Ok(*heartbeat));
        }
    }
}

#[test]
fn a_full_heartbeat_is_read_and_written_back() {
    let text = r#"{"version":"2.0.0","slot":"a","confirmed":true,"boot_id":"b1","uptime_s":60,"sent_at":"2026-11-01T12:00:00Z","device_type":"frame","device_model":"SF-100","manufacturer":"Acme","hw_revision":"r2","battery":{"percent":80.5,"charging":false},"storage":{"free_bytes":1,"total_bytes":2},"memory":{"free_bytes":3,"total_bytes":4},"cpu_percent":12.5,"temperature_c":40.0,"network":{"type":"wifi","signal_dbm":-60.0,"carrier":"none"},"location":{"lat":52.5,"lon":13.4,"accuracy_m":10.0},"errors":[{"code":"E1","message":"m","at":"2026-11-01T11:00:00Z","count":2}],"metrics":{"fps":30.0},"accepts":["http","mqtt"],"security_floor":1}"#;
    let heartbeat = Heartbeat::parse(text.as_bytes()).expect("a heartbeat");
    assert_eq!(String::from_utf8(heartbeat.to_bytes()).as_deref(), Ok(text));
    let smallest = Heartbeat::parse(br#"{"version":"1"}"#).expect("a heartbeat");
    assert_eq!(smallest.to_bytes(), br#"{"version":"1"}"#);
}

#[track_caller]
fn dropped(up: Up, payload: &str, reason: &str) {
    let invalid = parse_report(up, payload.as_bytes()).expect_err(payload);
    assert_eq!(invalid.reason(), reason, "{payload}: {invalid}");
}

#[test]
fn every_bound_has_its_reason() {
    let beat = |field: &str| format!(r#"{{"version":"1",{field}}}"#);
    for field in [
        r#""battery":{"percent":-1}"#,
        r#""cpu_percent":100.1"#,
        r#""location":{"lat":91,"lon":0}"#,
        r#""uptime_s":9007199254740992"#,
        r#""uptime_s":-1"#,
        r#""storage":{"free_bytes":9007199254740992}"#,
        r#""device_model":"""#,
        r#""boot_id":"a\u0000b""#,
        &format!(r#""manufacturer":"{}""#, "é".repeat(MAX_NAME + 1)),
        &format!(
            r#""errors":[{{"code":"E","message":"{}"}}]"#,
            "x".repeat(MAX_TEXT + 1)
        ),
    ] {
        dropped(Up::Heartbeat, &beat(field), "out_of_range");
    }
    dropped(Up::Heartbeat, &beat(r#""slot":"c""#), "wrong_type");
    dropped(Up::Heartbeat, &beat(r#""battery":{}"#), "missing_field");
    dropped(Up::Heartbeat, &beat(r#""cpu_percent":NaN"#), "not_json");
    dropped(Up::Heartbeat, &beat(r#""version":"2""#), "wrong_type");
    dropped(Up::Heartbeat, &" ".repeat(MAX_PAYLOAD + 1), "too_large");
    dropped(Up::Status, r#"{"reason":"will"}"#, "missing_field");
    dropped(Up::Check, r#"{"version":""}"#, "out_of_range");

    let long = beat(&format!(r#""manufacturer":"{}""#, "é".repeat(MAX_NAME)));
    assert!(
        Heartbeat::parse(long.as_bytes()).is_ok(),
        "characters count, not bytes"
    );
}

#[test]
fn lists_have_their_bounds() {
    let error = SeenError {
        code: "E".into(),
        message: None,
        at: None,
        count: None,
    };
    let with = |errors, metrics: usize| Heartbeat {
        version: "1".into(),
        errors: vec![error.clone(); errors],
        metrics: (0..metrics).map(|n| (n.to_string(), 0.0)).collect(),
        ..Heartbeat::default()
    };
    assert!(with(MAX_ERRORS, MAX_METRICS).validate().is_ok());
    assert!(with(MAX_ERRORS + 1, 0).validate().is_err());
    assert!(with(0, MAX_METRICS + 1).validate().is_err());
}

#[test]
fn progress_fits_its_phase() {
    let report = |fields: &str| format!(r#"{{"update_id":"u","attempt":1,"seq":1,{fields}}}"#);
    for phase in Phase::ALL {
        let bare = report(&format!(r#""phase":"{phase}""#));
        let refused = Progress::parse(bare.as_bytes()).is_err();
        assert_eq!(refused, phase.needs_error(), "{phase}");
    }
    dropped(Up::Progress, &report(r#""phase":"dancing""#), "wrong_type");
    dropped(
        Up::Progress,
        &report(r#""phase":"accepted","percent":100.5"#),
        "out_of_range",
    );
    let zero = r#"{"update_id":"u","attempt":0,"seq":1,"phase":"accepted"}"#;
    dropped(Up::Progress, zero, "out_of_range");
    let zero = r#"{"update_id":"u","attempt":1,"seq":0,"phase":"accepted"}"#;
    dropped(Up::Progress, zero, "out_of_range");
}

#[test]
fn words_of_newer_devices_do_not_cost_their_reports() {
    let text = r#"{"update_id":"u","attempt":1,"seq":1,"phase":"failed","error":{"code":"gremlins","message":"m"}}"#;
    let report = Progress::parse(text.as_bytes()).expect("a report");
    assert_eq!(report.error.map(|e| e.code), Some(ErrorCode::Internal));
    let check = Check::parse(br#"{"version":"1","reason":"moon"}"#).expect("a check");
    assert_eq!(check.reason, Some(CheckReason::Poll));
}

#[test]
fn chunks_end_with_the_image() {
    let ask = |offset, length, count| ChunkRequest {
        request: 1,
        sha256: Digest::of(b""),
        offset,
        length,
        count,
    };
    let chunks: Vec<_> = ask(100, 50, 4).chunks(230).collect();
    assert_eq!(chunks, [(100, 50), (150, 50), (200, 30)]);
    assert_eq!(ask(230, 50, 4).chunks(230).count(), 0);
    assert_eq!(
        ask(u64::MAX, u32::MAX, u32::MAX).chunks(u64::MAX).count(),
        0
    );
}
