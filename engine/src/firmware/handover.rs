//! Images on their way to the shared store: handed over with their upload, or later when it was away (PRD, NFR-2).
//!
//! The copy with this process is let go only when the bytes are in the shared store, have been read back, and the rows say so.
//! Whatever ends the process in between, the next look goes on from there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use device_ota_domain::firmware::{Firmware, Storage};

use crate::{Engine, Error, Result};

/// Pause between two looks at what waits.
const AGAIN: Duration = Duration::from_secs(5);

/// How images get to the shared store.
#[derive(Debug, Default)]
pub(crate) struct Standing(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Images that wait here.
    waiting: usize,
    /// Why the last one could not be handed over; nothing once one could, or none waits.
    trouble: Option<String>,
}

impl Standing {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Images that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// Whether images get there; why not, when not.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let State { waiting, trouble } = &*self.state();
        trouble.as_ref().map_or(Ok(()), |trouble| {
            Err(format!(
                "images that wait in the local folder: {waiting}; {trouble}"
            ))
        })
    }

    fn failed(&self, waiting: usize, error: &Error) {
        let trouble = Some(crate::health::with_causes(error));
        *self.state() = State { waiting, trouble };
    }

    fn one_failed(&self, error: &Error) {
        let waiting = self.waiting() + 1;
        self.failed(waiting, error);
    }

    fn none_failed(&self) {
        *self.state() = State::default();
    }
}

/// Hands over what waits, again and again.
pub(crate) async fn run(engine: Arc<Engine>) {
    let mut failing = false;
    loop {
        failing = match engine.hand_over_all().await {
            Ok(()) => false,
            Err(error) => {
                // Once, and not every few seconds.
                if !failing {
                    tell("images wait in the local folder", &error);
                }
                true
            }
        };
        tokio::time::sleep(AGAIN).await;
    }
}

impl Engine {
    /// Hands over everything that waits; the last error, when there was one. One image holds up no other.
    async fn hand_over_all(&self) -> Result<()> {
        let (mut waiting, mut outcome) = (0, Ok(()));
        for sha256 in self.objects.waiting().await? {
            let _alone = self.recording.alone(&sha256).await;
            // The bytes of an upload under way have no row yet.
            if self.store.object_is_used(&sha256).await?
                && let Err(error) = self.hand_over(&sha256).await
            {
                waiting += 1;
                outcome = Err(error);
            }
        }
        match &outcome {
            Ok(()) => self.handover.none_failed(),
            Err(error) => self.handover.failed(waiting, error),
        }
        outcome
    }

    /// Hands over the bytes of an image that has just been recorded. When the shared store is away, they wait. Whoever calls
    /// it is alone with these bytes.
    pub(super) async fn handed_over(&self, mut firmware: Firmware) -> Firmware {
        if self.objects.storage() != Storage::Local {
            match self.hand_over(&firmware.sha256).await {
                Ok(()) => firmware.storage = self.objects.storage(),
                Err(error) => {
                    tell("an image waits in the local folder", &error);
                    self.handover.one_failed(&error);
                }
            }
        }
        firmware
    }

    async fn hand_over(&self, sha256: &str) -> Result<()> {
        self.objects.hand_over(sha256).await?;
        let mut tx = self.store.begin().await?;
        tx.set_storage(sha256, self.objects.storage()).await?;
        self.commit(tx).await?;
        self.objects.let_go(sha256).await?;
        tracing::info!(
            object.name = sha256,
            "an image was moved to the shared store"
        );
        Ok(())
    }
}

/// Says why, with the causes: they name the server.
fn tell(what: &str, error: &Error) {
    let cause = std::error::Error::source(error).map(crate::health::with_causes);
    tracing::warn!(%error, cause = cause.as_deref(), "{what}");
}
