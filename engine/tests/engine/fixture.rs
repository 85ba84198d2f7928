//! An engine with real parts; only the clock, the randomness and the devices' end of the wire are the test's.

mod chunks;
mod fleet;
mod images;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_domain::audit::{Actor, Authentication};
use device_ota_domain::campaign::Counts;
use device_ota_domain::update::UpdateState;
use device_ota_domain::{CampaignId, DeviceId, FirmwareId, Roles, UpdateId};
use device_ota_engine::inbound::{Ack, AckSink, DeviceRef, Inbound, Uplink};
use device_ota_engine::keyring::Keyring;
use device_ota_engine::ports::store::UpdateFilter;
use device_ota_engine::ports::{Clock, Delivery, DeviceService, Downlink, Entropy, Objects, Store};
use device_ota_engine::{
    Caller, Engine, Grants, Member, Parts, RegistrationOutcome, Settings, Uploaded, Work,
};
use device_ota_objects::LocalFolder;
use device_ota_protocol::keys::Keypair;
use device_ota_protocol::messages::{Offer, parse_report};
use device_ota_protocol::objects::{Assignment, Command, Root, open, seal};
use device_ota_protocol::topics::{Down, Up};
use device_ota_store::testing::SqliteDatabase;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use chunks::Chunk;

/// Who asks for everything here.
pub(crate) fn tester() -> Caller {
    Caller::new(actor("tester", Roles::ADMIN))
}

/// Somebody with a token.
pub(crate) fn actor(subject: &str, roles: Roles) -> Actor {
    Actor {
        subject: subject.into(),
        roles,
        authentication: Authentication::Token,
        request_id: "r".into(),
        peer: None,
    }
}

/// Time as the test says.
pub(crate) struct TestClock(pub(crate) AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_microsecond(self.0.load(Ordering::SeqCst)).unwrap()
    }
}

/// Bytes that differ at each call and are the same in each run.
pub(crate) struct Counting(pub(crate) AtomicU64);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes.chunks_mut(8) {
            let number = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
            byte.copy_from_slice(&number.to_le_bytes()[..byte.len()]);
        }
    }
}

/// What the devices got.
struct Wire {
    sent: mpsc::UnboundedSender<(DeviceId, Down, Bytes)>,
    disconnected: mpsc::UnboundedSender<DeviceId>,
    sessions: Sessions,
    deliveries: Deliveries,
}

/// What becomes of messages to some devices; all others have theirs.
type Deliveries = Arc<Mutex<HashMap<DeviceId, Delivery>>>;

/// The sessions that a gateway would have.
pub(crate) type Sessions = Arc<Mutex<Vec<(DeviceId, i64)>>>;

#[async_trait]
impl Downlink for Wire {
    async fn send(&self, device: &DeviceId, to: &Down, payload: Bytes) -> Delivery {
        let deliveries = self.deliveries.lock().unwrap();
        if let Some(delivery @ (Delivery::Busy | Delivery::NotConnected)) = deliveries.get(device) {
            return *delivery;
        }
        match self.sent.send((device.clone(), *to, payload)) {
            Ok(()) => Delivery::Queued,
            Err(_) => Delivery::NotConnected,
        }
    }

    async fn disconnect(&self, device: &DeviceId) {
        self.disconnected.send(device.clone()).ok();
    }

    async fn take_over(&self, device: &DeviceId, session: i64) {
        let mut sessions = self.sessions.lock().unwrap();
        let before = sessions.len();
        sessions.retain(|(id, number)| id != device || *number > session);
        if sessions.len() < before {
            self.disconnected.send(device.clone()).ok();
        }
    }

    fn sessions(&self) -> Vec<(DeviceId, i64)> {
        self.sessions.lock().unwrap().clone()
    }
}

/// Resolves when the message is committed; fails when it never is.
pub(crate) struct Acked(oneshot::Receiver<()>);

impl Acked {
    pub(crate) async fn wait(self) {
        self.0.await.unwrap();
    }

    pub(crate) fn is_there(&mut self) -> bool {
        self.0.try_recv().is_ok()
    }
}

struct Once(Mutex<Option<oneshot::Sender<()>>>);

impl AckSink for Once {
    fn committed(&self, _token: u64) {
        let sender = self.0.lock().unwrap().take();
        sender.unwrap().send(()).ok();
    }
}

pub(crate) struct Fixture {
    pub(crate) engine: Arc<Engine>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) database: Arc<SqliteDatabase>,
    pub(crate) root: Root,
    pub(crate) folder: tempfile::TempDir,
    objects: Arc<dyn Objects>,
    clock: Arc<TestClock>,
    wire: mpsc::UnboundedReceiver<(DeviceId, Down, Bytes)>,
    /// Whose sessions were ended.
    pub(crate) disconnected: mpsc::UnboundedReceiver<DeviceId>,
    pub(crate) sessions: Sessions,
    deliveries: Deliveries,
    max_in_flight: Option<u64>,
    device_service: Option<Arc<dyn DeviceService>>,
    stop: CancellationToken,
    running: Option<JoinHandle<Result<(), &'static str>>>,
}

pub(crate) fn keys() -> [Keypair; 3] {
    [[1; 32], [2; 32], [3; 32]].map(Keypair::from_seed)
}

pub(crate) fn root() -> Root {
    let [root_key, release, dispatch] = keys();
    let expires = "2046-01-01T00:00:00Z".parse().unwrap();
    Root::single(
        1,
        expires,
        root_key.public(),
        release.public(),
        dispatch.public(),
    )
}

/// An engine that does not run yet, and what it says.
struct Made {
    engine: Arc<Engine>,
    work: Work,
    wire: mpsc::UnboundedReceiver<(DeviceId, Down, Bytes)>,
    disconnected: mpsc::UnboundedReceiver<DeviceId>,
    sessions: Sessions,
    deliveries: Deliveries,
}

impl Made {
    fn of(
        store: &Arc<dyn Store>,
        objects: Arc<dyn Objects>,
        clock: &Arc<TestClock>,
        max_in_flight: Option<u64>,
        device_service: Option<Arc<dyn DeviceService>>,
    ) -> Self {
        let [root_key, release, dispatch] = keys();
        let chain = vec![seal(&root(), &root_key).unwrap()];
        let (sent, wire) = mpsc::unbounded_channel();
        let (sender, disconnected) = mpsc::unbounded_channel();
        let sessions = Sessions::default();
        let deliveries = Deliveries::default();
        let (engine, work) = Engine::new(Parts {
            store: store.clone(),
            objects,
            downlink: Arc::new(Wire {
                sent,
                disconnected: sender,
                sessions: sessions.clone(),
                deliveries: deliveries.clone(),
            }),
            sinks: Vec::new(),
            device_service,
            clock: clock.clone(),
            entropy: Arc::new(Counting(AtomicU64::new(7))),
            keyring: Keyring::new(chain, Some(release), dispatch).unwrap(),
            grants: Grants::new([9; 32]),
            settings: Settings {
                public_url: "http://ota.test".into(),
                lease: LEASE,
                tick: NEVER,
                max_in_flight,
                ..Settings::default()
            },
        });
        Self {
            engine,
            work,
            wire,
            disconnected,
            sessions,
            deliveries,
        }
    }
}

fn local(folder: &Path) -> Arc<dyn Objects> {
    Arc::new(LocalFolder::open(folder).unwrap())
}

/// A service on a database of its own.
pub(crate) fn alone() -> Member {
    Member {
        name: "one".to_owned(),
        alone: true,
        holds_sessions: true,
        shares_images: false,
        shares_reports: true,
    }
}

/// An hour: nothing but the test's own calls and wakes makes a pass.
pub(crate) const NEVER: std::time::Duration = std::time::Duration::from_hours(1);
pub(crate) const LEASE: SignedDuration = SignedDuration::from_mins(5);

impl Fixture {
    pub(crate) async fn new() -> Self {
        let (mut fixture, work) = Self::stopped().await;
        fixture.start(work);
        fixture
    }

    /// Runs an engine that was [`stopped`](Self::stopped).
    pub(crate) fn start(&mut self, work: Work) {
        let (engine, stop) = (self.engine.clone(), self.stop.clone());
        self.running = Some(tokio::spawn(engine.run(work, stop)));
    }

    pub(crate) async fn stopped() -> (Self, Work) {
        Self::over(local, None, None).await
    }

    /// Of a service with that many slots in all.
    pub(crate) async fn limited(max_in_flight: u64) -> Self {
        let (mut fixture, work) = Self::over(local, Some(max_in_flight), None).await;
        fixture.start(work);
        fixture
    }

    /// With an object store that the test holds up.
    pub(crate) async fn with_objects(objects: impl FnOnce(&Path) -> Arc<dyn Objects>) -> Self {
        let (mut fixture, work) = Self::over(objects, None, None).await;
        fixture.start(work);
        fixture
    }

    /// With a Device Service of the test's.
    pub(crate) async fn with_device_service(device_service: Arc<dyn DeviceService>) -> Self {
        let (mut fixture, work) = Self::over(local, None, Some(device_service)).await;
        fixture.start(work);
        fixture
    }

    async fn over(
        objects: impl FnOnce(&Path) -> Arc<dyn Objects>,
        max_in_flight: Option<u64>,
        device_service: Option<Arc<dyn DeviceService>>,
    ) -> (Self, Work) {
        let database = Arc::new(SqliteDatabase::new());
        let store: Arc<dyn Store> = Arc::new(database.open().await);
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock(AtomicI64::new(1_800_000_000_000_000)));
        let objects = objects(folder.path());
        let made = Made::of(
            &store,
            objects.clone(),
            &clock,
            max_in_flight,
            device_service.clone(),
        );
        let fixture = Self {
            engine: made.engine,
            store,
            database,
            root: root(),
            folder,
            objects,
            clock,
            wire: made.wire,
            disconnected: made.disconnected,
            sessions: made.sessions,
            deliveries: made.deliveries,
            max_in_flight,
            device_service,
            stop: CancellationToken::new(),
            running: None,
        };
        (fixture, made.work)
    }

    /// One more engine on this database.
    fn made(&self) -> Made {
        Made::of(
            &self.store,
            self.objects.clone(),
            &self.clock,
            self.max_in_flight,
            self.device_service.clone(),
        )
    }

    /// Another process on the same database, after the one before has ended.
    pub(crate) async fn restart(&mut self) {
        self.stop.cancel();
        if let Some(running) = self.running.take() {
            running.await.unwrap().unwrap();
        }
        let made = self.made();
        self.engine = made.engine;
        self.wire = made.wire;
        self.disconnected = made.disconnected;
        self.sessions = made.sessions;
        self.deliveries = made.deliveries;
        self.stop = CancellationToken::new();
        self.engine.take_up().await.unwrap();
        self.start(made.work);
    }

    /// Another process beside this one, on the same database.
    pub(crate) fn beside(&self) -> Self {
        let made = self.made();
        let mut beside = Self {
            engine: made.engine,
            store: self.store.clone(),
            database: self.database.clone(),
            root: root(),
            folder: tempfile::tempdir().unwrap(),
            objects: self.objects.clone(),
            clock: self.clock.clone(),
            wire: made.wire,
            disconnected: made.disconnected,
            sessions: made.sessions,
            deliveries: made.deliveries,
            max_in_flight: self.max_in_flight,
            device_service: self.device_service.clone(),
            stop: CancellationToken::new(),
            running: None,
        };
        beside.start(made.work);
        beside
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn advance(&self, by: SignedDuration) {
        let micros = i64::try_from(by.as_micros()).unwrap();
        self.clock.0.fetch_add(micros, Ordering::SeqCst);
    }

    /// Time passes, and the service looks at it now and then.
    pub(crate) async fn pass(&self, by: SignedDuration) {
        let mut left = by;
        self.look().await;
        while left > SignedDuration::ZERO {
            let step = left.min(LEASE / 2);
            self.advance(step);
            self.look().await;
            left -= step;
        }
    }

    async fn look(&self) {
        self.engine.keep_time().await.unwrap();
        self.engine.follow_the_fleet().await.unwrap();
    }

    /// Registers a device of model M that runs 1.0.0.
    pub(crate) async fn device(&self, id: &str) -> DeviceRef {
        let json = format!(
            r#"{{"device_id":"{id}","device_model":"M","manufacturer":"A","firmware_version":"1.0.0"}}"#
        );
        let made = self
            .engine
            .register_devices(vec![serde_json::from_str(&json).unwrap()], &tester())
            .await
            .unwrap();
        let RegistrationOutcome::Created { secret } = &made[0].outcome else {
            panic!("{id} exists")
        };
        self.engine
            .authenticate(&id.parse().unwrap(), secret.as_bytes())
            .await
            .unwrap()
            .unwrap()
    }

    /// Uploads `version` and starts a campaign for it, an immediate one unless `more`, further fields of the draft, says
    /// otherwise.
    pub(crate) async fn campaign(&self, version: &str, more: &str) -> CampaignId {
        let (Uploaded::Created(firmware) | Uploaded::Existing(firmware)) =
            self.upload(version, version.as_bytes()).await;
        self.campaign_of(&firmware.id, more).await
    }

    /// The same of an image that is there.
    pub(crate) async fn campaign_of(&self, firmware: &FirmwareId, more: &str) -> CampaignId {
        let strategy = if more.contains("deployment_strategy") {
            ""
        } else {
            r#","deployment_strategy":"immediate""#
        };
        let draft = format!(r#"{{"name":"c","firmware_id":"{firmware}"{strategy}{more}}}"#);
        let view = self
            .engine
            .create_campaign(serde_json::from_str(&draft).unwrap(), &tester())
            .await
            .unwrap();
        self.engine
            .start_campaign(&view.campaign.id, &tester())
            .await
            .unwrap();
        view.campaign.id
    }

    /// Submits a message as QoS 1.
    pub(crate) async fn submit(&self, device: &DeviceRef, uplink: Uplink) -> Acked {
        let (sender, receiver) = oneshot::channel();
        let ack = Ack::new(Arc::new(Once(Mutex::new(Some(sender)))), 1);
        let message = Inbound {
            device: device.clone(),
            at: self.clock.now(),
            uplink,
            ack: Some(ack),
        };
        self.engine.uplinks().submit(message).await.unwrap();
        Acked(receiver)
    }

    /// Publishes, and waits for the acknowledgement.
    pub(crate) async fn publish(&self, device: &DeviceRef, up: Up, payload: &str) {
        self.submit(device, report(up, payload)).await.wait().await;
    }

    pub(crate) async fn online(&self, device: &DeviceRef) {
        self.submit(
            device,
            Uplink::Online {
                session: self.clock.now().as_microsecond(),
            },
        )
        .await
        .wait()
        .await;
        self.publish(
            device,
            Up::Check,
            r#"{"version":"1.0.0","nonce":"n1","reason":"boot"}"#,
        )
        .await;
    }

    /// A progress report of the given phase; `more` are further fields.
    pub(crate) async fn progress(
        &self,
        device: &DeviceRef,
        offer: &Assignment,
        seq: u64,
        phase: &str,
        more: &str,
    ) {
        let (id, attempt) = (&offer.update_id, offer.attempt);
        let payload = format!(
            r#"{{"update_id":"{id}","attempt":{attempt},"seq":{seq},"phase":"{phase}"{more}}}"#
        );
        self.publish(device, Up::Progress, &payload).await;
    }

    async fn next(&mut self, wanted: Down) -> (DeviceId, Bytes) {
        let search = async {
            loop {
                let (device, to, payload) = self.wire.recv().await.unwrap();
                if to == wanted {
                    return (device, payload);
                }
            }
        };
        let deadline = std::time::Duration::from_secs(30);
        tokio::time::timeout(deadline, search)
            .await
            .unwrap_or_else(|_| panic!("no {wanted:?} came"))
    }

    /// The next offer, verified as a device would.
    pub(crate) async fn offer(&mut self) -> Assignment {
        self.whole_offer().await.1
    }

    /// The same, with all that comes in it.
    pub(crate) async fn whole_offer(&mut self) -> (Offer, Assignment) {
        let (device, payload) = self.next(Down::Offer).await;
        self.opened(device.as_str(), &payload)
    }

    fn opened(&self, device: &str, payload: &[u8]) -> (Offer, Assignment) {
        let offer = Offer::parse(payload).unwrap();
        let (assignment, _) = open::<Assignment>(&offer.assignment, &self.root).unwrap();
        assert_eq!(assignment.device_id.as_str(), device);
        (offer, assignment)
    }

    /// An offer that has been sent, if there is one.
    pub(crate) fn sent_offer(&mut self) -> Option<Assignment> {
        while let Ok((device, to, payload)) = self.wire.try_recv() {
            if matches!(to, Down::Offer) {
                return Some(self.opened(device.as_str(), &payload).1);
            }
        }
        None
    }

    /// The answer to the check of this nonce.
    pub(crate) async fn reply_to(&mut self, nonce: &str) -> serde_json::Value {
        loop {
            let (_, payload) = self.next(Down::Reply).await;
            let reply: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            if reply["nonce"] == nonce {
                return reply;
            }
        }
    }

    pub(crate) async fn command(&mut self) -> Command {
        let (_, payload) = self.next(Down::Command).await;
        let envelope = serde_json::from_slice(&payload).unwrap();
        open::<Command>(&envelope, &self.root).unwrap().0
    }

    pub(crate) fn nothing_sent(&mut self) -> bool {
        loop {
            match self.wire.try_recv() {
                Ok((_, Down::Offer | Down::Command, _)) => return false,
                Ok(_) => {}
                Err(_) => return true,
            }
        }
    }

    pub(crate) async fn status(&self, update: &str) -> &'static str {
        self.engine
            .update(&update.parse::<UpdateId>().unwrap())
            .await
            .unwrap()
            .update
            .status()
    }

    /// The error code of an update that must have failed.
    pub(crate) async fn failure(&self, update: &str) -> String {
        let id = update.parse::<UpdateId>().unwrap();
        match self.engine.update(&id).await.unwrap().update.state {
            UpdateState::Failed { failure, .. } => failure.code,
            state => panic!("{update} has not failed: {state:?}"),
        }
    }

    /// The campaign's counters, which must be those of its rows; read anew while they move.
    pub(crate) async fn counts(&self, campaign: &CampaignId) -> Counts {
        loop {
            let kept = self.store.counts(campaign).await.unwrap();
            let counted = self.store.counts_by_rows(campaign).await.unwrap();
            if kept == self.store.counts(campaign).await.unwrap() {
                assert_eq!(kept, counted);
                return kept;
            }
        }
    }

    pub(crate) async fn updates(&self, campaign: &CampaignId) -> Vec<device_ota_domain::Update> {
        let filter = UpdateFilter {
            campaign: Some(campaign.clone()),
            ..UpdateFilter::default()
        };
        self.engine
            .updates(&filter, device_ota_domain::page::Page::default())
            .await
            .unwrap()
            .into_iter()
            .map(|view| view.update)
            .collect()
    }

    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        self.running.take().unwrap().await.unwrap().unwrap();
    }
}

pub(crate) fn report(up: Up, payload: &str) -> Uplink {
    let parsed = parse_report(up, payload.as_bytes()).unwrap();
    Uplink::report(parsed, payload.as_bytes())
}

/// Waits until so many files are below a folder: temporaries are removed in the background.
pub(crate) async fn left(folder: &Path, count: usize) {
    let wait = async {
        while files(folder) != count {
            tokio::task::yield_now().await;
        }
    };
    let deadline = std::time::Duration::from_secs(30);
    let in_time = tokio::time::timeout(deadline, wait).await;
    assert!(
        in_time.is_ok(),
        "{} files instead of {count}",
        files(folder)
    );
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("in-use.lock") && !path.ends_with("unrecorded"))
        .map(|path| if path.is_dir() { files(&path) } else { 1 })
        .sum()
}
