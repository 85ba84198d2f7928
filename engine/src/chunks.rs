//! Images over MQTT, chunk by chunk, for devices without HTTP (PROTOCOL.md, *chunk*).
//!
//! A device is served only the image that it has a live offer for, one request at a time, each by one read of the object
//! store; several devices are served side by side, in turn. Chunks are `QoS` 0: what gets lost is asked for again, and so is
//! what a request did not bring before it was ended.

mod cut;
mod line;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use device_ota_domain::Firmware;
use device_ota_domain::device::DeviceKey;
use device_ota_protocol::messages::ChunkRequest;
use device_ota_protocol::topics::Down;
use tokio::sync::Notify;
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::inbound::DeviceRef;
use crate::ports::{Delivery, ObjectError, StoreError};
use cut::Cut;
use line::Line;

/// Devices that are served side by side: from a bucket that is 40 ms away some 400 requests a second. For each a piece and a
/// chunk of its image are held.
const SIDE_BY_SIDE: usize = 16;
/// How long the object store may take to begin, and then for each chunk: a store that takes longer serves nobody.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a request may take: the largest one (4 MiB) at 70 kB/s.
const LONGEST: Duration = Duration::from_mins(1);

/// A chunk request, from a device that is known.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) device: DeviceRef,
    pub(crate) request: ChunkRequest,
}

/// Requests that wait.
#[derive(Default)]
pub(crate) struct Waiting {
    line: Mutex<Line>,
    bell: Notify,
}

impl Waiting {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a request was ended before its last chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    NoOffer,
    OtherImage,
    Database,
    Storage,
    StorageHangs,
    TookTooLong,
    NotConnected,
    ReadsSlowly,
}

impl Ended {
    /// Its label.
    const fn name(self) -> &'static str {
        match self {
            Self::NoOffer => "no_offer",
            Self::OtherImage => "other_image",
            Self::Database => "database",
            Self::Storage => "storage",
            Self::StorageHangs => "storage_hangs",
            Self::TookTooLong => "took_too_long",
            Self::NotConnected => "not_connected",
            Self::ReadsSlowly => "device_reads_slowly",
        }
    }
}

impl From<StoreError> for Ended {
    fn from(_: StoreError) -> Self {
        Self::Database
    }
}

impl Engine {
    /// Puts requests in line, and those out of it that they take the place of.
    pub(crate) fn want_chunks(&self, wanted: Vec<Wanted>) {
        if wanted.is_empty() {
            return;
        }
        let let_go: Vec<_> = {
            let mut line = self.chunks.line();
            wanted.into_iter().map(|wanted| line.put(wanted)).collect()
        };
        self.chunks.bell.notify_one();
        for (reason, requests) in let_go.into_iter().flatten() {
            self.metrics
                .add("chunk_requests_dropped", reason.name(), requests);
        }
    }

    /// Sends the chunks of a request, one by one.
    async fn send_chunks(&self, wanted: &Wanted) -> Result<(), Ended> {
        let Wanted { device, request } = wanted;
        let firmware = self.offered_image(device.key, request).await?;
        let Some((last, length)) = request.chunks(firmware.size).last() else {
            return Ok(()); // it begins behind the image
        };
        let range = request.offset..last + u64::from(length);
        let bytes = in_time(self.objects.open(&firmware.sha256, range)).await?;
        let mut cut = Cut::new(bytes);
        for (offset, length) in request.chunks(firmware.size) {
            let chunk = in_time(cut.next(length as usize)).await?;
            // Whoever has asked anew meanwhile has it by the number that he asked with last.
            let anew = self.chunks.line().asked_anew(device.key, request, offset);
            let to = Down::Chunk {
                request: anew.unwrap_or(request.request),
                offset,
            };
            match self.downlink.send(&device.id, &to, chunk).await {
                Delivery::Queued => {}
                Delivery::Busy => return Err(Ended::ReadsSlowly),
                Delivery::NotConnected => return Err(Ended::NotConnected),
            }
            if offset == 0 {
                self.count_begun(&firmware.id);
            }
            yield_now().await; // its connection takes this chunk before the next one comes
        }
        Ok(())
    }

    /// The image that is asked for, if it is the one that the device has a live offer of.
    async fn offered_image(
        &self,
        device: DeviceKey,
        request: &ChunkRequest,
    ) -> Result<Arc<Firmware>, Ended> {
        let update = self.store.in_flight(device).await?;
        let id = update.and_then(|u| u.firmware).ok_or(Ended::NoOffer)?;
        let firmware = self.cached_firmware(&id).await?.ok_or(Ended::NoOffer)?;
        if firmware.sha256 == request.sha256.to_string() {
            Ok(firmware)
        } else {
            Err(Ended::OtherImage)
        }
    }
}

/// An answer of the object store, while it is worth waiting for.
async fn in_time<T>(answer: impl Future<Output = Result<T, ObjectError>>) -> Result<T, Ended> {
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(|_| Ended::Storage),
        Err(_) => Err(Ended::StorageHangs),
    }
}

/// Serves who waits, until `shutdown`.
pub(crate) async fn run(engine: Arc<Engine>, shutdown: CancellationToken) {
    let mut served = JoinSet::new();
    loop {
        while served.len() < SIDE_BY_SIDE {
            let Some(wanted) = engine.chunks.line().take() else {
                break;
            };
            served.spawn(serve(engine.clone(), wanted));
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = engine.chunks.bell.notified(), if served.len() < SIDE_BY_SIDE => {}
            Some(ended) = served.join_next() => {
                if let Err(error) = ended
                    && let Ok(panic) = error.try_into_panic()
                {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
    served.shutdown().await;
}

/// Serves one request, and gives the device its next turn.
async fn serve(engine: Arc<Engine>, wanted: Wanted) {
    let sent = timeout(LONGEST, engine.send_chunks(&wanted)).await;
    let sent = sent.unwrap_or(Err(Ended::TookTooLong));
    let device = wanted.device.key;
    let gone = {
        let mut line = engine.chunks.line();
        let gone = match sent {
            Err(Ended::NotConnected) => line.forget(device),
            _ => 0,
        };
        line.served(device);
        gone
    };
    if let Err(ended) = sent {
        engine
            .metrics
            .add("chunk_requests_refused", ended.name(), 1 + gone);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_object_store_that_hangs_is_waited_for_so_long_and_no_longer() {
        let began = Instant::now();
        let answer = in_time(pending::<Result<(), ObjectError>>()).await;
        assert_eq!(answer, Err(Ended::StorageHangs));
        assert_eq!(began.elapsed(), PATIENCE);
        let missing = async { Err::<(), _>(ObjectError::Missing("it".to_owned())) };
        assert_eq!(in_time(missing).await, Err(Ended::Storage));
    }
}
