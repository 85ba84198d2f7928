//! Devices that the Device Service knows and this registry does not (PRD, E3-US1 AC1, FR-9): asked for when somebody names them,
//! and registered here. Who is registered here is never asked for, so that they are served while it is away.

use std::collections::BTreeMap;
use std::time::Duration;

use device_ota_domain::DeviceId;
use device_ota_domain::campaign::Named;
use device_ota_domain::page::{MAX_LIMIT, Page};
use device_ota_domain::targeting::Exclusion;
use futures_util::{StreamExt as _, stream};

use crate::ports::device_service::{DeviceService, Met};
use crate::ports::store::Aim;
use crate::{Caller, Engine, Error, MAX_REGISTRATIONS, Result};

/// Questions for the devices of one campaign at a time.
const MAX_ASKING: usize = 16;
/// Longest that the questions for one campaign take in all; whoever writes it waits meanwhile.
const DEADLINE: Duration = Duration::from_secs(10);

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

    /// Does the same with the devices that a campaign or its stages name and that are not registered here, the first
    /// [`MAX_REGISTRATIONS`] of them. The others, and who is nobody there either, stay left out and are told. Who was told of is
    /// registered also when others were not, so that whoever tries again has fewer to wait for.
    pub(crate) async fn introduce_named(&self, aim: Aim<'_>, by: &Caller) -> Result<()> {
        let Some(service) = &self.device_service else {
            return Ok(());
        };
        if aim.named.is_empty() {
            return Ok(());
        }
        let strangers = self.strangers(aim).await?;
        let mut left = strangers.len();
        let mut met = Vec::new();
        let mut failed = None;
        let mut asking = stream::iter(strangers)
            .map(|id| async move { self.meet(service.as_ref(), &id).await })
            .buffer_unordered(MAX_ASKING);
        let answers = async {
            while let Some(answer) = asking.next().await {
                left -= 1;
                match answer {
                    Ok(Met::Device(registration)) => met.push(registration),
                    Ok(Met::Nobody | Met::Unfit(_)) => {}
                    Err(error) => failed = failed.take().or(Some(error)),
                }
            }
        };
        let in_time = tokio::time::timeout(DEADLINE, answers).await;
        if !met.is_empty() {
            self.register_devices(met, by).await?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        in_time.map_err(|_| Error::DevicesUntold {
            seconds: DEADLINE.as_secs(),
            left,
        })
    }

    /// The named devices that are not registered here, in id order.
    async fn strangers(&self, aim: Aim<'_>) -> Result<Vec<DeviceId>> {
        let stages = aim.named.stages.values().flatten();
        let named = Named {
            targets: aim.named.targets.iter().chain(stages).cloned().collect(),
            stages: BTreeMap::new(),
        };
        let aim = Aim {
            named: &named,
            ..aim
        };
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

    /// Asks for one device; one that can be registered is [`Met::Device`].
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
        let met = match found {
            Met::Device(registration) => match self.check_registration(&registration) {
                Ok(()) => Met::Device(registration),
                Err(error) => Met::Unfit(error.to_string()),
            },
            other => other,
        };
        outcome(match &met {
            Met::Device(_) => "found",
            Met::Nobody => "unknown",
            Met::Unfit(_) => "unfit",
        });
        if let Met::Unfit(why) = &met {
            tracing::warn!(device.id = %id, why, "what the Device Service knows of a device cannot be registered");
        }
        Ok(met)
    }
}
