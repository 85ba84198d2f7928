//! Rollbacks of devices one by one (PRD, E4-US2), of several, or of a group.

use device_ota_domain::device::MAX_TEXT_BYTES;
use device_ota_domain::page::Page;
use device_ota_domain::{DeviceId, Role};
use device_ota_engine::ports::telemetry::DeviceFilter;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::update::{BulkAnswer, MAX_BULK_DEVICES, device_ids, with_each};
use crate::dto;
use crate::dto::rollback::RollbackDto;
use crate::errors::ApiError;
use crate::request::body::Body;
use crate::request::json::{from_value, json};
use crate::request::{Call, Segment};
use crate::rollbacks::checked_reason;
use crate::shared::Answer;

/// The body of a rollback of one device (PRD, E4-US2).
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DeviceRollbackRequest)]
pub(super) struct RollbackRequest {
    /// A version that the device has run before.
    #[schema(examples("2.0.0"))]
    to_version: String,
    #[serde(default)]
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

/// Take one device back to a version that it has run before
///
/// One that it completed an update to or came from, or that it was registered with. The answer says `in_progress`; the rollback
/// log says `pending` until the device is offered the image.
#[utoipa::path(post, path = "/api/v1/ota/devices/{device_id}/rollback", tag = "devices", request_body = RollbackRequest, responses(
    (status = 200, description = "The entry of the rollback log", body = RollbackDto),
    (status = 409, description = "It runs that version, never ran it, was asked for it before, would refuse it as below its security \
        floor, or the image is not in the registry"),
))]
pub(super) async fn roll_back(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id: DeviceId = id.id("device")?;
    let request: RollbackRequest = json(&call.headers, body).await?;
    let reason = checked_reason(request.reason)?;
    let rollback = call
        .shared
        .engine
        .roll_back_device(&id, &request.to_version, &reason, by)
        .await?;
    Ok(dto::ok(&RollbackDto::begun(&rollback)))
}

/// Which devices go back, and to what.
#[derive(ToSchema)]
#[schema(as = BulkRollbackRequest)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what `bulk_roll_back` reads")]
enum BulkRollback {
    Devices(RollbackOfDevices),
    Group(RollbackOfGroup),
}

/// These devices.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `bulk_roll_back` reads")]
struct RollbackOfDevices {
    #[schema(min_items = 1, max_items = 100)]
    device_ids: Vec<DeviceId>,
    /// A version that each has run before.
    to_version: String,
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

/// Every device of a group, of which there may be 100.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `bulk_roll_back` reads")]
struct RollbackOfGroup {
    #[schema(min_length = 1, max_length = 128)]
    group: String,
    /// A version that each has run before.
    to_version: String,
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

/// Take up to 100 devices, or a group of so many, back to a version that they have run before
///
/// Each by itself: what is wrong with one harms no other.
#[utoipa::path(post, path = "/api/v1/ota/devices/bulk/rollback", tag = "devices", request_body = BulkRollback, responses(
    (status = 201, description = "What became of each; at least one rollback is new", body = BulkAnswer),
    (status = 200, description = "What became of each; none could be made", body = BulkAnswer),
    (status = 404, description = "No device is in that group"),
))]
pub(super) async fn bulk_roll_back(call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let mut fields: Map<String, Value> = json(&call.headers, body).await?;
    let (named, group) = (fields.remove("device_ids"), fields.remove("group"));
    let request: RollbackRequest = from_value(Value::Object(fields), "the body")?;
    let devices = match (named, group) {
        (Some(_), Some(_)) => {
            let detail = "give device_ids or a group, not both";
            return Err(ApiError::invalid("invalid_json", detail));
        }
        (None, Some(group)) => of_group(&call, from_value(group, "the body: group")?).await?,
        (given, None) => device_ids(given)?,
    };
    let reason = checked_reason(request.reason)?;
    let (engine, to_version, reason) = (&call.shared.engine, &request.to_version, &reason);
    with_each(devices, |id| async move {
        let rollback = engine.roll_back_device(&id, to_version, reason, by).await?;
        Ok((rollback.update_id, "scheduled"))
    })
    .await
}

/// The devices of a group, at least one and at most [`MAX_BULK_DEVICES`].
async fn of_group(call: &Call, group: String) -> Result<Vec<String>, ApiError> {
    if group.is_empty() || group.len() > MAX_TEXT_BYTES || group.chars().any(char::is_control) {
        let detail =
            format!("group must be 1 to {MAX_TEXT_BYTES} bytes of text without control characters");
        return Err(ApiError::invalid("invalid_group", detail));
    }
    let filter = DeviceFilter {
        group: Some(group.clone()),
        ..DeviceFilter::default()
    };
    let page = Page {
        limit: 1 + u32::try_from(MAX_BULK_DEVICES).unwrap_or(u32::MAX),
        offset: 0,
    };
    let found = call.shared.engine.devices(&filter, page).await?;
    match found.len() {
        0 => Err(ApiError::not_found("group", &group)),
        1..=MAX_BULK_DEVICES => {
            let ids = found.into_iter();
            Ok(ids.map(|d| d.registration.device_id.to_string()).collect())
        }
        _ => {
            let detail = format!(
                "group {group} has more than {MAX_BULK_DEVICES} devices; roll their campaign back, or name up to \
                 {MAX_BULK_DEVICES} of them as device_ids at a time"
            );
            Err(ApiError::invalid("too_many_devices", detail))
        }
    }
}
