//! One life of the service: an engine on the database, from its start to its death.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use device_ota_domain::DeviceId;
use device_ota_engine::inbound::{Ack, DeviceRef, Inbound, Uplink};
use device_ota_engine::keyring::Keyring;
use device_ota_engine::ports::{Clock as _, EventSink, Objects, Store};
use device_ota_engine::{Engine, Grants, Member, Parts, Result, Settings, Work};
use device_ota_protocol::objects::seal;
use device_ota_protocol::topics::{Down, Up};
use jiff::SignedDuration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::base::Base;
use super::fate::{Process, Told};
use super::gateway::{Gateway, Message};
use crate::fixture::{Counting, NEVER, TestClock, keys, report, root};

/// A device that is silent for longer loses its slot.
pub(super) const LEASE: SignedDuration = SignedDuration::from_mins(5);
/// A rollback ends that long after it was made.
pub(super) const ROLLBACK_TIMEOUT: SignedDuration = SignedDuration::from_hours(3);
/// What no device of a fleet is called.
pub(super) const PROBE: &str = "probe";

pub(super) struct Life {
    pub(super) engine: Arc<Engine>,
    pub(super) store: Arc<dyn Store>,
    pub(super) process: Process,
    pub(super) gateway: Gateway,
    /// Which life this is, of all that there were.
    pub(super) number: u64,
    clock: Arc<TestClock>,
    wire: mpsc::UnboundedReceiver<Message>,
    /// What came down and is not looked at yet.
    down: Vec<Message>,
    probe: Option<DeviceRef>,
    probes: u64,
    stop: CancellationToken,
    ingest: Option<JoinHandle<()>>,
    /// In the middle of which it came to stand still.
    unfinished: Vec<JoinHandle<Result<()>>>,
}

/// Where a service lives.
pub(super) struct Place<'p> {
    pub(super) database: &'p Base,
    pub(super) objects: &'p Arc<dyn Objects>,
    pub(super) clock: &'p Arc<TestClock>,
    /// Messages down so far, of all processes.
    pub(super) sent: &'p Arc<AtomicU64>,
}

/// What a device has heard of its message.
pub(super) enum Answer {
    /// It is safe.
    Safe,
    /// Nothing, and never will.
    Never,
    /// Nothing yet: the process stands still.
    Open(oneshot::Receiver<()>),
}

impl Answer {
    pub(super) const fn is_safe(&self) -> bool {
        matches!(self, Self::Safe)
    }
}

impl Life {
    /// An engine that does nothing yet. `number` keeps what it makes up apart from other lives.
    pub(super) async fn new(
        place: &Place<'_>,
        process: Process,
        sinks: Vec<Arc<dyn EventSink>>,
        number: u64,
    ) -> (Self, Work) {
        let store = place.database.open(&process).await;
        let [root_key, release, dispatch] = keys();
        let (gateway, wire) = Gateway::new(process.clone(), place.sent.clone());
        let (engine, work) = Engine::new(Parts {
            store: store.clone(),
            objects: place.objects.clone(),
            downlink: Arc::new(gateway.clone()),
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
            gateway,
            number,
            clock: place.clock.clone(),
            wire,
            down: Vec::new(),
            probe: None,
            probes: 0,
            stop: CancellationToken::new(),
            ingest: None,
            unfinished: Vec::new(),
        };
        (life, work)
    }

    /// Takes reports from here on; whoever is connected has to connect anew. May die of it.
    pub(super) async fn begin(&mut self, work: Work, member: Member) {
        let (engine, stop) = (self.engine.clone(), self.stop.clone());
        self.ingest = Some(tokio::spawn(engine.take_reports(work, stop)));
        self.ok(self.engine.take_up().await);
        self.ok(self.engine.join(member).await);
        self.ok(self.engine.read_credentials_ahead().await);
        self.probe = self.engine.resolve(&PROBE.parse().unwrap()).await.unwrap();
    }

    /// What must not fail while the process lives.
    fn ok<T>(&self, result: Result<T>) {
        if let Err(error) = result {
            assert!(self.process.is_dead(), "{error:?}");
        }
    }

    /// Whether it does anything at the moment.
    pub(super) fn is_awake(&self) -> bool {
        !self.process.is_dead() && !self.process.stands_still()
    }

    /// Lets the engine do something; returns when it is done, or when the process has come to stand still in it.
    pub(super) async fn act<F>(&mut self, what: impl FnOnce(Arc<Engine>) -> F)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.process.may_stand(true);
        let mut act = tokio::spawn(what(self.engine.clone()));
        let done = tokio::select! {
            biased;
            done = &mut act => Some(done.unwrap()),
            () = self.process.stands() => None,
        };
        self.process.may_stand(false);
        match done {
            Some(done) => self.ok(done),
            None => self.unfinished.push(act),
        }
    }

    /// Goes on after it stood still, with what it was at. Whether it was at anything.
    pub(super) async fn go_on(&mut self) -> bool {
        let was_at_it = self.process.go_on();
        for act in std::mem::take(&mut self.unfinished) {
            self.ok(act.await.unwrap());
        }
        was_at_it
    }

    /// Puts messages of one device into the queue, in order.
    pub(super) async fn hand_over(
        &self,
        device: &DeviceRef,
        uplinks: Vec<Uplink>,
    ) -> Vec<oneshot::Receiver<()>> {
        let mut acks = Vec::new();
        for uplink in uplinks {
            let (told, ack) = oneshot::channel();
            let told = Told {
                process: self.process.clone(),
                device: Mutex::new(Some(told)),
                connection: device.id.as_str() != PROBE,
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
        acks
    }

    /// What is said to a message, while the process does anything.
    pub(super) async fn answer(&self, mut ack: oneshot::Receiver<()>) -> Answer {
        let told = tokio::select! {
            biased;
            told = &mut ack => told.is_ok(),
            () = self.process.stops() => match ack.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) if self.process.stands_still() => {
                    return Answer::Open(ack);
                }
                told => told.is_ok(),
            },
        };
        if told { Answer::Safe } else { Answer::Never }
    }

    /// Hands messages of one device over, in order, and says what is said to each. All are acknowledged, unless the process stops.
    pub(super) async fn submit(&self, device: &DeviceRef, uplinks: Vec<Uplink>) -> Vec<Answer> {
        self.process.may_stand(true);
        let mut answers = Vec::new();
        for ack in self.hand_over(device, uplinks).await {
            let answer = self.answer(ack).await;
            let lost = matches!(answer, Answer::Never) && !self.process.is_dead();
            assert!(!lost, "a report was lost");
            answers.push(answer);
        }
        self.process.may_stand(false);
        answers
    }

    /// Returns when all that follows from what was said so far has been sent, or the process has stopped.
    pub(super) async fn answers_are_sent(&mut self, checked: Option<&DeviceId>) {
        self.process.may_stand(true);
        if let Some(device) = checked {
            self.reply_to(device).await;
        }
        let probe = self.probe.clone().expect("it has begun");
        // The first may be answered together with what went before; the second is answered after that.
        for _ in 0..2 {
            if !self.is_awake() {
                break;
            }
            self.probes += 1;
            let check = format!(
                r#"{{"version":"1.0.0","nonce":"p{}","reason":"poll"}}"#,
                self.probes
            );
            self.submit(&probe, vec![report(Up::Check, &check)]).await;
            self.process.may_stand(true);
            self.reply_to(&probe.id).await;
        }
        self.process.may_stand(false);
    }

    async fn reply_to(&mut self, device: &DeviceId) {
        loop {
            let message = tokio::select! {
                biased;
                message = self.wire.recv() => message.expect("the engine holds the other end"),
                () = self.process.stops() => return,
            };
            let is_it = message.to == *device && message.kind == Down::Reply;
            self.down.push(message);
            if is_it {
                return;
            }
        }
    }

    /// What has come down since the last look.
    pub(super) fn came_down(&mut self) -> Vec<Message> {
        while let Ok(message) = self.wire.try_recv() {
            self.down.push(message);
        }
        std::mem::take(&mut self.down)
    }

    /// What falls due with time.
    pub(super) async fn keep_time(&mut self) {
        self.act(|engine| async move {
            engine.keep_time().await?;
            engine.follow_the_fleet().await
        })
        .await;
    }

    /// What the planner wants.
    pub(super) async fn dispatch(&mut self) {
        self.act(|engine| async move { engine.dispatch_all().await })
            .await;
    }

    /// Stops taking reports, once those that it has are in the database.
    async fn stops_taking(&mut self) {
        self.stop.cancel();
        if let Some(ingest) = self.ingest.take() {
            ingest.await.unwrap();
        }
    }

    /// Ends it in good order, as one of several.
    pub(super) async fn leave(&mut self) {
        self.stops_taking().await;
        self.ok(self.engine.leave().await);
    }

    /// Ends it, and with it all that it still does.
    pub(super) async fn end(mut self) {
        self.stops_taking().await;
        for act in self.unfinished {
            let _ = act.await.unwrap(); // it is dead
        }
        drop(self.engine);
        self.store.close().await;
    }

    /// Runs it as it runs in earnest, until it is told to stop.
    pub(super) fn run(&self, work: Work) -> JoinHandle<std::result::Result<(), &'static str>> {
        tokio::spawn(self.engine.clone().run(work, self.stop.clone()))
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }
}
