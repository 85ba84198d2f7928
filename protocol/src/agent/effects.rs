//! Collects what one input causes, and puts it into the one order that is safe against power cuts:
//! confirm, persist, then everything else.

use super::io::{Ignored, Output};
use super::state::PersistentState;
use crate::topics::Up;
use crate::wire::Slot;

/// What one input causes.
#[derive(Debug, Default)]
pub(super) struct Effects {
    confirm: Option<Slot>,
    persist: bool,
    rest: Vec<Output>,
}

impl Effects {
    /// Comes before persisting: had the state been written and the power been cut, nobody would
    /// confirm any more; a slot confirmed twice does no harm.
    pub(super) fn confirm(&mut self, slot: Slot) {
        self.confirm = Some(slot);
    }

    pub(super) fn persist(&mut self) {
        self.persist = true;
    }

    pub(super) fn publish(&mut self, up: Up, payload: Vec<u8>) {
        self.rest.push(Output::Publish { up, payload });
    }

    pub(super) fn ignored(&mut self, why: Ignored) {
        self.rest.push(Output::Ignored(why));
    }

    pub(super) fn push(&mut self, output: Output) {
        self.rest.push(output);
    }

    /// All of it in order; one snapshot stands for every change.
    pub(super) fn into_outputs(self, state: &PersistentState) -> Vec<Output> {
        let confirm = self.confirm.map(|slot| Output::Confirm { slot });
        let persist = self
            .persist
            .then(|| Output::Persist(Box::new(state.clone())));
        confirm
            .into_iter()
            .chain(persist)
            .chain(self.rest)
            .collect()
    }
}
