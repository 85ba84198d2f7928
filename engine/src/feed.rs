//! The feed: the outbox as it grows, for readers that come and go. One reader follows its end and hands what it finds to
//! everybody who listens; whoever comes back, or falls behind, reads the outbox itself from its own place until it has
//! caught up. So nobody waits for anybody, and what is in memory is bounded whatever a reader does.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use device_ota_domain::event::{EventFilter, StoredEvent};
use tokio::sync::{Notify, broadcast};

use crate::Engine;
use crate::ports::StoreError;

/// Readers at a time. Each holds a connection of the HTTP listener, and at most one page of events.
pub const MAX_READERS: usize = 64;
/// Readers at a time of one subject, so that a page that is opened again and again leaves room for others.
pub const MAX_READERS_OF_SUBJECT: usize = 8;
/// Events read at once.
const PAGE: u32 = 256;
/// Pages that a reader may lie behind the end before it has to read the outbox itself; some 2 MiB, shared by all.
const PAGES_AT_HAND: usize = 16;
/// Pause between two looks at the end of the outbox, while somebody listens.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The same after the database did not answer.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Why there is no room for another reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// This subject has as many as one may have.
    #[error("this subject has {MAX_READERS_OF_SUBJECT} event streams open; close one first")]
    Subject,
    /// All places are taken.
    #[error("all {MAX_READERS} event streams are taken; try again later")]
    Everybody,
}

/// Why nobody can read now.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no room.
    #[error(transparent)]
    Full(#[from] Full),
    /// The database did not say where the outbox ends.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a reader is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// An event that its filter lets through.
    Event(StoredEvent),
    /// Events may be missing: those behind the reader's place are no longer kept, or the place is not one of this outbox.
    Gap {
        /// The place that it came with.
        place: i64,
        /// Where it goes on: everything behind this id follows.
        resumes_after: i64,
    },
}

/// A run of the outbox without holes.
#[derive(Debug)]
struct Page {
    /// It begins behind this id.
    after: i64,
    events: Vec<StoredEvent>,
}

/// Where readers meet the one that follows the outbox.
pub(crate) struct Feed {
    pages: broadcast::Sender<Arc<Page>>,
    seats: Mutex<HashMap<Arc<str>, usize>>,
    listened_to: Notify,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            pages: broadcast::Sender::new(PAGES_AT_HAND),
            seats: Mutex::default(),
            listened_to: Notify::new(),
        }
    }
}

/// Follows the outbox while somebody listens.
pub(crate) async fn run(engine: Arc<Engine>) {
    // `None`: nobody listened, and what happened meanwhile is nobody's business here.
    let mut place = None;
    loop {
        if engine.feed.pages.receiver_count() == 0 {
            place = None;
            engine.feed.listened_to.notified().await;
        }
        let pause = match follow(&engine, &mut place).await {
            Ok(true) => continue,
            Ok(false) => LOOK_EVERY,
            Err(error) => {
                tracing::debug!(%error, "the feed waits for the database");
                LOOK_AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Hands out one page; true when there may be more.
async fn follow(engine: &Engine, place: &mut Option<i64>) -> Result<bool, StoreError> {
    let after = if let Some(place) = *place {
        place
    } else {
        let after = newest(engine).await?;
        // Whoever looked before that, and saw less, hears now that there is more to read.
        let events = Vec::new();
        let _ = engine.feed.pages.send(Arc::new(Page { after, events }));
        after
    };
    *place = Some(after);
    let events = engine.store.events_after(after, PAGE).await?;
    let full = events.len() == PAGE as usize;
    if let Some(last) = events.last() {
        *place = Some(last.id);
        // Nobody may be there to take it any more.
        let _ = engine.feed.pages.send(Arc::new(Page { after, events }));
    }
    Ok(full)
}

async fn newest(engine: &Engine) -> Result<i64, StoreError> {
    let kept = engine.store.events_kept().await?;
    Ok(kept.map_or(0, |kept| kept.newest))
}

/// A reader's right to be there, given back when it goes.
struct Seat {
    engine: Arc<Engine>,
    subject: Arc<str>,
}

impl Seat {
    fn take(engine: &Arc<Engine>, subject: &str) -> Result<Self, Full> {
        let mut seats = engine.feed.seats();
        if seats.values().sum::<usize>() >= MAX_READERS {
            return Err(Full::Everybody);
        }
        let subject: Arc<str> = subject.into();
        let taken = seats.entry(subject.clone()).or_default();
        if *taken >= MAX_READERS_OF_SUBJECT {
            return Err(Full::Subject);
        }
        *taken += 1;
        drop(seats);
        Ok(Self {
            engine: engine.clone(),
            subject,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.engine.feed.seats();
        if let Some(taken) = seats.get_mut(&self.subject) {
            *taken -= 1;
            if *taken == 0 {
                seats.remove(&self.subject);
            }
        }
    }
}

impl Feed {
    fn seats(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readers now.
    pub(crate) fn readers(&self) -> usize {
        self.seats().values().sum()
    }
}

/// One reader of the feed.
pub struct Reader {
    seat: Seat,
    filter: EventFilter,
    /// It has seen every event up to this one.
    place: i64,
    /// `None` while it reads the outbox itself.
    live: Option<broadcast::Receiver<Arc<Page>>>,
    ready: VecDeque<StoredEvent>,
}

impl Engine {
    /// Begins to read the feed, behind the event of that id, or with what comes from this very moment on.
    pub async fn read_feed(
        self: &Arc<Self>,
        subject: &str,
        filter: EventFilter,
        after: Option<i64>,
    ) -> Result<Reader, ReadError> {
        let seat = Seat::take(self, subject)?;
        let place = match after {
            Some(place) => place,
            None => newest(self).await?,
        };
        Ok(Reader {
            seat,
            filter,
            place,
            live: None,
            ready: VecDeque::new(),
        })
    }
}

impl Reader {
    /// The event up to which everything was told or not wanted.
    pub fn place(&self) -> i64 {
        self.ready.front().map_or(self.place, |next| next.id - 1)
    }

    /// The next that there is to tell; waits for it. Nothing is lost when it is dropped while it waits.
    pub async fn next(&mut self) -> Result<Told, StoreError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Told::Event(event));
            }
            let gap = match &mut self.live {
                None => self.catch_up().await?,
                Some(pages) => {
                    let page = pages.recv().await;
                    self.take(page.ok());
                    None
                }
            };
            if let Some(gap) = gap {
                return Ok(gap);
            }
        }
    }

    /// Reads one page of the outbox, and listens from then on when there was no more.
    async fn catch_up(&mut self) -> Result<Option<Told>, StoreError> {
        let engine = self.seat.engine.clone();
        let place = self.place;
        // First listen, then look: what is committed in between is seen twice rather than not at all.
        let live = engine.feed.pages.subscribe();
        engine.feed.listened_to.notify_one();
        let events = engine.store.events_after(place, PAGE).await?;
        // After the look: what was let go before it is found missing here.
        if let Some(resumes_after) = gap(&engine, place).await? {
            self.place = resumes_after;
            return Ok(Some(Told::Gap {
                place,
                resumes_after,
            }));
        }
        if events.len() < PAGE as usize {
            self.live = Some(live);
        }
        self.keep(events.iter());
        Ok(None)
    }

    /// Takes what the one that follows the outbox has found; what does not join on to the place makes it catch up by
    /// itself, and so does having missed some.
    fn take(&mut self, page: Option<Arc<Page>>) {
        let place = self.place;
        match page {
            Some(page) if page.after <= place => {
                self.keep(page.events.iter().filter(|event| event.id > place));
            }
            _ => self.live = None,
        }
    }

    fn keep<'e>(&mut self, events: impl Iterator<Item = &'e StoredEvent>) {
        for event in events {
            self.place = event.id;
            if self.filter.matches(event) {
                self.ready.push_back(event.clone());
            }
        }
    }
}

/// Where a reader goes on that may have missed something; `None` when everything behind its place is kept.
async fn gap(engine: &Engine, place: i64) -> Result<Option<i64>, StoreError> {
    let kept = engine.store.events_kept().await?;
    let (before, newest) = kept.map_or((0, 0), |kept| (kept.oldest - 1, kept.newest));
    // A place beyond the newest is of another database, or of this one before it was taken back to an older state.
    Ok((place < before || place > newest).then_some(before))
}
