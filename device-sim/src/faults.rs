//! Who misbehaves, and how: shares of a fleet become faults of single devices, always the same
//! ones for the same seed and number of devices.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use clap::Args;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use serde::{Deserialize, Deserializer, Serialize};

use crate::habits::Habits;
use crate::time::Time;

/// A part of a fleet: `5%` or a number of devices.
///
/// ```
/// use device_sim::faults::Share;
///
/// let five: Share = "5%".parse()?;
/// assert_eq!(five.of(500), 25);
/// assert_eq!(five.of(3), 1, "a share above zero means one device at least");
/// assert_eq!("7".parse::<Share>()?.of(500), 7);
/// assert_eq!("0%".parse::<Share>()?.of(500), 0);
/// assert!("101%".parse::<Share>().is_err());
/// # Ok::<(), device_sim::faults::InvalidShare>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// Of a hundred devices.
    Percent(f64),
    /// So many devices.
    Count(usize),
}

impl Share {
    /// Nobody.
    pub const NONE: Self = Self::Count(0);

    /// How many of so many devices.
    pub fn of(self, devices: usize) -> usize {
        match self {
            Self::Count(count) => count.min(devices),
            Self::Percent(percent) if percent <= 0.0 => 0,
            Self::Percent(percent) => {
                // In whole millionths, so that no float decides about a device.
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "0 to 100 million fits, and is not negative"
                )]
                let millionths = (percent * 10_000.0).round() as usize;
                ((devices * millionths + 500_000) / 1_000_000).clamp(1, devices.max(1))
            }
        }
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::NONE
    }
}

/// Text that is neither `5%` nor a number of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a share is a percentage like `5%`, or a number of devices")]
pub struct InvalidShare;

impl FromStr for Share {
    type Err = InvalidShare;

    fn from_str(text: &str) -> Result<Self, InvalidShare> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.trim().parse().map_err(|_| InvalidShare)?;
            let valid = (0.0..=100.0).contains(&percent);
            return valid.then_some(Self::Percent(percent)).ok_or(InvalidShare);
        }
        text.parse().map(Self::Count).map_err(|_| InvalidShare)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a share is a percentage like \"5%\", or a number of devices"
        )]
        enum Written {
            Count(usize),
            Text(String),
        }
        match Written::deserialize(from)? {
            Written::Count(count) => Ok(Self::Count(count)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Count(count) => write!(f, "{count}"),
        }
    }
}

/// Where an update fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailAt {
    /// The bytes cannot be had.
    Downloading,
    /// The bytes are always other ones.
    Verifying,
    /// The slot cannot be written.
    Installing,
    /// The new image starts and finds itself unwell.
    Health,
}

impl FromStr for FailAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "downloading" => Ok(Self::Downloading),
            "verifying" => Ok(Self::Verifying),
            "installing" => Ok(Self::Installing),
            "health" => Ok(Self::Health),
            other => Err(format!(
                "`{other}` is not one of downloading, verifying, installing, health"
            )),
        }
    }
}

/// What keeps a device from ever running the new image. A device has at most one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flaw {
    /// It fails at a phase, each time.
    Fail(FailAt),
    /// It accepts and is not heard of again, or not for long.
    Silent,
    /// The new image never comes up, and the boot loader returns to the old one.
    BootLoop,
    /// The new image runs well at first, and some time later the device is back on the old one.
    Relapse,
    /// It says `completed` and still runs the old image, whose version it reports.
    LieOldVersion,
    /// It says `completed` with the new version and still runs the old image.
    LieNewVersion,
}

impl Flaw {
    /// Its name in summaries.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fail(FailAt::Downloading) => "fail_downloading",
            Self::Fail(FailAt::Verifying) => "fail_verifying",
            Self::Fail(FailAt::Installing) => "fail_installing",
            Self::Fail(FailAt::Health) => "fail_health",
            Self::Silent => "silent",
            Self::BootLoop => "boot_loop",
            Self::Relapse => "relapse",
            Self::LieOldVersion | Self::LieNewVersion => "lie_version",
        }
    }

    /// Whether the device reports `completed` without having the new image.
    pub const fn is_lie(self) -> bool {
        matches!(self, Self::LieOldVersion | Self::LieNewVersion)
    }
}

/// What is wrong with one device. All but the flaw only make the way harder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, drawn one by one"
)]
pub struct Faults {
    /// What keeps it from the new image.
    pub flaw: Option<Flaw>,
    /// It says every report twice.
    pub repeat: bool,
    /// It says reports in the wrong order.
    pub reorder: bool,
    /// Its connection is reset in the middle of each download.
    pub drop_connection: bool,
    /// Its battery is nearly empty for a while.
    pub low_battery: bool,
    /// Its storage is nearly full for a while.
    pub low_storage: bool,
    /// It comes online late.
    pub offline: bool,
    /// The first image it downloads has a wrong byte.
    pub corrupt: bool,
}

impl Faults {
    /// Names of all that is wrong, as summaries list them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let quirks = [
            (self.repeat, "repeat"),
            (self.reorder, "reorder"),
            (self.drop_connection, "drop_connection"),
            (self.low_battery, "low_battery"),
            (self.low_storage, "low_storage"),
            (self.offline, "offline"),
            (self.corrupt, "corrupt"),
        ];
        let quirks = quirks
            .into_iter()
            .filter_map(|(is, name)| is.then_some(name));
        self.flaw.map(Flaw::name).into_iter().chain(quirks)
    }
}

/// Turns one of the harmless faults on.
type SetQuirk = fn(&mut Faults);

/// Shares of a fleet that misbehave, and for how long: the flags of the command line, and `[faults]` of a story's file.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Faults (shares: `5%` or a number of devices)")]
pub struct FaultPlan {
    /// Fail at a phase: `downloading=5%`, `verifying=…`, `installing=…` or `health=…`. May be given again.
    #[arg(long, value_name = "PHASE=SHARE", value_parser = fail)]
    #[serde(deserialize_with = "by_phase")]
    pub fail: Vec<(FailAt, Share)>,
    /// Accept an update and go silent.
    #[arg(long, default_value_t)]
    pub silent: Share,
    /// Silent devices come back after this time; without it they never do.
    #[arg(long)]
    pub silent_for: Option<Time>,
    /// Never come up with the new image: the boot loader returns to the old one.
    #[arg(long, default_value_t)]
    pub boot_loop: Share,
    /// Take the update, and fall back to the old image after `--relapse-after`.
    #[arg(long, default_value_t)]
    pub relapse: Share,
    /// How long the new image runs where it does not last [default: 5s].
    #[arg(long)]
    pub relapse_after: Option<Time>,
    /// Report `completed` without running the new image, every other one with the old version.
    #[arg(long, default_value_t)]
    pub lie_version: Share,
    /// Say every report twice.
    #[arg(long, default_value_t)]
    pub repeat: Share,
    /// Say reports in the wrong order.
    #[arg(long, default_value_t)]
    pub reorder: Share,
    /// Lose the connection in the middle of a download.
    #[arg(long, default_value_t)]
    pub drop_connection: Share,
    /// Have a nearly empty battery until `--recover`.
    #[arg(long, default_value_t)]
    pub low_battery: Share,
    /// Have nearly no storage until `--recover`.
    #[arg(long, default_value_t)]
    pub low_storage: Share,
    /// When batteries are charged and storage is freed [default: 20s].
    #[arg(long)]
    pub recover: Option<Time>,
    /// Connect only after `--offline-for`.
    #[arg(long, default_value_t)]
    pub offline: Share,
    /// When devices that are offline at first connect [default: 15s].
    #[arg(long)]
    pub offline_for: Option<Time>,
    /// Get a wrong byte in the first image they download.
    #[arg(long, default_value_t)]
    pub corrupt: Share,
}

/// A phase and the share that fails there, as a flag.
fn fail(text: &str) -> Result<(FailAt, Share), String> {
    let (phase, share) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is not PHASE=SHARE, such as installing=5%"))?;
    let share = share.parse().map_err(|e: InvalidShare| e.to_string())?;
    Ok((phase.parse()?, share))
}

/// The same as a table.
fn by_phase<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(FailAt, Share)>, D::Error> {
    let table = BTreeMap::<FailAt, Share>::deserialize(from)?;
    Ok(table.into_iter().collect())
}

/// More flaws than devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{flawed} devices are to fail, go silent, boot-loop, relapse or lie, but there are only {devices}: \
     a device has one of these"
)]
pub struct TooManyFlaws {
    flawed: usize,
    devices: usize,
}

impl FaultPlan {
    /// How long faults last, where it is said.
    pub fn set(&self, habits: &mut Habits) {
        habits.silent_for = self.silent_for.map(|time| time.0);
        for (said, habit) in [
            (self.relapse_after, &mut habits.relapse_after),
            (self.recover, &mut habits.recover),
            (self.offline_for, &mut habits.offline_for),
        ] {
            *habit = said.map_or(*habit, |time| time.0);
        }
    }

    /// What is wrong with each device of a fleet.
    pub fn assign(&self, devices: usize, seed: u64) -> Result<Vec<Faults>, TooManyFlaws> {
        let mut faults = vec![Faults::default(); devices];
        let flaws = self.flaws(devices);
        if flaws.len() > devices {
            let flawed = flaws.len();
            return Err(TooManyFlaws { flawed, devices });
        }
        for (index, flaw) in draw(devices, seed, 0).into_iter().zip(flaws) {
            if let Some(faults) = faults.get_mut(index) {
                faults.flaw = Some(flaw);
            }
        }
        let quirks: [(Share, SetQuirk); 7] = [
            (self.repeat, |f| f.repeat = true),
            (self.reorder, |f| f.reorder = true),
            (self.drop_connection, |f| f.drop_connection = true),
            (self.low_battery, |f| f.low_battery = true),
            (self.low_storage, |f| f.low_storage = true),
            (self.offline, |f| f.offline = true),
            (self.corrupt, |f| f.corrupt = true),
        ];
        for ((share, set), kind) in quirks.into_iter().zip(1..) {
            for index in draw(devices, seed, kind)
                .into_iter()
                .take(share.of(devices))
            {
                if let Some(faults) = faults.get_mut(index) {
                    set(faults);
                }
            }
        }
        Ok(faults)
    }

    fn flaws(&self, devices: usize) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        for &(at, share) in &self.fail {
            flaws.extend(std::iter::repeat_n(Flaw::Fail(at), share.of(devices)));
        }
        flaws.extend(std::iter::repeat_n(Flaw::Silent, self.silent.of(devices)));
        let boot_loops = self.boot_loop.of(devices);
        flaws.extend(std::iter::repeat_n(Flaw::BootLoop, boot_loops));
        let relapses = self.relapse.of(devices);
        flaws.extend(std::iter::repeat_n(Flaw::Relapse, relapses));
        let lies = [Flaw::LieOldVersion, Flaw::LieNewVersion];
        let liars = self.lie_version.of(devices);
        flaws.extend(lies.into_iter().cycle().take(liars));
        flaws
    }
}

/// Which devices take part in something of which there is a share, such as chunk downloads.
pub fn members(share: Share, devices: usize, seed: u64, kind: u64) -> Vec<bool> {
    let mut chosen = vec![false; devices];
    for index in draw(devices, seed, kind)
        .into_iter()
        .take(share.of(devices))
    {
        if let Some(chosen) = chosen.get_mut(index) {
            *chosen = true;
        }
    }
    chosen
}

/// All devices in an order of their own for each kind of draw.
fn draw(devices: usize, seed: u64, kind: u64) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..devices).collect();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed.rotate_left(16) ^ kind);
    indices.shuffle(&mut rng);
    indices
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn plan() -> FaultPlan {
        FaultPlan {
            fail: vec![
                (FailAt::Installing, Share::Percent(10.0)),
                (FailAt::Health, Share::Count(3)),
            ],
            silent: Share::Percent(2.0),
            boot_loop: Share::Percent(3.0),
            relapse: Share::Count(5),
            lie_version: Share::Percent(4.0),
            repeat: Share::Percent(50.0),
            offline: Share::Count(11),
            ..FaultPlan::default()
        }
    }

    #[test]
    fn shares_are_met_exactly_and_no_device_has_two_flaws() {
        let faults = plan().assign(200, 1).unwrap();
        let count = |name| {
            faults
                .iter()
                .filter(|f| f.names().any(|n| n == name))
                .count()
        };
        assert_eq!(count("fail_installing"), 20);
        assert_eq!(count("fail_health"), 3);
        assert_eq!(count("silent"), 4);
        assert_eq!(count("boot_loop"), 6);
        assert_eq!(count("relapse"), 5);
        assert_eq!(count("lie_version"), 8);
        assert_eq!(count("repeat"), 100);
        assert_eq!(count("offline"), 11);
        let flawed = faults.iter().filter(|f| f.flaw.is_some()).count();
        assert_eq!(flawed, 20 + 3 + 4 + 6 + 5 + 8);
    }

    #[test]
    fn a_seed_repeats_and_another_one_does_not() {
        let of = |seed| plan().assign(500, seed).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn more_flaws_than_devices_are_refused() {
        let plan = FaultPlan {
            silent: Share::Percent(60.0),
            boot_loop: Share::Percent(60.0),
            ..FaultPlan::default()
        };
        assert!(plan.assign(10, 1).is_err());
    }
}
