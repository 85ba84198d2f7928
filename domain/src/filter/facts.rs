//! Whether a device passes: the filter's meaning, against which the store's SQL is tested.

use jiff::Timestamp;

use super::{Filter, NumberField, NumberTest, RingTest, Test, TextField, TextTest, TimeTest};
use crate::device::Device;
use crate::ring::Ring;

impl Filter {
    /// Whether the device passes.
    pub fn matches(&self, device: &Device, now: Timestamp) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.matches(device, now)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(device, now)),
            Self::Not(part) => !part.matches(device, now),
            Self::Test(test) => test.passes(device, now),
        }
    }
}

impl Test {
    fn passes(&self, device: &Device, now: Timestamp) -> bool {
        match self {
            Self::Text(field, test) => test.passes(field.of(device)),
            Self::Version(test) => test.passes(device.running()),
            Self::Groups(test) => test.passes_one_of(&device.registration.groups),
            Self::Ring(test) => test.passes(device.registration.ring),
            Self::Number(field, test) => test.passes(field.of(device)),
            Self::LastSeen(test) => test.passes(device.latest.last_seen, now),
            Self::Online(wanted) => device.latest.online == *wanted,
        }
    }
}

impl TextField {
    fn of<'d>(&self, device: &'d Device) -> Option<&'d str> {
        let said = &device.registration;
        match self {
            Self::DeviceId => Some(said.device_id.as_str()),
            Self::DeviceType => said.device_type.as_deref(),
            Self::DeviceModel => Some(&said.device_model),
            Self::Manufacturer => said.manufacturer.as_deref(),
            Self::HwRevision => said.hw_revision.as_deref(),
            Self::Tag(key) => said.tags.get(key).map(String::as_str),
        }
    }
}

impl NumberField {
    fn of(&self, device: &Device) -> Option<f64> {
        let latest = &device.latest;
        match self {
            Self::BatteryPercent => latest.battery_percent,
            #[expect(
                clippy::cast_precision_loss,
                reason = "beyond 2^53 bytes the last few do not matter"
            )]
            Self::FreeStorageBytes => latest.free_storage_bytes.map(|bytes| bytes as f64),
            Self::Metric(name) => latest.metrics.get(name).copied(),
        }
    }
}

impl TextTest {
    fn passes(&self, text: Option<&str>) -> bool {
        let Some(text) = text else {
            return *self == Self::Exists(false);
        };
        match self {
            Self::Eq(value) => text == value,
            Self::Ne(value) => text != value,
            Self::In(values) => values.iter().any(|value| text == value),
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Exists(wanted) => *wanted,
        }
    }

    fn passes_one_of(&self, texts: &[String]) -> bool {
        match self {
            Self::Ne(value) => !texts.contains(value),
            Self::Exists(wanted) => texts.is_empty() != *wanted,
            test => texts.iter().any(|text| test.passes(Some(text))),
        }
    }
}

impl RingTest {
    fn passes(&self, ring: Option<Ring>) -> bool {
        match (self, ring) {
            (Self::In(rings), Some(ring)) => rings.contains(&ring),
            (Self::Ne(other), Some(ring)) => ring != *other,
            (Self::Exists(wanted), ring) => ring.is_some() == *wanted,
            (_, None) => false,
        }
    }
}

impl NumberTest {
    fn passes(&self, number: Option<f64>) -> bool {
        let Some(number) = number else {
            return *self == Self::Exists(false);
        };
        let order = |value: f64| number.partial_cmp(&value);
        match self {
            Self::Is(comparison, value) => order(*value).is_some_and(|o| comparison.holds(o)),
            Self::In(values) => values
                .iter()
                .any(|value| order(*value).is_some_and(std::cmp::Ordering::is_eq)),
            Self::Exists(wanted) => *wanted,
        }
    }
}

impl TimeTest {
    fn passes(self, time: Option<Timestamp>, now: Timestamp) -> bool {
        match (self, time) {
            (Self::Is(comparison, moment), Some(time)) => {
                comparison.holds(time.cmp(&moment.resolve(now)))
            }
            (Self::Is(..), None) => false,
            (Self::Exists(wanted), time) => time.is_some() == wanted,
        }
    }
}
