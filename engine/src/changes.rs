//! One way to write changed updates: rows, counters by one delta a kind, figures, and events, all in the caller's
//! transaction.

use std::collections::BTreeMap;

use device_ota_domain::Update;
use device_ota_domain::campaign::Delta;
use device_ota_domain::event::Event;
use device_ota_domain::statistics::{Ledger, Standing};
use jiff::Timestamp;

use crate::Engine;
use crate::ports::StoreError;
use crate::ports::store::Tx;

impl Engine {
    /// Makes a transaction durable, and notes what has ended with it.
    pub(crate) async fn commit(&self, tx: Box<dyn Tx>) -> Result<(), StoreError> {
        self.metrics.moved(&tx.commit().await?);
        Ok(())
    }
}

/// Changed updates, collected until they are written.
#[derive(Default)]
pub(crate) struct Changes {
    updates: Vec<Update>,
    deltas: BTreeMap<Delta, u64>,
    ledger: Ledger,
    events: Vec<Event>,
}

impl Changes {
    /// Notes that an update that stood at `before` now is `after`.
    pub(crate) fn record(&mut self, before: &Standing, after: Update, now: Timestamp) {
        let to = after.group();
        let regressed = (!before.regressed && after.regression().is_some()).then_some(now);
        if before.group != to || regressed.is_some() {
            self.ledger.moved(before, &after);
            if let Some(campaign) = after.campaign.clone() {
                let delta = Delta {
                    campaign,
                    action: after.action,
                    stage: after.stage,
                    from: Some(before.group),
                    to,
                    regressed,
                };
                *self.deltas.entry(delta).or_default() += 1;
            }
            if before.group != to {
                self.events.extend(Event::ended(&after, now));
            }
            if regressed.is_some() {
                self.events.extend(Event::regressed(&after, now));
            }
        }
        self.updates.push(after);
    }

    /// Anything to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }

    /// A counter moves, so that a planner may have something to do.
    pub(crate) fn moves_counters(&self) -> bool {
        !self.deltas.is_empty()
    }

    /// Writes everything.
    pub(crate) async fn write(self, tx: &mut dyn Tx) -> Result<(), StoreError> {
        if self.updates.is_empty() {
            return Ok(());
        }
        tx.save_updates(&self.updates).await?;
        let deltas: Vec<_> = self.deltas.into_iter().collect();
        if !deltas.is_empty() {
            tx.add_counts(&deltas).await?;
        }
        tx.count(self.ledger);
        if !self.events.is_empty() {
            tx.append_events(&self.events).await?;
        }
        Ok(())
    }
}
