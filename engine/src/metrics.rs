//! Counters of what happened, by a fixed set of names; read by `/health/detailed`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;

/// Most distinct names; a guard against a name made from input.
const MAX_NAMES: usize = 256;

/// Counters by name. Names are constants of the code, never input.
#[derive(Debug, Default)]
pub struct Metrics {
    counters: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Metrics {
    /// Adds to `name{label}`. Meant for rare events and for batches, not for a call a message.
    pub fn add(&self, name: &'static str, label: &'static str, by: u64) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        if counters.len() < MAX_NAMES || counters.contains_key(&(name, label)) {
            *counters.entry((name, label)).or_default() += by;
        }
    }

    /// All counters, in name order.
    pub fn snapshot(&self) -> Vec<(&'static str, &'static str, u64)> {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters
            .iter()
            .map(|((name, label), value)| (*name, *label, *value))
            .collect()
    }
}
