//! How the engine is.

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;

use crate::Engine;
use crate::ports::Clock;

/// How long an answer of the database and the object store stands: a flood of questions costs them one a second.
const STANDS: SignedDuration = SignedDuration::from_secs(1);

/// The state of what the engine depends on, and its counters.
#[derive(Debug, Clone)]
pub struct Health {
    /// The database answers, and takes writes as far as is known; what it said when not.
    pub database: Result<(), String>,
    /// The object store can be written to, and images get there; what it said when not.
    pub objects: Result<(), String>,
    /// Device messages that wait for the database.
    pub uplinks_waiting: usize,
    /// Counters: name, label, value.
    pub counters: Vec<(&'static str, &'static str, u64)>,
}

/// What database and object store answered last. Whoever asks while somebody else does waits for the same answer.
#[derive(Default)]
pub(crate) struct LastLook(Mutex<Option<Look>>);

#[derive(Clone)]
struct Look {
    at: Timestamp,
    database: Result<(), String>,
    objects: Result<(), String>,
}

impl Engine {
    /// Looks at everything.
    pub async fn health(&self) -> Health {
        let look = self.look().await;
        Health {
            database: look.database,
            objects: look.objects.and_then(|()| self.handover.check()),
            uplinks_waiting: self.uplinks.waiting(),
            counters: self.metrics.snapshot(),
        }
    }

    async fn look(&self) -> Look {
        let look = async || {
            let (database, objects) =
                futures_util::future::join(self.store.ping(), self.objects.ping()).await;
            Look {
                at: self.clock.now(),
                database: database.map_err(|error| error.to_string()),
                objects: objects.map_err(|error| with_causes(&error)),
            }
        };
        self.last_look.or(self.clock.as_ref(), look).await
    }
}

impl LastLook {
    /// What was seen last, while it stands; else another look.
    async fn or(&self, clock: &dyn Clock, look: impl AsyncFnOnce() -> Look) -> Look {
        let mut last = self.0.lock().await;
        let now = clock.now();
        // A clock that was set back makes nothing last longer.
        let stands = |look: &&Look| look.at <= now && now.duration_since(look.at) < STANDS;
        if let Some(look) = last.as_ref().filter(stands) {
            return look.clone();
        }
        last.insert(look().await).clone()
    }
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

    #[tokio::test]
    async fn a_flood_of_questions_costs_one_look_a_second() {
        let (last, clock) = (LastLook::default(), Hand(AtomicI64::new(10_000)));
        let looks = AtomicU32::new(0);
        let ask = async || {
            let look = async || {
                looks.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Look {
                    at: clock.now(),
                    database: Ok(()),
                    objects: Err("full".to_owned()),
                }
            };
            last.or(&clock, look).await
        };
        let all = futures_util::future::join_all((0..100).map(|_| ask())).await;
        assert!(all.iter().all(|look| look.objects.is_err()));
        let mut seen = vec![looks.load(Ordering::Relaxed)];
        for now in [10_999, 11_000, 11_999, 5_000] {
            clock.0.store(now, Ordering::Relaxed);
            ask().await;
            seen.push(looks.load(Ordering::Relaxed));
        }
        assert_eq!(
            seen,
            [1, 1, 2, 2, 3],
            "a clock that is set back ends it, too"
        );
    }
}
