//! Devices that stay away: each absence is told of once, as the event `device.offline`, and not before the service has
//! listened for as long as a device may be away: a device that came back while the database or the broker was away is not.

use std::collections::HashSet;

use device_ota_domain::event::Event;
use jiff::Timestamp;

use crate::dispatch::earlier;
use crate::{Engine, Result};

/// Absences told of in one transaction.
const PIECE: u32 = 1_000;

impl Engine {
    /// Tells of those who have been away for too long.
    pub(crate) async fn tell_absences(&self) -> Result<()> {
        let (now, grace) = (self.clock.now(), self.settings.offline_after);
        if !self.attentive.for_a_lease(now, grace) {
            return Ok(());
        }
        while self.tell_some(earlier(now, grace), now).await? {}
        Ok(())
    }

    /// Tells of some of them; true when there may be more.
    async fn tell_some(&self, before: Timestamp, now: Timestamp) -> Result<bool> {
        let here = self.here();
        let away = self.store.away(before, PIECE).await?;
        if away.is_empty() {
            return Ok(false);
        }
        // Who was heard otherwise, over HTTP, is away since then.
        let settled: Vec<_> = away
            .iter()
            .map(|absence| (absence, absence.last_seen.filter(|at| *at > absence.since)))
            .collect();
        let mut tx = self.store.begin().await?;
        if self.was_ended(tx.as_mut(), here).await? {
            return Ok(false);
        }
        // Who came back meanwhile, or was told of by another replica, is not among them.
        let same: HashSet<_> = tx.settle_absences(&settled).await?.into_iter().collect();
        let told = settled
            .iter()
            .filter(|(absence, still)| still.is_none() && same.contains(&absence.device));
        let events: Vec<Event> = told
            .map(|(a, _)| Event::offline(&a.device_id, a.last_seen, a.since, now))
            .collect();
        tx.append_events(&events).await?;
        self.commit(tx).await?;
        Ok(away.len() == PIECE as usize)
    }
}
