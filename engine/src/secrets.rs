//! Device secrets and their verifiers.
//!
//! A secret is 32 random bytes in hex, so no dictionary holds it and one round of a slow hash is as good as many.
//! A verifier has the form of a mosquitto password file (`$7$iterations$salt$hash`, PBKDF2 with HMAC-SHA-512), so
//! that one stored text serves our own gateway and an external broker alike.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use subtle::ConstantTimeEq as _;

use crate::ports::clock::{Entropy, random};

/// Rounds of a verifier that we make; see above why one is enough.
const ITERATIONS: u32 = 1;
/// Most rounds that a stored verifier may ask for: bounds what one connection can cost.
const MAX_ITERATIONS: u32 = 10_000;
/// Bytes of a salt, as mosquitto has them.
const SALT_BYTES: usize = 12;
/// Bytes of a hash.
const HASH_BYTES: usize = 64;

/// A fresh secret: 64 hex digits.
pub fn new_secret(entropy: &dyn Entropy) -> String {
    hex::encode(random::<32>(entropy))
}

/// The verifier of a secret.
pub fn verifier(secret: &str, entropy: &dyn Entropy) -> String {
    let salt = random::<SALT_BYTES>(entropy);
    let hash = derive(secret.as_bytes(), &salt, ITERATIONS);
    format!(
        "$7${ITERATIONS}${}${}",
        BASE64.encode(salt),
        BASE64.encode(hash)
    )
}

/// Whether the secret belongs to the verifier; in constant time for a given verifier.
pub fn matches(secret: &[u8], verifier: &str) -> bool {
    let Some((iterations, salt, expected)) = parse(verifier) else {
        return false;
    };
    let hash = derive(secret, &salt, iterations);
    bool::from(hash.as_slice().ct_eq(&expected))
}

fn derive(secret: &[u8], salt: &[u8], iterations: u32) -> [u8; HASH_BYTES] {
    let mut hash = [0; HASH_BYTES];
    pbkdf2::pbkdf2_hmac::<sha2::Sha512>(secret, salt, iterations, &mut hash);
    hash
}

fn parse(verifier: &str) -> Option<(u32, Vec<u8>, Vec<u8>)> {
    let mut parts = verifier.strip_prefix("$7$")?.split('$');
    let iterations = parts
        .next()?
        .parse()
        .ok()
        .filter(|n| (1..=MAX_ITERATIONS).contains(n))?;
    let salt = BASE64.decode(parts.next()?).ok()?;
    let hash = BASE64.decode(parts.next()?).ok()?;
    parts.next().is_none().then_some((iterations, salt, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u8);
    impl Entropy for Fixed {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0);
        }
    }

    #[test]
    fn a_verifier_knows_its_secret_and_no_other() {
        let secret = new_secret(&Fixed(7));
        let verifier = verifier(&secret, &Fixed(9));
        assert!(verifier.starts_with("$7$1$"));
        assert!(matches(secret.as_bytes(), &verifier));
        assert!(!matches(b"", &verifier));
        assert!(!matches(
            secret.to_uppercase().as_bytes(),
            &verifier.replace("$7$1$", "$7$2$")
        ));
    }

    #[test]
    fn a_broken_verifier_knows_no_secret() {
        for text in [
            "",
            "$6$1$aa$bb",
            "$7$0$aa$bb",
            "$7$999999$aa$bb",
            "$7$1$aa",
            "$7$1$!!$bb",
            "$7$1$YQ==$YQ==$x",
        ] {
            assert!(!matches(b"", text), "{text}");
        }
    }
}
