//! What the requests find: updates that failed or completed, and devices that moved on, as if their devices had said so.

use anyhow::Context as _;
use device_ota_domain::campaign::Delta;
use device_ota_domain::page::Page;
use device_ota_domain::statistics::Ledger;
use device_ota_domain::update::{Failure, Retry, UpdateState};
use device_ota_domain::{CampaignId, UpdateId};
use device_ota_engine::ports::store::{Store, Touch, UpdateFilter};

use super::{MOVED_ON, NAMED, REPORTING};
use crate::fleet::{self, Database};

/// Lets updates of devices that are never there fail, as their own reports would.
pub(super) async fn fail(database: &Database, updates: &[UpdateId]) -> anyhow::Result<()> {
    let (store, mut ledger) = (database.open().await?, Ledger::default());
    let mut tx = store.begin().await?;
    let mut failed = tx.updates(updates).await?;
    for update in &mut failed {
        let before = update.standing();
        update.state = UpdateState::Failed {
            at: fleet::now(),
            failure: Failure::new("install_failed", "", Retry::Never),
        };
        ledger.moved(&before, update);
    }
    tx.save_updates(&failed).await?;
    tx.count(ledger);
    tx.commit().await?;
    Ok(())
}

/// Lets every device of a campaign complete its update, as its own reports would.
pub(super) async fn complete(store: &dyn Store, campaign: &CampaignId) -> anyhow::Result<()> {
    let filter = UpdateFilter {
        campaign: Some(campaign.clone()),
        ..UpdateFilter::default()
    };
    let all = Page::new(200, 0).context("a page")?;
    let found = store.updates(&filter, all).await?;
    let ids: Vec<_> = found.into_iter().map(|update| update.id).collect();
    let (mut tx, mut ledger) = (store.begin().await?, Ledger::default());
    let mut updates = tx.updates(&ids).await?;
    let mut moves = Vec::with_capacity(updates.len());
    for update in &mut updates {
        let before = update.standing();
        update.state = UpdateState::Completed { at: fleet::now() };
        ledger.moved(&before, update);
        let delta = Delta {
            campaign: campaign.clone(),
            action: update.action,
            stage: update.stage,
            from: Some(before.group),
            to: update.group(),
            regressed: None,
        };
        moves.push((delta, 1));
    }
    anyhow::ensure!(moves.len() == NAMED, "{} of {NAMED} complete", moves.len());
    tx.save_updates(&updates).await?;
    tx.add_counts(&moves).await?;
    tx.count(ledger);
    tx.commit().await?;
    Ok(())
}

/// Lets the named devices have said that they run something newer than what they were registered with.
pub(super) async fn moved_on(database: &Database) -> anyhow::Result<()> {
    let store = database.open().await?;
    let mut touches = Vec::new();
    for name in named() {
        let device = store.device(&name.parse()?).await?;
        touches.push(Touch {
            device: device.context("a named device is missing")?.key,
            version: Some(MOVED_ON.to_owned()),
            ..Touch::default()
        });
    }
    let mut tx = store.begin().await?;
    tx.touch(&touches).await?;
    tx.commit().await?;
    Ok(())
}

/// The devices that requests name: registered, and never there.
pub(super) fn named() -> Vec<String> {
    fleet::names(REPORTING + NAMED).split_off(REPORTING)
}
