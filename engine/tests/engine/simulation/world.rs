//! The simulated world: devices, the network between, admins, a service that dies and starts anew, and time that goes
//! from event to event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use device_ota_engine::ports::Clock as _;
use device_ota_protocol::objects::Root;
use device_ota_protocol::topics::Up;
use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::admin::{Admin, Hand, Rollout};
use super::audit::Books;
use super::base::Base;
use super::device::{Device, Offered, Restarts, Said, Step};
use super::fate::{Death, Effect, Process};
use super::life::{Life, Place};
use super::template::{Template, device_name};
use super::{Story, Trouble};
use crate::fixture::{TestClock, report, root};

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
    Tick,
    Restart,
}

pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) trouble: Trouble,
    pub(super) story: Story,
    pub(super) devices: Vec<Device>,
    pub(super) rollouts: Vec<Rollout>,
    /// The service, while it lives.
    pub(super) life: Option<Life>,
    pub(super) books: Books,
    pub(super) clock: Arc<TestClock>,
    database: Base,
    folder: tempfile::TempDir,
    pub(super) root: Root,
    lives: u64,
    pub(super) sessions: i64,
    queue: BTreeMap<(Timestamp, u64), Event>,
    /// Events so far; those of the same time happen in the order in which they were planned.
    planned: u64,
    /// Commits of this life when the books were last looked at.
    audited: Option<u64>,
    /// Looks in a row at which nothing had happened.
    idle: u32,
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
        let references = template.devices.iter().take(many);
        let devices = references.map(|device| Device::new(device.clone(), &mut rng, trouble));
        let mut world = Self {
            devices: devices.collect(),
            rng,
            trouble,
            story,
            rollouts: Vec::new(),
            life: None,
            books: Books::default(),
            clock: Arc::new(TestClock(AtomicI64::new(BEGINNING))),
            database,
            folder: tempfile::tempdir().unwrap(),
            root: root(),
            lives: 0,
            sessions: 0,
            queue: BTreeMap::new(),
            planned: 0,
            audited: None,
            idle: 0,
        };
        template.lay_images(world.folder.path());
        world.open(None).await;
        for version in trouble.versions() {
            world.create(template, version).await;
        }
        world.plan_for_single_devices(template);
        world.die_one_day().await;
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
            folder: self.folder.path(),
            clock: &self.clock,
        }
    }

    /// A new process, which is to die at that effect.
    pub(super) async fn open(&mut self, death: Option<Death>) {
        self.lives += 1;
        let process = Process::new(death);
        let (mut life, work) = Life::new(&self.place(), process, Vec::new(), self.lives).await;
        life.begin(work).await;
        self.life = Some(life);
        self.audited = None;
        self.after(0, Event::Tick);
    }

    /// Begins anew with a process whose days are counted, where processes die.
    async fn die_one_day(&mut self) {
        for index in 0..self.devices.len() {
            let first = self.rng.random_range(0..200);
            self.after(first, Event::Up(index));
        }
        if self.trouble.crashes {
            self.life.take().expect("it was opened").end().await;
            self.queue.retain(|_, event| !matches!(event, Event::Tick));
            let death = self.any_death();
            self.open(Some(death)).await;
        }
    }

    fn any_death(&mut self) -> Death {
        let (at, most) = [(Effect::Commit, 40), (Effect::Send, 12), (Effect::Ack, 25)]
            [self.rng.random_range(0..3)];
        Death {
            at,
            after: self.rng.random_range(0..most),
            too_late: self.rng.random_bool(0.5),
        }
    }

    /// Until nothing will ever happen again.
    pub(super) async fn run(&mut self) -> Result<(), String> {
        for _ in 0..MAX_STEPS {
            let Some(((at, _), event)) = self.queue.pop_first() else {
                return Err("the service looks no more".to_owned());
            };
            self.clock.0.store(at.as_microsecond(), Ordering::SeqCst);
            let idle = matches!(event, Event::Tick);
            self.happen(event).await?;
            self.pass().await?;
            if self.has_died().await {
                continue;
            }
            self.idle = if idle { self.idle + 1 } else { 0 };
            let resting = !self
                .queue
                .values()
                .any(|event| !matches!(event, Event::Tick));
            if resting && self.books.all_is_over() {
                return self.verdict().await;
            }
            if resting && self.idle > 3 {
                self.somebody_helps().await?;
            }
        }
        Err(format!(
            "not at rest after {MAX_STEPS} steps: {}",
            self.books
        ))
    }

    async fn happen(&mut self, event: Event) -> Result<(), String> {
        if !matches!(event, Event::Tick) {
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
            Event::Late(device, text) => {
                if self.life.is_some() {
                    self.report(device, vec![text]).await?;
                } else {
                    self.devices[device].outbox.push_back(text);
                }
            }
            Event::Start(rollout) => self.start(rollout).await,
            Event::Admin(rollout, what) => self.admin(rollout, what).await,
            Event::Hand(device, what) => self.hand(device, what).await,
            Event::Tick => {
                if let Some(life) = &self.life {
                    // Whoever says nothing of an offer is there all the same.
                    let there = self.devices.iter().filter(|device| device.online);
                    for device in there.filter(|device| device.is_mute()) {
                        let text = format!(r#"{{"version":"{}"}}"#, device.runs);
                        let heartbeat = report(Up::Heartbeat, &text);
                        life.submit(&device.reference, vec![heartbeat]).await;
                    }
                    life.keep_time().await;
                    let next = self.rng.random_range(TICK / 4..TICK);
                    self.after(next, Event::Tick);
                }
            }
            Event::Restart => {
                let death = self.rng.random_bool(0.7).then(|| self.any_death());
                self.open(death).await;
            }
        }
        Ok(())
    }

    /// The planner's turn; then what came down is on its way, and the books are looked at.
    async fn pass(&mut self) -> Result<(), String> {
        let Some(life) = &mut self.life else {
            return Ok(());
        };
        if !life.process.is_dead() {
            life.dispatch().await;
        }
        let down = life.came_down();
        let commits = life.commits();
        let (store, dead) = (life.store.clone(), life.process.is_dead());
        if (commits.is_none() || commits != self.audited) && !dead {
            self.audited = commits;
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
        for message in down {
            self.comes_down(message, dead)?;
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
        if self.devices[index].online {
            self.down(index).await;
            self.after(2, Event::Up(index));
        }
    }

    /// Buries a process that has died: all connections are gone, and a new one starts in a while.
    async fn has_died(&mut self) -> bool {
        let Some(life) = self.life.take_if(|life| life.process.is_dead()) else {
            return self.life.is_none();
        };
        self.tell(|| "the service dies".to_owned());
        life.end().await;
        self.queue.retain(|_, event| !matches!(event, Event::Tick));
        let pause = self.rng.random_range(1..300);
        self.after(pause, Event::Restart);
        for index in 0..self.devices.len() {
            if std::mem::take(&mut self.devices[index].online) {
                let back = pause + self.rng.random_range(0..60);
                self.after(back, Event::Up(index));
            }
        }
        true
    }

    /// The name of a device, for the books.
    pub(super) fn name(index: usize) -> String {
        device_name(index)
    }
}
