//! What is remembered of many, in bounded memory: when there is no room, what has not been put in for longest is forgotten.

use std::collections::HashMap;
use std::hash::Hash;

/// A map of at most `most` entries, in two halves: when the younger one is full, the older one is forgotten and the younger
/// takes its place.
pub(super) struct Remembered<K, V> {
    half: usize,
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Hash + Eq + Clone, V> Remembered<K, V> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            half: most / 2,
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// Whether it would be forgotten among the last.
    pub(super) fn is_young(&self, key: &K) -> bool {
        self.young.contains_key(key)
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// Does something with what is known of a key, or what `new` makes; it is forgotten among the last from now on.
    pub(super) fn renew<R>(
        &mut self,
        key: &K,
        new: impl FnOnce() -> V,
        then: impl FnOnce(&V) -> R,
    ) -> R {
        if let Some(known) = self.young.get(key) {
            return then(known);
        }
        let value = self.old.remove(key).unwrap_or_else(new);
        let done = then(&value);
        self.put(key.clone(), value);
        done
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub(super) fn forget(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_makes_nobody_forgotten_who_shows_up_now_and_then() {
        let mut known = Remembered::new(8);
        known.put(0, "regular");
        known.put(1, "once");
        for stranger in 2..100 {
            known.put(stranger, "stranger");
            if stranger % 3 == 0 && !known.is_young(&0) {
                known.put(0, "regular");
            }
            assert_eq!(known.get(&0), Some(&"regular"), "at {stranger}");
            assert!(known.young.len() + known.old.len() <= 8);
        }
        assert_eq!(known.get(&1), None);
        known.forget(&0);
        assert_eq!(known.get(&0), None);
    }
}
