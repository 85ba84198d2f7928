//! Devices: who they are (registered) and how they are (last reported).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::change::{given, set};
use crate::ids::DeviceId;
use crate::ring::Ring;
use crate::text::shows;

/// The registry's own number of a device; short, stable, never shown outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DeviceKey(pub i64);

/// Longest plain text of a registration (type, model, group, tag …), in bytes.
pub const MAX_TEXT_BYTES: usize = 128;
/// Most groups of one device.
pub const MAX_GROUPS: usize = 32;
/// Most tags of one device.
pub const MAX_TAGS: usize = 64;

/// What is said of a device when it is registered (DESIGN.md, *HTTP*).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Its identity.
    pub device_id: DeviceId,
    /// Kind of device, e.g. `smart_frame`.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    pub device_type: Option<String>,
    /// Model; decides which firmware fits.
    #[schema(min_length = 1, max_length = 128)]
    pub device_model: String,
    /// Maker.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    pub manufacturer: Option<String>,
    /// Hardware revision.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    pub hw_revision: Option<String>,
    /// Version it is known to run.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    pub firmware_version: Option<String>,
    /// Groups it belongs to.
    #[serde(default)]
    #[schema(max_items = 32)]
    pub groups: Vec<String>,
    /// Free key–value pairs.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The ring it is pinned to, instead of its bucket's.
    #[serde(default)]
    pub ring: Option<Ring>,
}

/// What may be changed of a registration. What is left out stays as it is, `null` clears.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceChange {
    /// The path's, if at all.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = DeviceId)]
    pub device_id: Option<DeviceId>,
    /// Kind of device.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 128)]
    pub device_type: Option<Option<String>>,
    /// Model; decides which firmware fits.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = String, min_length = 1, max_length = 128)]
    pub device_model: Option<String>,
    /// Maker.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 128)]
    pub manufacturer: Option<Option<String>>,
    /// Hardware revision.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 128)]
    pub hw_revision: Option<Option<String>>,
    /// Version it is known to run.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 128)]
    pub firmware_version: Option<Option<String>>,
    /// Groups it belongs to, all of them.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Vec<String>>, max_items = 32)]
    pub groups: Option<Option<Vec<String>>>,
    /// Free key–value pairs, all of them.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub tags: Option<Option<BTreeMap<String, String>>>,
    /// The ring it is pinned to.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Ring>)]
    pub ring: Option<Option<Ring>>,
}

/// The service's own user in `mosquitto.acl`, and, with more behind it, how its client ids at a broker begin.
const OWN_NAME: &str = "device-ota";

/// Whether a name is the service's own at an MQTT broker, where a device of that name would be taken for it.
///
/// ```
/// use device_ota_domain::device::is_services_own;
///
/// assert!(is_services_own("device-ota") && is_services_own("device-ota-7f-up"));
/// assert!(!is_services_own("device-otas") && !is_services_own("my-device-ota"));
/// ```
pub fn is_services_own(name: &str) -> bool {
    let rest = name.strip_prefix(OWN_NAME);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Why a registration was refused; names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// A required text is empty.
    #[error("{0} must not be empty")]
    Empty(&'static str),
    /// A text is over [`MAX_TEXT_BYTES`] or holds a control character.
    #[error("{0} must be at most {MAX_TEXT_BYTES} bytes without control characters")]
    Text(&'static str),
    /// A text holds something that is not seen.
    #[error(
        "{0} must hold no invisible characters (of no width, or that change the direction of writing)"
    )]
    Unseen(&'static str),
    /// The id is the service's own ([`is_services_own`], and its user at the broker).
    #[error(
        "device_id {0} is a name that the service itself has at an MQTT broker; give the device another"
    )]
    Reserved(DeviceId),
    /// Too many groups or tags.
    #[error("{0} has too many entries, at most {1}")]
    Many(&'static str, usize),
}

impl Registration {
    /// What is registered after a change, not checked; lists that are cleared are empty. Its identity stays.
    #[must_use]
    pub fn change(mut self, change: DeviceChange) -> Self {
        set(&mut self.device_type, change.device_type);
        set(&mut self.device_model, change.device_model);
        set(&mut self.manufacturer, change.manufacturer);
        set(&mut self.hw_revision, change.hw_revision);
        set(&mut self.firmware_version, change.firmware_version);
        set(
            &mut self.groups,
            change.groups.map(Option::unwrap_or_default),
        );
        set(&mut self.tags, change.tags.map(Option::unwrap_or_default));
        set(&mut self.ring, change.ring);
        self
    }

    /// Checks the bounds on every text and list.
    pub fn check(&self) -> Result<(), RegistrationError> {
        let optional =
            |name, text: &Option<String>| text.as_deref().map_or(Ok(()), |t| text_ok(name, t));
        text_ok("device_model", &self.device_model)?;
        optional("device_type", &self.device_type)?;
        optional("manufacturer", &self.manufacturer)?;
        optional("hw_revision", &self.hw_revision)?;
        optional("firmware_version", &self.firmware_version)?;
        if self.groups.len() > MAX_GROUPS {
            return Err(RegistrationError::Many("groups", MAX_GROUPS));
        }
        if self.tags.len() > MAX_TAGS {
            return Err(RegistrationError::Many("tags", MAX_TAGS));
        }
        self.groups
            .iter()
            .try_for_each(|group| text_ok("groups", group))?;
        self.tags.iter().try_for_each(|(key, value)| {
            text_ok("tags", key)?;
            // No name: what is joined by something invisible, such as emoji, may stand in it.
            let fits = value.len() <= MAX_TEXT_BYTES && !value.chars().any(char::is_control);
            fits.then_some(()).ok_or(RegistrationError::Text("tags"))
        })
    }
}

/// A name: 1 to [`MAX_TEXT_BYTES`] bytes, all of which [show](shows).
pub fn text_ok(field: &'static str, text: &str) -> Result<(), RegistrationError> {
    if text.is_empty() {
        Err(RegistrationError::Empty(field))
    } else if text.len() > MAX_TEXT_BYTES || text.chars().any(char::is_control) {
        Err(RegistrationError::Text(field))
    } else if !shows(text) {
        Err(RegistrationError::Unseen(field))
    } else {
        Ok(())
    }
}

/// A device as the registry knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// The registry's number.
    pub key: DeviceKey,
    /// What was registered.
    pub registration: Registration,
    /// Place on the wheel (see [`crate::ring`]).
    pub bucket: u16,
    /// Rises with each change of what is registered, and with each registration under its id.
    pub revision: i64,
    /// When it was registered.
    pub registered_at: Timestamp,
    /// How it was when last heard.
    pub latest: Latest,
}

/// An error that a device told of, in its own vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastError {
    /// Which one.
    pub code: String,
    /// Words for people.
    pub message: Option<String>,
    /// When the device saw it, or else when the service heard of it.
    pub at: Timestamp,
}

impl Device {
    /// The version it runs: what it last said, else as registered.
    pub fn running(&self) -> Option<&str> {
        let registered = self.registration.firmware_version.as_deref();
        self.latest.version.as_deref().or(registered)
    }
}

/// How a device was when last heard; what it never said is `None`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Latest {
    /// A session is open (or, with an external broker, it has not said good-bye).
    pub online: bool,
    /// Any message.
    pub last_seen: Option<Timestamp>,
    /// Running version.
    pub version: Option<String>,
    /// Running slot, `a` or `b`.
    pub slot: Option<String>,
    /// The running image passed its own health check.
    pub confirmed: Option<bool>,
    /// Battery, 0–100.
    pub battery_percent: Option<f64>,
    /// The battery is being charged.
    pub charging: Option<bool>,
    /// Free bytes for an image.
    pub free_storage_bytes: Option<i64>,
    /// Errors that its last heartbeat told of, repeats counted.
    pub error_count: i64,
    /// The last error it told of, however long ago.
    pub last_error: Option<LastError>,
    /// Numbers of its own choosing, as last sent.
    pub metrics: BTreeMap<String, f64>,
    /// Lowest `security_version` it still takes.
    pub security_floor: Option<i64>,
    /// The model it says it is; an offer waits when that is not the registered one.
    pub reported_model: Option<String>,
}
