//! A running engine on a real SQLite file, with the gateway before it or the link beside it, and clients for them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use device_ota_domain::DeviceId;
use device_ota_domain::device::{Device, Registration};
use device_ota_engine::keyring::Keyring;
use device_ota_engine::ports::{Clock, Delivery, Downlink, Entropy, Store};
use device_ota_engine::{Caller, Engine, Grants, Parts, RegistrationOutcome, Settings, Work};
use device_ota_mqtt::codec::Version;
use device_ota_mqtt::{Gateway, Limits, Sessions, TlsConfigs};
use device_ota_objects::LocalFolder;
use device_ota_protocol::keys::Keypair;
use device_ota_protocol::objects::{self, Root};
use device_ota_protocol::topics::{Down, Prefix};
use device_ota_store::SqliteStore;
use jiff::{Timestamp, TimestampRound, Unit};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::wire::{self, Connect};

/// Longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The present; and, for once, a defect in whoever asks for it next.
#[derive(Default)]
pub(crate) struct TestClock {
    broken: AtomicBool,
}

impl TestClock {
    /// The next call panics.
    pub(crate) fn break_once(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    #[expect(clippy::disallowed_methods, reason = "the test's composition root")]
    fn now(&self) -> Timestamp {
        assert!(
            !self.broken.swap(false, Ordering::SeqCst),
            "a defect, for a test"
        );
        let now = Timestamp::now();
        now.round(TimestampRound::new().smallest(Unit::Microsecond))
            .unwrap()
    }
}

struct RealEntropy;

impl Entropy for RealEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).unwrap();
    }
}

/// The engine and its database.
pub(crate) struct Service {
    pub(crate) engine: Arc<Engine>,
    pub(crate) store: Arc<SqliteStore>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) shutdown: CancellationToken,
    folders: Vec<TempDir>,
    database: PathBuf,
    work: Option<Work>,
    tasks: Vec<JoinHandle<()>>,
}

impl Service {
    pub(crate) async fn start(downlink: Arc<dyn Downlink>) -> Self {
        let mut service = Self::idle(downlink).await;
        service.run();
        service
    }

    /// Everything but the loops: nothing is committed before [`Service::run`].
    pub(crate) async fn idle(downlink: Arc<dyn Downlink>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("ota.db");
        let store = SqliteStore::open_file(&database).await.unwrap();
        let store = Arc::new(store);
        let clock = Arc::new(TestClock::default());
        let (engine, work) = Engine::new(Parts {
            store: store.clone(),
            objects: Arc::new(LocalFolder::open(folder.path().join("objects")).unwrap()),
            downlink,
            sinks: Vec::new(),
            device_service: None,
            clock: clock.clone(),
            entropy: Arc::new(RealEntropy),
            keyring: keyring(),
            grants: Grants::new([7; 32]),
            settings: Settings::default(),
        });
        let shutdown = CancellationToken::new();
        Self {
            engine,
            store,
            clock,
            shutdown,
            folders: vec![folder],
            database,
            work: Some(work),
            tasks: Vec::new(),
        }
    }

    /// Lets the loops run.
    pub(crate) fn run(&mut self) {
        let work = self.work.take().expect("it does not run yet");
        let (engine, stop) = (self.engine.clone(), self.shutdown.clone());
        self.spawn(async move { engine.run(work, stop).await.unwrap() });
    }

    pub(crate) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(tokio::spawn(task));
    }

    /// Registers a device and gives its secret.
    pub(crate) async fn register(&self, id: &str) -> String {
        let registration = registration(id);
        let mut registered = self
            .engine
            .register_devices(vec![registration], &Caller::service())
            .await
            .unwrap();
        match registered.remove(0).outcome {
            RegistrationOutcome::Created { secret } => secret,
            RegistrationOutcome::Exists => panic!("{id} exists"),
        }
    }

    pub(crate) async fn device(&self, id: &str) -> Device {
        self.store.device(&device_id(id)).await.unwrap().unwrap()
    }

    /// Waits until the database says so of a device.
    pub(crate) async fn until(&self, id: &str, holds: impl Fn(&Device) -> bool) {
        let wait = async {
            while !holds(&self.device(id).await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, wait)
            .await
            .expect("the database never said so");
    }

    /// How often something was counted.
    pub(crate) fn counted(&self, name: &str, label: &str) -> u64 {
        let counters = self.engine.metrics().snapshot();
        counters
            .iter()
            .find(|(n, l, _)| *n == name && *l == label)
            .map_or(0, |(_, _, n)| *n)
    }

    /// Waits until something was counted so often.
    pub(crate) async fn until_counted(&self, name: &str, label: &str, at_least: u64) {
        let wait = async {
            while self.counted(name, label) < at_least {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("{name} {label}: {}", self.counted(name, label)));
    }

    /// Keeps a folder for as long as the service.
    pub(crate) fn keep(&mut self, folder: TempDir) {
        self.folders.push(folder);
    }

    /// Rows of the heartbeat history.
    pub(crate) async fn heartbeats(&self) -> i64 {
        let url = format!("sqlite://{}", self.database.display());
        let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM device_heartbeats");
        count.fetch_one(&pool).await.unwrap()
    }

    /// Stops everything; a task that panicked fails the test.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            timeout(PATIENCE, task)
                .await
                .expect("a task does not end")
                .unwrap();
        }
    }
}

pub(crate) fn device_id(id: &str) -> DeviceId {
    id.parse().unwrap()
}

pub(crate) fn registration(id: &str) -> Registration {
    Registration {
        device_id: id.parse().unwrap(),
        device_type: None,
        device_model: "SF-100".into(),
        manufacturer: None,
        hw_revision: None,
        firmware_version: None,
        groups: Vec::new(),
        tags: std::collections::BTreeMap::default(),
        ring: None,
    }
}

fn keyring() -> Keyring {
    let [root, release, dispatch] = [1, 2, 3].map(|n| Keypair::from_seed([n; 32]));
    let expires = TestClock::default().now() + jiff::SignedDuration::from_hours(24);
    let statement = Root::single(
        1,
        expires,
        root.public(),
        release.public(),
        dispatch.public(),
    );
    let envelope = objects::seal(&statement, &root).unwrap();
    Keyring::new(vec![envelope], Some(release), dispatch).unwrap()
}

/// A service with the gateway before it.
pub(crate) struct WithGateway {
    pub(crate) service: Service,
    pub(crate) sessions: Sessions,
    pub(crate) addr: SocketAddr,
    /// Of the listener with TLS, if there is one.
    pub(crate) tls: Option<SocketAddr>,
}

impl WithGateway {
    pub(crate) async fn start(limits: Limits) -> Self {
        Self::secured(limits, None).await
    }

    /// With a listener for TLS beside the one without.
    pub(crate) async fn secured(limits: Limits, tls: Option<TlsConfigs>) -> Self {
        let mut gateway = Self::listening(limits, tls).await;
        gateway.service.run();
        gateway
    }

    /// With an engine that commits nothing yet.
    pub(crate) async fn idle(limits: Limits) -> Self {
        Self::listening(limits, None).await
    }

    async fn listening(limits: Limits, tls: Option<TlsConfigs>) -> Self {
        let sessions = Sessions::new(Prefix::default(), limits);
        let mut service = Service::idle(Arc::new(sessions.clone())).await;
        let loopback = "127.0.0.1:0".parse().unwrap();
        let mut gateway = Gateway::new(sessions.clone(), limits);
        let addr = gateway.listen(loopback, None).unwrap();
        let tls = tls.map(|tls| gateway.listen(loopback, Some(tls)).unwrap());
        service.spawn(gateway.serve(service.engine.clone(), service.shutdown.clone()));
        Self {
            service,
            sessions,
            addr,
            tls,
        }
    }

    /// Sends a message to a device, as the engine does.
    pub(crate) async fn send(&self, id: &str, to: Down, payload: &'static [u8]) -> Delivery {
        self.sessions
            .send(&device_id(id), &to, Bytes::from_static(payload))
            .await
    }

    /// A client that has sent these bytes.
    pub(crate) async fn client(&self, hello: &[u8]) -> Client {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Client {
            stream,
            bytes: Vec::new(),
        };
        client.send(hello).await;
        client
    }

    /// A device that is connected.
    pub(crate) async fn device(&self, version: Version, id: &str, secret: &str) -> Client {
        self.admitted(&Connect::new(version, id, secret)).await
    }

    /// A device that is connected after a CONNECT of its own.
    pub(crate) async fn admitted(&self, connect: &Connect<'_>) -> Client {
        let mut client = self.client(&connect.bytes()).await;
        let connack = client.next().await.expect("a CONNACK");
        assert_eq!((connack[0], connack[3]), (0x20, 0), "{connack:?}");
        client
    }

    /// A device that is connected and subscribed to all that is its own.
    pub(crate) async fn subscribed(&self, version: Version, id: &str, secret: &str) -> Client {
        let mut client = self.device(version, id, secret).await;
        client.subscribe(version, id).await;
        client
    }
}

/// An MQTT client that says what it is told to say.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    bytes: Vec<u8>,
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // The gateway may have closed already; what it said before is what matters.
        let _ = self.stream.write_all(bytes).await;
    }

    /// Subscribes to all that is the device's own.
    pub(crate) async fn subscribe(&mut self, version: Version, id: &str) {
        let filter = format!("ota/v1/{id}/down/#");
        self.send(&wire::subscribe(version, 1, &[(&filter, 1)]))
            .await;
        assert_eq!(self.next().await, Some(wire::suback(version, 1, &[1])));
    }

    /// The next packet; `None` when the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        timeout(PATIENCE, self.read()).await.expect("nothing came")
    }

    async fn read(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = wire::length(&self.bytes) {
                return Some(self.bytes.drain(..length).collect());
            }
            match self.stream.read_buf(&mut self.bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The connection ends here, with no further packet.
    pub(crate) async fn ends(&mut self) {
        assert_eq!(self.next().await, None);
    }
}
