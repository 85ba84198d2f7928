//! What was learnt of a secret a moment ago, in bounded memory. Secrets are kept as hashes alone.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

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
    entries: Mutex<HashMap<Hash, Entry<V>>>,
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
            entries: Mutex::default(),
        }
    }

    /// The answer, while it is good. A clock that was set back ends it too.
    pub(crate) fn get(&self, hash: &Hash, now: Timestamp) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(hash)?;
        (entry.from..entry.until)
            .contains(&now)
            .then(|| entry.value.clone())
    }

    /// Remembers an answer until a time. Where there is no room, what has ended goes first, then everything.
    pub(crate) fn put(&self, hash: Hash, value: V, now: Timestamp, until: Timestamp) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.most && !entries.contains_key(&hash) {
            entries.retain(|_, entry| now < entry.until);
            if entries.len() >= self.most {
                entries.clear();
            }
        }
        let from = now;
        entries.insert(hash, Entry { value, from, until });
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
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
        assert_eq!(recent.entries.lock().unwrap().len(), 1);
        assert_eq!(recent.get(&hash("newer"), at(2)), Some(3));
    }
}
