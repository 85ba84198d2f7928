//! The one envelope for everything signed: DSSE v1 with Ed25519. Receivers verify first and then
//! parse *the same bytes* that were verified.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::keys::{Keypair, PublicKey};
use crate::wire::StrVisitor;

/// Largest envelope as JSON, in bytes: it must fit the smallest device's receive buffer.
pub const MAX_ENVELOPE: usize = 16 * 1024;
/// Most signatures in an envelope: bounds the work a forged one can cause.
pub const MAX_SIGNATURES: usize = 8;
/// Most keys a role may have: with [`MAX_SIGNATURES`] it bounds verifications an envelope.
pub const MAX_ROLE_KEYS: usize = 8;

/// A signed payload. The payload and the signatures are held decoded; in JSON they are base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// What the payload is; part of what is signed.
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// The signed bytes.
    #[serde(with = "base64_bytes")]
    pub payload: Vec<u8>,
    /// Who signed.
    pub signatures: Vec<EnvelopeSignature>,
}

/// One signature in an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvelopeSignature {
    /// Which key may have made it: a hint, never believed.
    #[serde(default)]
    pub keyid: String,
    /// The signature over the pre-authentication encoding.
    #[serde(with = "base64_bytes")]
    pub sig: Vec<u8>,
}

/// The keys of one role, and how many distinct ones must sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleKeys {
    /// Keys of the role.
    pub keys: Vec<PublicKey>,
    /// Distinct keys needed; zero is never met.
    pub threshold: usize,
}

/// Why an envelope is not to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Beyond [`MAX_ENVELOPE`].
    #[error("envelope larger than {MAX_ENVELOPE} bytes")]
    TooLarge,
    /// Not an envelope.
    #[error("not a DSSE envelope")]
    Malformed,
    /// The payload is of another type than the receiver asked for.
    #[error("payload of another type")]
    WrongType,
    /// Beyond [`MAX_SIGNATURES`].
    #[error("more than {MAX_SIGNATURES} signatures")]
    TooManySignatures,
    /// Fewer distinct keys of the role signed than its threshold asks for.
    #[error("{valid} of {threshold} signatures needed are valid")]
    BelowThreshold {
        /// Distinct keys that signed.
        valid: usize,
        /// Distinct keys needed.
        threshold: usize,
    },
}

impl Envelope {
    /// Reads an envelope from JSON. Nothing about it is verified yet.
    pub fn from_json(bytes: &[u8]) -> Result<Self, VerifyError> {
        if bytes.len() > MAX_ENVELOPE {
            return Err(VerifyError::TooLarge);
        }
        serde_json::from_slice(bytes).map_err(|_| VerifyError::Malformed)
    }

    /// The envelope as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        crate::wire::encode(self)
    }

    /// Adds one more key's signature.
    pub fn add_signature(&mut self, key: &Keypair) {
        let message = pae(&self.payload_type, &self.payload);
        self.signatures.push(EnvelopeSignature {
            keyid: key.key_id().to_string(),
            sig: key.sign(&message).to_vec(),
        });
    }
}

/// The bytes that are signed: DSSE's pre-authentication encoding.
///
/// ```
/// // The specification's own example.
/// assert_eq!(
///     device_ota_protocol::dsse::pae("http://example.com/HelloWorld", b"hello world"),
///     b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
/// );
/// ```
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    );
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// Signs `payload` with one key.
pub fn sign(payload_type: &str, payload: Vec<u8>, key: &Keypair) -> Envelope {
    let mut envelope = Envelope {
        payload_type: payload_type.to_owned(),
        payload,
        signatures: Vec::with_capacity(1),
    };
    envelope.add_signature(key);
    envelope
}

/// Verifies that enough distinct keys of a role signed an envelope of the expected type, and
/// returns the verified bytes: parse those and nothing else.
///
/// ```
/// use device_ota_protocol::dsse::{RoleKeys, VerifyError, sign, verify};
/// use device_ota_protocol::keys::Keypair;
///
/// let (one, two) = (Keypair::from_seed([1; 32]), Keypair::from_seed([2; 32]));
/// let role = RoleKeys { keys: vec![one.public(), two.public()], threshold: 2 };
/// let mut envelope = sign("text/plain", b"hello".to_vec(), &one);
///
/// // The same key twice is still one key.
/// envelope.add_signature(&one);
/// assert_eq!(
///     verify(&envelope, "text/plain", &role),
///     Err(VerifyError::BelowThreshold { valid: 1, threshold: 2 })
/// );
/// envelope.add_signature(&two);
/// assert_eq!(verify(&envelope, "text/plain", &role), Ok(b"hello".to_vec()));
/// assert_eq!(verify(&envelope, "text/html", &role), Err(VerifyError::WrongType));
/// ```
pub fn verify(
    envelope: &Envelope,
    expected_type: &str,
    role: &RoleKeys,
) -> Result<Vec<u8>, VerifyError> {
    if envelope.payload_type != expected_type {
        return Err(VerifyError::WrongType);
    }
    if envelope.payload.len() > MAX_ENVELOPE {
        return Err(VerifyError::TooLarge);
    }
    if envelope.signatures.len() > MAX_SIGNATURES {
        return Err(VerifyError::TooManySignatures);
    }
    let message = pae(expected_type, &envelope.payload);
    let valid = distinct_signers(envelope, &message, role);
    if role.threshold == 0 || valid < role.threshold {
        return Err(VerifyError::BelowThreshold {
            valid,
            threshold: role.threshold,
        });
    }
    Ok(envelope.payload.clone())
}

/// How many distinct keys of the role made a valid signature. The key that the hint names is
/// tried first; a wrong hint costs time and nothing else.
fn distinct_signers(envelope: &Envelope, message: &[u8], role: &RoleKeys) -> usize {
    let mut waiting: Vec<(String, &PublicKey)> = Vec::new();
    for key in role.keys.iter().take(MAX_ROLE_KEYS) {
        if !waiting.iter().any(|(_, other)| *other == key) {
            waiting.push((key.id().to_string(), key));
        }
    }
    let distinct = waiting.len();
    for signature in &envelope.signatures {
        let Ok(bytes) = <&[u8; 64]>::try_from(signature.sig.as_slice()) else {
            continue;
        };
        waiting.sort_by_key(|(id, _)| *id != signature.keyid);
        if let Some(signer) = waiting
            .iter()
            .position(|(_, key)| key.verify(message, bytes))
        {
            waiting.remove(signer);
        }
    }
    distinct - waiting.len()
}

/// Bytes as padded standard base64, in its one canonical spelling.
mod base64_bytes {
    use super::{Deserializer, Engine as _, STANDARD, Serializer, StrVisitor};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        from.deserialize_str(StrVisitor::new("standard base64", |text| {
            STANDARD.decode(text).ok()
        }))
    }
}
