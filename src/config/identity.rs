//! Settings of who may come in, and how often.

use std::net::SocketAddr;
use std::path::PathBuf;

use device_ota_http::{Cors, MIN_SECRET_BYTES, RateLimits};

use super::raw::RawConfig;
use super::values::{Checked, addr, rate};
use super::{ConfigError, Secret, TokenSettings};

/// Off, or an address that no other machine can reach: on this listener a header is a credential.
pub(super) fn internal_addr(raw: &RawConfig) -> Checked<Option<SocketAddr>> {
    const NAME: &str = "INTERNAL_ADDR";
    match raw.internal_addr.as_deref() {
        None | Some("off") => Ok(None),
        Some(text) => {
            let addr = addr(NAME, text)?;
            if addr.ip().is_loopback() {
                Ok(Some(addr))
            } else {
                Err(ConfigError::new(
                    NAME,
                    format!("{addr} is not a loopback address; whoever reaches it may come in"),
                ))
            }
        }
    }
}

/// The limits of the API. `RATE_LIMIT_API=off` turns off those that are not set by themselves.
pub(super) fn rate_limits(raw: &RawConfig) -> Checked<RateLimits> {
    let per_address = rate(
        "RATE_LIMIT_API",
        raw.rate_limit_api.as_deref(),
        "100/second",
    )?;
    let limit = |name, text: &Option<String>, default| {
        let default = if per_address.is_some() {
            default
        } else {
            "off"
        };
        rate(name, text.as_deref(), default)
    };
    Ok(RateLimits {
        per_address,
        global: None,
        failures: limit(
            "RATE_LIMIT_AUTH_FAILURES",
            &raw.rate_limit_auth_failures,
            "30/minute",
        )?,
        read: limit("RATE_LIMIT_READ", &raw.rate_limit_read, "100/second")?,
        write: limit("RATE_LIMIT_WRITE", &raw.rate_limit_write, "100/second")?,
        upload: limit("RATE_LIMIT_UPLOAD", &raw.rate_limit_upload, "60/minute")?,
        stats: limit("RATE_LIMIT_STATS", &raw.rate_limit_stats, "20/second")?,
        heartbeat: rate(
            "RATE_LIMIT_HEARTBEAT",
            raw.rate_limit_heartbeat.as_deref(),
            "100/minute",
        )?,
    })
}

pub(super) fn cors(raw: &RawConfig) -> Checked<Cors> {
    match raw.cors_origins.as_deref() {
        None | Some("") => Ok(Cors::default()),
        Some(origins) => Cors::from_origins(origins)
            .map_err(|error| ConfigError::new("CORS_ORIGINS", error.to_string())),
    }
}

pub(super) fn tokens(raw: &RawConfig) -> Checked<TokenSettings> {
    let secret = raw.jwt_secret.clone();
    if secret.as_ref().is_some_and(|s| s.len() < MIN_SECRET_BYTES) {
        return Err(ConfigError::new(
            "JWT_SECRET",
            format!("must have at least {MIN_SECRET_BYTES} bytes, or it can be guessed"),
        ));
    }
    let has_key = secret.is_some() || raw.jwt_public_key.is_some();
    for (name, set) in [
        ("JWT_ISSUER", raw.jwt_issuer.is_some()),
        ("JWT_AUDIENCE", raw.jwt_audience.is_some()),
    ] {
        if set && !has_key {
            return Err(ConfigError::new(
                name,
                "needs JWT_SECRET or JWT_PUBLIC_KEY beside it",
            ));
        }
    }
    Ok(TokenSettings {
        secret: secret.map(Secret),
        public_key: raw.jwt_public_key.as_ref().map(PathBuf::from),
        issuer: raw.jwt_issuer.clone(),
        audience: raw.jwt_audience.clone(),
    })
}
