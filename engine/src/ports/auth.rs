//! The service that knows the credentials of people and services that are not ours (PRD, *Auth Service*).

use async_trait::async_trait;
use device_ota_domain::Roles;

/// A credential that this service does not know itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Credential<'c> {
    /// A token.
    Token(&'c str),
    /// An API key.
    ApiKey(&'c str),
}

/// Whose credential it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// As records show who did it.
    pub subject: String,
    /// What they may do.
    pub roles: Roles,
}

/// It did not answer, or not in a form that can be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the auth service is unavailable: {0}")]
pub struct AuthUnavailable(pub String);

/// Asks whose a credential is.
#[async_trait]
pub trait AuthService: Send + Sync + 'static {
    /// Whose it is; `None` when it is nobody's. Answers in bounded time.
    async fn verify(&self, credential: Credential<'_>) -> Result<Option<Known>, AuthUnavailable>;
}
