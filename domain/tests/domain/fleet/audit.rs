//! The rules: what must hold after every step, at every change of a row, and at the end.

use device_ota_domain::Update;
use device_ota_domain::campaign::{CampaignState, Counts, FailureKind, Group, Running, Tally};
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::update::{Action as UpdateAction, Part, Phase, UpdateState};
use jiff::{SignedDuration, Timestamp};

use super::world::World;
use crate::sample;

fn rule(holds: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken()) }
}

/// How an update failed, or regressed, that did; rollbacks are not counted so.
fn kind(update: &Update) -> Option<FailureKind> {
    match &update.state {
        UpdateState::Failed { failure, .. } if update.action == UpdateAction::Update => {
            Some(FailureKind::of(&failure.code))
        }
        _ => update
            .regression()
            .map(|regression| FailureKind::of(&regression.failure.code)),
    }
}

impl World {
    /// Writes a changed row and moves the counters by one delta.
    pub(super) fn apply(&mut self, row: usize, after: Update) -> Result<(), String> {
        let before = &self.rows[row].update;
        // What has ended stays, but for the device's own word that it succeeded after all.
        let after_all = !matches!(before.state, UpdateState::Completed { .. })
            && matches!(after.state, UpdateState::Completed { .. });
        rule(
            !before.is_terminal() || after_all || before.state == after.state,
            || format!("row {row} had ended as {:?}", before.state),
        )?;
        self.may_regress(row, &after)?;
        self.may_be_given_up(row, &after)?;
        if after.retries > before.retries {
            let (spent, attempt) = (self.rows[row].spent, after.attempt);
            rule(spent < attempt, || {
                format!("attempt {attempt} of row {row} spent two retries")
            })?;
            self.rows[row].spent = attempt;
        }
        self.write(row, after)
    }

    /// It is said once that an update has regressed, and only of a device that did something to deserve it.
    fn may_regress(&self, row: usize, after: &Update) -> Result<(), String> {
        let before = self.rows[row].update.regression();
        if before.is_some() || after.regression().is_none() {
            return rule(before == after.regression(), || {
                format!("row {row} had regressed as {before:?}")
            });
        }
        let agent = &self.agents[self.rows[row].agent];
        let deserved = agent.relapsed_at.is_some() || agent.gone || self.trouble.rivals;
        rule(deserved && after.group() == Group::Completed, || {
            format!("row {row} regressed: {:?}", after.regression())
        })
    }

    /// An admin's retry: the one way out of an end.
    pub(super) fn retry(&mut self, row: usize, after: Update) -> Result<(), String> {
        let before = self.rows[row].update.group();
        rule(before == Group::Failed, || {
            format!("row {row} was retried from {before:?}")
        })?;
        self.write(row, after)
    }

    /// An admin rolls a campaign back whose rollback was cancelled.
    pub(super) fn revive_rollbacks(&mut self, rollout: usize) -> Result<(), String> {
        for row in self.rows_of(rollout, UpdateAction::Rollback) {
            if self.rows[row].update.group() == Group::Cancelled {
                let mut update = self.rows[row].update.clone();
                update.give_up_at = Some(self.rollbacks_end_by());
                update.state = UpdateState::Pending {
                    due_at: self.now,
                    lost_at: None,
                    last_failure: None,
                };
                self.write(row, update)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, row: usize, after: Update) -> Result<(), String> {
        let before = &self.rows[row].update;
        let offered = before.group() == Group::Pending && after.group() == Group::InFlight;
        let attempts = (before.attempt, after.attempt);
        rule(attempts.1 == attempts.0 + u32::from(offered), || {
            format!("row {row}: attempts {attempts:?}")
        })?;
        rule(offered || after.last_seq >= before.last_seq, || {
            format!("row {row}: seq fell")
        })?;
        rule(after.retries <= after.max_retries, || {
            format!("row {row}: {} retries", after.retries)
        })?;
        rule(after.started_at.is_some() || after.attempt == 0, || {
            format!("row {row} was never begun")
        })?;
        let (from, to, action, stage) = (before.group(), after.group(), after.action, after.stage);
        self.story.tell(|| {
            format!(
                "          row {row} attempt {}: {from:?} -> {to:?}, {}",
                after.attempt,
                after.status()
            )
        });
        let rollout = self.rows[row].rollout;
        let kinds = [&self.rows[row].update, &after].map(kind);
        let regresses =
            after.regression().is_some() && self.rows[row].update.regression().is_none();
        self.rows[row].update = after;
        let failures = &mut self.rollouts[rollout].counts.failures;
        if let [Some(left), _] = kinds {
            *failures.of_mut(left) -= 1;
        }
        if let [_, Some(joined)] = kinds {
            *failures.of_mut(joined) += 1;
        }
        self.unaudited = true;
        let left = self.tally(rollout, action, stage).of_mut(from);
        *left = left.checked_sub(1).ok_or("a counter fell below nothing")?;
        *self.tally(rollout, action, stage).of_mut(to) += 1;
        if regresses {
            self.regressed += 1;
            self.tally(rollout, action, stage).regressed += 1;
        }
        Ok(())
    }

    /// Offers go out only from a running campaign's open stages and within its schedule, and rollbacks only from one that
    /// rolls back.
    pub(super) fn may_claim(
        &self,
        rollout: usize,
        action: UpdateAction,
        up_to: u16,
        hold: bool,
    ) -> Result<(), String> {
        let schedule = self.rollouts[rollout].campaign.spec.schedule;
        let may = match self.state(rollout) {
            CampaignState::InProgress(running) => {
                action == UpdateAction::Update
                    && up_to <= running.open_stage
                    && hold
                        == self.rollouts[rollout]
                            .campaign
                            .spec
                            .holds_at(running.open_stage)
                    && schedule.start_at.is_none_or(|start| start <= self.now)
                    && schedule.end_at.is_none_or(|end| self.now < end)
            }
            CampaignState::RollingBack { .. } => action == UpdateAction::Rollback && !hold,
            _ => false,
        };
        rule(may, || {
            format!(
                "{action:?} up to stage {up_to} claimed while {:?}",
                self.state(rollout)
            )
        })
    }

    /// The gate before `stage`, once more and from the rows.
    pub(super) fn gate_holds(&self, rollout: usize, stage: u16) -> Result<(), String> {
        let CampaignState::InProgress(running) = self.state(rollout) else {
            return Err(format!(
                "stage {stage} opens while {:?}",
                self.state(rollout)
            ));
        };
        rule(stage == running.open_stage + 1, || {
            format!("stage {stage} opens after {}", running.open_stage)
        })?;
        let it = &self.rollouts[rollout];
        let gate = &it.campaign.spec.stages[usize::from(stage - 1)].gate;
        let soaked = it
            .shown
            .map_or(0, |(_, since)| self.now.duration_since(since).as_secs());
        let nobody = it.counts.stages[usize::from(stage - 1)].total() == 0;
        let ripe = nobody || soaked >= gate.soak_seconds.cast_signed();
        rule(ripe && self.has_shown(rollout, running), || {
            format!("stage {stage} opened before its gate {gate:?}, soaked for {soaked} s")
        })
    }

    /// Notes since when the open stage has shown what its gate asks for, by the rows.
    pub(super) fn note_what_is_shown(&mut self, rollout: usize) {
        let CampaignState::InProgress(running) = *self.state(rollout) else {
            return;
        };
        let (stage, now) = (running.open_stage, self.now);
        let holds = self.has_shown(rollout, &running);
        let shown = &mut self.rollouts[rollout].shown;
        *shown = match *shown {
            Some((of, since)) if holds && of == stage => Some((of, since)),
            _ => holds.then_some((stage, now)),
        };
    }

    fn has_shown(&self, rollout: usize, running: &Running) -> bool {
        let rows = self.rows.iter().filter(|row| {
            row.rollout == rollout
                && row.update.action == UpdateAction::Update
                && row.update.stage == running.open_stage
        });
        let groups: Vec<_> = rows
            .map(|row| match row.update.regression() {
                Some(_) => Group::Failed,
                None => row.update.group(),
            })
            .collect();
        let of = |group| groups.iter().filter(|g| **g == group).count();
        let completed = of(Group::Completed) + of(Group::Staged);
        let settled = completed + of(Group::Failed);
        let left = groups.len() - of(Group::Cancelled);
        let stages = &self.rollouts[rollout].campaign.spec.stages;
        let gate = &stages[usize::from(running.open_stage)].gate;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "made from 0..=100"
        )]
        let percent = gate.min_success_percent as usize;
        let share = (left * percent).div_ceil(100);
        let need = gate
            .min_samples
            .map_or(share, |n| usize::try_from(n).unwrap())
            .max(1)
            .min(groups.len());
        groups.is_empty()
            || running.accepted.stage == Some(running.open_stage)
            || settled >= need && completed * 100 >= percent * settled
    }

    /// The service opens by itself no stage that waits for a person.
    pub(super) fn needs_nobody(&self, rollout: usize, stage: u16) -> Result<(), String> {
        let before = usize::from(stage - 1);
        let gate = &self.rollouts[rollout].campaign.spec.stages[before].gate;
        let tally = &self.rollouts[rollout].counts.stages[before];
        rule(!gate.manual || tally.total() == 0, || {
            format!("stage {stage} opens and nobody asked for it")
        })
    }

    /// After every step.
    pub(super) fn audit(&self) -> Result<(), String> {
        let mut given = vec![0_u32; self.agents.len()];
        for (index, rollout) in self.rollouts.iter().enumerate() {
            let mut counted = Counts {
                stages: vec![Tally::default(); rollout.counts.stages.len()],
                ..Counts::default()
            };
            for row in self.rows.iter().filter(|row| row.rollout == index) {
                let group = row.update.group();
                let tally = match row.update.action {
                    UpdateAction::Update => &mut counted.stages[usize::from(row.update.stage)],
                    UpdateAction::Rollback => &mut counted.rollbacks,
                };
                *tally.of_mut(group) += 1;
                tally.regressed += u64::from(row.update.regression().is_some());
                if let Some(kind) = kind(&row.update) {
                    *counted.failures.of_mut(kind) += 1;
                }
                given[row.agent] += u32::from(matches!(group, Group::InFlight | Group::Staged));
            }
            rule(counted == rollout.counts, || {
                format!("counters {:?} but rows {counted:?}", rollout.counts)
            })?;
            let limit = u64::from(rollout.campaign.spec.max_concurrent_updates);
            rule(counted.in_flight() <= limit, || {
                format!("{} in flight, at most {limit}", counted.in_flight())
            })?;
        }
        let all: u64 = self.rollouts.iter().map(|it| it.counts.in_flight()).sum();
        rule(self.limit.is_none_or(|limit| all <= limit), || {
            format!("{all} in flight of all, at most {:?}", self.limit)
        })?;
        self.rates_are_kept()?;
        self.times_are_kept()?;
        rule(given.iter().all(|n| *n <= 1), || {
            format!("in flight or held by device: {given:?}")
        })
    }

    /// Nothing goes forward outside of a maintenance window, by the clock of the device.
    pub(super) fn window_is_open(&self, row: usize) -> Result<(), String> {
        let row = &self.rows[row];
        let windows = &self.rollouts[row.rollout].campaign.spec.windows;
        let open = windows.at(self.now, self.agents[row.agent].zone);
        let back = row.update.action == UpdateAction::Rollback;
        rule(back || open.is_ok(), || {
            format!("{} offered before {open:?}", row.update.device_id)
        })
    }

    /// No part of an attempt takes longer than it may, and no update that is not kept waiting.
    fn times_are_kept(&self) -> Result<(), String> {
        for (index, row) in self.rows.iter().enumerate() {
            if let UpdateState::InFlight { phase, since, .. } = row.update.state {
                let longest = Part::of(phase).and_then(|part| row.update.times.of(part));
                let took = self.now.duration_since(since).as_secs();
                rule(longest.is_none_or(|most| took < most.cast_signed()), || {
                    format!(
                        "row {index} is {} for {took} s of {longest:?}",
                        phase.name()
                    )
                })?;
            }
            let over = row.update.give_up_at.is_some_and(|end| end <= self.now);
            rule(!over || row.update.is_terminal(), || {
                format!(
                    "row {index} was to be given up at {:?}",
                    row.update.give_up_at
                )
            })?;
        }
        Ok(())
    }

    /// Updates that were let go because their devices never began.
    pub(crate) fn given_up(&self) -> usize {
        let rows = self.rows.iter().filter(|row| {
            let because = Some(Exclusion::OutOfTime);
            matches!(row.update.state, UpdateState::Cancelled { because: it, .. } if it == because)
        });
        rows.count()
    }

    /// Updates whose last attempt ended because a part of it took too long.
    pub(crate) fn parts_too_long(&self) -> usize {
        let rows = self.rows.iter().filter(|row| match &row.update.state {
            UpdateState::Failed { failure, .. } => failure.message.contains("took longer than"),
            _ => false,
        });
        rows.count()
    }

    /// Whoever is given up had its whole time, was not at it, and is not there.
    fn may_be_given_up(&self, row: usize, after: &Update) -> Result<(), String> {
        let UpdateState::Cancelled {
            because: Some(Exclusion::OutOfTime),
            at,
        } = after.state
        else {
            return Ok(());
        };
        let before = &self.rows[row].update;
        let whole = SignedDuration::from_secs(
            after
                .times
                .give_up_after_seconds
                .unwrap_or(u64::MAX >> 1)
                .cast_signed(),
        );
        let began = matches!(before.state, UpdateState::InFlight { phase, hold, .. }
            if phase > Phase::Offered && !(hold && phase == Phase::Staged));
        let had = at.duration_since(after.created_at) >= whole;
        let there = before.owed().is_some() && self.agents[self.rows[row].agent].online;
        rule(had && !began && !there, || {
            format!("row {row} was given up: {before:?}")
        })
    }

    /// In no minute more offers than the rate lets, and what it makes up for.
    fn rates_are_kept(&self) -> Result<(), String> {
        for rollout in &self.rollouts {
            let Some(rate) = rollout.campaign.spec.rate else {
                continue;
            };
            let recent = rollout.offers.iter().rev();
            let recent = recent.take_while(|(at, _)| self.now.duration_since(*at).as_secs() < 60);
            let offers: u32 = recent.map(|(_, offers)| offers).sum();
            rule(offers <= rate.per_minute + rate.per_minute / 30 + 2, || {
                format!("{offers} offers in a minute, at most {}", rate.per_minute)
            })?;
        }
        Ok(())
    }

    /// When nothing will ever happen again.
    pub(super) fn verdict(&self) -> Result<(), String> {
        for rollout in 0..self.rollouts.len() {
            let state = self.state(rollout);
            let open: Vec<_> = self
                .rows
                .iter()
                .filter(|row| row.rollout == rollout && !row.update.is_terminal())
                .collect();
            let ended = match state {
                CampaignState::Completed { .. } | CampaignState::Cancelled { .. } => {
                    open.is_empty()
                }
                CampaignState::RolledBack { reason, .. } => {
                    open.is_empty()
                        && !reason.is_empty()
                        && self.all_taken_back(rollout)
                        && self.rollouts[rollout].counts.rollbacks.cancelled == 0
                }
                CampaignState::Paused { reason, .. } => {
                    !reason.is_empty() && open.iter().all(|row| row.update.owed().is_some())
                }
                _ => false,
            };
            let over = self.rollouts[rollout].campaign.spec.schedule.end_at;
            let ended = ended && !(over.is_some() && matches!(state, CampaignState::Paused { .. }));
            rule(ended, || {
                format!("at rest, yet {state:?} with {} rows open", open.len())
            })?;
        }
        self.rows_are_true()
    }

    fn all_taken_back(&self, rollout: usize) -> bool {
        self.rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.rollout == rollout && row.takes_back.is_none())
            .all(|(index, row)| {
                let back = self
                    .rows
                    .iter()
                    .filter(|other| other.takes_back == Some(index))
                    .count();
                back == usize::from(row.update.group() == Group::Completed)
            })
    }

    /// What the rows say of completed devices is what these run, where only one campaign moves them.
    fn rows_are_true(&self) -> Result<(), String> {
        if self.trouble.noise || self.trouble.rivals {
            return Ok(());
        }
        for (index, row) in self.rows.iter().enumerate() {
            let taken_back = self
                .rows
                .iter()
                .any(|other| other.takes_back == Some(index));
            if matches!(row.update.state, UpdateState::Completed { .. }) && !taken_back {
                let agent = &self.agents[row.agent];
                let spec = &self.rollouts[row.rollout].campaign.spec;
                let watch = spec.watch(row.update.stage, sample::LEASE).seconds;
                let watch = SignedDuration::from_secs(watch.cast_signed());
                let until = row.update.ended_at().unwrap().checked_add(watch).unwrap();
                // It shows itself when it is up again.
                let shown = |at: Timestamp| at.checked_add(SignedDuration::from_secs(30)).unwrap();
                let until = match row.update.action {
                    UpdateAction::Update => until,
                    UpdateAction::Rollback => row.update.ended_at().unwrap(),
                };
                let unseen = agent.relapsed_at.is_some_and(|at| shown(at) > until);
                let known = row.update.regression().is_some() || unseen;
                let runs = &agent.runs;
                rule(*runs == row.update.to_version || known, || {
                    format!("row {index} completed but its device runs {runs}")
                })?;
            }
        }
        Ok(())
    }
}
