//! Unsigned messages: what devices report and what the service answers. Reading one checks every
//! bound; a message that was read is valid, and one that is not names its reason.

mod check;
mod down;
mod heartbeat;
mod progress;

pub use check::{Check, CheckReason, ChunkRequest, MAX_CHUNK_COUNT, MAX_CHUNK_LENGTH, Status};
pub use down::{Offer, Reply};
pub use heartbeat::{
    Battery, Heartbeat, Location, MAX_ACCEPTS, MAX_ERRORS, MAX_METRICS, Network, SeenError, Space,
};
pub use progress::{ErrorCode, Phase, Progress, ReportedError, Retry};

use serde::de::DeserializeOwned;

use crate::topics::Up;
use crate::wire::MAX_INTEGER;

/// Largest JSON payload on any topic, in bytes.
pub const MAX_PAYLOAD: usize = 16 * 1024;
/// Longest identity string (a version, a model, a nonce …), in characters.
pub const MAX_NAME: usize = 128;
/// Longest text for people (an error message), in characters.
pub const MAX_TEXT: usize = 1024;

/// Why a message is dropped. [`Invalid::reason`] is the label it is counted under.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Beyond [`MAX_PAYLOAD`].
    #[error("payload of {size} bytes, more than {MAX_PAYLOAD}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// Not UTF-8 text.
    #[error("payload is not utf-8")]
    NotUtf8,
    /// Not a JSON document.
    #[error("payload is not json: {0}")]
    NotJson(String),
    /// A required field is absent.
    #[error("{0}")]
    MissingField(String),
    /// A field holds another kind of value than it should.
    #[error("{0}")]
    WrongType(String),
    /// A field holds a value outside its bounds.
    #[error("`{0}` is out of range")]
    OutOfRange(&'static str),
    /// The fields do not fit each other.
    #[error("{0}")]
    Inconsistent(&'static str),
}

impl Invalid {
    /// A short stable label, fit for a counter.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::NotUtf8 => "not_utf8",
            Self::NotJson(_) => "not_json",
            Self::MissingField(_) => "missing_field",
            Self::WrongType(_) => "wrong_type",
            Self::OutOfRange(_) => "out_of_range",
            Self::Inconsistent(_) => "inconsistent",
        }
    }
}

/// A valid report of a device.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// Telemetry.
    Heartbeat(Box<Heartbeat>),
    /// "Anything for me?"
    Check(Check),
    /// Progress of one update.
    Progress(Progress),
    /// A request for bytes of an image.
    Chunk(ChunkRequest),
    /// Online or not.
    Status(Status),
}

/// Reads what a device published on one of its `up/` topics. Unknown fields are ignored.
///
/// ```
/// use device_ota_protocol::messages::{Report, parse_report};
/// use device_ota_protocol::topics::Up;
///
/// let report = parse_report(Up::Check, br#"{"version":"2.0.0","nonce":"5f","new":true}"#)?;
/// assert!(matches!(report, Report::Check(check) if check.version == "2.0.0"));
///
/// for (payload, reason) in [
///     (&b"\xff"[..], "not_utf8"),
///     (b"{", "not_json"),
///     (b"{}", "missing_field"),
///     (br#"{"version":7}"#, "wrong_type"),
///     (br#"{"version":"1.0.0","battery":{"percent":101}}"#, "out_of_range"),
/// ] {
///     let invalid = parse_report(Up::Heartbeat, payload).err().map(|e| e.reason());
///     assert_eq!(invalid, Some(reason));
/// }
/// # Ok::<(), device_ota_protocol::messages::Invalid>(())
/// ```
pub fn parse_report(up: Up, payload: &[u8]) -> Result<Report, Invalid> {
    match up {
        Up::Heartbeat => Heartbeat::parse(payload).map(|report| Report::Heartbeat(report.into())),
        Up::Check => Check::parse(payload).map(Report::Check),
        Up::Progress => Progress::parse(payload).map(Report::Progress),
        Up::Chunk => ChunkRequest::parse(payload).map(Report::Chunk),
        Up::Status => Status::parse(payload).map(Report::Status),
    }
}

/// Gives each message `parse`, which checks its bounds, and `to_bytes`.
macro_rules! message {
    ($name:ident) => {
        impl $name {
            /// Reads and checks a payload.
            pub fn parse(payload: &[u8]) -> Result<Self, $crate::messages::Invalid> {
                let message: Self = $crate::messages::read(payload)?;
                message.validate()?;
                Ok(message)
            }

            /// The payload to publish.
            pub fn to_bytes(&self) -> Vec<u8> {
                $crate::wire::encode(self)
            }
        }
    };
}
use message;

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Invalid> {
    if payload.len() > MAX_PAYLOAD {
        return Err(Invalid::TooLarge {
            size: payload.len(),
        });
    }
    let text = std::str::from_utf8(payload).map_err(|_| Invalid::NotUtf8)?;
    serde_json::from_str(text).map_err(|error| classify(&error))
}

/// Serde tells a missing field, a value out of its type's range and a wrong type apart in its text
/// alone; a test pins the words.
fn classify(error: &serde_json::Error) -> Invalid {
    let text: String = error.to_string().chars().take(MAX_TEXT).collect();
    if !error.is_data() {
        Invalid::NotJson(text)
    } else if text.starts_with("missing field") {
        Invalid::MissingField(text)
    } else if text.starts_with("invalid value: integer") {
        Invalid::OutOfRange("an integer")
    } else {
        Invalid::WrongType(text)
    }
}

/// Checks of single values, each naming the field it refuses.
mod bounds {
    use super::{Invalid, MAX_INTEGER, MAX_NAME, MAX_TEXT};

    type Checked = Result<(), Invalid>;

    fn ensure(holds: bool, field: &'static str) -> Checked {
        if holds {
            Ok(())
        } else {
            Err(Invalid::OutOfRange(field))
        }
    }

    /// A name: 1 to [`MAX_NAME`] characters, none of them a control character.
    pub(super) fn name(field: &'static str, text: &str) -> Checked {
        let length = text.chars().take(MAX_NAME + 1).count();
        let plain = !text.chars().any(char::is_control);
        ensure(plain && (1..=MAX_NAME).contains(&length), field)
    }

    pub(super) fn names<'t>(
        fields: impl IntoIterator<Item = (&'static str, &'t Option<String>)>,
    ) -> Checked {
        for (field, value) in fields {
            if let Some(text) = value {
                name(field, text)?;
            }
        }
        Ok(())
    }

    pub(super) fn text(field: &'static str, text: &str) -> Checked {
        ensure(text.chars().take(MAX_TEXT + 1).count() <= MAX_TEXT, field)
    }

    pub(super) fn integers(
        fields: impl IntoIterator<Item = (&'static str, Option<u64>)>,
    ) -> Checked {
        for (field, value) in fields {
            ensure(value.is_none_or(|n| n <= MAX_INTEGER), field)?;
        }
        Ok(())
    }

    pub(super) fn number(
        field: &'static str,
        value: Option<f64>,
        range: std::ops::RangeInclusive<f64>,
    ) -> Checked {
        ensure(value.is_none_or(|n| range.contains(&n)), field)
    }

    pub(super) fn count(field: &'static str, count: usize, most: usize) -> Checked {
        ensure(count <= most, field)
    }

    pub(super) fn within(
        field: &'static str,
        value: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Checked {
        ensure(range.contains(&value), field)
    }
}
