//! Heartbeats that come otherwise than over MQTT: the same queue, the same batches, the same acknowledgement.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use device_ota_protocol::messages::parse_report;
use device_ota_protocol::topics::Up;
use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::inbound::{Ack, AckSink, Closed, DeviceRef, Inbound, Uplink};
use crate::ports::StoreError;
use crate::{Engine, Error, Result};

/// How long a caller waits for the commit before it is told to come back: as long as a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells one caller that its heartbeat is committed.
struct Told(Mutex<Option<oneshot::Sender<()>>>);

impl AckSink for Told {
    fn committed(&self, _token: u64) {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waiting) = waiting {
            let _ = waiting.send(()); // it may have lost patience
        }
    }

    fn is_connection(&self) -> bool {
        false
    }
}

impl Engine {
    /// Takes a heartbeat of this device; answers when it came, once it is committed. 503 when that takes too long:
    /// then it may be committed later.
    pub async fn take_heartbeat(&self, device: DeviceRef, payload: &[u8]) -> Result<Timestamp> {
        let report = parse_report(Up::Heartbeat, payload)
            .map_err(|invalid| Error::invalid("invalid_heartbeat", invalid.to_string()))?;
        let at = self.clock.now();
        let (told, committed) = oneshot::channel();
        let message = Inbound {
            device,
            at,
            uplink: Uplink::report(report, payload),
            ack: Some(Ack::new(Arc::new(Told(Mutex::new(Some(told)))), 0)),
        };
        let done = async {
            self.uplinks.submit(message).await?;
            committed.await.map_err(|_| Closed)
        };
        match tokio::time::timeout(PATIENCE, done).await {
            Ok(Ok(())) => Ok(at),
            Ok(Err(closed)) => Err(Error::Store(StoreError::Unavailable(closed.into()))),
            Err(elapsed) => Err(Error::Store(StoreError::Unavailable(elapsed.into()))),
        }
    }
}
