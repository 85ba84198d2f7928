//! The last step of an upload: its object and its row, both or neither, whoever still waits for the answer.
//!
//! Objects are shared by what has the same bytes. So one upload at a time takes this step with given bytes: else one that
//! fails could take away the object of another, which has it and not yet its row.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use device_ota_domain::audit::Act;
use device_ota_domain::event::{Event, EventType};
use device_ota_domain::firmware::Firmware;
use tokio::sync::MutexGuard;

use super::{Uploaded, same_image};
use crate::audit::facts;
use crate::ports::{ObjectError, ObjectWriter, StoreError};
use crate::to_the_end::to_its_end;
use crate::{Caller, Engine, Result};

/// Locks for all SHA-256s: more than uploads at a time, so that others seldom wait for each other.
const LOCKS: usize = 64;
/// Most objects in doubt. Beyond, one stays until the next start.
const MAX_DOUBTFUL: usize = 1_024;

/// What uploads share at their end.
pub(crate) struct Recording {
    locks: [tokio::sync::Mutex<()>; LOCKS],
    /// Objects of failed uploads, while the database could not say whether another has the same.
    doubtful: Mutex<BTreeSet<String>>,
}

impl Default for Recording {
    fn default() -> Self {
        Self {
            locks: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            doubtful: Mutex::default(),
        }
    }
}

impl Recording {
    /// Nobody else records, hands over or forgets an object of these bytes meanwhile.
    pub(super) async fn alone(&self, sha256: &str) -> Option<MutexGuard<'_, ()>> {
        let number = sha256
            .get(..2)
            .and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let lock = self.locks.get(number.unwrap_or_default() % LOCKS)?;
        Some(lock.lock().await)
    }

    fn doubt(&self, sha256: &str) {
        let mut doubtful = self.doubtful.lock().unwrap_or_else(PoisonError::into_inner);
        if doubtful.len() < MAX_DOUBTFUL {
            doubtful.insert(sha256.to_owned());
        }
    }

    fn take_doubtful(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.doubtful.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Engine {
    /// Makes the bytes an object and the image a row, or neither; what is there already is answered.
    pub(super) async fn record(
        self: &Arc<Self>,
        writer: Box<dyn ObjectWriter>,
        firmware: Firmware,
        by: &Caller,
    ) -> Result<Uploaded> {
        let (engine, by) = (self.clone(), by.clone());
        to_its_end(async move {
            let sha256 = firmware.sha256.clone();
            let _alone = engine.recording.alone(&sha256).await;
            if let Some(known) = engine.store.firmware(&firmware.id).await? {
                let known = same_image(known, &firmware.metadata, &sha256)?;
                return engine.bring_back(writer, known).await;
            }
            let error = match engine.object_and_row(writer, &firmware, &by).await {
                Ok(()) => {
                    engine.is_recorded(&sha256).await;
                    engine.metrics.uploaded(firmware.size);
                    return Ok(Uploaded::Created(engine.handed_over(firmware).await));
                }
                Err(error) => error,
            };
            engine.forget_object(&sha256).await;
            match error {
                Failed::Object(error) => Err(error.into()),
                // Another upload of that name, version and model was faster, with other bytes.
                Failed::Row(StoreError::Conflict(what)) => {
                    match engine.store.firmware(&firmware.id).await? {
                        Some(known) => {
                            same_image(known, &firmware.metadata, &sha256).map(Uploaded::Existing)
                        }
                        None => Err(StoreError::Conflict(what).into()),
                    }
                }
                Failed::Row(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Answers the image that is there already. Should its bytes be gone, those that have just come take their place.
    pub(super) async fn brought_back(
        self: &Arc<Self>,
        writer: Box<dyn ObjectWriter>,
        known: Firmware,
    ) -> Result<Uploaded> {
        let engine = self.clone();
        to_its_end(async move {
            let _alone = engine.recording.alone(&known.sha256).await;
            engine.bring_back(writer, known).await
        })
        .await
    }

    async fn bring_back(&self, writer: Box<dyn ObjectWriter>, known: Firmware) -> Result<Uploaded> {
        if self.has_bytes(&known.sha256).await {
            return Ok(Uploaded::Existing(known));
        }
        writer.commit(&known.sha256).await?;
        self.is_recorded(&known.sha256).await;
        tracing::warn!(firmware.id = %known.id, "the bytes of an image were gone and are there again");
        Ok(Uploaded::Existing(self.handed_over(known).await))
    }

    /// Whoever starts next need not ask whether a row names it; when this fails, it asks.
    async fn is_recorded(&self, sha256: &str) {
        if let Err(error) = self.objects.recorded(sha256).await {
            tracing::debug!(%error, object.name = sha256, "an object is asked about at the next start");
        }
    }

    async fn object_and_row(
        &self,
        writer: Box<dyn ObjectWriter>,
        firmware: &Firmware,
        by: &Caller,
    ) -> std::result::Result<(), Failed> {
        writer
            .commit(&firmware.sha256)
            .await
            .map_err(Failed::Object)?;
        self.insert_firmware(firmware, by)
            .await
            .map_err(Failed::Row)
    }

    async fn insert_firmware(
        &self,
        firmware: &Firmware,
        by: &Caller,
    ) -> std::result::Result<(), StoreError> {
        let mut tx = self.store.begin().await?;
        tx.insert_firmware(firmware).await?;
        let uploaded = Event::of_firmware(
            EventType::FirmwareUploaded,
            firmware,
            &firmware.created_by,
            firmware.created_at,
        );
        tx.append_events(&[uploaded]).await?;
        let states = (None, Some(facts::firmware(firmware)));
        let (act, at) = (Act::FirmwareUploaded, firmware.created_at);
        tx.append_audit(by.did(act, at, &firmware.id, states))
            .await?;
        self.commit(tx).await
    }

    /// Removes an object that no row names. Whether one does may not be known now; then [`Engine::settle_objects`] asks again.
    async fn forget_object(&self, sha256: &str) {
        match self.store.object_is_used(sha256).await {
            Ok(true) => {}
            Ok(false) => {
                if let Err(error) = self.objects.remove(sha256).await {
                    tracing::warn!(%error, object.name = sha256, "an object of a failed upload is not removed yet");
                    self.recording.doubt(sha256);
                }
            }
            Err(_) => self.recording.doubt(sha256),
        }
    }

    /// Looks again at objects of failed uploads that could not be removed at once.
    pub(crate) async fn settle_objects(&self) {
        for sha256 in self.recording.take_doubtful() {
            let _alone = self.recording.alone(&sha256).await;
            self.forget_object(&sha256).await;
        }
    }
}

/// Which half failed.
enum Failed {
    Object(ObjectError),
    Row(StoreError),
}
