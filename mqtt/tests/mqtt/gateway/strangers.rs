//! Strangers: silent, slow, many, or with the wrong password. None of them keeps a device out.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use device_ota_mqtt::Limits;
use device_ota_mqtt::codec::Version;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::is_served;
use crate::service::WithGateway;
use crate::wire::{BOTH, Connect};

/// Longest that a device may wait while strangers do their worst: far above the usual milliseconds, and far below the
/// ten seconds that a stranger has for its CONNECT.
const PROMPT: Duration = Duration::from_secs(4);

/// Connections that say this and no more; another as soon as one is answered or closed. The last `kept` stay open.
fn besiege(addr: SocketAddr, number: usize, hello: &[u8], kept: usize) -> JoinSet<()> {
    let mut strangers = JoinSet::new();
    for _ in 0..number {
        let hello = hello.to_vec();
        strangers.spawn(async move {
            let mut streams = VecDeque::new();
            loop {
                let Ok(mut stream) = TcpStream::connect(addr).await else {
                    continue;
                };
                let _ = stream.write_all(&hello).await;
                let _ = stream.read(&mut [0; 64]).await;
                streams.push_back(stream);
                if streams.len() > kept {
                    streams.pop_front();
                }
            }
        });
    }
    strangers
}

/// A device comes, says something and goes, again and again, and never waits long.
async fn devices_are_served(gateway: &WithGateway, secret: &str) {
    for version in BOTH.into_iter().cycle().take(10) {
        let visit = async {
            let mut device = gateway.device(version, "d1", secret).await;
            is_served(&mut device, version, "d1").await;
        };
        timeout(PROMPT, visit).await.expect("kept out");
    }
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
    let counted = gateway.service.counted("mqtt_refused", "connect_timeout");
    assert_eq!(counted, 2);
    gateway.service.stop().await;
}

#[tokio::test]
async fn a_connect_byte_by_byte_has_no_longer_than_any_other() {
    let limits = Limits {
        connect_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let gateway = WithGateway::start(limits).await;
    let secret = gateway.service.register("d1").await;
    let connect = Connect::new(Version::V5, "d1", &secret).bytes();
    let began = Instant::now();
    let mut slow = gateway.client(b"").await;
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    for byte in &connect {
        pace.tick().await;
        slow.send(&[*byte]).await;
    }
    assert!(began.elapsed() > limits.connect_timeout * 2);
    slow.ends().await;
    let counted = gateway.service.counted("mqtt_refused", "connect_timeout");
    assert_eq!(counted, 1);
    // In two pieces, in time.
    let (head, tail) = connect.split_at(20);
    let mut device = gateway.client(head).await;
    device.send(tail).await;
    assert_eq!(device.next().await.map(|connack| connack[3]), Some(0));
    gateway.service.stop().await;
}

#[tokio::test]
async fn the_oldest_stranger_makes_room() {
    let limits = Limits {
        max_unauthenticated: 4,
        connect_timeout: Duration::from_mins(1),
        ..Limits::default()
    };
    let gateway = WithGateway::start(limits).await;
    let secret = gateway.service.register("d1").await;
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(gateway.client(b"\x10").await);
    }
    let mut device = gateway.device(Version::V3, "d1", &secret).await;
    is_served(&mut device, Version::V3, "d1").await;
    // Four places; the device's came free again.
    for stranger in strangers.iter_mut().take(17) {
        stranger.ends().await;
    }
    let counted = gateway.service.counted("mqtt_refused", "crowded_out");
    assert_eq!(counted, 17);
    for stranger in strangers.iter_mut().skip(17) {
        let still_there = timeout(Duration::from_millis(50), stranger.next());
        assert!(still_there.await.is_err());
    }
    gateway.service.stop().await;
}

#[tokio::test]
async fn idle_strangers_keep_no_device_out() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    let strangers = besiege(gateway.addr, 1_500, b"", 0);
    let refused = || {
        gateway
            .service
            .until_counted("mqtt_refused", "crowded_out", 1_000)
    };
    refused().await;
    devices_are_served(&gateway, &secret).await;
    drop(strangers);
    gateway.service.stop().await;
}

#[tokio::test]
async fn wrong_passwords_keep_no_device_out() {
    let gateway = WithGateway::start(Limits::default()).await;
    let secret = gateway.service.register("d1").await;
    // They do not close at once when they are refused, so that each lingers.
    let wrong = Connect::new(Version::V3, "d1", "wrong").bytes();
    let strangers = besiege(gateway.addr, 600, &wrong, 3);
    let cut_short = || {
        gateway
            .service
            .until_counted("mqtt_farewell", "cut_short", 500)
    };
    cut_short().await;
    devices_are_served(&gateway, &secret).await;
    drop(strangers);
    assert!(gateway.service.counted("mqtt_refused", "bad_credentials") > 600);
    gateway.service.stop().await;
}
