//! Replicas that share reports: what comes to one does not come to the other, nothing is lost, and what waited for one that was
//! away is not mistaken for news.

use std::sync::Arc;
use std::time::Duration;

use device_ota_mqtt::{Limits, Link, LinkOptions, Sharing};
use device_ota_protocol::topics::Prefix;
use rumqttc::{AsyncClient, EventLoop, MqttOptions, Packet, QoS};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::link::{Broker, free_port, passwords, until, wait_for};
use crate::service::{PATIENCE, Service};

/// A service with a database of its own, and its link. Both know the device `d1`.
struct Replica {
    service: Service,
    options: LinkOptions,
    link: Link,
    ends: CancellationToken,
}

impl Replica {
    async fn new(port: u16, client_id: &str, sharing: Sharing) -> Self {
        let url = format!("mqtt://device-ota:service@127.0.0.1:{port}");
        let mut options = LinkOptions::parse(&url, client_id).unwrap();
        options.sharing = sharing;
        let link = link(&options);
        Self {
            service: Service::start(Arc::new(link.clone())).await,
            options,
            link,
            ends: CancellationToken::new(),
        }
    }

    fn begin(&mut self) {
        self.ends = self.service.shutdown.child_token();
        let (engine, ends) = (self.service.engine.clone(), self.ends.clone());
        self.service.spawn(self.link.clone().serve(engine, ends));
    }

    /// As a process that starts, which waits so long for a broker that hands nothing over.
    fn begin_anew(&mut self, marker_patience: Duration) {
        self.options.marker_patience = marker_patience;
        self.link = link(&self.options);
        self.begin();
    }

    async fn connect(&mut self) {
        self.begin();
        until("connected", async || self.link.connected()).await;
    }

    async fn disconnect(&mut self) {
        self.ends.cancel();
        until("disconnected", async || !self.link.connected()).await;
    }

    /// As a process that starts with other settings.
    async fn reconnect(&mut self, sharing: Sharing) {
        self.disconnect().await;
        self.options.sharing = sharing;
        self.link = link(&self.options);
        self.connect().await;
    }
}

fn link(options: &LinkOptions) -> Link {
    let unlimited = Limits {
        heartbeat: None,
        check: None,
        ..Limits::default()
    };
    Link::new(options.clone(), None, Prefix::default(), &unlimited)
}

fn in_group() -> Sharing {
    Sharing {
        group: Some("ota".parse().unwrap()),
        left: Vec::new(),
    }
}

/// Two replicas and the device, all connected to one broker.
struct Scene {
    replicas: [Replica; 2],
    client: AsyncClient,
    events: EventLoop,
    said: u32,
    _broker: Broker,
    _folder: TempDir,
}

impl Scene {
    async fn start(sharing: Sharing) -> Self {
        Self::start_with(sharing, |conf| conf).await
    }

    /// With a configuration of the broker that differs from the repository's.
    async fn start_with(sharing: Sharing, change: impl Fn(String) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = (free_port(), free_port());
        let first = Replica::new(ports.1, "replica-1", sharing.clone()).await;
        let second = Replica::new(ports.1, "replica-2", sharing).await;
        let secret = first.service.register("d1").await;
        second.service.register("d1").await;
        let lines = passwords(&first.service, folder.path()).await;
        let broker = Broker::start(folder.path(), ports, &lines, change).await;
        let mut options = MqttOptions::new("d1", "127.0.0.1", broker.devices);
        options.set_credentials("d1", &secret);
        let (client, events) = AsyncClient::new(options, 64);
        Self {
            replicas: [first, second],
            client,
            events,
            said: 0,
            _broker: broker,
            _folder: folder,
        }
    }

    /// The device says something, and the broker has taken it.
    async fn say(&mut self, kind: &str, report: &str) {
        let topic = format!("ota/v1/d1/up/{kind}");
        let publish = self
            .client
            .publish(topic, QoS::AtLeastOnce, false, report.to_owned());
        publish.await.unwrap();
        let acknowledged = |packet: &Packet| matches!(packet, Packet::PubAck(_));
        wait_for(&mut self.events, acknowledged).await;
    }

    async fn beat(&mut self, version: &str, times: u32) {
        for _ in 0..times {
            let report = format!(r#"{{"version":"{version}"}}"#);
            self.say("heartbeat", &report).await;
        }
        self.said += times;
    }

    /// Says it as long as the replica takes it for something that waited.
    async fn beat_until_news(&mut self, replica: usize, version: &'static str) {
        for _ in 0..1_000 {
            self.beat(version, 1).await;
            if shows(version)(&self.replicas[replica].service.device("d1").await) {
                return;
            }
        }
        panic!("replica {replica} never hears of it");
    }

    /// How many heartbeats each has kept.
    async fn kept(&self) -> [i64; 2] {
        let [first, second] = &self.replicas;
        [
            first.service.heartbeats().await,
            second.service.heartbeats().await,
        ]
    }

    /// Until each heartbeat is kept by one of them.
    async fn all_are_kept(&self) {
        until("every heartbeat is kept", async || {
            self.kept().await.iter().sum::<i64>() >= i64::from(self.said)
        })
        .await;
        let sum = self.kept().await.iter().sum::<i64>();
        assert_eq!(sum, i64::from(self.said), "once each");
    }

    async fn stop(self) {
        for replica in self.replicas {
            replica.service.stop().await;
        }
    }
}

fn shows(version: &'static str) -> impl Fn(&device_ota_domain::device::Device) -> bool {
    move |device| device.latest.version.as_deref() == Some(version)
}

#[tokio::test]
async fn each_report_comes_to_one_replica_and_none_is_lost() {
    let mut scene = Scene::start(in_group()).await;
    for replica in &mut scene.replicas {
        replica.connect().await;
    }
    scene.beat("1.0.0", 40).await;
    scene.all_are_kept().await;
    let [first, second] = scene.kept().await;
    assert!(first > 0 && second > 0, "{first} and {second}");

    // One is away: its share waits for it, however long that is, and it is told apart from news.
    for replica in &scene.replicas {
        replica.service.until("d1", shows("1.0.0")).await;
    }
    scene.replicas[1].disconnect().await;
    scene.beat("1.0.1", 40).await;
    let question = r#"{"version":"1.0.1","nonce":"n","reason":"boot"}"#;
    scene.say("check", question).await;
    scene.say("check", question).await;
    scene.replicas[0].service.until("d1", shows("1.0.1")).await;
    scene.replicas[1].connect().await;
    scene.all_are_kept().await;
    let [_, late] = scene.kept().await;
    assert!(late > second, "nothing waited for it: {late}");
    let second = &scene.replicas[1].service;
    second.until_counted("mqtt_dropped", "late", 1).await;
    let known = second.device("d1").await;
    assert_eq!(known.latest.version.as_deref(), Some("1.0.0"));

    // What comes from then on is news to both.
    for replica in 0..2 {
        scene.beat_until_news(replica, "2.0.0").await;
    }
    scene.all_are_kept().await;
    scene.stop().await;
}

#[tokio::test]
async fn who_joins_a_group_or_leaves_it_hears_nothing_twice() {
    let mut scene = Scene::start(Sharing::default()).await;
    scene.replicas[0].connect().await;
    scene.beat("1.0.0", 5).await;
    scene.all_are_kept().await;
    let alone = Sharing {
        group: None,
        left: vec!["ota".parse().unwrap()],
    };
    for sharing in [in_group(), alone] {
        scene.replicas[0].reconnect(sharing).await;
        scene.beat_until_news(0, "2.0.0").await;
        // The broker hands them over in the order in which they came: behind the last there is no second one of another.
        scene.beat("1.0.0", 5).await;
        scene.beat("1.0.1", 1).await;
        scene.replicas[0].service.until("d1", shows("1.0.1")).await;
        scene.all_are_kept().await;
    }
    scene.stop().await;
}

/// The client cannot tell a broker that has no shared subscriptions from one whose rules keep the marker from it.
#[tokio::test]
async fn a_broker_that_does_not_share_is_told() {
    let rules = tempfile::NamedTempFile::new().unwrap();
    let acl = concat!(env!("CARGO_MANIFEST_DIR"), "/../mosquitto.acl");
    let acl = std::fs::read_to_string(acl).unwrap();
    let without = acl.lines().filter(|line| !line.contains("$service/"));
    std::fs::write(rules.path(), without.collect::<Vec<_>>().join("\n") + "\n").unwrap();
    let named = format!("acl_file {}", rules.path().display());
    let change = |conf: String| conf.replace("acl_file mosquitto.acl", &named);
    let mut scene = Scene::start_with(in_group(), change).await;
    // First nobody speaks; then the device does, and the session is one that was kept.
    for speaks in [false, true] {
        scene.replicas[0].begin_anew(Duration::from_millis(500));
        let link = scene.replicas[0].link.clone();
        let is_told = || {
            let trouble = link.trouble().unwrap_or_default();
            trouble.contains("hands nothing over")
        };
        let telling = async {
            while !is_told() {
                if speaks {
                    scene.beat("1.0.0", 1).await;
                } else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        };
        timeout(PATIENCE, telling).await.expect("it is never told");
        if speaks {
            // Reports come by the next connection, too, and do not show that all is well.
            let late = scene.replicas[0].service.heartbeats().await;
            let next = async {
                while scene.replicas[0].service.heartbeats().await < late + 10 {
                    assert!(!link.connected());
                    scene.beat("1.0.0", 1).await;
                }
            };
            timeout(PATIENCE, next).await.expect("nothing comes");
        }
        assert!(!link.connected());
        scene.replicas[0].ends.cancel();
    }
    scene.stop().await;
}
