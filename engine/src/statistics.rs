//! Statistics as people read them (PRD, E5): of everything, and of one campaign. What counts as what is in ADR 10.

use std::collections::BTreeMap;

use device_ota_domain::campaign::{CampaignState, Group, Tally};
use device_ota_domain::statistics::{Amount, minute_of, start_of};
use device_ota_domain::update::Action;
use device_ota_domain::{Campaign, CampaignId};
use jiff::{SignedDuration, Timestamp};

use crate::ports::figures::Figure;
use crate::telemetry::{UNKNOWN, commonest};
use crate::{Engine, Error, Result};

/// How far the recent figures look back.
const RECENT: SignedDuration = SignedDuration::from_hours(24);
/// How far back ends are kept: a clock that is set forward by a day and back again loses nothing.
const ENDS_KEPT: SignedDuration = SignedDuration::from_hours(48);
/// Microseconds of a minute.
const MINUTE_MICROS: f64 = 60_000_000.0;

/// What updates come to, of everything or of one campaign.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Totals {
    /// Updates by where they stand.
    pub updates: Tally,
    /// Rollbacks likewise.
    pub rollbacks: Tally,
    /// Failed updates by the code of their failure; the rarest beyond a bound are counted together.
    pub failures: BTreeMap<String, u64>,
    /// Updates by the kind of their device; likewise.
    pub by_device_type: BTreeMap<String, u64>,
    /// Updates by their version; likewise.
    pub by_version: BTreeMap<String, u64>,
    /// Bytes downloaded by the attempts of updates and rollbacks that have ended.
    pub bytes: u64,
    micros: i64,
}

impl Totals {
    fn of(figures: &[Figure]) -> Self {
        let mut totals = Self::default();
        for figure in figures {
            totals.bytes = totals.bytes.saturating_add(unsigned(figure.amount.bytes));
            let updates = unsigned(figure.amount.updates);
            if figure.action == Action::Rollback {
                *totals.rollbacks.of_mut(figure.group) += updates;
                continue;
            }
            *totals.updates.of_mut(figure.group) += updates;
            if figure.group == Group::Completed && figure.failure.is_some() {
                totals.updates.regressed += updates;
            }
            totals.micros = totals.micros.saturating_add(figure.amount.micros);
            for (division, name) in [
                (&mut totals.by_device_type, &figure.device_type),
                (&mut totals.by_version, &figure.version),
            ] {
                let name = name.as_deref().unwrap_or(UNKNOWN);
                count(division, name, updates);
            }
            if figure.group == Group::Failed
                && let Some(code) = &figure.failure
            {
                count(&mut totals.failures, code, updates);
            }
        }
        totals.failures = commonest(totals.failures);
        totals.by_device_type = commonest(totals.by_device_type);
        totals.by_version = commonest(totals.by_version);
        totals
    }

    /// Minutes from the first offer to the completion, of completed updates on average; `None` when there are none.
    pub fn average_minutes(&self) -> Option<f64> {
        let completed = self.updates.completed;
        #[expect(
            clippy::cast_precision_loss,
            reason = "a figure for people; the sum itself is exact"
        )]
        let average = || self.micros as f64 / completed as f64 / MINUTE_MICROS;
        (completed > 0).then(average)
    }
}

fn count(division: &mut BTreeMap<String, u64>, name: &str, updates: u64) {
    // Shares that everybody has left are kept with a count of zero.
    if updates > 0 {
        *division.entry(name.to_owned()).or_default() += updates;
    }
}

fn unsigned(amount: i64) -> u64 {
    u64::try_from(amount).unwrap_or(0)
}

/// What ended of late.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recent {
    /// From when on: the beginning of the minute 24 hours ago.
    pub since: Timestamp,
    /// Updates that completed or failed.
    pub updates: u64,
    /// Of these, failed.
    pub failures: u64,
    /// Bytes that all attempts of the updates and rollbacks that ended downloaded.
    pub bytes: u64,
}

impl Recent {
    fn of(since: Timestamp, ends: &[(Action, Group, Amount)]) -> Self {
        let mut recent = Self {
            since,
            ..Self::default()
        };
        for (action, group, amount) in ends {
            recent.bytes = recent.bytes.saturating_add(unsigned(amount.bytes));
            let updates = unsigned(amount.updates);
            match (action, group) {
                (Action::Update, Group::Completed) => recent.updates += updates,
                (Action::Update, Group::Failed) => {
                    recent.updates += updates;
                    recent.failures += updates;
                }
                _ => {}
            }
        }
        recent
    }
}

/// The figures of everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Campaigns that are not deleted, by status; every status is there.
    pub campaigns: BTreeMap<&'static str, u64>,
    /// All updates.
    pub totals: Totals,
    /// What ended of late.
    pub recent: Recent,
}

impl Statistics {
    /// Campaigns in any of these statuses.
    pub fn campaigns_in(&self, statuses: &[&str]) -> u64 {
        statuses.iter().filter_map(|s| self.campaigns.get(s)).sum()
    }
}

/// The figures of one campaign.
#[derive(Debug, Clone, PartialEq)]
pub struct CampaignStatistics {
    /// Which.
    pub campaign: Campaign,
    /// Its updates and rollbacks.
    pub totals: Totals,
}

impl Engine {
    /// The figures of everything.
    pub async fn statistics(&self) -> Result<Statistics> {
        let mut campaigns: BTreeMap<&'static str, u64> =
            CampaignState::STATUSES.map(|status| (status, 0)).into();
        for (status, many) in self.store.campaigns_by_status().await? {
            if let Some(known) = campaigns.get_mut(status.as_str()) {
                *known = many;
            }
        }
        let minute = self.recent_from();
        let ends = self.store.ends_since(minute).await?;
        Ok(Statistics {
            campaigns,
            totals: Totals::of(&self.store.figures(None).await?),
            recent: Recent::of(start_of(minute), &ends),
        })
    }

    /// The figures of one campaign, deleted or not.
    pub async fn campaign_statistics(&self, id: &CampaignId) -> Result<CampaignStatistics> {
        let campaign = self.store.campaign(id).await?;
        let campaign = campaign.ok_or_else(|| Error::not_found("campaign", &id))?;
        let totals = Totals::of(&self.store.figures(Some(id)).await?);
        Ok(CampaignStatistics { campaign, totals })
    }

    /// The first minute that recent figures look at.
    fn recent_from(&self) -> i64 {
        self.minute_before(RECENT)
    }

    /// The first minute whose ends are kept.
    pub(crate) fn ends_kept_from(&self) -> i64 {
        self.minute_before(ENDS_KEPT)
    }

    fn minute_before(&self, by: SignedDuration) -> i64 {
        let now = self.clock.now();
        minute_of(now.checked_sub(by).unwrap_or(Timestamp::MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(action: Action, group: Group, failure: Option<&str>, amount: Amount) -> Figure {
        Figure {
            action,
            version: Some("2.0.0".into()),
            device_type: None,
            group,
            failure: failure.map(str::to_owned),
            amount,
        }
    }

    #[test]
    fn rollbacks_are_told_apart_and_only_their_bytes_are_added() {
        let amount = |updates, micros, bytes| Amount {
            updates,
            micros,
            bytes,
        };
        let (update, rollback) = (Action::Update, Action::Rollback);
        let totals = Totals::of(&[
            figure(update, Group::Completed, None, amount(2, 180_000_000, 20)),
            figure(update, Group::Failed, Some("timeout"), amount(1, 0, 5)),
            figure(update, Group::Failed, Some("reverted"), amount(0, 0, 0)),
            figure(rollback, Group::Failed, Some("timeout"), amount(4, 0, 7)),
        ]);
        assert_eq!((totals.updates.total(), totals.rollbacks.failed), (3, 4));
        assert_eq!(totals.failures, [("timeout".to_owned(), 1)].into());
        assert_eq!(totals.by_version, [("2.0.0".to_owned(), 3)].into());
        assert_eq!(totals.by_device_type, [(UNKNOWN.to_owned(), 3)].into());
        assert_eq!(totals.bytes, 32);
        assert_eq!(totals.average_minutes(), Some(1.5));
        assert_eq!(Totals::default().average_minutes(), None);
    }
}
