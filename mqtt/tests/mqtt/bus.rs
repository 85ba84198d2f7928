//! The bus with real subscribers, and its death.

use std::net::SocketAddr;
use std::time::Duration;

use device_ota_domain::event::StoredEvent;
use device_ota_engine::ports::EventSink as _;
use device_ota_mqtt::Bus;
use device_ota_mqtt::bus::BusError;
use device_ota_mqtt::codec::Version;
use device_ota_protocol::topics::Prefix;
use jiff::Timestamp;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::service::PATIENCE;
use crate::wire::{self, Connect};

async fn start() -> Bus {
    Bus::start("127.0.0.1:0".parse().unwrap(), Prefix::default())
        .await
        .unwrap()
}

fn event(id: i64) -> StoredEvent {
    StoredEvent {
        id,
        event_type: "campaign.started".into(),
        entity: "camp_0123456789abcdef".into(),
        data: serde_json::json!({"campaign_id": "camp_0123456789abcdef"}),
        at: Timestamp::UNIX_EPOCH,
    }
}

async fn subscriber(addr: SocketAddr) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new("dashboard", addr.ip().to_string(), addr.port());
    options.set_keep_alive(Duration::from_secs(5));
    let (client, mut events) = AsyncClient::new(options, 16);
    client
        .subscribe("ota/v1/events/#", QoS::AtLeastOnce)
        .await
        .unwrap();
    let subscribed = async {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::SubAck(_))) => return,
                Ok(_) => {}
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let _ = client.try_subscribe("ota/v1/events/#", QoS::AtLeastOnce);
                }
            }
        }
    };
    timeout(PATIENCE, subscribed).await.expect("not subscribed");
    (client, events)
}

async fn next_event(events: &mut EventLoop) -> rumqttc::Publish {
    let next = async {
        loop {
            if let Ok(Event::Incoming(Packet::Publish(publish))) = events.poll().await {
                return publish;
            }
        }
    };
    timeout(PATIENCE, next).await.expect("no event came")
}

#[tokio::test]
async fn a_subscriber_sees_events_in_order() {
    let bus = start().await;
    let (_client, mut events) = subscriber(bus.local_addr()).await;
    for id in 1..=50 {
        bus.deliver(&event(id)).await.unwrap();
    }
    for id in 1..=50 {
        let publish = next_event(&mut events).await;
        assert_eq!(publish.topic, "ota/v1/events/campaign/started");
        assert_eq!(publish.qos, QoS::AtLeastOnce);
        let envelope: serde_json::Value = serde_json::from_slice(&publish.payload).unwrap();
        assert_eq!(envelope["id"], id);
        assert_eq!(envelope["event_type"], "campaign.started");
        assert_eq!(envelope["source"], "ota_service");
        assert_eq!(envelope["data"]["campaign_id"], "camp_0123456789abcdef");
        assert_eq!(envelope["timestamp"], "1970-01-01T00:00:00Z");
    }
}

/// A message that kills rumqttd's router: its topic begins with a character of more than one byte.
async fn kill(addr: SocketAddr) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream
        .write_all(
            &Connect {
                user: None,
                password: None,
                ..Connect::new(Version::V3, "killer", "")
            }
            .bytes(),
        )
        .await
        .unwrap();
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).await.unwrap();
    stream
        .write_all(&wire::publish(Version::V3, 0, "\u{e9}vil", b"x"))
        .await
        .unwrap();
    stream.flush().await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_millis(200), stream.read_to_end(&mut rest)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_bus_comes_back_on_the_same_port() {
    let bus = start().await;
    let addr = bus.local_addr();
    let (_client, events) = subscriber(addr).await;
    kill(addr).await;
    let died = async {
        while bus.is_up() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(bus.deliver(&event(1)).await.is_err());
        while !bus.is_up() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, died)
        .await
        .expect("it did not die, or did not come back");
    drop(events);
    assert_eq!(bus.local_addr(), addr);
    let (_client, mut events) = subscriber(addr).await;
    bus.deliver(&event(2)).await.unwrap();
    assert_eq!(
        next_event(&mut events).await.topic,
        "ota/v1/events/campaign/started"
    );
}

/// Nothing happens on it, and it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_on_which_nothing_happens_goes_on() {
    let bus = start().await;
    let (_client, mut events) = subscriber(bus.local_addr()).await;
    let quiet = timeout(Duration::from_secs(3), async {
        while events.poll().await.is_ok() {}
    });
    assert!(quiet.await.is_err(), "the subscriber was let go");
    bus.deliver(&event(1)).await.unwrap();
    next_event(&mut events).await;
}

/// It takes the name under which events are published; they are published all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_by_the_services_name_takes_no_event_away() {
    let bus = start().await;
    let addr = bus.local_addr();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let connect = Connect {
        user: None,
        password: None,
        ..Connect::new(Version::V3, "device-ota", "")
    };
    stream.write_all(&connect.bytes()).await.unwrap();
    // The broker lets the one go that had the name, and is started anew.
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    let (_client, mut events) = subscriber(addr).await;
    let delivered = async {
        while bus.deliver(&event(1)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, delivered).await.expect("it stays dead");
    next_event(&mut events).await;
}

/// Who connects while the router dies waits in rumqttd for an answer for ever, and keeps its port with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_dies_while_clients_come_in_comes_back_each_time() {
    let bus = start().await;
    let addr = bus.local_addr();
    for life in 1..=3 {
        let mut waiting = Vec::new();
        for _ in 0..8 {
            waiting.push(TcpStream::connect(addr).await.unwrap());
        }
        let come_in = async {
            for (number, stream) in waiting.iter_mut().enumerate() {
                let id = format!("late-{number}");
                let connect = Connect {
                    user: None,
                    password: None,
                    ..Connect::new(Version::V3, &id, "")
                };
                // It may be gone already.
                let _ = stream.write_all(&connect.bytes()).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::join!(kill(addr), come_in);
        let (_client, mut events) = subscriber(addr).await;
        let delivered = async {
            while bus.deliver(&event(life)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, delivered).await.expect("it stays dead");
        let publish = next_event(&mut events).await;
        assert_eq!(publish.topic, "ota/v1/events/campaign/started");
    }
}

#[tokio::test]
async fn the_bus_listens_on_loopback_alone() {
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let refused = Bus::start(everywhere, Prefix::default()).await;
    assert!(matches!(refused, Err(BusError::NotLoopback(_))));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = Bus::start(taken.local_addr().unwrap(), Prefix::default()).await;
    assert!(matches!(refused, Err(BusError::Bind { .. })));
}
