//! Whether a device is connected, as the rest of the service sees it.

use std::sync::Arc;

use device_ota_engine::inbound::{DeviceRef, Uplink};

use super::Hub;

/// The device's being connected, as others see it: ended once, whatever happens to the connection.
pub(super) struct Presence {
    hub: Arc<Hub>,
    /// `None` once it has ended.
    device: Option<DeviceRef>,
    session: i64,
}

impl Presence {
    pub(super) fn new(hub: Arc<Hub>, device: DeviceRef, session: i64) -> Self {
        hub.engine.metrics().session_began();
        Self {
            hub,
            device: Some(device),
            session,
        }
    }

    /// The device, until its presence has ended.
    pub(super) fn device(&self) -> Option<&DeviceRef> {
        self.device.as_ref()
    }

    /// Takes the session out and tells the engine.
    pub(super) async fn end(&mut self) {
        if let Some(device) = self.device.take() {
            leave(&self.hub, device, self.session).await;
        }
    }
}

async fn leave(hub: &Hub, device: DeviceRef, session: i64) {
    hub.sessions.leave(&device.id, session);
    hub.engine.metrics().session_ended();
    // The service is stopping, and ends all of its sessions.
    let _ = hub.tell(device, Uplink::Offline { session }).await;
}

impl Drop for Presence {
    fn drop(&mut self) {
        let Some(device) = self.device.take() else {
            return;
        };
        let (hub, session) = (Arc::clone(&self.hub), self.session);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { leave(&hub, device, session).await });
        }
    }
}
