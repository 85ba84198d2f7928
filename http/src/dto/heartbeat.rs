//! A heartbeat as it is sent and as it is read back (rings-and-heartbeat service, *Heartbeat Collection*). The device protocol
//! decides what is taken; a test holds this description to it.

use std::collections::BTreeMap;

use device_ota_domain::DeviceId;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::openapi::{Object, ObjectBuilder};
use utoipa::{PartialSchema as _, ToSchema};

/// What a device tells of itself, as over MQTT. Everything but the running version may be left out; fields that are not
/// named here are kept and shown as they were sent.
#[derive(Deserialize, ToSchema)]
#[expect(
    dead_code,
    reason = "describes what the engine reads, and says which field is wrong"
)]
pub(crate) struct Telemetry {
    /// The running firmware.
    #[schema(min_length = 1, max_length = 128, examples("2.1.0"))]
    version: String,
    /// The slot that the running image is in.
    slot: Option<Slot>,
    /// The running image passed its own health check.
    confirmed: Option<bool>,
    /// Changes with every boot.
    #[schema(min_length = 1, max_length = 128)]
    boot_id: Option<String>,
    /// Seconds since boot.
    #[schema(maximum = 9_007_199_254_740_991_u64, examples(86_400))]
    uptime_s: Option<u64>,
    /// When the device sent this, by its own clock.
    sent_at: Option<Timestamp>,
    /// Kind of device.
    #[schema(min_length = 1, max_length = 128)]
    device_type: Option<String>,
    /// Model, as images name it.
    #[schema(min_length = 1, max_length = 128)]
    device_model: Option<String>,
    /// Maker.
    #[schema(min_length = 1, max_length = 128)]
    manufacturer: Option<String>,
    /// Hardware revision.
    #[schema(min_length = 1, max_length = 128)]
    hw_revision: Option<String>,
    /// The battery, if there is one.
    battery: Option<Battery>,
    /// Room for images.
    storage: Option<Space>,
    /// Main memory.
    memory: Option<Space>,
    /// Load of the processor, in percent.
    #[schema(minimum = 0, maximum = 100)]
    cpu_percent: Option<f64>,
    /// Temperature, in degrees Celsius.
    #[schema(minimum = -273.15, maximum = 1000)]
    temperature_c: Option<f64>,
    /// The link that it is on.
    network: Option<Network>,
    /// Where it is.
    location: Option<Location>,
    /// Errors since the heartbeat before.
    #[serde(default)]
    #[schema(max_items = 32)]
    errors: Vec<SeenError>,
    #[serde(default)]
    #[schema(schema_with = metrics)]
    metrics: BTreeMap<String, f64>,
    /// What it can take: the transports `http` and `mqtt`.
    #[serde(default)]
    #[schema(max_items = 16)]
    accepts: Vec<String>,
    /// Lowest `security_version` that it takes.
    #[schema(maximum = 9_007_199_254_740_991_u64)]
    security_floor: Option<u64>,
}

fn metrics() -> Object {
    let text = "Numbers of the device's own choosing, by names of 1 to 128 characters";
    ObjectBuilder::new()
        .description(Some(text))
        .additional_properties(Some(f64::schema()))
        .max_properties(Some(64))
        .build()
}

/// One of a device's two places for an image.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Slot {
    A,
    B,
}

/// State of a battery.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "see `Telemetry`")]
struct Battery {
    /// Charge, in percent.
    #[schema(minimum = 0, maximum = 100)]
    percent: f64,
    /// It is being charged.
    charging: Option<bool>,
}

/// Room somewhere.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "see `Telemetry`")]
struct Space {
    /// Bytes free.
    #[schema(maximum = 9_007_199_254_740_991_u64)]
    free_bytes: u64,
    /// Bytes in all.
    #[schema(maximum = 9_007_199_254_740_991_u64)]
    total_bytes: Option<u64>,
}

/// The link that a device is on.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "see `Telemetry`")]
struct Network {
    /// Its kind.
    #[serde(rename = "type")]
    #[schema(min_length = 1, max_length = 128, examples("wifi", "lte", "ethernet"))]
    kind: Option<String>,
    /// Received signal strength, in dBm.
    #[schema(minimum = -300, maximum = 100)]
    signal_dbm: Option<f64>,
    /// The carrier's name.
    #[schema(min_length = 1, max_length = 128)]
    carrier: Option<String>,
}

/// A position (WGS 84).
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "see `Telemetry`")]
struct Location {
    /// Latitude, in degrees.
    #[schema(minimum = -90, maximum = 90)]
    lat: f64,
    /// Longitude, in degrees.
    #[schema(minimum = -180, maximum = 180)]
    lon: f64,
    /// Radius of uncertainty, in metres.
    #[schema(minimum = 0, maximum = 20_040_000)]
    accuracy_m: Option<f64>,
}

/// An error that the device saw, of its own vocabulary.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "see `Telemetry`")]
struct SeenError {
    /// Which one.
    #[schema(min_length = 1, max_length = 128)]
    code: String,
    /// For people.
    #[schema(max_length = 1024)]
    message: Option<String>,
    /// When it was last seen.
    at: Option<Timestamp>,
    /// How often.
    #[schema(maximum = 9_007_199_254_740_991_u64)]
    count: Option<u64>,
}

/// A heartbeat that comes over HTTP.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `telemetry::take` reads")]
pub(crate) struct SentHeartbeat {
    /// The device that signs in: nobody speaks for another.
    device_id: DeviceId,
    #[serde(flatten)]
    telemetry: Telemetry,
}

/// A heartbeat as the device sent it, with all of its fields, and when it came.
#[derive(ToSchema)]
#[schema(as = Heartbeat)]
#[expect(dead_code, reason = "describes what `telemetry::history` answers")]
pub(crate) struct HeartbeatDto {
    /// When the service took it.
    received_at: Timestamp,
    #[serde(flatten)]
    telemetry: Telemetry,
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests {
    use std::collections::BTreeSet;

    use device_ota_protocol::messages::Heartbeat;
    use serde_json::{Value, json};

    use super::*;

    /// Every field, with a value in its bounds.
    fn full() -> Value {
        json!({
            "version": "2.1.0", "slot": "b", "confirmed": true, "boot_id": "5f", "uptime_s": 86_400,
            "sent_at": "2025-12-18T10:00:00Z", "device_type": "smart_frame", "device_model": "SF-100",
            "manufacturer": "Acme", "hw_revision": "B", "battery": {"percent": 81.5, "charging": false},
            "storage": {"free_bytes": 1_000, "total_bytes": 2_000}, "memory": {"free_bytes": 1, "total_bytes": 2},
            "cpu_percent": 12.5, "temperature_c": 41.0,
            "network": {"type": "wifi", "signal_dbm": -61.0, "carrier": "none"},
            "location": {"lat": 52.5, "lon": 13.4, "accuracy_m": 8.0},
            "errors": [{"code": "sensor_lost", "message": "no answer", "at": "2025-12-18T09:00:00Z", "count": 3}],
            "metrics": {"fan": 0.5}, "accepts": ["http", "mqtt"], "security_floor": 3,
        })
    }

    #[test]
    fn what_is_documented_is_what_devices_send() {
        let full = full();
        let protocol: Heartbeat = serde_json::from_value(full.clone()).unwrap();
        assert_eq!(serde_json::to_value(&protocol).unwrap(), full);
        serde_json::from_value::<Telemetry>(full.clone()).unwrap();
        for (schema, pointer) in [
            ("Telemetry", ""),
            ("Battery", "/battery"),
            ("Space", "/storage"),
            ("Space", "/memory"),
            ("Network", "/network"),
            ("Location", "/location"),
            ("SeenError", "/errors/0"),
        ] {
            let names = |value: &Value| -> BTreeSet<String> {
                value.as_object().unwrap().keys().cloned().collect()
            };
            let sent = names(full.pointer(pointer).unwrap());
            assert_eq!(names(&schema_of(schema)["properties"]), sent, "{schema}");
        }
    }

    fn schema_of(name: &str) -> Value {
        let schema = match name {
            "Telemetry" => Telemetry::schema(),
            "Battery" => Battery::schema(),
            "Space" => Space::schema(),
            "Network" => Network::schema(),
            "Location" => Location::schema(),
            _ => SeenError::schema(),
        };
        serde_json::to_value(schema).unwrap()
    }

    /// What the document says of the field that this pointer leads to.
    fn schema(pointer: &str) -> Value {
        let (name, field) = match pointer.rsplit_once('.') {
            Some(("battery", field)) => ("Battery", field),
            Some(("location", field)) => ("Location", field),
            Some(("network", field)) => ("Network", field),
            Some(("storage", field)) => ("Space", field),
            _ => ("Telemetry", pointer),
        };
        schema_of(name)["properties"][field].take()
    }

    #[test]
    fn the_documented_bounds_are_those_of_the_protocol() {
        let parse = |pointer: &str, value: f64| {
            let mut sent = full();
            *sent
                .pointer_mut(&format!("/{}", pointer.replace('.', "/")))
                .unwrap() = json!(value);
            Heartbeat::parse(sent.to_string().as_bytes())
        };
        for pointer in [
            "cpu_percent",
            "temperature_c",
            "battery.percent",
            "network.signal_dbm",
            "location.lat",
            "location.lon",
            "location.accuracy_m",
        ] {
            let schema = schema(pointer);
            let bound = |name: &str| schema[name].as_f64().unwrap();
            for (inside, outside) in [
                (bound("minimum"), bound("minimum") - 0.1),
                (bound("maximum"), bound("maximum") + 0.1),
            ] {
                assert!(parse(pointer, inside).is_ok(), "{pointer} {inside}");
                assert!(parse(pointer, outside).is_err(), "{pointer} {outside}");
            }
        }
        for pointer in ["uptime_s", "security_floor", "storage.free_bytes"] {
            let mut sent = full();
            let place = format!("/{}", pointer.replace('.', "/"));
            let most = schema(pointer)["maximum"].as_f64().unwrap();
            assert!((most - 9_007_199_254_740_991.0).abs() < 1.0, "{pointer}");
            *sent.pointer_mut(&place).unwrap() = json!(9_007_199_254_740_991_u64);
            assert!(Heartbeat::parse(sent.to_string().as_bytes()).is_ok());
            *sent.pointer_mut(&place).unwrap() = json!(9_007_199_254_740_992_u64);
            assert!(Heartbeat::parse(sent.to_string().as_bytes()).is_err());
        }
        for (field, most) in [("errors", 32), ("accepts", 16)] {
            assert_eq!(schema(field)["maxItems"], most);
        }
        assert_eq!(schema("metrics")["maxProperties"], 64);
    }
}
