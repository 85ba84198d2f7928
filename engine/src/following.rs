//! Continuous campaigns follow their fleet: devices that they come to mean are taken in, and those that were offered nothing yet
//! are let go when they are none of theirs any more.
//!
//! The database says who those are, whatever has changed them: a registration, a tag, a ring, a heartbeat. A change by an admin
//! here is only a hint to look at once; without one they are looked at every minute. A look goes through the whole fleet, and so it
//! stands in nobody's way: it has a loop of its own, which rests for nine times as long as it looked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use device_ota_domain::campaign::Campaign;
use device_ota_domain::update::Update;
use device_ota_domain::{CampaignId, UpdateId};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::changes::Changes;
use crate::firmware::held;
use crate::ports::store::{Aim, Drift};
use crate::{Engine, Result};

/// How often the whole fleet is looked at without a hint: what heartbeats say may change whom a campaign means, and other replicas
/// change devices.
const LOOK_EVERY: SignedDuration = SignedDuration::from_mins(1);
/// Devices, and updates, that are moved in one transaction.
const MAX_DRIFT: u32 = 5_000;

/// How many times as long as a look took the loop rests, so that hints without end take a tenth of one connection and no more.
const RESTS: u32 = 9;

/// Follows until `shutdown`.
pub(crate) async fn run(engine: Arc<Engine>, shutdown: CancellationToken) {
    let mut pause = engine.settings.tick;
    loop {
        let look = async {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            if let Err(error) = engine.follow_the_fleet().await {
                crate::dispatch::log(&error, "following the fleet");
            }
            began.elapsed()
        };
        let Some(took) = shutdown.run_until_cancelled(look).await else {
            return;
        };
        pause = engine.settings.tick.max(took * RESTS);
    }
}

/// When the fleet was looked at.
#[derive(Default)]
pub(crate) struct Following {
    changed: AtomicBool,
    last: Mutex<Option<Timestamp>>,
}

impl Following {
    /// Whether it is time for another look, which begins now.
    fn is_due(&self, now: Timestamp) -> bool {
        // Forgotten before the look: what changes meanwhile asks for another.
        let changed = self.changed.swap(false, Ordering::SeqCst);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| {
            now < last || now.duration_since(last) >= LOOK_EVERY // a clock that was set back
        });
        if changed || is_due {
            *last = Some(now);
        }
        changed || is_due
    }
}

impl Engine {
    /// What is registered of a device has changed.
    pub(crate) fn fleet_changed(&self) {
        self.following.changed.store(true, Ordering::SeqCst);
    }

    /// Lets continuous campaigns follow their fleet, when it is time to look.
    pub async fn follow_the_fleet(&self) -> Result<()> {
        if !self.following.is_due(self.clock.now()) {
            return Ok(());
        }
        let followed = self.follow_all().await;
        if followed.is_err() {
            self.fleet_changed(); // once more at the next tick
        }
        followed
    }

    /// One campaign's trouble is not the others'; the first is told.
    async fn follow_all(&self) -> Result<()> {
        let now = self.clock.now();
        let mut all = Ok(());
        for campaign in self.store.campaigns_to_plan(now).await? {
            if campaign.follows_its_fleet(now) {
                all = all.and(self.follow_one(&campaign).await);
            }
        }
        all
    }

    async fn follow_one(&self, campaign: &Campaign) -> Result<()> {
        while self.follow(campaign).await? {}
        Ok(())
    }

    /// One piece of what has come apart; true when there may be more.
    async fn follow(&self, campaign: &Campaign) -> Result<bool> {
        let now = self.clock.now();
        let Some(firmware) = self.store.firmware(campaign.firmware()).await? else {
            return Ok(false);
        };
        let named = self.store.named(campaign).await?;
        let aim = Aim {
            spec: &campaign.spec,
            named: &named,
            firmware: &firmware,
            now,
        };
        let drift = self.store.drift(&campaign.id, aim, MAX_DRIFT).await?;
        if drift.is_empty() {
            return Ok(false);
        }
        let mut tx = self.store.begin().await?;
        // Images before campaigns before updates, as everybody locks them.
        let firmware = held(tx.as_mut(), campaign.firmware()).await?;
        let Some(campaign) = tx.campaign(&campaign.id).await? else {
            return Ok(false);
        };
        if !campaign.follows_its_fleet(now) {
            return Ok(false);
        }
        let devices = &drift.newcomers;
        let taken = tx.take_in(&campaign, &firmware, now, devices).await?;
        let fates = fates(&drift);
        let ids: Vec<UpdateId> = fates.keys().map(|id| (*id).clone()).collect();
        let mut changes = Changes::default();
        let mut moves = drift.moves.clone();
        for update in tx.updates(&ids).await? {
            let before = update.standing();
            let (id, change) = (update.id.clone(), fates.get(&update.id));
            let after = change.and_then(|change| change.carried_out(update, now));
            let stage = after.as_ref().and(change.and_then(Change::stage));
            moves.extend(stage.map(|stage| (id, stage)));
            if let Some(after) = after {
                changes.record(&before, after, now);
            }
        }
        let any = changes.moves_counters();
        changes.write(tx.as_mut()).await?;
        let any = any | (tx.restage(&campaign.id, &moves, now).await? > 0);
        self.commit(tx).await?;
        tell(&campaign.id, taken, &drift);
        self.wake();
        // What did not move was changed by somebody else meanwhile.
        Ok((taken > 0 || any) && drift.len() >= MAX_DRIFT as usize)
    }
}

/// What becomes of an update.
enum Change {
    Leaves(device_ota_domain::targeting::Exclusion),
    Returns(u16),
}

impl Change {
    fn carried_out(&self, update: Update, now: Timestamp) -> Option<Update> {
        match self {
            Self::Leaves(because) => update.settle(*because, now),
            Self::Returns(_) => update.rejoin(now),
        }
    }

    /// The stage that it comes back to.
    const fn stage(&self) -> Option<u16> {
        match self {
            Self::Leaves(_) => None,
            Self::Returns(stage) => Some(*stage),
        }
    }
}

fn fates(drift: &Drift) -> HashMap<&UpdateId, Change> {
    let leaves = drift.leaves.iter();
    let leaves = leaves.map(|(update, because)| (update, Change::Leaves(*because)));
    let returns = drift.returns.iter();
    let returns = returns.map(|(update, stage)| (update, Change::Returns(*stage)));
    leaves.chain(returns).collect()
}

fn tell(campaign: &CampaignId, taken: u64, drift: &Drift) {
    tracing::info!(
        campaign.id = %campaign,
        devices.taken_in = taken,
        devices.let_go = drift.leaves.len(),
        devices.back = drift.returns.len(),
        devices.moved = drift.moves.len(),
        "a campaign follows its fleet"
    );
}
