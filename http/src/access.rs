//! Who a request comes from, and which paths ask for nobody.
//!
//! Signing in happens before routing, so a path is closed unless [`is_open`] names it. People and services sign in
//! with an API key or a token, devices with their own secret. `X-Internal-Call` means something on the internal
//! listener alone, and there only what [`internal_roles`] says (DESIGN.md, decision 6).

mod presented;
mod tokens;

use std::sync::Arc;

use device_ota_domain::audit::Authentication;
use device_ota_domain::identity::check_subject;
use device_ota_domain::{DeviceId, Role, Roles};
use device_ota_engine::inbound::DeviceRef;
use device_ota_engine::ports::auth::Credential;
use device_ota_engine::{Engine, Introspection};
use http::{HeaderMap, Method};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::errors::ApiError;
pub(crate) use presented::{Presented, presented};
use presented::{is_internal_call, may_be_a_page};
use tokens::{Checked, Tokens};
pub use tokens::{MIN_SECRET_BYTES, TokenRules, TokenRulesError};

/// Longest key that is hashed at all, in bytes; keys made here have 68.
const MAX_KEY_BYTES: usize = 512;
/// Everything below needs a principal, but for [`OPEN`].
const CLOSED: [&str; 2] = ["/api/", "/metrics"];
/// Paths under [`CLOSED`] that need none: the bytes behind time-limited links, and the roots devices are born with.
const OPEN: [&str; 2] = ["/api/v1/ota/objects/", "/api/v1/ota/trust/"];
/// Who internal calls come from, as records show it.
const INTERNAL: &str = "internal";

/// Somebody who signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Principal {
    /// A person or a service.
    Person {
        /// As records show who did it.
        subject: Arc<str>,
        /// What they may do.
        roles: Roles,
        /// How they proved it.
        authentication: Authentication,
    },
    /// A device, which may do what concerns itself.
    Device(DeviceRef),
}

impl Principal {
    fn person(subject: impl Into<Arc<str>>, roles: Roles, authentication: Authentication) -> Self {
        Self::Person {
            subject: subject.into(),
            roles,
            authentication,
        }
    }
}

/// The ways in.
#[derive(Clone)]
pub struct Access {
    admin_key: [u8; 32],
    admin: Principal,
    engine: Option<Arc<Engine>>,
    tokens: Option<Tokens>,
    elsewhere: Option<Arc<Introspection>>,
    internal: bool,
}

impl Access {
    /// One admin key, of which only the SHA-256 is kept. It has 256 random bits, so no slow hash is needed.
    pub fn admin_key(sha256: [u8; 32]) -> Self {
        Self::key_of("admin", Roles::ADMIN, sha256)
    }

    /// One key that opens for `subject`.
    pub(crate) fn key_of(subject: &str, roles: Roles, sha256: [u8; 32]) -> Self {
        Self {
            admin_key: sha256,
            admin: Principal::person(subject, roles, Authentication::AdminKey),
            engine: None,
            tokens: None,
            elsewhere: None,
            internal: false,
        }
    }

    /// Also the API keys and the devices that this engine knows.
    #[must_use]
    pub fn known_to(self, engine: Arc<Engine>) -> Self {
        let engine = Some(engine);
        Self { engine, ..self }
    }

    /// Also tokens.
    pub fn tokens(self, rules: &TokenRules) -> Result<Self, TokenRulesError> {
        let tokens = Some(Tokens::new(rules)?);
        Ok(Self { tokens, ..self })
    }

    /// Also what another service knows.
    #[must_use]
    pub fn elsewhere(self, elsewhere: Introspection) -> Self {
        let elsewhere = Some(Arc::new(elsewhere));
        Self { elsewhere, ..self }
    }

    /// The same for the internal listener.
    #[must_use]
    pub fn internal(self) -> Self {
        Self {
            internal: true,
            ..self
        }
    }

    /// Who the headers prove: 401 without a valid credential, 400 when they contradict each other.
    pub(crate) async fn authenticate(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Principal, ApiError> {
        match presented(headers)? {
            Presented::Nothing if self.internal && is_internal_call(headers) => {
                if may_be_a_page(headers) {
                    return Err(ApiError::unauthorized(
                        "X-Internal-Call is taken with a Host that is an IP address or localhost, and without an Origin, \
                         alone: pages in browsers have no place here",
                    ));
                }
                Ok(Principal::person(
                    INTERNAL,
                    internal_roles(method, path),
                    Authentication::InternalCall,
                ))
            }
            Presented::Nothing => Err(ApiError::unauthorized(
                "this needs a key or a token: send it as X-API-Key, or as Authorization: Bearer",
            )),
            Presented::Token(token) => self.token(token).await,
            Presented::Key(key) => self.key(key).await,
            Presented::Device { id, secret } => self.device(&id, &secret).await,
        }
    }

    async fn token(&self, token: &str) -> Result<Principal, ApiError> {
        let checked = match (&self.tokens, &self.engine) {
            (Some(tokens), Some(engine)) => tokens.check(token, engine.clock().now()),
            _ => Checked::Unknown,
        };
        match checked {
            Checked::Good(principal) => Ok(principal),
            Checked::Refused(why) => Err(ApiError::unauthorized(why)),
            Checked::Unknown => self.ask(Credential::Token(token)).await,
        }
    }

    async fn key(&self, key: &str) -> Result<Principal, ApiError> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(ApiError::unauthorized("the key is not valid"));
        }
        let digest = Sha256::digest(key);
        if bool::from(digest.as_slice().ct_eq(&self.admin_key)) {
            return Ok(self.admin.clone());
        }
        if let Some(engine) = &self.engine
            && let Some(known) = engine.api_keys().find(key).await?
        {
            if !known.opens(engine.clock().now()) {
                return Err(ApiError::unauthorized("the key has expired or was revoked"));
            }
            // It may be older than the rules of names.
            if check_subject(&known.subject).is_err() {
                return Err(ApiError::unauthorized(
                    "the key's subject is nobody that can be known here; make another key",
                ));
            }
            let authentication = Authentication::ApiKey(known.id);
            return Ok(Principal::person(
                known.subject,
                known.roles,
                authentication,
            ));
        }
        self.ask(Credential::ApiKey(key)).await
    }

    async fn device(&self, id: &DeviceId, secret: &[u8]) -> Result<Principal, ApiError> {
        let known = match &self.engine {
            Some(engine) => engine.authenticate(id, secret).await,
            None => Ok(None),
        };
        let known = known.map_err(device_ota_engine::Error::from)?;
        known.map(Principal::Device).ok_or_else(|| {
            ApiError::unauthorized("the device is not known or its secret is not valid")
        })
    }

    /// Asks the service that knows others' credentials, if there is one.
    async fn ask(&self, credential: Credential<'_>) -> Result<Principal, ApiError> {
        let unknown = match credential {
            Credential::Token(_) => "the token is signed by nobody that is known here",
            Credential::ApiKey(_) => "the key is not valid",
        };
        let Some(elsewhere) = &self.elsewhere else {
            return Err(ApiError::unauthorized(unknown));
        };
        match elsewhere.who(credential).await {
            Ok(Some(known)) => Ok(Principal::person(
                known.subject,
                known.roles,
                Authentication::AuthService,
            )),
            Ok(None) => Err(ApiError::unauthorized(unknown)),
            Err(error) => {
                if let Some(engine) = &self.engine {
                    engine.metrics().add("auth_service", "unavailable", 1);
                }
                Err(ApiError::unavailable(
                    "auth_unavailable",
                    "the service that knows this credential does not answer",
                    error.to_string(),
                ))
            }
        }
    }
}

/// Whether a path needs no principal.
pub(crate) fn is_open(path: &str) -> bool {
    !CLOSED.iter().any(|closed| path.starts_with(closed))
        || OPEN.iter().any(|open| path.starts_with(open))
}

/// What an internal call may do: read, and update or take back devices. Everything else needs somebody.
fn internal_roles(method: &Method, path: &str) -> Roles {
    let path = path.strip_suffix('/').unwrap_or(path); // as the table of what is served has it
    let devices = path.strip_prefix("/api/v1/ota/devices/").unwrap_or("");
    let levels = devices.split('/').collect::<Vec<_>>();
    let moves_a_device = matches!(levels.as_slice(), [_, "update" | "rollback"]);
    if method == Method::POST && moves_a_device {
        Roles::from_iter([Role::Viewer, Role::Operator])
    } else {
        Roles::from_iter([Role::Viewer])
    }
}

#[cfg(test)]
mod tests;
