//! Names of things, as types that cannot hold a malformed one.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, ObjectBuilder, Schema, Type};

/// Longest id that any kind accepts, in bytes; bounds keys in the database and topics on the wire.
pub const MAX_ID_BYTES: usize = 64;

/// Why a text is no id of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: {rule}")]
pub struct IdError {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

/// How the API's document describes an id.
fn id_schema(rule: &str, pattern: &str, example: &str) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(rule))
        .pattern(Some(pattern))
        .examples([example])
        .build()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path, $rule:literal, $pattern:literal, $example:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                RefOr::T(Schema::Object(id_schema($rule, $pattern, $example)))
            }
        }

        impl utoipa::ToSchema for $name {}

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if $check(text) {
                    Ok(Self(text.into()))
                } else {
                    let shown = text.chars().take(MAX_ID_BYTES).collect();
                    Err(IdError { kind: $kind, text: shown, rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A device's identity; opaque and case-sensitive (PROTOCOL.md, *Identity*).
    DeviceId,
    "device_id",
    is_device_id,
    "it must start with a letter or digit and hold at most 64 of A-Z a-z 0-9 _ . : -",
    "^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$",
    "device_001"
);
id!(
    /// `SHA256(name:version:device_model)`, the first 32 hex digits (PRD, FR-3).
    FirmwareId,
    "firmware_id",
    is_firmware_id,
    "it is 32 lower-case hex digits",
    "^[0-9a-f]{32}$",
    "770987aca3a746dfa5bef4f8b0e59f22"
);
id!(
    /// `camp_` and 16 hex digits.
    CampaignId,
    "campaign_id",
    is_campaign_id,
    "it is camp_ and 16 lower-case hex digits",
    "^camp_[0-9a-f]{16}$",
    "camp_789abcdef0123456"
);
id!(
    /// `upd_` and 16 to 40 hex digits; names one update or one rollback of one device. Those of a campaign's
    /// rows are made from the numbers of the campaign and the device, so that making them twice makes the same ones;
    /// those of single devices are random.
    UpdateId,
    "update_id",
    is_update_id,
    "it is upd_ and 16 to 40 lower-case hex digits",
    "^upd_[0-9a-f]{16,40}$",
    "upd_456def7890123450"
);
id!(
    /// `rb_` and the digits of the update that carries it out; names an entry of the rollback log.
    RollbackId,
    "rollback_id",
    is_rollback_id,
    "it is rb_ and 16 to 40 lower-case hex digits",
    "^rb_[0-9a-f]{16,40}$",
    "rb_456def7890123450"
);

id!(
    /// `key_` and 16 hex digits; names an API key, and is no secret.
    ApiKeyId,
    "key_id",
    is_api_key_id,
    "it is key_ and 16 lower-case hex digits",
    "^key_[0-9a-f]{16}$",
    "key_0123456789abcdef"
);

id!(
    /// `wh_` and 16 hex digits.
    WebhookId,
    "webhook_id",
    is_webhook_id,
    "it is wh_ and 16 lower-case hex digits",
    "^wh_[0-9a-f]{16}$",
    "wh_0123456789abcdef"
);

impl WebhookId {
    /// The id made of eight random bytes.
    pub fn from_entropy(entropy: [u8; 8]) -> Self {
        Self(prefixed("wh_", entropy))
    }
}

impl ApiKeyId {
    /// The id made of eight random bytes.
    pub fn from_entropy(entropy: [u8; 8]) -> Self {
        Self(prefixed("key_", entropy))
    }
}

impl CampaignId {
    /// The id made of eight random bytes.
    pub fn from_entropy(entropy: [u8; 8]) -> Self {
        Self(prefixed("camp_", entropy))
    }
}

impl UpdateId {
    /// The id made of eight random bytes.
    pub fn from_entropy(entropy: [u8; 8]) -> Self {
        Self(prefixed("upd_", entropy))
    }
}

impl RollbackId {
    /// The rollback's entry in the log bears the same digits as the update that carries it out.
    pub fn of(update: &UpdateId) -> Self {
        let digits = update.as_str().trim_start_matches("upd_");
        Self(format!("rb_{digits}").into())
    }
}

impl FirmwareId {
    /// The deterministic id of an image (PRD, FR-3).
    ///
    /// ```
    /// # use device_ota_domain::FirmwareId;
    /// let id = FirmwareId::of("Smart Frame Firmware", "2.1.0", "SF-100");
    /// assert_eq!(id.as_str().len(), 32);
    /// assert_eq!(id, FirmwareId::of("Smart Frame Firmware", "2.1.0", "SF-100"));
    /// ```
    pub fn of(name: &str, version: &str, device_model: &str) -> Self {
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(format!("{name}:{version}:{device_model}"));
        Self(hex(digest.iter().take(16)).into())
    }
}

fn prefixed(prefix: &str, entropy: [u8; 8]) -> Arc<str> {
    format!("{prefix}{}", hex(entropy.iter())).into()
}

fn hex<'a>(bytes: impl Iterator<Item = &'a u8>) -> String {
    use fmt::Write as _;
    bytes.fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn is_device_id(text: &str) -> bool {
    let tail_ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-');
    text.len() <= MAX_ID_BYTES
        && text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(tail_ok)
}

fn is_hex(text: &str, digits: RangeInclusive<usize>) -> bool {
    digits.contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_firmware_id(text: &str) -> bool {
    is_hex(text, 32..=32)
}

fn is_campaign_id(text: &str) -> bool {
    text.strip_prefix("camp_")
        .is_some_and(|d| is_hex(d, 16..=16))
}

fn is_api_key_id(text: &str) -> bool {
    text.strip_prefix("key_")
        .is_some_and(|d| is_hex(d, 16..=16))
}

fn is_webhook_id(text: &str) -> bool {
    text.strip_prefix("wh_").is_some_and(|d| is_hex(d, 16..=16))
}

fn is_update_id(text: &str) -> bool {
    text.strip_prefix("upd_")
        .is_some_and(|d| is_hex(d, 16..=40))
}

fn is_rollback_id(text: &str) -> bool {
    text.strip_prefix("rb_").is_some_and(|d| is_hex(d, 16..=40))
}
