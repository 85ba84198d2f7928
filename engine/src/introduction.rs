//! Devices that the Device Service knows and this registry does not (PRD, E3-US1 AC1, FR-9): asked for when somebody names them,
//! and registered here. Who is registered here is never asked for, so that they are served while it is away.

use std::time::Duration;

use device_ota_domain::DeviceId;
use device_ota_domain::device::Registration;
use device_ota_domain::page::{MAX_LIMIT, Page};
use device_ota_domain::targeting::Exclusion;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::ports::device_service::{DeviceService, DeviceServiceUnavailable};
use crate::ports::store::Aim;
use crate::{Caller, Engine, Error, MAX_REGISTRATIONS, Result};

/// Questions for the devices of one campaign at a time.
const MAX_ASKING: usize = 16;
/// Longest that the questions for one campaign take in all; whoever writes it waits meanwhile.
const DEADLINE: Duration = Duration::from_secs(10);

/// What came of a question.
enum Met {
    /// It is a device that can be registered.
    Device(Registration),
    /// There is no such device.
    Nobody,
    /// What is known of it cannot be registered; why.
    Unfit(String),
}

impl Engine {
    /// Registers a device that is not registered here, when the Device Service knows it; false when there is no such service.
    /// It has no secret that anybody knows: that is made by [`Engine::new_credentials`].
    pub(crate) async fn introduce(&self, id: &DeviceId, by: &Caller) -> Result<bool> {
        let Some(service) = &self.device_service else {
            return Ok(false);
        };
        match self.meet(service.as_ref(), id).await? {
            Met::Device(registration) => {
                self.register_devices(vec![registration], by).await?;
                Ok(true)
            }
            Met::Nobody => Err(Error::NoSuchDevice(id.clone())),
            Met::Unfit(why) => Err(Error::conflict(
                "device_unfit",
                format!(
                    "the Device Service knows device {id}, but not as it could be registered here: {why}; mend it there, or \
                     register it by POST /api/v1/ota/devices"
                ),
            )),
        }
    }

    /// Does the same with the named devices of a campaign that are not registered here, the first [`MAX_REGISTRATIONS`] of them.
    /// The others, and who is nobody there either, stay left out and are told.
    pub(crate) async fn introduce_named(&self, aim: Aim<'_>, by: &Caller) -> Result<()> {
        let Some(service) = &self.device_service else {
            return Ok(());
        };
        if aim.named.is_empty() {
            return Ok(());
        }
        let strangers = self.strangers(aim).await?;
        let Some(first) = strangers.first().cloned() else {
            return Ok(());
        };
        let asking = stream::iter(strangers)
            .map(|id| async move { self.meet(service.as_ref(), &id).await })
            .buffer_unordered(MAX_ASKING)
            .try_filter_map(async |met| match met {
                Met::Device(registration) => Ok(Some(registration)),
                Met::Nobody | Met::Unfit(_) => Ok(None),
            })
            .try_collect::<Vec<_>>();
        let answered = tokio::time::timeout(DEADLINE, asking).await;
        let met = answered.unwrap_or_else(|_| {
            let seconds = DEADLINE.as_secs();
            let why = format!("not everybody was answered for within {seconds} s");
            let cause = DeviceServiceUnavailable(why);
            Err(Error::DeviceService { id: first, cause })
        })?;
        if !met.is_empty() {
            self.register_devices(met, by).await?;
        }
        Ok(())
    }

    /// The named devices that are not registered here, in id order.
    async fn strangers(&self, aim: Aim<'_>) -> Result<Vec<DeviceId>> {
        let mut strangers = Vec::new();
        let mut page = Page {
            limit: MAX_LIMIT,
            offset: 0,
        };
        while strangers.len() < MAX_REGISTRATIONS {
            let unknown = Exclusion::UnknownDevice;
            let found = self.store.excluded(aim, unknown, page).await?;
            let is_last = found.len() < page.limit as usize;
            strangers.extend(found);
            if is_last {
                break;
            }
            page.offset += page.limit;
        }
        strangers.truncate(MAX_REGISTRATIONS);
        Ok(strangers)
    }

    /// Asks for one device.
    async fn meet(&self, service: &dyn DeviceService, id: &DeviceId) -> Result<Met> {
        let asked = service.device(id).await;
        let outcome = |label| self.metrics.add("device_service", label, 1);
        let found = asked.map_err(|cause| {
            outcome("unavailable");
            Error::DeviceService {
                id: id.clone(),
                cause,
            }
        })?;
        let Some(registration) = found else {
            outcome("unknown");
            return Ok(Met::Nobody);
        };
        if let Err(error) = self.check_registration(&registration) {
            outcome("unfit");
            tracing::warn!(device.id = %id, %error, "what the Device Service knows of a device cannot be registered");
            return Ok(Met::Unfit(error.to_string()));
        }
        outcome("found");
        Ok(Met::Device(registration))
    }
}
