//! The Device Service over HTTP (docs/operations.md, *The Device Service*).

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use device_ota_domain::DeviceId;
use device_ota_domain::device::Registration;
use device_ota_engine::ports::Clock;
use device_ota_engine::ports::device_service::{DeviceService, DeviceServiceUnavailable, Met};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::ServiceStatus;
use crate::client::{Client, Unavailable};

/// A call from one service of the house to another (PRD, *Authentication*).
const INTERNAL_CALL: HeaderName = HeaderName::from_static("x-internal-call");
/// Devices that are kept for the record alone.
const GONE: [&str; 2] = ["decommissioned", "deleted"];

/// Asks `GET /api/v1/devices/{device_id}`.
pub struct HttpDeviceService {
    client: Client,
}

/// What it answers of a device. Fields that are not named here are not looked at; an empty text counts as none.
#[derive(Deserialize)]
struct Record {
    device_id: Option<String>,
    status: Option<String>,
    device_type: Option<String>,
    device_model: Option<String>,
    model: Option<String>,
    manufacturer: Option<String>,
    hw_revision: Option<String>,
    hardware_version: Option<String>,
    firmware_version: Option<String>,
    #[serde(default)]
    groups: Option<Vec<String>>,
    group_id: Option<String>,
    #[serde(default)]
    tags: Value,
}

impl HttpDeviceService {
    /// At `base`, e.g. `http://device_service:8205`.
    pub fn new(base: &str, clock: Arc<dyn Clock>) -> reqwest::Result<Self> {
        let headers = HeaderMap::from_iter([(INTERNAL_CALL, HeaderValue::from_static("true"))]);
        let client = Client::new("device_service", base, headers, clock)?;
        Ok(Self { client })
    }

    /// Looks after it until `stop`.
    pub async fn watch(&self, stop: &CancellationToken) {
        self.client.watch(stop).await;
    }

    /// How it is.
    pub fn status(&self) -> ServiceStatus {
        self.client.status()
    }
}

#[async_trait]
impl DeviceService for HttpDeviceService {
    async fn device(&self, id: &DeviceId) -> Result<Met, DeviceServiceUnavailable> {
        // An id holds nothing that means something in a path.
        let request = |client: &reqwest::Client, base: &str| {
            client.get(format!("{base}/api/v1/devices/{id}"))
        };
        let asked = self
            .client
            .ask(request, |status, body| read(id, status, body));
        let asked = asked.await;
        asked.map_err(|Unavailable(why)| DeviceServiceUnavailable(why))
    }
}

/// What it knows of the device, by its answer. What it would say again of this device, and not of others, is no failure of its own.
fn read(id: &DeviceId, status: StatusCode, body: &[u8]) -> Result<Met, String> {
    match status {
        StatusCode::OK => {}
        // An id that it does not take is nobody's there.
        StatusCode::NOT_FOUND
        | StatusCode::GONE
        | StatusCode::BAD_REQUEST
        | StatusCode::UNPROCESSABLE_ENTITY => return Ok(Met::Nobody),
        other => return Err(format!("it answered {other}")),
    }
    // The error of the parser could quote what it has read, and health tells it to everybody.
    let answer: Map<String, Value> =
        serde_json::from_slice(body).map_err(|_| "its answer cannot be understood".to_owned())?;
    let record: Record = match serde_path_to_error::deserialize(Value::Object(answer)) {
        Ok(record) => record,
        Err(error) => {
            let field = error.path();
            return Ok(Met::Unfit(format!(
                "{field} is of another type than it should be"
            )));
        }
    };
    let told = record.device_id.as_deref();
    if told.is_some_and(|told| told != id.as_str()) {
        return Ok(Met::Unfit("its device_id is another one".to_owned()));
    }
    let is_gone = |status: &String| GONE.contains(&status.to_lowercase().as_str());
    if record.status.as_ref().is_some_and(is_gone) {
        return Ok(Met::Nobody);
    }
    Ok(Met::Device(record.registration(id)))
}

impl Record {
    fn registration(self, id: &DeviceId) -> Registration {
        let text = |text: Option<String>| text.filter(|text| !text.is_empty());
        let mut groups = self.groups.unwrap_or_default();
        groups.extend(self.group_id);
        groups.retain(|group| !group.is_empty());
        groups.sort_unstable();
        groups.dedup();
        Registration {
            device_id: id.clone(),
            device_type: text(self.device_type),
            device_model: text(self.device_model).or(self.model).unwrap_or_default(),
            manufacturer: text(self.manufacturer),
            hw_revision: text(self.hw_revision).or(text(self.hardware_version)),
            firmware_version: text(self.firmware_version),
            groups,
            tags: match self.tags {
                Value::Object(tags) => texts(tags),
                // A list of words has no values to tell devices apart by.
                _ => BTreeMap::new(),
            },
            ring: None,
        }
    }
}

/// Those whose values are texts.
fn texts(tags: Map<String, Value>) -> BTreeMap<String, String> {
    let text = |(key, value)| match value {
        Value::String(text) => Some((key, text)),
        _ => None,
    };
    tags.into_iter().filter_map(text).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(status: u16, body: &Value) -> Result<Met, String> {
        let id = "frame-1".parse().unwrap();
        let status = StatusCode::from_u16(status).unwrap();
        read(&id, status, body.to_string().as_bytes())
    }

    /// The device that it tells of.
    fn met(body: &Value) -> Registration {
        match told(200, body).unwrap() {
            Met::Device(registration) => registration,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_record_is_read_by_either_name_of_a_field() {
        let ours = json!({
            "device_id": "frame-1", "device_type": "smart_frame", "device_model": "SF-100", "manufacturer": "Acme",
            "hw_revision": "B", "firmware_version": "2.0.0", "groups": ["lab", "", "shops"],
            "tags": {"site": "berlin", "floor": 3}, "status": "active",
        });
        let theirs = json!({
            "device_type": "smart_frame", "model": "SF-100", "device_model": "", "manufacturer": "Acme",
            "hardware_version": "B", "firmware_version": "2.0.0", "groups": ["shops"], "group_id": "lab",
            "tags": {"site": "berlin"}, "device_name": "Kitchen", "location": null, "status": "INACTIVE",
        });
        let known = met(&ours);
        assert_eq!(met(&theirs), known);
        let shown = serde_json::to_value(&known).unwrap();
        let wanted = json!({
            "device_id": "frame-1", "device_type": "smart_frame", "device_model": "SF-100", "manufacturer": "Acme",
            "hw_revision": "B", "firmware_version": "2.0.0", "groups": ["lab", "shops"],
            "tags": {"site": "berlin"}, "ring": null,
        });
        assert_eq!(shown, wanted);
    }

    #[test]
    fn a_record_may_say_next_to_nothing() {
        let bare =
            met(&json!({"model": "SF-100", "tags": ["a"], "groups": null, "group_id": null}));
        assert_eq!(
            (
                bare.device_model.as_str(),
                bare.groups.len(),
                bare.tags.len()
            ),
            ("SF-100", 0, 0)
        );
        assert_eq!(bare.check(), Ok(()));
        let nothing = met(&json!({}));
        assert!(nothing.check().is_err(), "it has no model");
    }

    #[test]
    fn nobody_is_nobody_and_all_else_is_no_answer() {
        let there = json!({"model": "SF-100"});
        for status in [400, 404, 410, 422] {
            assert_eq!(told(status, &there), Ok(Met::Nobody), "{status}");
        }
        for status in ["decommissioned", "Deleted"] {
            let gone = json!({"model": "SF-100", "status": status});
            assert_eq!(told(200, &gone), Ok(Met::Nobody));
        }
        for status in [201, 204, 302, 401, 403, 409] {
            assert!(told(status, &there).is_err(), "{status}");
        }
        for body in [json!("welcome"), json!([]), json!(null)] {
            assert!(told(200, &body).is_err(), "{body}");
        }
    }

    #[test]
    fn a_record_that_cannot_be_registered_says_why() {
        for (body, why) in [
            (json!({"model": 7}), "model is"),
            (
                json!({"model": "M", "firmware_version": 2.1}),
                "firmware_version is",
            ),
            (
                json!({"model": "M", "groups": [{"name": "lab"}]}),
                "groups[0] is",
            ),
            (
                json!({"model": "M", "device_id": "Frame-1"}),
                "its device_id is another",
            ),
        ] {
            let told = told(200, &body);
            assert!(
                matches!(&told, Ok(Met::Unfit(said)) if said.starts_with(why)),
                "{told:?}"
            );
        }
    }
}
