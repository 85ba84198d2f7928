//! Who may come in: the admin key, API keys, devices, tokens, and what another service knows.

use std::sync::Arc;

use anyhow::Context as _;
use device_ota_engine::ports::Clock;
use device_ota_engine::{Engine, Introspection};
use device_ota_http::{Access, TokenRules};
use device_ota_platform::HttpAuthService;
use sha2::Digest as _;

use crate::config::Config;

/// The ways in that the settings name, and what `elsewhere` knows.
pub(crate) fn access(
    config: &Config,
    admin_key: &str,
    engine: Arc<Engine>,
    elsewhere: Option<Arc<HttpAuthService>>,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Access> {
    let access = Access::admin_key(sha2::Sha256::digest(admin_key).into()).known_to(engine);
    let access = tokens(config, access)?;
    Ok(match elsewhere {
        Some(service) => access.elsewhere(Introspection::new(service, clock)),
        None => access,
    })
}

/// With the tokens that the settings name, if they name any.
pub(crate) fn tokens(config: &Config, access: Access) -> anyhow::Result<Access> {
    let settings = &config.tokens;
    let read = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path)
            .with_context(|| format!("JWT_PUBLIC_KEY: {} cannot be read", path.display()))
    };
    let rules = TokenRules {
        secret: settings.secret.as_ref().map(|secret| secret.0.clone()),
        public_keys: settings.public_key.as_ref().map(read).transpose()?,
        issuer: settings.issuer.clone(),
        audience: settings.audience.clone(),
    };
    if rules.secret.is_none() && rules.public_keys.is_none() {
        return Ok(access);
    }
    if rules.audience.is_none() {
        tracing::warn!(
            "JWT_AUDIENCE is not set: every token of the same signer that names no audience opens here, also those \
             that were made for another service"
        );
    }
    access.tokens(&rules).context("JWT_PUBLIC_KEY")
}
