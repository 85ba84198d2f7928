//! A broker that hands over late what it was told in time: it says again, on the same connection and behind later reports, what
//! it was not acknowledged (NATS does), or holds back what comes while too much is owed to it.

use std::sync::Arc;
use std::time::Duration;

use device_ota_domain::device::Device;
use device_ota_mqtt::{Limits, Link, LinkOptions};
use device_ota_protocol::topics::Prefix;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::service::{PATIENCE, Service};
use crate::wire;

const SAID_AGAIN: u8 = 0x3a;
const SAID: u8 = 0x32;

/// The broker's side of the connection that takes reports.
struct Broker(TcpStream);

impl Broker {
    /// Takes both connections, and gives that of reports.
    async fn accept(listener: TcpListener) -> (Self, TcpStream) {
        let (mut up, mut down) = (None, None);
        while up.is_none() || down.is_none() {
            let (stream, _) = listener.accept().await.unwrap();
            let mut broker = Self(stream);
            let (_, connect) = broker.next().await;
            broker.send(0x20, &[0, 0]).await;
            if connect.windows(5).any(|text| text == b"-down") {
                down = Some(broker.0);
            } else {
                up = Some(broker);
            }
        }
        let mut up = up.unwrap();
        let (first, subscribe) = up.next().await;
        assert_eq!(first, 0x82);
        // A filter ends with the QoS that is asked for, and is granted.
        let filters = filters(&subscribe[2..]);
        let granted = [&subscribe[..2], &vec![1; filters]].concat();
        up.send(0x90, &granted).await;
        (up, down.unwrap())
    }

    async fn send(&mut self, first: u8, body: &[u8]) {
        let packet = wire::packet(first, body);
        self.0.write_all(&packet).await.unwrap();
    }

    async fn say(&mut self, first: u8, packet: u16, kind: &str, report: &str) {
        let mut body = wire::string(format!("ota/v1/d1/up/{kind}"));
        body.extend(packet.to_be_bytes());
        body.extend(report.as_bytes());
        self.send(first, &body).await;
    }

    /// First byte and body of what comes.
    async fn next(&mut self) -> (u8, Vec<u8>) {
        let read = async {
            let first = self.0.read_u8().await.unwrap();
            let (mut length, mut shift) = (0, 0);
            loop {
                let byte = self.0.read_u8().await.unwrap();
                length |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await.unwrap();
            (first, body)
        };
        timeout(PATIENCE, read).await.expect("it never came")
    }

    /// What the service says itself, as the broker hands it back: topic, packet id and payload.
    async fn published(&mut self) -> Vec<u8> {
        loop {
            if let (SAID, body) = self.next().await {
                let topic = usize::from(u16::from_be_bytes([body[0], body[1]])) + 2;
                self.send(0x40, &body[topic..topic + 2]).await;
                return body;
            }
        }
    }

    async fn acknowledged(&mut self) -> u16 {
        loop {
            if let (0x40, body) = self.next().await {
                return u16::from_be_bytes([body[0], body[1]]);
            }
        }
    }
}

fn filters(mut body: &[u8]) -> usize {
    let mut filters = 0;
    while let [high, low, rest @ ..] = body {
        body = &rest[usize::from(u16::from_be_bytes([*high, *low])) + 1..];
        filters += 1;
    }
    filters
}

/// The engine, which commits nothing yet, with its link and the broker's side of it.
async fn scene(change: impl FnOnce(&mut LinkOptions)) -> (Service, Broker, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    let mut options = LinkOptions::parse(&url, "device-ota-1").unwrap();
    change(&mut options);
    let limits = Limits {
        heartbeat: None,
        check: None,
        ..Limits::default()
    };
    let link = Link::new(options, None, Prefix::default(), &limits);
    let mut service = Service::idle(Arc::new(link.clone())).await;
    service.register("d1").await;
    service.spawn(link.serve(service.engine.clone(), service.shutdown.clone()));
    let (broker, down) = Broker::accept(listener).await;
    (service, broker, down)
}

fn payload(body: &[u8]) -> &[u8] {
    let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
    &body[topic + 4..]
}

fn check(nonce: &str) -> String {
    format!(r#"{{"version":"1.0.0","nonce":"{nonce}","reason":"boot"}}"#)
}

fn in_group(options: &mut LinkOptions) {
    options.sharing.group = Some("ota".parse().unwrap());
    options.marker_patience = Duration::from_secs(1);
}

#[tokio::test]
async fn what_is_said_again_is_no_news() {
    let (mut service, mut broker, _down) = scene(|_| {}).await;

    // Commits wait, and the broker says again what it hears nothing of.
    broker
        .say(SAID, 1, "heartbeat", r#"{"version":"1.0.0"}"#)
        .await;
    broker.say(SAID, 2, "check", &check("older")).await;
    broker.say(SAID, 3, "check", &check("later")).await;
    broker
        .say(SAID, 4, "heartbeat", r#"{"version":"2.0.0"}"#)
        .await;
    broker
        .say(SAID_AGAIN, 1, "heartbeat", r#"{"version":"1.0.0"}"#)
        .await;
    broker.say(SAID_AGAIN, 2, "check", &check("older")).await;
    service.until_counted("mqtt_dropped", "late", 1).await;
    // One of an earlier connection: nobody knows how old it is.
    broker
        .say(SAID_AGAIN, 9, "heartbeat", r#"{"version":"0.9.0"}"#)
        .await;
    service.run();
    for packet in [1, 2, 3, 4, 9] {
        assert_eq!(broker.acknowledged().await, packet, "each once, in order");
    }
    let device = service.device("d1").await;
    assert_eq!(device.latest.version.as_deref(), Some("2.0.0"));
    assert_eq!(service.heartbeats().await, 4, "all are kept");
    service.stop().await;
}

#[tokio::test]
async fn what_a_broker_held_back_while_commits_stalled_is_no_news() {
    let (mut service, mut broker, _down) = scene(in_group).await;
    let marker = broker.published().await;
    broker.send(SAID, &marker).await;
    broker
        .say(SAID, 1, "heartbeat", r#"{"version":"1.0.0"}"#)
        .await;
    // Commits stall, until it is noticed.
    let stalling = async {
        for packet in 2.. {
            broker.say(SAID, packet, "check", &check("n")).await;
            if service.counted("mqtt_dropped", "late") > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, stalling)
        .await
        .expect("it is never noticed");
    service.run();
    service.until("d1", |d| d.latest.version.is_some()).await;
    // They go again. What was held back comes before the marker that was sent since.
    let again = loop {
        let again = broker.published().await;
        // The first one may be under way twice.
        if payload(&again) != payload(&marker) {
            break again;
        }
    };
    broker
        .say(SAID, 30_001, "heartbeat", r#"{"version":"0.9.0"}"#)
        .await;
    broker.send(SAID, &marker).await;
    broker
        .say(SAID, 30_002, "heartbeat", r#"{"version":"0.9.0"}"#)
        .await;
    while broker.acknowledged().await != 30_002 {}
    let device = service.device("d1").await;
    assert_eq!(device.latest.version.as_deref(), Some("1.0.0"));
    broker.send(SAID, &again).await;
    broker
        .say(SAID, 30_003, "heartbeat", r#"{"version":"2.0.0"}"#)
        .await;
    let is_new = |d: &Device| d.latest.version.as_deref() == Some("2.0.0");
    service.until("d1", is_new).await;
    service.stop().await;
}

#[tokio::test]
async fn a_marker_that_the_broker_drops_is_sent_again() {
    let (mut service, mut broker, _down) = scene(in_group).await;
    service.run();
    let dropped = broker.published().await;
    broker
        .say(SAID, 1, "heartbeat", r#"{"version":"1.0.0"}"#)
        .await;
    let again = broker.published().await;
    assert_eq!(payload(&again), payload(&dropped));
    service.stop().await;
}
