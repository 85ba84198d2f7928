//! One device of the model: what it does with an offer, and how it goes wrong.

use device_ota_domain::ring::Ring;
use device_ota_domain::update::{Failure, Phase, Report, Reported, Retry};
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use super::Trouble;

/// What a device works on.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) row: usize,
    pub(super) attempt: u32,
    pub(super) seq: u64,
    pub(super) phase: Phase,
    /// It was told to go no further than `staged`.
    pub(super) hold: bool,
}

/// How a device goes wrong, for as many attempts as it has troubles left.
#[derive(Debug, Clone, Copy)]
pub(super) enum Nature {
    Good,
    /// Reports a failure at this phase.
    Fails(Phase, Retry),
    /// Falls silent at this phase, for so many seconds.
    Silent(Phase, i64),
    /// Falls silent at this phase for ever.
    Gone(Phase),
    /// Completes, and is never seen again.
    Leaves,
    /// Completes, and falls back so many seconds later.
    Relapses(i64),
    /// Puts it off.
    Defers(Option<u64>),
    /// Says it completed and tells another version.
    Lies,
    /// Comes back with the old version.
    Reverts,
    /// Says that it was told to stop, and was not.
    Stops,
    /// Is connected and answers nothing.
    Mute,
    /// Is away when the offer comes.
    Absent(i64),
}

/// A device.
#[derive(Debug, Clone)]
pub(super) struct Agent {
    pub(super) bucket: u16,
    pub(super) pin: Option<Ring>,
    /// What its tag says of its time zone; not all names are one.
    pub(super) zone: Option<&'static str>,
    pub(super) online: bool,
    pub(super) gone: bool,
    pub(super) last_seen: Option<Timestamp>,
    pub(super) runs: String,
    /// When it fell back, if it has since its last update.
    pub(super) relapsed_at: Option<Timestamp>,
    /// Whether the service knows what it runs.
    pub(super) tells_version: bool,
    pub(super) job: Option<Job>,
    /// Highest `seq` of an assignment taken.
    pub(super) highest_seq: u64,
    /// Steps of older scripts are not taken any more.
    pub(super) script: u64,
    /// Reports that wait for a connection.
    pub(super) outbox: Vec<(usize, Report)>,
    pub(super) nature: Nature,
    pub(super) troubles_left: u32,
}

/// One step of what a device does with an offer.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Say(Reported, Option<String>),
    /// Loses its connection, for so many seconds or for ever.
    Down(Option<i64>),
    /// Boots this version.
    Runs(String),
    /// Falls back to this version, which ran before.
    Relapses(String),
}

/// The same of a device that is to hold.
const HELD: [Phase; 5] = [
    Phase::Accepted,
    Phase::Downloading,
    Phase::Verifying,
    Phase::Installing,
    Phase::Staged,
];

const ZONES: [Option<&str>; 5] = [
    None,
    Some("Europe/Berlin"),
    Some("Asia/Kolkata"),
    Some("America/St_Johns"),
    Some("Nowhere/Else"),
];

/// Phases in which a device that took the offer may go wrong.
const WORK: [Phase; 5] = [
    Phase::Accepted,
    Phase::Downloading,
    Phase::Verifying,
    Phase::Installing,
    Phase::Rebooting,
];

impl Agent {
    pub(super) fn new(rng: &mut StdRng, trouble: Trouble) -> Self {
        let nature = if trouble.faults && rng.random_bool(0.5) {
            any_nature(rng)
        } else {
            Nature::Good
        };
        let lasting = matches!(nature, Nature::Fails(..) | Nature::Mute) && rng.random_bool(0.5);
        Self {
            bucket: rng.random_range(0..10_000),
            pin: rng
                .random_bool(0.1)
                .then(|| Ring::ALL[rng.random_range(0..4)]),
            zone: ZONES[rng.random_range(0..ZONES.len())],
            online: true,
            gone: false,
            last_seen: None,
            runs: "1.0.0".into(),
            relapsed_at: None,
            tells_version: !trouble.faults || rng.random_bool(0.9),
            job: None,
            highest_seq: 0,
            script: 0,
            outbox: Vec::new(),
            nature,
            troubles_left: if lasting {
                u32::MAX
            } else {
                rng.random_range(1..=3)
            },
        }
    }

    /// What goes wrong this time.
    fn trouble(&mut self) -> Nature {
        let nature = if self.troubles_left > 0 {
            self.nature
        } else {
            Nature::Good
        };
        self.troubles_left = self.troubles_left.saturating_sub(1);
        nature
    }

    /// What it does with an offer of `to`: steps, each so many seconds after the one before.
    pub(super) fn answer(&mut self, rng: &mut StdRng, to: &str, hold: bool) -> Vec<(i64, Step)> {
        if self.runs == to {
            return vec![(2, Step::Say(Reported::Completed, Some(to.into())))];
        }
        let nature = self.trouble();
        match nature {
            Nature::Mute => return Vec::new(),
            Nature::Absent(seconds) => return vec![(1, Step::Down(Some(seconds)))],
            Nature::Defers(retry_after_seconds) => {
                let failure = Failure::new("low_battery", "", Retry::Backoff);
                return vec![(
                    3,
                    Step::Say(
                        Reported::Deferred {
                            failure,
                            retry_after_seconds,
                        },
                        None,
                    ),
                )];
            }
            Nature::Stops => return vec![(3, Step::Say(Reported::Cancelled, None))],
            _ => {}
        }
        let phases = if hold { &HELD[..] } else { &WORK[..] };
        self.work(rng, to, nature, phases)
    }

    /// What it does when it is told to start what it holds.
    pub(super) fn flip(&mut self, rng: &mut StdRng, to: &str) -> Vec<(i64, Step)> {
        match self.trouble() {
            Nature::Mute => Vec::new(),
            Nature::Absent(seconds) => vec![(1, Step::Down(Some(seconds)))],
            nature => self.work(rng, to, nature, &[Phase::Rebooting]),
        }
    }

    fn work(
        &self,
        rng: &mut StdRng,
        to: &str,
        nature: Nature,
        phases: &[Phase],
    ) -> Vec<(i64, Step)> {
        let mut steps = Vec::new();
        for phase in phases.iter().copied() {
            steps.push((
                rng.random_range(1..20),
                Step::Say(Reported::In(phase), None),
            ));
            match nature {
                Nature::Fails(at, retry) if at == phase => {
                    let failure = Failure::new("install_failed", "", retry);
                    for _ in 0..rng.random_range(1..=2) {
                        steps.push((2, Step::Say(Reported::Failed(failure.clone()), None)));
                    }
                    return steps;
                }
                Nature::Gone(at) if at == phase => {
                    steps.push((2, Step::Down(None)));
                    return steps;
                }
                Nature::Silent(at, seconds) if at == phase && phase != Phase::Rebooting => {
                    steps.push((2, Step::Down(Some(seconds))));
                    steps.push((seconds + 1, Step::Say(Reported::In(phase), None)));
                }
                _ => {}
            }
        }
        if !phases.contains(&Phase::Rebooting) {
            return steps; // it holds, and waits
        }
        let away = match nature {
            Nature::Silent(Phase::Rebooting, seconds) => seconds,
            _ => rng.random_range(5..60),
        };
        steps.push((2, Step::Down(Some(away))));
        if matches!(nature, Nature::Reverts | Nature::Lies) {
            let old = self.runs.clone();
            steps.push((away - 1, Step::Runs(old.clone())));
            let said = match nature {
                Nature::Lies => Reported::Completed,
                _ => Reported::Failed(Failure::new("boot_failed", "", Retry::Never)),
            };
            steps.push((2, Step::Say(said, Some(old))));
        } else {
            steps.push((away - 1, Step::Runs(to.into())));
            steps.push((2, Step::Say(Reported::Completed, Some(to.into()))));
        }
        match nature {
            Nature::Leaves => steps.push((5, Step::Down(None))),
            Nature::Relapses(later) => {
                steps.push((later, Step::Down(Some(20))));
                steps.push((10, Step::Relapses(self.runs.clone())));
            }
            _ => {}
        }
        steps
    }

    /// The next report about its job.
    pub(super) fn report(
        &mut self,
        said: Reported,
        version: Option<String>,
    ) -> Option<(usize, Report)> {
        let job = self.job.as_mut()?;
        job.seq += 1;
        if let Reported::In(phase) = said {
            job.phase = phase;
        }
        let report = Report {
            attempt: job.attempt,
            seq: job.seq,
            version,
            percent: Some(50.0),
            bytes_done: None,
            speed_bps: None,
            said,
        };
        Some((job.row, report))
    }
}

fn any_nature(rng: &mut StdRng) -> Nature {
    let phase = WORK[rng.random_range(0..WORK.len())];
    let away = rng.random_range(10..3_000);
    let retry = [Retry::Now, Retry::Backoff, Retry::Never][rng.random_range(0..3)];
    let defers = [None, Some(rng.next_u64() % 5_000)][rng.random_range(0..2)];
    match rng.random_range(0..13) {
        0 | 1 => Nature::Fails(phase, retry),
        2 => Nature::Silent(phase, away),
        3 => Nature::Gone(phase),
        4 => Nature::Defers(defers),
        5 => Nature::Lies,
        6 => Nature::Reverts,
        7 => Nature::Mute,
        8 => Nature::Leaves,
        9 | 10 => Nature::Relapses(rng.random_range(1..3_000)),
        11 => Nature::Stops,
        _ => Nature::Absent(away),
    }
}
