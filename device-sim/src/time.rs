//! Lengths of time as people write them.

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// A time like `500ms`, `30s`, `10m` or `2h`; a bare number is seconds.
///
/// ```
/// use device_sim::time::Time;
/// use std::time::Duration;
///
/// assert_eq!("500ms".parse::<Time>()?.0, Duration::from_millis(500));
/// assert_eq!("2m".parse::<Time>()?.0, Duration::from_mins(2));
/// assert!("soon".parse::<Time>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Time(pub Duration);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = text.strip_prefix(digits).unwrap_or_default();
        let invalid = || format!("`{text}` is not a time like 500ms, 30s, 10m or 2h");
        let number: f64 = digits.parse().map_err(|_| invalid())?;
        let seconds = match unit {
            "ms" => number / 1000.0,
            "" | "s" => number,
            "m" => number * 60.0,
            "h" => number * 3600.0,
            _ => return Err(invalid()),
        };
        Duration::try_from_secs_f64(seconds)
            .map(Self)
            .map_err(|_| invalid())
    }
}

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
