//! The audit chain: whole as written, and whatever is done to it is found and named.

use device_ota_domain::audit::{Act, Actor, Authentication, Break, Chain, Entry, Head, Record};
use device_ota_domain::{Role, Roles};
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

fn entry(n: usize) -> Entry {
    let actor = Actor {
        subject: format!("user {n}").into(),
        roles: Roles::from_iter([Role::Viewer, Role::Operator]),
        authentication: Authentication::ApiKey("key_00000000000000ff".parse().unwrap()),
        request_id: "r-1".into(),
        peer: Some("192.0.2.7".parse().unwrap()),
    };
    let at =
        Timestamp::from_microsecond(1_800_000_000_000_000 + i64::try_from(n).unwrap()).unwrap();
    let states = (
        Some(json!({"status": "in_progress"})),
        Some(json!({"status": "paused", "n": n})),
    );
    Entry::new(&actor, at, Act::CampaignPaused, "camp_1", states)
}

fn chain(length: usize) -> Vec<Record> {
    let mut head = Head::default();
    let link = |n| {
        let record = Record::behind(&head, &entry(n));
        head = record.head();
        record
    };
    (0..length).map(link).collect()
}

fn walk(records: &[Record]) -> Result<Head, Break> {
    let mut chain = Chain::default();
    records.iter().try_for_each(|record| chain.follow(record))?;
    Ok(chain.head().clone())
}

/// What ADR 9 says of the form, done once more by hand: another program must be able to verify a chain.
#[test]
fn the_form_is_the_documented_one() {
    use sha2::{Digest as _, Sha256};
    let record = chain(1).remove(0);
    let mut bytes = b"device-ota audit 1\n".to_vec();
    for text in [
        Some("0".repeat(64).as_str()),
        Some("1"),
        Some("1800000000000000"),
        Some("user 0"),
        Some("viewer operator"),
        Some("api_key:key_00000000000000ff"),
        Some("r-1"),
        Some("192.0.2.7"),
        Some("campaign.paused"),
        Some("campaign"),
        Some("camp_1"),
        Some(r#"{"status":"in_progress"}"#),
        Some(r#"{"n":0,"status":"paused"}"#),
    ] {
        match text {
            None => bytes.push(0),
            Some(text) => {
                bytes.push(1);
                bytes.extend(u64::try_from(text.len()).unwrap().to_be_bytes());
                bytes.extend(text.as_bytes());
            }
        }
    }
    assert_eq!(record.hash, hex::encode(Sha256::digest(&bytes)));
}

#[test]
fn a_chain_is_whole_as_it_was_written() {
    let records = chain(5);
    let head = walk(&records).unwrap();
    assert_eq!(head, records[4].head());
    assert_eq!(walk(&[]).unwrap(), Head::default());
}

#[test]
fn whatever_is_done_to_a_chain_is_found_and_named() {
    let broken = |tamper: &dyn Fn(&mut Vec<Record>)| {
        let mut records = chain(5);
        tamper(&mut records);
        walk(&records).unwrap_err()
    };
    let anew = |record: &Record, subject: &str| {
        let head = Head {
            number: record.number - 1,
            hash: record.prev.clone(),
        };
        let mut forged = entry(usize::try_from(record.number - 1).unwrap());
        forged.actor.subject = subject.into();
        Record::behind(&head, &forged)
    };
    assert_eq!(
        broken(&|records| records[2].subject = "somebody else".to_owned()),
        Break::Changed(3)
    );
    assert_eq!(
        broken(&|records| records[2] = anew(&records[2], "somebody else")),
        Break::Severed(4)
    );
    assert_eq!(
        broken(&|records| drop(records.remove(2))),
        Break::Missing(3)
    );
    assert_eq!(
        broken(&|records| drop(records.remove(0))),
        Break::Missing(1)
    );
    assert_eq!(broken(&|records| records[0].number = -1), Break::PutIn(-1));
    let renumbered = |records: &mut Vec<Record>| {
        records.remove(2);
        records[2..]
            .iter_mut()
            .for_each(|record| record.number -= 1);
    };
    assert_eq!(broken(&renumbered), Break::Changed(3));
}

#[test]
fn the_end_is_the_one_that_is_remembered() {
    let records = chain(3);
    let mut chain = Chain::default();
    for record in &records {
        chain.follow(record).unwrap();
    }
    let head = |number, hash: &str| Head {
        number,
        hash: hash.to_owned(),
    };
    assert_eq!(chain.ends_with(&records[2].head()), Ok(()));
    assert_eq!(
        chain.ends_with(&head(5, "a")),
        Err(Break::Cut { from: 4, to: 5 })
    );
    assert_eq!(chain.ends_with(&head(2, "a")), Err(Break::Beyond(3)));
    assert_eq!(chain.ends_with(&head(3, "a")), Err(Break::LastChanged(3)));
}

proptest! {
    /// No field can be moved into its neighbour, and none changed, without another hash.
    #[test]
    fn every_field_counts(field in 0_usize..13, text in "[a-z0-9:.{}\" ]{0,12}") {
        let original = chain(1).remove(0);
        let mut record = original.clone();
        let number = i64::try_from(text.len()).unwrap() + 2;
        match field {
            0 => record.prev = text,
            1 => record.number = number,
            2 => record.at = number,
            3 => record.subject = text,
            4 => record.roles = text,
            5 => record.authentication = text,
            6 => record.request_id = text,
            7 => record.peer = None,
            8 => record.action = text,
            9 => record.entity = text,
            10 => record.entity_id = text,
            11 => record.before = Some(text),
            _ => record.after = None,
        }
        prop_assert!(walk(&[record]).is_err());
    }
}

#[test]
fn a_state_before_is_none_after() {
    let hash = |states| {
        let entry = Entry {
            before: states,
            after: None,
            ..entry(0)
        };
        let turned = Entry {
            before: entry.after.clone(),
            after: entry.before.clone(),
            ..entry.clone()
        };
        [entry, turned].map(|entry| Record::behind(&Head::default(), &entry).hash)
    };
    let [a, b] = hash(Some(json!({})));
    assert_ne!(a, b);
}
