//! The service that registers the devices of the house (PRD, *Device Service*; E3-US1 AC1, FR-9).

use async_trait::async_trait;
use device_ota_domain::DeviceId;
use device_ota_domain::device::Registration;

/// It did not answer, or not in a form that can be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the device service is unavailable: {0}")]
pub struct DeviceServiceUnavailable(pub String);

/// Asks which devices there are.
#[async_trait]
pub trait DeviceService: Send + Sync + 'static {
    /// What it knows of a device, not checked; `None` when there is no such device. Answers in bounded time.
    async fn device(&self, id: &DeviceId)
    -> Result<Option<Registration>, DeviceServiceUnavailable>;
}
