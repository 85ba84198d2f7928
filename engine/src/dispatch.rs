//! The dispatcher: carries out what the planner decides, and says again what nobody answered.
//!
//! A pass over a campaign is one transaction: lock it, read its counters, plan, act, commit, then send. It decides
//! nothing by itself. Whatever a crash interrupts, the next pass finds in the database.

use std::sync::Arc;
use std::time::Instant;

use device_ota_domain::bandwidth::Lines;
use device_ota_domain::campaign::{Campaign, Counts};
use device_ota_domain::event::EventType;
use device_ota_domain::planner::{self, Action, Claim};
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::update::{Action as UpdateAction, OfferTerms, Owed};
use device_ota_domain::{CampaignId, CampaignState};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::audit::facts;
use crate::campaigns::{decided, tell};
use crate::changes::Changes;
use crate::offers::{Due, pair};
use crate::ports::StoreError;
use crate::ports::store::{Ahead, ClaimQuery, Claimable, RollbackTerms, SingleQuery, Tx};
use crate::precedence::ahead;
use crate::updates::left_to_offer;
use crate::{Caller, Engine, Result};

/// Updates claimed in one transaction; keeps it below some tens of milliseconds.
const MAX_CLAIM: u32 = 1_000;
/// Cancel requests that one pass makes.
const MAX_ROWS: u32 = 1_000;
/// Slots of updates outside of campaigns that one pass hands out.
const SINGLE_CLAIM: u32 = 500;

/// How long a campaign that has completed is looked at after one of its devices has regressed: it is decided at once, and this is
/// for a process that died, or stood still, before it was.
const REGRESSIONS_PLANNED: SignedDuration = SignedDuration::from_hours(24);

/// Runs until `shutdown`: woken by changes, and by the tick.
pub(crate) async fn run(engine: Arc<Engine>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(engine.settings.tick);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let timed = tokio::select! {
            () = shutdown.cancelled() => break,
            () = engine.dispatch.notified() => false,
            () = engine.rests.over() => false,
            _ = tick.tick() => true,
        };
        if timed && let Err(error) = engine.keep_time().await {
            if matches!(error, crate::Error::Store(_)) {
                engine.missed_something();
            }
            log(&error, "expiry");
        }
        if let Err(error) = engine.dispatch_all().await {
            log(&error, "dispatch");
        }
    }
    if let Err(error) = engine.write_download_counts().await {
        log(&error, "the last download counts");
    }
}

pub(crate) fn log(error: &crate::Error, during: &str) {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::warn!(%error, cause, during, "a pass failed; the next one tries again");
}

impl Engine {
    /// The planner may have something to do.
    pub fn wake(&self) {
        self.dispatch.notify_one();
    }

    /// One pass over every campaign that may have something to do, highest priority first, and over single devices. What goes
    /// back comes before all that goes forward.
    pub async fn dispatch_all(&self) -> Result<()> {
        let since = earlier(self.clock.now(), REGRESSIONS_PLANNED);
        let campaigns = self.store.campaigns_to_plan(since).await?;
        let goes_back = |c: &Campaign| matches!(c.state, CampaignState::RollingBack { .. });
        let (back, forward): (Vec<_>, Vec<_>) = campaigns.into_iter().partition(goes_back);
        // What becomes free meanwhile is for the next pass, or it went to whoever is looked at last.
        let mut room = self.room().await?;
        self.dispatch_each(&back, &mut room).await;
        self.dispatch_singles(UpdateAction::Rollback, &mut room)
            .await?;
        // What goes first for a device goes first for the room of the service, too.
        self.dispatch_singles(UpdateAction::Update, &mut room)
            .await?;
        self.dispatch_each(&forward, &mut room).await;
        Ok(())
    }

    /// Passes over these campaigns, each until it has nothing to do.
    pub(crate) async fn dispatch_each(&self, campaigns: &[Campaign], room: &mut Option<u64>) {
        for campaign in campaigns {
            // One campaign's trouble is not the others'.
            while self
                .dispatch_one(&campaign.id, room)
                .await
                .unwrap_or_else(|error| {
                    log(&error, "dispatch of a campaign");
                    false
                })
            {}
        }
    }

    /// One pass, within what is left of the pass's `room`; true when there may be more to do at once.
    async fn dispatch_one(&self, id: &CampaignId, room: &mut Option<u64>) -> Result<bool> {
        let Some(campaign) = self.store.campaign(id).await? else {
            return Ok(false);
        };
        let now = self.clock.now();
        let mut counts = self.counts(&campaign).await?;
        counts.room = within(counts.room, *room);
        if planner::plan(now, &campaign, &counts).actions.is_empty() {
            return Ok(false);
        }
        let mut tx = self.store.begin().await?;
        let Some(campaign) = tx.campaign(id).await? else {
            return Ok(false);
        };
        let mut counts = tx.counts(id).await?;
        counts.room = within(self.room_in(tx.as_mut()).await?, *room);
        let lines = self.hold_lines(tx.as_mut(), Some(&campaign), now).await?;
        counts.lines_free_at = self.free_at(&lines, Some(&campaign), now);
        let plan = planner::plan(now, &campaign, &counts);
        let mut pass = Pass {
            engine: self,
            tx: tx.as_mut(),
            campaign,
            counts,
            lines,
            now,
            due: Vec::new(),
            claimed: 0,
            more: false,
        };
        for action in plan.actions {
            pass.carry_out(action).await?;
        }
        let (due, claimed, more) = (pass.due, pass.claimed, pass.more);
        self.commit(tx).await?;
        take(room, claimed);
        self.send_due(due).await;
        Ok(more)
    }

    /// A campaign's counters, and what room and bandwidth the whole service leaves it.
    pub(crate) async fn counts(&self, campaign: &Campaign) -> Result<Counts> {
        let mut counts = self.store.counts(&campaign.id).await?;
        counts.room = self.room().await?;
        let now = self.clock.now();
        let lines = self.lines(Some(campaign), now).await?;
        counts.lines_free_at = self.free_at(&lines, Some(campaign), now);
        Ok(counts)
    }

    /// Slots that the limit of the whole service leaves; `None`: it has none.
    pub(crate) async fn room(&self) -> Result<Option<u64>> {
        match self.settings.max_in_flight {
            Some(limit) => {
                let taken = self.store.all_in_flight().await?;
                Ok(Some(limit.saturating_sub(taken)))
            }
            None => Ok(None),
        }
    }

    /// The same room, kept until the transaction ends: nobody else gives it out meanwhile.
    async fn room_in(&self, tx: &mut dyn Tx) -> std::result::Result<Option<u64>, StoreError> {
        match self.settings.max_in_flight {
            Some(limit) => Ok(Some(limit.saturating_sub(tx.hold_slots().await?))),
            None => Ok(None),
        }
    }

    /// Updates, or rollbacks, outside of campaigns.
    async fn dispatch_singles(&self, action: UpdateAction, room: &mut Option<u64>) -> Result<()> {
        let now = self.clock.now();
        if !self.store.has_due_singles(now, self.here()).await? {
            return Ok(());
        }
        let mut tx = self.store.begin().await?;
        let left = within(self.room_in(tx.as_mut()).await?, *room).unwrap_or(u64::MAX);
        let limit = u32::try_from(left).unwrap_or(u32::MAX).min(SINGLE_CLAIM);
        let mut lines = self.hold_lines(tx.as_mut(), None, now).await?;
        let waits = action == UpdateAction::Update;
        if waits && self.free_at(&lines, None, now).is_some() {
            return Ok(());
        }
        let busy = lines.busy(now).filter(|_| waits).cloned().collect();
        let ahead = match action {
            UpdateAction::Update => ahead(now, None, tx.rivals(None).await?),
            UpdateAction::Rollback => Ahead::default(),
        };
        let query = SingleQuery {
            action,
            now,
            limit,
            here: self.here(),
            busy,
            ahead,
        };
        let found = tx.claimable_singles(&query).await?;
        let found = left_to_offer(tx.as_mut(), found, now).await?;
        let found = self
            .carried(tx.as_mut(), None, &mut lines, found, now)
            .await?;
        let due = claim(self, tx.as_mut(), action, found, (now, false)).await?;
        self.commit(tx).await?;
        take(room, due.len());
        self.send_due(due).await;
        Ok(())
    }
}

/// One campaign's pass.
struct Pass<'p> {
    engine: &'p Engine,
    tx: &'p mut dyn Tx,
    campaign: Campaign,
    counts: Counts,
    lines: Lines,
    now: Timestamp,
    due: Vec<Due>,
    claimed: usize,
    more: bool,
}

impl Pass<'_> {
    async fn carry_out(&mut self, action: Action) -> Result<()> {
        match decided(&self.campaign, &self.counts, &action, self.now)? {
            Some((state, events)) => self.change(state, events).await,
            None => self.act(action).await,
        }
    }

    async fn change(&mut self, state: CampaignState, events: &[EventType]) -> Result<()> {
        let before = facts::campaign(&self.campaign);
        self.campaign.state = state;
        self.campaign.updated_at = self.now;
        self.tx.save_campaign(&self.campaign).await?;
        let by = Caller::service();
        for event_type in events {
            let before = Some(before.clone());
            tell(self.tx, *event_type, before, &self.campaign, self.now, &by).await?;
            tracing::info!(campaign.id = %self.campaign.id, campaign.status = self.campaign.state.status(), event_type = event_type.name());
        }
        self.more = true;
        Ok(())
    }

    async fn act(&mut self, action: Action) -> Result<()> {
        match action {
            Action::Claim { what, count } => self.claim(what, count).await,
            Action::CancelPending(action) => {
                let cancelled = self
                    .tx
                    .cancel_pending(&self.campaign.id, action, self.now)
                    .await?;
                self.more |= cancelled > 0;
                Ok(())
            }
            Action::CancelInFlight(action) => self.cancel_in_flight(action).await,
            Action::BeginTime(up_to_stage) => {
                let begin = self.tx.begin_time(&self.campaign.id, up_to_stage, self.now);
                Ok(begin.await?)
            }
            Action::MakeRollbacks => self.make_rollbacks().await,
            Action::OpenStage(_)
            | Action::BeginSoak
            | Action::EndSoak
            | Action::RollBack { .. }
            | Action::Pause { .. }
            | Action::Cancel
            | Action::Abort { .. }
            | Action::Finish => Ok(()),
        }
    }

    async fn claim(&mut self, what: Claim, count: u32) -> Result<()> {
        let action = what.action;
        let (busy, ahead) = match action {
            UpdateAction::Update => {
                let rivals = self.tx.rivals(Some(&self.campaign)).await?;
                let busy = self.lines.busy(self.now).cloned().collect();
                (busy, ahead(self.now, Some(&self.campaign), rivals))
            }
            UpdateAction::Rollback => (Vec::new(), Ahead::default()),
        };
        let query = ClaimQuery {
            campaign: self.campaign.id.clone(),
            action,
            up_to_stage: what.up_to_stage,
            limit: count.min(MAX_CLAIM),
            here: self.engine.here(),
            now: self.now,
            requires: self.campaign.spec.requires,
            hold: what.hold,
            open_for: what.open_for,
            offers: what.offers,
            busy,
            ahead,
        };
        let rivals = !query.ahead.is_empty();
        if rivals && self.engine.rests.has(&query.campaign) {
            return Ok(());
        }
        let began = Instant::now();
        let found = self.tx.claimable(&query).await?;
        if rivals && found.is_empty() {
            self.engine.rests.begin(&query.campaign, began.elapsed());
        }
        let (due, all) = (found.len(), found.len() == query.limit as usize);
        let found = left_to_offer(self.tx, found, self.now).await?;
        self.more |= found.len() < due;
        let campaign = Some(&self.campaign);
        let lines = &mut self.lines;
        let found = self
            .engine
            .carried(self.tx, campaign, lines, found, self.now)
            .await?;
        let claimed = u32::try_from(found.len()).unwrap_or(u32::MAX);
        self.more |= all && claimed > 0;
        if action == UpdateAction::Update
            && claimed > 0
            && let Some(next) = planner::next_offer(self.now, &self.campaign, &self.counts, claimed)
        {
            self.tx.pace(&self.campaign.id, next).await?;
        }
        let terms = (self.now, query.hold);
        let due = claim(self.engine, self.tx, action, found, terms).await?;
        self.claimed += due.len();
        self.due.extend(due);
        Ok(())
    }

    async fn cancel_in_flight(&mut self, action: UpdateAction) -> Result<()> {
        let updates = self
            .tx
            .cancellable(&self.campaign.id, action, self.engine.here(), MAX_ROWS)
            .await?;
        if updates.is_empty() {
            return Ok(());
        }
        self.more |= updates.len() == MAX_ROWS as usize;
        let mut changes = Changes::default();
        let mut told = Vec::with_capacity(updates.len());
        for update in updates {
            let before = update.standing();
            if let Ok(update) = update.cancel(self.now) {
                changes.record(&before, update.clone(), self.now);
                told.push(update);
            }
        }
        changes.write(self.tx).await?;
        let devices: Vec<_> = told.iter().map(|u| u.device).collect();
        let grounds = self.tx.draw_seqs(&devices).await?;
        self.due.extend(pair(told, grounds));
        Ok(())
    }

    async fn make_rollbacks(&mut self) -> Result<()> {
        let (trigger, reason) = match &self.campaign.state {
            CampaignState::RollingBack {
                trigger, reason, ..
            } => (*trigger, reason.clone()),
            _ => (RollbackTrigger::Manual, String::new()),
        };
        let terms = RollbackTerms {
            trigger,
            reason: &reason,
            at: self.now,
            give_up_at: self.engine.rollbacks_end_by(self.now),
        };
        let made = self.tx.make_rollbacks(&self.campaign, &terms).await?;
        self.more |= made > 0;
        Ok(())
    }
}

/// Claims updates: in flight from here on, with a lease and a fresh `seq`, and with the next attempt number unless they are
/// to activate what the last one brought. What their devices held for others is lost to these.
async fn claim(
    engine: &Engine,
    tx: &mut dyn Tx,
    action: UpdateAction,
    found: Vec<Claimable>,
    (now, hold): (Timestamp, bool),
) -> std::result::Result<Vec<Due>, StoreError> {
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let (mut displaced, mut changes) = (Changes::default(), Changes::default());
    let mut updates = Vec::with_capacity(found.len());
    for found in found {
        if let Some(held) = found.displaces {
            let before = held.standing();
            if let Some(held) = held.displace(now) {
                displaced.record(&before, held, now);
            }
        }
        let before = found.update.standing();
        let terms = OfferTerms {
            now,
            lease: engine.settings.lease,
            running: found.running,
            hold,
        };
        let claimed = match found.update.owed() {
            Some(Owed::Activation) => found.update.activate(now, terms.lease),
            _ => found.update.offer(&terms),
        };
        if let Some(update) = claimed {
            changes.record(&before, update.clone(), now);
            updates.push(update);
        }
    }
    displaced.write(tx).await?;
    changes.write(tx).await?;
    let devices: Vec<_> = updates.iter().map(|u| u.device).collect();
    // Whatever they show from now on is no word about what they completed before.
    tx.end_watches(&devices).await?;
    let grounds = tx.draw_seqs(&devices).await?;
    engine.watched.forget(devices);
    engine
        .metrics
        .add("updates_claimed", action.name(), updates.len() as u64);
    Ok(pair(updates, grounds))
}

/// The less of two rooms, where the service has a limit.
fn within(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.zip(other).map(|(one, other)| one.min(other))
}

fn take(room: &mut Option<u64>, slots: usize) {
    *room = room.map(|room| room.saturating_sub(slots as u64));
}

pub(crate) fn earlier(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_sub(by).unwrap_or(Timestamp::MIN)
}
