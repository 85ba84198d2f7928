//! One simulated device: a boot loader, flash, a battery and a link around the honest
//! [`Agent`]. What is wrong with the device is done here, between the agent and the world.

mod act;
mod say;
mod session;
mod transfer;
mod watch;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use device_ota_protocol::Slot;
use device_ota_protocol::agent::{Agent, Config, Identity, Input, PersistentState, Stage};
use device_ota_protocol::messages::Status;
use device_ota_protocol::topics::{Prefix, Up};
use jiff::Timestamp;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::download::SharedFlash;
use crate::faults::{Faults, Flaw};
use crate::habits::Habits;
use crate::mqtt::{self, Client, Topic, User, Will};

use say::{Outgoing, Reported};
use transfer::Transfer;

/// Pauses between attempts at connecting; each is shortened at random by up to a half.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// What all devices of a fleet share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) habits: Habits,
    pub(crate) prefix: Prefix,
    pub(crate) server: SocketAddr,
    pub(crate) tls: Option<mqtt::Tls>,
    pub(crate) http: reqwest::Client,
    /// Bounds the downloads of the whole fleet.
    pub(crate) gate: Arc<Semaphore>,
    pub(crate) board: Board,
    pub(crate) stop: CancellationToken,
}

/// What is particular to a device.
pub(crate) struct Birth {
    pub(crate) index: usize,
    pub(crate) identity: Identity,
    pub(crate) password: String,
    pub(crate) state: PersistentState,
    pub(crate) faults: Faults,
    pub(crate) version: mqtt::Version,
    /// Whether it takes images in MQTT chunks.
    pub(crate) chunks: bool,
    pub(crate) seed: u64,
}

/// Where a session leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// The link broke.
    Lost,
    /// Restart into a slot.
    Reboot(Slot),
    /// Say nothing any more.
    Silence,
    /// The simulation ends.
    Stop,
}

/// Tries a new slot once and otherwise starts the confirmed one.
#[derive(Debug, Clone, Copy)]
struct BootLoader {
    confirmed: Slot,
    trial: Option<Slot>,
}

impl BootLoader {
    /// The slot that comes up, and whether the other one was given up on.
    fn start(&mut self, trial_is_broken: bool) -> (Slot, bool) {
        match self.trial.take() {
            Some(_) if trial_is_broken => (self.confirmed, true),
            Some(slot) => (slot, false),
            None => (self.confirmed, false),
        }
    }
}

/// When something is due.
#[derive(Debug)]
struct Timers {
    heartbeat: Instant,
    tick: Instant,
    install: Option<Instant>,
    /// When the new image gives up, where it does not last.
    relapse: Option<Instant>,
    /// When battery and storage are well again.
    recover: Option<Instant>,
}

/// One device.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, each set by another event"
)]
pub(crate) struct Device {
    ctx: Arc<Context>,
    index: usize,
    faults: Faults,
    version: mqtt::Version,
    takes_chunks: bool,
    password: Bytes,
    rng: Xoshiro256PlusPlus,
    agent: Agent,
    /// What the agent last asked to be written down: all that a restart leaves of it.
    persisted: Box<PersistentState>,
    loader: BootLoader,
    flash: SharedFlash,
    transfer: Transfer,
    /// Last number of a chunk request.
    chunk_request: u32,
    outbox: VecDeque<Outgoing>,
    unacknowledged: VecDeque<(u16, Option<Box<Reported>>)>,
    /// A report that is held back, to be sent after the next one.
    held: Option<(Outgoing, Instant)>,
    timers: Timers,
    booted_at: Instant,
    boot_id: u32,
    leave: Option<(Leave, Instant)>,
    health_check_due: bool,
    /// Whether the current update needed a download.
    downloaded: bool,
    /// Whether the next image is to get a wrong byte.
    corrupt_next: bool,
    /// Whether the connection is still to be lost in the current download.
    drop_next: bool,
}

impl Device {
    pub(crate) fn new(ctx: Arc<Context>, birth: Birth) -> Self {
        let now = Instant::now();
        let config = Config {
            clock_trusted: true,
            check_interval_s: ctx.habits.check_interval.as_secs().max(1),
            ..Config::default()
        };
        let faults = birth.faults;
        let unfit = faults.low_battery || faults.low_storage;
        Self {
            index: birth.index,
            faults,
            version: birth.version,
            takes_chunks: birth.chunks,
            password: birth.password.into_bytes().into(),
            rng: Xoshiro256PlusPlus::seed_from_u64(birth.seed),
            loader: BootLoader {
                confirmed: birth.state.active,
                trial: None,
            },
            persisted: Box::new(birth.state.clone()),
            agent: Agent::new(birth.identity, config, birth.state),
            flash: SharedFlash::default(),
            transfer: Transfer::None,
            chunk_request: 0,
            outbox: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            held: None,
            timers: Timers {
                heartbeat: now,
                tick: now,
                install: None,
                relapse: None,
                recover: unfit.then(|| now + ctx.habits.recover),
            },
            booted_at: now,
            boot_id: 0,
            leave: None,
            health_check_due: false,
            downloaded: false,
            corrupt_next: faults.corrupt,
            drop_next: faults.drop_connection,
            ctx,
        }
    }

    /// Lives until the simulation ends or the device's fault takes it away, and leaves what it had
    /// written down.
    pub(crate) async fn run(mut self) -> (usize, Box<PersistentState>) {
        let offline_for = self.ctx.habits.offline_for;
        if !(self.faults.offline && self.pause(offline_for).await) {
            self.boot();
            while self.live_once().await {}
        }
        self.ctx
            .board
            .update(self.index, |seat| seat.online = false);
        (self.index, self.persisted)
    }

    /// One connection and what comes after it. Whether there is to be another one.
    async fn live_once(&mut self) -> bool {
        let leave = match self.leave.take() {
            Some((leave, _)) => leave,
            None => self.connected_life().await,
        };
        match leave {
            Leave::Stop => false,
            Leave::Lost => true,
            Leave::Reboot(slot) => {
                self.reboot(slot);
                let time = self.jittered(self.ctx.habits.reboot_time);
                let stopped = self.pause(time).await;
                self.boot();
                !stopped
            }
            Leave::Silence => self.be_silent().await,
        }
    }

    /// Connects, patiently, and stays connected as long as it goes.
    async fn connected_life(&mut self) -> Leave {
        let mut failures = 0;
        let client = loop {
            let stop = self.ctx.stop.clone();
            let options = self.mqtt_options();
            let connect = Box::pin(Client::connect(&options));
            let result = tokio::select! {
                result = connect => result,
                () = stop.cancelled() => return Leave::Stop,
            };
            match result {
                Ok(client) => break client,
                Err(error) => self.note_failed_connect(&error),
            }
            let pause = (FIRST_PAUSE * 2_u32.saturating_pow(failures)).min(LONGEST_PAUSE);
            failures = (failures + 1).min(16);
            let pause = self.jittered(pause);
            if self.pause(pause).await {
                return Leave::Stop;
            }
        };
        let leave = self.session(client).await;
        self.disconnected();
        if leave == Leave::Lost {
            self.ctx.board.totals.lost_connections.one();
            let pause = self.jittered(FIRST_PAUSE);
            if self.pause(pause).await {
                return Leave::Stop;
            }
        }
        leave
    }

    fn note_failed_connect(&self, error: &mqtt::Error) {
        tracing::debug!(device.id = %self.agent.device_id(), %error, "cannot connect");
        let totals = &self.ctx.board.totals;
        // An external broker may load new passwords later: not authorised is not for ever.
        if error.is_not_authorised() {
            totals.refused_connects.one();
        } else {
            totals.failed_connects.one();
        }
    }

    fn mqtt_options(&self) -> mqtt::Options {
        let id = self.agent.device_id();
        let name: Arc<str> = id.as_str().into();
        let topic = Topic::try_from(self.ctx.prefix.up(id, Up::Status).as_str());
        let keep_alive = self.ctx.habits.keep_alive.as_secs();
        mqtt::Options {
            server: self.ctx.server,
            tls: self.ctx.tls.clone(),
            version: self.version,
            client_id: name.clone(),
            user: Some(User {
                name,
                password: self.password.clone(),
            }),
            will: topic.ok().map(|topic| Will {
                topic,
                payload: Status::will().to_bytes().into(),
            }),
            keep_alive_s: u16::try_from(keep_alive).unwrap_or(u16::MAX),
        }
    }

    /// The power goes, and with it all that was not written down.
    fn reboot(&mut self, slot: Slot) {
        let totals = &self.ctx.board.totals;
        totals.reboots.one();
        self.transfer = Transfer::None;
        self.timers.install = None;
        self.timers.relapse = None;
        self.loader.trial = (slot != self.loader.confirmed).then_some(slot);
        if self.loader.trial.is_some() && !self.downloaded {
            totals.flips.one();
        }
    }

    fn boot(&mut self) {
        let now = Instant::now();
        self.booted_at = now;
        self.boot_id = self.rng.random();
        self.timers.heartbeat = now;
        self.timers.tick = now;
        self.health_check_due = false;
        let flaw = self.faults.flaw;
        let broken = flaw.is_some_and(|flaw| flaw == Flaw::BootLoop || flaw.is_lie());
        if broken && self.loader.trial.is_some() {
            self.fault_fired();
        }
        let (slot, fell_back) = self.loader.start(broken);
        let identity = self.agent.identity().clone();
        let config = Config {
            clock_trusted: true,
            check_interval_s: self.ctx.habits.check_interval.as_secs().max(1),
            ..Config::default()
        };
        self.agent = Agent::new(identity, config, (*self.persisted).clone());
        self.feed(Input::Booted { slot, fell_back });
        self.feed_conditions();
    }

    /// Stays away, for good or for a while.
    async fn be_silent(&mut self) -> bool {
        self.fault_fired();
        self.transfer = Transfer::None;
        self.timers.install = None;
        let Some(time) = self.ctx.habits.silent_for else {
            self.ctx.board.update(self.index, |seat| seat.gone = true);
            return false;
        };
        self.faults.flaw = None;
        let stopped = self.pause(time).await;
        self.boot();
        !stopped
    }

    fn disconnected(&mut self) {
        self.outbox = VecDeque::new();
        self.unacknowledged = VecDeque::new();
        self.held = None;
        if let Transfer::Chunks(chunks) = &mut self.transfer {
            chunks.disconnected(Instant::now());
        }
        self.feed(Input::Disconnected);
        self.ctx
            .board
            .update(self.index, |seat| seat.online = false);
    }

    /// Tells the agent what happened and does what it answers.
    fn feed(&mut self, input: Input<'_>) {
        for output in self.agent.handle(clock(), input) {
            self.perform(output);
        }
        self.show();
    }

    fn feed_conditions(&mut self) {
        let (battery, storage) = self.conditions();
        self.feed(Input::Conditions {
            battery_percent: Some(battery),
            free_storage_bytes: Some(storage),
        });
    }

    /// Brings the device's seat up to date.
    fn show(&self) {
        let version = self.agent.running_version();
        let state = self.agent.state();
        let image = state.image(self.agent.running_slot());
        let confirmed = image.is_some_and(|image| image.confirmed);
        let record = state.update.as_deref();
        let last = record.map(|record| record.report.phase);
        let resting =
            record.is_none_or(|r| r.is_finished() || matches!(r.stage, Stage::Deferred { .. }));
        self.ctx.board.update(self.index, |seat| {
            if seat.version != version {
                version.clone_into(&mut seat.version);
            }
            seat.confirmed = confirmed;
            seat.last = last;
            seat.live = if resting { None } else { last };
        });
    }

    fn fault_fired(&self) {
        self.ctx
            .board
            .update(self.index, |seat| seat.fault_fired = true);
    }

    /// Waits; whether the simulation ended meanwhile.
    async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = sleep(time) => false,
            () = self.ctx.stop.cancelled() => true,
        }
    }

    /// Between a half and the whole of a time, so that a fleet does not move in step.
    fn jittered(&mut self, time: Duration) -> Duration {
        time.mul_f64(self.rng.random_range(0.5..=1.0))
    }
}

/// A device's own clock. A simulator lives in real time; the agent within takes it as a parameter.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the clock that others are given"
)]
fn clock() -> Timestamp {
    Timestamp::now()
}
