//! The model's world: devices, the network between, admins, and time that goes from event to event.

use std::collections::{BTreeMap, BTreeSet};

use device_ota_domain::Update;
use device_ota_domain::campaign::{Campaign, CampaignState, Counts, Group};
use device_ota_domain::update::{
    Action, Order, Outcome, Phase, Report, Reported, Sight, UpdateState,
};
use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::admin::Admin;
use super::device::{Agent, Job, Step};
use super::{Story, Trouble};
use crate::sample;

/// Steps after which a world that is not at rest counts as endless.
const MAX_STEPS: usize = 60_000;
/// How long the service waits before it says an unanswered offer or cancel again, in seconds.
const SAY_AGAIN: i64 = 60;

/// A campaign and the counters that the service keeps of it.
pub(super) struct Rollout {
    pub(super) campaign: Campaign,
    pub(super) counts: Counts,
    pub(super) to: &'static str,
    /// How many offers and activations went out when.
    pub(super) offers: Vec<(Timestamp, u32)>,
    /// Since when which open stage has shown what its gate asks for.
    pub(super) shown: Option<(u16, Timestamp)>,
}

/// A row of the updates table.
pub(super) struct Row {
    pub(super) update: Update,
    pub(super) rollout: usize,
    pub(super) agent: usize,
    /// The row that this one takes back.
    pub(super) takes_back: Option<usize>,
    /// The attempt that spent the last retry.
    pub(super) spent: u32,
}

/// What may happen next.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Offer {
        row: usize,
        attempt: u32,
        seq: u64,
        hold: bool,
    },
    Activate {
        row: usize,
        attempt: u32,
    },
    Cancel {
        row: usize,
        attempt: u32,
    },
    SayAgain {
        row: usize,
        attempt: u32,
    },
    Step {
        agent: usize,
        script: u64,
        step: Step,
    },
    Up(usize),
    Report(usize, Report),
    Start(usize),
    Admin(usize, Admin),
    Nudge,
}

pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) now: Timestamp,
    pub(super) trouble: Trouble,
    pub(super) story: Story,
    pub(super) agents: Vec<Agent>,
    pub(super) rollouts: Vec<Rollout>,
    pub(super) rows: Vec<Row>,
    queue: BTreeMap<(Timestamp, u64), Event>,
    /// Events so far; those of the same time happen in the order in which they were planned.
    planned: u64,
    assignments: u64,
    /// Rows have changed since the last audit.
    pub(super) unaudited: bool,
    /// Slots of the whole service.
    pub(super) limit: Option<u64>,
    /// How often a device was told to flip, and to give way to another update.
    pub(super) activations: u64,
    pub(super) displaced: u64,
    /// How often an update that had completed turned out not to have.
    pub(super) regressed: u64,
}

impl World {
    pub(super) fn new(seed: u64, trouble: Trouble, story: Story) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let devices = rng.random_range(1..=24);
        let agents = (0..devices)
            .map(|_| Agent::new(&mut rng, trouble))
            .collect();
        let limit = rng.random_bool(0.2).then(|| rng.random_range(1..6));
        let mut world = Self {
            limit,
            rng,
            now: sample::at(0),
            trouble,
            story,
            agents,
            rollouts: Vec::new(),
            rows: Vec::new(),
            queue: BTreeMap::new(),
            planned: 0,
            assignments: 0,
            unaudited: false,
            activations: 0,
            displaced: 0,
            regressed: 0,
        };
        let targets: &[&'static str] = if trouble.rivals {
            &["2.0.0", "3.0.0"]
        } else {
            &["2.0.0"]
        };
        for to in targets {
            world.create(to);
        }
        world
    }

    pub(super) fn state(&self, rollout: usize) -> &CampaignState {
        &self.rollouts[rollout].campaign.state
    }

    pub(super) fn devices_run(&self, version: &str) -> bool {
        self.agents.iter().all(|agent| agent.runs == version)
    }

    /// Until nothing will ever happen again.
    pub(super) fn run(&mut self) -> Result<(), String> {
        for _ in 0..MAX_STEPS {
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            // Windows of many clocks open for ever: whoever is waited for does not wait for them.
            if event.is_none() && self.trouble.windows && self.somebody_advances()? {
                self.pass()?;
                continue;
            }
            let Some(next) = [event, self.next_due()].into_iter().flatten().min() else {
                if !self.somebody_advances()? && !self.give_up_on_the_gone() {
                    return self.verdict();
                }
                self.pass()?;
                continue;
            };
            self.now = next;
            if event == Some(next)
                && let Some((_, event)) = self.queue.pop_first()
            {
                self.happen(event)?;
            }
            self.pass()?;
            if std::mem::take(&mut self.unaudited) {
                self.audit()?;
            }
        }
        Err(format!("not at rest after {MAX_STEPS} steps"))
    }

    /// The next time at which something falls due in the database.
    fn next_due(&self) -> Option<Timestamp> {
        let rows = self.rows.iter().flat_map(|row| match row.update.state {
            // A device that is there is not lost; when it leaves, that is an event.
            UpdateState::Pending { due_at, .. } if self.agents[row.agent].online => {
                [Some(due_at), None]
            }
            UpdateState::Pending {
                due_at, lost_at, ..
            } => [Some(due_at), lost_at],
            UpdateState::InFlight {
                lease_until,
                deadline,
                part_until,
                ..
            } => [Some(lease_until), part_until.or(Some(deadline))],
            _ => [None, None],
        });
        let soaks = self
            .rollouts
            .iter()
            .filter_map(|rollout| match &rollout.campaign.state {
                CampaignState::InProgress(running) => {
                    let gate = rollout
                        .campaign
                        .spec
                        .stages
                        .get(usize::from(running.open_stage))?
                        .gate;
                    running
                        .soak_since?
                        .checked_add(SignedDuration::from_secs(gate.soak_seconds.cast_signed()))
                        .ok()
                }
                _ => None,
            });
        let schedules = self.rollouts.iter().flat_map(|rollout| {
            let schedule = rollout.campaign.spec.schedule;
            [schedule.start_at, schedule.end_at].into_iter().flatten()
        });
        let rates = self.rollouts.iter().filter_map(|rollout| {
            let waits =
                !rollout.campaign.state.is_active() || rollout.counts.updates().waiting() == 0;
            rollout.campaign.next_offer_at.filter(|_| !waits)
        });
        let watches = self.rows.iter().filter_map(|row| row.update.watch());
        let watches = watches.map(|watch| watch.look_at);
        // Who is kept waiting has time for as long as that lasts.
        let ends = self.rows.iter().enumerate().filter(|(index, row)| {
            let ends = row.update.give_up_at.is_some() && !row.update.is_terminal();
            let waits = row.update.action == Action::Update && row.update.owed().is_some();
            ends && !(waits && self.is_kept_waiting(*index))
        });
        let ends = ends.filter_map(|(_, row)| row.update.give_up_at);
        rows.flatten()
            .chain(ends)
            .chain(watches)
            .chain(soaks)
            .chain(rates)
            .chain(self.next_windows())
            .chain(schedules)
            .filter(|at| *at > self.now)
            .min()
    }

    /// When windows open for devices that wait.
    fn next_windows(&self) -> impl Iterator<Item = Timestamp> {
        let waiting = self.rows.iter().filter(|row| {
            let state = &self.rollouts[row.rollout].campaign.state;
            row.update.owed().is_some()
                && self.agents[row.agent].online
                && matches!(state, CampaignState::InProgress(_))
        });
        let clocks: BTreeSet<_> = waiting
            .map(|row| (row.rollout, self.agents[row.agent].zone))
            .collect();
        clocks.into_iter().filter_map(|(rollout, zone)| {
            let windows = &self.rollouts[rollout].campaign.spec.windows;
            windows.at(self.now, zone).err()
        })
    }

    pub(super) fn after(&mut self, seconds: i64, event: Event) {
        let at = self
            .now
            .checked_add(SignedDuration::from_secs(seconds))
            .unwrap();
        self.planned += 1;
        self.queue.insert((at, self.planned), event);
    }

    pub(super) fn nudge(&mut self) {
        self.after(1, Event::Nudge);
    }

    fn tell(&self, line: impl FnOnce() -> String) {
        self.story.tell(|| {
            format!(
                "{:>6} s  {}",
                self.now.as_second() - sample::at(0).as_second(),
                line()
            )
        });
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        if !matches!(event, Event::SayAgain { .. } | Event::Nudge) {
            self.tell(|| format!("{event:?}"));
        }
        match event {
            Event::Offer {
                row,
                attempt,
                seq,
                hold,
            } => self.offer_arrives(row, attempt, seq, hold),
            Event::Activate { row, attempt } => self.activate_arrives(row, attempt),
            Event::Cancel { row, attempt } => self.cancel_arrives(row, attempt),
            Event::SayAgain { row, attempt } => self.say_again(row, attempt),
            Event::Step {
                agent,
                script,
                step,
            } => self.step(agent, script, step),
            Event::Up(agent) => return self.up(agent),
            Event::Report(row, report) => return self.take_report(row, &report),
            Event::Start(rollout) => self.start(rollout),
            Event::Admin(rollout, what) => return self.admin(rollout, what),
            Event::Nudge => {}
        }
        Ok(())
    }

    /// The service says what the row wants of its device; it may be lost on the way.
    pub(super) fn send(&mut self, row: usize) {
        let attempt = self.rows[row].update.attempt;
        let lost = self.trouble.noise && self.rng.random_bool(0.2);
        if self.agents[self.rows[row].agent].online && !lost {
            self.assignments += 1;
            let seq = self.assignments;
            let update = &self.rows[row].update;
            let hold = matches!(update.state, UpdateState::InFlight { hold: true, .. });
            let event = match update.order() {
                Some(Order::Cancel) => Event::Cancel { row, attempt },
                Some(Order::Activate) => Event::Activate { row, attempt },
                _ => Event::Offer {
                    row,
                    attempt,
                    seq,
                    hold,
                },
            };
            self.after(1, event);
        }
        self.after(SAY_AGAIN, Event::SayAgain { row, attempt });
    }

    fn say_again(&mut self, row: usize, attempt: u32) {
        let update = &self.rows[row].update;
        if update.attempt == attempt && update.is_unanswered() {
            self.send(row);
        }
    }

    fn offer_arrives(&mut self, row: usize, attempt: u32, seq: u64, hold: bool) {
        let index = self.rows[row].agent;
        let to = self.rows[row].update.to_version.clone();
        let agent = &mut self.agents[index];
        if !agent.online || seq <= agent.highest_seq {
            return;
        }
        agent.highest_seq = seq;
        if agent
            .job
            .as_ref()
            .is_some_and(|job| job.row == row && job.attempt == attempt)
        {
            return; // it is at it
        }
        agent.script += 1;
        agent.job = Some(Job {
            row,
            attempt,
            seq: 0,
            phase: Phase::Offered,
            hold,
        });
        let steps = agent.answer(&mut self.rng, &to, hold);
        self.follow(index, steps);
    }

    /// A device takes these steps, unless it begins something else before.
    fn follow(&mut self, index: usize, steps: Vec<(i64, Step)>) {
        let script = self.agents[index].script;
        let mut at = 0;
        for (delay, step) in steps {
            at += delay;
            self.after(
                at,
                Event::Step {
                    agent: index,
                    script,
                    step,
                },
            );
        }
    }

    fn activate_arrives(&mut self, row: usize, attempt: u32) {
        let index = self.rows[row].agent;
        let to = self.rows[row].update.to_version.clone();
        let agent = &mut self.agents[index];
        let holds = agent.job.as_ref().is_some_and(|job| {
            job.row == row && job.attempt == attempt && job.hold && job.phase == Phase::Staged
        });
        if agent.online && holds {
            agent.script += 1;
            let steps = agent.flip(&mut self.rng, &to);
            self.follow(index, steps);
        }
    }

    fn cancel_arrives(&mut self, row: usize, attempt: u32) {
        let index = self.rows[row].agent;
        let agent = &mut self.agents[index];
        let can = agent
            .job
            .as_ref()
            .is_some_and(|j| j.row == row && j.attempt == attempt && j.phase.can_cancel());
        if agent.online && can && self.rng.random_bool(0.8) {
            agent.script += 1;
            self.say(index, Reported::Cancelled, None);
        }
    }

    fn step(&mut self, index: usize, script: u64, step: Step) {
        if self.agents[index].script != script || self.agents[index].gone {
            return;
        }
        match step {
            Step::Say(said, version) => self.say(index, said, version),
            Step::Runs(version) => self.agents[index].runs = version,
            Step::Relapses(version) => {
                self.agents[index].runs = version;
                self.agents[index].relapsed_at = Some(self.now);
            }
            Step::Down(seconds) => {
                self.agents[index].online = false;
                self.agents[index].last_seen = Some(self.now);
                match seconds {
                    Some(seconds) => self.after(seconds, Event::Up(index)),
                    None => self.agents[index].gone = true,
                }
            }
        }
    }

    fn say(&mut self, index: usize, said: Reported, version: Option<String>) {
        let Some((row, report)) = self.agents[index].report(said, version) else {
            return;
        };
        if self.agents[index].online {
            self.transmit(row, report);
        } else {
            self.agents[index].outbox.push((row, report));
        }
    }

    fn transmit(&mut self, row: usize, report: Report) {
        let noise = |rng: &mut StdRng| {
            if rng.random_bool(0.2) {
                rng.random_range(1..300)
            } else {
                1
            }
        };
        let mut delay = 1;
        if self.trouble.noise {
            delay = noise(&mut self.rng);
            if self.rng.random_bool(0.2) {
                let again = noise(&mut self.rng);
                self.after(again, Event::Report(row, report.clone()));
            }
        }
        self.after(delay, Event::Report(row, report));
    }

    /// A device connects: it says what it runs, then what it could not say before; the service says what it wants.
    fn up(&mut self, index: usize) -> Result<(), String> {
        self.agents[index].online = true;
        self.agents[index].last_seen = Some(self.now);
        for (row, report) in std::mem::take(&mut self.agents[index].outbox) {
            self.transmit(row, report);
        }
        self.shows_its_version(index)?;
        let in_flight = |row: &Row| {
            row.agent == index && matches!(row.update.state, UpdateState::InFlight { .. })
        };
        let Some(row) = self.rows.iter().position(in_flight) else {
            return Ok(());
        };
        let runs = self.agents[index].runs.clone();
        if let Some(update) = self.rows[row]
            .update
            .clone()
            .observe_version(&runs, self.now)
        {
            return self.apply(row, update);
        }
        self.say_again(row, self.rows[row].update.attempt);
        Ok(())
    }

    /// What a device shows by its check of updates that it has completed.
    fn shows_its_version(&mut self, index: usize) -> Result<(), String> {
        let runs = self.agents[index].runs.clone();
        let sight = Sight {
            running: &runs,
            restarted: false,
            nonce: None,
            at: self.now,
        };
        for row in 0..self.rows.len() {
            if self.rows[row].agent == index
                && let Some(update) = self.rows[row].update.clone().observe_afterwards(&sight)
            {
                self.apply(row, update)?;
            }
        }
        Ok(())
    }

    fn take_report(&mut self, row: usize, report: &Report) -> Result<(), String> {
        let agent = self.rows[row].agent;
        self.agents[agent].last_seen = Some(self.now);
        let before = &self.rows[row].update;
        match before.clone().report(report, self.now, sample::LEASE) {
            Outcome::Changed(after)
                if report.attempt == before.attempt && after.last_seq <= before.last_seq =>
            {
                Err(format!(
                    "report {} of row {row} was taken after {}",
                    report.seq, before.last_seq
                ))
            }
            Outcome::Changed(after) => {
                let spec = &self.rollouts[self.rows[row].rollout].campaign.spec;
                let completes =
                    after.group() == Group::Completed && before.group() != after.group();
                let is_late = before.group() != Group::InFlight || report.attempt < before.attempt;
                let completes = completes && !(is_late && self.is_superseded(row));
                let terms = spec.watch(after.stage, sample::LEASE);
                let after = if completes {
                    after.watched(terms)
                } else {
                    *after
                };
                self.apply(row, after)
            }
            Outcome::Ignored(after, why) if *after != *before => Err(format!(
                "row {row} changed by a report that was ignored as {why}"
            )),
            Outcome::Ignored(..) => Ok(()),
        }
    }
}
