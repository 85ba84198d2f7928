//! Who a request comes from, and which paths ask for nobody.
//!
//! Signing in happens before routing, so a path is closed unless [`is_open`] names it. `X-Internal-Call` grants
//! nothing here (DESIGN.md, decision 6).

use std::sync::Arc;

use device_ota_domain::Roles;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::errors::ApiError;

/// `X-API-Key` (PRD, *Authentication*).
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Longest key that is hashed at all, in bytes; keys made here have 64.
const MAX_KEY_BYTES: usize = 512;
/// Everything below needs a principal, but for [`OPEN`].
const CLOSED: &str = "/api/";
/// Paths under [`CLOSED`] that need none: the bytes behind time-limited links, and the roots devices are born with.
const OPEN: [&str; 2] = ["/api/v1/ota/objects/", "/api/v1/ota/trust/"];

/// Somebody who signed in.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    /// As records show who did it.
    pub(crate) subject: Arc<str>,
    /// What they may do.
    pub(crate) roles: Roles,
}

/// The ways in.
#[derive(Clone)]
pub struct Access {
    admin_key: [u8; 32],
    admin: Principal,
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
            admin: Principal {
                subject: subject.into(),
                roles,
            },
        }
    }

    /// Who the headers prove: 401 without a valid key, 400 when they contradict each other.
    pub(crate) fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, ApiError> {
        let key = presented(headers)?;
        let digest = Sha256::digest(key);
        if key.len() <= MAX_KEY_BYTES && bool::from(digest.as_slice().ct_eq(&self.admin_key)) {
            Ok(self.admin.clone())
        } else {
            Err(ApiError::unauthorized("the key is not valid"))
        }
    }
}

/// Whether a path needs no principal.
pub(crate) fn is_open(path: &str) -> bool {
    !path.starts_with(CLOSED) || OPEN.iter().any(|open| path.starts_with(open))
}

fn presented(headers: &HeaderMap) -> Result<&[u8], ApiError> {
    let mut keys = headers.get_all(API_KEY).iter();
    let mut tokens = headers.get_all(AUTHORIZATION).iter();
    match (
        keys.next(),
        tokens.next(),
        keys.next().is_some() || tokens.next().is_some(),
    ) {
        (Some(key), None, false) => Ok(key.as_bytes()),
        (None, Some(token), false) => bearer(token.as_bytes()),
        (None, None, _) => Err(ApiError::unauthorized(
            "this needs a key: send it as X-API-Key, or as Authorization: Bearer",
        )),
        _ => Err(ApiError::invalid(
            "two_credentials",
            "send one key, either as X-API-Key or as Authorization",
        )),
    }
}

fn bearer(header: &[u8]) -> Result<&[u8], ApiError> {
    let (scheme, token) = header.split_at_checked(7).unwrap_or((header, &[]));
    if scheme.eq_ignore_ascii_case(b"bearer ") {
        Ok(token.trim_ascii())
    } else {
        Err(ApiError::unauthorized(
            "Authorization must be of the form Bearer <key>",
        ))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn status(pairs: &[(&'static str, &'static str)]) -> u16 {
        let access = Access::admin_key(Sha256::digest(b"the-key").into());
        let headers = pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), (*v).try_into().unwrap()))
            .collect::<HeaderMap>();
        match access.authenticate(&headers) {
            Ok(principal) => {
                assert_eq!(&*principal.subject, "admin");
                200
            }
            Err(error) => error.render("r").status().as_u16(),
        }
    }

    #[test]
    fn the_admin_key_opens_by_either_header_and_nothing_else_does() {
        assert_eq!(status(&[("x-api-key", "the-key")]), 200);
        assert_eq!(status(&[("authorization", "bearer the-key")]), 200);
        assert_eq!(status(&[]), 401);
        assert_eq!(status(&[("x-internal-call", "true")]), 401);
        assert_eq!(status(&[("x-api-key", "another")]), 401);
        assert_eq!(status(&[("x-api-key", "")]), 401);
        assert_eq!(status(&[("authorization", "Basic dGhlLWtleQ==")]), 401);
        assert_eq!(status(&[("authorization", "x")]), 401);
    }

    #[test]
    fn two_keys_at_once_are_refused_even_when_both_are_right() {
        assert_eq!(
            status(&[
                ("x-api-key", "the-key"),
                ("authorization", "Bearer the-key")
            ]),
            400
        );
        let mut headers = HeaderMap::new();
        headers.append(API_KEY, "the-key".try_into().unwrap());
        headers.append(API_KEY, "the-key".try_into().unwrap());
        let access = Access::admin_key(Sha256::digest(b"the-key").into());
        assert_eq!(
            access
                .authenticate(&headers)
                .unwrap_err()
                .render("r")
                .status(),
            400
        );
    }

    #[test]
    fn only_links_and_roots_are_open_below_the_api() {
        for open in [
            "/health",
            "/health/ready",
            "/api/v1/ota/objects/t",
            "/api/v1/ota/trust/root",
        ] {
            assert!(is_open(open), "{open}");
        }
        for closed in [
            "/api/v1/ota/firmware",
            "/api/v1/ota/objects",
            "/api/v1/ota/devices/x",
            "/api/",
        ] {
            assert!(!is_open(closed), "{closed}");
        }
    }
}
