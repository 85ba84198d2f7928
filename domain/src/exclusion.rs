//! Why a campaign leaves a device out.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a device is none of a campaign's. Of several reasons, the first in this order is told.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Exclusion {
    /// It is named, and not registered.
    UnknownDevice,
    /// Nothing of the campaign's targets means it.
    NotMeant,
    /// It is of another model than the firmware.
    WrongModel,
    /// The firmware does not run on its hardware revision.
    WrongHwRevision,
    /// It already runs the firmware's version.
    AlreadyInstalled,
    /// It came to a newer version while its update waited, and would refuse the firmware.
    NewerInstalled,
    /// The firmware's `security_version` is below the floor that it reports.
    BelowFloor,
    /// It lies outside of `rollout_percentage`.
    OutsideRollout,
    /// It did not begin with the update within the time after which that is given up.
    OutOfTime,
}

impl Exclusion {
    /// All, in their order.
    pub const ALL: [Self; 9] = [
        Self::UnknownDevice,
        Self::NotMeant,
        Self::WrongModel,
        Self::WrongHwRevision,
        Self::AlreadyInstalled,
        Self::NewerInstalled,
        Self::BelowFloor,
        Self::OutsideRollout,
        Self::OutOfTime,
    ];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownDevice => "unknown_device",
            Self::NotMeant => "not_meant",
            Self::WrongModel => "wrong_model",
            Self::WrongHwRevision => "wrong_hw_revision",
            Self::AlreadyInstalled => "already_installed",
            Self::NewerInstalled => "newer_installed",
            Self::BelowFloor => "below_floor",
            Self::OutsideRollout => "outside_rollout",
            Self::OutOfTime => "out_of_time",
        }
    }

    /// The exclusion of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }
}

impl std::fmt::Display for Exclusion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::UnknownDevice => "the device is not registered",
            Self::NotMeant => "the campaign's targets do not name the device",
            Self::WrongModel => "the device is of another model than the firmware",
            Self::WrongHwRevision => "the firmware does not run on the device's hardware revision",
            Self::AlreadyInstalled => "the device already runs the firmware's version",
            Self::NewerInstalled => "the device has come to a newer version than the firmware's",
            Self::BelowFloor => {
                "the firmware's security_version is below the device's security_floor"
            }
            Self::OutsideRollout => "the device lies outside of the campaign's rollout_percentage",
            Self::OutOfTime => "the device did not begin with the update within its time",
        })
    }
}
