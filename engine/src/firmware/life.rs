//! An image after its upload: changed where devices are not told with a signature, and taken out of use (PRD, E1-US5).
//!
//! An image that is out of use is offered to nobody as an update. It stays what devices go back to: whoever ran it is better
//! off with it than with what failed after it.

use device_ota_domain::audit::Act;
use device_ota_domain::event::{Event, EventType};
use device_ota_domain::firmware::{Deprecated, Firmware, FirmwareChange};
use device_ota_domain::{FirmwareId, Update};
use jiff::Timestamp;

use crate::audit::facts;
use crate::campaigns::cancel;
use crate::changes::Changes;
use crate::offers::pair;
use crate::ports::store::Tx;
use crate::{Caller, Engine, Error, Result};

/// Updates of single devices that are cancelled in one statement.
const PIECE: u32 = 1_000;
/// Users of an image that a refusal names.
const NAMED: u32 = 5;

impl Engine {
    /// Changes what is not part of the signed release. 409 for an image that is out of use.
    pub async fn change_firmware(
        &self,
        id: &FirmwareId,
        change: FirmwareChange,
        by: &Caller,
    ) -> Result<Firmware> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let firmware = locked(tx.as_mut(), id).await?;
        let before = facts::firmware(&firmware);
        let firmware = firmware.change(change, now)?;
        firmware.metadata.check()?;
        let states = (Some(before), Some(facts::firmware(&firmware)));
        if states.0 == states.1 {
            drop(tx); // a connection is not held while another is waited for
            return self.firmware(id).await;
        }
        tx.save_firmware(&firmware).await?;
        tx.append_audit(by.did(Act::FirmwareChanged, now, id, states))
            .await?;
        self.commit(tx).await?;
        tracing::info!(firmware.id = %id, by = by.subject(), "firmware changed");
        self.firmware(id).await
    }

    /// Takes an image out of use. 409 while campaigns or updates of single devices would offer it; with `force` they
    /// are cancelled in the same transaction.
    pub async fn deprecate_firmware(
        &self,
        id: &FirmwareId,
        force: bool,
        by: &Caller,
    ) -> Result<Firmware> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let firmware = locked(tx.as_mut(), id).await?;
        let before = facts::firmware(&firmware);
        let firmware = firmware.deprecate(now)?;
        let mut stopped = Vec::new();
        if force {
            stopped = stop_offers(tx.as_mut(), id, now, by).await?;
        } else {
            refuse_in_use(tx.as_mut(), id).await?;
        }
        tx.save_firmware(&firmware).await?;
        let deprecated =
            Event::of_firmware(EventType::FirmwareDeprecated, &firmware, by.subject(), now);
        tx.append_events(&[deprecated]).await?;
        let states = (Some(before), Some(facts::firmware(&firmware)));
        tx.append_audit(by.did(Act::FirmwareDeprecated, now, id, states))
            .await?;
        let devices: Vec<_> = stopped.iter().map(|update| update.device).collect();
        let grounds = self.grounds_here(tx.as_mut(), &devices).await?;
        self.commit(tx).await?;
        tracing::info!(firmware.id = %id, by = by.subject(), force, "firmware deprecated");
        self.send_due(pair(stopped, grounds)).await;
        self.wake();
        self.firmware(id).await
    }
}

/// Cancels whatever would offer the image. Answers the updates of single devices that must be told; the dispatcher tells
/// those of campaigns.
async fn stop_offers(
    tx: &mut dyn Tx,
    id: &FirmwareId,
    now: Timestamp,
    by: &Caller,
) -> Result<Vec<Update>> {
    for campaign in tx.campaigns_offering(id).await? {
        cancel(tx, campaign, now, by).await?;
    }
    let mut told = Vec::new();
    loop {
        let open = tx.cancellable_singles(id, PIECE).await?;
        let last = open.len() < PIECE as usize;
        let mut changes = Changes::default();
        for update in open {
            let (before, was) = (update.standing(), facts::update(&update));
            let update = update.cancel(now)?;
            let states = (Some(was), Some(facts::update(&update)));
            tx.append_audit(by.did(Act::UpdateCancelled, now, &update.id, states))
                .await?;
            if !update.is_terminal() {
                told.push(update.clone());
            }
            changes.record(&before, update, now);
        }
        changes.write(tx).await?;
        if last {
            return Ok(told);
        }
    }
}

/// The image to change, locked.
async fn locked(tx: &mut dyn Tx, id: &FirmwareId) -> Result<Firmware> {
    let found = tx.firmware(id).await?;
    found.ok_or_else(|| Error::not_found("firmware", &id))
}

/// 409 with the names of those who would offer the image.
async fn refuse_in_use(tx: &mut dyn Tx, id: &FirmwareId) -> Result<()> {
    let campaigns = tx.campaigns_offering(id).await?;
    let updates = tx.open_singles(id, NAMED).await?;
    if campaigns.is_empty() && updates.is_empty() {
        return Ok(());
    }
    let shown = campaigns.iter().map(|campaign| campaign.id.to_string());
    let shown = shown.take(NAMED as usize);
    let users: Vec<String> = shown
        .chain(updates.iter().map(ToString::to_string))
        .collect();
    Err(Error::conflict(
        "firmware_in_use",
        format!(
            "the firmware is still offered, by {} campaigns and updates such as {}; cancel them first, or let an admin \
             delete it with force=true, which cancels them",
            if campaigns.is_empty() {
                "no".to_owned()
            } else {
                campaigns.len().to_string()
            },
            users.join(", ")
        ),
    ))
}

impl From<Deprecated> for Error {
    fn from(error: Deprecated) -> Self {
        Self::conflict("firmware_deprecated", error.to_string())
    }
}
