//! Maintenance windows: recurring hours, by the clock of a named time zone or of each device, outside of which nothing is
//! offered or activated.

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::SpecError;

/// Most windows of a campaign.
pub const MAX_WINDOWS: usize = 32;
/// Longest window: a week.
pub const MAX_WINDOW_MINUTES: u32 = 7 * 24 * 60;
/// The tag of a device that names its time zone.
pub const TIME_ZONE_TAG: &str = "time_zone";
/// Days that are looked ahead for the next opening: each weekday comes once, and one day more for the turn of a clock.
const AHEAD: i32 = 8;
/// Longer than any clock is put by, but for the days that countries have left out at the date line.
const MOST_PUT: SignedDuration = SignedDuration::from_hours(25);
/// The zone that stands for the device's own.
const DEVICE: &str = "device";

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl Day {
    fn is(self, weekday: Weekday) -> bool {
        let day = match weekday {
            Weekday::Monday => Self::Mon,
            Weekday::Tuesday => Self::Tue,
            Weekday::Wednesday => Self::Wed,
            Weekday::Thursday => Self::Thu,
            Weekday::Friday => Self::Fri,
            Weekday::Saturday => Self::Sat,
            Weekday::Sunday => Self::Sun,
        };
        self == day
    }
}

/// One window, as an admin sends it and as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// On which days it begins. Default: every day.
    #[serde(default)]
    #[schema(max_items = 7)]
    pub days: Vec<Day>,
    /// When it begins, by the clock on the wall: `22:00`.
    #[schema(pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$")]
    pub start: String,
    /// How long it is open, by the same clock.
    #[schema(minimum = 1, maximum = 10_080)]
    pub duration_minutes: u32,
    /// `device`, or a name of the IANA time zone database, as `Europe/Berlin`. With `device`, by the tag `time_zone` of each
    /// device; one without it, or with a name that is none, goes by UTC.
    pub time_zone: String,
}

impl Window {
    fn check(&self) -> Result<(), SpecError> {
        if !(1..=MAX_WINDOW_MINUTES).contains(&self.duration_minutes) {
            return Err(SpecError::Windows(
                "duration_minutes must be 1 to 10080".into(),
            ));
        }
        if self.days.len() > 7 {
            return Err(SpecError::Windows("days has at most seven".into()));
        }
        if self.start().is_none() {
            return Err(SpecError::Windows(
                "start must be a time as in 22:00".into(),
            ));
        }
        if !self.is_of_devices() && zone(&self.time_zone).is_none() {
            return Err(SpecError::Windows(format!(
                "time_zone {:?} is none; use device, or a name as Europe/Berlin",
                self.time_zone
            )));
        }
        Ok(())
    }

    fn is_of_devices(&self) -> bool {
        self.time_zone == DEVICE
    }

    fn start(&self) -> Option<Time> {
        let (hour, minute) = self.start.split_once(':')?;
        let two = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        if !two(hour) || !two(minute) {
            return None;
        }
        Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok()
    }

    /// When it closes, by a clock of that zone, if it is open now. Of several openings that overlap, the last to close.
    fn closes(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let wall = zone.to_datetime(now);
        let length = SignedDuration::from_mins(i64::from(self.duration_minutes));
        let before = i32::try_from(self.duration_minutes / (24 * 60)).unwrap_or(0) + 1;
        let openings = (-before..=0).filter_map(|day| self.opening(wall.date(), day));
        // Cheap, and true of most: no clock is put by as much.
        let near = openings.filter(|opening| {
            let open_for = wall.duration_since(*opening);
            -MOST_PUT <= open_for && open_for <= length + MOST_PUT
        });
        let open = near.filter_map(|opening| {
            let (opens, closes) = self.span(opening, zone)?;
            (opens <= now && now < closes).then_some(closes)
        });
        open.max()
    }

    /// When it opens next, by a clock of that zone.
    fn next(&self, now: Timestamp, zone: &TimeZone) -> Timestamp {
        let today = zone.to_datetime(now).date();
        let openings = (0..=AHEAD).filter_map(|day| self.opening(today, day));
        let times = openings.filter_map(|opening| zone.to_timestamp(opening).ok());
        times
            .filter(|opens| *opens > now)
            .min()
            .unwrap_or(Timestamp::MAX)
    }

    /// From when to when it is open. An hour that the clock leaves out is the one after it, and the window has all of its length from
    /// there; of an hour that comes twice, the first counts.
    fn span(&self, opening: DateTime, zone: &TimeZone) -> Option<(Timestamp, Timestamp)> {
        let opens = zone.to_timestamp(opening).ok()?;
        let length = SignedDuration::from_mins(i64::from(self.duration_minutes));
        let closing = zone.to_datetime(opens).checked_add(length).ok()?;
        Some((opens, zone.to_timestamp(closing).ok()?))
    }

    /// When it opens so many days after `today`, if it does then.
    fn opening(&self, today: Date, day: i32) -> Option<DateTime> {
        let date = today.checked_add(Span::new().days(day)).ok()?;
        let fits = self.days.is_empty() || self.days.iter().any(|day| day.is(date.weekday()));
        Some(date.to_datetime(self.start()?)).filter(|_| fits)
    }

    /// The zone that it goes by: its own, or that of the device.
    fn zone(&self, device: &TimeZone) -> TimeZone {
        let named = zone(&self.time_zone).filter(|_| !self.is_of_devices());
        named.unwrap_or_else(|| device.clone())
    }
}

/// The zone of that very name: databases compare names to the letter.
fn zone(name: &str) -> Option<TimeZone> {
    let zone = TimeZone::get(name).ok()?;
    (zone.iana_name() == Some(name)).then_some(zone)
}

/// The time zone of a device, by its tag.
fn zone_of(tag: Option<&str>) -> TimeZone {
    tag.and_then(zone).unwrap_or(TimeZone::UTC)
}

/// The windows of a campaign; none of them: it is always open.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Windows(pub Vec<Window>);

/// For whom a campaign's windows are open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenFor {
    /// Everybody.
    All,
    /// Devices whose tag names one of these time zones.
    Zones(Vec<String>),
    /// Devices but those whose tag names one of these: it is open by UTC, which also holds of devices without a tag.
    AllBut(Vec<String>),
}

impl Windows {
    /// Refuses windows that are none.
    pub(super) fn check(&self) -> Result<(), SpecError> {
        if self.0.len() > MAX_WINDOWS {
            return Err(SpecError::Windows("at most 32".into()));
        }
        self.0.iter().try_for_each(Window::check)
    }

    /// Whether a device with this tag may be offered something now, or when next.
    ///
    /// ```
    /// # use device_ota_domain::campaign::Windows;
    /// let windows: Windows = serde_json::from_str(
    ///     r#"[{"days": ["sat"], "start": "22:00", "duration_minutes": 240, "time_zone": "Europe/Berlin"}]"#).unwrap();
    /// let at = |time: &str| windows.at(time.parse().unwrap(), None);
    /// assert_eq!(at("2026-03-28T20:59:59Z"), Err("2026-03-28T21:00:00Z".parse().unwrap()));
    /// assert_eq!(at("2026-03-29T00:59:59Z"), Ok(()));
    /// // The clocks were put on in that night.
    /// assert_eq!(at("2026-03-29T01:00:00Z"), Err("2026-04-04T20:00:00Z".parse().unwrap()));
    /// ```
    pub fn at(&self, now: Timestamp, tag: Option<&str>) -> Result<(), Timestamp> {
        if self.0.is_empty() {
            return Ok(());
        }
        let device = &zone_of(tag);
        let clocks = || {
            let windows = self.0.iter();
            windows.map(move |window| (window, window.zone(device)))
        };
        if clocks().any(|(window, zone)| window.closes(now, &zone).is_some()) {
            return Ok(());
        }
        let next = clocks().map(|(window, zone)| window.next(now, &zone)).min();
        Err(next.unwrap_or(Timestamp::MAX))
    }

    /// When a device with this tag is told nothing any more, if they are open for it now; `None`: they are not, or there are none.
    ///
    /// ```
    /// # use device_ota_domain::campaign::Windows;
    /// let windows: Windows = serde_json::from_str(
    ///     r#"[{"start": "02:15", "duration_minutes": 30, "time_zone": "Europe/Berlin"}]"#).unwrap();
    /// let closes = |time: &str| windows.closes(time.parse().unwrap(), None);
    /// // The clocks are put on from two to three in that night.
    /// assert_eq!(closes("2026-03-29T01:20:00Z"), Some("2026-03-29T01:45:00Z".parse().unwrap()));
    /// ```
    pub fn closes(&self, now: Timestamp, tag: Option<&str>) -> Option<Timestamp> {
        let device = zone_of(tag);
        let closes = |window: &Window| window.closes(now, &window.zone(&device));
        self.0.iter().filter_map(closes).max()
    }

    /// For whom they are open now; when nobody's is, when the first one opens.
    pub fn open_for(&self, now: Timestamp) -> Result<OpenFor, Timestamp> {
        if !self.0.iter().any(Window::is_of_devices) {
            return self.at(now, None).map(|()| OpenFor::All);
        }
        let (of_devices, others): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|window| window.is_of_devices());
        let is_open = |window: &Window, zone: &TimeZone| window.closes(now, zone).is_some();
        if others
            .iter()
            .any(|window| is_open(window, &window.zone(&TimeZone::UTC)))
        {
            return Ok(OpenFor::All);
        }
        let open_in = |zone: &TimeZone| of_devices.iter().any(|window| is_open(window, zone));
        let (mut open, mut closed) = (Vec::new(), Vec::new());
        for name in jiff::tz::db().available() {
            let name = name.as_str();
            let Some(zone) = zone(name) else { continue };
            let group = if open_in(&zone) {
                &mut open
            } else {
                &mut closed
            };
            group.push(name.to_owned());
        }
        if open_in(&TimeZone::UTC) {
            return Ok(OpenFor::AllBut(closed));
        }
        if open.is_empty() {
            let all = closed
                .iter()
                .filter_map(|name| self.at(now, Some(name)).err());
            return Err(all.min().unwrap_or(Timestamp::MAX));
        }
        Ok(OpenFor::Zones(open))
    }
}
