//! How the engine is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::Engine;
use crate::ports::Clock;
use crate::replica::Standing;

/// How long an answer of the database and the object store stands: a flood of questions costs them one a second.
const STANDS: SignedDuration = SignedDuration::from_secs(1);
/// How long whoever asks waits for a part that is silent. Whoever asks later while it still is does not wait at all.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a part that is silent counts as it was before: one that is busy is not away.
const BELIEVED: Duration = Duration::from_secs(5);
/// How long a look at a part goes on that nobody waits for any more, until another one takes its place.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// The state of what the engine depends on, and its counters.
#[derive(Debug, Clone)]
pub struct Health {
    /// The database answers, and takes writes as far as is known; what it said when not.
    pub database: Result<(), String>,
    /// The object store can be written to, and images get there; what it said when not.
    pub objects: Result<(), String>,
    /// This process among the replicas on the database, some seconds old; `None`: it has not begun as one.
    pub replicas: Option<Standing>,
    /// Device messages that wait for the database.
    pub uplinks_waiting: usize,
    /// Counters: name, label, value.
    pub counters: Vec<(&'static str, &'static str, u64)>,
}

/// What database and object store answered last.
pub(crate) struct LastLooks {
    database: LastLook,
    objects: LastLook,
}

/// Whether a part answers as it should; what it said when not.
type State = Result<(), String>;

/// What one part answered last, or is being asked. Whoever asks while somebody else does waits for the same answer.
struct LastLook {
    part: &'static str,
    last: Mutex<Option<Look>>,
}

/// One look at a part. It goes on by itself, whether anybody still waits for it or not.
#[derive(Clone)]
struct Look {
    began: Instant,
    /// What was known before.
    before: Option<Answer>,
    /// `None`: there is no answer yet.
    answer: watch::Receiver<Option<Answer>>,
}

#[derive(Clone)]
struct Answer {
    at: Timestamp,
    heard: Instant,
    state: State,
}

impl Engine {
    /// Looks at everything, within a second also where a part is silent.
    pub async fn health(&self) -> Health {
        let (store, objects) = (Arc::clone(&self.store), Arc::clone(&self.objects));
        let database = async move { store.ping().await.map_err(|error| error.to_string()) };
        let objects = async move { objects.ping().await.map_err(|error| with_causes(&error)) };
        let (database, objects) = futures_util::future::join(
            self.last_looks.database.or(&self.clock, database),
            self.last_looks.objects.or(&self.clock, objects),
        )
        .await;
        Health {
            database,
            objects: objects.and_then(|()| self.handover.check()),
            replicas: self.membership.standing(),
            uplinks_waiting: self.uplinks.waiting(),
            counters: self.metrics.snapshot(),
        }
    }
}

impl Default for LastLooks {
    fn default() -> Self {
        Self {
            database: LastLook::at("the database"),
            objects: LastLook::at("the storage of images"),
        }
    }
}

impl LastLook {
    const fn at(part: &'static str) -> Self {
        Self {
            part,
            last: Mutex::new(None),
        }
    }

    /// What was seen last, while it stands; else what another look shows, or what there is to say while that one has no answer.
    async fn or(
        &self,
        clock: &Arc<dyn Clock>,
        ask: impl Future<Output = State> + Send + 'static,
    ) -> State {
        let mut look = self.current(clock, ask);
        let until = look.began + PATIENCE;
        let told = timeout_at(until, look.answer.wait_for(Option::is_some)).await;
        // Without an answer also when the task that asks has died.
        let told = told.ok().and_then(Result::ok).and_then(|told| told.clone());
        told.map_or_else(|| look.meanwhile(self.part), |answer| answer.state)
    }

    /// The look that stands or is under way, or a new one.
    fn current(
        &self,
        clock: &Arc<dyn Clock>,
        ask: impl Future<Output = State> + Send + 'static,
    ) -> Look {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock.now();
        if let Some(look) = last.as_ref().filter(|look| look.stands(now)) {
            return look.clone();
        }
        let (tell, answer) = watch::channel(None);
        let (clock, part) = (Arc::clone(clock), self.part);
        tokio::spawn(async move {
            let asked = timeout(GIVEN_UP, ask).await;
            let state = asked.unwrap_or_else(|_| Err(silent(part, GIVEN_UP)));
            tell.send_replace(Some(Answer {
                at: clock.now(),
                heard: Instant::now(),
                state,
            }));
        });
        let before = last.take().and_then(Look::known);
        let began = Instant::now();
        last.insert(Look {
            began,
            before,
            answer,
        })
        .clone()
    }
}

impl Look {
    fn stands(&self, now: Timestamp) -> bool {
        match &*self.answer.borrow() {
            // A clock that was set back makes nothing last longer.
            Some(answer) => answer.at <= now && now.duration_since(answer.at) < STANDS,
            // It is under way, unless its task has died.
            None => self.answer.has_changed().is_ok(),
        }
    }

    fn known(self) -> Option<Answer> {
        let told = self.answer.borrow().clone();
        told.or(self.before)
    }

    /// What there is to say while there is no answer.
    fn meanwhile(&self, part: &str) -> State {
        match &self.before {
            Some(before) if before.heard.elapsed() < BELIEVED => before.state.clone(),
            _ => Err(silent(part, self.began.elapsed())),
        }
    }
}

fn silent(part: &str, since: Duration) -> String {
    format!("{part} has not answered for {} s", since.as_secs().max(1))
}

/// An error and its causes, the ones that its text tells of already left out.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = error.source();
    }
    told
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

    use super::*;

    struct Hand(AtomicI64);
    impl Clock for Hand {
        fn now(&self) -> Timestamp {
            Timestamp::from_millisecond(self.0.load(Ordering::Relaxed)).unwrap()
        }
    }

    fn clock() -> (Arc<Hand>, Arc<dyn Clock>) {
        let hand = Arc::new(Hand(AtomicI64::new(10_000)));
        (hand.clone(), hand)
    }

    #[tokio::test]
    async fn a_flood_of_questions_costs_one_look_a_second() {
        let (last, (hand, clock)) = (LastLook::at("it"), clock());
        let looks = Arc::new(AtomicU32::new(0));
        let ask = async || {
            let counted = looks.clone();
            let look = async move {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Err("full".to_owned())
            };
            last.or(&clock, look).await
        };
        let all = futures_util::future::join_all((0..100).map(|_| ask())).await;
        assert!(all.iter().all(Result::is_err));
        let mut seen = vec![looks.load(Ordering::Relaxed)];
        for now in [10_999, 11_000, 11_999, 5_000] {
            hand.0.store(now, Ordering::Relaxed);
            let _ = ask().await;
            seen.push(looks.load(Ordering::Relaxed));
        }
        assert_eq!(
            seen,
            [1, 1, 2, 2, 3],
            "a clock that is set back ends it, too"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_is_silent_holds_up_nobody_for_longer_than_a_second() {
        let (last, (hand, clock)) = (LastLook::at("it"), clock());
        let waits = async || {
            let asked = Instant::now();
            let state = last.or(&clock, std::future::pending()).await;
            (state, asked.elapsed())
        };
        let silent = |seconds: u32| Err(format!("it has not answered for {seconds} s"));
        let all = futures_util::future::join_all((0..3).map(|_| waits())).await;
        for (state, waited) in all {
            assert_eq!(state, silent(1));
            assert!(waited < PATIENCE * 2, "{waited:?}");
        }
        tokio::time::advance(PATIENCE * 2).await;
        let (state, waited) = waits().await;
        assert_eq!(state, silent(3));
        assert!(waited < PATIENCE / 10, "it is known: {waited:?}");
        // Another look, which has an answer.
        tokio::time::sleep(GIVEN_UP).await;
        hand.0.store(12_000, Ordering::Relaxed);
        assert_eq!(last.or(&clock, async { Ok(()) }).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_is_busy_is_as_it_was_for_a_few_seconds() {
        let (last, (hand, clock)) = (LastLook::at("it"), clock());
        assert_eq!(last.or(&clock, async { Ok(()) }).await, Ok(()));
        hand.0.store(11_000, Ordering::Relaxed);
        let asked = Instant::now();
        assert_eq!(last.or(&clock, std::future::pending()).await, Ok(()));
        assert!(asked.elapsed() < PATIENCE * 2);
        tokio::time::advance(BELIEVED).await;
        let state = last.or(&clock, std::future::pending()).await;
        assert!(state.is_err());
    }
}
