//! When a process dies or stands still: at one commit, one message down, one acknowledgement or one event delivered, just
//! before or just after it takes effect. What a dead process does reaches nobody, and the database refuses it; one that
//! stands still goes on, one day, in the middle of what it was at.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use device_ota_domain::event::StoredEvent;
use device_ota_engine::inbound::AckSink;
use device_ota_engine::ports::{EventSink, SinkError};
use device_ota_store::testing::Watch;
use tokio::sync::{oneshot, watch};

/// Whatever reaches the world outside of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Commit,
    Send,
    Ack,
    Deliver,
}

/// What becomes of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lot {
    Dies,
    /// Before and after transactions, and never within one: there the database would end it.
    StandsStill,
}

/// A turn to come: at the effect of that kind that so many others come before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) lot: Lot,
    pub(super) at: Effect,
    pub(super) after: u32,
    /// The effect still takes place.
    pub(super) too_late: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Lives,
    StandsStill,
    Dead,
}

struct Fate {
    turn: Option<Turn>,
    state: State,
    /// What it is once the present commit is done: nobody shall look at the database in the middle of one.
    next: Option<State>,
    /// It may come to stand still in what it does at the moment.
    may_stand: bool,
    /// It stands still in the middle of something.
    is_within: bool,
    commits: u64,
    /// Devices that are told when it goes on.
    held: Vec<oneshot::Sender<()>>,
}

/// The fate of one process.
#[derive(Clone)]
pub(super) struct Process(Arc<Mutex<Fate>>, watch::Sender<State>);

impl Process {
    pub(super) fn new(turn: Option<Turn>) -> Self {
        let fate = Fate {
            turn,
            state: State::Lives,
            next: None,
            may_stand: false,
            is_within: false,
            commits: 0,
            held: Vec::new(),
        };
        Self(Arc::new(Mutex::new(fate)), watch::channel(State::Lives).0)
    }

    fn becomes(&self, fate: &mut Fate, state: State) {
        fate.state = state;
        self.1.send_replace(state);
    }

    /// Whether an effect takes place; this may be the one at which the process dies, or stands still.
    pub(super) fn may(&self, effect: Effect) -> bool {
        let mut fate = self.0.lock().unwrap();
        if fate.state == State::Dead {
            return false;
        }
        let turn = fate.turn.as_mut().filter(|turn| turn.at == effect);
        let due = match turn {
            Some(turn) if turn.after > 0 => {
                turn.after -= 1;
                None
            }
            turn => turn.map(|turn| *turn),
        };
        let (takes_place, next) = match due {
            Some(turn) if turn.lot == Lot::Dies => (turn.too_late, Some(State::Dead)),
            Some(_) if fate.may_stand => {
                fate.turn = None;
                fate.is_within = true;
                (true, Some(State::StandsStill))
            }
            _ => (true, None),
        };
        match next {
            Some(next) if takes_place && effect == Effect::Commit => fate.next = Some(next),
            Some(next) => self.becomes(&mut fate, next),
            None => {}
        }
        fate.commits += u64::from(takes_place && effect == Effect::Commit);
        takes_place
    }

    /// The same of an effect that waits while the process stands still.
    pub(super) async fn may_in_time(&self, effect: Effect) -> bool {
        self.goes_on().await;
        let too_late = self.turn().is_none_or(|turn| turn.too_late);
        let takes_place = self.may(effect);
        if too_late {
            return takes_place;
        }
        self.goes_on().await;
        takes_place && !self.is_dead()
    }

    fn turn(&self) -> Option<Turn> {
        self.0.lock().unwrap().turn
    }

    /// Lets it stand still in what it does from here on, or no more.
    pub(super) fn may_stand(&self, may: bool) {
        self.0.lock().unwrap().may_stand = may;
    }

    /// It stands still from here on, and was at nothing.
    pub(super) fn stand_still(&self) {
        let mut fate = self.0.lock().unwrap();
        if fate.state == State::Lives {
            fate.is_within = false;
            self.becomes(&mut fate, State::StandsStill);
        }
    }

    /// It goes on, and tells those that it has not told. Whether it was in the middle of something.
    pub(super) fn go_on(&self) -> bool {
        let mut fate = self.0.lock().unwrap();
        if fate.state == State::StandsStill {
            self.becomes(&mut fate, State::Lives);
            for device in std::mem::take(&mut fate.held) {
                device.send(()).ok();
            }
        }
        fate.is_within
    }

    pub(super) fn die(&self) {
        let mut fate = self.0.lock().unwrap();
        fate.held.clear();
        self.becomes(&mut fate, State::Dead);
    }

    /// Tells a device that its message is safe, now or when it goes on.
    fn tell(&self, device: oneshot::Sender<()>) {
        if !self.may(Effect::Ack) {
            return;
        }
        let mut fate = self.0.lock().unwrap();
        if fate.state == State::StandsStill {
            fate.held.push(device);
        } else {
            device.send(()).ok();
        }
    }

    /// A commit is done.
    async fn has_committed(&self) {
        {
            let mut fate = self.0.lock().unwrap();
            if let Some(next) = fate.next.take() {
                self.becomes(&mut fate, next);
            }
        }
        self.goes_on().await;
    }

    pub(super) fn is_dead(&self) -> bool {
        self.0.lock().unwrap().state == State::Dead
    }

    pub(super) fn stands_still(&self) -> bool {
        self.0.lock().unwrap().state == State::StandsStill
    }

    /// Commits so far.
    pub(super) fn commits(&self) -> u64 {
        self.0.lock().unwrap().commits
    }

    /// Returns when it has died.
    pub(super) async fn died(&self) {
        self.is(|state| state == State::Dead).await;
    }

    /// Returns when nothing is to be expected of it any more: it has died, or stands still.
    pub(super) async fn stops(&self) {
        self.is(|state| state != State::Lives).await;
    }

    /// Returns when it stands still.
    pub(super) async fn stands(&self) {
        self.is(|state| state == State::StandsStill).await;
    }

    /// Returns unless it stands still.
    pub(super) async fn goes_on(&self) {
        self.is(|state| state != State::StandsStill).await;
    }

    async fn is(&self, so: impl Fn(State) -> bool) {
        let mut state = self.1.subscribe();
        // The sender lives as long as this.
        state.wait_for(|state| so(*state)).await.unwrap();
    }
}

#[async_trait]
impl Watch for Process {
    async fn begins(&self) {
        self.goes_on().await;
    }

    fn may_commit(&self) -> bool {
        self.may(Effect::Commit)
    }

    async fn committed(&self) {
        self.has_committed().await;
    }
}

/// The same where the database itself asks at each commit.
pub(super) struct Pauses(pub(super) Process);

#[async_trait]
impl Watch for Pauses {
    async fn begins(&self) {
        self.0.goes_on().await;
    }

    fn may_commit(&self) -> bool {
        true
    }

    async fn committed(&self) {
        self.0.has_committed().await;
    }
}

/// Tells a device that its message is safe.
pub(super) struct Told {
    pub(super) process: Process,
    pub(super) device: Mutex<Option<oneshot::Sender<()>>>,
    /// It came in over a connection.
    pub(super) connection: bool,
}

impl AckSink for Told {
    fn committed(&self, _token: u64) {
        if let Some(device) = self.device.lock().unwrap().take() {
            self.process.tell(device);
        }
    }

    fn is_connection(&self) -> bool {
        self.connection
    }
}

/// A receiver of events that remembers them all, and once may not take one.
pub(super) struct Recorder {
    pub(super) process: Process,
    /// After how many events it takes none, once.
    pub(super) refuses: Mutex<Option<usize>>,
    pub(super) heard: watch::Sender<Vec<i64>>,
}

#[async_trait]
impl EventSink for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    async fn deliver(&self, event: &StoredEvent) -> Result<(), SinkError> {
        let heard = self.heard.borrow().len();
        let refused = self
            .refuses
            .lock()
            .unwrap()
            .take_if(|after| *after == heard);
        if refused.is_some() {
            return Err(SinkError("not now".to_owned()));
        }
        if self.process.may(Effect::Deliver) {
            self.heard.send_modify(|heard| heard.push(event.id));
            Ok(())
        } else {
            Err(SinkError("the process is dead".to_owned()))
        }
    }
}
