//! The values that need more than a comparison: versions, and moments that move with the clock.

use jiff::{SignedDuration, Timestamp};
use semver::{Version, VersionReq};

use super::Comparison;

/// How the running version is tested. What is no semantic version compares with nothing, but for `eq`, `ne` and `in`, which
/// then compare the text.
#[derive(Debug, Clone, PartialEq)]
pub enum VersionTest {
    /// It is there and compares so with this.
    Is(Comparison, String),
    /// It is one of these.
    In(Vec<String>),
    /// It lies in this range, e.g. `>=1.2, <2`. Pre-releases lie in a range only when it names one of the same version,
    /// as everywhere in semver.
    Range(VersionReq),
    /// Its text begins with this.
    Prefix(String),
    /// It is known, or it is not.
    Exists(bool),
}

impl VersionTest {
    /// Whether a device passes that runs `running`.
    ///
    /// ```
    /// # use device_ota_domain::filter::{Comparison, VersionTest};
    /// let before = VersionTest::Is(Comparison::Lt, "1.10.0".into());
    /// assert!(before.passes(Some("1.9.3")));
    /// assert!(!before.passes(Some("1.10.0")));
    /// assert!(!before.passes(Some("nightly")));
    /// assert!(!before.passes(None));
    /// let range = VersionTest::Range(">=1.2, <2".parse().unwrap());
    /// assert!(range.passes(Some("1.19.0")) && !range.passes(Some("2.0.0")));
    /// ```
    pub fn passes(&self, running: Option<&str>) -> bool {
        let Some(running) = running else {
            return *self == Self::Exists(false);
        };
        match self {
            Self::Is(comparison, value) => compares(running, *comparison, value),
            Self::In(values) => values
                .iter()
                .any(|value| compares(running, Comparison::Eq, value)),
            Self::Range(range) => Version::parse(running).is_ok_and(|is| range.matches(&is)),
            Self::Prefix(prefix) => running.starts_with(prefix.as_str()),
            Self::Exists(wanted) => *wanted,
        }
    }
}

/// By precedence, as semver says: build metadata do not count.
fn compares(running: &str, comparison: Comparison, value: &str) -> bool {
    match (Version::parse(running), Version::parse(value)) {
        (Ok(is), Ok(value)) => comparison.holds(is.cmp_precedence(&value)),
        _ => match comparison {
            Comparison::Eq => running == value,
            Comparison::Ne => running != value,
            _ => false,
        },
    }
}

/// A moment: a time, or so long before the present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A time.
    At(Timestamp),
    /// So many seconds before the present, as shown with the unit of `UNITS` that it was given in.
    Ago {
        /// How many.
        count: u32,
        /// Of what: `s`, `m`, `h` or `d`.
        unit: char,
    },
}

/// Units of an age, and their seconds.
const UNITS: [(char, i64); 4] = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400)];

impl Moment {
    /// Reads RFC 3339, or an age such as `-90s`, `-15m`, `-1h`, `-7d`.
    ///
    /// ```
    /// # use device_ota_domain::filter::Moment;
    /// assert_eq!(Moment::parse("-7d"), Some(Moment::Ago { count: 7, unit: 'd' }));
    /// assert!(Moment::parse("2025-12-18T10:00:00Z").is_some());
    /// assert_eq!(Moment::parse("7d"), None);
    /// assert_eq!(Moment::parse("yesterday"), None);
    /// ```
    pub fn parse(text: &str) -> Option<Self> {
        let Some(age) = text.strip_prefix('-') else {
            return text.parse().ok().map(Self::At);
        };
        let mut digits = age.chars();
        let unit = digits.next_back()?;
        let known = UNITS.iter().any(|(name, _)| *name == unit);
        let digits = digits.as_str();
        let plain = digits.bytes().all(|digit| digit.is_ascii_digit());
        let count = digits.parse().ok()?;
        (known && plain).then_some(Self::Ago { count, unit })
    }

    /// When that is, seen from `now`.
    pub fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago { count, unit } => {
                let seconds = UNITS.iter().find(|(name, _)| *name == unit);
                let seconds = i64::from(count) * seconds.map_or(1, |(_, seconds)| *seconds);
                now.checked_sub(SignedDuration::from_secs(seconds))
                    .unwrap_or(Timestamp::MIN)
            }
        }
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(at) => at.fmt(f),
            Self::Ago { count, unit } => write!(f, "-{count}{unit}"),
        }
    }
}
