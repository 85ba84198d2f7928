//! Places for what there must not be too much of at once, so that nobody can hold all of them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many places each holder has; as many entries as there are places, at most.
pub(crate) struct Places<K> {
    most: usize,
    most_of_one: usize,
    taken: Mutex<Taken<K>>,
}

struct Taken<K> {
    all: usize,
    of: HashMap<K, usize>,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// All are taken.
    All,
    /// This holder has as many as it may.
    One,
}

/// One place, given back when it is dropped.
pub(crate) struct Place<K: Hash + Eq> {
    places: Arc<Places<K>>,
    holder: K,
}

impl<K: Hash + Eq + Clone> Places<K> {
    /// At most `most` places, and of them `most_of_one` for one holder.
    pub(crate) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        let taken = Taken {
            all: 0,
            of: HashMap::new(),
        };
        Arc::new(Self {
            most,
            most_of_one,
            taken: Mutex::new(taken),
        })
    }

    /// One more place for this holder, if there is one.
    pub(crate) fn take(self: &Arc<Self>, holder: K) -> Result<Place<K>, Full> {
        let mut taken = self.locked();
        let has = taken.of.get(&holder).copied().unwrap_or(0);
        if has >= self.most_of_one {
            return Err(Full::One);
        }
        if taken.all >= self.most {
            return Err(Full::All);
        }
        taken.all += 1;
        taken.of.insert(holder.clone(), has + 1);
        let places = Arc::clone(self);
        Ok(Place { places, holder })
    }
}

impl<K> Places<K> {
    fn locked(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.locked();
        taken.all -= 1;
        if let Some(has) = taken.of.get_mut(&self.holder) {
            *has -= 1;
            if *has == 0 {
                taken.of.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_holder_has_its_places_all_have_theirs_and_both_come_back() {
        let places = Places::new(3, 2);
        let full = |holder| places.take(holder).err();
        let first = places.take("one").unwrap();
        let second = places.take("one").unwrap();
        assert_eq!(full("one"), Some(Full::One));
        let other = places.take("other").unwrap();
        assert_eq!(full("third"), Some(Full::All));
        assert_eq!(full("one"), Some(Full::One), "its own bound is told first");
        drop(first);
        let again = places.take("third").unwrap();
        drop((second, other, again));
        let taken = places.locked();
        assert_eq!(taken.all, 0);
        assert!(taken.of.is_empty(), "who has none is forgotten");
    }
}
