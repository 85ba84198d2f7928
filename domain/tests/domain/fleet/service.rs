//! The service of the model: it carries out plans and keeps rows and counters as the engine does, and decides nothing.

use device_ota_domain::campaign::{CampaignState, Counts, Group, OpenFor, Tally};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::planner::{self, Action, Claim};
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::update::{
    Action as UpdateAction, Aftermath, Expiry, Failure, Look, OfferTerms, Owed, Retry, Times,
    UpdateState,
};
use device_ota_domain::why;
use device_ota_domain::{Update, UpdateId};
use rand::RngExt;

use super::world::{Row, World};
use crate::sample;

/// Passes over one campaign at the same time after which the planner counts as spinning.
const MAX_PASSES: usize = 200;
/// How long a rollback may take.
const ROLLBACK_TIMEOUT: jiff::SignedDuration = jiff::SignedDuration::from_hours(3);

impl World {
    /// Time, then every campaign until it has nothing more to do; and again, because one may have let go of what another
    /// waits for.
    pub(super) fn pass(&mut self) -> Result<(), String> {
        self.expire()?;
        let (mut passes, mut changed) = (0, true);
        while std::mem::take(&mut changed) {
            for rollout in 0..self.rollouts.len() {
                while self.plan_and_act(rollout)? {
                    changed = self.rollouts.len() > 1;
                    passes += 1;
                    if passes > MAX_PASSES {
                        let counts = &self.rollouts[rollout].counts;
                        return Err(format!("the planner spins at {counts:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn expire(&mut self) -> Result<(), String> {
        for row in 0..self.rows.len() {
            let agent = &self.agents[self.rows[row].agent];
            let last_seen = if agent.online {
                Some(self.now)
            } else {
                agent.last_seen
            };
            let expiry = Expiry {
                now: self.now,
                last_seen,
                kept_waiting: self.is_over(row) && self.is_kept_waiting(row),
                lease: sample::LEASE,
            };
            let runs = agent.tells_version.then(|| agent.runs.clone());
            let look = Look {
                now: self.now,
                last_seen,
                online: agent.online,
                running: runs.as_deref(),
            };
            if let Some(update) = self.rows[row].update.clone().look_afterwards(&look) {
                self.apply(row, update)?;
            }
            if !self.rows[row].update.is_terminal()
                && let Some(update) = self.rows[row].update.clone().expire(&expiry)
            {
                self.apply(row, update)?;
            }
        }
        Ok(())
    }

    /// The device of this row, which has not completed, was given to another update since this one was first offered.
    pub(super) fn is_superseded(&self, row: usize) -> bool {
        let (agent, started) = (self.rows[row].agent, self.rows[row].update.started_at);
        let mut others = self.rows.iter().enumerate();
        others.any(|(index, other)| {
            index != row
                && other.agent == agent
                && match other.update.state {
                    UpdateState::InFlight { .. } | UpdateState::Staged { .. } => true,
                    UpdateState::Completed { at } => Some(at) >= started,
                    _ => false,
                }
        })
    }

    fn counts(&self, rollout: usize) -> Counts {
        let in_flight: u64 = self.rollouts.iter().map(|it| it.counts.in_flight()).sum();
        let [updates, rollbacks] = UpdateAction::ALL.map(|action| self.unanswered(rollout, action));
        Counts {
            room: self.limit.map(|limit| limit - in_flight),
            unanswered_updates: updates,
            unanswered_rollbacks: rollbacks,
            timeless: self.timeless(rollout),
            ..self.rollouts[rollout].counts.clone()
        }
    }

    /// The time of this row as a whole is over.
    fn is_over(&self, row: usize) -> bool {
        let end = self.rows[row].update.give_up_at;
        end.is_some_and(|end| end <= self.now)
    }

    /// It is not its device that this row, which waits, waits for.
    pub(super) fn is_kept_waiting(&self, row: usize) -> bool {
        let row = &self.rows[row];
        let (campaign, counts) = (
            &self.rollouts[row.rollout].campaign,
            self.counts(row.rollout),
        );
        if row.update.action == UpdateAction::Rollback {
            return planner::slots(self.now, campaign, &counts, UpdateAction::Rollback).is_err();
        }
        let plan = planner::plan(self.now, campaign, &counts);
        let claims = |action: &Action| matches!(action, Action::Claim { .. });
        let paced = plan.waits.iter().any(|why| why.is_of_pace_for(&row.update));
        let agent = &self.agents[row.agent];
        let backs_off = matches!(row.update.owed(), Some(Owed::Offer(due_at)) if due_at > self.now);
        why::held_by_campaign(campaign, &row.update, self.now).is_some()
            || campaign.spec.windows.at(self.now, agent.zone).is_err()
            || !backs_off && (paced && !plan.actions.iter().any(claims) || agent.online)
    }

    /// The stage with which the time of the first update begins that has an end and no time yet.
    fn timeless(&self, rollout: usize) -> Option<u16> {
        let rows = self.rows.iter().filter(|row| row.rollout == rollout);
        rows.filter_map(|row| self.begins_with(rollout, &row.update))
            .min()
    }

    /// The stage with which the time of this update begins, if it has an end and no time yet.
    fn begins_with(&self, rollout: usize, update: &Update) -> Option<u16> {
        update.times.give_up_after_seconds?;
        if update.action == UpdateAction::Rollback || update.give_up_at.is_some() {
            return None;
        }
        match update.owed()? {
            Owed::Offer(_) => Some(update.stage),
            Owed::Activation => Some(self.rollouts[rollout].campaign.spec.last_stage()),
        }
    }

    fn begin_time(&mut self, rollout: usize, up_to: u16) -> Result<bool, String> {
        let mut changed = false;
        for row in self.rows_of(rollout, UpdateAction::Update) {
            let begins = self.begins_with(rollout, &self.rows[row].update);
            if begins.is_some_and(|stage| stage <= up_to) {
                let update = &mut self.rows[row].update;
                update.give_up_at = update.times.ends_by(self.now);
                changed = true;
            }
        }
        if changed {
            Ok(true)
        } else {
            Err("a time begins for nobody".into())
        }
    }

    /// True when something changed, so that the planner may have more to do at once.
    fn plan_and_act(&mut self, rollout: usize) -> Result<bool, String> {
        self.note_what_is_shown(rollout);
        let counts = self.counts(rollout);
        let plan = planner::plan(self.now, &self.rollouts[rollout].campaign, &counts);
        if plan.actions.is_empty() && plan.waits.is_empty() {
            return Err("a plan that neither acts nor says why".into());
        }
        let mut changed = false;
        for action in plan.actions {
            if self.trouble.crashes && self.rng.random_bool(0.05) {
                self.nudge(); // killed here; starts again in a second
                return Ok(false);
            }
            changed |= self.act(rollout, action)?;
        }
        Ok(changed)
    }

    /// Devices that have not answered what they were told last.
    fn unanswered(&self, rollout: usize, action: UpdateAction) -> u64 {
        let of_it = |row: &&Row| row.rollout == rollout && row.update.action == action;
        let rows = self.rows.iter().filter(of_it);
        let waiting = rows.filter(|row| row.update.is_unanswered());
        u64::try_from(waiting.count()).unwrap()
    }

    fn act(&mut self, rollout: usize, action: Action) -> Result<bool, String> {
        match action {
            Action::OpenStage(stage) => {
                self.gate_holds(rollout, stage)?;
                self.needs_nobody(rollout, stage)?;
                let (campaign, counts) = (
                    self.rollouts[rollout].campaign.clone(),
                    self.counts(rollout),
                );
                self.change(rollout, |_, now| {
                    planner::opened(now, &campaign, &counts, stage)
                })
            }
            Action::BeginSoak => self.change(rollout, |state, now| state.soak(Some(now))),
            Action::EndSoak => self.change(rollout, |state, _| state.soak(None)),
            Action::Claim { what, count } => self.claim(rollout, &what, count),
            Action::RollBack { reason } => self.change(rollout, |state, now| {
                state.roll_back(now, RollbackTrigger::FailureThreshold, reason)
            }),
            Action::Pause { reason } => self.change(rollout, |state, now| state.pause(now, reason)),
            Action::Cancel => self.change(rollout, CampaignState::cancel),
            Action::Abort { reason } => self.change(rollout, |state, now| state.abort(now, reason)),
            Action::Finish => self.change(rollout, CampaignState::finish),
            Action::CancelPending(action) => self.cancel_pending(rollout, action),
            Action::CancelInFlight(action) => self.cancel_in_flight(rollout, action),
            Action::BeginTime(stage) => self.begin_time(rollout, stage),
            Action::MakeRollbacks => Ok(self.make_rollbacks(rollout)),
        }
    }

    fn change<T, E: std::fmt::Display>(
        &mut self,
        rollout: usize,
        transition: T,
    ) -> Result<bool, String>
    where
        T: FnOnce(CampaignState, jiff::Timestamp) -> Result<CampaignState, E>,
    {
        let campaign = &mut self.rollouts[rollout].campaign;
        let state = transition(campaign.state.clone(), self.now)
            .map_err(|e| format!("planned in vain: {e}"))?;
        self.story
            .tell(|| format!("          {} is {state:?}", campaign.id));
        campaign.state = state;
        Ok(true)
    }

    fn claim(&mut self, rollout: usize, what: &Claim, count: u32) -> Result<bool, String> {
        let (action, up_to, hold) = (what.action, what.up_to_stage, what.hold);
        self.may_claim(rollout, action, up_to, hold)?;
        let mut busy = vec![false; self.agents.len()];
        for row in self
            .rows
            .iter()
            .filter(|row| row.update.group() == Group::InFlight)
        {
            busy[row.agent] = true;
        }
        let mut due: Vec<_> = (0..self.rows.len())
            .filter(|row| {
                self.rows[*row].rollout == rollout && self.rows[*row].update.action == action
            })
            .filter(|row| self.rows[*row].update.stage <= up_to)
            .filter_map(|row| match self.rows[row].update.state {
                UpdateState::Pending { due_at, .. } if due_at <= self.now => {
                    Some((true, self.rows[row].update.stage, due_at, row))
                }
                UpdateState::Staged { since } if !hold => {
                    Some((false, self.rows[row].update.stage, since, row))
                }
                _ => None,
            })
            .filter(|(_, _, _, row)| {
                self.agents[self.rows[*row].agent].online && !busy[self.rows[*row].agent]
            })
            .filter(|(_, _, _, row)| {
                let zone = self.agents[self.rows[*row].agent].zone;
                match &what.open_for {
                    OpenFor::All => true,
                    OpenFor::Zones(zones) => zones.iter().any(|name| Some(name.as_str()) == zone),
                    OpenFor::AllBut(zones) => !zones.iter().any(|name| Some(name.as_str()) == zone),
                }
            })
            .filter(|(_, _, _, row)| {
                let wants = &self.rows[*row].update;
                self.held(*row)
                    .is_none_or(|other| self.rows[other].update.gives_way_to(wants))
            })
            .collect();
        due.sort_unstable();
        if action == UpdateAction::Rollback {
            due.reverse();
        }
        due.truncate(usize::try_from(count).unwrap());
        if action == UpdateAction::Update && !due.is_empty() {
            self.pace(rollout, due.len());
        }
        for (_, _, _, row) in &due {
            if let Some(held) = self.held(*row) {
                let gives_way = self.rows[held].update.clone().displace(self.now).unwrap();
                self.displaced += 1;
                self.apply(held, gives_way)?;
            }
            self.window_is_open(*row)?;
            let agent = &self.agents[self.rows[*row].agent];
            let running = agent.tells_version.then(|| agent.runs.clone());
            let terms = OfferTerms {
                now: self.now,
                lease: sample::LEASE,
                running,
                hold,
            };
            let update = self.rows[*row].update.clone();
            let update = if update.owed() == Some(Owed::Activation) {
                self.activations += 1;
                update.activate(self.now, sample::LEASE)
            } else {
                update.offer(&terms)
            };
            let update = update.ok_or("claimed what does not wait")?;
            self.apply(*row, update)?;
            let agent = self.rows[*row].agent;
            for other in self.rows.iter_mut().filter(|other| other.agent == agent) {
                if other.update.watch().is_some() {
                    other.update.aftermath = Aftermath::Unwatched;
                }
            }
            self.send(*row);
        }
        Ok(!due.is_empty())
    }

    /// Notes the offers that are about to be made.
    fn pace(&mut self, rollout: usize, offers: usize) {
        let offers = u32::try_from(offers).unwrap();
        let it = &mut self.rollouts[rollout];
        let next = planner::next_offer(self.now, &it.campaign, &it.counts, offers);
        it.campaign.next_offer_at = next;
        it.offers.push((self.now, offers));
    }

    /// The row whose image the device of this one holds, if that is another.
    fn held(&self, row: usize) -> Option<usize> {
        let holds = |other: &Row| {
            other.agent == self.rows[row].agent && other.update.group() == Group::Staged
        };
        self.rows.iter().position(holds).filter(|held| *held != row)
    }

    fn cancel_pending(&mut self, rollout: usize, action: UpdateAction) -> Result<bool, String> {
        let mut changed = false;
        for row in self.rows_of(rollout, action) {
            if self.rows[row].update.owed().is_some() {
                let update = self.rows[row]
                    .update
                    .clone()
                    .cancel(self.now)
                    .map_err(|e| e.to_string())?;
                self.apply(row, update)?;
                changed = true;
            }
        }
        Ok(changed)
    }

    fn cancel_in_flight(&mut self, rollout: usize, action: UpdateAction) -> Result<bool, String> {
        let mut changed = false;
        for row in self.rows_of(rollout, action) {
            if let UpdateState::InFlight {
                cancel_requested: false,
                phase,
                ..
            } = self.rows[row].update.state
                && phase.can_cancel()
            {
                let update = self.rows[row]
                    .update
                    .clone()
                    .cancel(self.now)
                    .map_err(|e| e.to_string())?;
                self.apply(row, update)?;
                self.send(row);
                changed = true;
            }
        }
        Ok(changed)
    }

    fn make_rollbacks(&mut self, rollout: usize) -> bool {
        let mut changed = false;
        for row in self.rows_of(rollout, UpdateAction::Update) {
            let has_one = self.rows.iter().any(|other| other.takes_back == Some(row));
            if self.rows[row].update.group() == Group::Completed && !has_one {
                self.insert(
                    rollout,
                    self.rows[row].agent,
                    self.rows[row].update.stage,
                    Some(row),
                );
                changed = true;
            }
        }
        changed
    }

    /// When a rollback that is made now ends, whatever became of its device.
    pub(super) fn rollbacks_end_by(&self) -> jiff::Timestamp {
        self.now.checked_add(ROLLBACK_TIMEOUT).unwrap()
    }

    pub(super) fn rows_of(&self, rollout: usize, action: UpdateAction) -> Vec<usize> {
        let is = |row: &usize| {
            self.rows[*row].rollout == rollout && self.rows[*row].update.action == action
        };
        (0..self.rows.len()).filter(is).collect()
    }

    /// A new row: an update, or the rollback of `takes_back`, which is born failed when nobody knows what ran before.
    pub(super) fn insert(
        &mut self,
        rollout: usize,
        agent: usize,
        stage: u16,
        takes_back: Option<usize>,
    ) {
        let campaign = &self.rollouts[rollout].campaign;
        let mut begin = UpdateState::Pending {
            due_at: self.now,
            lost_at: None,
            last_failure: None,
        };
        let action = if takes_back.is_some() {
            UpdateAction::Rollback
        } else {
            UpdateAction::Update
        };
        let to = match takes_back {
            None => Some(self.rollouts[rollout].to.to_owned()),
            Some(row) => self.rows[row].update.from_version.clone(),
        };
        if to.is_none() {
            let failure = Failure::new("no_previous_firmware", "", Retry::Never);
            begin = UpdateState::Failed {
                at: self.now,
                failure,
            };
        }
        let digits = campaign.id.as_str().trim_start_matches("camp_");
        let kind = u8::from(takes_back.is_some());
        let update = Update {
            id: format!("upd_{digits}{kind}{agent:x}")
                .parse::<UpdateId>()
                .unwrap(),
            device: DeviceKey(i64::try_from(agent).unwrap()),
            device_id: format!("device-{agent}").parse().unwrap(),
            campaign: Some(campaign.id.clone()),
            action,
            to_version: to.unwrap_or_default(),
            stage,
            max_retries: campaign.spec.max_retries,
            timeout_seconds: campaign.spec.timeout_seconds,
            times: match action {
                UpdateAction::Update => campaign.spec.times,
                UpdateAction::Rollback => Times {
                    give_up_after_seconds: None,
                    ..campaign.spec.times
                },
            },
            give_up_at: takes_back.map(|_| self.rollbacks_end_by()),
            state: begin,
            created_at: self.now,
            updated_at: self.now,
            ..sample::pending()
        };
        *self.tally(rollout, action, stage).of_mut(update.group()) += 1;
        self.unaudited = true;
        self.rows.push(Row {
            update,
            rollout,
            agent,
            takes_back,
            spent: 0,
        });
    }

    pub(super) fn tally(&mut self, rollout: usize, action: UpdateAction, stage: u16) -> &mut Tally {
        let counts = &mut self.rollouts[rollout].counts;
        match action {
            UpdateAction::Update => &mut counts.stages[usize::from(stage)],
            UpdateAction::Rollback => &mut counts.rollbacks,
        }
    }
}
