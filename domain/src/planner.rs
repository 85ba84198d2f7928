//! The planner: what a campaign does next.
//!
//! Pure and total: the same inputs give the same plan, and every input gives one. The engine carries the actions out
//! in their order, idempotently, and leaves none of them out; after a crash the next pass plans afresh from the
//! database. A plan is a value that can be printed.

mod advance;
mod gate;
mod stop;

use jiff::Timestamp;

pub use advance::{Advance, AdvanceError, advance};
use gate::{gate, lost, soak};
use stop::stop as halt;

use crate::campaign::{
    Accepted, Campaign, CampaignState, Counts, OnEnd, OpenFor, Period, Running, TransitionError,
};
use crate::rollback::RollbackTrigger;
use crate::update::Action as UpdateAction;
use crate::why::Why;

/// What the engine shall do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Open this stage.
    OpenStage(u16),
    /// The open stage shows what its gate asks for: its soak begins.
    BeginSoak,
    /// It no longer does: its soak begins anew when it does again.
    EndSoak,
    /// Claim up to `count` such devices: those that hold their update and are to activate it, then those that are due, and are
    /// offered it.
    Claim {
        /// Which.
        what: Claim,
        /// Devices at most.
        count: u32,
    },
    /// The failure threshold is passed: roll back.
    RollBack {
        /// For people and the log.
        reason: String,
    },
    /// The failure threshold is passed or a gate cannot pass any more: stop and ask.
    Pause {
        /// For people and the log.
        reason: String,
    },
    /// The schedule has ended, and wants what is left cancelled.
    Cancel,
    /// There are too many failures for the campaign to go on: cancel what is left.
    Abort {
        /// For people and the log.
        reason: String,
    },
    /// Cancel every update, or every rollback, that waits, also for its activation.
    CancelPending(UpdateAction),
    /// Ask the devices that have an update, or a rollback, in flight, and can still leave it, to do so.
    CancelInFlight(UpdateAction),
    /// The time as a whole of updates begins, of those in the stages up to this one that have an end and no time yet.
    BeginTime(u16),
    /// Make a rollback for every completed update that has none.
    MakeRollbacks,
    /// Everything has ended.
    Finish,
}

/// Whom to offer what.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// Forward or back.
    pub action: UpdateAction,
    /// Highest stage to take from.
    pub up_to_stage: u16,
    /// Whoever is offered it goes no further than `staged`, and nobody is to activate it.
    pub hold: bool,
    /// Devices whose maintenance window is closed are passed over.
    pub open_for: OpenFor,
    /// Devices are offered it. Otherwise only those that hold it are told to activate it.
    pub offers: bool,
}

/// What to do, and why there is nothing more to do.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<Action>,
    /// Why the campaign does not go on by itself.
    pub waits: Vec<Why>,
}

impl Plan {
    fn act(action: Action) -> Self {
        Self {
            actions: vec![action],
            waits: Vec::new(),
        }
    }

    fn wait(why: Why) -> Self {
        Self {
            actions: Vec::new(),
            waits: vec![why],
        }
    }
}

/// Decides what `campaign`, standing at `counts`, does next.
///
/// ```
/// # use device_ota_domain::{planner::{plan, Action}, campaign::*, *};
/// # fn campaign(state: CampaignState) -> Campaign { let json = r#"{"name":"a","firmware_id":"00000000000000000000000000000000"}"#;
/// #   let spec = serde_json::from_str::<CampaignDraft>(json).unwrap().into_spec(10.0, 0, device_ota_domain::ring::Shares::default()).unwrap(); let t = jiff::Timestamp::UNIX_EPOCH;
/// #   Campaign { id: CampaignId::from_entropy([0; 8]), spec, state, approval: Approval::NotRequired, target_count: 100, revision: 0,
/// #   created_at: t, updated_at: t, created_by: "a".into(), next_offer_at: None, readings: Vec::new(), deleted_at: None } }
/// let now = jiff::Timestamp::UNIX_EPOCH;
/// let running = campaign(CampaignState::Created.start(now, now).unwrap());
/// let canary_done = Counts {
///     stages: vec![Tally { completed: 5, ..Tally::default() }, Tally { pending: 20, ..Tally::default() }],
///     ..Counts::default()
/// };
/// assert_eq!(plan(now, &running, &canary_done).actions, [Action::OpenStage(1)]);
/// ```
pub fn plan(now: Timestamp, campaign: &Campaign, counts: &Counts) -> Plan {
    match &campaign.state {
        CampaignState::Created => Plan::wait(Why::NotStarted),
        CampaignState::InProgress(running) => forward(now, campaign, running, counts),
        CampaignState::Paused { running, .. } => paused(now, campaign, running, counts),
        CampaignState::RollingBack { .. } => back(now, campaign, counts),
        CampaignState::Cancelled { .. } => stop(counts),
        CampaignState::RolledBack { .. }
            if counts.rollbacks.total() < counts.updates().completed =>
        {
            let reason = "a device completed after the others had gone back".to_owned();
            Plan::act(Action::RollBack { reason })
        }
        CampaignState::Completed { accepted, .. } => afterwards(campaign, accepted, counts),
        CampaignState::RolledBack { .. } => Plan::wait(Why::Ended),
    }
}

/// A pause keeps offers back. What is in flight goes on, and what would end the campaign by its results still does: after a resume,
/// which accepts them, nothing would.
fn paused(now: Timestamp, campaign: &Campaign, running: &Running, counts: &Counts) -> Plan {
    let ends = halt(campaign, &running.accepted, counts)
        .filter(|action| matches!(action, Action::RollBack { .. } | Action::Abort { .. }));
    match (ends, campaign.spec.schedule.period(now)) {
        (Some(action), _) => Plan::act(action),
        (None, Period::Over(on_end)) => over(on_end, counts),
        (None, Period::Before(_) | Period::Open) => Plan::wait(Why::Paused),
    }
}

/// Everybody has ended, and some have regressed since, or do worse by their heartbeats: what would have rolled the campaign back before
/// its end still does.
fn afterwards(campaign: &Campaign, accepted: &Accepted, counts: &Counts) -> Plan {
    let news = counts.updates().regressed > 0 || !campaign.readings.is_empty();
    let halts = news.then(|| halt(campaign, accepted, counts)).flatten();
    match halts {
        Some(action @ Action::RollBack { .. }) => Plan::act(action),
        _ => Plan::wait(Why::Ended),
    }
}

fn forward(now: Timestamp, campaign: &Campaign, running: &Running, counts: &Counts) -> Plan {
    let spec = &campaign.spec;
    let all = counts.updates();
    if let Some(action) = halt(campaign, &running.accepted, counts) {
        return Plan::act(action);
    }
    match spec.schedule.period(now) {
        Period::Over(on_end) => return over(on_end, counts),
        _ if all.open() == 0 && !spec.continuous => return Plan::act(Action::Finish),
        Period::Before(at) => return Plan::wait(Why::Scheduled { at }),
        // The stages are for those who come.
        Period::Open if all.total() == 0 => return Plan::wait(Why::Newcomers),
        Period::Open => {}
    }
    let last = spec.last_stage();
    if running.open_stage < last
        && let Some(action) = soak(campaign, running, counts)
    {
        return Plan::act(action);
    }
    let mut waits = Vec::new();
    if running.open_stage < last && !running.may_go_on() {
        let stage = spec.stages.get(usize::from(running.open_stage));
        waits.push(Why::NotPromoted {
            stage: stage.map_or_else(String::new, |stage| stage.name.clone()),
        });
    } else if running.open_stage < last {
        match gate(now, campaign, running, counts) {
            Ok(()) => return Plan::act(Action::OpenStage(running.open_stage + 1)),
            Err(why) => match lost(campaign, running, counts) {
                Some(reason) => return Plan::act(Action::Pause { reason }),
                None => waits.push(why),
            },
        }
    }
    let mut plan = Plan {
        actions: Vec::new(),
        waits,
    };
    let (open, hold) = (running.open_stage, spec.holds_at(running.open_stage));
    let here = counts.up_to_stage(open);
    if counts.timeless.is_some_and(|stage| stage <= open) {
        plan.actions.push(Action::BeginTime(open));
    }
    if all.open() == 0 && plan.waits.is_empty() {
        return Plan::wait(Why::Newcomers);
    }
    if here.pending == 0 && (here.staged == 0 || hold) {
        return plan.or_wait_for_answers();
    }
    match spec.windows.open_for(now) {
        Err(opens) => plan.waits.push(Why::Window { opens }),
        Ok(open_for) => {
            let claim = Claim {
                offers: counts.lines_free_at.is_none(),
                ..ahead(campaign, running, open_for)
            };
            let flips = here.staged > 0 && !hold;
            if let Some(next) = counts.lines_free_at
                && here.pending > 0
            {
                plan.waits.push(Why::Bandwidth { next });
            }
            // What devices hold has been downloaded.
            if claim.offers || flips {
                plan.claim(now, campaign, counts, claim);
            }
        }
    }
    plan.or_wait_for_answers()
}

/// Those of the campaign's updates, or rollbacks, that nothing but its pace holds back: what it would claim now if it had slots,
/// rate and bandwidth for everybody. While such a one waits, its device is kept for it from those that it goes before
/// ([`crate::Update::goes_before`]). Whatever else a campaign waits for keeps nobody from its devices: it may wait for that for ever.
pub fn wants(now: Timestamp, campaign: &Campaign) -> Option<Claim> {
    let spec = &campaign.spec;
    match &campaign.state {
        CampaignState::InProgress(running) if spec.schedule.period(now) == Period::Open => {
            let open_for = spec.windows.open_for(now).ok()?;
            Some(ahead(campaign, running, open_for))
        }
        CampaignState::RollingBack { .. } => Some(BACK),
        _ => None,
    }
}

/// What goes forward, for whom its windows are open.
fn ahead(campaign: &Campaign, running: &Running, open_for: OpenFor) -> Claim {
    Claim {
        action: UpdateAction::Update,
        up_to_stage: running.open_stage,
        hold: campaign.spec.holds_at(running.open_stage),
        open_for,
        offers: true,
    }
}

/// What goes back.
const BACK: Claim = Claim {
    action: UpdateAction::Rollback,
    up_to_stage: u16::MAX,
    hold: false,
    open_for: OpenFor::All,
    offers: true,
};

/// The state of `campaign` once this stage is open: see [`CampaignState::open_stage`] and [`CampaignState::judged_anew`].
pub fn opened(
    now: Timestamp,
    campaign: &Campaign,
    counts: &Counts,
    next: u16,
) -> Result<CampaignState, TransitionError> {
    let opened = campaign.state.clone().open_stage(next, now)?;
    let stops = |state: &CampaignState| match state {
        CampaignState::InProgress(running) => halt(campaign, &running.accepted, counts).is_some(),
        _ => false,
    };
    // What would stop it by now is not accepted by whoever opens the stage by force.
    Ok(if campaign.spec.flips_at(next) && !stops(&campaign.state) {
        opened.judged_anew(counts, now)
    } else {
        opened
    })
}

/// The state of `campaign` once an admin has resumed it: see [`CampaignState::resume`].
pub fn resume(
    now: Timestamp,
    campaign: &Campaign,
    counts: &Counts,
) -> Result<CampaignState, TransitionError> {
    let lost = match &campaign.state {
        CampaignState::Paused { running, .. } => lost(campaign, running, counts).is_some(),
        _ => false,
    };
    campaign.state.clone().resume(now, counts, lost)
}

/// The schedule has ended: nothing is offered any more.
fn over(on_end: OnEnd, counts: &Counts) -> Plan {
    let all = counts.updates();
    match on_end {
        OnEnd::Cancel if all.open() > 0 => Plan::act(Action::Cancel),
        OnEnd::Stop if all.waiting() > 0 => Plan::act(Action::CancelPending(UpdateAction::Update)),
        OnEnd::Stop if all.in_flight > 0 => Plan::wait(Why::Answers),
        OnEnd::Cancel | OnEnd::Stop => Plan::act(Action::Finish),
    }
}

fn back(now: Timestamp, campaign: &Campaign, counts: &Counts) -> Plan {
    let all = counts.updates();
    let mut plan = Plan::default();
    if all.waiting() > 0 {
        plan.actions
            .push(Action::CancelPending(UpdateAction::Update));
    }
    if all.in_flight > 0 {
        plan.actions
            .push(Action::CancelInFlight(UpdateAction::Update));
    }
    if counts.rollbacks.total() < all.completed {
        plan.actions.push(Action::MakeRollbacks);
    }
    if counts.rollbacks.pending > 0 {
        plan.claim(now, campaign, counts, BACK);
    }
    if all.open() == 0 && counts.rollbacks.open() == 0 && counts.rollbacks.total() >= all.completed
    {
        plan.actions.push(Action::Finish);
    }
    plan.or_wait_for_answers()
}

fn stop(counts: &Counts) -> Plan {
    let mut plan = Plan::wait(Why::Ended);
    for (action, tally) in [
        (UpdateAction::Update, counts.updates()),
        (UpdateAction::Rollback, counts.rollbacks),
    ] {
        if tally.waiting() > 0 {
            plan.actions.push(Action::CancelPending(action));
        }
        if tally.in_flight > 0 {
            plan.actions.push(Action::CancelInFlight(action));
        }
    }
    plan
}

impl Plan {
    fn claim(&mut self, now: Timestamp, campaign: &Campaign, counts: &Counts, what: Claim) {
        match slots(now, campaign, counts, what.action) {
            Err(why) => self.waits.push(why),
            Ok(count) => self.actions.push(Action::Claim { what, count }),
        }
    }

    /// A plan that neither acts nor says what it waits for waits for the devices that hold a slot.
    fn or_wait_for_answers(mut self) -> Self {
        if self.actions.is_empty() && self.waits.is_empty() {
            self.waits.push(Why::Answers);
        }
        self
    }
}

/// How many more updates and rollbacks the campaign may have in flight, by its own limit and by that of the whole service.
fn free_slots(campaign: &Campaign, counts: &Counts) -> u64 {
    let free = u64::from(campaign.spec.max_concurrent_updates).saturating_sub(counts.in_flight());
    free.min(counts.room.unwrap_or(u64::MAX))
}

/// How many devices may be claimed now: within the campaign's slots, the whole service's, a batch of devices that have not
/// answered, and the rate, which is for updates alone: what is bad is taken back as soon as the slots let.
pub fn slots(
    now: Timestamp,
    campaign: &Campaign,
    counts: &Counts,
    action: UpdateAction,
) -> Result<u32, Why> {
    let spec = &campaign.spec;
    let free = free_slots(campaign, counts);
    if free == 0 {
        return Err(match counts.room {
            Some(0) => Why::NoRoom,
            _ => Why::NoSlot,
        });
    }
    let batch = u64::from(spec.batch_size).saturating_sub(counts.unanswered(action));
    if batch == 0 {
        return Err(Why::Batch);
    }
    let due = match spec.rate.filter(|_| action == UpdateAction::Update) {
        Some(rate) => rate
            .due(now, campaign.next_offer_at, &counts.updates())
            .map_err(|next| Why::Rate { next })?,
        None => u32::MAX,
    };
    Ok(u32::try_from(free.min(batch)).unwrap_or(u32::MAX).min(due))
}

/// When the campaign's next offer is due, after `offers` were made now; `None`: it has no rate.
pub fn next_offer(
    now: Timestamp,
    campaign: &Campaign,
    counts: &Counts,
    offers: u32,
) -> Option<Timestamp> {
    let rate = campaign.spec.rate?;
    Some(rate.next(now, campaign.next_offer_at, &counts.updates(), offers))
}

/// Why `RollBack` was decided: by the threshold, never by a person.
pub const AUTOMATIC: RollbackTrigger = RollbackTrigger::FailureThreshold;
