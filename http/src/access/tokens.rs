//! JSON web tokens: which keys sign them, and what they must say (PRD, *Authentication*).
//!
//! The algorithm belongs to the key: a token can choose among our keys, never how one of them is used.

use device_ota_domain::audit::Authentication;
use device_ota_domain::identity::{Role, Roles, check_subject};
use jiff::Timestamp;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::Value;

use super::Principal;

/// Shortest secret of HS256, in bytes: as many as its hash has (RFC 7518, 3.2).
pub const MIN_SECRET_BYTES: usize = 32;
/// Shortest modulus of an RSA key, in bytes: 2,048 bits.
const MIN_MODULUS_BYTES: usize = 256;
/// Most keys of a set; a token is tried with one alone.
const MAX_KEYS: usize = 64;
/// What `typ` may say: nothing, or that this is a token to come in with (RFC 7519, 5.1; RFC 9068, 2.1). Others, such as
/// logout tokens of the same signer, are for something else.
const TYPES: [&str; 3] = ["JWT", "at+jwt", "application/at+jwt"];
/// How far the clocks of whoever signs and of this service may be apart, in seconds.
const LEEWAY_SECONDS: f64 = 30.0;

/// Where tokens come from, as the settings say.
#[derive(Default)]
pub struct TokenRules {
    /// A secret that both sides have; HS256.
    pub secret: Option<String>,
    /// A public key in PEM (Ed25519 or RSA), or a JSON web key set.
    pub public_keys: Option<String>,
    /// `iss` must be this.
    pub issuer: Option<String>,
    /// `aud` must be or hold this.
    pub audience: Option<String>,
}

/// Why no token can be checked by these rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRulesError {
    /// Guessable.
    #[error("the secret must have at least {MIN_SECRET_BYTES} bytes")]
    ShortSecret,
    /// Not a key that is served.
    #[error("holds neither an Ed25519 nor an RSA public key in PEM, nor a JSON web key set")]
    NoKey,
    /// A set without a key that is served.
    #[error(
        "holds no key that is served: Ed25519, or RSA for RS256, each with a kid of its own, at most {MAX_KEYS}"
    )]
    NoKeyInSet,
    /// Breakable.
    #[error("an RSA key must have at least 2048 bits")]
    ShortKey,
}

/// Checks tokens.
#[derive(Clone)]
pub(crate) struct Tokens {
    keys: Vec<Key>,
}

/// A key, and what tokens that it has signed must say.
#[derive(Clone)]
struct Key {
    /// The tokens that name this key; `None`: every token of its algorithm.
    kid: Option<String>,
    algorithm: Algorithm,
    verifies: DecodingKey,
    validation: Validation,
}

/// What a token comes to.
pub(super) enum Checked {
    /// It is good.
    Good(Principal),
    /// One of our keys should have signed it, and it is not good.
    Refused(&'static str),
    /// None of our keys is meant.
    Unknown,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    #[serde(default)]
    nbf: Option<f64>,
    #[serde(default)]
    roles: Value,
    #[serde(default)]
    scope: Value,
}

impl Tokens {
    /// With the keys of the rules; without any, every token is unknown.
    pub(crate) fn new(rules: &TokenRules) -> Result<Self, TokenRulesError> {
        let mut keys = Vec::new();
        if let Some(secret) = &rules.secret {
            if secret.len() < MIN_SECRET_BYTES {
                return Err(TokenRulesError::ShortSecret);
            }
            keys.push((
                None,
                Algorithm::HS256,
                DecodingKey::from_secret(secret.as_bytes()),
            ));
        }
        if let Some(text) = &rules.public_keys {
            keys.extend(public_keys(text)?);
        }
        let keys = keys.into_iter().map(|(kid, algorithm, key)| Key {
            kid,
            algorithm,
            verifies: key,
            validation: validation(algorithm, rules),
        });
        Ok(Self {
            keys: keys.collect(),
        })
    }

    /// What this token comes to.
    pub(super) fn check(&self, token: &str, now: Timestamp) -> Checked {
        let Ok(header) = decode_header(token) else {
            return Checked::Refused("the token cannot be read");
        };
        let is_access_token = header
            .typ
            .as_deref()
            .is_none_or(|typ| TYPES.iter().any(|known| known.eq_ignore_ascii_case(typ)));
        let meant = |key: &&Key| {
            key.algorithm == header.alg && (key.kid.is_none() || key.kid == header.kid)
        };
        let Some(key) = self.keys.iter().find(meant) else {
            return Checked::Unknown;
        };
        if header.crit.is_some() {
            return Checked::Refused("the token's crit names what is not understood here"); // RFC 7515, 4.1.11
        }
        if !is_access_token {
            return Checked::Refused(
                "the token's typ is not that of an access token (JWT or at+jwt)",
            );
        }
        let Ok(token) = decode::<Claims>(token, &key.verifies, &key.validation) else {
            return Checked::Refused(
                "the token is not valid: its signature, issuer, audience or claims are not as they must be",
            );
        };
        principal(&token.claims, now).map_or_else(Checked::Refused, Checked::Good)
    }
}

fn validation(algorithm: Algorithm, rules: &TokenRules) -> Validation {
    let mut validation = Validation::new(algorithm);
    // Times are checked against our own clock, below.
    validation.validate_exp = false;
    validation.validate_nbf = false;
    let mut required = vec!["exp", "sub"];
    if let Some(issuer) = &rules.issuer {
        validation.set_issuer(&[issuer]);
        required.push("iss");
    }
    if let Some(audience) = &rules.audience {
        validation.set_audience(&[audience]);
        required.push("aud");
    }
    validation.set_required_spec_claims(&required);
    validation
}

fn principal(claims: &Claims, now: Timestamp) -> Result<Principal, &'static str> {
    let now = now.as_duration().as_secs_f64();
    // JSON has no number that is none, so each comparison decides.
    if claims.exp + LEEWAY_SECONDS <= now {
        return Err("the token has expired");
    }
    if claims.nbf.is_some_and(|from| now + LEEWAY_SECONDS < from) {
        return Err("the token is not valid yet");
    }
    check_subject(&claims.sub).map_err(|_| "the token's sub is nobody that can be known here")?;
    Ok(Principal::person(
        claims.sub.as_str(),
        roles(claims),
        Authentication::Token,
    ))
}

/// The roles that are known among `roles` and `scope`; other names mean something to somebody else.
fn roles(claims: &Claims) -> Roles {
    let listed = claims.roles.as_array().into_iter().flatten();
    let listed = listed
        .filter_map(Value::as_str)
        .filter_map(|name| name.parse::<Role>().ok());
    let scope = Roles::known(claims.scope.as_str().unwrap_or_default());
    listed.chain(scope.iter()).collect()
}

type Found = (Option<String>, Algorithm, DecodingKey);

fn public_keys(text: &str) -> Result<Vec<Found>, TokenRulesError> {
    if let Ok(set) = serde_json::from_str::<JwkSet>(text) {
        return key_set(&set);
    }
    let pem = text.as_bytes();
    if let Ok(key) = DecodingKey::from_ed_pem(pem) {
        return Ok(vec![(None, Algorithm::EdDSA, key)]);
    }
    let key = DecodingKey::from_rsa_pem(pem).map_err(|_| TokenRulesError::NoKey)?;
    if key.try_get_as_bytes().map_or(0, <[u8]>::len) < MIN_MODULUS_BYTES {
        return Err(TokenRulesError::ShortKey);
    }
    Ok(vec![(None, Algorithm::RS256, key)])
}

/// The keys of a set that we can use for signatures; the others are for somebody else. A key that is alone may go
/// without a `kid`.
fn key_set(set: &JwkSet) -> Result<Vec<Found>, TokenRulesError> {
    let mut keys: Vec<Found> = Vec::new();
    for jwk in &set.keys {
        let Some(algorithm) = algorithm(jwk)? else {
            continue;
        };
        let key = DecodingKey::from_jwk(jwk).map_err(|_| TokenRulesError::NoKeyInSet)?;
        keys.push((jwk.common.key_id.clone(), algorithm, key));
    }
    let mut kids: Vec<_> = keys.iter().map(|(kid, ..)| kid).collect();
    kids.sort_unstable();
    kids.dedup();
    let told_apart = kids.len() == keys.len() && (keys.len() == 1 || !kids.contains(&&None));
    if keys.is_empty() || keys.len() > MAX_KEYS || !told_apart {
        return Err(TokenRulesError::NoKeyInSet);
    }
    Ok(keys)
}

/// The one algorithm that a key is for; `None` for a key that we do not use.
fn algorithm(jwk: &Jwk) -> Result<Option<Algorithm>, TokenRulesError> {
    let (algorithm, name) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        _ => return Ok(None),
    };
    let signs = matches!(
        jwk.common.public_key_use,
        None | Some(PublicKeyUse::Signature)
    );
    if !signs || jwk.common.key_algorithm.is_some_and(|named| named != name) {
        return Ok(None);
    }
    // Base64: three bytes in four characters.
    if let AlgorithmParameters::RSA(key) = &jwk.algorithm
        && key.n.len() * 3 / 4 < MIN_MODULUS_BYTES
    {
        return Err(TokenRulesError::ShortKey);
    }
    Ok(Some(algorithm))
}

#[cfg(test)]
mod tests;
