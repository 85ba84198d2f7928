//! How much offers may ask of the lines over which images go: a budget in bytes a second for each line, kept as the time at which it
//! carries the next offer.
//!
//! An offer of an image of N bytes spends N of every line that its device is behind. A line carries an offer whenever it is free, however
//! large the image: a large one keeps it busy for longer.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::campaign::Campaign;
use crate::firmware::MAX_IMAGE_BYTES;
use crate::ids::CampaignId;

/// Largest budget, bytes a second.
pub const MAX_BYTES_PER_SECOND: u64 = 1_000_000_000_000;
/// What of its budget a line that is in use may make up for at once: a little more than the dispatcher's tick, so that no pass is lost.
const BURST: SignedDuration = SignedDuration::from_secs(2);

/// What shares a budget.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// All offers of the service.
    Service,
    /// Those of a campaign.
    Campaign(CampaignId),
    /// Those to devices of a group.
    Group(String),
    /// Those to devices whose tag has this value.
    Tag {
        /// The tag.
        name: String,
        /// Its value.
        value: String,
    },
}

/// The budgets that are settings, in bytes a second.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Budgets {
    /// Of all offers together.
    pub service: Option<u64>,
    /// Of the devices of each of these groups.
    pub groups: BTreeMap<String, u64>,
    /// Of the devices that have the same value of one of these tags, each value for itself.
    pub tags: BTreeMap<String, u64>,
}

impl Budgets {
    /// Where a device stands in its fleet decides over what it is offered.
    pub fn are_by_device(&self) -> bool {
        !self.groups.is_empty() || !self.tags.is_empty()
    }

    /// The lines of every offer of a campaign, or of a device alone, with their budgets.
    pub fn of_all(&self, campaign: Option<&Campaign>) -> Vec<(Line, u64)> {
        let own = campaign.and_then(|campaign| {
            let budget = campaign.spec.bandwidth_bytes_per_second?;
            Some((Line::Campaign(campaign.id.clone()), budget))
        });
        let service = self.service.map(|budget| (Line::Service, budget));
        own.into_iter().chain(service).collect()
    }

    /// The budget of a line, as offers of this campaign, or of a device alone, go over it.
    fn of(&self, line: &Line, campaign: Option<&Campaign>) -> Option<u64> {
        match line {
            Line::Service => self.service,
            Line::Campaign(id) => campaign
                .filter(|campaign| campaign.id == *id)
                .and_then(|campaign| campaign.spec.bandwidth_bytes_per_second),
            Line::Group(name) => self.groups.get(name).copied(),
            Line::Tag { name, .. } => self.tags.get(name).copied(),
        }
    }

    /// The lines of a device of these groups, with these tags.
    pub fn of_device(
        &self,
        groups: &[String],
        tags: &BTreeMap<String, String>,
    ) -> Vec<(Line, u64)> {
        let groups = groups.iter().filter_map(|group| {
            let budget = self.groups.get(group)?;
            Some((Line::Group(group.clone()), *budget))
        });
        let tags = self.tags.iter().filter_map(|(name, budget)| {
            let (name, value) = (name.clone(), tags.get(name)?.clone());
            Some((Line::Tag { name, value }, *budget))
        });
        groups.chain(tags).collect()
    }
}

/// How far lines are taken: of each, when it carries the next offer. A line that is not there is free.
///
/// ```
/// # use device_ota_domain::bandwidth::{Line, Lines};
/// # use jiff::{SignedDuration, Timestamp};
/// let (now, mut lines) = (Timestamp::UNIX_EPOCH, Lines::default());
/// let service = [(Line::Service, 1_000)];
/// assert!(lines.take(now, 5_000, &service), "an image of five seconds goes at once");
/// assert!(!lines.take(now, 1, &service), "and keeps the line busy");
/// assert_eq!(lines.free_at(now, &service), Some(now + SignedDuration::from_secs(5)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lines {
    next: BTreeMap<Line, Timestamp>,
    taken: BTreeSet<Line>,
}

impl FromIterator<(Line, Timestamp)> for Lines {
    fn from_iter<T: IntoIterator<Item = (Line, Timestamp)>>(known: T) -> Self {
        Self {
            next: known.into_iter().collect(),
            taken: BTreeSet::new(),
        }
    }
}

impl Lines {
    /// Lines that were taken up to then, or longer, are not remembered: what was not used by then is not made up for.
    pub fn forgotten(now: Timestamp) -> Timestamp {
        now.checked_sub(BURST).unwrap_or(Timestamp::MIN)
    }

    /// The same without lines that are taken for longer than the largest image keeps them busy: what says so was written before the clock was
    /// set back, or the budget raised.
    #[must_use]
    pub fn believed(
        mut self,
        now: Timestamp,
        budgets: &Budgets,
        campaign: Option<&Campaign>,
    ) -> Self {
        self.next.retain(|line, next| {
            let busy = budgets.of(line, campaign);
            let busy = busy.map(|budget| time_of(MAX_IMAGE_BYTES, budget));
            let until = busy.and_then(|busy| now.checked_add(busy).ok());
            until.is_none_or(|until| *next <= until)
        });
        self
    }

    /// When all of these lines are free; `None`: they are.
    pub fn free_at(&self, now: Timestamp, lines: &[(Line, u64)]) -> Option<Timestamp> {
        let next = lines.iter().filter_map(|(line, _)| self.next.get(line));
        next.max().copied().filter(|next| *next > now)
    }

    /// Lines that carry nothing now.
    pub fn busy(&self, now: Timestamp) -> impl Iterator<Item = &Line> {
        let busy = self.next.iter().filter(move |(_, next)| **next > now);
        busy.map(|(line, _)| line)
    }

    /// Spends an image's bytes of each of these lines, if all of them are free.
    pub fn take(&mut self, now: Timestamp, bytes: u64, lines: &[(Line, u64)]) -> bool {
        if self.free_at(now, lines).is_some() {
            return false;
        }
        for (line, budget) in lines {
            // The first offer of all begins now, and so does the first after a while without any.
            let known = self.next.get(line).copied();
            let known = known.filter(|next| *next > Self::forgotten(now));
            let from = known.unwrap_or(now);
            let next = from.checked_add(time_of(bytes, *budget));
            self.next
                .insert(line.clone(), next.unwrap_or(Timestamp::MAX));
            self.taken.insert(line.clone());
        }
        true
    }

    /// What has changed since it was read.
    pub fn changes(&self) -> impl Iterator<Item = (&Line, Timestamp)> {
        let taken = self.taken.iter();
        taken.filter_map(|line| Some((line, *self.next.get(line)?)))
    }
}

/// How long a budget takes to carry so many bytes; rounded up, so that it is never more than it carries.
fn time_of(bytes: u64, bytes_per_second: u64) -> SignedDuration {
    let micros = u128::from(bytes) * 1_000_000;
    let micros = micros.div_ceil(u128::from(bytes_per_second.max(1)));
    SignedDuration::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}
