//! How many devices a campaign offers its update to in a minute: a number, or one that grows as it gets on.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::counts::Tally;
use super::error::SpecError;

/// Highest rate, offers a minute.
pub const MAX_PER_MINUTE: u32 = 1_000_000;
/// Most that a rate grows by at a time.
pub const MAX_FACTOR: f64 = 5.0;
/// What of its rate a campaign may make up for at once: a little more than the dispatcher's tick, so that no pass is lost
/// and nobody asks for the image together with many others.
const BURST: SignedDuration = SignedDuration::from_secs(2);
/// Microseconds of a minute.
const MINUTE: f64 = 60_000_000.0;

/// A rate as an admin sends it: `per_minute`, or `base_per_minute` with `factor`, `every` and `max_per_minute`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Rate)]
pub struct RateDraft {
    /// Offers a minute, always the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub per_minute: Option<u32>,
    /// Offers a minute, at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub base_per_minute: Option<u32>,
    /// What it is multiplied by each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(exclusive_minimum = 1, maximum = 5)]
    pub factor: Option<f64>,
    /// When it grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Every>,
    /// Offers a minute at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub max_per_minute: Option<u32>,
}

/// Each time so many devices more have come so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Every {
    /// They have been offered the update.
    Notified(u64),
    /// They have completed it, or hold it.
    Succeeded(u64),
}

/// A checked rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Offers a minute, at first.
    pub per_minute: u32,
    /// How it grows, if it does.
    #[serde(default)]
    pub growth: Option<Growth>,
}

/// How a rate grows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// What it is multiplied by each time.
    pub factor: f64,
    /// When.
    pub every: Every,
    /// Offers a minute at most.
    pub max_per_minute: u32,
}

impl RateDraft {
    /// The rate that is meant.
    pub(super) fn checked(self) -> Result<Rate, SpecError> {
        let rule = SpecError::Rate;
        let bounds = 1..=MAX_PER_MINUTE;
        let fits = |rate: u32| bounds.contains(&rate);
        let growing = (
            self.base_per_minute,
            self.factor,
            self.every,
            self.max_per_minute,
        );
        match (self.per_minute, growing) {
            (Some(per_minute), (None, None, None, None)) => {
                if !fits(per_minute) {
                    return Err(rule("per_minute must be 1 to 1000000"));
                }
                let growth = None;
                Ok(Rate { per_minute, growth })
            }
            (None, (Some(base), Some(factor), Some(every), Some(max))) => {
                if !fits(base) || !fits(max) || max < base {
                    return Err(rule(
                        "base_per_minute and max_per_minute must be 1 to 1000000, and the second not below the first",
                    ));
                }
                if !(factor > 1.0 && factor <= MAX_FACTOR) {
                    return Err(rule("factor must be above 1 and at most 5"));
                }
                let (Every::Notified(devices) | Every::Succeeded(devices)) = every;
                if devices == 0 {
                    return Err(rule("every must be at least one device"));
                }
                let growth = Some(Growth {
                    factor,
                    every,
                    max_per_minute: max,
                });
                Ok(Rate {
                    per_minute: base,
                    growth,
                })
            }
            _ => Err(rule(
                "give per_minute, or all of base_per_minute, factor, every and max_per_minute",
            )),
        }
    }
}

impl Rate {
    /// The draft that this comes of.
    pub fn to_draft(self) -> RateDraft {
        match self.growth {
            None => RateDraft {
                per_minute: Some(self.per_minute),
                ..RateDraft::default()
            },
            Some(growth) => RateDraft {
                per_minute: None,
                base_per_minute: Some(self.per_minute),
                factor: Some(growth.factor),
                every: Some(growth.every),
                max_per_minute: Some(growth.max_per_minute),
            },
        }
    }

    /// Offers a minute, where the campaign's devices stand so.
    ///
    /// ```
    /// # use device_ota_domain::campaign::{Every, Growth, Rate, Tally};
    /// let growth = Growth { factor: 2.0, every: Every::Succeeded(10), max_per_minute: 30 };
    /// let rate = Rate { per_minute: 5, growth: Some(growth) };
    /// let at = |completed| rate.now(&Tally { completed, ..Tally::default() });
    /// assert_eq!([at(0), at(9), at(10), at(25), at(40)], [5.0, 5.0, 10.0, 20.0, 30.0]);
    /// ```
    pub fn now(&self, all: &Tally) -> f64 {
        let base = f64::from(self.per_minute);
        let Some(growth) = self.growth else {
            return base;
        };
        let (so_far, each) = match growth.every {
            // Those that wait to be tried once more are not counted twice.
            Every::Notified(each) => (all.total() - all.pending - all.cancelled, each),
            Every::Succeeded(each) => (all.so_far().completed, each),
        };
        // A thousand doublings are beyond every bound.
        let times = so_far.checked_div(each).unwrap_or(0).min(1_000);
        let times = i32::try_from(times).unwrap_or(1_000);
        (base * growth.factor.powi(times)).min(f64::from(growth.max_per_minute))
    }

    /// How many offers are due now, when the next one was due at `next` (`None`: none was made yet); and if none is, when one
    /// is.
    pub fn due(
        &self,
        now: Timestamp,
        next: Option<Timestamp>,
        all: &Tally,
    ) -> Result<u32, Timestamp> {
        let from = self.from(now, next);
        if from > now {
            return Err(from);
        }
        let passed = now.duration_since(from).as_micros();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most two seconds of a million a minute, and not negative"
        )]
        let due = (f64::from(passed) / self.interval(all)).floor() as u32;
        Ok(due.saturating_add(1))
    }

    /// When the next offer is due, after `offers` were made now.
    pub fn next(
        &self,
        now: Timestamp,
        next: Option<Timestamp>,
        all: &Tally,
        offers: u32,
    ) -> Timestamp {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a million intervals of a minute are far below the end of time"
        )]
        let taken = (f64::from(offers) * self.interval(all)).ceil() as i64;
        let taken = SignedDuration::from_micros(taken);
        let from = self.from(now, next);
        from.checked_add(taken).unwrap_or(Timestamp::MAX)
    }

    /// Microseconds from one offer to the next.
    fn interval(&self, all: &Tally) -> f64 {
        MINUTE / self.now(all).max(1.0)
    }

    /// From when on offers are due: what was not made within the burst is not made up for. Nobody waits for longer than from one offer to
    /// the next, as long as the rate has not grown: what says so was written before the clock was set back.
    fn from(&self, now: Timestamp, next: Option<Timestamp>) -> Timestamp {
        let earliest = now.checked_sub(BURST).unwrap_or(Timestamp::MIN);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an interval is at most a minute"
        )]
        let longest = (MINUTE / f64::from(self.per_minute.max(1))).ceil() as i64;
        let longest = SignedDuration::from_micros(longest);
        let latest = now.checked_add(longest).unwrap_or(Timestamp::MAX);
        let next = next.filter(|next| *next <= latest);
        // The first offer of all is due now, and no burst before it.
        next.unwrap_or(now).max(earliest)
    }
}
