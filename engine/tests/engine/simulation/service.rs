//! The processes of the service: how they begin, die and are buried.

use device_ota_engine::inbound::Uplink;
use rand::RngExt;
use tokio::sync::oneshot;

use super::fate::{Effect, Lot, Process, Turn};
use super::life::Life;
use super::world::{Event, World};

/// A process, in all its lives.
pub(super) struct Service {
    pub(super) index: usize,
    /// The present one, while it lives.
    pub(super) life: Option<Life>,
    /// It is known to stand still.
    pub(super) asleep: bool,
    /// What its sockets keep while it does.
    pub(super) sockets: Vec<Waiting>,
    /// Reports of devices of which it has not said that they are safe.
    pub(super) owed: Vec<(usize, String, oneshot::Receiver<()>)>,
}

/// What waits in a socket.
pub(super) enum Waiting {
    /// A report of that device, over that session.
    Report(usize, i64, String),
    /// A check, likewise.
    Check(usize, i64, String),
    /// The end of a session.
    End(usize, i64),
}

impl Service {
    pub(super) const fn new(index: usize) -> Self {
        Self {
            index,
            life: None,
            asleep: false,
            sockets: Vec::new(),
            owed: Vec::new(),
        }
    }

    /// Its life, unless it stands still or is dead.
    pub(super) fn awake(&mut self) -> Option<&mut Life> {
        self.life.as_mut().filter(|life| life.is_awake())
    }

    pub(super) fn is_awake(&self) -> bool {
        self.life.as_ref().is_some_and(Life::is_awake)
    }

    fn ends(&mut self) {
        self.life = None;
        self.asleep = false;
        self.sockets.clear();
        self.owed.clear();
    }
}

/// A story that was broken off leaves nobody who waits.
impl Drop for World {
    fn drop(&mut self) {
        for life in self.services.iter().filter_map(|s| s.life.as_ref()) {
            life.process.die();
            life.stop();
        }
    }
}

impl World {
    /// One process that does something, if there is one.
    pub(super) fn somebody(&mut self) -> Option<usize> {
        let awake = self.services.iter().filter(|service| service.is_awake());
        let awake: Vec<usize> = awake.map(|service| service.index).collect();
        match awake[..] {
            [] => None,
            [one] => Some(one),
            _ => Some(awake[self.rng.random_range(0..awake.len())]),
        }
    }

    /// The life of a process that is there.
    pub(super) fn life(&self, service: usize) -> &Life {
        self.services[service].life.as_ref().expect("it is there")
    }

    /// Where a device's reports go at the moment. One process takes them also when their session is over.
    pub(super) fn way_in(&self, device: usize) -> Option<usize> {
        let connection = self.devices[device].connection;
        let service = if self.several() {
            connection?.service
        } else {
            0
        };
        self.services[service].is_awake().then_some(service)
    }

    /// A new process, with the turn that its days will take.
    pub(super) async fn open(&mut self, service: usize, turn: Option<Turn>) {
        self.lives += 1;
        if self.several() {
            // Whoever lives has said so within the last seconds.
            self.all_renew().await;
        }
        let process = Process::new(turn);
        let (mut life, work) = Life::new(&self.place(), process, Vec::new(), self.lives).await;
        life.begin(work, self.member(service)).await;
        self.services[service].life = Some(life);
        self.after(0, Event::Tick(service));
        self.beat_faster();
    }

    /// Begins with processes whose days are counted, where they are.
    pub(super) async fn begin(&mut self) {
        for index in 0..self.devices.len() {
            let first = self.rng.random_range(0..200);
            self.after(first, Event::Up(index));
        }
        if self.trouble.crashes || self.several() {
            let first = self.services[0].life.take();
            first.expect("it was opened").end().await;
            self.queue.retain(|_, event| !event.is_idle());
            for service in 0..self.services.len() {
                let turn = self.any_turn();
                self.open(service, Some(turn)).await;
            }
        }
        self.plan_for_replicas();
    }

    pub(super) fn any_turn(&mut self) -> Turn {
        let (at, most) = [(Effect::Commit, 40), (Effect::Send, 12), (Effect::Ack, 25)]
            [self.rng.random_range(0..3)];
        let (after, too_late) = (self.rng.random_range(0..most), self.rng.random_bool(0.5));
        let stands = self.several() && self.rng.random_bool(0.5);
        Turn {
            lot: if stands { Lot::StandsStill } else { Lot::Dies },
            at,
            after,
            too_late,
        }
    }

    /// What is said of a session that has ended; with company, so that it does not wait for some.
    pub(super) fn good_bye(session: i64) -> Vec<Uplink> {
        vec![Uplink::Offline { session }, Uplink::Discarded]
    }

    /// Buries processes that have died: all their connections are gone, and new ones start in a while. Whether no process is left.
    pub(super) async fn bury_the_dead(&mut self) -> bool {
        for service in 0..self.services.len() {
            let is_dead = |life: &mut Life| life.process.is_dead();
            let Some(life) = self.services[service].life.take_if(is_dead) else {
                continue;
            };
            self.tell(|| format!("the service dies{}", self.named(service)));
            life.end().await;
            let most = if self.several() && self.rng.random_bool(0.5) {
                30
            } else {
                300
            };
            let pause = self.rng.random_range(1..most);
            self.is_gone(service, pause);
        }
        self.services.iter().all(|service| service.life.is_none())
    }

    /// A process is no more, and its connections with it; another starts in so many seconds.
    pub(super) fn is_gone(&mut self, service: usize, pause: i64) {
        self.services[service].ends();
        self.queue.retain(|_, event| !event.is_of(service));
        self.after(pause, Event::Restart(service));
        // Elsewhere they may be back before it is.
        let first = if self.several() { 1 } else { pause };
        for index in 0..self.devices.len() {
            let was = &mut self.devices[index].connection;
            if was.take_if(|was| was.service == service).is_some() {
                let back = first + self.rng.random_range(0..60);
                self.after(back, Event::Up(index));
            }
        }
        self.beat_faster();
    }
}
