//! Open files: the service takes as many as it may, and with few it tells those that are too many by their protocol.

use serde_json::{Value, json};

use crate::harness::raw::{Packet, Raw, connect};
use crate::harness::{MqttVersion, Options, Service, device_json, within};

matrix!(what_is_allowed_is_used: sqlite_gateway);
matrix!(who_is_too_many_for_the_open_files_is_told_so: sqlite_gateway);

/// Fewest files that the service starts with.
const FEWEST: usize = 512;

async fn what_is_allowed_is_used(options: Options) {
    let service = Service::start(options.after("ulimit -Sn 300; ulimit -Hn 16000")).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", service.pid())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let files: Vec<_> = files.unwrap().split_whitespace().skip(3).collect();
    assert_eq!(files, ["16000", "16000", "files"]);
}

async fn who_is_too_many_for_the_open_files_is_told_so(options: Options) {
    let options = options.after(format!("ulimit -Sn 300; ulimit -Hn {FEWEST}"));
    let service = Service::start(options).await;
    let lines = service.log().lines();
    let screen = lines.iter().find(|line| line.contains("WARNING"));
    let screen = screen.expect("the first screen warns");
    let logged: Value = lines
        .iter()
        .filter(|line| line.contains("devices.max"))
        .find_map(|line| serde_json::from_str(line).ok())
        .expect("the log warns");
    let most = logged["fields"]["devices.max"].as_u64().unwrap();
    assert!((100..400).contains(&most), "{most}");
    for said in [
        &most.to_string(),
        "MQTT_MAX_CONNECTIONS=18000",
        "ulimit -Hn",
    ] {
        assert!(screen.contains(said), "{said:?}: {screen}");
    }

    let devices: Vec<_> = (0..=most).map(|n| device_json(&format!("d-{n}"))).collect();
    let known = service.admin().register(&devices).await;
    let (too_many, fitting) = known.split_last().unwrap();
    let address = service.mqtt();
    let mut held = Vec::new();
    for known in fitting {
        let (id, secret) = (&known.username, &known.password);
        held.push(Raw::connected(&address, MqttVersion::V311, id, secret, 60).await);
    }
    let mut strangers = Vec::new();
    for _ in 0..FEWEST {
        strangers.push(Raw::open(&address, MqttVersion::V311).await);
    }
    // Server unavailable, and quota exceeded.
    for (version, told) in [(MqttVersion::V311, 3), (MqttVersion::V5, 0x97)] {
        let mut refused = Raw::open(&address, version).await;
        let (id, secret) = (&too_many.username, &too_many.password);
        refused.send(&connect(version, id, id, secret, 60)).await;
        let answer = refused.packet().await.expect("an answer to CONNECT");
        assert_eq!((answer.kind(), answer.body[1]), (Packet::CONNACK, told));
    }
    // Told as those are that have a name.
    let told = service
        .log()
        .find(|line| line.contains("crowded_out").then_some(()));
    within("who was crowded out is in the log", told)
        .await
        .unwrap();
    let health = service.admin().health().await;
    assert_eq!(health["counters"]["mqtt_accept"], json!(null), "{health:#}");
    assert!(held[0].answers().await);
    let failed = |line: &String| line.contains("accept");
    assert!(!service.log().lines().iter().any(failed));
}
