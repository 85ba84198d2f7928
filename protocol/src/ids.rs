//! The name of a device: one string that is its MQTT client id, its user name and one whole topic
//! level.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::wire::StrVisitor;

/// Longest device id, in characters: it stays within what every MQTT 3.1.1 server takes.
pub const MAX_DEVICE_ID: usize = 64;

/// A device's name: `[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}`, opaque and case-sensitive. Cheap to clone.
///
/// ```
/// use device_ota_protocol::ids::DeviceId;
///
/// let id: DeviceId = "frame-0042".parse()?;
/// assert_eq!(id.as_str(), "frame-0042");
/// for bad in ["", "-x", "a/b", "a+", "a#", "$SYS", "é", "a b", &"x".repeat(65)] {
///     assert!(bad.parse::<DeviceId>().is_err(), "{bad:?}");
/// }
/// # Ok::<(), device_ota_protocol::ids::InvalidDeviceId>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(Arc<str>);

/// A string that cannot name a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a device id is 1 to {MAX_DEVICE_ID} of the characters A-Z a-z 0-9 _ . : - and starts with a letter or digit"
)]
pub struct InvalidDeviceId;

impl DeviceId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn is_valid(text: &str) -> bool {
        text.len() <= MAX_DEVICE_ID
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_.:-".contains(&b))
    }
}

impl FromStr for DeviceId {
    type Err = InvalidDeviceId;

    fn from_str(text: &str) -> Result<Self, InvalidDeviceId> {
        if Self::is_valid(text) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidDeviceId)
        }
    }
}

impl TryFrom<String> for DeviceId {
    type Error = InvalidDeviceId;

    fn try_from(text: String) -> Result<Self, InvalidDeviceId> {
        text.parse()
    }
}

impl TryFrom<&str> for DeviceId {
    type Error = InvalidDeviceId;

    fn try_from(text: &str) -> Result<Self, InvalidDeviceId> {
        text.parse()
    }
}

impl AsRef<str> for DeviceId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl std::borrow::Borrow<str> for DeviceId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for DeviceId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for DeviceId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(StrVisitor::new("a device id", |text| text.parse().ok()))
    }
}
