//! What all updates come to: figures that are kept with the rows they count, and are always what a `GROUP BY` over the
//! rows would answer.
//!
//! An update's *share* in the figures is a function of its row alone. Whoever changes a row takes the share of the row as it
//! was out of the figures and puts the share of the row as it is into them; [`Ledger`] adds such changes up.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::campaign::Group;
use crate::ids::{CampaignId, FirmwareId};
use crate::update::{Action, Update, UpdateState};

/// Microseconds of a minute, into which ends are sorted.
const MINUTE: i64 = 60_000_000;

/// Longest that an update can be said to have taken, in microseconds: a year. What seems to have taken longer, or less than
/// nothing, was begun or ended by a clock that was wrong, and counts with no time.
const MAX_MICROS: i64 = 366 * 24 * 60 * MINUTE;

/// The minute of a time, counted from 1970.
pub fn minute_of(at: Timestamp) -> i64 {
    at.as_microsecond().div_euclid(MINUTE)
}

/// When a minute begins.
pub fn start_of(minute: i64) -> Timestamp {
    Timestamp::from_microsecond(minute.saturating_mul(MINUTE)).unwrap_or(Timestamp::MIN)
}

/// How many, and what they took; negative when taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Updates.
    pub updates: i64,
    /// From the first offer to the completion, in microseconds; of completed ones alone.
    pub micros: i64,
    /// Bytes of the image that were downloaded by attempts that have ended, each once.
    pub bytes: i64,
}

impl Amount {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            updates: self.updates.saturating_add(other.updates),
            micros: self.micros.saturating_add(other.micros),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    /// The same taken out.
    #[must_use]
    pub fn negated(self) -> Self {
        Self {
            updates: self.updates.saturating_neg(),
            micros: self.micros.saturating_neg(),
            bytes: self.bytes.saturating_neg(),
        }
    }

    /// Nothing at all.
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }
}

/// Updates that are counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share {
    /// For which campaign; `None` for single devices.
    pub campaign: Option<CampaignId>,
    /// Forward or back.
    pub action: Action,
    /// What was offered.
    pub firmware: Option<FirmwareId>,
    /// To what kind of device.
    pub device_type: Option<String>,
    /// Where they stand.
    pub group: Group,
    /// The code of the failure, of failed ones, and of the regression, of completed ones that have regressed.
    pub failure: Option<String>,
}

/// Updates that ended alike in the same minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct End {
    /// Which; see [`minute_of`].
    pub minute: i64,
    /// Forward or back.
    pub action: Action,
    /// How.
    pub group: Group,
}

/// What of an update's share changes in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Where it stands.
    pub group: Group,
    /// It has regressed.
    pub regressed: bool,
    failure: Option<String>,
    minute: Option<i64>,
    amount: Amount,
}

impl Update {
    /// Where it stands, for the figures. Changes with its group or by its regression, and never otherwise.
    pub fn standing(&self) -> Standing {
        let (failure, ended_at) = match &self.state {
            UpdateState::Pending { .. }
            | UpdateState::InFlight { .. }
            | UpdateState::Staged { .. } => (None, None),
            UpdateState::Completed { at } => {
                let code = self.regression().map(|r| r.failure.code.clone());
                (code, Some(*at))
            }
            UpdateState::Cancelled { at, .. } => (None, Some(*at)),
            UpdateState::Failed { at, failure } => (Some(failure.code.clone()), Some(*at)),
        };
        let group = self.group();
        let time = match group {
            Group::Completed => self.started_at.zip(ended_at),
            _ => None,
        };
        let bytes = match group {
            Group::InFlight => self.progress.bytes_earlier,
            _ => self.progress.downloaded(),
        };
        Standing {
            group,
            regressed: self.regression().is_some(),
            failure,
            minute: ended_at.map(minute_of),
            amount: Amount {
                updates: 1,
                micros: time
                    .map(|(from, to)| to.as_microsecond() - from.as_microsecond())
                    .filter(|micros| (0..=MAX_MICROS).contains(micros))
                    .unwrap_or(0),
                bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
            },
        }
    }
}

/// An update or rollback that has ended, and how long that took from its first offer on; one that was never offered is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// Forward or back.
    pub action: Action,
    /// How it ended.
    pub group: Group,
    /// How long after its first offer.
    pub after: SignedDuration,
}

/// Changes of the figures, added up until they are written. In order, so that all who write take locks in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// By what they have in common.
    pub shares: BTreeMap<Share, Amount>,
    /// By when they ended.
    pub ends: BTreeMap<End, Amount>,
    /// Those that have ended, one by one.
    pub took: Vec<Took>,
}

impl Ledger {
    /// An update is new.
    pub fn born(&mut self, update: &Update) {
        let standing = update.standing();
        self.put(update, &standing, standing.amount);
    }

    /// An update that stood there is now as it is.
    pub fn moved(&mut self, before: &Standing, after: &Update) {
        self.put(after, before, before.amount.negated());
        self.born(after);
        if before.group != after.group() {
            let begun = after.started_at.zip(after.ended_at());
            self.took.extend(begun.map(|(from, to)| Took {
                action: after.action,
                group: after.group(),
                after: to.duration_since(from),
            }));
        }
    }

    fn put(&mut self, update: &Update, standing: &Standing, amount: Amount) {
        let share = Share {
            campaign: update.campaign.clone(),
            action: update.action,
            firmware: update.firmware.clone(),
            device_type: update.device_type.clone(),
            group: standing.group,
            failure: standing.failure.clone(),
        };
        self.add(share, standing.minute, amount);
    }

    /// Updates of a share, which ended in this minute if they have ended.
    pub fn add(&mut self, share: Share, minute: Option<i64>, amount: Amount) {
        if let Some(minute) = minute {
            let end = End {
                minute,
                action: share.action,
                group: share.group,
            };
            add(&mut self.ends, end, amount);
        }
        add(&mut self.shares, share, amount);
    }

    /// All of another one.
    pub fn merge(&mut self, other: Self) {
        for (share, amount) in other.shares {
            add(&mut self.shares, share, amount);
        }
        for (end, amount) in other.ends {
            add(&mut self.ends, end, amount);
        }
        self.took.extend(other.took);
    }

    /// Nothing changes.
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }
}

fn add<K: Ord>(to: &mut BTreeMap<K, Amount>, key: K, amount: Amount) {
    let sum = to.entry(key).or_default();
    *sum = sum.plus(amount);
}
