//! Who asks for a use case: what records show, what roles allow, and which request it was.

use std::fmt;
use std::sync::Arc;

use device_ota_domain::audit::{Act, Actor, Entry};
use device_ota_domain::identity::{Role, Roles};
use jiff::Timestamp;
use serde_json::Value;

use crate::{Error, Result};

/// Somebody who asks for something. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller(Arc<Actor>);

impl Caller {
    /// A person or a service.
    pub fn new(actor: Actor) -> Self {
        Self(Arc::new(actor))
    }

    /// The service itself, where nobody asked: what the planner decides, what a deadline ends.
    pub fn service() -> Self {
        Self::new(Actor::service())
    }

    /// As records show who did it: `created_by`, `uploaded_by`, `approved_by`.
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// What the caller may do.
    pub fn roles(&self) -> Roles {
        self.0.roles
    }

    /// The request's id; empty for what the service does by itself.
    pub fn request_id(&self) -> &str {
        &self.0.request_id
    }

    /// The record of what the caller did, with the states before and after it; to be appended in the transaction of the
    /// change.
    pub(crate) fn did(
        &self,
        act: Act,
        at: Timestamp,
        entity_id: impl fmt::Display,
        states: (Option<Value>, Option<Value>),
    ) -> Entry {
        Entry::new(&self.0, at, act, entity_id, states)
    }

    /// 403, naming the role, unless the caller may do what `role` may.
    pub fn require(&self, role: Role) -> Result<()> {
        if self.roles().allow(role) {
            return Ok(());
        }
        let has = if self.roles().is_empty() {
            "no role that this service knows".to_owned()
        } else {
            self.roles().to_string()
        };
        Err(Error::forbidden(
            "forbidden",
            format!("this needs the role {role}; {:?} has {has}", self.subject()),
        ))
    }
}
