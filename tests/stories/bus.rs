//! The bus on loopback: an in-house subscriber sees what happens, and whatever happens to the bus harms no device.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::harness::raw::{Raw, connect, publish, subscribe};
use crate::harness::{
    Device, MqttVersion, Options, Service, Trust, device_json, eventually, within,
};

matrix!(a_subscriber_sees_a_campaign_from_its_creation_to_its_end);
matrix!(an_attack_on_the_bus_harms_no_device: sqlite_gateway, sqlite_mosquitto);

/// `mosquitto_sub` on the bus; ended with the test.
pub struct Subscriber {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Subscriber {
    /// Starts it, and returns when it has subscribed.
    pub async fn start(service: &Service, filter: &str) -> Self {
        let (host, port) = service
            .ready()
            .bus
            .as_deref()
            .unwrap()
            .rsplit_once(':')
            .unwrap();
        // `-d` says when the subscription stands, `-v` puts the topic before each payload.
        let mut child = Command::new("stdbuf")
            .args([
                "-oL",
                "mosquitto_sub",
                "-h",
                host,
                "-p",
                port,
                "-t",
                filter,
                "-q",
                "1",
                "-v",
                "-d",
                "-i",
                "in-house",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("mosquitto_sub is installed");
        let (sender, lines) = mpsc::unbounded_channel();
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut subscriber = Self { child, lines };
        while !subscriber.line().await.starts_with("Subscribed") {}
        subscriber
    }

    async fn line(&mut self) -> String {
        within("the subscriber says something", self.lines.recv())
            .await
            .expect("mosquitto_sub goes on")
    }

    /// The next event and its topic.
    pub async fn event(&mut self) -> (String, Value) {
        loop {
            let line = self.line().await;
            let Some((topic, payload)) = line.split_once(' ') else {
                continue;
            };
            if let Ok(event) = serde_json::from_str(payload) {
                return (topic.to_owned(), event);
            }
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn a_subscriber_sees_a_campaign_from_its_creation_to_its_end(options: Options) {
    let service = Service::start(options).await;
    let mut subscriber = Subscriber::start(&service, "#").await;
    let admin = service.admin();
    let credentials = service.register(device_json("frame-1")).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let campaign = admin
        .start_campaign(
            json!({ "name": "seen", "firmware_id": firmware, "deployment_strategy": "immediate" }),
        )
        .await;
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    device.complete(&offer).await;

    let wanted = [
        "firmware.uploaded",
        "campaign.created",
        "campaign.started",
        "campaign.completed",
    ];
    let mut seen = Vec::new();
    while seen.len() < wanted.len() {
        let (topic, event) = subscriber.event().await;
        let kind = event["event_type"].as_str().unwrap().to_owned();
        if !wanted.contains(&kind.as_str()) {
            continue;
        }
        assert_eq!(event["source"], "ota_service");
        assert!(
            !topic.contains("frame-1"),
            "never a topic a device: {topic}"
        );
        let data = &event["data"];
        if kind == "firmware.uploaded" {
            assert_eq!(data["firmware_id"], firmware.as_str());
            assert_eq!(
                (&data["version"], &data["device_model"]),
                (&json!("2.1.0"), &json!("SF-100"))
            );
            assert_eq!(data["is_security_update"], false);
        } else {
            assert_eq!(data["campaign_id"], campaign.as_str());
            assert_eq!(
                (&data["name"], &data["target_device_count"]),
                (&json!("seen"), &json!(1)),
                "{event:#}"
            );
        }
        seen.push(kind);
    }
    assert_eq!(seen, wanted, "each once and in order");
}

async fn an_attack_on_the_bus_harms_no_device(options: Options) {
    // The bus is another project's broker, which a client can make panic; that it is started again is what counts.
    let service = Service::start(options).await;
    let credentials = service.register(device_json("frame-1")).await;
    let mut device = Device::connect(&service, MqttVersion::V311, &credentials).await;
    let bus = service.ready().bus.clone().unwrap();
    for n in 0_u8..60 {
        let mut socket = TcpStream::connect(&bus).await.unwrap();
        let garbage: Vec<u8> = (0..200_u8)
            .map(|byte| byte.wrapping_mul(n | 1).wrapping_add(n))
            .collect();
        let _ = socket.write_all(&garbage).await;
    }
    // What is known to end a broker that trusts its clients: names that are no topic levels, on a second connection,
    // and topics that begin beyond ASCII.
    for id in ["a/+/#$", "a/+/#$", "stranger"] {
        let mut raw = Raw::open(&bus, MqttVersion::V311).await;
        raw.send(&connect(MqttVersion::V311, id, "in-house", "x", 30))
            .await;
        raw.packet().await;
        raw.send(&subscribe(MqttVersion::V311, "\u{e9}t\u{e9}/#"))
            .await;
        raw.packet().await;
        for topic in ["\u{e9}t\u{e9}/x", "ota/v1/frame-1/down/offer"] {
            raw.send(&publish(MqttVersion::V311, 1, topic, b"{}")).await;
        }
        raw.packet().await;
    }
    let reply = device.check("2.0.0", "poll").await;
    assert_eq!(reply["offer"], false);
    assert_eq!(service.admin().get("/health").await.status, 200);
    device.leave().await;
    eventually("the bus is back", async || {
        let raw = Raw::try_open(&bus, MqttVersion::V311).await;
        let mut raw = raw.map_err(|error| error.to_string())?;
        raw.send(&connect(MqttVersion::V311, "in-house", "in-house", "x", 30))
            .await;
        match raw.packet().await {
            Some(packet) if packet.body.get(1) == Some(&0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let mut subscriber = Subscriber::start(&service, "#").await;
    service.admin().image("2.1.0").await;
    while subscriber.event().await.1["event_type"] != "firmware.uploaded" {}
}
