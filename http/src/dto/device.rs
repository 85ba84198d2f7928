//! Devices: what was registered and what was last heard, and the answers to registrations (DESIGN.md, *HTTP*).

use std::collections::BTreeMap;

use device_ota_domain::device::LastError;
use device_ota_domain::ring::Ring;
use device_ota_domain::{Device, DeviceId};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use super::names;

/// A device.
#[derive(Serialize, ToSchema)]
#[schema(as = Device)]
pub(crate) struct DeviceDto<'a> {
    device_id: &'a DeviceId,
    device_type: Option<&'a str>,
    device_model: &'a str,
    manufacturer: Option<&'a str>,
    hw_revision: Option<&'a str>,
    /// What it runs by its own last word, else what it was registered with.
    firmware_version: Option<&'a str>,
    groups: &'a [String],
    tags: &'a BTreeMap<String, String>,
    ring: Option<Ring>,
    bucket: u16,
    online: bool,
    last_seen: Option<Timestamp>,
    slot: Option<&'a str>,
    confirmed: Option<bool>,
    battery_percent: Option<f64>,
    charging: Option<bool>,
    free_storage_bytes: Option<i64>,
    security_floor: Option<i64>,
    reported_model: Option<&'a str>,
    /// Errors that its last heartbeat told of.
    error_count: i64,
    last_error: Option<&'a LastError>,
    metrics: &'a BTreeMap<String, f64>,
    registered_at: Timestamp,
    /// Rises with each change of what is registered.
    revision: i64,
}

impl<'a> From<&'a Device> for DeviceDto<'a> {
    fn from(device: &'a Device) -> Self {
        let (said, latest) = (&device.registration, &device.latest);
        Self {
            device_id: &said.device_id,
            device_type: said.device_type.as_deref(),
            device_model: &said.device_model,
            manufacturer: said.manufacturer.as_deref(),
            hw_revision: said.hw_revision.as_deref(),
            firmware_version: latest
                .version
                .as_deref()
                .or(said.firmware_version.as_deref()),
            groups: &said.groups,
            tags: &said.tags,
            ring: said.ring,
            bucket: device.bucket,
            online: latest.online,
            last_seen: latest.last_seen,
            slot: latest.slot.as_deref(),
            confirmed: latest.confirmed,
            battery_percent: latest.battery_percent,
            charging: latest.charging,
            free_storage_bytes: latest.free_storage_bytes,
            security_floor: latest.security_floor,
            reported_model: latest.reported_model.as_deref(),
            error_count: latest.error_count,
            last_error: latest.last_error.as_ref(),
            metrics: &latest.metrics,
            registered_at: device.registered_at,
            revision: device.revision,
        }
    }
}

/// How a device signs in to MQTT. Shown once.
#[derive(Serialize, ToSchema)]
#[schema(as = MqttCredentials)]
pub(crate) struct MqttDto {
    username: String,
    password: String,
}

impl MqttDto {
    pub(crate) fn new(device: &DeviceId, secret: String) -> Self {
        Self {
            username: device.to_string(),
            password: secret,
        }
    }
}

/// New credentials of one device.
#[derive(Serialize, ToSchema)]
#[schema(as = Credentials)]
pub(crate) struct CredentialsDto<'a> {
    pub(crate) device_id: &'a DeviceId,
    pub(crate) mqtt: MqttDto,
}

/// What became of one registration.
#[derive(Serialize, ToSchema)]
#[schema(as = Registered)]
pub(crate) struct RegisteredDto {
    device_id: Option<String>,
    #[schema(schema_with = outcomes)]
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mqtt: Option<MqttDto>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn outcomes() -> Object {
    names(["created", "exists", "error"])
}

impl RegisteredDto {
    /// A new device and its secret.
    pub(crate) fn created(device: &DeviceId, secret: String) -> Self {
        let mqtt = Some(MqttDto::new(device, secret));
        Self {
            device_id: Some(device.to_string()),
            status: "created",
            mqtt,
            error: None,
        }
    }

    /// Registered before.
    pub(crate) fn exists(device: &DeviceId) -> Self {
        Self {
            device_id: Some(device.to_string()),
            status: "exists",
            mqtt: None,
            error: None,
        }
    }

    /// Refused, under the id that was sent, if one was.
    pub(crate) fn refused(device_id: Option<String>, error: String) -> Self {
        Self {
            device_id,
            status: "error",
            mqtt: None,
            error: Some(error),
        }
    }
}

/// The answer to a registration.
#[derive(Serialize, ToSchema)]
#[schema(as = RegisteredList)]
pub(crate) struct RegistrationsDto {
    pub(crate) devices: Vec<RegisteredDto>,
    pub(crate) count: usize,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use device_ota_domain::device::{DeviceKey, Latest};

    use super::*;

    #[test]
    fn a_device_shows_what_it_said_last_before_what_was_registered() {
        let registration = serde_json::json!({
            "device_id": "cam:1", "device_model": "SF-100", "firmware_version": "1.0.0", "ring": "early",
            "groups": ["hall"], "tags": {"floor": "2"}
        });
        let device = Device {
            key: DeviceKey(7),
            registration: serde_json::from_value(registration).unwrap(),
            bucket: 1_234,
            revision: 3,
            registered_at: Timestamp::from_second(1_766_052_000).unwrap(),
            latest: Latest {
                online: true,
                version: Some("2.0.0".to_owned()),
                ..Latest::default()
            },
        };
        insta::assert_snapshot!(serde_json::to_string_pretty(&DeviceDto::from(&device)).unwrap(), @r#"
        {
          "device_id": "cam:1",
          "device_type": null,
          "device_model": "SF-100",
          "manufacturer": null,
          "hw_revision": null,
          "firmware_version": "2.0.0",
          "groups": [
            "hall"
          ],
          "tags": {
            "floor": "2"
          },
          "ring": "early",
          "bucket": 1234,
          "online": true,
          "last_seen": null,
          "slot": null,
          "confirmed": null,
          "battery_percent": null,
          "charging": null,
          "free_storage_bytes": null,
          "security_floor": null,
          "reported_model": null,
          "error_count": 0,
          "last_error": null,
          "metrics": {},
          "registered_at": "2025-12-18T10:00:00Z",
          "revision": 3
        }
        "#);
    }

    #[test]
    fn a_registration_answers_for_each_device() {
        let id: DeviceId = "cam:1".parse().unwrap();
        let devices = vec![
            RegisteredDto::created(&id, "s3cret".to_owned()),
            RegisteredDto::exists(&id),
            RegisteredDto::refused(None, "missing field `device_id`".to_owned()),
        ];
        let answer = RegistrationsDto {
            count: devices.len(),
            devices,
        };
        insta::assert_snapshot!(serde_json::to_string_pretty(&answer).unwrap(), @r#"
        {
          "devices": [
            {
              "device_id": "cam:1",
              "status": "created",
              "mqtt": {
                "username": "cam:1",
                "password": "s3cret"
              }
            },
            {
              "device_id": "cam:1",
              "status": "exists"
            },
            {
              "device_id": null,
              "status": "error",
              "error": "missing field `device_id`"
            }
          ],
          "count": 3
        }
        "#);
    }
}
