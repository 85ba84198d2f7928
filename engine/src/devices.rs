//! Devices: registration, credentials, and the check of a connection.

use device_ota_domain::DeviceId;

use crate::inbound::DeviceRef;
use crate::ports::StoreError;
use crate::{Engine, secrets};

impl Engine {
    /// The device that `id` and `secret` prove, or `None`: unknown id and wrong secret look the same.
    pub async fn authenticate(&self, id: &str, secret: &[u8]) -> std::result::Result<Option<DeviceRef>, StoreError> {
        let Ok(id) = id.parse::<DeviceId>() else { return Ok(None) };
        let known = self.store.credentials(&id).await?;
        Ok(known.filter(|c| secrets::matches(secret, &c.verifier)).map(|c| DeviceRef { key: c.key, id }))
    }

    /// The device of that id, for an external broker, which has checked the secret itself.
    pub async fn resolve(&self, id: &DeviceId) -> std::result::Result<Option<DeviceRef>, StoreError> {
        let known = self.store.credentials(id).await?;
        Ok(known.map(|c| DeviceRef { key: c.key, id: id.clone() }))
    }
}
