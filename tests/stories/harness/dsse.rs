//! The verifying half as a stranger would write it from the protocol document: DSSE, Ed25519, roles. On purpose it
//! shares nothing with the service's own code.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A root's keys and roles: what a device is born with.
pub struct Trust {
    keys: BTreeMap<String, VerifyingKey>,
    roles: BTreeMap<String, (BTreeSet<String>, u64)>,
}

impl Trust {
    /// Reads a root envelope, which must be signed by its own root role.
    pub fn from_root(envelope: &Value) -> Self {
        let root: Value = serde_json::from_slice(&payload(envelope)).unwrap();
        let mut keys = BTreeMap::new();
        for (id, key) in root["keys"].as_object().unwrap() {
            assert_eq!(key["type"], "ed25519");
            let raw: [u8; 32] = unhex(key["public"].as_str().unwrap()).try_into().unwrap();
            assert_eq!(
                *id,
                hex::encode(Sha256::digest(raw)),
                "a key id is the SHA-256 of the raw key"
            );
            keys.insert(id.clone(), VerifyingKey::from_bytes(&raw).unwrap());
        }
        let mut roles = BTreeMap::new();
        for name in ["root", "release", "dispatch"] {
            let role = &root["roles"][name];
            let ids = role["keys"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| id.as_str().unwrap().to_owned());
            roles.insert(
                name.to_owned(),
                (ids.collect(), role["threshold"].as_u64().unwrap()),
            );
        }
        let trust = Self { keys, roles };
        trust.open(envelope, "root", "root");
        trust
    }

    /// The payload of an envelope, which must be of the kind and signed by enough keys of the role.
    pub fn open(&self, envelope: &Value, kind: &str, role: &str) -> Value {
        self.verify(envelope, kind, role)
            .unwrap_or_else(|why| panic!("{kind}: {why} in {envelope:#}"))
    }

    /// As `open`, saying why not.
    pub fn verify(&self, envelope: &Value, kind: &str, role: &str) -> Result<Value, &'static str> {
        let payload_type = envelope["payloadType"].as_str().ok_or("no payload type")?;
        if payload_type != format!("application/vnd.device-ota.{kind}.v1+json") {
            return Err("another payload type");
        }
        let body = payload(envelope);
        let signed = pae(payload_type, &body);
        let (ids, threshold) = self.roles.get(role).ok_or("no such role")?;
        let mut good = BTreeSet::new();
        for signature in envelope["signatures"].as_array().ok_or("no signatures")? {
            let bytes = STANDARD
                .decode(signature["sig"].as_str().ok_or("no signature")?)
                .map_err(|_| "not base64")?;
            let signature = Signature::from_slice(&bytes).map_err(|_| "not a signature")?;
            let by = ids.iter().find(|id| {
                self.keys
                    .get(*id)
                    .is_some_and(|key| key.verify_strict(&signed, &signature).is_ok())
            });
            good.extend(by);
        }
        if (good.len() as u64) < *threshold {
            return Err("not signed by enough keys of the role");
        }
        serde_json::from_slice(&body).map_err(|_| "the payload is not JSON")
    }
}

/// An envelope's payload, not verified.
pub fn payload(envelope: &Value) -> Vec<u8> {
    STANDARD
        .decode(envelope["payload"].as_str().unwrap())
        .unwrap()
}

/// What is signed: DSSE v1's pre-authentication encoding.
fn pae(payload_type: &str, body: &[u8]) -> Vec<u8> {
    let mut signed = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        body.len()
    )
    .into_bytes();
    signed.extend_from_slice(body);
    signed
}

fn unhex(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

#[test]
fn the_encoding_is_that_of_the_specification() {
    assert_eq!(
        pae("http://example.com/HelloWorld", b"hello world"),
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    );
}
