//! The link with a real mosquitto, under the repository's own `mosquitto.conf` and access rules.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use device_ota_engine::Rate;
use device_ota_engine::ports::{Delivery, Downlink as _};
use device_ota_mqtt::{Limits, Link, LinkOptions};
use device_ota_protocol::topics::{Down, Prefix};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::service::{PATIENCE, Service, device_id};

pub(crate) struct Broker {
    process: Child,
    pub(crate) devices: u16,
    service: u16,
    folder: std::path::PathBuf,
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Broker {
    /// The repository's configuration, with other ports, in a folder of its own.
    pub(crate) async fn start(
        folder: &Path,
        (devices, service): (u16, u16),
        lines: &[String],
        change: impl Fn(String) -> String,
    ) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let conf = std::fs::read_to_string(root.join("mosquitto.conf")).unwrap();
        let conf = conf
            .replace("listener 1883", &format!("listener {devices} 127.0.0.1"))
            .replace("listener 1885", &format!("listener {service}"));
        std::fs::create_dir_all(folder.join("data/mosquitto")).unwrap();
        let user = std::env::var("USER").unwrap_or_else(|_| "root".into());
        std::fs::write(
            folder.join("mosquitto.conf"),
            change(format!("{conf}\nuser {user}\n")),
        )
        .unwrap();
        std::fs::copy(root.join("mosquitto.acl"), folder.join("mosquitto.acl")).unwrap();
        std::fs::write(
            folder.join("data/mosquitto.passwd"),
            lines.join("\n") + "\n",
        )
        .unwrap();
        let process = Self::spawn(folder);
        let broker = Self {
            process,
            devices,
            service,
            folder: folder.to_owned(),
        };
        broker.until_up().await;
        broker
    }

    fn spawn(folder: &Path) -> Child {
        Command::new("mosquitto")
            .args(["-c", "mosquitto.conf"])
            .current_dir(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("mosquitto is installed")
    }

    async fn until_up(&self) {
        let up = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", self.service))
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, up)
            .await
            .expect("mosquitto does not start");
    }

    async fn restart(&mut self) {
        self.process.kill().await.unwrap();
        self.process = Self::spawn(&self.folder);
        self.until_up().await;
    }
}

/// A password file line for the service, made as `mosquitto_passwd` makes them.
pub(crate) async fn own_line(folder: &Path) -> String {
    let file = folder.join("own");
    let made = Command::new("mosquitto_passwd")
        .args(["-b", "-c"])
        .arg(&file)
        .args(["device-ota", "service"])
        .status();
    assert!(made.await.expect("mosquitto_passwd is installed").success());
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

/// The lines of the password file: the service's devices, and itself.
pub(crate) async fn passwords(service: &Service, folder: &Path) -> Vec<String> {
    let verifiers = device_ota_engine::ports::Store::all_credentials(&*service.store, None, 10)
        .await
        .unwrap();
    let mut lines: Vec<String> = verifiers
        .iter()
        .map(|(id, known)| format!("{id}:{}", known.verifier))
        .collect();
    lines.push(own_line(folder).await);
    lines
}

struct WithBroker {
    service: Service,
    link: Link,
    broker: Broker,
    secret: String,
}

pub(crate) async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("never {what}"));
}

impl WithBroker {
    async fn start() -> Self {
        let unlimited = Limits {
            heartbeat: None,
            check: None,
            ..Limits::default()
        };
        Self::start_with(unlimited, |conf| conf).await
    }

    /// With limits, and a configuration of the broker that differs from the repository's.
    async fn start_with(limits: Limits, change: impl Fn(String) -> String) -> Self {
        // The link is told where the broker will be, which needs the verifiers, and these the engine, with its way down.
        let folder = tempfile::tempdir().unwrap();
        let ports = (free_port(), free_port());
        let url = format!("mqtt://device-ota:service@127.0.0.1:{}", ports.1);
        let options = LinkOptions::parse(&url, "device-ota-1").unwrap();
        let link = Link::new(options, None, Prefix::default(), &limits);
        let mut service = Service::start(Arc::new(link.clone())).await;
        let secret = service.register("d1").await;
        let lines = passwords(&service, folder.path()).await;
        let broker = Broker::start(folder.path(), ports, &lines, change).await;
        service.keep(folder);
        service.spawn(
            link.clone()
                .serve(service.engine.clone(), service.shutdown.clone()),
        );
        let connected = link.clone();
        until("connected", async || connected.connected()).await;
        Self {
            service,
            link,
            broker,
            secret,
        }
    }

    /// The device, connected to the broker; `device` is what it would like its client id to be.
    fn device(&self, client_id: &str) -> (AsyncClient, EventLoop) {
        let mut options = MqttOptions::new(client_id, "127.0.0.1", self.broker.devices);
        options.set_credentials("d1", &self.secret);
        AsyncClient::new(options, 64)
    }
}

pub(crate) async fn wait_for(events: &mut EventLoop, wanted: impl Fn(&Packet) -> bool) -> Packet {
    let wait = async {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(packet)) if wanted(&packet) => return packet,
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("it never came")
}

#[tokio::test]
async fn reports_come_up_and_offers_go_down() {
    let with = WithBroker::start().await;
    // Whatever it calls itself, it is d1: the broker makes the user name the client id.
    let (client, mut events) = with.device("device-ota-1-up");
    client
        .subscribe("ota/v1/d1/down/#", QoS::AtLeastOnce)
        .await
        .unwrap();
    let heartbeat = |version: &str| format!(r#"{{"version":"{version}"}}"#);
    client
        .publish(
            "ota/v1/d1/up/heartbeat",
            QoS::AtLeastOnce,
            false,
            heartbeat("1.0.0"),
        )
        .await
        .unwrap();
    wait_for(&mut events, |packet| matches!(packet, Packet::PubAck(_))).await;
    with.service
        .until("d1", |d| {
            d.latest.version.as_deref() == Some("1.0.0") && d.latest.online
        })
        .await;

    let sent = with
        .link
        .send(&device_id("d1"), &Down::Offer, Bytes::from_static(b"{}"))
        .await;
    assert_eq!(sent, Delivery::Queued);
    let Packet::Publish(offer) = wait_for(&mut events, |p| matches!(p, Packet::Publish(_))).await
    else {
        panic!()
    };
    assert_eq!(
        (offer.topic.as_str(), &offer.payload[..]),
        ("ota/v1/d1/down/offer", &b"{}"[..])
    );

    // Not its own: the broker does not let it through.
    client
        .publish(
            "ota/v1/d2/up/heartbeat",
            QoS::AtLeastOnce,
            false,
            heartbeat("6.6.6"),
        )
        .await
        .unwrap();
    client
        .publish(
            "ota/v1/d1/up/heartbeat",
            QoS::AtLeastOnce,
            false,
            "nonsense",
        )
        .await
        .unwrap();
    let gone = r#"{"online":false,"reason":"shutdown"}"#;
    client
        .publish("ota/v1/d1/up/status", QoS::AtLeastOnce, false, gone)
        .await
        .unwrap();
    for _ in 0..3 {
        wait_for(&mut events, |packet| matches!(packet, Packet::PubAck(_))).await;
    }
    with.service.until("d1", |d| !d.latest.online).await;
    assert_eq!(with.service.counted("mqtt_dropped", "not_json"), 1);
    assert_eq!(with.service.counted("mqtt_dropped", "unknown_device"), 0);
    // Heard again, so it is there again.
    client
        .publish(
            "ota/v1/d1/up/heartbeat",
            QoS::AtMostOnce,
            false,
            heartbeat("1.0.1"),
        )
        .await
        .unwrap();
    let back = async {
        loop {
            let _ = events.poll().await;
        }
    };
    tokio::select! {
        () = with.service.until("d1", |d| d.latest.online && d.latest.version.as_deref() == Some("1.0.1")) => {}
        () = back => {}
    }
    with.service.stop().await;
}

#[tokio::test]
async fn a_broker_that_went_away_is_found_again() {
    let mut with = WithBroker::start().await;
    with.broker.restart().await;
    until("connected again", async || {
        with.link.connected()
            && with
                .link
                .send(&device_id("d1"), &Down::Offer, Bytes::new())
                .await
                == Delivery::Queued
            && with.service.counted("mqtt_link", "connected") >= 2
    })
    .await;
    let (client, mut events) = with.device("d1");
    client
        .publish(
            "ota/v1/d1/up/heartbeat",
            QoS::AtLeastOnce,
            false,
            r#"{"version":"1.0.0"}"#,
        )
        .await
        .unwrap();
    wait_for(&mut events, |packet| matches!(packet, Packet::PubAck(_))).await;
    with.service
        .until("d1", |d| d.latest.version.is_some())
        .await;
    assert_eq!(with.service.counted("mqtt_link", "lost"), 1);
    with.service.stop().await;
}

#[tokio::test]
async fn while_the_broker_is_away_devices_cannot_be_heard() {
    let mut with = WithBroker::start().await;
    let heard = async |wanted: u8| {
        let text = with.service.engine.exposition().await;
        text.contains(&format!("device_ota_devices_heard {wanted}\n"))
    };
    until("devices are heard", async || heard(1).await).await;
    with.broker.process.kill().await.unwrap();
    until("they are not", async || heard(0).await).await;
    with.broker.process = Broker::spawn(&with.broker.folder);
    until("they are again", async || heard(1).await).await;
    with.service.stop().await;
}

#[tokio::test]
async fn nothing_of_a_fast_stream_is_lost() {
    const REPORTS: i64 = 20_000;
    let with = WithBroker::start().await;
    let (client, mut events) = with.device("d1");
    let publishing = tokio::spawn(async move {
        for n in 1..=REPORTS {
            let payload = format!(r#"{{"version":"1.0.{n}"}}"#);
            client
                .publish("ota/v1/d1/up/heartbeat", QoS::AtLeastOnce, false, payload)
                .await
                .unwrap();
        }
    });
    let last = format!("1.0.{REPORTS}");
    let polling = async {
        loop {
            events.poll().await.unwrap();
        }
    };
    tokio::select! {
        () = with.service.until("d1", |d| d.latest.version.as_deref() == Some(&last)) => {}
        () = polling => {}
    }
    publishing.await.unwrap();
    let rows = with.service.heartbeats().await;
    assert_eq!(rows, REPORTS);
    with.service.stop().await;
}

#[tokio::test]
async fn what_is_over_the_rate_is_dropped_and_acknowledged() {
    let limits = Limits {
        heartbeat: Rate::per_minute(3),
        check: None,
        ..Limits::default()
    };
    let with = WithBroker::start_with(limits, |conf| conf).await;
    let (client, mut events) = with.device("d1");
    for n in 1..=5 {
        let payload = format!(r#"{{"version":"1.0.{n}"}}"#);
        client
            .publish("ota/v1/d1/up/heartbeat", QoS::AtLeastOnce, false, payload)
            .await
            .unwrap();
    }
    // Behind the heartbeats, and of another class.
    let check = r#"{"version":"2.0.0","nonce":"n","reason":"boot"}"#;
    client
        .publish("ota/v1/d1/up/check", QoS::AtLeastOnce, false, check)
        .await
        .unwrap();
    for _ in 0..6 {
        wait_for(&mut events, |packet| matches!(packet, Packet::PubAck(_))).await;
    }
    with.service
        .until("d1", |d| d.latest.version.as_deref() == Some("2.0.0"))
        .await;
    assert_eq!(with.service.counted("mqtt_dropped", "over_rate"), 2);
    assert_eq!(with.service.heartbeats().await, 3);
    with.service.stop().await;
}

#[tokio::test]
async fn a_message_beyond_all_sizes_holds_up_nobody() {
    // A broker that takes anything.
    let without_limits = |conf: String| {
        let lines = conf.lines().filter(|line| !line.contains("_size"));
        lines.collect::<Vec<_>>().join("\n") + "\n"
    };
    let with = WithBroker::start_with(Limits::default(), without_limits).await;
    let mut options = MqttOptions::new("d1", "127.0.0.1", with.broker.devices);
    options.set_credentials("d1", &with.secret);
    options.set_max_packet_size(1024 * 1024, 1024 * 1024);
    let (client, mut events) = AsyncClient::new(options, 64);
    let huge = vec![b' '; 700 * 1024];
    let small = r#"{"version":"1.0.0"}"#.as_bytes().to_vec();
    for payload in [huge, small] {
        client
            .publish("ota/v1/d1/up/heartbeat", QoS::AtLeastOnce, false, payload)
            .await
            .unwrap();
    }
    for _ in 0..2 {
        wait_for(&mut events, |packet| matches!(packet, Packet::PubAck(_))).await;
    }
    with.service
        .until("d1", |d| d.latest.version.as_deref() == Some("1.0.0"))
        .await;
    assert_eq!(with.service.counted("mqtt_dropped", "too_large"), 1);
    assert_eq!(with.service.counted("mqtt_link", "lost"), 1);
    with.service.stop().await;
}

#[tokio::test]
async fn a_deleted_device_is_heard_no_more_and_comes_back_as_a_new_one() {
    let with = WithBroker::start().await;
    let (client, mut events) = with.device("d1");
    let mut say = async |version: &str| {
        let payload = format!(r#"{{"version":"{version}"}}"#);
        client
            .publish("ota/v1/d1/up/heartbeat", QoS::AtLeastOnce, false, payload)
            .await
            .unwrap();
        wait_for(&mut events, |packet| matches!(packet, Packet::PubAck(_))).await;
    };
    say("1.0.0").await;
    let is = |version: &'static str| {
        move |d: &device_ota_domain::device::Device| {
            d.latest.version.as_deref() == Some(version) && d.latest.online
        }
    };
    with.service.until("d1", is("1.0.0")).await;
    let by = device_ota_engine::Caller::service();
    let engine = &with.service.engine;
    engine
        .delete_device(&device_id("d1"), None, &by)
        .await
        .unwrap();
    // The broker was not told yet, and lets it speak.
    say("6.6.6").await;
    until("it is a stranger", async || {
        with.service.counted("mqtt_dropped", "unknown_device") == 1
    })
    .await;
    assert_eq!(with.service.heartbeats().await, 1);
    with.service.register("d1").await;
    say("2.0.0").await;
    with.service.until("d1", is("2.0.0")).await;
    with.service.stop().await;
}
