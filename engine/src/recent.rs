//! What was learnt of a secret a moment ago, in bounded memory. Secrets are kept as hashes alone.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use sha2::Digest as _;

/// A secret's SHA-256.
pub(crate) type Hash = [u8; 32];

/// The SHA-256 of a secret.
pub(crate) fn hash(secret: &str) -> Hash {
    sha2::Sha256::digest(secret).into()
}

/// Answers by the hash of what was asked, each good until its time.
#[derive(Debug)]
pub(crate) struct Recent<V> {
    most: usize,
    known: Mutex<Known<V>>,
}

#[derive(Debug)]
struct Known<V> {
    entries: HashMap<Hash, Entry<V>>,
    /// Rises whenever everything is forgotten: what was asked before may be what was taken back.
    cleared: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    from: Timestamp,
    until: Timestamp,
}

impl<V: Clone> Recent<V> {
    /// Remembers at most `most` answers.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            known: Mutex::new(Known {
                entries: HashMap::new(),
                cleared: 0,
            }),
        }
    }

    fn locked(&self) -> MutexGuard<'_, Known<V>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often everything was forgotten; to be read before asking, for [`Recent::put_unless_cleared`].
    pub(crate) fn cleared(&self) -> u64 {
        self.locked().cleared
    }

    /// The answer, while it is good. A clock that was set back ends it too.
    pub(crate) fn get(&self, hash: &Hash, now: Timestamp) -> Option<V> {
        let known = self.locked();
        let entry = known.entries.get(hash)?;
        (entry.from..entry.until)
            .contains(&now)
            .then(|| entry.value.clone())
    }

    /// Remembers an answer until a time. Where there is no room, what has ended goes first, then everything.
    pub(crate) fn put(&self, hash: Hash, value: V, now: Timestamp, until: Timestamp) {
        self.locked().put(self.most, hash, value, (now, until));
    }

    /// The same for what was asked since `cleared`; nothing happens when everything was forgotten meanwhile.
    pub(crate) fn put_unless_cleared(
        &self,
        cleared: u64,
        hash: Hash,
        value: V,
        times: (Timestamp, Timestamp),
    ) {
        let mut known = self.locked();
        if known.cleared == cleared {
            known.put(self.most, hash, value, times);
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        let mut known = self.locked();
        known.entries.clear();
        known.cleared += 1;
    }
}

impl<V> Known<V> {
    fn put(&mut self, most: usize, hash: Hash, value: V, (from, until): (Timestamp, Timestamp)) {
        let (entries, now) = (&mut self.entries, from);
        if entries.len() >= most && !entries.contains_key(&hash) {
            entries.retain(|_, entry| now < entry.until);
            if entries.len() >= most {
                entries.clear();
            }
        }
        entries.insert(hash, Entry { value, from, until });
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn an_answer_is_good_for_its_time_and_a_clock_set_back_ends_it() {
        let recent = Recent::new(2);
        recent.put(hash("a"), 1, at(10), at(15));
        let seen = |second| recent.get(&hash("a"), at(second));
        assert_eq!([9, 10, 14, 15].map(seen), [None, Some(1), Some(1), None]);
        assert_eq!(recent.get(&hash("b"), at(10)), None);
        recent.clear();
        assert_eq!(seen(10), None);
    }

    #[test]
    fn an_answer_to_what_was_asked_before_everything_was_forgotten_is_not_kept() {
        let recent = Recent::new(2);
        let asked = recent.cleared();
        recent.clear();
        recent.put_unless_cleared(asked, hash("a"), 1, (at(10), at(15)));
        assert_eq!(recent.get(&hash("a"), at(11)), None);
        recent.put_unless_cleared(recent.cleared(), hash("a"), 1, (at(10), at(15)));
        assert_eq!(recent.get(&hash("a"), at(11)), Some(1));
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let recent = Recent::new(2);
        recent.put(hash("ended"), 0, at(0), at(1));
        recent.put(hash("good"), 1, at(0), at(9));
        recent.put(hash("new"), 2, at(2), at(9));
        assert_eq!(
            recent.get(&hash("good"), at(2)),
            Some(1),
            "what has ended goes first"
        );
        recent.put(hash("newer"), 3, at(2), at(9));
        assert_eq!(recent.locked().entries.len(), 1);
        assert_eq!(recent.get(&hash("newer"), at(2)), Some(3));
    }
}
