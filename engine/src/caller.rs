//! Who asks for a use case: what records show, what roles allow, and which request it was.

use std::sync::Arc;

use device_ota_domain::identity::{Role, Roles, SERVICE_SUBJECT};

use crate::{Error, Result};

/// Somebody who asks for something. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    subject: Arc<str>,
    roles: Roles,
    request_id: Arc<str>,
}

impl Caller {
    /// A person or a service, known by `subject`, in the request of that id.
    pub fn new(
        subject: impl Into<Arc<str>>,
        roles: Roles,
        request_id: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            subject: subject.into(),
            roles,
            request_id: request_id.into(),
        }
    }

    /// The service itself, where nobody asked: what the planner decides, what a deadline ends.
    pub fn service() -> Self {
        Self::new(SERVICE_SUBJECT, Roles::ADMIN, "")
    }

    /// As records show who did it: `created_by`, `uploaded_by`, `approved_by`.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// What the caller may do.
    pub fn roles(&self) -> Roles {
        self.roles
    }

    /// The request's id; empty for what the service does by itself.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// 403, naming the role, unless the caller may do what `role` may.
    pub fn require(&self, role: Role) -> Result<()> {
        if self.roles.allow(role) {
            return Ok(());
        }
        let has = if self.roles.is_empty() {
            "no role that this service knows".to_owned()
        } else {
            self.roles.to_string()
        };
        Err(Error::forbidden(
            "forbidden",
            format!("this needs the role {role}; {:?} has {has}", self.subject()),
        ))
    }
}
