//! The service that registers the devices of the house (PRD, *Device Service*; E3-US1 AC1, FR-9).

use async_trait::async_trait;
use device_ota_domain::DeviceId;
use device_ota_domain::device::Registration;

/// It did not answer, or not in a form that can be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the device service is unavailable: {0}")]
pub struct DeviceServiceUnavailable(pub String);

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Met {
    /// There is such a device; what is known of it is not checked.
    Device(Registration),
    /// There is no such device.
    Nobody,
    /// There is one, and what is known of it cannot be registered; why, for people.
    Unfit(String),
}

/// Asks which devices there are.
#[async_trait]
pub trait DeviceService: Send + Sync + 'static {
    /// What it knows of a device. Answers in bounded time.
    async fn device(&self, id: &DeviceId) -> Result<Met, DeviceServiceUnavailable>;
}
