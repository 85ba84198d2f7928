//! Why something waits: one sentence for people, one stable code for programs.

use serde::Serialize;
use utoipa::ToSchema;

use crate::targeting::Exclusion;

/// A reason to wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Why {
    /// The campaign has not started.
    NotStarted,
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
    /// All slots are taken.
    NoSlot,
    /// Every device whose turn it is holds a slot and has not ended.
    Answers,
    /// The device is not connected.
    Offline,
    /// The last attempt failed or was deferred; the next comes later.
    BackOff,
    /// Its battery is too low.
    Battery,
    /// Its free storage is too small.
    Storage,
    /// It says it is another model.
    Model,
    /// Another update of this device is in flight.
    OtherUpdate,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotStarted => f.write_str("the campaign has not started"),
            Self::NotTarget { because } => because.fmt(f),
            Self::Paused => f.write_str("the campaign is paused"),
            Self::Ended => f.write_str("the campaign offers nothing any more"),
            Self::StageClosed { stage } => write!(f, "stage {stage} has not opened"),
            Self::GateSamples { have, need } => {
                write!(f, "the stage has {have} results and needs {need}")
            }
            Self::GateSuccess => f.write_str("the stage's share of successes is too low"),
            Self::GateSoak => f.write_str("the stage has not been open long enough"),
            Self::NoSlot => f.write_str("all slots are taken"),
            Self::Answers => f.write_str("the devices that hold a slot have not ended"),
            Self::Offline => f.write_str("the device is not connected"),
            Self::BackOff => f.write_str("the device tries again later"),
            Self::Battery => f.write_str("the device's battery is too low"),
            Self::Storage => f.write_str("the device's free storage is too small"),
            Self::Model => f.write_str("the device says that it is another model"),
            Self::OtherUpdate => f.write_str("another update of this device is in flight"),
        }
    }
}
