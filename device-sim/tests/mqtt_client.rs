//! The light MQTT client against mosquitto, in both versions: what benches and devices rely on.
//! Starts a broker of its own on a free port and ends it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use device_sim::mqtt::{Client, Error, Event, Options, Topic, User, Version, Will};
use tokio::time::timeout;

/// Where Debian puts the broker.
const MOSQUITTO: &str = "/usr/sbin/mosquitto";
const BOTH: [Version; 2] = [Version::V3, Version::V5];
/// Ports tried before it is given up.
const START_TRIES: usize = 5;
/// Pause between looks at whether it answers.
const POLL: Duration = Duration::from_millis(20);
/// Longest wait for anything that should come.
const SOON: Duration = Duration::from_secs(20);

struct Broker {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts mosquitto where one user may connect, and waits until it does.
async fn broker() -> Broker {
    let folder = tempfile::tempdir().unwrap();
    let passwords = folder.path().join("passwords");
    std::fs::write(&passwords, "dev-1:secret\n").unwrap();
    let hashed = Command::new("mosquitto_passwd")
        .args(["-U", passwords.to_str().unwrap()])
        .status()
        .expect("mosquitto_passwd is installed");
    assert!(hashed.success());
    for _ in 0..START_TRIES {
        if let Some((child, address)) =
            start(&folder.path().join("mosquitto.conf"), &passwords).await
        {
            return Broker {
                child,
                address,
                _folder: folder,
            };
        }
    }
    panic!("mosquitto does not start");
}

/// mosquitto cannot be asked for a free port, so one is found with a probe; `None` if it was lost
/// to somebody else meanwhile.
async fn start(config: &Path, passwords: &Path) -> Option<(Child, SocketAddr)> {
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut file = std::fs::File::create(config).unwrap();
    writeln!(file, "listener {} 127.0.0.1", address.port()).unwrap();
    writeln!(file, "allow_anonymous false").unwrap();
    writeln!(file, "password_file {}", passwords.display()).unwrap();
    writeln!(file, "user root\nmax_queued_messages 0").unwrap();
    let mut child = Command::new(MOSQUITTO)
        .arg("-c")
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mosquitto is installed");
    // It says nothing when it is ready: its port answers.
    while child.try_wait().unwrap().is_none() {
        if tokio::net::TcpStream::connect(address).await.is_ok() {
            return Some((child, address));
        }
        tokio::time::sleep(POLL).await;
    }
    None
}

fn options(server: SocketAddr, version: Version, name: &str) -> Options {
    Options {
        server,
        tls: None,
        version,
        client_id: name.into(),
        user: Some(User {
            name: "dev-1".into(),
            password: Bytes::from_static(b"secret"),
        }),
        will: None,
        keep_alive_s: 30,
    }
}

async fn next(client: &mut Client) -> Event {
    timeout(SOON, client.next())
        .await
        .expect("an event")
        .unwrap()
}

async fn subscribed(client: &mut Client, filter: &str) {
    let asked = client.subscribe(filter).unwrap();
    match next(client).await {
        Event::Subscribed { pid, granted } => assert_eq!((pid, granted), (asked, true)),
        other => panic!("{other:?} in place of a subscription"),
    }
}

#[tokio::test]
async fn what_one_client_publishes_another_receives_and_both_ends_acknowledge() {
    let broker = broker().await;
    for version in BOTH {
        let topic = Topic::try_from("a/b").unwrap();
        let mut reader = Client::connect(&options(broker.address, version, "r"))
            .await
            .unwrap();
        subscribed(&mut reader, "a/#").await;
        let mut writer = Client::connect(&options(broker.address, version, "w"))
            .await
            .unwrap();
        // Larger than a read, so that it comes in pieces.
        let payload = Bytes::from(vec![b'x'; 70_000]);
        let sent = writer.publish(&topic, payload.clone()).unwrap();
        assert_eq!(writer.in_flight(), 1);
        let Event::Acked {
            pid,
            accepted: true,
        } = next(&mut writer).await
        else {
            panic!("an acknowledgement");
        };
        assert_eq!((pid, writer.in_flight()), (sent, 0));
        let Event::Message(message) = next(&mut reader).await else {
            panic!("a message");
        };
        assert_eq!((&*message.topic, &message.payload), ("a/b", &payload));
        writer.disconnect().await.unwrap();
    }
}

#[tokio::test]
async fn a_pipeline_gets_every_acknowledgement() {
    let broker = broker().await;
    for version in BOTH {
        let mut client = Client::connect(&options(broker.address, version, "p"))
            .await
            .unwrap();
        let topic = Topic::try_from("a/b").unwrap();
        let payloads = std::iter::repeat_n(Bytes::from_static(b"beat"), 70_000);
        let done = timeout(SOON, client.pipeline(&topic, 100, payloads))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((done.accepted, done.refused), (70_000, 0));
    }
}

#[tokio::test]
async fn wrong_credentials_are_told_apart_from_other_failures() {
    let broker = broker().await;
    for version in BOTH {
        let mut options = options(broker.address, version, "n");
        options.user.as_mut().unwrap().password = Bytes::from_static(b"wrong");
        let error = Client::connect(&options).await.unwrap_err();
        assert!(error.is_not_authorised(), "{error}");
    }
    let gone = broker.address;
    drop(broker);
    let error = Client::connect(&options(gone, Version::V3, "n"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Io(_)) && !error.is_not_authorised(),
        "{error}"
    );
}

#[tokio::test]
async fn an_aborted_connection_leaves_its_will_and_an_orderly_one_does_not() {
    let broker = broker().await;
    for version in BOTH {
        let mut reader = Client::connect(&options(broker.address, version, "r"))
            .await
            .unwrap();
        subscribed(&mut reader, "will/#").await;
        let with_will = |name: &str| {
            let topic = Topic::try_from(format!("will/{name}").as_str()).unwrap();
            let mut options = options(broker.address, version, name);
            options.will = Some(Will {
                topic,
                payload: Bytes::from_static(b"gone"),
            });
            options
        };
        let orderly = Client::connect(&with_will("orderly")).await.unwrap();
        orderly.disconnect().await.unwrap();
        let aborted = Client::connect(&with_will("aborted")).await.unwrap();
        aborted.abort();
        let Event::Message(message) = next(&mut reader).await else {
            panic!("a will");
        };
        assert_eq!(&*message.topic, "will/aborted");
    }
}

#[tokio::test]
async fn an_idle_connection_is_kept_alive() {
    let broker = broker().await;
    for version in BOTH {
        let mut options = options(broker.address, version, "k");
        options.keep_alive_s = 1;
        let mut client = Client::connect(&options).await.unwrap();
        // mosquitto ends connections that are silent for one and a half times the keep-alive.
        let idle = timeout(Duration::from_secs(3), client.next()).await;
        assert!(idle.is_err(), "{idle:?}");
        let topic = Topic::try_from("a/b").unwrap();
        client.publish(&topic, Bytes::new()).unwrap();
        assert!(matches!(
            next(&mut client).await,
            Event::Acked { accepted: true, .. }
        ));
    }
}
