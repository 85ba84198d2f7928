//! Why a device has, or has not, been offered what a campaign has for it: every reason, the most decisive first.

use jiff::Timestamp;

use super::Why;
use crate::campaign::{
    ApprovalError, Campaign, CampaignState, Named, Period, Requires, Strategy, TIME_ZONE_TAG,
};
use crate::device::Device;
use crate::firmware::UploadMetadata;
use crate::targeting::{Exclusion, judge};
use crate::update::{Action, Owed, Update, UpdateState};

/// What there is to know of a device and a campaign.
#[derive(Debug, Clone, Copy)]
pub struct Case<'c> {
    /// The present.
    pub now: Timestamp,
    /// The campaign.
    pub campaign: &'c Campaign,
    /// The devices that it names; looked at only where it has no update of the device.
    pub named: &'c Named,
    /// What it rolls out.
    pub image: &'c UploadMetadata,
    /// Why it does not go on by itself, as the planner says.
    pub waits: &'c [Why],
    /// The device; `None` when it is not registered.
    pub device: Option<&'c Device>,
    /// The campaign's updates and rollbacks of this device, newest first.
    pub updates: &'c [Update],
    /// What the device is given to, whoever asked for it: an update in flight, or one whose image it holds; or else one that it is
    /// kept for.
    pub busy_with: Option<&'c Update>,
    /// When the lines that the device is behind carry an image; `None`: now.
    pub lines_free_at: Option<Timestamp>,
}

/// Every reason, the most decisive first; never none.
pub fn explain(case: &Case<'_>) -> Vec<Why> {
    if case.updates.is_empty() {
        return without_update(case);
    }
    case.updates
        .iter()
        .flat_map(|update| of_update(case, update))
        .collect()
}

fn without_update(case: &Case<'_>) -> Vec<Why> {
    let campaign = case.campaign;
    let excluded = match case.device {
        None => Some(Exclusion::UnknownDevice),
        Some(device) => judge(&campaign.spec, case.named, case.image, device, case.now).err(),
    };
    let excluded = excluded.map(|because| Why::NotTarget { because });
    if campaign.state != CampaignState::Created {
        let late = if campaign.follows_its_fleet(case.now) {
            Why::Joining
        } else {
            Why::TooLate
        };
        return vec![excluded.unwrap_or(late)];
    }
    let unapproved = match campaign.approval.permits() {
        Err(ApprovalError::Missing { rejected }) => Some(Why::Unapproved { rejected }),
        _ => None,
    };
    let mut reasons: Vec<Why> = excluded.into_iter().chain(unapproved).collect();
    reasons.push(Why::NotStarted);
    reasons
}

fn of_update(case: &Case<'_>, update: &Update) -> Vec<Why> {
    let action = update.action;
    match &update.state {
        UpdateState::Completed { at } => {
            let regressed = update.regression().map(|regression| Why::Regressed {
                action,
                at: regression.at,
                error: regression.failure.code.clone(),
            });
            let completed = Why::Completed { action, at: *at };
            regressed.into_iter().chain([completed]).collect()
        }
        UpdateState::Failed { at, failure } => vec![Why::Failed {
            action,
            at: *at,
            error: failure.code.clone(),
        }],
        UpdateState::Cancelled { at, because } => vec![Why::Cancelled {
            action,
            at: *at,
            because: *because,
        }],
        UpdateState::InFlight { phase, .. } => vec![Why::InFlight {
            action,
            phase: *phase,
            attempt: update.attempt,
        }],
        UpdateState::Pending { .. } | UpdateState::Staged { .. } => waiting(case, update),
    }
}

fn waiting(case: &Case<'_>, update: &Update) -> Vec<Why> {
    let mut reasons = Vec::new();
    if let Some(why) = held_by_campaign(case.campaign, update, case.now) {
        let closed = matches!(why, Why::StageClosed { .. });
        reasons.push(why);
        if closed {
            // What the gate before it waits for.
            reasons.extend(case.waits.iter().cloned());
        }
    }
    if let Some(device) = case.device
        && !matches!(reasons.last(), Some(Why::Window { .. }))
    {
        reasons.extend(held_by_window(case.campaign, update, device, case.now));
    }
    let device = case.device.into_iter();
    reasons.extend(device.flat_map(|d| held_by_device(d, case.campaign.spec.requires)));
    let busy_with = case.busy_with.filter(|other| other.id != update.id);
    if let Some(other) = busy_with.filter(|other| !other.gives_way_to(update)) {
        reasons.push(Why::OtherUpdate {
            update: other.id.clone(),
            campaign: other.campaign.clone(),
        });
    }
    if let Some(Owed::Offer(due_at)) = update.owed()
        && due_at > case.now
    {
        reasons.push(Why::BackOff { until: due_at });
    }
    if reasons.is_empty() {
        let full = case.waits.iter().find(|why| why.is_of_pace_for(update));
        let busy = case.lines_free_at.map(|next| Why::Bandwidth { next });
        let busy = busy.filter(|why| why.is_of_pace_for(update));
        reasons.push(full.cloned().or(busy).unwrap_or(Why::Turn));
    }
    reasons
}

impl Why {
    /// How fast the campaign goes, or the service: an update that waits for nothing else waits for that.
    pub fn is_of_pace_for(&self, update: &Update) -> bool {
        match self {
            Self::NoSlot | Self::NoRoom | Self::Batch | Self::Rate { .. } => true,
            // What is held has been downloaded, and what is taken back does not wait for the lines.
            Self::Bandwidth { .. } => {
                update.action == Action::Update && matches!(update.owed(), Some(Owed::Offer(_)))
            }
            _ => false,
        }
    }
}

/// What the campaign's state says against an update that waits.
pub fn held_by_campaign(campaign: &Campaign, update: &Update, now: Timestamp) -> Option<Why> {
    let period = campaign.spec.schedule.period(now);
    match &campaign.state {
        CampaignState::Created => Some(Why::NotStarted),
        CampaignState::Paused { .. } => Some(Why::Paused),
        CampaignState::InProgress(running) => match period {
            Period::Before(at) => Some(Why::Scheduled { at }),
            Period::Over(_) => Some(Why::Ended),
            Period::Open if awaited(campaign, update) > running.open_stage => {
                let stage = usize::from(awaited(campaign, update));
                let stage = campaign.spec.stages.get(stage);
                Some(Why::StageClosed {
                    stage: stage.map_or_else(String::new, |s| s.name.clone()),
                })
            }
            Period::Open => None,
        },
        CampaignState::RollingBack { .. } if update.action == Action::Rollback => None,
        _ => Some(Why::Ended),
    }
}

/// The stage that an update waits for: its device's, or, once the device holds what it was offered, the one that activates.
fn awaited(campaign: &Campaign, update: &Update) -> u16 {
    match update.owed() {
        Some(Owed::Activation) if campaign.spec.strategy == Strategy::BlueGreen => {
            campaign.spec.last_stage()
        }
        _ => update.stage,
    }
}

/// What the maintenance windows say against an update that waits; a rollback goes at any hour.
pub fn held_by_window(
    campaign: &Campaign,
    update: &Update,
    device: &Device,
    now: Timestamp,
) -> Option<Why> {
    let zone = device.registration.tags.get(TIME_ZONE_TAG);
    let closed = campaign
        .spec
        .windows
        .at(now, zone.map(String::as_str))
        .err();
    let opens = closed.filter(|_| update.action == Action::Update)?;
    Some(Why::Window { opens })
}

/// Whether an update that waits keeps its device from those that it goes before: nothing but the pace of its campaign, or of the
/// service, holds it back. It is of the campaign, or outside of any; see [`crate::planner::wants`].
pub fn keeps_device(
    update: &Update,
    campaign: Option<&Campaign>,
    requires: Requires,
    device: &Device,
    now: Timestamp,
) -> bool {
    let held = |campaign| {
        held_by_campaign(campaign, update, now)
            .or_else(|| held_by_window(campaign, update, device, now))
    };
    let is_due = matches!(update.owed(), Some(Owed::Offer(due_at)) if due_at <= now);
    is_due && campaign.and_then(held).is_none() && held_by_device(device, requires).is_empty()
}

/// What the device's last word says against an update of it. What it never said does not hold it back.
pub fn held_by_device(device: &Device, requires: Requires) -> Vec<Why> {
    let latest = &device.latest;
    let offline = (!latest.online).then_some(Why::Offline {
        since: latest.last_seen,
    });
    let battery = requires.min_battery_percent.zip(latest.battery_percent);
    let battery = battery.filter(|(needs, has)| *has < f64::from(*needs));
    let battery = battery.map(|(needs, has)| Why::Battery { has, needs });
    let storage = requires
        .min_free_storage_bytes
        .zip(latest.free_storage_bytes);
    let storage = storage.filter(|(needs, has)| has < needs);
    let storage = storage.map(|(needs, has)| Why::Storage { has, needs });
    let model = latest.reported_model.as_ref();
    let model = model.filter(|model| **model != device.registration.device_model);
    let model = model.map(|_| Why::Model);
    offline
        .into_iter()
        .chain(battery)
        .chain(storage)
        .chain(model)
        .collect()
}
