//! The rules: what must hold after every commit that the world sees, at every change of a row, and of every message.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use device_ota_domain::campaign::{Campaign, CampaignState, Counts, Group, Period, Tally};
use device_ota_domain::page::Page;
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::update::{Action, UpdateState};
use device_ota_domain::{CampaignId, Update, UpdateId};
use device_ota_engine::ports::Store;
use device_ota_engine::ports::store::UpdateFilter;
use jiff::Timestamp;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;

use super::admin::Rollout;
use super::device::{Device, Offered};
use super::pace::Pace;
use super::rivals::{Seen, is_claimed, nobody_was_passed_over};
use super::sent::{Sent, Way};
use super::world::World;

/// All rows of a world.
const ALL: Page = Page {
    limit: 200,
    offset: 0,
};

pub(super) fn rule(holds: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken()) }
}

/// What the world last saw in the database, and what it has been told.
#[derive(Default)]
pub(super) struct Books {
    pub(super) rows: BTreeMap<UpdateId, Update>,
    pub(super) campaigns: HashMap<CampaignId, Campaign>,
    sent: Sent,
    /// Failed updates that an admin has asked to retry.
    retried: HashSet<UpdateId>,
    /// Campaigns whose cancelled rollbacks an admin has asked for once more.
    revived: HashSet<CampaignId>,
    pace: Pace,
    let_go: usize,
}

impl Books {
    /// Reads the database and holds it to the rules. Answers what is new.
    pub(super) async fn look(
        &mut self,
        store: &dyn Store,
        rollouts: &[Rollout],
        devices: &[Device],
        now: Timestamp,
    ) -> Result<Vec<String>, String> {
        let rows = store.updates(&UpdateFilter::default(), ALL).await.unwrap();
        let mut campaigns = HashMap::new();
        for rollout in rollouts {
            let campaign = store.campaign(&rollout.id).await.unwrap().unwrap();
            let counts = store.counts(&rollout.id).await.unwrap();
            counters_are_a_group_by(&rows, rollout, &counts)?;
            let by_rows = store.counts_by_rows(&rollout.id).await.unwrap();
            rule(counts == by_rows, || {
                format!("counters {counts:?}, the database counts {by_rows:?}")
            })?;
            campaigns.insert(rollout.id.clone(), campaign);
        }
        let mut busy = BTreeSet::new();
        for row in rows.iter().filter(|row| row.group() == Group::InFlight) {
            rule(busy.insert(row.device), || {
                format!("{} has two updates in flight", row.device_id)
            })?;
        }
        let (mut news, mut claimed) = (Vec::new(), Vec::new());
        let earlier = self.rows.clone();
        let mut changed = Vec::new();
        for row in rows {
            let before = earlier.get(&row.id);
            if before != Some(&row) {
                if is_claimed(before, &row, now) {
                    claimed.push(row.clone());
                }
                let is_news = |before: &Update| {
                    before.status() != row.status() || before.regression() != row.regression()
                };
                if before.is_none_or(is_news) {
                    news.push(line_of(&row));
                }
                self.may_change(before, &row, devices)?;
                may_regress(before, &row, devices)?;
                let before_too = before.is_some_and(was_let_go);
                self.let_go += usize::from(was_let_go(&row) && !before_too);
                self.retried.remove(&row.id);
                changed.push(row.id.clone());
                self.rows.insert(row.id.clone(), row);
            }
        }
        // Of all that has changed in the step, one thing may be because of another.
        for id in changed {
            let row = self.rows[&id].clone();
            self.may_be_offered(earlier.get(&id), &row, &campaigns, now)?;
        }
        let before = Seen {
            rows: &earlier,
            campaigns: &self.campaigns,
        };
        let after = Seen {
            rows: &self.rows,
            campaigns: &campaigns,
        };
        nobody_was_passed_over(store, &claimed, before, after, now).await?;
        for (id, campaign) in &campaigns {
            if self
                .campaigns
                .get(id)
                .is_none_or(|before| before.state != campaign.state)
            {
                news.push(format!("{id} is {:?}", campaign.state));
            }
        }
        self.campaigns = campaigns;
        Ok(news)
    }

    /// A row goes only the ways that there are.
    fn may_change(
        &self,
        before: Option<&Update>,
        row: &Update,
        devices: &[Device],
    ) -> Result<(), String> {
        let what = || line_of(row);
        rule(row.retries <= row.max_retries, || {
            format!("{}: {} retries", what(), row.retries)
        })?;
        let claims = devices
            .iter()
            .find(|device| device.reference.key == row.device);
        let claimed = claims.is_some_and(|device| {
            let of_it = device
                .claims
                .iter()
                .filter(|(update, _)| update == row.id.as_str());
            of_it
                .map(|(_, attempt)| *attempt)
                .any(|attempt| attempt <= row.attempt)
        });
        // What was asked of a device alone is done when it runs that by another update.
        let runs_it = claims.is_some_and(|device| device.runs == row.to_version);
        let arrived = row.campaign.is_none() && runs_it;
        rule(
            row.group() != Group::Completed || claimed || arrived,
            || format!("{}: its device has not said so", what()),
        )?;
        let Some(before) = before else {
            return Ok(());
        };
        let had_it = matches!(before.group(), Group::InFlight | Group::Staged);
        let offered = row.group() == Group::InFlight && !had_it;
        rule(row.attempt >= before.attempt + u32::from(offered), || {
            format!("{}: it was at attempt {}", what(), before.attempt)
        })?;
        rule(
            row.attempt > before.attempt || row.last_seq >= before.last_seq,
            || {
                format!(
                    "{}: its seq fell from {} to {}",
                    what(),
                    before.last_seq,
                    row.last_seq
                )
            },
        )?;
        let stays = match (before.group(), row.group()) {
            // It had not ended, or its device has succeeded after all, by its own word.
            (Group::Pending | Group::InFlight | Group::Staged, _)
            | (Group::Failed | Group::Cancelled, Group::Completed) => true,
            (Group::Failed, Group::Pending | Group::InFlight) => self.retried.contains(&row.id),
            (Group::Cancelled, Group::Pending | Group::InFlight) => {
                let revived = |id| self.revived.contains(id);
                let again = row.action == Action::Rollback;
                let left = was_let_go(before) && !was_given_up(before);
                left || again && row.campaign.as_ref().is_some_and(revived)
            }
            _ => {
                // It was meant once more, and let go for another reason, within one step.
                let returned = was_let_go(before) && !was_given_up(before) && was_let_go(row);
                before.state == row.state || returned || self.retried.contains(&row.id)
            }
        };
        let overtaken = is_let_go_as(row, Exclusion::NewerInstalled);
        let gone = is_let_go_as(row, Exclusion::UnknownDevice);
        rule(
            !was_let_go(row) || overtaken || gone || was_given_up(row) || row.attempt == 0,
            || format!("{}: it was offered before it was let go", what()),
        )?;
        rule(stays, || {
            format!(
                "{} as {:?}: it had ended as {:?}",
                what(),
                row.state,
                before.state
            )
        })
    }

    /// Offers go out only from a running campaign's open stages and within its schedule, and rollbacks only from one that
    /// rolls back.
    fn may_be_offered(
        &mut self,
        before: Option<&Update>,
        row: &Update,
        campaigns: &HashMap<CampaignId, Campaign>,
        now: Timestamp,
    ) -> Result<(), String> {
        let Some(id) = &row.campaign else {
            return Ok(());
        };
        let flips =
            before.is_some_and(|b| b.group() == Group::Staged) && row.group() == Group::InFlight;
        let offered = row.attempt > before.map_or(0, |before| before.attempt);
        if !offered && !flips {
            return Ok(());
        }
        if let Some(campaign) = campaigns.get(id).filter(|_| row.action == Action::Update) {
            self.pace.keeps(campaign, row, offered)?;
        }
        if row.action == Action::Rollback {
            self.takes_its_own_back(id, row)?;
        }
        // As it was before the step or is after it: a step may both offer and end a campaign.
        let states = [self.campaigns.get(id), campaigns.get(id)];
        let may = states
            .into_iter()
            .flatten()
            .any(|campaign| match &campaign.state {
                CampaignState::InProgress(running) => {
                    let stage = if offered {
                        row.stage
                    } else {
                        campaign.spec.last_stage()
                    };
                    row.action == Action::Update
                        && stage <= running.open_stage
                        && campaign.spec.schedule.period(now) == Period::Open
                }
                CampaignState::RollingBack { .. } => row.action == Action::Rollback,
                _ => false,
            });
        rule(may, || {
            let states = states.map(|campaign| campaign.map(|campaign| &campaign.state));
            format!("{}: offered while its campaign is {states:?}", line_of(row))
        })
    }

    /// A campaign takes back what it brought, and not what came to the device since.
    fn takes_its_own_back(&self, id: &CampaignId, row: &Update) -> Result<(), String> {
        let of_device = self
            .rows
            .values()
            .filter(|other| other.device == row.device);
        // Whoever fell back runs what there was before.
        let lasts = |row: &&Update| row.group() == Group::Completed && row.regression().is_none();
        let completed = of_device.filter(lasts);
        let Some(newest) = completed.max_by_key(|other| other.ended_at()) else {
            return Ok(());
        };
        let own = newest.campaign.as_ref() == Some(id);
        let brought = self.rows.values().find(|other| {
            other.device == row.device
                && other.campaign.as_ref() == Some(id)
                && other.action == Action::Update
        });
        let is_back = newest.to_version == row.to_version;
        let runs_it = brought.is_some_and(|brought| brought.to_version == newest.to_version);
        rule(own || is_back || runs_it, || {
            format!("{} after {}", line_of(row), line_of(newest))
        })
    }

    /// Each message to a device has a higher `seq` than the one before, and an offer is of an attempt that there is.
    pub(super) fn offered(
        &mut self,
        device: usize,
        offered: &Offered,
        way: Way,
        dead: bool,
    ) -> Result<(), String> {
        self.told(device, offered.seq, way)?;
        self.sent.offered(device, offered, way)?;
        let row = offered
            .update
            .parse::<UpdateId>()
            .ok()
            .and_then(|id| self.rows.get(&id));
        if dead {
            return Ok(()); // what was committed is not known yet
        }
        let row = row.ok_or_else(|| format!("{offered:?} is of no update"))?;
        rule(row.device_id.as_str() == World::name(device), || {
            format!("{offered:?} went to {}", World::name(device))
        })?;
        // It may have ended, or begun anew, since it was sent: within one step.
        rule(
            row.attempt >= offered.attempt && row.to_version == offered.version,
            || format!("{offered:?} was sent, but {}", line_of(row)),
        )
    }

    pub(super) fn told(&mut self, device: usize, seq: u64, way: Way) -> Result<(), String> {
        self.sent.told(device, seq, way)
    }

    /// What was acknowledged is in the database.
    pub(super) async fn acknowledged(
        &self,
        store: &dyn Store,
        device: &Device,
        text: &str,
    ) -> Result<(), String> {
        let report: Value = serde_json::from_str(text).unwrap();
        let (update, attempt) = (
            report["update_id"].as_str().unwrap(),
            report["attempt"].as_u64(),
        );
        let id = update.parse().unwrap();
        let Some(row) = store.update(&id).await.unwrap() else {
            return Err(format!("{update} is not in the database"));
        };
        let is_true = row.device == device.reference.key
            && attempt <= Some(u64::from(row.attempt))
            && report["phase"] == "completed"
            && report["version"].as_str() == Some(&row.to_version)
            // Who forges may have spoilt an attempt of its own.
            && !device.forges();
        let known = matches!(row.state, UpdateState::Completed { .. });
        let lost = match &row.state {
            UpdateState::InFlight { phase, .. } => {
                row.device == device.reference.key
                    && attempt == Some(u64::from(row.attempt))
                    && report["seq"].as_u64() > Some(row.last_seq)
                    && place(&report["phase"]) >= place(&phase.name().into())
            }
            _ => false,
        };
        rule((!is_true || known) && !lost, || {
            format!("{text} was acknowledged, and {}", line_of(&row))
        })
    }

    pub(super) fn may_retry(&mut self, update: &UpdateId) {
        self.retried.insert(update.clone());
    }

    pub(super) fn may_revive(&mut self, campaign: &CampaignId) {
        self.revived.insert(campaign.clone());
    }

    /// One of a campaign's rows; with an action, one of that kind that has failed.
    pub(super) fn any_row(
        &self,
        rng: &mut StdRng,
        campaign: &CampaignId,
        failed: Option<Action>,
    ) -> Option<UpdateId> {
        let of_it = |row: &&Update| {
            row.campaign.as_ref() == Some(campaign)
                && failed.is_none_or(|action| row.action == action && row.group() == Group::Failed)
        };
        let rows: Vec<_> = self.rows.values().filter(of_it).collect();
        (!rows.is_empty()).then(|| rows[rng.random_range(0..rows.len())].id.clone())
    }

    /// Updates of devices other than this one.
    pub(super) fn updates_of_others(&self, device: usize) -> Vec<String> {
        let name = World::name(device);
        let others = self
            .rows
            .values()
            .filter(|row| row.device_id.as_str() != name);
        others.map(|row| row.id.to_string()).collect()
    }

    /// Whether a campaign waits for devices that never come back.
    pub(super) fn waits_for_the_gone(&self, campaign: &CampaignId, devices: &[Device]) -> bool {
        let gone = |row: &Update| {
            let device = devices
                .iter()
                .find(|device| device.reference.key == row.device);
            device.is_some_and(|device| device.gone)
        };
        let open = self.rows.values().filter(|row| !row.is_terminal());
        open.filter(|row| row.campaign.as_ref() == Some(campaign))
            .any(gone)
    }

    /// Updates and rollbacks that wait for single devices which never come back.
    pub(super) fn singles_of_the_gone(&self, devices: &[Device]) -> Vec<UpdateId> {
        let gone = |row: &&Update| {
            let device = devices
                .iter()
                .find(|device| device.reference.key == row.device);
            device.is_some_and(|device| device.gone)
        };
        let singles = self.rows.values().filter(|row| row.campaign.is_none());
        let open = singles.filter(|row| row.group() == Group::Pending);
        open.filter(gone).map(|row| row.id.clone()).collect()
    }

    /// How often devices were told to flip.
    pub(super) const fn flips(&self) -> usize {
        self.pace.flips
    }

    /// How often updates were let go.
    pub(super) const fn settled(&self) -> usize {
        self.let_go
    }

    /// Every campaign and every update has ended, and nobody is watched any more.
    pub(super) fn all_is_over(&self) -> bool {
        let over = |campaign: &Campaign| !campaign.state.is_active();
        let over_too = |row: &Update| row.is_terminal() && row.watch().is_none();
        self.campaigns.values().all(over) && self.rows.values().all(over_too)
    }
}

/// It is said once that an update has regressed, and only of a device that did something to deserve it.
fn may_regress(before: Option<&Update>, row: &Update, devices: &[Device]) -> Result<(), String> {
    let before = before.and_then(Update::regression);
    if before.is_some() || row.regression().is_none() {
        return rule(before == row.regression(), || {
            format!("{}: it had regressed as {before:?}", line_of(row))
        });
    }
    let mut of_it = devices.iter().filter(|d| d.reference.key == row.device);
    // Who is away for long has fallen silent, wherever that was.
    let deserved = of_it.any(|d| d.relapsed_at.is_some() || d.forges() || !d.is_online());
    rule(deserved && row.group() == Group::Completed, || {
        format!("{}: {:?}", line_of(row), row.regression())
    })
}

/// It was let go for that reason.
fn is_let_go_as(row: &Update, reason: Exclusion) -> bool {
    matches!(row.state, UpdateState::Cancelled { because: Some(because), .. } if because == reason)
}

/// Its device did not begin with it in time.
fn was_given_up(row: &Update) -> bool {
    is_let_go_as(row, Exclusion::OutOfTime)
}

/// Its device was none of its campaign's any more, or did not begin in time.
const fn was_let_go(row: &Update) -> bool {
    matches!(
        row.state,
        UpdateState::Cancelled {
            because: Some(_),
            ..
        }
    )
}

fn counters_are_a_group_by(
    rows: &[Update],
    rollout: &Rollout,
    counts: &Counts,
) -> Result<(), String> {
    // The rest is compared with the database's own count.
    let mut counted = Counts {
        stages: vec![Tally::default(); counts.stages.len()],
        rollbacks: Tally::default(),
        unanswered_updates: 0,
        unanswered_rollbacks: 0,
        ..counts.clone()
    };
    for row in rows
        .iter()
        .filter(|row| row.campaign.as_ref() == Some(&rollout.id))
    {
        let tally = match row.action {
            Action::Update => &mut counted.stages[usize::from(row.stage)],
            Action::Rollback => &mut counted.rollbacks,
        };
        *tally.of_mut(row.group()) += 1;
        tally.regressed += u64::from(row.regression().is_some());
        match row.action {
            Action::Update => counted.unanswered_updates += u64::from(row.is_unanswered()),
            Action::Rollback => counted.unanswered_rollbacks += u64::from(row.is_unanswered()),
        }
    }
    rule(counted == *counts, || {
        format!("counters {counts:?}, but rows {counted:?}")
    })?;
    rule(counted.in_flight() <= rollout.limit, || {
        format!(
            "{} in flight, at most {}",
            counted.in_flight(),
            rollout.limit
        )
    })
}

/// How far on its way a phase is; what ends an attempt comes last.
fn place(phase: &Value) -> usize {
    const ON_THE_WAY: [&str; 7] = [
        "offered",
        "accepted",
        "downloading",
        "verifying",
        "installing",
        "staged",
        "rebooting",
    ];
    let found = ON_THE_WAY.iter().position(|name| phase == name);
    found.unwrap_or(ON_THE_WAY.len())
}

/// A row in one line.
pub(super) fn line_of(row: &Update) -> String {
    let (id, action) = (&row.id, row.action.name());
    let (device, attempt, stage) = (&row.device_id, row.attempt, row.stage);
    let why = match &row.state {
        UpdateState::Failed { failure, .. } => format!(" ({})", failure.code),
        _ => row.regression().map_or_else(String::new, |regression| {
            format!(" and regressed ({})", regression.failure.code)
        }),
    };
    format!(
        "{action} {id} of {device} in stage {stage}, attempt {attempt}: {}{why}",
        row.status()
    )
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, campaign) in &self.campaigns {
            writeln!(f, "{id} is {:?}", campaign.state)?;
        }
        for row in self.rows.values().filter(|row| !row.is_terminal()) {
            writeln!(f, "{}", line_of(row))?;
        }
        Ok(())
    }
}
