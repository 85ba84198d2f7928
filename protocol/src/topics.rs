//! Topics: one type that both builds and parses every topic of the protocol, and the access rule
//! that says which of them a device may use. Nothing here panics on any string.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::ids::DeviceId;
use crate::wire::wire_enum;

/// Longest prefix, in bytes: with a device id and the longest tail a topic stays below 256.
pub const MAX_PREFIX: usize = 128;

wire_enum! {
    /// What a device publishes.
    pub enum Up {
        /// Telemetry.
        Heartbeat = "heartbeat",
        /// "Anything for me?"
        Check = "check",
        /// Progress of one update.
        Progress = "progress",
        /// A request for bytes of an image.
        Chunk = "chunk",
        /// Online or not; also the Last Will.
        Status = "status",
    }
}

/// What the service publishes to one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Down {
    /// A signed update or rollback.
    Offer,
    /// A signed command.
    Command,
    /// The answer to a check.
    Reply,
    /// Raw bytes of an image, from `offset`, for the device's chunk request number `request`.
    Chunk {
        /// The number the device gave its request.
        request: u32,
        /// First byte of these in the image.
        offset: u64,
    },
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offer => f.write_str("offer"),
            Self::Command => f.write_str("command"),
            Self::Reply => f.write_str("reply"),
            Self::Chunk { request, offset } => write!(f, "chunk/{request}/{offset}"),
        }
    }
}

/// A topic of the protocol, without its prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// From a device.
    Up(DeviceId, Up),
    /// To a device.
    Down(DeviceId, Down),
}

/// Why a string is not a topic of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// It does not start with the prefix.
    #[error("outside the topic prefix")]
    ForeignPrefix,
    /// The level of the device does not hold a device id.
    #[error("no valid device id in the topic")]
    BadDeviceId,
    /// Below the device stands something this version does not know.
    #[error("unknown channel in the topic")]
    UnknownChannel,
    /// A chunk topic without its two plain decimal numbers.
    #[error("bad number in the topic")]
    BadNumber,
}

/// A string that cannot be a topic prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a topic prefix is one or more levels of A-Z a-z 0-9 _ . - joined by '/', at most {MAX_PREFIX} bytes"
)]
pub struct InvalidPrefix;

/// The levels that stand before every device: `ota/v1` unless configured otherwise.
///
/// ```
/// use device_ota_protocol::ids::DeviceId;
/// use device_ota_protocol::topics::{Down, Prefix, Topic, TopicError, Up};
///
/// let prefix = Prefix::default();
/// let id: DeviceId = "frame-1".parse()?;
///
/// // Builds …
/// assert_eq!(prefix.up(&id, Up::Heartbeat), "ota/v1/frame-1/up/heartbeat");
/// assert_eq!(prefix.down(&id, &Down::Offer), "ota/v1/frame-1/down/offer");
/// let chunk = Down::Chunk { request: 17, offset: 32768 };
/// assert_eq!(prefix.down(&id, &chunk), "ota/v1/frame-1/down/chunk/17/32768");
///
/// // … and parses the same.
/// assert_eq!(
///     prefix.parse("ota/v1/frame-1/down/chunk/17/32768"),
///     Ok(Topic::Down(id.clone(), chunk))
/// );
/// assert_eq!(prefix.parse("ota/v2/frame-1/up/check"), Err(TopicError::ForeignPrefix));
/// assert_eq!(prefix.parse("ota/v1/$SYS/up/check"), Err(TopicError::BadDeviceId));
/// assert_eq!(prefix.parse("ota/v1/frame-1/up/nope"), Err(TopicError::UnknownChannel));
/// assert_eq!(prefix.parse("ota/v1/frame-1/down/chunk/017/+5"), Err(TopicError::BadNumber));
///
/// // A device owns two trees and nothing else.
/// assert!(prefix.may_publish(&id, "ota/v1/frame-1/up/progress"));
/// assert!(!prefix.may_publish(&id, "ota/v1/frame-2/up/progress"));
/// assert!(!prefix.may_publish(&id, "ota/v1/frame-1/down/offer"));
/// assert!(prefix.may_subscribe(&id, "ota/v1/frame-1/down/#"));
/// assert!(prefix.may_subscribe(&id, "ota/v1/frame-1/down/chunk/+/+"));
/// assert!(!prefix.may_subscribe(&id, "ota/v1/+/down/#"));
/// assert!(!prefix.may_subscribe(&id, "#"));
///
/// // What a service subscribes to.
/// assert_eq!(prefix.any_up(Up::Heartbeat), "ota/v1/+/up/heartbeat");
/// # Ok::<(), device_ota_protocol::ids::InvalidDeviceId>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prefix(Arc<str>);

impl Default for Prefix {
    fn default() -> Self {
        Self("ota/v1".into())
    }
}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        let plain = |level: &str| {
            !level.is_empty()
                && level
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        if text.len() <= MAX_PREFIX && text.split('/').all(plain) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidPrefix)
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Prefix {
    /// The prefix as text, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full topic.
    pub fn format(&self, topic: &Topic) -> String {
        match topic {
            Topic::Up(id, up) => self.up(id, *up),
            Topic::Down(id, down) => self.down(id, down),
        }
    }

    /// A topic of a device's `up/` tree.
    pub fn up(&self, id: &DeviceId, up: Up) -> String {
        format!("{self}/{id}/up/{up}")
    }

    /// A topic of a device's `down/` tree.
    pub fn down(&self, id: &DeviceId, down: &Down) -> String {
        format!("{self}/{id}/down/{down}")
    }

    /// The filter of everything one device says.
    pub fn up_all(&self, id: &DeviceId) -> String {
        format!("{self}/{id}/up/#")
    }

    /// The filter of everything said to one device: what a device subscribes to.
    pub fn down_all(&self, id: &DeviceId) -> String {
        format!("{self}/{id}/down/#")
    }

    /// The filter of one kind of report from every device.
    pub fn any_up(&self, up: Up) -> String {
        format!("{self}/+/up/{up}")
    }

    /// Reads a full topic back.
    pub fn parse(&self, topic: &str) -> Result<Topic, TopicError> {
        let (id, tail) = self.split(topic)?;
        let id: DeviceId = id.parse().map_err(|_| TopicError::BadDeviceId)?;
        if let Some(up) = tail.strip_prefix("up/") {
            let up = Up::parse(up).ok_or(TopicError::UnknownChannel)?;
            return Ok(Topic::Up(id, up));
        }
        let down = tail
            .strip_prefix("down/")
            .ok_or(TopicError::UnknownChannel)?;
        Ok(Topic::Down(id, parse_down(down)?))
    }

    /// Whether the access rule lets a device publish to `topic`: anything below its own `up/`.
    pub fn may_publish(&self, id: &DeviceId, topic: &str) -> bool {
        !topic.contains(['+', '#', '\0'])
            && matches!(self.split(topic), Ok((owner, tail))
                if owner == id.as_str() && tail.strip_prefix("up/").is_some_and(|t| !t.is_empty()))
    }

    /// Whether the access rule lets a device subscribe to `filter`: only a filter all of whose
    /// matches lie below its own `down/`.
    pub fn may_subscribe(&self, id: &DeviceId, filter: &str) -> bool {
        is_valid_filter(filter)
            && matches!(self.split(filter), Ok((owner, tail))
                if owner == id.as_str() && tail.strip_prefix("down/").is_some_and(|t| !t.is_empty()))
    }

    /// The device's level and what stands below it.
    fn split<'t>(&self, topic: &'t str) -> Result<(&'t str, &'t str), TopicError> {
        let below = topic
            .strip_prefix(self.as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or(TopicError::ForeignPrefix)?;
        below.split_once('/').ok_or(TopicError::UnknownChannel)
    }
}

fn parse_down(tail: &str) -> Result<Down, TopicError> {
    match tail {
        "offer" => return Ok(Down::Offer),
        "command" => return Ok(Down::Command),
        "reply" => return Ok(Down::Reply),
        _ => {}
    }
    let numbers = tail
        .strip_prefix("chunk/")
        .ok_or(TopicError::UnknownChannel)?;
    let (request, offset) = numbers.split_once('/').ok_or(TopicError::BadNumber)?;
    Ok(Down::Chunk {
        request: plain_number(request)?,
        offset: plain_number(offset)?,
    })
}

/// A number in its one canonical spelling: digits only, no sign, no leading zero.
fn plain_number<N: FromStr>(text: &str) -> Result<N, TopicError> {
    let canonical =
        text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if !canonical {
        return Err(TopicError::BadNumber);
    }
    text.parse().map_err(|_| TopicError::BadNumber)
}

/// Whether `filter` is a topic filter as MQTT 3.1.1 (section 4.7) has it.
///
/// ```
/// use device_ota_protocol::topics::is_valid_filter;
///
/// assert!(is_valid_filter("a/+/b/#"));
/// assert!(!is_valid_filter("a/#/b"));
/// assert!(!is_valid_filter("a/b+"));
/// assert!(!is_valid_filter(""));
/// ```
pub fn is_valid_filter(filter: &str) -> bool {
    let mut levels = filter.split('/').peekable();
    if filter.is_empty() || filter.contains('\0') {
        return false;
    }
    while let Some(level) = levels.next() {
        let valid = match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            _ => !level.contains(['+', '#']),
        };
        if !valid {
            return false;
        }
    }
    true
}

/// Whether a topic lies in a filter, as MQTT 3.1.1 (section 4.7) has it. Safe on any two strings.
///
/// ```
/// use device_ota_protocol::topics::filter_matches;
///
/// assert!(filter_matches("a/+/c", "a/b/c"));
/// assert!(filter_matches("a/#", "a"));
/// assert!(filter_matches("a/#", "a/b/c"));
/// assert!(!filter_matches("a/+", "a/b/c"));
/// assert!(!filter_matches("#", "$SYS/broker"));
/// assert!(!filter_matches("é", "e"));
/// ```
pub fn filter_matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut topic_levels = topic.split('/');
    for level in filter.split('/') {
        match (level, topic_levels.next()) {
            ("#", _) | ("+", Some(_)) => {
                if level == "#" {
                    return true;
                }
            }
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    topic_levels.next().is_none()
}
