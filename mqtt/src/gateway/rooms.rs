//! Bounded room for connections that are nobody's yet, and for those that are nobody's any more. Who stays longest
//! leaves first, so that idle or lingering strangers, however many, keep no device out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{AbortHandle, AbortRegistration, Abortable};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// Time that everybody gets for a CONNECT, however many wait behind: its bytes are on their way when a connection is
/// accepted, and our own tasks need a turn to read them.
pub(super) const PATIENCE_WITH_CONNECT: Duration = Duration::from_millis(100);
/// The same with a handshake before it: round trips, and the arithmetic of a small device.
pub(super) const PATIENCE_WITH_HANDSHAKE: Duration = Duration::from_secs(2);

/// Connections in the order in which they came, each of which can be told to leave.
#[derive(Default)]
struct Queue(Mutex<Order>);

#[derive(Default)]
struct Order {
    last: u64,
    guests: BTreeMap<u64, Guest>,
}

struct Guest {
    since: Instant,
    leave: AbortHandle,
}

impl Queue {
    fn order(&self) -> MutexGuard<'_, Order> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self) -> (u64, AbortRegistration) {
        let (leave, registration) = AbortHandle::new_pair();
        let since = Instant::now();
        let mut order = self.order();
        order.last += 1;
        let number = order.last;
        order.guests.insert(number, Guest { since, leave });
        (number, registration)
    }

    /// Leaves of its own will; false when it was told to.
    fn leave(&self, number: u64) -> bool {
        self.order().guests.remove(&number).is_some()
    }

    fn oldest_since(&self) -> Option<Instant> {
        let order = self.order();
        order.guests.first_key_value().map(|(_, guest)| guest.since)
    }

    fn tell_oldest_to_leave(&self) -> bool {
        let oldest = self.order().guests.pop_first();
        oldest.is_some_and(|(_, guest)| {
            guest.leave.abort();
            true
        })
    }

    fn len(&self) -> usize {
        self.order().guests.len()
    }
}

/// Where the connections of one listener wait until it is known whose they are.
pub(super) struct Lobby {
    places: Arc<Semaphore>,
    /// Those that have not sent their CONNECT. Whoever has is being looked up, and is not told to leave.
    strangers: Queue,
    /// Time that everybody gets, however many wait behind.
    patience: Duration,
}

impl Lobby {
    pub(super) fn new(places: usize, patience: Duration) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places.max(1))),
            strangers: Queue::default(),
            patience,
        }
    }

    /// A place; when there is none left, that of the oldest stranger.
    pub(super) async fn enter(self: &Arc<Self>) -> Place {
        let permit = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => self.free_place().await,
        };
        let (number, registration) = self.strangers.join();
        Place {
            lobby: Arc::clone(self),
            number,
            registration: Some(registration),
            _permit: permit,
        }
    }

    /// The semaphore is never closed, so there is always a permit in the end.
    async fn free_place(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.places).acquire_owned();
        tokio::pin!(place);
        while let Some(since) = self.strangers.oldest_since() {
            let patience = since + self.patience;
            match timeout_at(patience, &mut place).await {
                Ok(permit) => return permit.ok(),
                // Another may be the oldest by now.
                Err(_) if self.strangers.oldest_since() != Some(since) => {}
                Err(_) => {
                    self.strangers.tell_oldest_to_leave();
                    break;
                }
            }
        }
        // It leaves at once; or all are being looked up, which ends in time.
        place.await.ok()
    }
}

/// A place in the lobby, until dropped.
pub(super) struct Place {
    lobby: Arc<Lobby>,
    number: u64,
    registration: Option<AbortRegistration>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Runs what makes a stranger known. `None`: the place was needed.
    pub(super) async fn while_unknown<T>(
        &mut self,
        introduction: impl Future<Output = T>,
    ) -> Option<T> {
        let registration = self.registration.take()?;
        let done = Abortable::new(introduction, registration).await.ok()?;
        self.lobby.strangers.leave(self.number).then_some(done)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lobby.strangers.leave(self.number);
    }
}

/// Where connections stay for a moment after their end, until the peer has read why. Beyond so many, the oldest is closed:
/// it has had its time, and its word has been sent.
pub(super) struct Porch {
    guests: Queue,
    places: usize,
}

impl Porch {
    pub(super) fn new(places: usize) -> Self {
        Self {
            guests: Queue::default(),
            places: places.max(1),
        }
    }

    /// Runs a good-bye, as long as there is room. False: it was cut short.
    pub(super) async fn linger(&self, good_bye: impl Future<Output = ()>) -> bool {
        while self.guests.len() >= self.places && self.guests.tell_oldest_to_leave() {}
        let (number, registration) = self.guests.join();
        let _leaves = Leaves(&self.guests, number);
        Abortable::new(good_bye, registration).await.is_ok()
    }
}

struct Leaves<'a>(&'a Queue, u64);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}
