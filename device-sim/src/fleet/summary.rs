//! What became of a fleet, in numbers and in a verdict.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::audit::Audit;
use super::{Fleet, Until};
use crate::api::Campaign;
use crate::board::Seat;
use crate::faults::Faults;

/// Most devices named that did not end where they should.
const MAX_NAMED: usize = 10;

/// Whether all went as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every device ended where it should.
    Good,
    /// Some did not.
    Astray,
    /// The service broke a promise.
    Violated,
}

/// Devices and how many of them ended as expected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Expectation {
    /// Devices.
    pub devices: usize,
    /// Of these, as expected.
    pub as_expected: usize,
}

/// What became of a fleet.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Whether all went well.
    pub verdict: Verdict,
    /// Whether what the run was to wait for came about; a run without an end in view has none.
    pub reached_goal: Option<bool>,
    /// Devices.
    pub devices: usize,
    /// How long it took, in seconds.
    pub elapsed_s: f64,
    /// Devices that were connected at some time.
    pub connected: usize,
    /// The version that devices without a flaw should end on, if one was expected.
    pub expected_version: Option<String>,
    /// Devices by the version they run.
    pub by_version: BTreeMap<String, usize>,
    /// Devices by the phase they reported last.
    pub by_outcome: BTreeMap<&'static str, usize>,
    /// Devices by what was wrong with them; `none` for nothing.
    pub by_fault: BTreeMap<&'static str, Expectation>,
    /// Some of the devices that did not end where they should.
    pub astray: Vec<String>,
    /// The campaign that was watched.
    pub campaign: Option<Campaign>,
    /// Sums over the fleet.
    pub totals: Value,
    /// Messages that devices did not act upon, by reason.
    pub ignored: BTreeMap<&'static str, u64>,
    /// Devices whose end was compared with what the service knows.
    pub audited: usize,
    /// Why that comparison could not be made, if so.
    pub audit_failed: Option<String>,
    /// Promises that the service broke.
    pub violations: u64,
    /// The first of them in words.
    pub violation_texts: Vec<String>,
}

impl Summary {
    /// What a process says by its exit: 0 good, 1 astray, 2 violated.
    pub fn exit_code(&self) -> u8 {
        match self.verdict {
            Verdict::Good => 0,
            Verdict::Astray => 1,
            Verdict::Violated => 2,
        }
    }
}

impl Fleet {
    pub(super) fn summarise(&self, elapsed: Duration, audit: Audit) -> Summary {
        let board = &self.ctx.board;
        let (mut violations, mut texts) = board.violations();
        violations += audit.violations.len() as u64;
        texts.extend(audit.violations);
        let known = audit.versions;
        let mut summary = Summary {
            verdict: Verdict::Good,
            reached_goal: (self.config.until != Until::Stopped).then_some(self.reached),
            devices: self.config.devices,
            elapsed_s: elapsed.as_secs_f64(),
            connected: 0,
            expected_version: self.expected_version(0),
            by_version: BTreeMap::new(),
            by_outcome: BTreeMap::new(),
            by_fault: BTreeMap::new(),
            astray: Vec::new(),
            campaign: self.campaign.clone(),
            totals: serde_json::to_value(&board.totals).unwrap_or_default(),
            ignored: board.ignored(),
            audited: audit.checked,
            audit_failed: audit.failed,
            violations,
            violation_texts: texts,
        };
        let (mut good, mut all_good) = (Expectation::default(), 0);
        board.each(|index, seat| {
            let faults = self.faults.get(index).copied().unwrap_or_default();
            let id = self.config.device_id(index);
            let is_good = self.ended_well(index, seat, faults, known.get(&id));
            all_good += usize::from(is_good);
            summary.count(seat, faults, is_good);
            if self.config.can_update(faults) {
                good.devices += 1;
                good.as_expected += usize::from(is_good);
            }
            if !is_good && summary.astray.len() < MAX_NAMED {
                let last = seat.last.map_or("no update", |phase| phase.as_str());
                let mut text = format!("{id} on {} after {last}", seat.version);
                if let Some(other) = known.get(&id).filter(|known| **known != seat.version) {
                    let _ = write!(text, "; the service takes it to be on {other}");
                }
                summary.astray.push(text);
            }
        });
        summary.verdict = self.verdict(&summary, good, all_good);
        summary
    }

    fn verdict(&self, summary: &Summary, good: Expectation, all_good: usize) -> Verdict {
        if summary.violations > 0 {
            return Verdict::Violated;
        }
        let flawed = summary.devices - good.devices;
        let flawed_good = all_good - good.as_expected;
        let enough = share_is_met(good, self.config.expect_share);
        let reached = summary.reached_goal != Some(false);
        if reached && enough && flawed_good == flawed && summary.audit_failed.is_none() {
            Verdict::Good
        } else {
            Verdict::Astray
        }
    }

    /// What was asked for, else what the goal or the campaign's end says.
    pub(super) fn expected_version(&self, index: usize) -> Option<String> {
        if self.config.expect.is_some() {
            return self.config.expect.clone();
        }
        if let Until::Version(version) = &self.config.until {
            return Some(version.clone());
        }
        let campaign = self.campaign.as_ref()?;
        match campaign.status.as_str() {
            "completed" => Some(campaign.firmware.version.clone()).filter(|v| !v.is_empty()),
            "rolled_back" => self.versions.get(index).cloned(),
            _ => None,
        }
    }

    /// Whether a device is where it should be: on the expected version, or without one on whatever the service takes it
    /// to run; with a flaw on the version it had; and running it for good, with the service in the know.
    fn ended_well(
        &self,
        index: usize,
        seat: &Seat,
        faults: Faults,
        known: Option<&String>,
    ) -> bool {
        let expected = self.expected_version(index);
        let start = self.versions.get(index).map(String::as_str);
        let at_rest = seat.live.is_none() && seat.confirmed && seat.is_heard();
        if self.config.can_update(faults) {
            return match &expected {
                Some(version) => seat.seen && at_rest && seat.version == *version,
                None if !seat.seen => faults.offline,
                None => at_rest && known == Some(&seat.version),
            };
        }
        // One that never connected ran nothing else.
        let on_old = !seat.seen || Some(seat.version.as_str()) == start;
        on_old && (seat.gone || at_rest || expected.is_none() && !seat.seen)
    }
}

impl Summary {
    fn count(&mut self, seat: &Seat, faults: Faults, is_good: bool) {
        self.connected += usize::from(seat.seen);
        let version = if seat.version.is_empty() {
            "unknown"
        } else {
            &seat.version
        };
        *self.by_version.entry(version.to_owned()).or_default() += 1;
        let outcome = seat.last.map_or("no update", |phase| phase.as_str());
        *self.by_outcome.entry(outcome).or_default() += 1;
        let mut names: Vec<_> = faults.names().collect();
        if names.is_empty() {
            names.push("none");
        }
        for name in names {
            let entry = self.by_fault.entry(name).or_default();
            entry.devices += 1;
            entry.as_expected += usize::from(is_good);
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a fleet has far fewer than 2^52 devices"
)]
fn share_is_met(good: Expectation, percent: f64) -> bool {
    good.as_expected as f64 * 100.0 >= good.devices as f64 * percent
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = |map: &BTreeMap<_, usize>| {
            let counts = map.iter().map(|(name, count)| format!("{name} {count}"));
            counts.collect::<Vec<_>>().join(", ")
        };
        writeln!(
            f,
            "{} devices, {} connected, {:.1} s",
            self.devices, self.connected, self.elapsed_s
        )?;
        let versions = self.by_version.iter().map(|(v, n)| format!("{v} {n}"));
        writeln!(f, "  versions  {}", versions.collect::<Vec<_>>().join(", "))?;
        writeln!(f, "  outcomes  {}", counts(&self.by_outcome))?;
        for (name, found) in &self.by_fault {
            let (good, all) = (found.as_expected, found.devices);
            writeln!(f, "  {name:<16} {good} of {all} where they should be")?;
        }
        if let Some(campaign) = &self.campaign {
            writeln!(
                f,
                "  campaign  {}: {}, {} completed, {} failed, {} cancelled of {}",
                campaign.campaign_id,
                campaign.status,
                campaign.completed_devices,
                campaign.failed_devices,
                campaign.cancelled_devices,
                campaign.total_devices
            )?;
        }
        if let Value::Object(totals) = &self.totals {
            let some = totals.iter().filter(|(_, value)| **value != 0);
            let some: Vec<_> = some
                .map(|(name, value)| format!("{name} {value}"))
                .collect();
            writeln!(f, "  totals    {}", some.join(", "))?;
        }
        if !self.ignored.is_empty() {
            let ignored = self.ignored.iter().map(|(why, n)| format!("{why} {n}"));
            writeln!(f, "  ignored   {}", ignored.collect::<Vec<_>>().join(", "))?;
        }
        for device in &self.astray {
            writeln!(f, "  astray    {device}")?;
        }
        if let Some(why) = &self.audit_failed {
            writeln!(f, "  not compared with the service: {why}")?;
        }
        for text in &self.violation_texts {
            writeln!(f, "  VIOLATION {text}")?;
        }
        let verdict = match self.verdict {
            Verdict::Good => "every device is where it should be",
            Verdict::Astray if self.reached_goal == Some(false) => "the end was not reached",
            Verdict::Astray => "not every device is where it should be",
            Verdict::Violated => "the service broke its promises",
        };
        write!(f, "{verdict} ({} compared with the service)", self.audited)
    }
}
