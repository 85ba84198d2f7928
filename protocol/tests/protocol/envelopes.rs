//! Envelopes: tampering never verifies, thresholds count distinct keys, roots follow one another.

use device_ota_protocol::dsse::{Envelope, MAX_SIGNATURES, RoleKeys, VerifyError, sign, verify};
use device_ota_protocol::keys::{Keypair, PublicKey};
use device_ota_protocol::objects::{ObjectError, Release, Role, Root, SignedObject, open, seal};
use proptest::prelude::*;

use crate::harness::Service;

fn keypair(n: u8) -> Keypair {
    Keypair::from_seed([n; 32])
}

fn role(keys: &[u8], threshold: usize) -> RoleKeys {
    RoleKeys {
        keys: keys.iter().map(|n| keypair(*n).public()).collect(),
        threshold,
    }
}

fn sealed() -> (Service, Envelope) {
    let service = Service::new();
    let envelope = Service::signed_by(&service.release_key, &Service::release("2.1.0", 1));
    (service, envelope)
}

/// Whatever was done to an envelope: if it still opens, it says what was signed.
fn opens_as_signed_or_not_at_all(service: &Service, bytes: &[u8], original: &Envelope) {
    let Ok(envelope) = Envelope::from_json(bytes) else {
        return;
    };
    if let Ok((_, payload)) = open::<Release>(&envelope, &service.root) {
        assert_eq!(payload, original.payload);
        assert_eq!(envelope.payload_type, original.payload_type);
    }
}

#[test]
fn no_changed_byte_of_the_json_changes_what_is_believed() {
    let (service, envelope) = sealed();
    let json = envelope.to_json();
    for at in 0..json.len() {
        for flip in [0x01, 0x20, 0x80] {
            let mut bytes = json.clone();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= flip;
            }
            opens_as_signed_or_not_at_all(&service, &bytes, &envelope);
        }
    }
}

#[test]
fn no_changed_byte_of_payload_type_or_signature_verifies() {
    let (service, envelope) = sealed();
    let opens = |envelope: &Envelope| open::<Release>(envelope, &service.root).is_ok();
    assert!(opens(&envelope));
    for bit in 0..envelope.payload.len() * 8 {
        let mut bad = envelope.clone();
        bad.payload[bit / 8] ^= 1 << (bit % 8);
        assert!(!opens(&bad), "payload bit {bit}");
    }
    for bit in 0..64 * 8 {
        let mut bad = envelope.clone();
        bad.signatures[0].sig[bit / 8] ^= 1 << (bit % 8);
        assert!(!opens(&bad), "signature bit {bit}");
    }
    let mut bad = envelope.clone();
    bad.payload_type.push(' ');
    assert!(!opens(&bad));
}

proptest! {
    #[test]
    fn spliced_json_is_never_believed(
        at in any::<prop::sample::Index>(),
        cut in 0_usize..40,
        insert in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let (service, envelope) = sealed();
        let mut json = envelope.to_json();
        let from = at.index(json.len());
        let to = (from + cut).min(json.len());
        json.splice(from..to, insert);
        opens_as_signed_or_not_at_all(&service, &json, &envelope);
    }

    #[test]
    fn a_threshold_counts_distinct_keys_of_the_role(
        signers in prop::collection::vec(1_u8..6, 0..MAX_SIGNATURES),
        threshold in 0_usize..5,
        hint in any::<bool>(),
    ) {
        let mut envelope = sign("t", b"body".to_vec(), &keypair(9));
        envelope.signatures.clear();
        for signer in &signers {
            envelope.add_signature(&keypair(*signer));
        }
        if hint {
            // Hints may lie.
            let wrong = keypair(1).key_id().to_string();
            envelope.signatures.iter_mut().for_each(|s| s.keyid.clone_from(&wrong));
        }
        let mut distinct: Vec<u8> = signers.iter().copied().filter(|n| *n <= 3).collect();
        distinct.sort_unstable();
        distinct.dedup();
        let verified = verify(&envelope, "t", &role(&[1, 2, 3], threshold));
        prop_assert_eq!(verified.is_ok(), threshold > 0 && distinct.len() >= threshold);
    }
}

#[test]
fn a_key_listed_twice_is_one_key() {
    let mut envelope = sign("t", Vec::new(), &keypair(1));
    envelope.add_signature(&keypair(1));
    assert_eq!(
        verify(&envelope, "t", &role(&[1, 1], 2)),
        Err(VerifyError::BelowThreshold {
            valid: 1,
            threshold: 2
        })
    );
}

#[test]
fn too_much_is_refused_before_any_work() {
    let mut envelope = sign("t", Vec::new(), &keypair(1));
    for _ in 0..MAX_SIGNATURES {
        envelope.add_signature(&keypair(1));
    }
    let refused = verify(&envelope, "t", &role(&[1], 1));
    assert_eq!(refused, Err(VerifyError::TooManySignatures));
    let large = sign("t", vec![0; 16 * 1024 + 1], &keypair(1));
    assert_eq!(
        verify(&large, "t", &role(&[1], 1)),
        Err(VerifyError::TooLarge)
    );
    assert_eq!(
        Envelope::from_json(&large.to_json()),
        Err(VerifyError::TooLarge)
    );
}

#[test]
fn unknown_fields_and_large_integers_are_refused_in_what_is_signed() {
    let service = Service::new();
    let release = Service::release("2.1.0", 1);
    let text = serde_json::to_string(&release).expect("json");
    let opened = |text: String| {
        let envelope = sign(Release::TYPE, text.into_bytes(), &service.release_key);
        open::<Release>(&envelope, &service.root)
    };
    assert!(opened(text.clone()).is_ok());
    let extra = text.replacen('{', r#"{"delta":"x","#, 1);
    assert!(matches!(opened(extra), Err(ObjectError::Malformed(_))));
    let large = text.replace("\"size\":1000", "\"size\":9007199254740992");
    assert!(matches!(
        opened(large),
        Err(ObjectError::OutOfRange("size"))
    ));
    let trailing = format!("{text} {{}}");
    assert!(opened(trailing).is_err());
}

#[test]
fn a_root_reads_as_the_protocol_shows_it() {
    let (service, _) = sealed();
    let text = serde_json::to_string_pretty(&*service.root).expect("json");
    insta::assert_snapshot!(text, @r#"
    {
      "version": 1,
      "expires_at": "2036-01-01T00:00:00Z",
      "keys": {
        "34750f98bd59fcfc946da45aaabe933be154a4b5094e1c4abf42866505f3c97e": {
          "type": "ed25519",
          "public": "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"
        },
        "6a3803d5f059902a1c6dafbc9ba4729212f7caac08634cc3ae76b27529f03827": {
          "type": "ed25519",
          "public": "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394"
        },
        "b62e867fa2f33afe62d5d6b1642e1621d543307846b2a57b897e710919b76709": {
          "type": "ed25519",
          "public": "ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1"
        }
      },
      "roles": {
        "root": {
          "keys": [
            "34750f98bd59fcfc946da45aaabe933be154a4b5094e1c4abf42866505f3c97e"
          ],
          "threshold": 1
        },
        "release": {
          "keys": [
            "6a3803d5f059902a1c6dafbc9ba4729212f7caac08634cc3ae76b27529f03827"
          ],
          "threshold": 1
        },
        "dispatch": {
          "keys": [
            "b62e867fa2f33afe62d5d6b1642e1621d543307846b2a57b897e710919b76709"
          ],
          "threshold": 1
        }
      }
    }
    "#);
}

#[test]
fn a_root_that_is_not_sound_is_refused() {
    let service = Service::new();
    let good = (*service.root).clone();
    let refused = |change: fn(&mut Root)| {
        let mut root = good.clone();
        change(&mut root);
        seal(&root, &service.root_key).is_err()
    };
    assert!(!refused(|_| {}));
    assert!(refused(|root| root.version = 0));
    assert!(refused(|root| root.roles.release.threshold = 0));
    assert!(refused(|root| root.roles.release.threshold = 2));
    assert!(refused(|root| root.keys.clear()));
    // A name that is not the digest of its key.
    assert!(refused(|root| {
        let other = keypair(8).key_id();
        if let Some((_, entry)) = root.keys.pop_first() {
            root.keys.insert(other, entry);
        }
    }));
}

#[test]
fn the_first_root_vouches_for_itself_and_the_next_needs_both() {
    let service = Service::new();
    let first = seal(&*service.root, &service.root_key).expect("a root");
    assert_eq!(Root::trust_first(&first).expect("a root"), *service.root);
    let forged = seal(&*service.root, &keypair(8)).expect("a root");
    assert!(Root::trust_first(&forged).is_err());

    let next_key = keypair(7);
    let mut next = (*service.root).clone();
    next.version = 2;
    let public = next_key.public();
    let single = Root::single(2, next.expires_at, public, public, public);
    next.keys.extend(single.keys);
    next.roles.root = single.roles.root;
    let signed = |version: u64, keys: &[&Keypair]| {
        let root = Root {
            version,
            ..next.clone()
        };
        let mut envelope = seal(&root, keys[0]).expect("a root");
        keys.iter()
            .skip(1)
            .for_each(|key| envelope.add_signature(key));
        service.root.verify_chain(&envelope)
    };
    assert!(signed(2, &[&service.root_key, &next_key]).is_ok());
    assert!(
        signed(2, &[&service.root_key]).is_err(),
        "the new root has not agreed"
    );
    assert!(
        signed(2, &[&next_key]).is_err(),
        "the old root has not agreed"
    );
    for version in [1, 3] {
        let refused = signed(version, &[&service.root_key, &next_key]);
        assert!(matches!(
            refused,
            Err(ObjectError::NotNext { current: 1, .. })
        ));
    }
}

#[test]
fn each_role_signs_its_own_and_nothing_else() {
    let (service, envelope) = sealed();
    assert_eq!(Release::ROLE, Role::Release);
    assert!(open::<Release>(&envelope, &service.root).is_ok());
    for key in [&service.dispatch_key, &service.root_key] {
        let envelope = Service::signed_by(key, &Service::release("2.1.0", 1));
        assert!(open::<Release>(&envelope, &service.root).is_err());
    }
}

#[test]
fn weak_and_misspelt_keys_are_refused() {
    // The identity point: every message would verify under it.
    let mut identity = [0; 32];
    identity[0] = 1;
    assert!(PublicKey::from_bytes(&identity).is_err());
    let text = keypair(1).public().to_string();
    assert!(text.parse::<PublicKey>().is_ok());
    assert!(text.to_uppercase().parse::<PublicKey>().is_err());
}

#[test]
fn a_private_key_reads_as_other_tools_write_it() {
    let pem = keypair(1).to_pkcs8_pem().expect("pem");
    // PKCS#8 version 1 with the Ed25519 object identifier, then the seed.
    let body = pem.lines().nth(1).expect("a body");
    assert!(body.starts_with("MC4CAQAwBQYDK2VwBCIEI"), "{body}");
    assert!(Keypair::from_pkcs8_pem("-----BEGIN PRIVATE KEY-----").is_err());
}
