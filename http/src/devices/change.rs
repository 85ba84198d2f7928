//! What is registered of a device, changed; and devices that are deleted.

use std::collections::BTreeMap;

use device_ota_domain::device::Registration;
use device_ota_domain::ring::Ring;
use device_ota_domain::{DeviceId, Role};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::dto::{self, device::DeviceDto};
use crate::errors::ApiError;
use crate::request::body::Body;
use crate::request::json::{from_value, json, no_body};
use crate::request::{Call, Segment};
use crate::shared::Answer;

/// Fields of a registration; what is left out stays, `null` clears.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `overlay` reads field by field")]
struct DeviceChange {
    /// The path's, if at all.
    device_id: Option<DeviceId>,
    device_type: Option<String>,
    device_model: Option<String>,
    manufacturer: Option<String>,
    hw_revision: Option<String>,
    firmware_version: Option<String>,
    groups: Option<Vec<String>>,
    tags: Option<BTreeMap<String, String>>,
    ring: Option<Ring>,
}

/// Change what is registered of a device
///
/// What the body leaves out stays, `null` clears. Campaigns that have started keep the devices they have.
#[utoipa::path(put, path = "/api/v1/ota/devices/{device_id}", tag = "devices", request_body = DeviceChange, responses(
    (status = 200, description = "The device as it is now", body = DeviceDto),
))]
pub(super) async fn change(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id: DeviceId = id.id("device")?;
    let given: Map<String, Value> = json(&call.headers, body).await?;
    let device = call.shared.engine.device(&id).await?;
    let changed = overlay(&device.registration, given)?;
    let device = call.shared.engine.save_device(changed, by).await?;
    Ok(dto::ok(&DeviceDto::from(&device)))
}

/// A registration with some of its fields replaced.
fn overlay(known: &Registration, given: Map<String, Value>) -> Result<Registration, ApiError> {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(known) else {
        unreachable!("a registration is an object");
    };
    for (name, value) in given {
        if name == "device_id" && fields.get(&name) != Some(&value) {
            return Err(ApiError::invalid(
                "invalid_device",
                "the body: device_id must be the path's or left out",
            ));
        }
        // Lists that are cleared are empty.
        let cleared = value.is_null() && matches!(name.as_str(), "groups" | "tags");
        if cleared {
            fields.remove(&name);
        } else {
            fields.insert(name, value);
        }
    }
    from_value(Value::Object(fields), "the body")
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
#[utoipa::path(delete, path = "/api/v1/ota/devices/{device_id}", tag = "devices", responses(
    (status = 200, description = "It is gone", body = DeletedDto),
))]
pub(super) async fn delete(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Admin)?;
    call.no_query()?;
    let id: DeviceId = id.id("device")?;
    no_body(&call.headers, body).await?;
    Ok(dto::ok(&DeletedDto {
        device_id: &id,
        status: "deleted",
        cancelled_updates: call.shared.engine.delete_device(&id, by).await?,
    }))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_leaves_what_it_does_not_name_and_clears_what_is_null() {
        let known = json!({"device_id": "a", "device_model": "m", "hw_revision": "B", "groups": ["g"], "ring": "early"});
        let known: Registration = serde_json::from_value(known).unwrap();
        let change = |given: Value| {
            let given = given.as_object().unwrap().clone();
            overlay(&known, given).map_err(|error| error.detail().to_owned())
        };
        let changed =
            change(json!({"ring": null, "groups": null, "tags": {"floor": "2"}})).unwrap();
        assert_eq!(
            (changed.ring, changed.groups.len(), changed.tags.len()),
            (None, 0, 1)
        );
        assert_eq!(changed.hw_revision.as_deref(), Some("B"));
        assert_eq!(change(json!({})).unwrap(), known);
        assert!(change(json!({"device_id": "a"})).is_ok());
        for (wrong, says) in [
            (
                json!({"device_id": "b"}),
                "the body: device_id must be the path's or left out",
            ),
            (
                json!({"ring": "red"}),
                "the body: ring: unknown variant `red`",
            ),
            (
                json!({"colour": "red"}),
                "the body: colour: unknown field `colour`",
            ),
        ] {
            let complaint = change(wrong).unwrap_err();
            assert!(complaint.starts_with(says), "{complaint}");
        }
    }
}
