//! Registration of devices, and their credentials (DESIGN.md, *HTTP*).

use device_ota_domain::device::{Registration, RegistrationError};
use device_ota_domain::{DeviceId, Role};
use device_ota_engine::{Caller, MAX_REGISTRATIONS, RegistrationOutcome};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::dto;
use crate::dto::device::{CredentialsDto, MqttDto, RegisteredDto, RegistrationsDto};
use crate::errors::ApiError;
use crate::request::body::Body;
use crate::request::json::{from_value, json_up_to, no_body};
use crate::request::{Call, Segment};
use crate::shared::Answer;

/// Most bytes of a registration: a thousand devices with four KiB each.
const MAX_REGISTRATION_BYTES: usize = 4 * 1024 * 1024;

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
pub(super) async fn register(call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let value: Value = json_up_to(MAX_REGISTRATION_BYTES, &call.headers, body).await?;
    let check = |registration: &Registration| call.shared.engine.check_registration(registration);
    let devices = match value {
        Value::Object(mut fields) if fields.contains_key("devices") => {
            let devices = fields.remove("devices");
            only_devices(&fields)?;
            read_each(devices, check)?
        }
        Value::Array(_) => {
            return Err(ApiError::invalid(
                "invalid_json",
                r#"the body is a list: give it its name, {"devices": […]}"#,
            ));
        }
        one => {
            vec![Ok(read_one(one, check).map_err(|error| {
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

/// What a registration has to hold.
trait Check: Fn(&Registration) -> Result<(), RegistrationError> {}
impl<F: Fn(&Registration) -> Result<(), RegistrationError>> Check for F {}

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

fn read_each(devices: Option<Value>, check: impl Check) -> Result<Vec<Read>, ApiError> {
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
        read_one(device, &check).map_err(|error| RegisteredDto::refused(id, error))
    };
    Ok(devices.into_iter().map(read).collect())
}

fn read_one(device: Value, check: impl Check) -> Result<Registration, String> {
    let registration: Registration =
        from_value(device, "device").map_err(|error| error.detail().to_owned())?;
    check(&registration).map_err(|error| error.to_string())?;
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
pub(super) async fn renew(id: Segment, call: Call, body: Body) -> Answer {
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
        let read: Vec<String> = read_each(Some(devices), Registration::check)
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
        {"device_id":null,"status":"error","error":"device is not as it should be: must be an object, not 7"}
        "#);
    }

    #[test]
    fn a_list_is_a_list_of_bounded_length_and_stands_alone() {
        let is_refused = |devices: Value| read_each(Some(devices), Registration::check).is_err();
        assert!(is_refused(json!([])) && is_refused(json!({})));
        assert!(is_refused(vec![json!({}); MAX_REGISTRATIONS + 1].into()));
        let others = json!({"device": []});
        let error = only_devices(others.as_object().unwrap()).unwrap_err();
        assert_eq!(
            error.detail(),
            "the body: unknown field `device` beside `devices`"
        );
    }
}
