//! How long an update may take, as an admin sends it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::SpecError;
use crate::update::Times;

/// Longest time that one attempt may take, in minutes: 30 days.
pub const MAX_TIMEOUT_MINUTES: f64 = 43_200.0;
/// Longest time after which an update may be given up, in hours: a year.
pub const MAX_GIVE_UP_HOURS: f64 = 8_760.0;

/// The longest that the parts of one attempt may take; each at most `timeout_minutes`, which is the time of the attempt as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = Timeouts)]
pub struct TimeoutsDraft {
    /// From `accepted` until the image is downloaded. Default: as long as the attempt may take; fractions are taken.
    #[schema(minimum = 0.016_666_666_666_666_666, maximum = 43_200)]
    pub download_minutes: Option<f64>,
    /// From `verifying` until the device runs the image, the restart with it; of a staged device from its restart on. Default: as long
    /// as the attempt may take; fractions are taken.
    #[schema(minimum = 0.016_666_666_666_666_666, maximum = 43_200)]
    pub install_minutes: Option<f64>,
}

impl TimeoutsDraft {
    /// The draft that `times` come of, and the hours after which an update is given up.
    pub fn of(times: &Times) -> (Self, Option<f64>) {
        let in_units_of = |unit: f64| move |seconds| float(seconds) / unit;
        let timeouts = Self {
            download_minutes: times.download_seconds.map(in_units_of(60.0)),
            install_minutes: times.install_seconds.map(in_units_of(60.0)),
        };
        let hours = times.give_up_after_seconds.map(in_units_of(3_600.0));
        (timeouts, hours)
    }

    /// What this means beside an attempt of `timeout_minutes`, and updates that are given up after these hours.
    pub fn checked(
        self,
        timeout_minutes: f64,
        give_up_after_hours: Option<f64>,
    ) -> Result<Times, SpecError> {
        let range = |field, rule, ok| {
            if ok {
                Ok(())
            } else {
                Err(SpecError::Range { field, rule })
            }
        };
        range(
            "timeout_minutes",
            "at least one second and at most 43200",
            timeout_minutes * 60.0 >= 1.0 && timeout_minutes <= MAX_TIMEOUT_MINUTES,
        )?;
        let part = |minutes: f64| minutes * 60.0 >= 1.0 && minutes <= timeout_minutes;
        let rule = "at least one second and at most timeout_minutes, the time of a whole attempt";
        range(
            "timeouts.download_minutes",
            rule,
            self.download_minutes.is_none_or(part),
        )?;
        range(
            "timeouts.install_minutes",
            rule,
            self.install_minutes.is_none_or(part),
        )?;
        range(
            "give_up_after_hours",
            "at least timeout_minutes, the time of a whole attempt, and at most 8760",
            give_up_after_hours.is_none_or(|hours| {
                hours <= MAX_GIVE_UP_HOURS
                    && seconds(hours * 3_600.0) >= seconds(timeout_minutes * 60.0)
            }),
        )?;
        Ok(Times {
            download_seconds: self.download_minutes.map(|minutes| seconds(minutes * 60.0)),
            install_seconds: self.install_minutes.map(|minutes| seconds(minutes * 60.0)),
            give_up_after_seconds: give_up_after_hours.map(|hours| seconds(hours * 3_600.0)),
        })
    }
}

/// In whole seconds, as times are kept.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to lie in 1 s ..= a year"
)]
pub(super) fn seconds(seconds: f64) -> u64 {
    seconds.round() as u64
}

fn float(seconds: u64) -> f64 {
    std::time::Duration::from_secs(seconds).as_secs_f64()
}
