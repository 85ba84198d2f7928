//! The simulated world: devices, the network between, admins, a service of one process or several that die and start anew,
//! and time that goes from event to event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use device_ota_engine::ports::{Clock as _, Objects};
use device_ota_objects::LocalFolder;
use device_ota_protocol::objects::Root;
use device_ota_protocol::topics::Up;
use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::admin::{Admin, Hand, Rollout};
use super::audit::Books;
use super::base::Base;
use super::device::{Device, Offered, Restarts, Said, Step};
use super::gateway::Message;
use super::life::Place;
use super::replicas::Change;
use super::service::Service;
use super::template::{Template, device_name};
use super::{Story, Trouble};
use crate::fixture::{TestClock, report, root};

/// Lives of several processes whose days may be counted; later ones last.
const MAX_TURNS: u64 = 20;
/// Processes of a service that has several.
const REPLICAS: usize = 2;

/// Steps after which a world that is not at rest counts as endless.
const MAX_STEPS: usize = 20_000;
/// When the world begins, in microseconds since the epoch.
const BEGINNING: i64 = 1_800_000_000_000_000;
/// Longest time between two looks of the service, in seconds: well below the lease, or it would be a break.
const TICK: i64 = 140;
/// Most devices of a world.
pub(super) const MAX_DEVICES: usize = 6;

/// What may happen next.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Offer(usize, Offered),
    /// With the `seq` of its command.
    Cancel(usize, String, u64),
    /// Likewise.
    Activate(usize, String, u64),
    Step {
        device: usize,
        script: u64,
        step: Step,
    },
    Up(usize),
    /// A report that was on its way for long.
    Late(usize, String),
    Start(usize),
    Admin(usize, Admin),
    Hand(usize, Hand),
    /// A process looks what time it is.
    Tick(usize),
    /// One of several says that it lives.
    Beat(usize),
    Restart(usize),
    /// Something happens to one of several processes.
    Replica(usize, Change),
    /// A device gives up a session over which nothing comes.
    LosesPatience(usize, i64),
    /// The gateway of that life of a process misses a device.
    FallsSilent(usize, usize, Option<u64>, i64),
    /// A device is given the secret that is its own now.
    Secret(usize, String),
}

impl Event {
    /// It happens again and again, whatever else does.
    pub(super) const fn is_idle(&self) -> bool {
        matches!(self, Self::Tick(_) | Self::Beat(_))
    }

    /// It is of this life of a process, and of no later one.
    pub(super) fn is_of(&self, service: usize) -> bool {
        match self {
            Self::Tick(of) | Self::Beat(of) => *of == service,
            Self::Replica(of, change) => *of == service && *change == Change::GoesOn,
            _ => false,
        }
    }
}

pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) trouble: Trouble,
    pub(super) story: Story,
    pub(super) devices: Vec<Device>,
    pub(super) rollouts: Vec<Rollout>,
    /// Its processes, one or several.
    pub(super) services: Vec<Service>,
    pub(super) books: Books,
    pub(super) clock: Arc<TestClock>,
    database: Base,
    _folder: tempfile::TempDir,
    objects: Arc<dyn Objects>,
    sent: Arc<AtomicU64>,
    pub(super) root: Root,
    pub(super) lives: u64,
    /// The highest number of a session.
    pub(super) sessions: i64,
    /// Checks so far.
    pub(super) nonces: u64,
    /// The secrets by which sessions were opened.
    pub(super) opened_by: BTreeMap<i64, String>,
    pub(super) queue: BTreeMap<(Timestamp, u64), Event>,
    /// Events so far; those of the same time happen in the order in which they were planned.
    planned: u64,
    /// Commits of all lives when the books were last looked at.
    pub(super) audited: Vec<(u64, u64)>,
    /// Until when processes of several look for those that are dead.
    pub(super) hurries_until: Timestamp,
    /// Looks in a row at which nothing had happened.
    idle: usize,
}

impl World {
    pub(super) async fn new(
        template: &Template,
        seed: u64,
        trouble: Trouble,
        story: Story,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let database = template.base(trouble.postgres).await;
        let many = rng.random_range(1..=MAX_DEVICES);
        let known = template.devices.iter().take(many);
        let devices = known.map(|(device, secret)| Device::new(device, secret, &mut rng, trouble));
        let folder = tempfile::tempdir().unwrap();
        template.lay_images(folder.path());
        let processes = if trouble.replicas { REPLICAS } else { 1 };
        let mut world = Self {
            devices: devices.collect(),
            rng,
            trouble,
            story,
            rollouts: Vec::new(),
            services: (0..processes).map(Service::new).collect(),
            books: Books::default(),
            clock: Arc::new(TestClock(AtomicI64::new(BEGINNING))),
            database,
            objects: Arc::new(LocalFolder::open(folder.path()).unwrap()),
            _folder: folder,
            sent: Arc::default(),
            root: root(),
            lives: 0,
            sessions: 0,
            nonces: 0,
            opened_by: BTreeMap::new(),
            queue: BTreeMap::new(),
            planned: 0,
            audited: Vec::new(),
            hurries_until: Timestamp::MIN,
            idle: 0,
        };
        world.open(0, None).await;
        for version in trouble.versions() {
            world.create(template, version).await;
        }
        world.plan_for_single_devices(template);
        world.begin().await;
        world
    }

    pub(super) fn books(&self) -> &Books {
        &self.books
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(super) fn tell(&self, line: impl FnOnce() -> String) {
        self.story.tell(|| {
            let seconds = (self.now().as_microsecond() - BEGINNING) / 1_000_000;
            format!("{seconds:>6} s  {}", line())
        });
    }

    pub(super) fn after(&mut self, seconds: i64, event: Event) {
        let at = self
            .now()
            .checked_add(SignedDuration::from_secs(seconds))
            .unwrap();
        self.planned += 1;
        self.queue.insert((at, self.planned), event);
    }

    pub(super) fn place(&self) -> Place<'_> {
        Place {
            database: &self.database,
            objects: &self.objects,
            clock: &self.clock,
            sent: &self.sent,
        }
    }

    /// Until nothing will ever happen again.
    pub(super) async fn run(&mut self) -> Result<(), String> {
        for _ in 0..MAX_STEPS {
            let Some(((at, _), event)) = self.queue.pop_first() else {
                return Err("the service looks no more".to_owned());
            };
            self.clock.0.store(at.as_microsecond(), Ordering::SeqCst);
            let (idle, ticks) = (event.is_idle(), matches!(event, Event::Tick(_)));
            self.happen(event).await?;
            self.pass().await?;
            if self.bury_the_dead().await {
                continue;
            }
            self.idle = if idle {
                self.idle + usize::from(ticks)
            } else {
                0
            };
            if self.is_resting() && self.books.all_is_over() && self.is_settled().await? {
                return self.verdict().await;
            }
            if self.is_resting() && self.idle > 3 * self.services.len() {
                self.somebody_helps().await?;
            }
        }
        Err(format!(
            "not at rest after {MAX_STEPS} steps: {}",
            self.books
        ))
    }

    /// Nothing happens but what always does.
    pub(super) fn is_resting(&self) -> bool {
        self.queue.values().all(Event::is_idle)
    }

    async fn happen(&mut self, event: Event) -> Result<(), String> {
        if !event.is_idle() {
            self.tell(|| format!("{event:?}"));
        }
        match event {
            Event::Offer(device, offered) => self.offer_arrives(device, &offered),
            Event::Cancel(device, update, seq) => {
                let can = self.devices[device].stops(&update, seq);
                if can && self.rng.random_bool(0.8) {
                    self.devices[device].script += 1;
                    self.say(device, Said::Cancelled).await?;
                }
            }
            Event::Activate(device, update, seq) => self.activate_arrives(device, &update, seq),
            Event::Step {
                device,
                script,
                step,
            } => self.step(device, script, step).await?,
            Event::Up(device) => self.up(device).await?,
            Event::Late(device, text) => self.report(device, vec![text]).await?,
            Event::Start(rollout) => self.start(rollout).await,
            Event::Admin(rollout, what) => self.admin(rollout, what).await,
            Event::Hand(device, what) => self.hand(device, what).await,
            Event::Tick(service) => self.tick(service).await,
            Event::Beat(service) => self.beats(service).await?,
            Event::Restart(service) => {
                let lasts = self.several() && self.lives > MAX_TURNS;
                let turn = !lasts && self.rng.random_bool(0.7);
                let turn = turn.then(|| self.any_turn());
                self.open(service, turn).await;
            }
            Event::Replica(service, change) => self.changes(service, change).await?,
            Event::LosesPatience(device, session) => self.loses_patience(device, session).await,
            Event::FallsSilent(device, service, life, session) => {
                self.falls_silent(device, service, life, session).await;
            }
            Event::Secret(device, secret) => self.devices[device].secret = secret,
        }
        Ok(())
    }

    async fn tick(&mut self, service: usize) {
        let next = self.rng.random_range(TICK / 4..TICK);
        self.after(next, Event::Tick(service));
        let several = self.several();
        let Some(life) = self.services[service].awake() else {
            return;
        };
        // Whoever says nothing of an offer is there all the same.
        let here = |device: &&Device| device.connection.is_some_and(|c| c.service == service);
        for device in self.devices.iter().filter(here).filter(|d| d.is_mute()) {
            let text = format!(r#"{{"version":"{}"}}"#, device.runs);
            let heartbeat = report(Up::Heartbeat, &text);
            life.submit(&device.reference, vec![heartbeat]).await;
        }
        if life.is_awake() {
            life.keep_time().await;
        }
        if life.is_awake() && several {
            // Every minute or so.
            life.act(|engine| async move { engine.take_up().await })
                .await;
        }
    }

    /// The planner's turn in each process; then what came down is on its way, and the books are looked at.
    async fn pass(&mut self) -> Result<(), String> {
        for service in self.whose_turn() {
            self.heeds(service).await?;
            let Some(life) = &mut self.services[service].life else {
                continue;
            };
            if life.is_awake() {
                life.dispatch().await;
            }
            self.all_comes_down(true).await?;
        }
        self.all_comes_down(true).await?;
        self.notice_who_stands();
        Ok(())
    }

    /// Looks at the books, if anything was written, and at what came down. Whoever `acts` by themselves tell those alone that they hold.
    pub(super) async fn all_comes_down(&mut self, acts: bool) -> Result<(), String> {
        let (mut down, mut audited, mut store) = (Vec::new(), Vec::new(), None);
        for service in &mut self.services {
            let at = service.index;
            let Some(life) = &mut service.life else {
                continue;
            };
            let dead = life.process.is_dead();
            down.extend(
                life.came_down()
                    .into_iter()
                    .map(|message| (at, message, dead)),
            );
            audited.push((life.number, life.process.commits()));
            if !dead {
                store = Some(life.store.clone());
            }
        }
        // Before anybody acts nothing has changed but by what is said anew.
        let looks = audited != self.audited && (acts || !down.is_empty());
        if let Some(store) = store.filter(|_| looks) {
            self.audited = audited;
            let now = self.now();
            let news = self
                .books
                .look(store.as_ref(), &self.rollouts, &self.devices, now)
                .await?;
            if !news.is_empty() {
                self.idle = 0;
            }
            for line in news {
                self.tell(|| format!("    {line}"));
            }
        }
        down.sort_by_key(|(_, message, _): &(usize, Message, bool)| message.place);
        for (service, message, dead) in down {
            self.comes_down(service, &message, dead, acts)?;
        }
        Ok(())
    }

    async fn step(&mut self, index: usize, script: u64, step: Step) -> Result<(), String> {
        let device = &mut self.devices[index];
        if device.script != script || device.gone {
            return Ok(());
        }
        match step {
            Step::Say(said) => self.say(index, said).await?,
            Step::Runs(version) => {
                device.runs = version;
                self.has_booted(index).await;
            }
            Step::Relapses(version) => {
                device.runs = version;
                device.relapsed_at = Some(self.clock.now());
                // What it had not got rid of is forgotten with what said it.
                device.outbox.clear();
                self.has_booted(index).await;
            }
            Step::Down(away, restarts) => {
                device.restarted |= restarts == Restarts::Yes;
                device.gone = away.is_none();
                self.down(index).await;
                if let Some(seconds) = away {
                    self.after(seconds, Event::Up(index));
                }
            }
        }
        Ok(())
    }

    /// What it runs now it tells when it connects; it may have connected before it was done.
    async fn has_booted(&mut self, index: usize) {
        self.devices[index].restarted = true;
        if self.devices[index].is_online() {
            self.down(index).await;
            self.after(2, Event::Up(index));
        }
    }

    /// The name of a device, for the books.
    pub(super) fn name(index: usize) -> String {
        device_name(index)
    }
}
