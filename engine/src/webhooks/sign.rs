//! How requests are signed: HMAC-SHA256 over id, time and body, with the secret that the receiver has too.

use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;

/// Every secret begins so.
const PREFIX: &str = "whsec_";
/// Bytes of a secret, as the specification wants it.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A secret, as it is shown and kept: `whsec_` and Base64.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret {
    text: String,
    key: Vec<u8>,
}

/// A text that is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be {PREFIX} and the Base64 of {} to {} bytes", SECRET_BYTES.start(), SECRET_BYTES.end())]
pub(super) struct NotASecret;

impl Secret {
    /// Made of these bytes.
    pub(super) fn of(key: &[u8]) -> Self {
        Self {
            text: format!("{PREFIX}{}", BASE64.encode(key)),
            key: key.to_vec(),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// `webhook-signature` of a request.
    pub(super) fn sign(&self, id: &str, at: Timestamp, body: &str) -> String {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(format!("{id}.{}.{body}", at.as_second()).as_bytes());
        format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        secret.text
    }
}

impl FromStr for Secret {
    type Err = NotASecret;

    fn from_str(text: &str) -> Result<Self, NotASecret> {
        let encoded = text.strip_prefix(PREFIX).ok_or(NotASecret)?;
        let key = BASE64.decode(encoded).map_err(|_| NotASecret)?;
        if !SECRET_BYTES.contains(&key.len()) {
            return Err(NotASecret);
        }
        Ok(Self {
            text: text.to_owned(),
            key,
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_signed_as_the_specification_shows() {
        // The example of the specification's own libraries.
        let Ok(secret) = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse::<Secret>() else {
            panic!("it is a secret")
        };
        let at = Timestamp::from_second(1_614_265_330).unwrap();
        let signature = secret.sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            at,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        let made = Secret::of(&[7; 32]);
        assert!(made.as_str().parse() == Ok(made));
        for wrong in [
            "",
            "whsec_",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_AAAA",
            "whsec_%",
        ] {
            assert!(wrong.parse::<Secret>().is_err(), "{wrong}");
        }
    }
}
