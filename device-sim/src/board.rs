//! What is known of each device while a fleet runs: one seat a device, which the device itself
//! keeps up to date and the fleet looks at; and the totals of all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use device_ota_protocol::messages::Phase;
use serde::Serialize;

/// Most ended updates remembered of a device: a run sees a few, a test of restarts some more.
const MAX_FINALS: usize = 32;
/// Most violations kept as text; all are counted.
const MAX_VIOLATIONS: usize = 100;

/// One device as the others see it.
#[derive(Debug, Clone, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, each set by another event"
)]
pub struct Seat {
    /// Whether it is connected.
    pub online: bool,
    /// Whether it ever was.
    pub seen: bool,
    /// Whether it left for good, as some faults will have it.
    pub gone: bool,
    /// Whether its fault took effect.
    pub fault_fired: bool,
    /// What it runs.
    pub version: String,
    /// Whether that image has passed its health check.
    pub confirmed: bool,
    /// The phase of the update it is in.
    pub live: Option<Phase>,
    /// The phase it reported last, of whatever update.
    pub last: Option<Phase>,
    /// Its updates that ended.
    pub finals: Vec<Final>,
}

/// How an update ended by the device's own word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Final {
    /// Which update.
    pub update_id: String,
    /// Which attempt at it.
    pub attempt: u32,
    /// How.
    pub phase: Phase,
    /// Whether the service acknowledged the report.
    pub acknowledged: bool,
    /// Whether the report was a lie.
    pub lie: bool,
}

impl Seat {
    /// Whether the service has the last word this device had to say.
    pub fn is_heard(&self) -> bool {
        self.finals.last().is_none_or(|last| last.acknowledged)
    }

    /// Notes that an update ended, or that the service heard of it.
    pub fn note_final(&mut self, new: Final) {
        let known = self
            .finals
            .iter_mut()
            .find(|known| (&known.update_id, known.attempt) == (&new.update_id, new.attempt));
        if let Some(known) = known {
            known.acknowledged |= new.acknowledged;
            known.phase = new.phase;
        } else {
            if self.finals.len() >= MAX_FINALS {
                self.finals.remove(0);
            }
            self.finals.push(new);
        }
    }
}

/// A number that every device adds to.
#[derive(Debug, Default)]
pub struct Total(AtomicU64);

impl Total {
    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Adds some.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Serialize for Total {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.get())
    }
}

/// Sums over the fleet.
#[derive(Debug, Default, Serialize)]
pub struct Totals {
    /// Connections made.
    pub connects: Total,
    /// Connections that the service or the network ended.
    pub lost_connections: Total,
    /// Attempts at connecting that failed.
    pub failed_connects: Total,
    /// Attempts that were refused for their credentials.
    pub refused_connects: Total,
    /// Offers that came.
    pub offers: Total,
    /// Offers that took the place of an update under way.
    pub superseded: Total,
    /// Commands that came.
    pub commands: Total,
    /// Progress reports sent.
    pub reports: Total,
    /// Heartbeats sent.
    pub heartbeats: Total,
    /// Checks sent.
    pub checks: Total,
    /// Publishes acknowledged.
    pub acknowledged: Total,
    /// Publishes acknowledged with a refusal.
    pub refused: Total,
    /// Bytes that came over HTTP.
    pub http_bytes: Total,
    /// Bytes that came in MQTT chunks.
    pub chunk_bytes: Total,
    /// Chunk requests that had to be repeated.
    pub chunk_repeats: Total,
    /// Downloads begun or gone on with.
    pub downloads: Total,
    /// Restarts.
    pub reboots: Total,
    /// Restarts into an image that was there already.
    pub flips: Total,
}

/// All seats and totals of a fleet.
#[derive(Debug, Default)]
pub struct Board {
    /// Sums.
    pub totals: Totals,
    seats: Vec<Mutex<Seat>>,
    ignored: Mutex<BTreeMap<&'static str, u64>>,
    violations: Mutex<(u64, Vec<String>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// A board for so many devices.
    pub fn new(devices: usize) -> Self {
        Self {
            seats: (0..devices).map(|_| Mutex::default()).collect(),
            ..Self::default()
        }
    }

    /// Changes a device's seat.
    pub fn update(&self, device: usize, change: impl FnOnce(&mut Seat)) {
        if let Some(seat) = self.seats.get(device) {
            change(&mut lock(seat));
        }
    }

    /// Looks at each seat in turn.
    pub fn each(&self, mut look: impl FnMut(usize, &Seat)) {
        for (index, seat) in self.seats.iter().enumerate() {
            look(index, &lock(seat));
        }
    }

    /// Counts a message that an agent did not act upon.
    pub fn count_ignored(&self, why: &'static str) {
        *lock(&self.ignored).entry(why).or_default() += 1;
    }

    /// Messages that agents did not act upon, by reason.
    pub fn ignored(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.ignored).clone()
    }

    /// Notes that the service broke a promise.
    pub fn violation(&self, text: String) {
        tracing::error!(text, "violation");
        let mut violations = lock(&self.violations);
        violations.0 += 1;
        if violations.1.len() < MAX_VIOLATIONS {
            violations.1.push(text);
        }
    }

    /// How many promises were broken, and the first of them in words.
    pub fn violations(&self) -> (u64, Vec<String>) {
        lock(&self.violations).clone()
    }
}
