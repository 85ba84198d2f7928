//! Strangers by the hundred: a device that means well is served all the while, and the service outlives them.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::net::TcpStream;

use crate::harness::raw::{Packet, Raw, connect, packet, publish, subscribe};
use crate::harness::{Device, MqttVersion, Options, Service, device_json, within};

matrix!(idle_strangers_and_slow_ones_keep_nobody_out: sqlite_gateway);
matrix!(malformed_bytes_by_the_hundred_end_only_their_own_connection: sqlite_gateway);
matrix!(a_device_that_stops_reading_harms_only_itself: sqlite_gateway);
matrix!(who_is_refused_at_the_door_is_told_of: sqlite_gateway);
matrix!(more_connections_than_the_cap_are_turned_away: sqlite_gateway);

/// What a healthy device may wait for an answer while others misbehave: far above the usual milliseconds, far below
/// any time-out that a stranger could make it wait for.
const PROMPT: Duration = Duration::from_secs(5);

async fn is_served_promptly(device: &mut Device, while_what: &str) {
    let asked = Instant::now();
    device.check("2.0.0", "poll").await;
    assert!(
        asked.elapsed() < PROMPT,
        "{:?} for an answer while {while_what}",
        asked.elapsed()
    );
}

async fn idle_strangers_and_slow_ones_keep_nobody_out(options: Options) {
    let service = Service::start(options).await;
    let credentials = service.register(device_json("frame-1")).await;
    let address = service.mqtt();
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(&address).await.unwrap());
    }
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    is_served_promptly(&mut device, "300 strangers are silent").await;

    // A CONNECT of which a part never comes is given up, and its connection ended.
    let mut slow = Raw::open(&address, MqttVersion::V311).await;
    let packet = connect(MqttVersion::V311, "frame-1", "frame-1", "x", 30);
    let (begin, _) = packet.split_at(9);
    slow.send(begin).await;
    is_served_promptly(&mut device, "a CONNECT comes slowly").await;
    assert_eq!(slow.until_closed().await, []);
    let mut ended = 0;
    for stream in idle {
        let mut byte = [0];
        stream.readable().await.unwrap();
        ended += usize::from(matches!(stream.try_read(&mut byte), Ok(0) | Err(_)));
    }
    assert_eq!(ended, 300, "who never says CONNECT does not stay");
    is_served_promptly(&mut device, "they are gone").await;
    device.leave().await;
}

async fn malformed_bytes_by_the_hundred_end_only_their_own_connection(options: Options) {
    let service = Service::start(options).await;
    let devices = [device_json("frame-1"), device_json("frame-2")];
    let credentials = service.admin().register(&devices).await;
    let (one, two) = (credentials.first().unwrap(), credentials.last().unwrap());
    let address = service.mqtt();
    let mut device = Device::connect(&service, MqttVersion::V5, one).await;
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..400 {
        let version = if round % 2 == 0 {
            MqttVersion::V311
        } else {
            MqttVersion::V5
        };
        let mut raw = Raw::open(&address, version).await;
        // Half of them come in first, as a device gone mad would.
        if round % 4 < 2 {
            raw.send(&connect(version, "frame-2", "frame-2", &two.password, 30))
                .await;
        }
        raw.send(&damaged(&mut random, version, &two.password))
            .await;
        drop(raw);
        if round % 50 == 0 {
            is_served_promptly(&mut device, "strangers send garbage").await;
        }
    }
    is_served_promptly(&mut device, "garbage has been sent").await;
    // The name that was misused is not spoilt.
    Raw::connected(&address, MqttVersion::V311, "frame-2", &two.password, 30).await;
    let health = service.admin().health().await;
    assert_eq!(health["status"], "healthy");
    let counters = health["counters"].to_string();
    assert!(
        counters.contains("malformed") || counters.contains("protocol"),
        "it is counted: {counters}"
    );
    device.leave().await;
}

/// A packet that was right before some of its bytes were changed, cut or repeated.
fn damaged(random: &mut StdRng, version: MqttVersion, password: &str) -> Vec<u8> {
    let mut bytes = match random.random_range(0..4) {
        0 => connect(version, "frame-2", "frame-2", password, 30),
        1 => subscribe(version, "ota/v1/frame-2/down/#"),
        2 => publish(
            version,
            1,
            "ota/v1/frame-2/up/heartbeat",
            br#"{"version":"2.0.0"}"#,
        ),
        _ => (0..random.random_range(1..300))
            .map(|_| random.random())
            .collect(),
    };
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..bytes.len());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = random.random();
        }
    }
    bytes.truncate(random.random_range(1..=bytes.len()));
    bytes
}

async fn a_device_that_stops_reading_harms_only_itself(options: Options) {
    let service = Service::start(options).await;
    let devices = [device_json("frame-1"), device_json("frame-2")];
    let credentials = service.admin().register(&devices).await;
    let (one, two) = (credentials.first().unwrap(), credentials.last().unwrap());
    let mut device = Device::connect(&service, MqttVersion::V311, one).await;
    let version = MqttVersion::V311;
    let mut stalled = Raw::connected(&service.mqtt(), version, "frame-2", &two.password, 60).await;
    let answer = stalled.subscribe("ota/v1/frame-2/down/#").await.unwrap();
    assert_eq!(answer.kind(), Packet::SUBACK);
    // It asks and asks and never reads an answer: buffers fill up, and at last it is cut off or held back.
    let ask = publish(
        version,
        1,
        "ota/v1/frame-2/up/check",
        br#"{"version":"2.0.0","nonce":"n","reason":"poll"}"#,
    );
    let flood = tokio::spawn(async move {
        for _ in 0..20_000 {
            stalled.send(&ask).await;
        }
        stalled
    });
    for _ in 0..20 {
        is_served_promptly(&mut device, "another reads nothing").await;
    }
    flood.abort();
    let _ = flood.await;
    assert!(
        service.peak_memory() < 512 * 1024 * 1024,
        "{} bytes",
        service.peak_memory()
    );
    device.leave().await;
}

async fn more_connections_than_the_cap_are_turned_away(options: Options) {
    let service = Service::start(options.with("MQTT_MAX_CONNECTIONS", "10")).await;
    let devices: Vec<_> = (0..12)
        .map(|n| device_json(&format!("frame-{n}")))
        .collect();
    let credentials = service.admin().register(&devices).await;
    let address = service.mqtt();
    let mut inside = Vec::new();
    for known in credentials.iter().take(10) {
        inside.push(
            Raw::connected(
                &address,
                MqttVersion::V311,
                &known.username,
                &known.password,
                60,
            )
            .await,
        );
    }
    let mut late = Raw::open(&address, MqttVersion::V311).await;
    let last = credentials.last().unwrap();
    late.send(&connect(
        MqttVersion::V311,
        &last.username,
        &last.username,
        &last.password,
        60,
    ))
    .await;
    let answers = late.until_closed().await;
    assert!(
        answers.iter().all(|packet| packet.body.get(1) != Some(&0)),
        "was let in: {answers:?}"
    );
    for raw in &mut inside {
        assert!(raw.answers().await, "those inside stay");
    }
    drop(inside);
    crate::harness::eventually("there is room again", async || {
        let mut raw = Raw::open(&address, MqttVersion::V311).await;
        raw.send(&connect(
            MqttVersion::V311,
            &last.username,
            &last.username,
            &last.password,
            60,
        ))
        .await;
        match raw.packet().await {
            Some(packet) if packet.body.get(1) == Some(&0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn who_is_refused_at_the_door_is_told_of(options: Options) {
    let service = Service::start(options).await;
    let mut unknown = connect(MqttVersion::V311, "d", "d", "x", 30);
    unknown[8] = 9;
    let strangers: [(&str, &[u8]); 5] = [
        ("connect_timeout", &[]),
        ("bad_version", &unknown),
        ("connect_too_large", &[0x10, 0xff, 0xff, 0x7f]),
        ("not_connect", &[0xc0, 0]),
        ("malformed", &packet(0x10, &[0, 0])),
    ];
    let mut open = Vec::new();
    for (_, bytes) in &strangers {
        let mut raw = Raw::open(&service.mqtt(), MqttVersion::V311).await;
        raw.send(bytes).await;
        open.push(raw);
    }
    for (raw, (reason, _)) in open.iter_mut().zip(&strangers) {
        raw.until_closed().await;
        let is_told = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            let told = (&line["level"], &line["fields"]["reason"]);
            (told == (&"INFO".into(), &(*reason).into())).then_some(())
        };
        let told = within("the log tells of it", service.log().find(is_told)).await;
        told.unwrap_or_else(|| panic!("{reason} is not told"));
    }
}
