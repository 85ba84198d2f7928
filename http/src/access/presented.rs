//! What a request presents as its credential: one thing, or nothing.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use device_ota_domain::DeviceId;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, ORIGIN};

use crate::errors::ApiError;

/// `X-API-Key` (PRD, *Authentication*).
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// `X-Internal-Call` (PRD, *Authentication*).
const INTERNAL_CALL: HeaderName = HeaderName::from_static("x-internal-call");

/// A credential as it came. Equal ones hash alike, however they are spelt.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum Presented<'h> {
    /// None.
    Nothing,
    /// An API key.
    Key(&'h str),
    /// Something with the three parts of a JSON web token.
    Token(&'h str),
    /// A device's id and secret.
    Device { id: DeviceId, secret: Vec<u8> },
}

/// The one credential of a request; 400 when there are several, whether or not they agree.
pub(crate) fn presented(headers: &HeaderMap) -> Result<Presented<'_>, ApiError> {
    let mut keys = headers.get_all(API_KEY).iter();
    let mut others = headers.get_all(AUTHORIZATION).iter();
    let more = |rest: bool| {
        if rest {
            Err(ApiError::invalid(
                "two_credentials",
                "send one credential, either as X-API-Key or as Authorization",
            ))
        } else {
            Ok(())
        }
    };
    match (keys.next(), others.next()) {
        (Some(_), Some(_)) => more(true).map(|()| Presented::Nothing),
        (Some(key), None) => more(keys.next().is_some()).map(|()| Presented::Key(text(key))),
        (None, Some(value)) => {
            more(others.next().is_some())?;
            authorization(value)
        }
        (None, None) => Ok(Presented::Nothing),
    }
}

/// Whether the request says that it comes from within the house.
pub(super) fn is_internal_call(headers: &HeaderMap) -> bool {
    let said = headers.get(INTERNAL_CALL);
    said.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

/// Whether a page in a browser may have sent this. Its name may lead to any address, also to one of this machine (DNS
/// rebinding), but it stands in `Host` then; and what is not a plain read names its `Origin`.
pub(super) fn may_be_a_page(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let is_here = match (hosts.next(), hosts.next()) {
        (Some(host), None) => is_address_or_localhost(text(host)),
        _ => false,
    };
    headers.contains_key(ORIGIN) || !is_here
}

/// Of the `Host` header: an address or `localhost`, with or without a port.
fn is_address_or_localhost(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let v6 = rest.split_once(']').map(|(v6, _)| v6.parse::<Ipv6Addr>());
        return matches!(v6, Some(Ok(_)));
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok()
}

/// A header's text. What is no ASCII is no key of anybody, and neither is the empty text.
fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or_default()
}

fn authorization(value: &HeaderValue) -> Result<Presented<'_>, ApiError> {
    let (scheme, rest) = text(value).split_once(' ').unwrap_or_default();
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(if rest.split('.').count() == 3 {
            Presented::Token(rest)
        } else {
            Presented::Key(rest)
        });
    }
    if scheme.eq_ignore_ascii_case("basic") {
        return device(rest).ok_or_else(|| {
            ApiError::unauthorized("Authorization: Basic must hold device_id:secret in base64")
        });
    }
    Err(ApiError::unauthorized(
        "Authorization must be of the form Bearer <key or token>, or of a device Basic <device_id:secret>",
    ))
}

fn device(encoded: &str) -> Option<Presented<'static>> {
    let decoded = BASE64.decode(encoded).ok()?;
    // The last one: ids may hold colons, secrets made here do not.
    let colon = decoded.iter().rposition(|byte| *byte == b':')?;
    let (id, secret) = decoded.split_at_checked(colon)?;
    Some(Presented::Device {
        id: std::str::from_utf8(id).ok()?.parse().ok()?,
        secret: secret.get(1..)?.to_vec(),
    })
}
