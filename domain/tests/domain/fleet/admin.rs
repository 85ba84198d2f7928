//! Admins of the model: they create campaigns, start them, and meddle.

use device_ota_domain::CampaignId;
use device_ota_domain::campaign::{
    Abort, AbortAction, AbortOn, CampaignSpec, CampaignState, Counts, FailureKind, OnEnd, Schedule,
    Stage, Takes, Tally, Windows,
};
use device_ota_domain::planner::{self, Advance, advance};
use device_ota_domain::ring::turned;
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::update::{Action as UpdateAction, Owed, Times, UpdateState};
use jiff::{SignedDuration, Timestamp};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::json;

use super::device::Agent;
use super::world::{Event, Rollout, World};
use crate::sample;

#[derive(Debug, Clone, Copy)]
pub(super) enum Admin {
    Pause,
    Resume,
    Cancel,
    RollBack,
    CancelOne,
    RetryOne,
    Advance { force: bool },
}

impl World {
    pub(super) fn create(&mut self, to: &'static str) {
        let index = self.rollouts.len();
        // An attempt of a device that behaves takes less than four minutes.
        let shortest_minutes = if self.trouble.faults { 1 } else { 4 };
        let holds = self.trouble.holds;
        let mut spec = any_spec(&mut self.rng, self.agents.len(), shortest_minutes, holds);
        if self.rng.random_bool(0.2) {
            let rate = json!({"per_minute": self.rng.random_range(1..40)});
            spec.rate = sample::spec(&json!({"rate": rate})).rate;
        }
        if self.trouble.windows && self.rng.random_bool(0.7) {
            spec.windows = any_windows(&mut self.rng);
        }
        if self.trouble.faults && self.rng.random_bool(0.3) {
            spec.abort = any_aborts(&mut self.rng);
        }
        if self.trouble.faults && self.rng.random_bool(0.4) {
            spec.times = any_times(&mut self.rng, spec.timeout_seconds);
        }
        self.story
            .tell(|| format!("{to} to {} devices by {spec:?}", self.agents.len()));
        let stages = spec.stages.len();
        let mut campaign = sample::campaign(spec, CampaignState::Created);
        campaign.id = CampaignId::from_entropy([u8::try_from(index).unwrap(); 8]);
        let counts = Counts {
            stages: vec![Tally::default(); stages],
            ..Counts::default()
        };
        self.rollouts.push(Rollout {
            campaign,
            counts,
            to,
            offers: Vec::new(),
            shown: None,
        });
        let start = self.rng.random_range(0..600);
        if self.trouble.schedules {
            let schedule = any_schedule(&mut self.rng, self.now, start);
            self.rollouts[index].campaign.spec.schedule = schedule;
        }
        self.after(start, Event::Start(index));
        if self.trouble.admins {
            for _ in 0..self.rng.random_range(0..5) {
                self.plan_an_admin(index, start);
            }
        }
    }

    fn plan_an_admin(&mut self, rollout: usize, start: i64) {
        let at = start + self.rng.random_range(1..3_000);
        let what = match self.rng.random_range(0..10) {
            0..=2 => {
                // Whoever pauses goes on one day.
                let pause = self.rng.random_range(1..2_000);
                self.after(at + pause, Event::Admin(rollout, Admin::Resume));
                Admin::Pause
            }
            3 => Admin::Cancel,
            4 => Admin::RollBack,
            5 => Admin::Advance {
                force: self.rng.random_bool(0.3),
            },
            6..=7 => Admin::CancelOne,
            _ => Admin::RetryOne,
        };
        self.after(at, Event::Admin(rollout, what));
    }

    pub(super) fn start(&mut self, index: usize) {
        let rollout = &mut self.rollouts[index];
        let Ok(started) = rollout.campaign.clone().start(self.now) else {
            return;
        };
        rollout.campaign = started;
        let turns = stages_of(&self.rollouts[index].campaign.spec, &self.agents);
        for (agent, turn) in turns.into_iter().enumerate() {
            self.insert(index, agent, turn, None);
        }
    }

    pub(super) fn admin(&mut self, index: usize, what: Admin) -> Result<(), String> {
        let state = self.rollouts[index].campaign.state.clone();
        let next = match what {
            Admin::Pause => state.pause(self.now, "an admin asked"),
            Admin::Resume => {
                let it = &self.rollouts[index];
                planner::resume(self.now, &it.campaign, &it.counts)
            }
            Admin::Cancel => state.cancel(self.now),
            Admin::RollBack => state.roll_back(self.now, RollbackTrigger::Manual, "an admin asked"),
            Admin::CancelOne | Admin::RetryOne => return self.admin_of_one(index, what),
            Admin::Advance { force } => return self.advance(index, force).map(drop),
        };
        let was_cancelled = matches!(self.state(index), CampaignState::Cancelled { .. });
        let Ok(next) = next else {
            return Ok(());
        };
        if was_cancelled && self.rollouts[index].counts.rollbacks.open() > 0 {
            return Ok(()); // refused until what was asked to stop has stopped
        }
        self.rollouts[index].campaign.state = next;
        if was_cancelled {
            self.revive_rollbacks(index)?;
        }
        Ok(())
    }

    /// Opens the next stage if it waits for a person, or by force. True when it opened.
    fn advance(&mut self, index: usize, force: bool) -> Result<bool, String> {
        let rollout = &self.rollouts[index];
        let CampaignState::InProgress(running) = &rollout.campaign.state else {
            return Ok(false);
        };
        let stages = &rollout.campaign.spec.stages;
        let next = running.open_stage + 1;
        let Some(stage) = stages.get(usize::from(next)) else {
            return Ok(false);
        };
        let asked = Advance {
            stage: force.then_some(stage.name.as_str()),
            force,
        };
        let Ok(opened) = advance(self.now, rollout.campaign.clone(), &rollout.counts, asked) else {
            return Ok(false);
        };
        if !force {
            self.gate_holds(index, next)?;
        }
        self.rollouts[index].campaign = opened;
        Ok(true)
    }

    /// Nothing will happen by itself, and a stage waits for a person: there is one. True when a stage opened.
    pub(super) fn somebody_advances(&mut self) -> Result<bool, String> {
        let mut opened = false;
        for index in 0..self.rollouts.len() {
            opened |= self.advance(index, false)?;
        }
        Ok(opened)
    }

    fn admin_of_one(&mut self, index: usize, what: Admin) -> Result<(), String> {
        let action = match self.state(index) {
            CampaignState::InProgress(_) | CampaignState::Paused { .. } => UpdateAction::Update,
            CampaignState::RollingBack { .. } | CampaignState::RolledBack { .. }
                if matches!(what, Admin::RetryOne) =>
            {
                UpdateAction::Rollback
            }
            _ => return Ok(()),
        };
        let rows = self.rows_of(index, action);
        if rows.is_empty() {
            return Ok(());
        }
        let row = rows[self.rng.random_range(0..rows.len())];
        if matches!(what, Admin::RetryOne) {
            return self.retry_one(index, row);
        }
        let Ok(update) = self.rows[row].update.clone().cancel(self.now) else {
            return Ok(());
        };
        self.apply(row, update)?;
        self.send(row);
        Ok(())
    }

    /// A failed rollback of a campaign that was rolled back opens it once more.
    fn retry_one(&mut self, index: usize, row: usize) -> Result<(), String> {
        let update = self.rows[row].update.clone();
        // Without its image a rollback cannot be tried again.
        let nowhere = update.to_version.is_empty();
        let end = (update.action == UpdateAction::Rollback).then(|| self.rollbacks_end_by());
        let failed_at = update.ended_at();
        let kind = match &update.state {
            UpdateState::Failed { failure, .. } => FailureKind::of(&failure.code),
            _ => return Ok(()),
        };
        let Ok(again) = update.retry(self.now, end) else {
            return Ok(());
        };
        if nowhere {
            return Ok(());
        }
        let state = self.state(index).clone();
        let state = match state.clone().reopen(self.now) {
            Ok(reopened) => reopened,
            Err(_) => state.retried(failed_at.unwrap(), kind),
        };
        self.rollouts[index].campaign.state = state;
        self.retry(row, again)
    }

    /// Nothing will ever happen by itself: a campaign that still waits for devices that are gone, and
    /// with it the stages behind them, is cancelled by its admin, and so is one that is paused and keeps devices from
    /// another. True when there was one.
    pub(super) fn give_up_on_the_gone(&mut self) -> bool {
        let mut gave_up = false;
        for index in 0..self.rollouts.len() {
            let mut open = self
                .rows
                .iter()
                .filter(|row| row.rollout == index && !row.update.is_terminal());
            let waits_in_vain = match self.state(index) {
                CampaignState::InProgress(_) => open.any(|row| self.agents[row.agent].gone),
                CampaignState::Paused { .. } if self.rollouts.len() > 1 => {
                    open.any(|row| row.update.owed() == Some(Owed::Activation))
                }
                _ => false,
            };
            if waits_in_vain {
                let state = self.state(index).clone().cancel(self.now);
                self.rollouts[index].campaign.state = state.unwrap();
                gave_up = true;
            }
        }
        gave_up
    }
}

/// Where a device stands on the wheel: at the beginning of its ring when it is pinned.
fn place_of(spec: &CampaignSpec, agent: &Agent) -> u16 {
    match agent.pin {
        Some(ring) => spec.rings.start_bucket(ring),
        None => turned(agent.bucket, spec.bucket_offset),
    }
}

/// The stage of each device: the first that takes it, by its place or by how many stand before it.
fn stages_of(spec: &CampaignSpec, agents: &[Agent]) -> Vec<u16> {
    let places: Vec<u16> = agents.iter().map(|agent| place_of(spec, agent)).collect();
    let stage = |agent: usize, place: u16| {
        let before = |(other, at): (usize, &u16)| (*at, other) < (place, agent);
        let before = places.iter().enumerate().filter(|it| before(*it)).count();
        let takes = |stage: &Stage| match stage.takes {
            Takes::First(count) => u64::try_from(before).unwrap() < count,
            _ => place < stage.end_bucket,
        };
        u16::try_from(spec.stages.iter().position(takes).unwrap()).unwrap()
    };
    let numbered = places.iter().enumerate();
    numbered
        .map(|(agent, place)| stage(agent, *place))
        .collect()
}

fn any_spec(rng: &mut StdRng, devices: usize, shortest_minutes: u32, holds: bool) -> CampaignSpec {
    let gate = |rng: &mut StdRng| {
        json!({
            "min_success_percent": rng.random_range(0..=100),
            "min_samples": rng.random_bool(0.5).then(|| rng.random_range(0..10)),
            "soak_seconds": rng.random_range(0..600),
            "manual": rng.random_bool(0.2),
        })
    };
    let stages = match rng.random_range(0..4) {
        0 => json!([]),
        3 => {
            json!([{"count": rng.random_range(1..5), "gate": gate(rng)}, {"percent": 40}, {"count": 20}])
        }
        1 => json!([{"percent": 10, "gate": gate(rng)}, {"percent": 60, "gate": gate(rng)}]),
        _ => json!([{"ring": "canary", "gate": gate(rng)}, {"ring": "broad"}]),
    };
    let none = stages.as_array().is_some_and(Vec::is_empty);
    let strategy = if holds && rng.random_bool(0.8) {
        "blue_green"
    } else if none && rng.random_bool(0.3) {
        "immediate"
    } else {
        "staged"
    };
    let threshold = [0, 5, 10, 20, 30, 50, 100][rng.random_range(0..7)];
    let fields = json!({
        "stages": stages,
        "deployment_strategy": strategy,
        "max_concurrent_updates": rng.random_range(1..devices + 3),
        "batch_size": rng.random_range(1..8),
        "timeout_minutes": rng.random_range(shortest_minutes..60),
        "auto_rollback": rng.random_bool(0.7),
        "failure_threshold_percent": threshold,
        "failure_min_samples": rng.random_range(0..5),
        "max_retries": rng.random_range(0..4),
        "health": {
            "watch_seconds": rng.random_range(0..4_000),
            "silent_seconds": rng.random_bool(0.3).then(|| rng.random_range(60..1_000)),
        },
    });
    let entropy = rng.random_range(0..10_000);
    sample::draft(&fields)
        .into_spec(20.0, entropy, device_ota_domain::ring::Shares::default())
        .unwrap()
}

/// Each within the time of an attempt, or from there on.
fn any_times(rng: &mut StdRng, attempt: u64) -> Times {
    let mut some = |from, to| rng.random_bool(0.6).then(|| rng.random_range(from..=to));
    Times {
        download_seconds: some(1, attempt),
        install_seconds: some(1, attempt),
        give_up_after_seconds: some(attempt, 10 * attempt),
    }
}

/// A few hours of every day, by one clock or by those of the devices.
fn any_windows(rng: &mut StdRng) -> Windows {
    let zones = ["device", "UTC", "Europe/Berlin"];
    let window = |_| {
        json!({
            "start": format!("{:02}:{:02}", rng.random_range(0..24), rng.random_range(0..60)),
            "duration_minutes": rng.random_range(5..400), "time_zone": zones[rng.random_range(0..3)],
        })
    };
    let windows: Vec<_> = (0..2).map(window).collect();
    sample::spec(&json!({"windows": windows})).windows
}

fn any_aborts(rng: &mut StdRng) -> Vec<Abort> {
    let on = [
        AbortOn::Failed,
        AbortOn::Rejected,
        AbortOn::TimedOut,
        AbortOn::Any,
    ];
    let actions = [
        AbortAction::Pause,
        AbortAction::Cancel,
        AbortAction::Rollback,
    ];
    let mut abort = |_| Abort {
        on: on[rng.random_range(0..4)],
        percent: f64::from(rng.random_range(0..60)),
        min_samples: rng.random_range(0..6),
        action: actions[rng.random_range(0..3)],
    };
    (0..2).map(&mut abort).collect()
}

/// Opens before or after the start, and may end at any time after both.
fn any_schedule(rng: &mut StdRng, now: Timestamp, start: i64) -> Schedule {
    let opens = rng.random_range(0..1_200);
    let ends = start.max(opens) + rng.random_range(1..4_000);
    let after = |seconds| now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
    Schedule {
        start_at: rng.random_bool(0.7).then(|| after(opens)),
        end_at: rng.random_bool(0.7).then(|| after(ends)),
        on_end: [OnEnd::Stop, OnEnd::Cancel][rng.random_range(0..2)],
    }
}
