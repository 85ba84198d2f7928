//! Tokens that are good, and every way in which they are not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;

use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NOW: i64 = 1_800_000_000;
/// Made for these tests with `openssl genpkey -algorithm ed25519`.
const ED25519_PRIVATE: &str = include_str!("ed25519.private.pem");
const ED25519_PUBLIC: &str = include_str!("ed25519.public.pem");
/// Made for these tests with `openssl genpkey -algorithm rsa -pkeyopt rsa_keygen_bits:2048`.
const RSA_PRIVATE: &str = include_str!("rsa.private.pem");
const RSA_PUBLIC: &str = include_str!("rsa.public.pem");

fn with_secret() -> TokenRules {
    TokenRules {
        secret: Some(SECRET.to_owned()),
        issuer: Some("house".to_owned()),
        audience: Some("ota".to_owned()),
        public_keys: None,
    }
}

fn claims() -> Value {
    json!({"sub": "user-1", "iss": "house", "aud": "ota", "exp": NOW + 60, "roles": ["operator", "cook"]})
}

fn but(field: &str, value: Value) -> Value {
    let mut claims = claims();
    claims
        .as_object_mut()
        .unwrap()
        .insert(field.to_owned(), value);
    claims
}

fn signed(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
}

fn check(rules: &TokenRules, token: &str) -> Result<Principal, &'static str> {
    let now = Timestamp::from_second(NOW).unwrap();
    match Tokens::new(rules).unwrap().check(token, now) {
        Checked::Good(principal) => Ok(principal),
        Checked::Refused(why) => Err(why),
        Checked::Unknown => Err("unknown"),
    }
}

fn roles_of(claims: &Value) -> Roles {
    match check(&with_secret(), &signed(claims)).unwrap() {
        Principal::Person { roles, .. } => roles,
        Principal::Device(_) => panic!("a token is no device's"),
    }
}

#[test]
fn a_good_token_says_who_and_what_they_may_do() {
    let principal = check(&with_secret(), &signed(&claims())).unwrap();
    let operator = Roles::from_iter([Role::Operator]);
    assert_eq!(
        principal,
        Principal::person("user-1", operator, Authentication::Token)
    );
    assert_eq!(
        roles_of(&but("scope", json!("approver openid"))),
        Roles::from_iter([Role::Operator, Role::Approver])
    );
    assert_eq!(
        roles_of(&but("roles", json!("admin"))),
        Roles::NONE,
        "no list"
    );
    assert_eq!(roles_of(&but("roles", json!(["cook"]))), Roles::NONE);
    assert!(check(&with_secret(), &signed(&but("aud", json!(["x", "ota"])))).is_ok());
}

#[test]
fn a_token_that_says_anything_else_is_refused() {
    let mut gone = claims();
    gone.as_object_mut().unwrap().remove("exp");
    for wrong in [
        but("exp", json!(NOW - 31)),
        but("exp", json!("tomorrow")),
        but("exp", json!(null)),
        but("nbf", json!(NOW + 31)),
        but("iss", json!("street")),
        but("iss", json!(null)),
        but("aud", json!("other")),
        but("aud", json!(null)),
        but("sub", json!("")),
        but("sub", json!(7)),
        but("sub", json!("a\nb")),
        but("sub", json!("ota_service")),
        but("sub", json!("admin")),
        but("sub", json!("Internal")),
        gone,
    ] {
        let refused = check(&with_secret(), &signed(&wrong));
        assert!(refused.is_err_and(|why| why != "unknown"), "{wrong}");
    }
    for near in [
        but("exp", json!(NOW - 29)),
        but("nbf", json!(NOW + 29)),
        but("exp", json!(f64::from(i32::MAX) + 0.5)),
    ] {
        assert!(check(&with_secret(), &signed(&near)).is_ok(), "{near}");
    }
}

#[test]
fn a_token_for_something_else_is_refused() {
    let typed = |typ: Option<&str>| {
        let mut header = Header::new(Algorithm::HS256);
        header.typ = typ.map(ToOwned::to_owned);
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        check(&with_secret(), &encode(&header, &claims(), &key).unwrap())
    };
    for good in [
        None,
        Some("JWT"),
        Some("jwt"),
        Some("at+jwt"),
        Some("application/at+jwt"),
    ] {
        assert!(typed(good).is_ok(), "{good:?}");
    }
    let mut header = Header::new(Algorithm::HS256);
    header.crit = Some(vec!["of-another-world".to_owned()]);
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = encode(&header, &claims(), &key).unwrap();
    let refused = check(&with_secret(), &token).unwrap_err();
    assert!(refused.contains("crit"), "{refused}");
    for wrong in ["logout+jwt", "dpop+jwt", "secevent+jwt", ""] {
        let refused = typed(Some(wrong)).unwrap_err();
        assert!(refused.contains("typ"), "{wrong}: {refused}");
    }
}

#[test]
fn a_token_cannot_choose_how_a_key_is_used() {
    // The public key is no secret: whoever has it must not be able to sign with it.
    let rules = TokenRules {
        public_keys: Some(RSA_PUBLIC.to_owned()),
        ..TokenRules::default()
    };
    let claims = json!({"sub": "user-1", "exp": NOW + 60});
    let forged = encode(
        &Header::new(Algorithm::HS256),
        &claims,
        &EncodingKey::from_secret(RSA_PUBLIC.as_bytes()),
    )
    .unwrap();
    assert_eq!(check(&rules, &forged), Err("unknown"));
    let signature = forged.rsplit('.').next().unwrap();
    // {"alg":"none"}
    let none = format!("eyJhbGciOiJub25lIn0.{}.", forged.split('.').nth(1).unwrap());
    assert_eq!(check(&rules, &none), Err("the token cannot be read"));
    // {"alg":"RS256"}
    let stolen = format!(
        "eyJhbGciOiJSUzI1NiJ9.{}.{signature}",
        forged.split('.').nth(1).unwrap()
    );
    assert!(check(&rules, &stolen).is_err_and(|why| why != "unknown"));
    let other = signed(&json!({"sub": "user-1", "exp": NOW + 60}));
    let cut = other.strip_suffix(|_: char| true).unwrap();
    assert!(check(&with_secret(), cut).is_err());
}

#[test]
fn public_keys_verify_what_their_halves_signed() {
    let claims = json!({"sub": "user-1", "exp": NOW + 60, "roles": ["viewer"]});
    let ed25519 = EncodingKey::from_ed_pem(ED25519_PRIVATE.as_bytes()).unwrap();
    let rsa = EncodingKey::from_rsa_pem(RSA_PRIVATE.as_bytes()).unwrap();
    for (public, algorithm, private, others) in [
        (ED25519_PUBLIC, Algorithm::EdDSA, &ed25519, Algorithm::RS256),
        (RSA_PUBLIC, Algorithm::RS256, &rsa, Algorithm::EdDSA),
    ] {
        let rules = TokenRules {
            public_keys: Some(public.to_owned()),
            ..TokenRules::default()
        };
        let token = encode(&Header::new(algorithm), &claims, private).unwrap();
        assert!(check(&rules, &token).is_ok(), "{algorithm:?}");
        let other = if others == Algorithm::RS256 {
            &rsa
        } else {
            &ed25519
        };
        let token = encode(&Header::new(others), &claims, other).unwrap();
        assert_eq!(check(&rules, &token), Err("unknown"));
    }
}

#[test]
fn a_key_of_a_set_is_chosen_by_its_id() {
    let private = EncodingKey::from_ed_pem(ED25519_PRIVATE.as_bytes()).unwrap();
    // The last 32 bytes of the DER are the key.
    let key = DecodingKey::from_ed_pem(ED25519_PUBLIC.as_bytes()).unwrap();
    let x = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        key.try_get_as_bytes().unwrap(),
    );
    let set = |kids: &[Option<&str>]| {
        let keys: Vec<Value> = kids
            .iter()
            .map(|kid| json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "use": "sig"}))
            .collect();
        TokenRules {
            public_keys: Some(json!({ "keys": keys }).to_string()),
            ..TokenRules::default()
        }
    };
    let token = |kid: Option<&str>| {
        let header = Header {
            kid: kid.map(str::to_owned),
            ..Header::new(Algorithm::EdDSA)
        };
        encode(
            &header,
            &json!({"sub": "user-1", "exp": NOW + 60}),
            &private,
        )
        .unwrap()
    };
    let two = set(&[Some("a"), Some("b")]);
    assert!(check(&two, &token(Some("b"))).is_ok());
    assert_eq!(check(&two, &token(Some("c"))), Err("unknown"));
    assert_eq!(check(&two, &token(None)), Err("unknown"));
    assert!(
        check(&set(&[None]), &token(Some("c"))).is_ok(),
        "a key that is alone"
    );
    for unclear in [&[None, Some("b")][..], &[Some("b"), Some("b")], &[]] {
        assert_eq!(
            Tokens::new(&set(unclear)).err(),
            Some(TokenRulesError::NoKeyInSet)
        );
    }
}

#[test]
fn keys_that_cannot_be_used_are_refused_at_the_start() {
    let refused = |rules: TokenRules| Tokens::new(&rules).err();
    let secret = |text: &str| TokenRules {
        secret: Some(text.to_owned()),
        ..TokenRules::default()
    };
    assert_eq!(
        refused(secret("0123456789abcdef0123456789abcde")),
        Some(TokenRulesError::ShortSecret)
    );
    let public = |text: &str| TokenRules {
        public_keys: Some(text.to_owned()),
        ..TokenRules::default()
    };
    for none in ["", "x", ED25519_PRIVATE, "{\"keys\": 1}"] {
        assert_eq!(
            refused(public(none)),
            Some(TokenRulesError::NoKey),
            "{none}"
        );
    }
    assert_eq!(
        refused(public(
            r#"{"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}"#
        )),
        Some(TokenRulesError::ShortKey)
    );
    let none_for_us = r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#;
    assert_eq!(
        refused(public(none_for_us)),
        Some(TokenRulesError::NoKeyInSet)
    );
}
