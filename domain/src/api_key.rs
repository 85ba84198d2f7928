//! API keys: what is known of one, and when it opens. Its secret is nowhere.

use jiff::Timestamp;

use crate::identity::{Roles, SubjectError, check_subject};
use crate::ids::ApiKeyId;
use crate::text::shows;

/// Longest name of a key, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// A key of a person or a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id, by which it is revoked.
    pub id: ApiKeyId,
    /// For people: what it is for.
    pub name: String,
    /// As records show who used it.
    pub subject: String,
    /// What it may be used for.
    pub roles: Roles,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// From then on it opens nothing.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, give or take some minutes.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl ApiKey {
    /// Whether it opens at this time.
    pub fn opens(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// A key as somebody wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDraft {
    /// For people: what it is for.
    pub name: String,
    /// Who uses it.
    pub subject: String,
    /// What it may be used for.
    pub roles: Roles,
    /// When it ends; `None`: when it is revoked.
    pub expires_at: Option<Timestamp>,
}

/// Why there can be no such key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nobody could tell it from others.
    #[error("name must be 1 to {MAX_NAME_BYTES} bytes without control or invisible characters")]
    Name,
    /// Not one that records may show.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// It would open nothing.
    #[error("roles must name at least one role")]
    NoRole,
    /// It would never open.
    #[error("expires_at must lie in the future")]
    Expired,
}

impl KeyDraft {
    /// Whether there can be such a key.
    pub fn check(&self, now: Timestamp) -> Result<(), KeyError> {
        let named = (1..=MAX_NAME_BYTES).contains(&self.name.len());
        if !named || !shows(&self.name) {
            return Err(KeyError::Name);
        }
        check_subject(&self.subject)?;
        if self.roles.is_empty() {
            return Err(KeyError::NoRole);
        }
        if self.expires_at.is_some_and(|end| end <= now) {
            return Err(KeyError::Expired);
        }
        Ok(())
    }
}
