//! Devices: registration and credentials (DESIGN.md, *HTTP*), and updates of single devices (PRD, E3, E4-US2).

mod change;

use std::sync::Arc;

use device_ota_domain::device::Registration;
use device_ota_domain::ring::Ring;
use device_ota_domain::{DeviceId, Role};
use device_ota_engine::ports::store::{DeviceFilter, UpdateFilter};
use device_ota_engine::{Caller, MAX_REGISTRATIONS, RegistrationOutcome, UpdateRequest};
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, Ref, Schema};
use utoipa::{IntoParams, OpenApi, PartialSchema, ToSchema};
use warp::Filter as _;

use crate::dto::device::{CredentialsDto, DeviceDto, MqttDto, RegisteredDto, RegistrationsDto};
use crate::dto::rollback::RollbackDto;
use crate::dto::update::UpdateDto;
use crate::dto::{self, DeviceList, List, PageQuery, UpdateList};
use crate::errors::ApiError;
use crate::request::body::{Body, body};
use crate::request::json::{from_value, json, json_up_to, no_body};
use crate::request::{Call, Query, Segment, call};
use crate::rollbacks::checked_reason;
use crate::shared::{Answer, Routes, Shared, reply};
use crate::updates;

/// Most bytes of a registration: a thousand devices with four KiB each.
const MAX_REGISTRATION_BYTES: usize = 4 * 1024 * 1024;
/// Most devices of a bulk update (PRD, E3-US5).
const MAX_BULK_DEVICES: usize = 100;
/// Devices of a bulk update that are worked on at a time.
const BULK_CONCURRENCY: usize = 8;

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(
    list,
    register,
    bulk_update,
    one,
    change::change,
    change::delete,
    renew,
    update,
    roll_back,
    history
))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let get = || warp::get().and(warp::path("devices"));
    let post = || warp::post().and(warp::path("devices"));
    let list = get().and(warp::path::end()).and(call.clone()).then(list);
    let one = get().and(warp::path!(Segment)).and(call.clone()).then(one);
    let history = get()
        .and(warp::path!(Segment / "updates"))
        .and(call.clone())
        .then(history);
    let register = post()
        .and(warp::path::end())
        .and(call.clone())
        .and(body())
        .then(register);
    let bulk = post()
        .and(warp::path!("bulk" / "update"))
        .and(call.clone())
        .and(body())
        .then(bulk_update);
    let renew = post()
        .and(warp::path!(Segment / "credentials"))
        .and(call.clone())
        .and(body())
        .then(renew);
    let update = post()
        .and(warp::path!(Segment / "update"))
        .and(call.clone())
        .and(body())
        .then(update);
    let roll_back = post()
        .and(warp::path!(Segment / "rollback"))
        .and(call.clone())
        .and(body())
        .then(roll_back);
    let change = warp::put()
        .and(warp::path!("devices" / Segment))
        .and(call.clone())
        .and(body())
        .then(change::change);
    let delete = warp::delete()
        .and(warp::path!("devices" / Segment))
        .and(call.clone())
        .and(body())
        .then(change::delete);
    let reads = one.or(history).unify().or(list).unify().boxed();
    let writes = bulk
        .or(register)
        .unify()
        .or(renew)
        .unify()
        .or(update)
        .unify()
        .or(roll_back)
        .unify()
        .or(change)
        .unify()
        .or(delete)
        .unify()
        .boxed();
    reads.or(writes).unify().map(reply).boxed()
}

/// Devices
#[utoipa::path(get, path = "/api/v1/ota/devices", tag = "devices", params(
    PageQuery,
    FleetQuery,
    ("online" = Option<bool>, Query, description = "Connected, or not"),
), responses(
    (status = 200, description = "A page of them", body = DeviceList),
))]
async fn list(call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let mut query = call.query()?;
    let page = query.page()?;
    let mut filter = filter_of(&mut query)?;
    filter.online = query.flag("online")?;
    let filters = query.done()?;
    let devices = call.shared.engine.devices(&filter, page).await?;
    let items = devices.iter().map(DeviceDto::from).collect();
    Ok(dto::ok(&List {
        plural: "devices",
        items,
        page,
        filters,
    }))
}

/// The filters that a list and an overview share.
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

/// One device: as it was registered, and as it was last heard
#[utoipa::path(get, path = "/api/v1/ota/devices/{device_id}", tag = "devices", responses(
    (status = 200, description = "The device", body = DeviceDto),
))]
async fn one(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    call.no_query()?;
    let device = call.shared.engine.device(&id.id("device")?).await?;
    Ok(dto::ok(&DeviceDto::from(&device)))
}

/// Every update and rollback of one device, newest first
#[utoipa::path(get, path = "/api/v1/ota/devices/{device_id}/updates", tag = "devices", params(PageQuery), responses(
    (status = 200, description = "A page of them", body = UpdateList),
))]
async fn history(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let id: DeviceId = id.id("device")?;
    let mut query = call.query()?;
    let page = query.page()?;
    let filters = query.done()?;
    call.shared.engine.device(&id).await?;
    let filter = UpdateFilter {
        device: Some(id),
        ..UpdateFilter::default()
    };
    updates::answer_list(&call, "updates", &filter, page, filters).await
}

/// One device, or up to 1,000.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what `register` reads entry by entry")]
enum RegistrationRequest {
    Many(RegistrationList),
    One(Registration),
}

/// Up to 1,000 devices.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `register` reads entry by entry")]
struct RegistrationList {
    #[schema(min_items = 1, max_items = 1000)]
    devices: Vec<Registration>,
}

/// Register devices
///
/// One device object, or up to 1,000 in a list. Each is answered by itself: what is wrong with one harms no other. A
/// new device's secret is shown this once.
#[utoipa::path(post, path = "/api/v1/ota/devices", tag = "devices", request_body = RegistrationRequest, responses(
    (status = 201, description = "What became of each, in their order", body = RegistrationsDto),
))]
async fn register(call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let value: Value = json_up_to(MAX_REGISTRATION_BYTES, &call.headers, body).await?;
    let devices = match value {
        Value::Object(mut fields) if fields.contains_key("devices") => {
            let devices = fields.remove("devices");
            only_devices(&fields)?;
            read_each(devices)?
        }
        one => {
            vec![Ok(read_one(one).map_err(|error| {
                ApiError::invalid("invalid_device", error)
            })?)]
        }
    };
    let devices = register_all(&call, by, devices).await?;
    Ok(dto::created(&RegistrationsDto {
        count: devices.len(),
        devices,
    }))
}

/// A registration, or the answer to one that is none.
type Read = Result<Registration, RegisteredDto>;

fn only_devices(others: &Map<String, Value>) -> Result<(), ApiError> {
    match others.keys().next() {
        Some(name) => Err(ApiError::invalid(
            "invalid_json",
            format!("the body: unknown field `{name}` beside `devices`"),
        )),
        None => Ok(()),
    }
}

fn read_each(devices: Option<Value>) -> Result<Vec<Read>, ApiError> {
    let Some(Value::Array(devices)) = devices else {
        return Err(ApiError::invalid(
            "invalid_json",
            "the body: devices must be a list",
        ));
    };
    if devices.is_empty() || devices.len() > MAX_REGISTRATIONS {
        let detail = format!(
            "devices must hold 1 to {MAX_REGISTRATIONS} entries, not {}",
            devices.len()
        );
        return Err(ApiError::invalid("too_many_devices", detail));
    }
    let read = |device: Value| {
        let id = device
            .get("device_id")
            .and_then(Value::as_str)
            .map(|id| id.chars().take(64).collect());
        read_one(device).map_err(|error| RegisteredDto::refused(id, error))
    };
    Ok(devices.into_iter().map(read).collect())
}

fn read_one(device: Value) -> Result<Registration, String> {
    let registration: Registration =
        from_value(device, "device").map_err(|error| error.detail().to_owned())?;
    registration.check().map_err(|error| error.to_string())?;
    Ok(registration)
}

/// Registers those that can be and answers for all, in the order in which they came.
async fn register_all(
    call: &Call,
    by: &Caller,
    devices: Vec<Read>,
) -> Result<Vec<RegisteredDto>, ApiError> {
    let good = devices
        .iter()
        .filter_map(|device| device.as_ref().ok().cloned())
        .collect::<Vec<_>>();
    let registered = if good.is_empty() {
        Vec::new()
    } else {
        call.shared.engine.register_devices(good, by).await?
    };
    let mut answers = registered.into_iter();
    let answer = |device: Read| match device {
        Err(refused) => Some(refused),
        Ok(_) => answers.next().map(|registered| match registered.outcome {
            RegistrationOutcome::Created { secret } => {
                RegisteredDto::created(&registered.device_id, secret)
            }
            RegistrationOutcome::Exists => RegisteredDto::exists(&registered.device_id),
        }),
    };
    Ok(devices.into_iter().filter_map(answer).collect())
}

/// New MQTT credentials of one device
///
/// The old ones end, and with them its session.
#[utoipa::path(post, path = "/api/v1/ota/devices/{device_id}/credentials", tag = "devices", responses(
    (status = 201, description = "The new ones, shown this once", body = CredentialsDto),
))]
async fn renew(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id: DeviceId = id.id("device")?;
    no_body(&call.headers, body).await?;
    let secret = call.shared.engine.new_credentials(&id, by).await?;
    Ok(dto::created(&CredentialsDto {
        device_id: &id,
        mqtt: MqttDto::new(&id, secret),
    }))
}

/// Update one device
#[utoipa::path(post, path = "/api/v1/ota/devices/{device_id}/update", tag = "devices", request_body = UpdateRequest, responses(
    (status = 201, description = "The new update", body = UpdateDto),
    (status = 404, description = "There is no such device or image"),
    (status = 409, description = "It runs that version, or the image is not for this device"),
))]
async fn update(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id: DeviceId = id.id("device")?;
    let request: UpdateRequest = json(&call.headers, body).await?;
    let view = call.shared.engine.update_device(&id, request, by).await?;
    updates::answer_one(&call, &view, true).await
}

/// What became of one device of a bulk update.
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

/// The answer to a bulk update.
#[derive(Serialize, ToSchema)]
#[schema(as = BulkResults)]
struct BulkAnswer {
    results: Vec<BulkDto>,
    count: usize,
    succeeded: usize,
    failed: usize,
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
async fn bulk_update(call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let mut fields: Map<String, Value> = json(&call.headers, body).await?;
    let devices: Vec<String> = from_value(
        fields.remove("device_ids").unwrap_or_default(),
        "the body: device_ids",
    )?;
    if devices.is_empty() || devices.len() > MAX_BULK_DEVICES {
        let detail = format!(
            "device_ids must hold 1 to {MAX_BULK_DEVICES} ids, not {}",
            devices.len()
        );
        return Err(ApiError::invalid("too_many_devices", detail));
    }
    let request: UpdateRequest = from_value(Value::Object(fields), "the body")?;
    let engine = &call.shared.engine;
    engine.firmware_in_use(&request.firmware_id).await?;
    let each = devices
        .into_iter()
        .map(|id| bulk_one(&call, by, id, request.clone()));
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

async fn bulk_one(call: &Call, by: &Caller, device_id: String, request: UpdateRequest) -> BulkDto {
    let made = match device_id.parse::<DeviceId>() {
        Ok(id) => call
            .shared
            .engine
            .update_device(&id, request, by)
            .await
            .map_err(ApiError::from),
        Err(_) => Err(ApiError::not_found("device", &device_id)),
    };
    match made {
        Ok(view) => BulkDto {
            device_id,
            success: true,
            update_id: Some(view.update.id.to_string()),
            status: view.update.status(),
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

/// The body of a rollback of one device (PRD, E4-US2).
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DeviceRollbackRequest)]
struct RollbackRequest {
    /// A version that the device has run before.
    #[schema(examples("2.0.0"))]
    to_version: String,
    #[serde(default)]
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

/// Take one device back to a version that it has run before
#[utoipa::path(post, path = "/api/v1/ota/devices/{device_id}/rollback", tag = "devices", request_body = RollbackRequest, responses(
    (status = 200, description = "The entry of the rollback log", body = RollbackDto),
    (status = 409, description = "It runs that version, never ran it, or the image is not in the registry"),
))]
async fn roll_back(id: Segment, call: Call, body: Body) -> Answer {
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
    Ok(dto::ok(&RollbackDto::from(&rollback)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bad_entry_is_answered_by_itself_and_the_others_are_read() {
        let devices = json!([
            {"device_id": "a", "device_model": "m"},
            {"device_id": "b"},
            {"device_id": "c/d", "device_model": "m"},
            {"device_id": "e", "device_model": ""},
            7,
        ]);
        let read: Vec<String> = read_each(Some(devices))
            .unwrap()
            .into_iter()
            .map(|read| {
                read.map_or_else(
                    |r| serde_json::to_string(&r).unwrap(),
                    |r| r.device_id.to_string(),
                )
            })
            .collect();
        insta::assert_snapshot!(read.join("\n"), @r#"
        a
        {"device_id":"b","status":"error","error":"device is not as it should be: missing field `device_model`"}
        {"device_id":"c/d","status":"error","error":"device: device_id: device_id \"c/d\" is not valid: it must start with a letter or digit and hold at most 64 of A-Z a-z 0-9 _ . : -"}
        {"device_id":"e","status":"error","error":"device_model must not be empty"}
        {"device_id":null,"status":"error","error":"device is not as it should be: invalid type: integer `7`, expected struct Registration"}
        "#);
    }

    #[test]
    fn a_list_is_a_list_of_bounded_length_and_stands_alone() {
        assert!(read_each(Some(json!([]))).is_err());
        assert!(read_each(Some(json!({}))).is_err());
        assert!(read_each(Some(vec![json!({}); MAX_REGISTRATIONS + 1].into())).is_err());
        let others = json!({"device": []});
        let error = only_devices(others.as_object().unwrap()).unwrap_err();
        assert_eq!(
            error.detail(),
            "the body: unknown field `device` beside `devices`"
        );
    }
}
