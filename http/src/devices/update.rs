//! Updates of devices one by one (PRD, E3-US1, E3-US5).

use device_ota_domain::{DeviceId, Role, UpdateId};
use device_ota_engine::UpdateRequest;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, Ref, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::dto;
use crate::dto::update::UpdateDto;
use crate::errors::ApiError;
use crate::request::body::Body;
use crate::request::json::{from_value, json};
use crate::request::{Call, Segment};
use crate::shared::Answer;
use crate::updates;

/// Most devices of a bulk update (PRD, E3-US5), or rollback.
pub(super) const MAX_BULK_DEVICES: usize = 100;
/// Devices of one that are worked on at a time.
const BULK_CONCURRENCY: usize = 8;

/// Update one device
///
/// One that is not registered here, and that the Device Service knows, is registered by it.
#[utoipa::path(post, path = "/api/v1/ota/devices/{device_id}/update", tag = "devices", request_body = UpdateRequest, responses(
    (status = 201, description = "The new update", body = UpdateDto),
    (status = 404, description = "There is no such device or image"),
    (status = 409, description = "It runs that version, was asked for it before, the image is not for this device, or what the Device \
        Service knows of it cannot be registered"),
))]
pub(super) async fn update(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id: DeviceId = id.id("device")?;
    let request: UpdateRequest = json(&call.headers, body).await?;
    let view = call.shared.engine.update_device(&id, request, by).await?;
    updates::answer_one(&call, &view, true).await
}

/// What became of one device of a bulk update or rollback.
#[derive(Serialize, ToSchema)]
#[schema(as = BulkResult)]
struct BulkDto {
    device_id: String,
    success: bool,
    update_id: Option<String>,
    status: &'static str,
    error: Option<String>,
    code: Option<&'static str>,
}

/// The answer to a bulk update or rollback.
#[derive(Serialize, ToSchema)]
#[schema(as = BulkResults)]
pub(super) struct BulkAnswer {
    results: Vec<BulkDto>,
    count: usize,
    succeeded: usize,
    failed: usize,
}

/// Does the same with each device, by itself: `ask` makes an update and answers its id and status.
pub(super) async fn with_each<F>(devices: Vec<String>, ask: impl Fn(DeviceId) -> F) -> Answer
where
    F: Future<Output = Result<(UpdateId, &'static str), ApiError>> + Send,
{
    let each = devices.into_iter().map(|device_id| {
        let made = device_id.parse::<DeviceId>().map(&ask);
        async move {
            let made = match made {
                Ok(made) => made.await,
                Err(_) => Err(ApiError::not_found("device", &device_id)),
            };
            result(device_id, made)
        }
    });
    let results: Vec<BulkDto> = stream::iter(each)
        .buffered(BULK_CONCURRENCY)
        .collect()
        .await;
    let succeeded = results.iter().filter(|result| result.success).count();
    let count = results.len();
    let answer = BulkAnswer {
        results,
        count,
        succeeded,
        failed: count - succeeded,
    };
    Ok(if succeeded > 0 {
        dto::created(&answer)
    } else {
        dto::ok(&answer)
    })
}

fn result(device_id: String, made: Result<(UpdateId, &'static str), ApiError>) -> BulkDto {
    match made {
        Ok((id, status)) => BulkDto {
            device_id,
            success: true,
            update_id: Some(id.to_string()),
            status,
            error: None,
            code: None,
        },
        Err(error) => BulkDto {
            device_id,
            success: false,
            update_id: None,
            status: "error",
            error: Some(error.detail().to_owned()),
            code: Some(error.code()),
        },
    }
}

/// The body of a bulk update: that of a single one, and which devices.
struct BulkRequest;

impl PartialSchema for BulkRequest {
    fn schema() -> RefOr<Schema> {
        let mut schema = UpdateRequest::schema();
        if let RefOr::T(Schema::Object(object)) = &mut schema {
            let ids = ArrayBuilder::new()
                .items(Ref::from_schema_name(DeviceId::name()))
                .min_items(Some(1))
                .max_items(Some(MAX_BULK_DEVICES));
            object
                .properties
                .insert("device_ids".to_owned(), ids.into());
            object.required.push("device_ids".to_owned());
        }
        schema
    }
}

impl ToSchema for BulkRequest {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((DeviceId::name().into_owned(), DeviceId::schema()));
        UpdateRequest::schemas(schemas);
    }
}

/// Update up to 100 devices
///
/// Each by itself: what is wrong with one harms no other.
#[utoipa::path(post, path = "/api/v1/ota/devices/bulk/update", tag = "devices", request_body = BulkRequest, responses(
    (status = 201, description = "What became of each; at least one update is new", body = BulkAnswer),
    (status = 200, description = "What became of each; none could be made", body = BulkAnswer),
    (status = 404, description = "There is no such image"),
))]
pub(super) async fn bulk_update(call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let mut fields: Map<String, Value> = json(&call.headers, body).await?;
    let devices = device_ids(fields.remove("device_ids"))?;
    let request: UpdateRequest = from_value(Value::Object(fields), "the body")?;
    let engine = &call.shared.engine;
    engine.firmware_in_use(&request.firmware_id).await?;
    with_each(devices, |id| {
        let request = request.clone();
        async move {
            let view = engine.update_device(&id, request, by).await?;
            Ok((view.update.id.clone(), view.update.status()))
        }
    })
    .await
}

/// At least one id, and at most [`MAX_BULK_DEVICES`].
pub(super) fn device_ids(given: Option<Value>) -> Result<Vec<String>, ApiError> {
    let missing = || ApiError::invalid("invalid_json", "the body: missing field `device_ids`");
    let devices: Vec<String> = from_value(given.ok_or_else(missing)?, "the body: device_ids")?;
    let code = match devices.len() {
        1..=MAX_BULK_DEVICES => return Ok(devices),
        0 => "no_devices",
        _ => "too_many_devices",
    };
    let count = devices.len();
    let detail = format!("device_ids must hold 1 to {MAX_BULK_DEVICES} ids, not {count}");
    Err(ApiError::invalid(code, detail))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_of_devices_has_one_to_a_hundred() {
        let read =
            |given| device_ids(given).map_err(|error| (error.code(), error.detail().to_owned()));
        let (code, detail) = read(None).unwrap_err();
        assert_eq!(code, "invalid_json");
        assert_eq!(detail, "the body: missing field `device_ids`");
        for (count, expected) in [
            (0, Err("no_devices")),
            (1, Ok(1)),
            (100, Ok(100)),
            (101, Err("too_many_devices")),
        ] {
            let ids = json!(vec!["d"; count]);
            let read = read(Some(ids)).map(|ids| ids.len());
            assert_eq!(read.map_err(|(code, _)| code), expected);
        }
    }
}
