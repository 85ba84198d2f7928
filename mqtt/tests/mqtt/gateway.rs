//! The gateway with real sockets, before a real engine and database.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use device_ota_engine::inbound::QUEUE_MESSAGES;
use device_ota_engine::ports::{Delivery, Downlink as _};
use device_ota_mqtt::Limits;
use device_ota_mqtt::codec::Version;
use device_ota_mqtt::limits::{MAX_MAIL, RESERVED_MAIL};
use device_ota_protocol::topics::Down;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::Instant;

use crate::service::{Client, PATIENCE, WithGateway, device_id};
use crate::wire::{self, BOTH, Connect, PINGREQ, PINGRESP};

fn heartbeat(version: Version, pid: u16, id: &str, running: &str) -> Vec<u8> {
    let payload = format!(r#"{{"version":"{running}"}}"#);
    wire::publish(
        version,
        pid,
        &format!("ota/v1/{id}/up/heartbeat"),
        payload.as_bytes(),
    )
}

#[tokio::test]
async fn a_report_is_in_the_database_before_it_is_acknowledged() {
    let gateway = WithGateway::start(Limits::default()).await;
    for (version, id) in [(Version::V3, "old"), (Version::V5, "new")] {
        let secret = gateway.service.register(id).await;
        let mut device = gateway.device(version, id, &secret).await;
        for pid in 1..=20 {
            let running = format!("1.0.{pid}");
            device.send(&heartbeat(version, pid, id, &running)).await;
            assert_eq!(device.next().await, Some(wire::puback(pid)));
            let latest = gateway.service.device(id).await.latest;
            assert_eq!(latest.version, Some(running));
            assert!(latest.online);
        }
    }
    gateway.service.stop().await;
}

#[tokio::test]
async fn many_reports_in_one_go_are_acknowledged_in_order() {
    let limits = Limits {
        heartbeat: None,
        ..Limits::default()
    };
    let gateway = WithGateway::start(limits).await;
    let secret = gateway.service.register("d1").await;
    let mut device = gateway.device(Version::V3, "d1", &secret).await;
    // Far more than may be unacknowledged: the rest waits unread.
    let bytes: Vec<u8> = (1..=2_000)
        .flat_map(|pid| heartbeat(Version::V3, pid, "d1", "2.0.0"))
        .collect();
    device.send(&bytes).await;
    for pid in 1..=2_000 {
        assert_eq!(device.next().await, Some(wire::puback(pid)));
    }
    gateway.service.stop().await;
}

#[tokio::test]
async fn while_nothing_is_committed_sockets_are_not_read() {
    let limits = Limits {
        heartbeat: None,
        ..Limits::default()
    };
    let mut gateway = WithGateway::idle(limits).await;
    let secret = gateway.service.register("d1").await;
    let device = gateway.device(Version::V3, "d1", &secret).await;
    let (mut reader, mut writer) = device.stream.into_split();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let sending = tokio::spawn(async move {
        // More than the queue and the system's buffers hold together.
        let piece = heartbeat(Version::V3, 0, "d1", "1.0.0").repeat(1_000);
        for _ in 0..300 {
            writer.write_all(&piece).await.unwrap();
            counter.fetch_add(1_000, Ordering::Relaxed);
        }
        writer
            .write_all(&heartbeat(Version::V3, 1, "d1", "2.0.0"))
            .await
            .unwrap();
        writer
    });
    let engine = gateway.service.engine.clone();
    let full = async {
        while engine.uplinks().waiting() < QUEUE_MESSAGES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Full, and it stays so: what is sent no longer grows.
        let mut before = 0;
        while sent.load(Ordering::Relaxed) > before {
            before = sent.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(PATIENCE, full)
        .await
        .expect("the queue never fills");
    assert!(
        sent.load(Ordering::Relaxed) < 300_000,
        "it was read all the same"
    );
    gateway.service.run();
    let mut puback = [0; 4];
    tokio::time::timeout(Duration::from_mins(1), reader.read_exact(&mut puback))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(puback.to_vec(), wire::puback(1));
    drop(sending.await.unwrap());
    assert_eq!(gateway.service.heartbeats().await, 300_001);
    gateway.service.stop().await;
}

#[tokio::test]
async fn presence_follows_the_connection() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    for version in BOTH {
        let mut device = gateway.device(version, "d1", &secret).await;
        gateway.service.until("d1", |d| d.latest.online).await;
        device.send(&[0xe0, 0]).await;
        device.ends().await;
        gateway.service.until("d1", |d| !d.latest.online).await;
        // Without a word, too.
        let device = gateway.device(version, "d1", &secret).await;
        gateway.service.until("d1", |d| d.latest.online).await;
        drop(device);
        gateway.service.until("d1", |d| !d.latest.online).await;
    }
    assert_eq!(gateway.sessions.connected(), 0);
    gateway.service.stop().await;
}

#[tokio::test]
async fn who_is_refused_hears_why() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    for version in BOTH {
        let good = Connect::new(version, "d1", &secret);
        let bad_will = Some(("ota/v1/d2/up/status", 1, false));
        let cases = [
            (
                Connect {
                    password: Some("wrong"),
                    ..good.clone()
                },
                4,
                0x86,
            ),
            (Connect::new(version, "stranger", &secret), 4, 0x86),
            (
                Connect {
                    user: None,
                    password: None,
                    ..good.clone()
                },
                4,
                0x86,
            ),
            (
                Connect {
                    client_id: "d2",
                    ..good.clone()
                },
                2,
                0x85,
            ),
            (
                Connect {
                    client_id: "",
                    ..good.clone()
                },
                2,
                0x85,
            ),
            (
                Connect {
                    will: bad_will,
                    ..good.clone()
                },
                5,
                0x87,
            ),
        ];
        for (connect, v3, v5) in cases {
            let mut client = gateway.client(&connect.bytes()).await;
            let expected = match version {
                Version::V3 => vec![0x20, 2, 0, v3],
                Version::V5 => vec![0x20, 3, 0, v5, 0],
            };
            assert_eq!(client.next().await, Some(expected));
            client.ends().await;
        }
    }
    let hello = |name: &str, level| {
        wire::packet(
            0x10,
            &[
                wire::string(name),
                vec![level, 2, 0, 60],
                wire::string("d1"),
            ]
            .concat(),
        )
    };
    let mut old = gateway.client(&hello("MQIsdp", 3)).await;
    assert_eq!(old.next().await, Some(vec![0x20, 2, 0, 1]));
    let mut future = gateway.client(&hello("MQTT", 6)).await;
    assert_eq!(future.next().await, Some(vec![0x20, 3, 0, 0x84, 0]));
    assert_eq!(
        gateway.service.counted("mqtt_refused", "bad_credentials"),
        6
    );
    assert_eq!(gateway.service.counted("mqtt_refused", "bad_version"), 2);
    gateway.service.stop().await;
}

#[tokio::test]
async fn a_device_of_5_is_told_what_is_offered() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let connect = Connect {
        keep_alive: 0,
        ..Connect::new(Version::V5, "d1", &secret)
    };
    let mut device = gateway.client(&connect.bytes()).await;
    let connack = device.next().await.unwrap();
    let has = |property: &[u8]| {
        connack
            .windows(property.len())
            .any(|window| window == property)
    };
    assert!(has(&[0x11, 0, 0, 0, 0]), "session expiry 0: {connack:x?}");
    assert!(has(&[0x21, 0, 64]), "receive maximum");
    assert!(has(&[0x24, 1]), "maximum QoS");
    assert!(has(&[0x25, 0]), "retain available");
    assert!(has(&[0x27, 0, 0, 0x44, 0]), "maximum packet size");
    assert!(has(&[0x22, 0, 0]), "topic alias maximum");
    assert!(has(&[0x13, 0x02, 0x58]), "server keep alive");
    assert!(
        has(&[0x28, 1]) && has(&[0x29, 0]) && has(&[0x2a, 0]),
        "subscriptions"
    );
    gateway.service.stop().await;
}

#[tokio::test]
async fn without_a_database_the_service_is_unavailable() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    gateway.service.store.close().await;
    let mut client = gateway
        .client(&Connect::new(Version::V3, "d1", &secret).bytes())
        .await;
    assert_eq!(client.next().await, Some(vec![0x20, 2, 0, 3]));
    let mut client = gateway
        .client(&Connect::new(Version::V5, "d1", &secret).bytes())
        .await;
    assert_eq!(client.next().await, Some(vec![0x20, 3, 0, 0x88, 0]));
}

#[tokio::test]
async fn the_second_connection_of_a_device_ends_the_first() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let mut first = gateway.device(Version::V5, "d1", &secret).await;
    let mut second = gateway.device(Version::V3, "d1", &secret).await;
    assert_eq!(first.next().await, Some(wire::disconnect(0x8e)));
    first.ends().await;
    let mut third = gateway.subscribed(Version::V5, "d1", &secret).await;
    second.ends().await;
    // The end of the first must not be taken for the end of the last.
    third.send(&heartbeat(Version::V5, 1, "d1", "1.0.0")).await;
    assert_eq!(third.next().await, Some(wire::puback(1)));
    assert!(gateway.service.device("d1").await.latest.online);
    assert_eq!(gateway.sessions.connected(), 1);
    let sent = gateway.send("d1", Down::Offer, b"o").await;
    assert_eq!(sent, Delivery::Queued);
    assert!(third.next().await.is_some());
    gateway.service.stop().await;
}

#[tokio::test]
async fn messages_reach_the_device_that_asked_for_them() {
    let gateway = WithGateway::start(Limits::default()).await;
    for version in BOTH {
        let name = if version == Version::V3 { "d1" } else { "d5" };
        let secret = gateway.service.register(name).await;
        let send = |to: Down| gateway.send(name, to, b"hello");
        assert_eq!(send(Down::Offer).await, Delivery::NotConnected);
        let mut device = gateway.device(version, name, &secret).await;
        assert_eq!(send(Down::Offer).await, Delivery::NotConnected);
        let filter = format!("ota/v1/{name}/down/offer");
        device
            .send(&wire::subscribe(version, 9, &[(&filter, 1)]))
            .await;
        assert_eq!(device.next().await, Some(wire::suback(version, 9, &[1])));
        assert_eq!(send(Down::Reply).await, Delivery::NotConnected);
        assert_eq!(send(Down::Offer).await, Delivery::Queued);
        assert_eq!(
            device.next().await,
            Some(wire::publish(version, 1, &filter, b"hello"))
        );
    }
    gateway.service.stop().await;
}

#[tokio::test]
async fn new_credentials_end_the_session() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let mut device = gateway.device(Version::V5, "d1", &secret).await;
    gateway.sessions.disconnect(&device_id("d1")).await;
    assert_eq!(device.next().await, Some(wire::disconnect(0x98)));
    device.ends().await;
    gateway.service.stop().await;
}

#[tokio::test]
async fn offences_end_a_session_with_their_reason() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let topic = "ota/v1/d1/up/heartbeat";
    for version in BOTH {
        let too_large = wire::publish(version, 1, topic, &vec![b' '; 17 * 1024 + 1]);
        let cases = [
            (too_large, 0x95, "too_large"),
            (
                wire::publish_with(version, 0x34, 1, topic, b"{}"),
                0x9b,
                "qos2",
            ),
            (wire::packet(0x82, &[0, 0]), 0x81, "malformed"),
            (
                Connect::new(version, "d1", &secret).bytes(),
                0x82,
                "unexpected",
            ),
        ];
        for (bytes, reason, label) in cases {
            let before = gateway.service.counted("mqtt_disconnected", label);
            let mut device = gateway.device(version, "d1", &secret).await;
            device.send(&bytes).await;
            if version == Version::V5 {
                assert_eq!(
                    device.next().await,
                    Some(wire::disconnect(reason)),
                    "{label}"
                );
            }
            device.ends().await;
            assert_eq!(
                gateway.service.counted("mqtt_disconnected", label),
                before + 1
            );
        }
    }
    gateway.service.stop().await;
}

#[tokio::test]
async fn a_device_that_falls_silent_is_let_go() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let connect = Connect {
        keep_alive: 1,
        ..Connect::new(Version::V5, "d1", &secret)
    };
    let mut device = gateway.client(&connect.bytes()).await;
    assert_eq!(device.next().await.map(|connack| connack[0]), Some(0x20));
    device.send(&PINGREQ).await;
    assert_eq!(device.next().await, Some(PINGRESP.to_vec()));
    let heard = Instant::now();
    assert_eq!(device.next().await, Some(wire::disconnect(0x8d)));
    assert!(
        heard.elapsed() >= Duration::from_millis(1_400),
        "{:?}",
        heard.elapsed()
    );
    gateway.service.until("d1", |d| !d.latest.online).await;
    gateway.service.stop().await;
}

#[tokio::test]
async fn a_stranger_who_says_nothing_is_let_go() {
    let limits = Limits {
        connect_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let gateway = WithGateway::start(limits).await;
    let mut silent = gateway.client(b"").await;
    let mut slow = gateway.client(b"\x10\x20\x00").await;
    silent.ends().await;
    slow.ends().await;
    gateway.service.stop().await;
}

#[tokio::test]
async fn strangers_do_not_keep_devices_out() {
    let limits = Limits {
        max_unauthenticated: 4,
        ..Limits::default()
    };
    let gateway = WithGateway::start(limits).await;
    let secret = gateway.service.register("d1").await;
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(gateway.client(b"\x10").await);
    }
    // Behind all of them; each has but a second while every place is taken.
    let mut device = gateway.device(Version::V3, "d1", &secret).await;
    device.send(&PINGREQ).await;
    assert_eq!(device.next().await, Some(PINGRESP.to_vec()));
    drop(strangers);
    gateway.service.stop().await;
}

#[tokio::test]
async fn connections_are_counted() {
    let limits = Limits {
        max_connections: 2,
        ..Limits::default()
    };
    let gateway = WithGateway::start(limits).await;
    let mut secrets = Vec::new();
    for id in ["d1", "d2", "d3"] {
        secrets.push(gateway.service.register(id).await);
    }
    let first = gateway.device(Version::V3, "d1", &secrets[0]).await;
    let _second = gateway.device(Version::V3, "d2", &secrets[1]).await;
    let mut third = gateway
        .client(&Connect::new(Version::V5, "d3", &secrets[2]).bytes())
        .await;
    assert_eq!(third.next().await, Some(vec![0x20, 3, 0, 0x97, 0]));
    let mut third = gateway
        .client(&Connect::new(Version::V3, "d3", &secrets[2]).bytes())
        .await;
    assert_eq!(third.next().await, Some(vec![0x20, 2, 0, 3]));
    // A take-over takes no further place.
    let again = gateway.device(Version::V3, "d1", &secrets[0]).await;
    drop((first, again));
    gateway.service.until("d1", |d| !d.latest.online).await;
    gateway.device(Version::V3, "d3", &secrets[2]).await;
    gateway.service.stop().await;
}

/// Fills what the system and the gateway hold for a device that does not read.
async fn stall(gateway: &WithGateway, id: &str) {
    let chunk = Bytes::from(vec![7; 64 * 1024]);
    let stalled = async {
        let mut offset = 0;
        let mut busy = 0;
        while busy < 20 {
            let to = Down::Chunk { request: 1, offset };
            match gateway
                .sessions
                .send(&device_id(id), &to, chunk.clone())
                .await
            {
                Delivery::Queued => (offset, busy) = (offset + 1, 0),
                Delivery::Busy => {
                    busy += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Delivery::NotConnected => panic!("gone"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, stalled)
        .await
        .expect("never busy");
}

#[tokio::test]
async fn a_device_that_does_not_read_harms_nobody_else() {
    let limits = Limits {
        write_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let gateway = WithGateway::start(limits).await;
    let (s1, s2) = (
        gateway.service.register("d1").await,
        gateway.service.register("d2").await,
    );
    let stalled = gateway.subscribed(Version::V3, "d1", &s1).await;
    let mut other = gateway.subscribed(Version::V3, "d2", &s2).await;
    stall(&gateway, "d1").await;
    // Room is kept for what matters more than chunks.
    let offer = gateway.send("d1", Down::Offer, b"o").await;
    assert_eq!(offer, Delivery::Queued);
    let offer = gateway.send("d2", Down::Offer, b"o").await;
    assert_eq!(offer, Delivery::Queued);
    assert_eq!(other.next().await.map(|publish| publish[0]), Some(0x32));
    gateway.service.until("d1", |d| !d.latest.online).await;
    assert_eq!(gateway.service.counted("mqtt_disconnected", "stalled"), 1);
    assert!(gateway.service.device("d2").await.latest.online);
    drop(stalled);
    gateway.service.stop().await;
}

#[tokio::test]
async fn mail_for_a_device_is_bounded() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let mut device = gateway.subscribed(Version::V3, "d1", &secret).await;
    // It never acknowledges: the first go out, the others wait, the last find no room.
    let mut queued = 0;
    loop {
        let sent = gateway.send("d1", Down::Offer, b"o").await;
        if sent == Delivery::Busy {
            break;
        }
        queued += 1;
        assert!(queued <= MAX_MAIL + 16, "no bound");
        if queued <= 16 {
            assert!(device.next().await.is_some());
        }
    }
    assert_eq!(queued, MAX_MAIL + 16);
    assert_eq!(RESERVED_MAIL, 16);
    for pid in 1..=16 {
        device.send(&wire::puback(pid)).await;
        assert!(device.next().await.is_some());
    }
    gateway.service.stop().await;
}

#[tokio::test]
async fn at_shutdown_devices_are_told() {
    let gateway = WithGateway::start(Limits::default()).await;
    let (s1, s2) = (
        gateway.service.register("d1").await,
        gateway.service.register("d2").await,
    );
    let mut new = gateway.device(Version::V5, "d1", &s1).await;
    let mut old = gateway.device(Version::V3, "d2", &s2).await;
    let stranger: Client = gateway.client(b"\x10").await;
    let stop = tokio::spawn(gateway.service.stop());
    assert_eq!(new.next().await, Some(wire::disconnect(0x8b)));
    new.ends().await;
    old.ends().await;
    drop((new, old, stranger));
    stop.await.unwrap();
}

#[tokio::test]
async fn stock_clients_are_served() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let port = gateway.addr.port().to_string();
    for version in ["mqttv311", "5"] {
        let common = [
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-V",
            version,
            "-u",
            "d1",
            "-P",
            &secret,
            "-i",
            "d1",
            "-q",
            "1",
        ];
        let published = Command::new("mosquitto_pub")
            .args(common)
            .args([
                "-t",
                "ota/v1/d1/up/heartbeat",
                "-m",
                &format!(r#"{{"version":"{version}"}}"#),
            ])
            .output()
            .await
            .expect("mosquitto_pub is installed");
        assert!(published.status.success(), "{published:?}");
        assert_eq!(
            gateway.service.device("d1").await.latest.version.as_deref(),
            Some(version)
        );

        let subscriber = Command::new("mosquitto_sub")
            .args(common)
            .args([
                "-t",
                "ota/v1/d1/down/#",
                "-C",
                "1",
                "-W",
                "20",
                "-F",
                "%t %q %p",
            ])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("mosquitto_sub is installed");
        let offered = async {
            let offer = || gateway.send("d1", Down::Offer, b"{}");
            while offer().await != Delivery::Queued {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, offered)
            .await
            .expect("it never subscribed");
        let received = subscriber.wait_with_output().await.unwrap();
        assert_eq!(
            String::from_utf8_lossy(&received.stdout).trim(),
            "ota/v1/d1/down/offer 1 {}"
        );
        gateway.service.until("d1", |d| !d.latest.online).await;
    }
    gateway.service.stop().await;
}
