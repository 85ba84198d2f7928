//! The audit trail: who changed what, and how they were known, each entry written with the change that it tells of (ADR 9).
//!
//! [`Act`] is the closed list of what is recorded, [`Entry`] is one act before it has its place, [`Record`] is an entry in
//! the chain, and [`Chain`] tells whether records are all there and as they were written.
//!
//! # How to add an act
//! A line in `acts!`, named `<entity>.<what>`, and the entry beside the change, in its transaction. A test of the API calls
//! every route that changes something and asks for its record.

mod acts;
mod chain;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::identity::{Roles, SERVICE_SUBJECT};
use crate::ids::ApiKeyId;

pub use acts::{Act, Entity};
pub use chain::{Break, Chain, Head, Record};

/// Longest member of a state that is kept as it is, in bytes of JSON: a list of a million devices is known by its hash.
pub const MAX_MEMBER_BYTES: usize = 16 * 1024;

/// How somebody proved who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// The admin key of the data folder.
    AdminKey,
    /// An API key.
    ApiKey(ApiKeyId),
    /// A token signed by a key that is known here.
    Token,
    /// A credential that the Auth Service knows.
    AuthService,
    /// `X-Internal-Call` on the internal listener.
    InternalCall,
    /// What another service told of over NATS.
    Event,
    /// The command line, which reads the database by itself.
    CommandLine,
    /// Nobody asked: the service by itself.
    Service,
}

impl fmt::Display for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AdminKey => f.write_str("admin_key"),
            Self::ApiKey(key) => write!(f, "api_key:{key}"),
            Self::Token => f.write_str("token"),
            Self::AuthService => f.write_str("auth_service"),
            Self::InternalCall => f.write_str("internal_call"),
            Self::Event => f.write_str("event"),
            Self::CommandLine => f.write_str("command_line"),
            Self::Service => f.write_str("service"),
        }
    }
}

/// Who did it, how they were known, and in which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// As all records show who it was.
    pub subject: Arc<str>,
    /// What they might do at the time.
    pub roles: Roles,
    /// How they were known.
    pub authentication: Authentication,
    /// The request; empty where there was none.
    pub request_id: Arc<str>,
    /// Where the request came from.
    pub peer: Option<IpAddr>,
}

impl Actor {
    /// The service itself, where nobody asked.
    pub fn service() -> Self {
        Self {
            subject: SERVICE_SUBJECT.into(),
            roles: Roles::ADMIN,
            authentication: Authentication::Service,
            request_id: "".into(),
            peer: None,
        }
    }
}

/// One act, before it has its place in the chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// What.
    pub act: Act,
    /// To what.
    pub entity_id: String,
    /// How it was: what the act changed of it. Nothing for what is new.
    pub before: Option<Value>,
    /// How it is now: what the act changed of it. Nothing for what is gone.
    pub after: Option<Value>,
}

impl Entry {
    /// An act and the states around it, of which the members that stayed the same are left out, and what is too long is
    /// replaced by its size and hash. States never hold a secret or a verifier.
    pub fn new(
        actor: &Actor,
        at: Timestamp,
        act: Act,
        entity_id: impl fmt::Display,
        (before, after): (Option<Value>, Option<Value>),
    ) -> Self {
        let (before, after) = differences(before, after);
        Self {
            at,
            actor: actor.clone(),
            act,
            entity_id: entity_id.to_string(),
            before: before.map(bounded),
            after: after.map(bounded),
        }
    }
}

/// Leaves out what two objects have in common.
fn differences(before: Option<Value>, after: Option<Value>) -> (Option<Value>, Option<Value>) {
    match (before, after) {
        (Some(Value::Object(mut before)), Some(Value::Object(mut after))) => {
            after.retain(|name, value| {
                let same = before.get(name) == Some(value);
                if same {
                    before.remove(name);
                }
                !same
            });
            (Some(before.into()), Some(after.into()))
        }
        others => others,
    }
}

/// Replaces what is too long to be kept by what it can be known by.
fn bounded(state: Value) -> Value {
    let Value::Object(members) = state else {
        return state;
    };
    let bound = |(name, value): (String, Value)| {
        let text = value.to_string();
        if text.len() <= MAX_MEMBER_BYTES {
            return (name, value);
        }
        let sha256 = hex::encode(Sha256::digest(&text));
        (name, json!({ "bytes": text.len(), "sha256": sha256 }))
    };
    Value::Object(members.into_iter().map(bound).collect::<Map<_, _>>())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn entry(before: Value, after: Value) -> Entry {
        let states = (Some(before), Some(after));
        Entry::new(
            &Actor::service(),
            Timestamp::UNIX_EPOCH,
            Act::CampaignPaused,
            "c",
            states,
        )
    }

    #[test]
    fn what_stayed_the_same_is_left_out() {
        let entry = entry(
            json!({"name": "n", "status": "in_progress", "gone": 1}),
            json!({"name": "n", "status": "paused", "new": null}),
        );
        assert_eq!(
            entry.before.unwrap(),
            json!({"status": "in_progress", "gone": 1})
        );
        assert_eq!(
            entry.after.unwrap(),
            json!({"status": "paused", "new": null})
        );
    }

    #[test]
    fn what_is_too_long_is_known_by_its_hash() {
        let long = "x".repeat(MAX_MEMBER_BYTES);
        let fits = "x".repeat(MAX_MEMBER_BYTES - 2);
        let entry = entry(json!({}), json!({"long": long, "fits": fits}));
        let after = entry.after.unwrap();
        let of = |pointer| after.pointer(pointer).unwrap();
        assert_eq!(*of("/fits"), fits);
        assert_eq!(*of("/long/bytes"), MAX_MEMBER_BYTES + 2);
        assert_eq!(of("/long/sha256").as_str().unwrap().len(), 64);
    }
}
