//! The heartbeat: a device's telemetry. Everything but the running version is optional.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Invalid, bounds, message};
use crate::wire::Slot;

/// Most errors in one heartbeat.
pub const MAX_ERRORS: usize = 32;
/// Most custom metrics in one heartbeat.
pub const MAX_METRICS: usize = 64;
/// Most capabilities in one heartbeat.
pub const MAX_ACCEPTS: usize = 16;

/// Celsius degrees a sensor may claim: from absolute zero to well above any electronics.
const TEMPERATURE_C: std::ops::RangeInclusive<f64> = -273.15..=1000.0;
/// Signal strengths a modem may claim, in dBm.
const SIGNAL_DBM: std::ops::RangeInclusive<f64> = -300.0..=100.0;
/// Largest radius a position may have: half the Earth's circumference, in metres.
const MAX_ACCURACY_M: f64 = 20_040_000.0;

/// Telemetry of one device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Running firmware.
    pub version: String,
    /// Slot the running image is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    /// Whether the running image passed its own health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<bool>,
    /// Changes with every boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Seconds since boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_s: Option<u64>,
    /// When the device sent this, by its own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// Kind of device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_type: Option<String>,
    /// Model, as releases name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_model: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// Revision of the hardware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hw_revision: Option<String>,
    /// Battery, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub battery: Option<Battery>,
    /// Storage for images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Space>,
    /// Main memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Space>,
    /// Load, 0–100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// Temperature in degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<f64>,
    /// The link it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// Errors since the last heartbeat, at most [`MAX_ERRORS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<SeenError>,
    /// Numbers of the device's own choosing, at most [`MAX_METRICS`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// What the device can take: transports (`http`, `mqtt`) and later algorithms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepts: Vec<String>,
    /// Lowest security version the device takes without a permit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_floor: Option<u64>,
}

/// State of a battery.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Battery {
    /// Charge, 0–100.
    pub percent: f64,
    /// Whether it is being charged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charging: Option<bool>,
}

/// Room somewhere, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Bytes free.
    pub free_bytes: u64,
    /// Bytes in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

/// The link a device is on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// `wifi`, `lte`, `ethernet` …
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Received signal strength.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_dbm: Option<f64>,
    /// Name of the carrier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
}

/// A position.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Location {
    /// Latitude in degrees.
    pub lat: f64,
    /// Longitude in degrees.
    pub lon: f64,
    /// Radius of uncertainty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy_m: Option<f64>,
}

/// An error the device saw, of its own vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenError {
    /// Which one.
    pub code: String,
    /// Words for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it was last seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// How often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

message!(Heartbeat);

impl Heartbeat {
    /// Whether every value is within its bounds.
    pub fn validate(&self) -> Result<(), Invalid> {
        bounds::name("version", &self.version)?;
        bounds::names([
            ("boot_id", &self.boot_id),
            ("device_type", &self.device_type),
            ("device_model", &self.device_model),
            ("manufacturer", &self.manufacturer),
            ("hw_revision", &self.hw_revision),
        ])?;
        bounds::integers([
            ("uptime_s", self.uptime_s),
            ("security_floor", self.security_floor),
        ])?;
        bounds::number("cpu_percent", self.cpu_percent, 0.0..=100.0)?;
        bounds::number("temperature_c", self.temperature_c, TEMPERATURE_C)?;
        bounds::number(
            "battery.percent",
            self.battery.map(|b| b.percent),
            0.0..=100.0,
        )?;
        self.validate_spaces()?;
        self.validate_surroundings()?;
        self.validate_lists()
    }

    fn validate_spaces(&self) -> Result<(), Invalid> {
        for space in [self.storage, self.memory].into_iter().flatten() {
            bounds::integers([
                ("free_bytes", Some(space.free_bytes)),
                ("total_bytes", space.total_bytes),
            ])?;
        }
        Ok(())
    }

    fn validate_surroundings(&self) -> Result<(), Invalid> {
        if let Some(network) = &self.network {
            bounds::names([
                ("network.type", &network.kind),
                ("network.carrier", &network.carrier),
            ])?;
            bounds::number("network.signal_dbm", network.signal_dbm, SIGNAL_DBM)?;
        }
        if let Some(place) = self.location {
            bounds::number("location.lat", Some(place.lat), -90.0..=90.0)?;
            bounds::number("location.lon", Some(place.lon), -180.0..=180.0)?;
            bounds::number(
                "location.accuracy_m",
                place.accuracy_m,
                0.0..=MAX_ACCURACY_M,
            )?;
        }
        Ok(())
    }

    fn validate_lists(&self) -> Result<(), Invalid> {
        bounds::count("errors", self.errors.len(), MAX_ERRORS)?;
        for error in &self.errors {
            bounds::name("errors.code", &error.code)?;
            bounds::text("errors.message", error.message.as_deref().unwrap_or(""))?;
            bounds::integers([("errors.count", error.count)])?;
        }
        bounds::count("metrics", self.metrics.len(), MAX_METRICS)?;
        for name in self.metrics.keys() {
            bounds::name("metrics", name)?;
        }
        bounds::count("accepts", self.accepts.len(), MAX_ACCEPTS)?;
        self.accepts
            .iter()
            .try_for_each(|capability| bounds::name("accepts", capability))
    }
}
