//! The filters that a list of devices and an overview of the fleet share.

use device_ota_domain::ring::Ring;
use device_ota_engine::ports::telemetry::DeviceFilter;
use utoipa::IntoParams;

use crate::errors::ApiError;
use crate::request::Query;

/// Which devices.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `filter_of` reads")]
pub(crate) struct FleetQuery {
    /// Of this model.
    device_model: Option<String>,
    /// In this group.
    group: Option<String>,
    /// Pinned to this ring.
    ring: Option<Ring>,
}

/// Reads a [`FleetQuery`].
pub(crate) fn filter_of(query: &mut Query) -> Result<DeviceFilter, ApiError> {
    Ok(DeviceFilter {
        device_model: query.text("device_model")?,
        group: query.text("group")?,
        ring: query.one_of("ring", &Ring::ALL.map(|ring| (ring.name(), ring)))?,
        online: None,
    })
}
