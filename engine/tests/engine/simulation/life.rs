//! One life of the service: an engine on the database, from its start to its death.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use device_ota_domain::DeviceId;
use device_ota_engine::inbound::{Ack, DeviceRef, Inbound, Uplink};
use device_ota_engine::keyring::Keyring;
use device_ota_engine::ports::{Clock as _, EventSink, Store};
use device_ota_engine::{Engine, Grants, Parts, Settings, Work};
use device_ota_objects::LocalFolder;
use device_ota_protocol::objects::seal;
use device_ota_protocol::topics::{Down, Up};
use jiff::SignedDuration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::base::{Base, Opened};
use super::fate::{Process, Told, Wire};
use crate::fixture::{Counting, NEVER, TestClock, alone, keys, report, root};

/// A device that is silent for longer loses its slot.
pub(super) const LEASE: SignedDuration = SignedDuration::from_mins(5);
/// A rollback ends that long after it was made.
pub(super) const ROLLBACK_TIMEOUT: SignedDuration = SignedDuration::from_hours(3);
/// What no device of a fleet is called.
pub(super) const PROBE: &str = "probe";

pub(super) type Message = (DeviceId, Down, Bytes);

pub(super) struct Life {
    pub(super) engine: Arc<Engine>,
    pub(super) store: Arc<dyn Store>,
    pub(super) process: Process,
    database: Opened,
    clock: Arc<TestClock>,
    wire: mpsc::UnboundedReceiver<Message>,
    /// What came down and is not looked at yet.
    down: Vec<Message>,
    probe: Option<DeviceRef>,
    probes: u64,
    stop: CancellationToken,
    ingest: Option<JoinHandle<()>>,
}

/// Where a service lives.
pub(super) struct Place<'p> {
    pub(super) database: &'p Base,
    pub(super) folder: &'p Path,
    pub(super) clock: &'p Arc<TestClock>,
}

impl Life {
    /// An engine that does nothing yet. `number` keeps what it makes up apart from other lives.
    pub(super) async fn new(
        place: &Place<'_>,
        process: Process,
        sinks: Vec<Arc<dyn EventSink>>,
        number: u64,
    ) -> (Self, Work) {
        let database = place.database.open(&process).await;
        let store = database.store();
        let [root_key, release, dispatch] = keys();
        let (sent, wire) = mpsc::unbounded_channel();
        let (engine, work) = Engine::new(Parts {
            store: store.clone(),
            objects: Arc::new(LocalFolder::open(place.folder).unwrap()),
            downlink: Arc::new(Wire {
                process: process.clone(),
                sent,
            }),
            sinks,
            device_service: None,
            clock: place.clock.clone(),
            entropy: Arc::new(Counting(AtomicU64::new(number << 48))),
            keyring: Keyring::new(
                vec![seal(&root(), &root_key).unwrap()],
                Some(release),
                dispatch,
            )
            .unwrap(),
            grants: Grants::new([9; 32]),
            settings: Settings {
                public_url: "http://ota.test".into(),
                lease: LEASE,
                rollback_timeout: ROLLBACK_TIMEOUT,
                tick: NEVER,
                ..Settings::default()
            },
        });
        let life = Self {
            engine,
            store,
            process,
            database,
            clock: place.clock.clone(),
            wire,
            down: Vec::new(),
            probe: None,
            probes: 0,
            stop: CancellationToken::new(),
            ingest: None,
        };
        (life, work)
    }

    /// Takes reports from here on; whoever is connected has to connect anew. May die of it.
    pub(super) async fn begin(&mut self, work: Work) {
        let (engine, stop) = (self.engine.clone(), self.stop.clone());
        self.ingest = Some(tokio::spawn(engine.take_reports(work, stop)));
        self.ok(self.engine.take_up().await);
        self.ok(self.engine.join(alone()).await);
        self.probe = self.engine.resolve(&PROBE.parse().unwrap()).await.unwrap();
    }

    /// What must not fail while the process lives.
    fn ok<T>(&self, result: device_ota_engine::Result<T>) {
        if let Err(error) = result {
            assert!(self.process.is_dead(), "{error:?}");
        }
    }

    /// Hands messages of one device over, in order, and says of each whether it was acknowledged. All are, but for the
    /// death of the process.
    pub(super) async fn submit(&self, device: &DeviceRef, uplinks: Vec<Uplink>) -> Vec<bool> {
        let mut acks = Vec::new();
        for uplink in uplinks {
            let (told, ack) = oneshot::channel();
            let told = Told {
                process: self.process.clone(),
                device: Mutex::new(Some(told)),
            };
            let message = Inbound {
                device: device.clone(),
                at: self.clock.now(),
                uplink,
                ack: Some(Ack::new(Arc::new(told), 1)),
            };
            if self.engine.uplinks().submit(message).await.is_ok() {
                acks.push(ack);
            }
        }
        let mut acknowledged = Vec::new();
        for mut ack in acks {
            let told = tokio::select! {
                biased;
                told = &mut ack => told.is_ok(),
                () = self.process.died() => ack.try_recv().is_ok(),
            };
            assert!(told || self.process.is_dead(), "a report was lost");
            acknowledged.push(told);
        }
        acknowledged
    }

    /// Returns when all that follows from what was said so far has been sent.
    pub(super) async fn answers_are_sent(&mut self, checked: Option<&DeviceId>) {
        if let Some(device) = checked {
            self.reply_to(device).await;
        }
        let probe = self.probe.clone().expect("it has begun");
        // The first may be answered together with what went before; the second is answered after that.
        for _ in 0..2 {
            self.probes += 1;
            let check = format!(
                r#"{{"version":"1.0.0","nonce":"p{}","reason":"poll"}}"#,
                self.probes
            );
            self.submit(&probe, vec![report(Up::Check, &check)]).await;
            self.reply_to(&probe.id).await;
        }
    }

    async fn reply_to(&mut self, device: &DeviceId) {
        loop {
            let message = tokio::select! {
                biased;
                message = self.wire.recv() => message.expect("the engine holds the other end"),
                () = self.process.died() => return,
            };
            let is_it = message.0 == *device && message.1 == Down::Reply;
            self.down.push(message);
            if is_it {
                return;
            }
        }
    }

    /// Commits so far, where they are counted.
    pub(super) fn commits(&self) -> Option<u64> {
        self.database.is_guarded().then(|| self.process.commits())
    }

    /// What has come down since the last look.
    pub(super) fn came_down(&mut self) -> Vec<Message> {
        while let Ok(message) = self.wire.try_recv() {
            self.down.push(message);
        }
        std::mem::take(&mut self.down)
    }

    /// What falls due with time.
    pub(super) async fn keep_time(&self) {
        self.ok(self.engine.keep_time().await);
        self.ok(self.engine.follow_the_fleet().await);
    }

    /// What the planner wants.
    pub(super) async fn dispatch(&self) {
        self.ok(self.engine.dispatch_all().await);
    }

    /// Ends it, and with it all that it still does.
    pub(super) async fn end(mut self) {
        self.stop.cancel();
        if let Some(ingest) = self.ingest.take() {
            ingest.await.unwrap();
        }
        drop(self.engine);
        self.database.close().await;
    }

    /// Runs it as it runs in earnest, until it is told to stop.
    pub(super) fn run(&self, work: Work) -> JoinHandle<Result<(), &'static str>> {
        tokio::spawn(self.engine.clone().run(work, self.stop.clone()))
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }
}
