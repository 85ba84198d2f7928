//! Images over MQTT, chunk by chunk, for devices without HTTP (PROTOCOL.md, *chunk*).
//!
//! A device is served only the image that it has a live offer for. Chunks are QoS 0: what gets lost is asked for
//! again. The service holds a bounded number of requests; what does not fit is dropped, and asked for again.

use std::sync::Arc;

use device_ota_protocol::messages::ChunkRequest;
use device_ota_protocol::topics::Down;
use tokio::sync::mpsc;

use crate::Engine;
use crate::inbound::DeviceRef;
use crate::ports::Delivery;

/// Requests that may wait.
pub(crate) const QUEUE: usize = 4_096;

/// A chunk request, from a device that is known.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) device: DeviceRef,
    pub(crate) request: ChunkRequest,
}

impl Engine {
    /// Queues a request.
    pub(crate) fn want_chunks(&self, wanted: Wanted) {
        if self.chunks.try_send(wanted).is_err() {
            self.metrics.add("chunk_requests_dropped", "queue_full", 1);
        }
    }
}

/// Serves requests until the queue closes.
pub(crate) async fn run(engine: Arc<Engine>, mut queue: mpsc::Receiver<Wanted>) {
    while let Some(wanted) = queue.recv().await {
        if let Err(refused) = serve(&engine, &wanted).await {
            engine.metrics.add("chunk_requests_refused", refused, 1);
        }
    }
}

async fn serve(engine: &Engine, wanted: &Wanted) -> Result<(), &'static str> {
    let update = engine
        .store
        .in_flight(wanted.device.key)
        .await
        .map_err(|_| "database")?;
    let id = update.and_then(|u| u.firmware).ok_or("no_offer")?;
    let firmware = engine
        .cached_firmware(&id)
        .await
        .map_err(|_| "database")?
        .ok_or("no_offer")?;
    if firmware.sha256 != wanted.request.sha256.to_string() {
        return Err("other_image");
    }
    if wanted.request.offset == 0 {
        engine.count_begun(&id);
    }
    for (offset, length) in wanted.request.chunks(firmware.size) {
        let bytes = engine
            .objects
            .read(&firmware.sha256, offset, length as usize)
            .await
            .map_err(|_| "storage")?;
        let to = Down::Chunk {
            request: wanted.request.request,
            offset,
        };
        match engine.downlink.send(&wanted.device.id, &to, bytes).await {
            Delivery::Queued => {}
            Delivery::Busy => return Err("device_reads_slowly"),
            Delivery::NotConnected => return Err("not_connected"),
        }
    }
    Ok(())
}
