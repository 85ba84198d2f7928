//! What is registered of a device, changed; and devices that are deleted.

use device_ota_domain::device::DeviceChange;
use device_ota_domain::{DeviceId, Role};
use serde::Serialize;
use utoipa::ToSchema;

use crate::dto::{self, device::DeviceDto};
use crate::errors::ApiError;
use crate::request::body::Body;
use crate::request::json::{json, no_body};
use crate::request::revision::{IfMatch, expected_revision, of_revision};
use crate::request::{Call, Segment};
use crate::shared::Answer;

/// Change what is registered of a device
///
/// What the body leaves out stays, `null` clears. Campaigns that have started keep the devices they have, but for continuous
/// ones, which follow.
#[utoipa::path(put, path = "/api/v1/ota/devices/{device_id}", tag = "devices", request_body = DeviceChange,
    params(IfMatch),
    responses(
        (status = 200, description = "The device as it is now", body = DeviceDto,
            headers(("ETag" = String, description = "Its `revision`, for `If-Match`"))),
    ),
)]
pub(super) async fn change(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id: DeviceId = id.id("device")?;
    let revision = expected_revision(&call.headers)?;
    let change: DeviceChange = json(&call.headers, body).await?;
    if change.device_id.as_ref().is_some_and(|given| *given != id) {
        return Err(ApiError::invalid(
            "invalid_device",
            "the body: device_id must be the path's or left out",
        ));
    }
    let engine = &call.shared.engine;
    let device = engine.change_device(&id, change, revision, by).await?;
    let answer = dto::ok(&DeviceDto::from(&device));
    Ok(of_revision(device.revision, answer))
}

/// What became of a device that was deleted.
#[derive(Serialize, ToSchema)]
#[schema(as = DeletedDevice)]
struct DeletedDto<'a> {
    device_id: &'a DeviceId,
    #[schema(schema_with = deleted)]
    status: &'static str,
    cancelled_updates: usize,
}

fn deleted() -> utoipa::openapi::Object {
    dto::names(["deleted"])
}

/// Delete a device
///
/// Its open updates are cancelled, its credentials and its session end; its records stay. Registered again, it is a new device.
#[utoipa::path(delete, path = "/api/v1/ota/devices/{device_id}", tag = "devices",
    params(IfMatch),
    responses((status = 200, description = "It is gone", body = DeletedDto)),
)]
pub(super) async fn delete(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Admin)?;
    call.no_query()?;
    let id: DeviceId = id.id("device")?;
    let revision = expected_revision(&call.headers)?;
    no_body(&call.headers, body).await?;
    let engine = &call.shared.engine;
    Ok(dto::ok(&DeletedDto {
        device_id: &id,
        status: "deleted",
        cancelled_updates: engine.delete_device(&id, revision, by).await?,
    }))
}
