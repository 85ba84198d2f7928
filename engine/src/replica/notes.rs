//! What replicas leave for each other: each heeds its notes within a tick.

use std::collections::HashSet;

use device_ota_domain::device::DeviceKey;
use device_ota_domain::{DeviceId, Update};

use super::PIECE;
use crate::ports::StoreError;
use crate::ports::replicas::{Note, Word};
use crate::ports::store::{OfferGround, Tx};
use crate::{Engine, Result};

impl Engine {
    /// Does what other replicas have left notes about.
    pub async fn heed_notes(&self) -> Result<()> {
        let Some(key) = self.here() else {
            return Ok(());
        };
        loop {
            let notes = self.store.notes(key, PIECE).await?;
            if notes.is_empty() {
                return Ok(());
            }
            self.heed(&notes).await?;
            let numbers: Vec<i64> = notes.iter().map(|note| note.number).collect();
            let mut tx = self.store.begin().await?;
            tx.forget_notes(&numbers).await?;
            self.commit(tx).await?;
        }
    }

    async fn heed(&self, notes: &[Note]) -> Result<()> {
        let mut owed = Vec::new();
        for note in notes {
            match note.word {
                Word::Owed => owed.push(note.device),
                Word::TakenOver(session) => {
                    self.downlink.take_over(&note.device_id, session).await;
                }
                Word::Secret => self.secret_is_over(&note.device_id).await,
            }
        }
        if owed.is_empty() {
            return Ok(());
        }
        let updates = self.store.busy_with(&owed).await?;
        self.say(&updates, Update::is_unanswered).await
    }

    /// What is told to these devices is built on, of those that are told from here; for the others, those that hold them are left
    /// notes.
    pub(crate) async fn grounds_here(
        &self,
        tx: &mut dyn Tx,
        devices: &[DeviceKey],
    ) -> std::result::Result<Vec<OfferGround>, StoreError> {
        let mut elsewhere = HashSet::new();
        if self.membership.is_one_of_several() && !devices.is_empty() {
            elsewhere.extend(tx.note_owed(self.here(), devices).await?);
        }
        let here = devices.iter().filter(|device| !elsewhere.contains(*device));
        let here: Vec<DeviceKey> = here.copied().collect();
        if here.is_empty() {
            return Ok(Vec::new());
        }
        tx.draw_seqs(&here).await
    }

    /// A device that was to be told something has no session here: if it has moved to another replica since, that one tells it.
    pub(crate) async fn has_moved(&self, device: DeviceKey) {
        if !self.membership.has_others() {
            return;
        }
        let noted = async {
            let mut tx = self.store.begin().await?;
            tx.note_owed(self.here(), &[device]).await?;
            self.commit(tx).await
        };
        if let Err(error) = noted.await {
            tracing::debug!(%error, "what a device was not told is said again later");
        }
    }

    /// Leaves notes for the other replicas that a device's secret is about to be replaced, before anything is locked for it.
    pub(crate) async fn note_secret(
        &self,
        tx: &mut dyn Tx,
        device: &DeviceId,
    ) -> std::result::Result<(), StoreError> {
        if self.membership.is_one_of_several() {
            tx.note_secret(self.here(), device).await?;
        }
        Ok(())
    }
}
