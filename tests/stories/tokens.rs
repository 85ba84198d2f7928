//! Tokens of an issuer whose public keys stand in a file, as a JSON web key set.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::harness::{Admin, Options, Service};

matrix!(a_key_set_in_a_file_opens_for_its_keys_alone: sqlite_gateway);

const CAMPAIGNS: &str = "/api/v1/ota/campaigns";
/// What stands before the seed of an Ed25519 key in PKCS #8 (RFC 8410).
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

fn jwk(kid: &str, seed: u8) -> Value {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let x = URL_SAFE_NO_PAD.encode(key.verifying_key());
    json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x})
}

fn token(kid: &str, seed: u8, exp: u64) -> String {
    let header = Header {
        kid: Some(kid.to_owned()),
        ..Header::new(Algorithm::EdDSA)
    };
    let claims = json!({"sub": "user-7", "aud": "ota", "exp": exp, "roles": ["viewer"]});
    let key = EncodingKey::from_ed_der(&[PKCS8.as_slice(), &[seed; 32]].concat());
    encode(&header, &claims, &key).unwrap()
}

async fn a_key_set_in_a_file_opens_for_its_keys_alone(options: Options) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let keys = json!({ "keys": [jwk("old", 1), jwk("new", 2)] });
    std::fs::write(&file, keys.to_string()).unwrap();
    let options = options
        .with("JWT_PUBLIC_KEY", file.display().to_string())
        .with("JWT_AUDIENCE", "ota");
    let service = Service::start(options).await;
    let asks = async |kid: &str, seed: u8, exp: u64| {
        let user = Admin::new(&service.ready().http, &token(kid, seed, exp));
        user.get(CAMPAIGNS).await
    };
    let later = 4_000_000_000;
    asks("old", 1, later).await.expect(200);
    asks("new", 2, later).await.expect(200);
    asks("new", 1, later).await.refused(401);
    asks("lost", 1, later).await.refused(401);
    asks("old", 3, later).await.refused(401);
    asks("old", 1, 1).await.refused(401);
}
