//! The way down to devices: the gateway's sessions, or the link to an external broker.

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_domain::DeviceId;
use device_ota_protocol::topics::Down;

/// What became of a message. Never a promise that the device has it: what must arrive is said again until the
/// device answers (DESIGN.md, decision 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Handed to the connection or the broker.
    Queued,
    /// The device has no session here.
    NotConnected,
    /// Its queue is full; it reads too slowly.
    Busy,
}

/// Sends to devices.
#[async_trait]
pub trait Downlink: Send + Sync + 'static {
    /// Queues a message for one device, QoS 1 but for chunks (QoS 0). Waits only while the link itself pushes back,
    /// never for one slow device.
    async fn send(&self, device: &DeviceId, to: &Down, payload: Bytes) -> Delivery;

    /// Ends the device's session, if there is one here: its credentials have changed.
    async fn disconnect(&self, device: &DeviceId);

    /// Ends the device's session here up to that number: it has connected elsewhere. Where sessions are a broker's, it ends them itself.
    async fn take_over(&self, _device: &DeviceId, _session: i64) {}

    /// The sessions that are here, each by its device and its number; none where they are a broker's.
    fn sessions(&self) -> Vec<(DeviceId, i64)> {
        Vec::new()
    }
}
