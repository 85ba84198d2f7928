//! Who is let in, and what those hear who are not.

use std::process::Stdio;
use std::time::Duration;

use device_ota_engine::ports::Delivery;
use device_ota_mqtt::Limits;
use device_ota_mqtt::codec::Version;
use device_ota_protocol::topics::Down;
use tokio::process::Command;

use crate::service::{PATIENCE, WithGateway};
use crate::wire::{BOTH, Connect, packet, string};

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
        packet(
            0x10,
            &[string(name), vec![level, 2, 0, 60], string("d1")].concat(),
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

/// A CONNECT of 5 with these properties.
fn with_properties<'a>(secret: &'a str, properties: &'a [u8]) -> Connect<'a> {
    Connect {
        properties,
        ..Connect::new(Version::V5, "d1", secret)
    }
}

#[tokio::test]
async fn properties_of_a_connect_are_judged() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let cases: &[(&str, &[u8], Option<u8>)] = &[
        ("receive maximum 0", &[33, 0, 0], None),
        ("maximum packet size 0", &[39, 0, 0, 0, 0], None),
        ("receive maximum twice", &[33, 0, 9, 33, 0, 9], None),
        ("a property of PUBLISH", &[1, 0], None),
        ("a property that is none", &[0x7e, 0], None),
        ("a flag that is neither", &[23, 2], None),
        ("authentication data alone", &[22, 0, 1, 7], None),
        ("an authentication method", &[21, 0, 1, b'x'], Some(0x8c)),
        (
            "packets smaller than our answer",
            &[39, 0, 0, 0, 63],
            Some(0x83),
        ),
        ("packets smaller than any answer", &[39, 0, 0, 0, 4], None),
        ("a session to be kept", &[17, 255, 255, 255, 255], Some(0)),
        ("packets large enough", &[39, 0, 0, 0, 64], Some(0)),
        ("topic aliases", &[34, 0, 9], Some(0)),
    ];
    for (what, properties, code) in cases {
        let mut client = gateway
            .client(&with_properties(&secret, properties).bytes())
            .await;
        let connack = client.next().await;
        assert_eq!(connack.as_ref().map(|connack| connack[3]), *code, "{what}");
        if let Some(connack) = connack {
            assert!(connack.len() <= 64, "{what}");
            assert_eq!(connack[2], 0, "no session is ever present: {what}");
        }
        if *code != Some(0) {
            client.ends().await;
        }
    }
    assert_eq!(gateway.service.counted("mqtt_refused", "malformed"), 7);
    let counted = gateway.service.counted("mqtt_refused", "bad_max_packet");
    assert_eq!(counted, 2);
    gateway.service.stop().await;
}

#[tokio::test]
async fn a_connect_that_is_none_is_refused() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let status = "ota/v1/d1/up/status";
    for version in BOTH {
        let good = Connect::new(version, "d1", &secret);
        let with_flags = |change: fn(&mut u8)| {
            let mut bytes = good.bytes();
            change(&mut bytes[9]);
            bytes
        };
        let with_will = |qos, retain| {
            let will = Some((status, qos, retain));
            Connect {
                will,
                ..good.clone()
            }
            .bytes()
        };
        let new = version == Version::V5;
        let large = "x".repeat(5_000);
        let password = Some(large.as_str());
        let cases: &[(&str, Vec<u8>, Option<u8>)] = &[
            ("a reserved flag", with_flags(|flags| *flags |= 1), None),
            ("QoS of no will", with_flags(|flags| *flags |= 8), None),
            (
                "retaining no will",
                with_flags(|flags| *flags |= 0x20),
                None,
            ),
            ("a packet before it", packet(0xc0, &[]), None),
            ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec(), None),
            (
                "flags in its header",
                packet(0x11, &good.bytes()[2..]),
                None,
            ),
            (
                "bytes after its end",
                packet(0x10, &[&good.bytes()[2..], b"x"].concat()),
                None,
            ),
            (
                "too long",
                Connect {
                    password,
                    ..good.clone()
                }
                .bytes(),
                Some(if new { 0x95 } else { 5 }),
            ),
            (
                "longest of all",
                vec![0x10, 0xff, 0xff, 0xff, 0x7f],
                Some(0x95),
            ),
            (
                "a will of QoS 2",
                with_will(2, false),
                Some(if new { 0x9b } else { 5 }),
            ),
            ("a will of QoS 3", with_will(3, false), None),
            (
                "a retained will",
                with_will(1, true),
                Some(if new { 0x9a } else { 0 }),
            ),
            ("a will", with_will(1, false), Some(0)),
            (
                "a session to be kept",
                with_flags(|flags| *flags &= !2),
                Some(0),
            ),
        ];
        for (what, bytes, code) in cases {
            let mut client = gateway.client(bytes).await;
            let connack = client.next().await;
            assert_eq!(
                connack.as_ref().map(|connack| connack[3]),
                *code,
                "{what}, {version:?}"
            );
            if *code != Some(0) {
                client.ends().await;
            }
        }
    }
    gateway.service.stop().await;
}

#[tokio::test]
async fn without_a_database_devices_at_hand_get_in_and_for_others_the_service_is_unavailable() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("at-hand").await;
    drop(gateway.device(Version::V3, "at-hand", &secret).await);
    gateway.service.store.close().await;
    let mut client = gateway
        .client(&Connect::new(Version::V3, "at-hand", &secret).bytes())
        .await;
    assert_eq!(client.next().await, Some(vec![0x20, 2, 0, 0]));
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
