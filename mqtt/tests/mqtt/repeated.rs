//! A broker that says again, on the same connection and behind later reports, what it was not acknowledged in time (NATS does).

use std::sync::Arc;

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
        // One granted for each of the five kinds.
        up.send(0x90, &[subscribe[0], subscribe[1], 1, 1, 1, 1, 1])
            .await;
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

    async fn acknowledged(&mut self) -> u16 {
        loop {
            if let (0x40, body) = self.next().await {
                return u16::from_be_bytes([body[0], body[1]]);
            }
        }
    }
}

#[tokio::test]
async fn what_is_said_again_is_no_news() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    let options = LinkOptions::parse(&url, "device-ota-1").unwrap();
    let limits = Limits {
        heartbeat: None,
        check: None,
        ..Limits::default()
    };
    let link = Link::new(options, None, Prefix::default(), &limits);
    let mut service = Service::idle(Arc::new(link.clone())).await;
    service.register("d1").await;
    service.spawn(link.serve(service.engine.clone(), service.shutdown.clone()));
    let (mut broker, _down) = Broker::accept(listener).await;

    // Commits wait, and the broker says again what it hears nothing of.
    let check = |nonce: &str| format!(r#"{{"version":"1.0.0","nonce":"{nonce}","reason":"boot"}}"#);
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
