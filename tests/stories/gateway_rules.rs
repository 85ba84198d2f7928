//! Who may come in at the gateway and what they may do, seen by stock clients and by the byte.

use std::process::Command;

use serde_json::json;

use crate::harness::raw::{Packet, Raw, connect, publish};
use crate::harness::{
    Credentials, Device, Event, Link, MqttVersion, Options, Service, device_json, eventually,
};

matrix!(the_wrong_secret_name_or_identity_is_refused_by_code: sqlite_gateway);
matrix!(a_device_reads_and_writes_below_its_own_topics_alone);
matrix!(what_the_protocol_forbids_ends_the_connection: sqlite_gateway);
matrix!(a_new_connection_takes_over_from_the_old_one);
matrix!(silence_past_the_keep_alive_ends_the_connection: sqlite_gateway);
matrix!(the_stock_command_line_clients_get_through);
matrix!(a_device_that_asks_too_often_is_held_to_its_rate: sqlite_gateway);

const BOTH: [MqttVersion; 2] = [MqttVersion::V311, MqttVersion::V5];

async fn two_devices(service: &Service) -> (Credentials, Credentials) {
    let devices = [device_json("frame-1"), device_json("frame-2")];
    let mut credentials = service.admin().register(&devices).await;
    service.knows("frame-2").await;
    let second = credentials.remove(1);
    (credentials.remove(0), second)
}

async fn the_wrong_secret_name_or_identity_is_refused_by_code(options: Options) {
    let service = Service::start(options).await;
    let (one, _) = two_devices(&service).await;
    let address = service.mqtt();
    // Return codes of 3.1.1 (bad user name or password, not authorised) and reasons of 5 (the same, bad client id).
    let denied = |version| {
        if version == MqttVersion::V5 {
            vec![0x86, 0x87, 0x85]
        } else {
            vec![4, 5, 2]
        }
    };
    for version in BOTH {
        for (id, user, password) in [
            ("frame-1", "frame-1", "wrong"),
            ("frame-1", "frame-1", ""),
            ("nobody", "nobody", one.password.as_str()),
            ("frame-2", "frame-1", one.password.as_str()),
            ("frame-1", "frame-2", one.password.as_str()),
            ("", "frame-1", one.password.as_str()),
            ("a/b", "a/b", one.password.as_str()),
        ] {
            let mut raw = Raw::open(&address, version).await;
            raw.send(&connect(version, id, user, password, 30)).await;
            let answer = raw
                .packet()
                .await
                .unwrap_or_else(|| panic!("{version:?} {id:?}: no CONNACK"));
            assert_eq!(answer.kind(), Packet::CONNACK, "{id:?} as {user:?}");
            let code = *answer.body.get(1).unwrap();
            assert!(
                denied(version).contains(&code),
                "{version:?}: {id:?} as {user:?} got {code:#x}"
            );
            assert_eq!(raw.until_closed().await, [], "the connection is over");
        }
        Raw::connected(&address, version, "frame-1", &one.password, 30).await;
    }
    let health = service.admin().health().await;
    assert!(
        counted(&health) >= 14,
        "every refusal is counted: {:#}",
        health["counters"]
    );
}

/// The sum of all counters of refusals.
fn counted(health: &serde_json::Value) -> u64 {
    let mut sum = 0;
    for (name, group) in health["counters"].as_object().unwrap() {
        for (reason, count) in group.as_object().unwrap() {
            if ["refus", "denied", "reject", "connect"]
                .iter()
                .any(|word| name.contains(word) || reason.contains(word))
            {
                sum += count.as_u64().unwrap();
            }
        }
    }
    sum
}

async fn a_device_reads_and_writes_below_its_own_topics_alone(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let (one, two) = two_devices(&service).await;
    let firmware = admin.image("2.1.0").await;
    admin
        .start_campaign(
            json!({ "name": "n", "firmware_id": firmware, "deployment_strategy": "immediate" }),
        )
        .await;
    let mut victim = Device::connect(&service, MqttVersion::V311, &two).await;
    for version in BOTH {
        let mut device = Device::connect(&service, version, &one).await;
        // Whether a broker says no at once or grants what it then never delivers: nothing of others ever arrives.
        for filter in [
            "#",
            "+/+/+/down/#",
            "ota/v1/frame-2/down/#",
            "ota/v1/+/down/offer",
            "$SYS/#",
            "ota/v1/frame-2/up/#",
        ] {
            device.link().subscribe(filter);
            let event = loop {
                match device.link().event().await {
                    Event::Message { topic, .. } => {
                        assert!(topic.starts_with("ota/v1/frame-1/"), "{topic}");
                    }
                    other => break other,
                }
            };
            if service.options().end == crate::harness::MqttEnd::Gateway {
                assert_eq!(
                    event,
                    Event::Subscribed(vec![false]),
                    "{version:?} {filter}"
                );
            }
        }
        // In another's name; an answer to the check would come to frame-2.
        device.link().publish(
            "ota/v1/frame-2/up/heartbeat",
            json!({ "version": "6.6.6" }).to_string(),
        );
        // 3.1.1 has no other way to say no than to end the connection; a broker may swallow it.
        if service.options().end == crate::harness::MqttEnd::Gateway && version == MqttVersion::V311
        {
            while !matches!(device.link().event().await, Event::Closed(_)) {}
            device = Device::connect(&service, version, &one).await;
        }
        device.link().publish("ota/v1/frame-1/down/offer", "{}");
        drop(device);
        victim.check("2.0.0", "poll").await;
        let seen = admin.get("/api/v1/ota/devices/frame-2").await.expect(200);
        assert_eq!(seen["firmware_version"], "2.0.0", "{version:?}");
    }
}

async fn what_the_protocol_forbids_ends_the_connection(options: Options) {
    let service = Service::start(options).await;
    let (one, two) = two_devices(&service).await;
    let address = service.mqtt();
    let mut healthy = Device::connect(&service, MqttVersion::V5, &two).await;
    for version in BOTH {
        let topic = "ota/v1/frame-1/up/heartbeat";
        let forbidden = [
            (
                "more than a packet may hold",
                publish(version, 1, topic, &vec![b' '; 200_000]),
            ),
            ("QoS 2", publish(version, 2, topic, b"{\"version\":\"1\"}")),
            ("QoS 3", publish(version, 3, topic, b"{\"version\":\"1\"}")),
            (
                "a second CONNECT",
                connect(version, "frame-1", "frame-1", &one.password, 30),
            ),
            (
                "a wildcard in a topic",
                publish(version, 1, "ota/v1/frame-1/up/#", b"{}"),
            ),
            ("a packet of type 0", vec![0, 0]),
            (
                "a length without an end",
                vec![0x32, 0xff, 0xff, 0xff, 0xff, 0xff],
            ),
        ];
        for (what, bytes) in forbidden {
            let mut raw = Raw::connected(&address, version, "frame-1", &one.password, 30).await;
            raw.send(&bytes).await;
            let last = raw.until_closed().await;
            assert!(
                last.iter().all(|packet| packet.kind() != Packet::PUBACK),
                "{version:?}: {what} was taken"
            );
            if version == MqttVersion::V5 {
                let kinds: Vec<_> = last.iter().map(Packet::kind).collect();
                assert_eq!(kinds, [Packet::DISCONNECT], "{what}: MQTT 5 says why");
            }
        }
    }
    assert_eq!(
        healthy.check("2.0.0", "poll").await["offer"],
        false,
        "and nobody else is harmed"
    );
    healthy.leave().await;
}

async fn a_new_connection_takes_over_from_the_old_one(options: Options) {
    let service = Service::start(options).await;
    let credentials = service.register(device_json("frame-1")).await;
    for version in BOTH {
        let mut old = Device::connect(&service, version, &credentials).await;
        let mut new = Device::connect(&service, version, &credentials).await;
        loop {
            match old.link().event().await {
                Event::Closed(_) => break,
                Event::Message { .. } | Event::Acknowledged(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(new.check("2.0.0", "reconnect").await["offer"], false);
        let seen = service
            .admin()
            .get("/api/v1/ota/devices/frame-1")
            .await
            .expect(200);
        assert_eq!(
            seen["online"], true,
            "the end of the old connection is not the end of the device"
        );
        new.leave().await;
    }
}

async fn silence_past_the_keep_alive_ends_the_connection(options: Options) {
    let service = Service::start(options).await;
    let (one, two) = two_devices(&service).await;
    let address = service.mqtt();
    let talking = Link::open(
        MqttVersion::V311,
        &address,
        "frame-2",
        "frame-2",
        &two.password,
    );
    let mut silent = Raw::connected(&address, MqttVersion::V311, "frame-1", &one.password, 1).await;
    let began = std::time::Instant::now();
    assert_eq!(silent.until_closed().await, []);
    let lasted = began.elapsed().as_secs_f64();
    assert!(
        (1.0..10.0).contains(&lasted),
        "one and a half times a second, not {lasted} s"
    );
    let admin = service.admin();
    eventually("the device is known to be away", async || {
        let device = admin.get("/api/v1/ota/devices/frame-1").await.expect(200);
        if device["online"] == false {
            Ok(())
        } else {
            Err(device.to_string())
        }
    })
    .await;
    drop(talking);
}

async fn the_stock_command_line_clients_get_through(options: Options) {
    let service = Service::start(options).await;
    let credentials = service.register(device_json("frame-1")).await;
    let (host, port) = service
        .mqtt()
        .rsplit_once(':')
        .map(|(h, p)| (h.to_owned(), p.to_owned()))
        .unwrap();
    for (version, running) in [("mqttv311", "2.0.1"), ("mqttv5", "2.0.2")] {
        let publish = |topic: &str, secret: &str| {
            let mut command = Command::new("mosquitto_pub");
            command.args([
                "-V", version, "-h", &host, "-p", &port, "-i", "frame-1", "-u", "frame-1", "-P",
                secret,
            ]);
            command.args([
                "-q",
                "1",
                "-t",
                topic,
                "-m",
                &json!({ "version": running }).to_string(),
            ]);
            command
        };
        let run =
            |mut command: Command| tokio::task::spawn_blocking(move || command.output().unwrap());
        let wrong = run(publish("ota/v1/frame-1/up/heartbeat", "wrong"))
            .await
            .unwrap();
        assert!(!wrong.status.success(), "{wrong:?}");
        eventually("mosquitto_pub gets through", async || {
            let good = run(publish(
                "ota/v1/frame-1/up/heartbeat",
                &credentials.password,
            ))
            .await
            .unwrap();
            if good.status.success() {
                Ok(())
            } else {
                Err(format!("{good:?}"))
            }
        })
        .await;
        let admin = service.admin();
        eventually("the heartbeat is known", async || {
            let device = admin.get("/api/v1/ota/devices/frame-1").await.expect(200);
            if device["firmware_version"] == running {
                Ok(())
            } else {
                Err(device.to_string())
            }
        })
        .await;
    }
}

async fn a_device_that_asks_too_often_is_held_to_its_rate(options: Options) {
    let service = Service::start(options.with("RATE_LIMIT_UPDATE_CHECK", "3/hour")).await;
    let (one, two) = two_devices(&service).await;
    let mut eager = Device::connect(&service, MqttVersion::V311, &one).await;
    for n in 0..20 {
        let body = json!({ "version": "2.0.0", "nonce": format!("n-{n}"), "reason": "poll" });
        eager
            .link()
            .publish("ota/v1/frame-1/up/check", body.to_string());
    }
    let mut other = Device::connect(&service, MqttVersion::V311, &two).await;
    assert_eq!(
        other.check("2.0.0", "boot").await["offer"],
        false,
        "the limit is each device's own"
    );
    let mut replies = 0;
    let mut acknowledged = 0;
    // Twenty reports: each is acknowledged or the connection ends; three are answered.
    while acknowledged < 20 {
        match eager.link().event().await {
            Event::Message { .. } => replies += 1,
            Event::Acknowledged(_) => acknowledged += 1,
            Event::Closed(_) => break,
            Event::Connected | Event::Subscribed(_) => {}
        }
    }
    let admin = service.admin();
    eventually("what was too much is counted", async || {
        let health = admin.health().await;
        let counters = health["counters"].to_string();
        if counters.contains("rate") || counters.contains("limit") {
            Ok(())
        } else {
            Err(counters)
        }
    })
    .await;
    assert!(replies <= 3, "{replies} answers");
}
