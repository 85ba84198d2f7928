//! Acknowledgements that are owed: given once the message is committed, and in the order in which messages came.

use std::collections::VecDeque;

use crate::codec::{Pid, Verdict};
use crate::limits::MAX_RECEIVE;

#[derive(Debug)]
struct Owed {
    pid: Pid,
    verdict: Verdict,
    due: bool,
}

/// The acknowledgements that one session owes.
#[derive(Debug)]
pub struct Acks {
    owed: VecDeque<Owed>,
    /// Token of the first in `owed`; the others follow it.
    first: u64,
    window: u16,
}

impl Acks {
    /// For at most `window` messages at a time, itself at most [`MAX_RECEIVE`].
    pub fn new(window: u16) -> Self {
        Self {
            owed: VecDeque::new(),
            first: 0,
            window: window.clamp(1, MAX_RECEIVE),
        }
    }

    /// Whether one more message may be taken.
    pub fn has_room(&self) -> bool {
        self.owed.len() < usize::from(self.window)
    }

    /// A message that will be committed, and the token to report that with.
    pub fn expect(&mut self, pid: Pid) -> u64 {
        self.push(pid, Verdict::Taken, false)
    }

    /// A message that is decided already.
    pub fn answered(&mut self, pid: Pid, verdict: Verdict) {
        self.push(pid, verdict, true);
    }

    fn push(&mut self, pid: Pid, verdict: Verdict, due: bool) -> u64 {
        let token = self.first + self.owed.len() as u64;
        self.owed.push_back(Owed { pid, verdict, due });
        token
    }

    /// The messages of these tokens are committed: bit `token % 64` of the word.
    pub fn committed(&mut self, tokens: u64) {
        let turn = u32::try_from(self.first % u64::from(u64::BITS)).unwrap_or_default();
        let mut waiting = tokens.rotate_right(turn);
        for owed in &mut self.owed {
            owed.due |= waiting & 1 == 1;
            waiting >>= 1;
        }
    }

    /// Takes the next one, unless a message before it is not committed yet.
    pub fn next_due(&mut self) -> Option<(Pid, Verdict)> {
        let owed = self.owed.pop_front_if(|owed| owed.due)?;
        self.first += 1;
        Some((owed.pid, owed.verdict))
    }
}
