//! One device of the simulation: what it does with an offer, and how it goes wrong.

use std::collections::{BTreeSet, VecDeque};

use device_ota_engine::inbound::DeviceRef;
use jiff::Timestamp;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::Trouble;

/// What a device works on.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) update: String,
    pub(super) attempt: u32,
    seq: u64,
    phase: &'static str,
    /// It goes no further than `staged` before it is told to, and then runs this.
    hold: bool,
    version: String,
}

/// How a device goes wrong, for as many attempts as it has troubles left.
#[derive(Debug, Clone, Copy)]
enum Nature {
    Good,
    /// Fails at this phase, with this code.
    Fails(&'static str, &'static str),
    /// Falls silent at this phase, for so many seconds.
    Silent(&'static str, i64),
    /// Falls silent at this phase for ever.
    Gone(&'static str),
    /// Completes, and is never seen again.
    Leaves,
    /// Completes, and falls back to the old version so many seconds later.
    Relapses(i64),
    /// Puts it off.
    Defers(Option<u64>),
    /// Says it completed and tells another version.
    Lies,
    /// Comes back with the old version and says so by its check alone.
    Reverts,
    /// Is connected and answers nothing.
    Mute,
    /// Is away when the offer comes.
    Absent(i64),
    /// Says things that cannot be, of itself and of others, and then does its work.
    Forges,
}

impl Nature {
    /// It shows only when the device starts what it holds.
    fn comes_with_the_flip(self) -> bool {
        match self {
            Self::Fails(at, _) | Self::Silent(at, _) | Self::Gone(at) => at == "rebooting",
            Self::Good | Self::Defers(_) | Self::Mute | Self::Absent(_) | Self::Forges => false,
            _ => true,
        }
    }
}

/// One step of what a device does with an offer.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Say(Said),
    /// Loses its connection, for so many seconds or for ever; or restarts.
    Down(Option<i64>, Restarts),
    /// Boots this version.
    Runs(String),
    /// Falls back to this version, which ran before.
    Relapses(String),
}

/// Whether a device that is away comes back from a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restarts {
    Yes,
    No,
}

/// What it says of its job.
#[derive(Debug, Clone)]
pub(super) enum Said {
    In(&'static str),
    Failed(&'static str),
    Rejected(&'static str),
    Deferred(Option<u64>),
    Cancelled,
    /// And runs this version by its word.
    Completed(String),
    /// Something that cannot be: with this attempt more, and of whichever update.
    Forged(u32),
}

/// Phases in which a device that took the offer may go wrong.
const WORK: [&str; 5] = [
    "accepted",
    "downloading",
    "verifying",
    "installing",
    "rebooting",
];
/// Phases in which a device can still stop.
const CAN_CANCEL: [&str; 5] = ["offered", "accepted", "downloading", "verifying", "staged"];

/// A connection as the device knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection {
    /// To which process.
    pub(super) service: usize,
    pub(super) session: i64,
    /// The process has acknowledged that it is there.
    pub(super) known: bool,
}

pub(super) struct Device {
    pub(super) reference: DeviceRef,
    pub(super) connection: Option<Connection>,
    /// The secret that it has, and the one that is its own; `None`: nobody knows.
    pub(super) secret: String,
    pub(super) own_secret: Option<String>,
    /// What it said when it connected.
    pub(super) checked: String,
    /// It is registered no more.
    pub(super) deleted: bool,
    /// The processes that know which is its own.
    pub(super) refused_by: BTreeSet<usize>,
    pub(super) gone: bool,
    pub(super) restarted: bool,
    pub(super) runs: String,
    /// When it last fell back.
    pub(super) relapsed_at: Option<Timestamp>,
    pub(super) job: Option<Job>,
    /// Highest `seq` of an assignment taken.
    pub(super) highest_seq: u64,
    /// Steps of older scripts are not taken any more.
    pub(super) script: u64,
    /// Reports that were not acknowledged.
    pub(super) outbox: VecDeque<String>,
    /// Updates that it said, or would say, it has completed, with the attempt.
    pub(super) claims: BTreeSet<(String, u32)>,
    nature: Nature,
    troubles_left: u32,
}

impl Device {
    pub(super) fn new(
        reference: &DeviceRef,
        secret: &str,
        rng: &mut StdRng,
        trouble: Trouble,
    ) -> Self {
        let nature = if trouble.faults && rng.random_bool(0.5) {
            any_nature(rng)
        } else {
            Nature::Good
        };
        let lasting = matches!(nature, Nature::Fails(..) | Nature::Mute) && rng.random_bool(0.5);
        Self {
            reference: reference.clone(),
            connection: None,
            secret: secret.to_owned(),
            own_secret: Some(secret.to_owned()),
            checked: String::new(),
            deleted: false,
            refused_by: BTreeSet::new(),
            gone: false,
            restarted: true,
            runs: "1.0.0".to_owned(),
            relapsed_at: None,
            job: None,
            highest_seq: 0,
            script: 0,
            outbox: VecDeque::new(),
            claims: BTreeSet::new(),
            nature,
            troubles_left: if lasting {
                u32::MAX
            } else {
                rng.random_range(1..=3)
            },
        }
    }

    /// Takes an offer up, unless it is an old one or one that it is at already. What it does with it: steps, each so many
    /// seconds after the one before.
    pub(super) fn take(&mut self, rng: &mut StdRng, offer: &Offered) -> Vec<(i64, Step)> {
        if offer.seq <= self.highest_seq {
            return Vec::new();
        }
        self.highest_seq = offer.seq;
        let at_it = |job: &Job| job.update == offer.update && job.attempt == offer.attempt;
        if self.job.as_ref().is_some_and(at_it) {
            return Vec::new();
        }
        self.script += 1;
        self.job = Some(Job {
            update: offer.update.clone(),
            attempt: offer.attempt,
            seq: 0,
            phase: "offered",
            hold: offer.hold,
            version: offer.version.clone(),
        });
        self.answer(rng, &offer.version, offer.hold)
    }

    /// What it does with the word to start what it holds, unless it holds another one, or nothing.
    pub(super) fn flip(&mut self, rng: &mut StdRng, update: &str, seq: u64) -> Vec<(i64, Step)> {
        if !self.is_online() || seq <= self.highest_seq {
            return Vec::new();
        }
        self.highest_seq = seq;
        let holds = |job: &&Job| job.update == update && job.hold && job.phase == "staged";
        let Some(job) = self.job.as_ref().filter(holds) else {
            return Vec::new();
        };
        let to = job.version.clone();
        self.script += 1;
        let nature = self.trouble();
        let mut steps = Vec::new();
        if Self::goes_through(rng, "rebooting", nature, &mut steps) {
            self.restart_into(rng, nature, &to, &mut steps);
        }
        steps
    }

    /// How it goes wrong this time.
    fn trouble(&mut self) -> Nature {
        let nature = if self.troubles_left > 0 {
            self.nature
        } else {
            Nature::Good
        };
        self.troubles_left = self.troubles_left.saturating_sub(1);
        nature
    }

    fn answer(&mut self, rng: &mut StdRng, to: &str, hold: bool) -> Vec<(i64, Step)> {
        if self.runs == to {
            return vec![(2, Step::Say(Said::Completed(to.to_owned())))];
        }
        let nature = self.trouble();
        let mut steps = Vec::new();
        match nature {
            Nature::Mute => return steps,
            Nature::Absent(seconds) => return vec![(1, Step::Down(Some(seconds), Restarts::No))],
            Nature::Defers(pause) => return vec![(3, Step::Say(Said::Deferred(pause)))],
            Nature::Forges => {
                for _ in 0..4 {
                    let more = rng.random_range(0..3);
                    steps.push((1, Step::Say(Said::Forged(more))));
                }
            }
            _ => {}
        }
        for phase in WORK {
            if hold && phase == "rebooting" {
                let is_to_come = nature.comes_with_the_flip();
                let again = self.troubles_left.saturating_add(u32::from(is_to_come));
                self.troubles_left = again;
                steps.push((rng.random_range(1..20), Step::Say(Said::In("staged"))));
                return steps;
            }
            if !Self::goes_through(rng, phase, nature, &mut steps) {
                return steps;
            }
        }
        self.restart_into(rng, nature, to, &mut steps);
        steps
    }

    /// What it does in a phase; false when it goes no further.
    fn goes_through(
        rng: &mut StdRng,
        phase: &'static str,
        nature: Nature,
        steps: &mut Vec<(i64, Step)>,
    ) -> bool {
        steps.push((rng.random_range(1..20), Step::Say(Said::In(phase))));
        match nature {
            Nature::Fails(at, code) if at == phase => {
                for _ in 0..rng.random_range(1..=2) {
                    let said = if code == "wrong_target" {
                        Said::Rejected(code)
                    } else {
                        Said::Failed(code)
                    };
                    steps.push((2, Step::Say(said)));
                }
                return false;
            }
            Nature::Gone(at) if at == phase => {
                steps.push((2, Step::Down(None, Restarts::No)));
                return false;
            }
            Nature::Silent(at, seconds) if at == phase && phase != "rebooting" => {
                steps.push((2, Step::Down(Some(seconds), Restarts::No)));
                steps.push((seconds + 1, Step::Say(Said::In(phase))));
            }
            _ => {}
        }
        true
    }

    fn restart_into(
        &self,
        rng: &mut StdRng,
        nature: Nature,
        to: &str,
        steps: &mut Vec<(i64, Step)>,
    ) {
        let away = match nature {
            Nature::Silent("rebooting", seconds) => seconds,
            _ => rng.random_range(5..60),
        };
        steps.push((2, Step::Down(Some(away), Restarts::Yes)));
        match nature {
            Nature::Reverts => {}
            Nature::Lies => {
                let old = self.runs.clone();
                steps.push((away + 2, Step::Say(Said::Completed(old))));
            }
            _ => {
                steps.push((away - 1, Step::Runs(to.to_owned())));
                steps.push((3, Step::Say(Said::Completed(to.to_owned()))));
            }
        }
        match nature {
            Nature::Leaves => steps.push((5, Step::Down(None, Restarts::No))),
            Nature::Relapses(later) => {
                steps.push((later, Step::Down(Some(30), Restarts::Yes)));
                steps.push((20, Step::Relapses(self.runs.clone())));
            }
            _ => {}
        }
    }

    pub(super) const fn is_online(&self) -> bool {
        self.connection.is_some()
    }

    /// Whether it may be believed something that is not so.
    pub(super) fn forges(&self) -> bool {
        matches!(self.nature, Nature::Forges)
    }

    /// Whether it is connected and answers nothing.
    pub(super) fn is_mute(&self) -> bool {
        matches!(self.nature, Nature::Mute)
    }

    /// Whether it stops at a cancel of this update: one that it is at, and not later than it can stop.
    pub(super) fn stops(&mut self, update: &str, seq: u64) -> bool {
        if !self.is_online() || seq <= self.highest_seq {
            return false;
        }
        self.highest_seq = seq;
        let can = |job: &Job| job.update == update && CAN_CANCEL.contains(&job.phase);
        self.job.as_ref().is_some_and(can)
    }

    /// The next report about its job; `others` are updates of other devices, for who speaks of them.
    pub(super) fn report(
        &mut self,
        said: Said,
        others: &[String],
        rng: &mut StdRng,
    ) -> Option<String> {
        let job = self.job.as_mut()?;
        job.seq += 1;
        let (mut update, mut attempt, mut seq) = (job.update.clone(), job.attempt, job.seq);
        let mut more = json!({});
        let phase = match said {
            Said::In(phase) => {
                job.phase = phase;
                more = json!({"percent": 50.0});
                phase
            }
            Said::Failed(code) => {
                more = json!({"error": {"code": code}});
                "failed"
            }
            Said::Rejected(code) => {
                more = json!({"error": {"code": code}});
                "rejected"
            }
            Said::Deferred(pause) => {
                more = json!({"error": {"code": "low_battery"}, "retry_after_s": pause});
                "deferred"
            }
            Said::Cancelled => "cancelled",
            Said::Completed(version) => {
                more = json!({ "version": version });
                self.claims.insert((update.clone(), attempt));
                "completed"
            }
            Said::Forged(above) => {
                job.seq -= 1;
                if above == 0 && !others.is_empty() {
                    update.clone_from(&others[rng.random_range(0..others.len())]);
                }
                attempt += above;
                seq = rng.random_range(1..100_000);
                more = json!({"version": "2.0.0"});
                if update == job.update {
                    // Of its own attempt it says nothing yet; of a later one it may find itself believed.
                    if above == 0 {
                        return None;
                    }
                    self.claims.insert((update.clone(), attempt));
                }
                "completed"
            }
        };
        let mut report = json!({
            "update_id": update, "attempt": attempt, "seq": seq, "phase": phase, "version": self.runs,
        });
        let (Value::Object(report_fields), Value::Object(more)) = (&mut report, more) else {
            unreachable!("both are objects")
        };
        report_fields.extend(more.into_iter().filter(|(_, value)| !value.is_null()));
        Some(report.to_string())
    }
}

/// An offer as a device reads it.
#[derive(Debug, Clone)]
pub(super) struct Offered {
    pub(super) update: String,
    pub(super) attempt: u32,
    pub(super) seq: u64,
    pub(super) version: String,
    /// It goes no further than `staged` by itself.
    pub(super) hold: bool,
}

fn any_nature(rng: &mut StdRng) -> Nature {
    let phase = WORK[rng.random_range(0..WORK.len())];
    let away = rng.random_range(10..3_000);
    let code = [
        "download_failed",
        "install_failed",
        "expired",
        "wrong_target",
    ][rng.random_range(0..4)];
    let pause = [None, Some(rng.random_range(0..5_000))][rng.random_range(0..2)];
    match rng.random_range(0..13) {
        0 | 1 => Nature::Fails(phase, code),
        2 => Nature::Silent(phase, away),
        3 => Nature::Gone(phase),
        4 => Nature::Defers(pause),
        5 => Nature::Lies,
        6 => Nature::Reverts,
        7 => Nature::Mute,
        8 => Nature::Leaves,
        9 => Nature::Forges,
        10 | 11 => Nature::Relapses(rng.random_range(1..1_500)),
        _ => Nature::Absent(away),
    }
}
