//! Why something waits: one sentence for people, one stable code for programs.

mod explain;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

pub use explain::{Case, explain, held_by_campaign, held_by_device, held_by_window, keeps_device};

use crate::exclusion::Exclusion;
use crate::ids::{CampaignId, UpdateId};
use crate::update::{Action, Phase};

/// A reason to wait.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Why {
    /// The campaign has not started.
    NotStarted,
    /// The campaign was started, and its schedule opens later.
    Scheduled {
        /// When.
        at: Timestamp,
    },
    /// The device is none of the campaign's.
    NotTarget {
        /// Why it is not.
        because: Exclusion,
    },
    /// The campaign is paused.
    Paused,
    /// The campaign has ended or is rolling back.
    Ended,
    /// The device's stage has not opened.
    StageClosed {
        /// The device's stage.
        stage: String,
    },
    /// The campaign goes no further than this stage before it is promoted.
    NotPromoted {
        /// The stage.
        stage: String,
    },
    /// The stage before has too few results.
    GateSamples {
        /// Results so far.
        have: u64,
        /// Results needed.
        need: u64,
    },
    /// The stage before has too few successes.
    GateSuccess,
    /// The stage before has not been open long enough.
    GateSoak,
    /// All else holds, and a person has to open the next stage.
    GateManual {
        /// The stage that waits.
        stage: String,
    },
    /// Its maintenance windows are closed.
    Window {
        /// When the next one opens.
        opens: Timestamp,
    },
    /// All slots are taken.
    NoSlot,
    /// All slots of the whole service are taken.
    NoRoom,
    /// As many devices as a batch has were told something, and have not answered.
    Batch,
    /// The campaign has offered as much as its rate lets.
    Rate {
        /// When the next offer is due.
        next: Timestamp,
    },
    /// The lines over which the image goes carry no more, by their budgets of bandwidth.
    Bandwidth {
        /// When they carry the next offer.
        next: Timestamp,
    },
    /// Every device whose turn it is holds a slot and has not ended.
    Answers,
    /// The device is not connected.
    Offline {
        /// When it was last heard; `None` when it never was.
        since: Option<Timestamp>,
    },
    /// The last attempt failed or was deferred; the next comes later.
    BackOff {
        /// When.
        until: Timestamp,
    },
    /// Its battery is too low.
    Battery {
        /// Percent, as last said.
        has: f64,
        /// Percent.
        needs: u8,
    },
    /// Its free storage is too small.
    Storage {
        /// Bytes, as last said.
        has: i64,
        /// Bytes.
        needs: i64,
    },
    /// It says it is another model.
    Model,
    /// Another update of this device is in flight, or has its image, or waits and goes first.
    OtherUpdate {
        /// Which one.
        update: UpdateId,
        /// Whose; `None`: of the device alone.
        campaign: Option<CampaignId>,
    },
    /// Nothing holds it back: an offer follows.
    Turn,
    /// The campaign waits for somebody's approval.
    Unapproved {
        /// Somebody has said no.
        rejected: bool,
    },
    /// The device was none of the campaign's when it started, and would be by now.
    TooLate,
    /// The same, and the campaign takes such devices in: it will in a moment.
    Joining,
    /// Every device has ended, and the campaign goes on for those that it comes to mean.
    Newcomers,
    /// The device has an offer and has not ended.
    InFlight {
        /// Forward or back.
        action: Action,
        /// How far it is.
        phase: Phase,
        /// Which offer it is, counted from 1.
        attempt: u32,
    },
    /// The device runs what was offered.
    Completed {
        /// Forward or back.
        action: Action,
        /// Since when.
        at: Timestamp,
    },
    /// It had completed, and its device has not stayed well.
    Regressed {
        /// Forward or back.
        action: Action,
        /// When that was seen.
        at: Timestamp,
        /// Error code.
        error: String,
    },
    /// It ended without.
    Failed {
        /// Forward or back.
        action: Action,
        /// When.
        at: Timestamp,
        /// Error code of the last attempt.
        error: String,
    },
    /// It was withdrawn.
    Cancelled {
        /// Forward or back.
        action: Action,
        /// When.
        at: Timestamp,
        /// Why the device was none of the campaign's any more; left out when somebody withdrew it.
        #[serde(skip_serializing_if = "Option::is_none")]
        because: Option<Exclusion>,
    },
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotStarted => f.write_str("the campaign has not started"),
            Self::Scheduled { at } => write!(f, "the campaign begins at {at}"),
            Self::NotTarget { because } => because.fmt(f),
            Self::Paused => f.write_str("the campaign is paused"),
            Self::Ended => f.write_str("the campaign offers nothing any more"),
            Self::StageClosed { stage } => write!(f, "stage {stage} has not opened"),
            Self::NotPromoted { stage } => {
                write!(f, "the campaign goes no further than {stage} before it is promoted")
            }
            Self::GateSamples { have, need } => {
                write!(f, "the stage has {have} results and needs {need}")
            }
            Self::GateSuccess => f.write_str("the stage's share of successes is too low"),
            Self::GateSoak => f.write_str("the stage has not been open long enough"),
            Self::GateManual { stage } => {
                write!(f, "stage {stage} waits for a person to open it (advance)")
            }
            Self::Window { opens } => {
                write!(f, "the next maintenance window opens at {opens}")
            }
            Self::NoSlot => f.write_str("all slots are taken"),
            Self::NoRoom => f.write_str("all slots of the whole service are taken"),
            Self::Batch => f.write_str("the devices of the batch before have not answered"),
            Self::Rate { next } => {
                write!(f, "the campaign's rate lets the next offer go out at {next}")
            }
            Self::Bandwidth { next } => {
                write!(f, "it waits for bandwidth; the next offer can go out at {next}")
            }
            Self::Answers => f.write_str("the devices that hold a slot have not ended"),
            Self::Offline { since: None } => f.write_str("the device is not connected"),
            Self::Offline { since: Some(at) } => {
                write!(f, "the device is not connected; it was last heard at {at}")
            }
            Self::BackOff { until } => write!(f, "the device tries again at {until}"),
            Self::Battery { has, needs } => {
                write!(f, "the device's battery is at {has} % and must be at {needs} %")
            }
            Self::Storage { has, needs } => write!(
                f,
                "the device has {has} bytes of free storage and needs {needs}"
            ),
            Self::Model => f.write_str("the device says that it is another model"),
            Self::OtherUpdate { update, .. } => {
                write!(f, "update {update} of this device comes first")
            }
            Self::Turn => f.write_str("nothing holds it back; an offer follows"),
            Self::Unapproved { rejected: false } => {
                f.write_str("the campaign needs an approval before it can start")
            }
            Self::Unapproved { rejected: true } => f.write_str("the campaign was rejected"),
            Self::TooLate => f.write_str(
                "the campaign did not mean the device when it started; what it means by now is not added",
            ),
            Self::InFlight {
                action,
                phase,
                attempt,
            } => write!(
                f,
                "the {} was offered, attempt {attempt}, and is {}",
                action.name(),
                phase.name()
            ),
            Self::Completed { action, at } => write!(f, "the {} completed at {at}", action.name()),
            Self::Regressed { action, at, error } => {
                write!(f, "the {} had completed and regressed at {at} with {error}", action.name())
            }
            Self::Failed { action, at, error } => {
                write!(f, "the {} failed at {at} with {error}", action.name())
            }
            Self::Joining => f.write_str("the campaign means the device by now and takes it in"),
            Self::Newcomers => f.write_str(
                "every device has ended; the campaign goes on for those that it comes to mean",
            ),
            Self::Cancelled {
                action,
                at,
                because,
            } => {
                write!(f, "the {} was cancelled at {at}", action.name())?;
                because.map_or(Ok(()), |because| write!(f, ": {because}"))
            }
        }
    }
}
