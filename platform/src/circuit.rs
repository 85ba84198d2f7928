//! A circuit before a service that may be away: after a few failures in a row it opens, and who asks is refused at once
//! instead of waiting; after a pause one question is let through, whose answer closes it.
//!
//! The time is a parameter, so that what it decides can be told from the calls alone.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row after which it opens.
const FAILURES: u32 = 5;
/// First pause; each one after a question that failed again is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: how late at most it is seen that the service is back.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Lets questions through, or not.
#[derive(Debug)]
pub(crate) struct Circuit(Mutex<Standing>);

#[derive(Debug)]
struct Standing {
    state: State,
    /// Rises whenever it opens, lets one through, or closes: what came of a question that was asked before says nothing of now.
    generation: u64,
}

impl Standing {
    /// Becomes another.
    const fn turn(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everybody may ask; so many in a row have failed.
    Closed { failures: u32 },
    /// Nobody may, before the pause is over.
    Open { until: Instant, pause: Duration },
    /// One is asking; the pause was that long.
    Trying { pause: Duration },
}

/// It is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IsOpen;

impl Circuit {
    /// Closed.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Standing {
            state: State::Closed { failures: 0 },
            generation: 0,
        }))
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody may ask now.
    pub(crate) fn refuses(&self, now: Instant) -> bool {
        match self.standing().state {
            State::Closed { .. } => false,
            State::Open { until, .. } => now < until,
            State::Trying { .. } => true,
        }
    }

    /// Whether a question may be asked now. Whoever gets the pass tells by it what came of the question.
    pub(crate) fn admit(&self, now: Instant) -> Result<Pass<'_>, IsOpen> {
        let mut standing = self.standing();
        match standing.state {
            State::Closed { .. } => {}
            State::Open { until, pause } if until <= now => standing.turn(State::Trying { pause }),
            State::Open { .. } | State::Trying { .. } => return Err(IsOpen),
        }
        Ok(Pass {
            circuit: self,
            generation: standing.generation,
            asked_at: now,
            is_told: false,
        })
    }
}

/// One question, and what came of it. One that is dropped without a word, because nobody waits for the answer any more, says
/// nothing of the service; nor does one that was asked before the circuit opened or closed.
#[derive(Debug)]
pub(crate) struct Pass<'c> {
    circuit: &'c Circuit,
    generation: u64,
    asked_at: Instant,
    is_told: bool,
}

impl Pass<'_> {
    /// There was an answer.
    pub(crate) fn succeeded(mut self) {
        self.is_told = true;
        let Some(mut standing) = self.counted() else {
            return;
        };
        match &mut standing.state {
            State::Closed { failures } => *failures = 0,
            State::Open { .. } | State::Trying { .. } => {
                standing.turn(State::Closed { failures: 0 });
            }
        }
    }

    /// There was none.
    pub(crate) fn failed(mut self, now: Instant) {
        self.is_told = true;
        let Some(mut standing) = self.counted() else {
            return;
        };
        let pause = match &mut standing.state {
            State::Closed { failures } if *failures + 1 < FAILURES => {
                *failures += 1;
                return;
            }
            State::Closed { .. } => FIRST_PAUSE,
            State::Open { pause, .. } | State::Trying { pause } => (*pause * 2).min(LONGEST_PAUSE),
        };
        let until = now + pause;
        standing.turn(State::Open { until, pause });
    }

    /// The circuit, if the question was asked as it now is.
    fn counted(&self) -> Option<MutexGuard<'_, Standing>> {
        let standing = self.circuit.standing();
        (standing.generation == self.generation).then_some(standing)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        let until = self.asked_at;
        if let Some(mut standing) = self.counted()
            && let State::Trying { pause } = standing.state
        {
            // The next one may try at once.
            standing.turn(State::Open { until, pause });
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A circuit that has just opened, and when.
    fn opened() -> (Circuit, Instant) {
        let (circuit, now) = (Circuit::new(), Instant::now());
        for _ in 0..FAILURES {
            circuit.admit(now).unwrap().failed(now);
        }
        (circuit, now)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_alone() {
        let (circuit, now) = (Circuit::new(), Instant::now());
        for _ in 0..3 {
            for _ in 1..FAILURES {
                circuit.admit(now).unwrap().failed(now);
            }
            circuit.admit(now).unwrap().succeeded();
        }
        let (circuit, now) = opened();
        assert_eq!(circuit.admit(now).unwrap_err(), IsOpen);
        assert_eq!(circuit.admit(now + SECOND / 2).unwrap_err(), IsOpen);
    }

    #[test]
    fn after_the_pause_one_asks_and_its_answer_closes_it() {
        let (circuit, now) = opened();
        let now = now + SECOND;
        let first = circuit.admit(now).unwrap();
        assert_eq!(circuit.admit(now).unwrap_err(), IsOpen, "one at a time");
        first.succeeded();
        let all: Vec<_> = (0..100).map(|_| circuit.admit(now).unwrap()).collect();
        drop(all);
        // Once more it takes as many failures.
        for _ in 1..FAILURES {
            circuit.admit(now).unwrap().failed(now);
        }
        assert!(circuit.admit(now).is_ok());
    }

    #[test]
    fn each_pause_is_twice_as_long_up_to_the_longest() {
        let (circuit, mut now) = opened();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let began = now;
            let pass = loop {
                match circuit.admit(now) {
                    Ok(pass) => break pass,
                    Err(IsOpen) => now += SECOND,
                }
            };
            pauses.push((now - began).as_secs());
            pass.failed(now);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn who_stops_waiting_says_nothing_and_keeps_nobody_from_trying() {
        let (circuit, now) = opened();
        let now = now + SECOND;
        drop(circuit.admit(now).unwrap());
        circuit.admit(now).unwrap().succeeded();
        for _ in 0..100 {
            drop(circuit.admit(now).unwrap());
        }
        assert!(circuit.admit(now).is_ok());
    }

    #[test]
    fn late_failures_of_before_make_no_pause_longer() {
        let (circuit, now) = (Circuit::new(), Instant::now());
        let many: Vec<_> = (0..20).map(|_| circuit.admit(now).unwrap()).collect();
        for pass in many {
            pass.failed(now);
        }
        assert!(circuit.admit(now + SECOND).is_ok());
    }

    #[test]
    fn what_was_asked_before_it_opened_or_closed_says_nothing() {
        let (circuit, now) = (Circuit::new(), Instant::now());
        let mut before: Vec<_> = (0..=FAILURES)
            .map(|_| circuit.admit(now).unwrap())
            .collect();
        let late = before.pop().unwrap();
        let later: Vec<_> = (0..FAILURES).map(|_| circuit.admit(now).unwrap()).collect();
        for pass in before {
            pass.failed(now);
        }
        late.succeeded();
        assert!(circuit.refuses(now), "a late answer closes nothing");
        let now = now + SECOND;
        circuit.admit(now).unwrap().succeeded();
        for pass in later {
            pass.failed(now);
        }
        assert!(!circuit.refuses(now), "late failures open nothing");
    }
}
