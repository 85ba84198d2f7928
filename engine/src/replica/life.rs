//! Which replicas live: those that have said so lately, by the clock of who looks, so that clocks that differ kill nobody.

use std::collections::HashMap;

use jiff::Timestamp;

use super::ALIVE;
use crate::ports::replicas::{Replica, ReplicaKey};

/// What was last heard of each, and since when it has been so.
#[derive(Default)]
pub(super) struct Life {
    heard: HashMap<ReplicaKey, (Timestamp, Timestamp)>,
    last_look: Option<Timestamp>,
}

impl Life {
    /// Those that have said nothing new for too long.
    pub(super) fn look(&mut self, all: &[Replica], now: Timestamp) -> Vec<Replica> {
        // Whoever has not looked does not know: it stood still itself, or its clock was set.
        let looked = |last: Timestamp| last <= now && now.duration_since(last) < ALIVE;
        if !self.last_look.is_some_and(looked) {
            self.heard.clear();
        }
        self.last_look = Some(now);
        self.heard
            .retain(|key, _| all.iter().any(|one| one.key == *key));
        let mut dead = Vec::new();
        for replica in all {
            let heard = self.heard.entry(replica.key);
            let (said, since) = heard.or_insert((replica.alive_until, now));
            if *said != replica.alive_until {
                (*said, *since) = (replica.alive_until, now);
            } else if now.duration_since(*since) >= ALIVE {
                dead.push(replica.clone());
            }
        }
        dead
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn said(key: i64, alive_until: i64) -> Replica {
        Replica {
            key: ReplicaKey(key),
            name: String::new(),
            trust: Vec::new(),
            shares_images: true,
            alive_until: at(alive_until),
        }
    }

    #[test]
    fn who_says_nothing_new_for_long_is_dead_whatever_its_clock_says() {
        let mut life = Life::default();
        // The clock of the one is an hour behind, that of the other an hour ahead.
        for now in [0, 5, 10] {
            let all = [said(1, now - 3_600), said(2, 3_600)];
            assert_eq!(life.look(&all, at(now)), []);
        }
        let all = [said(1, 15 - 3_600), said(2, 3_600)];
        assert_eq!(life.look(&all, at(15)), [said(2, 3_600)]);
    }

    #[test]
    fn who_stood_still_itself_calls_nobody_dead() {
        let mut life = Life::default();
        assert_eq!(life.look(&[said(1, 15)], at(0)), []);
        assert_eq!(life.look(&[said(1, 15)], at(60)), []);
        assert_eq!(life.look(&[said(1, 15)], at(70)), []);
        assert_eq!(life.look(&[said(1, 15)], at(75)), [said(1, 15)]);
        assert_eq!(
            life.look(&[said(1, 15)], at(-75)),
            [],
            "a clock that was set"
        );
    }
}
