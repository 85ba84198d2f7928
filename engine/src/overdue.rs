//! What falls due with time: leases, deadlines, watches, offers that nobody has answered, and downloads that are to be counted.

use std::collections::{BTreeMap, HashMap, HashSet};

use device_ota_domain::campaign::Group;
use device_ota_domain::planner;
use device_ota_domain::update::{Action, Expiry};
use device_ota_domain::{CampaignId, FirmwareId, Update, UpdateId};
use jiff::Timestamp;

use crate::changes::Changes;
use crate::dispatch::earlier;
use crate::offers::pair;
use crate::ports::store::InFlight;
use crate::{Engine, Result};

/// Rows looked at in one pass.
const MAX_ROWS: u32 = 1_000;

impl Engine {
    /// Something may have been said that was not heard, because the database was away for a moment: nobody is called
    /// silent before they have had their time anew.
    pub(crate) fn missed_something(&self) {
        self.listening.breaks();
        self.attentive.breaks();
    }

    /// Whether devices can be heard at all. Without a word from here they can; whoever finds that they cannot, such as the
    /// link to a broker, says so, and says when they can again.
    pub fn hears(&self, hears: bool) {
        self.listening.hears(hears);
        self.attentive.hears(hears);
    }

    /// What falls due with time: leases, deadlines, lost devices, watches, unanswered offers, download counts.
    pub async fn keep_time(&self) -> Result<()> {
        while self.expire().await? == MAX_ROWS as usize {}
        self.tell_absences().await?;
        self.say_again().await?;
        self.write_download_counts().await
    }

    async fn expire(&self) -> Result<usize> {
        let (now, here) = (self.clock.now(), self.here());
        let ripe = self.store.expired(now, here, MAX_ROWS).await?;
        if !self.listening.for_a_lease(now, self.settings.lease) {
            return Ok(0);
        }
        if ripe.is_empty() {
            return Ok(0);
        }
        let seen: HashMap<_, _> = ripe.iter().map(|r| (r.update.id.clone(), r)).collect();
        let full = self.without_slots(&ripe, now).await?;
        let kept_waiting = self.kept_waiting(&ripe, now).await?;
        let ids: Vec<_> = ripe.iter().map(|r| r.update.id.clone()).collect();
        let mut tx = self.store.begin().await?;
        if self.was_ended(tx.as_mut(), here).await? {
            return Ok(0);
        }
        let mut changes = Changes::default();
        for update in tx.updates(&ids).await? {
            let Some(known) = seen.get(&update.id) else {
                continue;
            };
            let before = update.standing();
            let kept_waiting = match update.action {
                Action::Update => kept_waiting.contains(&update.id),
                Action::Rollback => full.contains(&update.campaign),
            };
            let expired = if update.watch().is_some() {
                update.look_afterwards(&known.look(now))
            } else {
                update.expire(&Expiry {
                    now,
                    last_seen: known.last_seen,
                    lease: self.settings.lease,
                    kept_waiting,
                })
            };
            if let Some(update) = expired {
                self.rebooting.note(&update);
                if update.is_terminal() && update.watch().is_none() {
                    self.watched.forget([update.device]);
                }
                changes.record(&before, update, now);
            }
        }
        let moved = changes.moves_counters();
        changes.write(tx.as_mut()).await?;
        self.commit(tx).await?;
        if moved {
            self.wake();
        }
        Ok(ripe.len())
    }

    /// The campaigns whose rollbacks have come to the end of their time unoffered and may not be offered yet; `None`: those of no
    /// campaign.
    async fn without_slots(
        &self,
        ripe: &[InFlight],
        now: Timestamp,
    ) -> Result<HashSet<Option<CampaignId>>> {
        let unoffered = ripe.iter().map(|r| &r.update).filter(|update| {
            update.action == Action::Rollback
                && update.attempt == 0
                && update.give_up_at.is_some_and(|end| end <= now)
        });
        let campaigns: HashSet<_> = unoffered.map(|u| u.campaign.clone()).collect();
        let mut full = HashSet::new();
        for id in campaigns {
            let waits = match &id {
                None => self.room().await? == Some(0),
                Some(id) => match self.store.campaign(id).await? {
                    None => false,
                    Some(campaign) => {
                        let counts = self.counts(&campaign).await?;
                        planner::slots(now, &campaign, &counts, Action::Rollback).is_err()
                    }
                },
            };
            if waits {
                full.insert(id);
            }
        }
        Ok(full)
    }

    /// The updates that have come to the end of their time while they waited for something other than their devices.
    async fn kept_waiting(&self, ripe: &[InFlight], now: Timestamp) -> Result<HashSet<UpdateId>> {
        let over = ripe.iter().map(|r| &r.update).filter(|update| {
            update.action == Action::Update
                && update.owed().is_some()
                && update.give_up_at.is_some_and(|end| end <= now)
        });
        let over: Vec<_> = over.cloned().collect();
        if over.is_empty() {
            return Ok(HashSet::new());
        }
        self.kept_from_offers(&over).await
    }

    /// Offers and cancels that nobody answered, of devices that are online.
    async fn say_again(&self) -> Result<()> {
        let now = self.clock.now();
        let before = earlier(now, self.settings.offer_again);
        let updates = self
            .store
            .unanswered(before, now, self.here(), MAX_ROWS)
            .await?;
        // Unless another replica has said it meanwhile.
        let still = |update: &Update| update.updated_at < before || update.updated_at > now;
        self.say(&updates, still).await
    }

    /// Says again what is owed to the devices of these updates, of those that are `still` to be told.
    pub(crate) async fn say(
        &self,
        updates: &[Update],
        still: impl Fn(&Update) -> bool + Send,
    ) -> Result<()> {
        let withheld = self.withhold(updates).await?;
        let ids: Vec<_> = updates.iter().map(|u| u.id.clone()).collect();
        let ids: Vec<_> = ids
            .into_iter()
            .filter(|id| !withheld.contains(id))
            .collect();
        if ids.is_empty() {
            return Ok(());
        }
        let mut tx = self.store.begin().await?;
        let now = self.clock.now();
        let mut updates = tx.updates(&ids).await?;
        updates.retain(|u| u.group() == Group::InFlight && still(u));
        for update in &mut updates {
            update.updated_at = now;
        }
        tx.save_updates(&updates).await?;
        let devices: Vec<_> = updates.iter().map(|u| u.device).collect();
        let grounds = tx.draw_seqs(&devices).await?;
        self.commit(tx).await?;
        self.metrics
            .add("offers_again", "unanswered", updates.len() as u64);
        self.send_due(pair(updates, grounds)).await;
        Ok(())
    }

    pub(crate) async fn write_download_counts(&self) -> Result<()> {
        // In one order, so that replicas do not wait for each other.
        let counts: BTreeMap<_, _> = self.grants.take_counts().into_iter().collect();
        if counts.is_empty() {
            return Ok(());
        }
        let written = self.add_downloads(&counts).await;
        if written.is_err() {
            // For the next time: a database that is away for a while costs no download its count.
            for (firmware, downloads) in &counts {
                self.grants.count(firmware, *downloads);
            }
        }
        written
    }

    async fn add_downloads(&self, counts: &BTreeMap<FirmwareId, u64>) -> Result<()> {
        let mut tx = self.store.begin().await?;
        for (firmware, downloads) in counts {
            tx.count_downloads(firmware, *downloads).await?;
        }
        Ok(self.commit(tx).await?)
    }
}
