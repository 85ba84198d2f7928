//! Rates as settings write them: the one form for every limit.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

/// So many in such a time; as many may come at once.
///
/// ```
/// use std::time::Duration;
/// use device_ota_engine::Rate;
///
/// let rate: Rate = "100/minute".parse()?;
/// assert_eq!((rate.count.get(), rate.per), (100, Duration::from_secs(60)));
/// for text in ["100", "0/second", "ten/hour", "1/day", "/second"] {
///     assert!(text.parse::<Rate>().is_err(), "{text}");
/// }
/// # Ok::<(), device_ota_engine::NotARate>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// In what time.
    pub per: Duration,
}

/// A text that is no rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a rate reads N/second, N/minute or N/hour, with N at least 1")]
pub struct NotARate;

impl Rate {
    /// `count` a minute; `None` for zero.
    pub const fn per_minute(count: u32) -> Option<Self> {
        match NonZeroU32::new(count) {
            Some(count) => Some(Self {
                count,
                per: Duration::from_mins(1),
            }),
            None => None,
        }
    }
}

impl FromStr for Rate {
    type Err = NotARate;

    fn from_str(text: &str) -> Result<Self, NotARate> {
        let (count, unit) = text.split_once('/').ok_or(NotARate)?;
        let seconds = match unit {
            "second" => 1,
            "minute" => 60,
            "hour" => 3_600,
            _ => return Err(NotARate),
        };
        Ok(Self {
            count: count.parse().map_err(|_| NotARate)?,
            per: Duration::from_secs(seconds),
        })
    }
}
