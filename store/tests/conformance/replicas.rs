//! Replicas: which devices they hold and deal with, what becomes of those of one that is dead, and the notes between them.

use std::collections::BTreeSet;

use device_ota_domain::DeviceId;
use device_ota_domain::device::DeviceKey;
use device_ota_domain::update::Action;
use device_ota_engine::ports::replicas::{Away, Here, NewReplica, Note, ReplicaKey, Word};
use device_ota_engine::ports::store::{ClaimQuery, SingleQuery, Store, Touch};
use jiff::Timestamp;

use crate::fixture::*;

crate::stories!(
    a_replica_begins_lives_and_ends_with_its_devices,
    whoever_renews_lives_and_is_not_ended_for_another,
    a_replica_deals_with_its_own_devices_and_with_those_of_nobody,
    who_comes_to_another_replica_is_told_of_at_the_first,
    only_the_replica_that_holds_a_device_says_that_it_left,
    a_start_finds_those_offline_that_nobody_holds,
    who_was_taken_for_dead_announces_its_sessions,
    what_is_owed_is_noted_for_who_holds_the_device,
    a_secret_that_is_replaced_is_noted_for_all_others,
    replicas_share_what_the_first_has_named,
);

/// A replica that begins.
async fn begin(store: &dyn Store, name: &str) -> ReplicaKey {
    let trust = ["ab".to_owned()];
    let new = NewReplica {
        name,
        trust: &trust,
        shares_images: true,
        started_at: at(1),
        alive_until: at(16),
    };
    let mut tx = store.begin().await.unwrap();
    let key = tx.insert_replica(&new).await.unwrap();
    tx.commit().await.unwrap();
    key
}

async fn end(store: &dyn Store, replica: ReplicaKey, by: Timestamp) -> bool {
    let mut tx = store.begin().await.unwrap();
    let ended = tx.end_replica(replica, by, at(90)).await.unwrap();
    tx.commit().await.unwrap();
    ended
}

fn session(device: DeviceKey, online: bool, number: i64) -> Touch {
    Touch {
        device,
        online: Some((online, number)),
        last_seen: Some(at(1)),
        ..Touch::default()
    }
}

/// The replica says of sessions that they begin or end.
async fn says(store: &dyn Store, replica: ReplicaKey, touches: &[Touch]) {
    let here = Here {
        replica: Some(replica),
        now: Some(at(50)),
    };
    let mut tx = store.begin().await.unwrap();
    tx.touch_here(touches, here).await.unwrap();
    tx.commit().await.unwrap();
}

async fn is_online(store: &dyn Store, n: usize) -> bool {
    let device = store.device(&name(n).parse().unwrap()).await.unwrap();
    device.unwrap().latest.online
}

async fn notes(store: &dyn Store, replica: ReplicaKey) -> Vec<(Word, String)> {
    let notes = store.notes(replica, 10).await.unwrap();
    let said = |note: &Note| (note.word, note.device_id.to_string());
    notes.iter().map(said).collect()
}

async fn a_replica_begins_lives_and_ends_with_its_devices(store: &dyn Store) {
    let devices = [0, 1, 2].map(|n| new_device(&name(n), 0));
    let keys = register(store, &devices).await;
    let (one, two) = (begin(store, "one").await, begin(store, "two").await);
    assert!(one < two);
    let known = store.replicas().await.unwrap();
    assert_eq!(known.iter().map(|r| r.key).collect::<Vec<_>>(), [one, two]);
    assert_eq!(known[0].name, "one");
    assert_eq!(known[0].trust, ["ab"]);
    assert!(known[0].shares_images);
    assert_eq!(known[0].alive_until, at(16));
    says(store, one, &[session(keys[0], true, 1)]).await;
    says(store, two, &[session(keys[1], true, 1)]).await;
    touch(store, &[session(keys[2], true, 1)]).await;
    assert!(end(store, one, Timestamp::MAX).await);
    assert!(
        !end(store, one, Timestamp::MAX).await,
        "it was ended before"
    );
    let online = [0, 1, 2].map(|n| is_online(store, n));
    let [first, second, third] = online;
    assert!(!first.await && second.await && third.await);
    let away = store.away(at(90), 10).await.unwrap();
    assert_eq!(
        away.iter().map(|a| (a.device, a.since)).collect::<Vec<_>>(),
        [(keys[0], at(90))]
    );
    let left = store.replicas().await.unwrap();
    assert_eq!(left.iter().map(|r| r.key).collect::<Vec<_>>(), [two]);
}

async fn whoever_renews_lives_and_is_not_ended_for_another(store: &dyn Store) {
    let one = begin(store, "one").await;
    let mut tx = store.begin().await.unwrap();
    assert!(tx.renew_replica(one, at(30)).await.unwrap());
    tx.commit().await.unwrap();
    assert!(!end(store, one, at(16)).await, "it has said more since");
    assert!(end(store, one, at(30)).await);
    let mut tx = store.begin().await.unwrap();
    assert!(!tx.renew_replica(one, at(45)).await.unwrap());
    assert_eq!(tx.away_from(one, &[]).await.unwrap(), None);
}

/// The devices of a campaign that a replica finds.
async fn claimed(
    store: &dyn Store,
    query: &ClaimQuery,
    here: Option<ReplicaKey>,
) -> Vec<DeviceKey> {
    let query = ClaimQuery {
        here,
        ..query.clone()
    };
    let found = claimable(store, &query).await;
    found.iter().map(|found| found.update.device).collect()
}

async fn a_replica_deals_with_its_own_devices_and_with_those_of_nobody(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let devices = [0, 1, 2].map(|n| new_device(&name(n), 0));
    let keys = register(store, &devices).await;
    let (one, two) = (begin(store, "one").await, begin(store, "two").await);
    says(store, one, &[session(keys[0], true, 1)]).await;
    says(store, two, &[session(keys[1], true, 1)]).await;
    touch(store, &[session(keys[2], true, 1)]).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    let query = all_due(&campaign, at(5));
    assert_eq!(claimed(store, &query, Some(one)).await, [keys[0], keys[2]]);
    assert_eq!(claimed(store, &query, Some(two)).await, [keys[1], keys[2]]);
    assert_eq!(claimed(store, &query, None).await, [keys[2]]);
    // The same of single devices.
    let single = single(9, keys[1], &name(1), "3.0.0");
    insert(store, std::slice::from_ref(&single)).await;
    assert!(!store.has_due_singles(at(5), Some(one)).await.unwrap());
    assert!(store.has_due_singles(at(5), Some(two)).await.unwrap());
    for (here, many) in [(one, 0), (two, 1)] {
        let query = SingleQuery {
            action: Action::Update,
            now: at(5),
            limit: 10,
            here: Some(here),
            busy: Vec::new(),
            ahead: device_ota_engine::ports::store::Ahead::default(),
        };
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.claimable_singles(&query).await.unwrap().len(), many);
    }
    // What is in flight is said again, ended and cancelled by the same.
    let everybody = [one, two].map(|here| ClaimQuery {
        here: Some(here),
        ..query.clone()
    });
    for query in &everybody {
        claim(store, query).await;
    }
    let of = |updates: Vec<device_ota_domain::Update>| -> BTreeSet<DeviceKey> {
        updates.iter().map(|update| update.device).collect()
    };
    let own = BTreeSet::from([keys[0], keys[2]]);
    let late = at(9_999);
    let unanswered = store.unanswered(late, late, Some(one), 10).await.unwrap();
    assert_eq!(of(unanswered), own);
    let expired = store.expired(late, Some(one), 10).await.unwrap();
    assert_eq!(of(expired.into_iter().map(|e| e.update).collect()), own);
    let mut tx = store.begin().await.unwrap();
    let cancellable = tx.cancellable(&campaign.id, Action::Update, Some(one), 10);
    assert_eq!(of(cancellable.await.unwrap()), own);
}

async fn who_comes_to_another_replica_is_told_of_at_the_first(store: &dyn Store) {
    let keys = register(store, &[new_device(&name(0), 0), new_device(&name(1), 0)]).await;
    let (one, two) = (begin(store, "one").await, begin(store, "two").await);
    says(
        store,
        one,
        &[session(keys[0], true, 10), session(keys[1], true, 10)],
    )
    .await;
    says(store, two, &[session(keys[0], true, 11)]).await;
    assert_eq!(notes(store, one).await, [(Word::TakenOver(10), name(0))]);
    assert_eq!(notes(store, two).await, []);
    // What began before is over, wherever it is said late.
    says(store, one, &[session(keys[0], true, 9)]).await;
    assert_eq!(notes(store, two).await, []);
    let mut tx = store.begin().await.unwrap();
    let away = tx.away_from(one, &keys).await.unwrap();
    let gone = Away {
        device: keys[0],
        session: 11,
    };
    assert_eq!(away, Some(vec![gone]));
    drop(tx);
    // A clock that is ahead of the other's is no reason to stay.
    let ahead = at(51).as_microsecond();
    says(store, one, &[session(keys[1], true, ahead)]).await;
    says(store, two, &[session(keys[1], true, 12)]).await;
    let heard = (Word::TakenOver(ahead), name(1));
    assert_eq!(notes(store, one).await.last(), Some(&heard));
    let numbers: Vec<i64> = store
        .notes(one, 10)
        .await
        .unwrap()
        .iter()
        .map(|n| n.number)
        .collect();
    let mut tx = store.begin().await.unwrap();
    tx.forget_notes(&numbers).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(notes(store, one).await, []);
}

async fn only_the_replica_that_holds_a_device_says_that_it_left(store: &dyn Store) {
    let keys = register(store, &[new_device(&name(0), 0)]).await;
    let (one, two) = (begin(store, "one").await, begin(store, "two").await);
    says(store, one, &[session(keys[0], true, 20)]).await;
    says(store, two, &[session(keys[0], true, 21)]).await;
    // Of a session with a higher number, by a clock that is ahead.
    says(store, one, &[session(keys[0], false, 22)]).await;
    assert!(is_online(store, 0).await);
    says(store, two, &[session(keys[0], false, 21)]).await;
    assert!(!is_online(store, 0).await);
}

async fn a_start_finds_those_offline_that_nobody_holds(store: &dyn Store) {
    let keys = register(store, &[new_device(&name(0), 0), new_device(&name(1), 0)]).await;
    let one = begin(store, "one").await;
    says(store, one, &[session(keys[0], true, 1)]).await;
    touch(store, &[session(keys[1], true, 1)]).await;
    let mut tx = store.begin().await.unwrap();
    tx.reset_presence(at(60)).await.unwrap();
    tx.commit().await.unwrap();
    assert!(is_online(store, 0).await);
    assert!(!is_online(store, 1).await);
}

async fn who_was_taken_for_dead_announces_its_sessions(store: &dyn Store) {
    let devices = [0, 1, 2, 3].map(|n| new_device(&name(n), 0));
    let keys = register(store, &devices).await;
    let begun = at(0).as_microsecond();
    let (one, two) = (begin(store, "one").await, begin(store, "two").await);
    let all: Vec<Touch> = keys.iter().map(|key| session(*key, true, begun)).collect();
    says(store, one, &all).await;
    assert!(end(store, one, Timestamp::MAX).await);
    // It does not know yet.
    says(store, one, &all).await;
    assert!(!is_online(store, 0).await);
    // Meanwhile one comes elsewhere, one has another secret, and one is deleted.
    says(store, two, &[session(keys[1], true, begun + 1)]).await;
    let mut tx = store.begin().await.unwrap();
    let [replaced, deleted] = [2, 3].map(|n| name(n).parse::<DeviceId>().unwrap());
    assert!(tx.set_verifier(&replaced, "new", at(40)).await.unwrap());
    assert!(tx.delete_device(&deleted, at(41)).await.unwrap());
    tx.commit().await.unwrap();
    let again = begin(store, "one").await;
    let sessions: Vec<(DeviceId, i64)> = [0, 1, 2, 3]
        .map(|n| (name(n).parse().unwrap(), begun))
        .into();
    let mut tx = store.begin().await.unwrap();
    let held = tx.announce(again, &sessions).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(held, [name(0).parse::<DeviceId>().unwrap()]);
    assert!(is_online(store, 0).await);
    assert!(!is_online(store, 2).await);
    assert_eq!(notes(store, two).await, [], "it keeps what came to it");
    let mut tx = store.begin().await.unwrap();
    let away = tx.away_from(again, &keys[..2]).await.unwrap().unwrap();
    assert_eq!(away.iter().map(|a| a.device).collect::<Vec<_>>(), [keys[1]]);
}

async fn what_is_owed_is_noted_for_who_holds_the_device(store: &dyn Store) {
    let devices = [0, 1, 2].map(|n| new_device(&name(n), 0));
    let keys = register(store, &devices).await;
    let (one, two) = (begin(store, "one").await, begin(store, "two").await);
    says(store, one, &[session(keys[0], true, 1)]).await;
    says(store, two, &[session(keys[1], true, 1)]).await;
    let mut tx = store.begin().await.unwrap();
    let noted = tx.note_owed(Some(one), &keys).await.unwrap();
    assert_eq!(noted, [keys[1]], "neither its own nor those of nobody");
    tx.commit().await.unwrap();
    assert_eq!(notes(store, two).await, [(Word::Owed, name(1))]);
    assert_eq!(notes(store, one).await, []);
    assert!(end(store, two, Timestamp::MAX).await);
    assert_eq!(notes(store, two).await, [], "nobody reads them any more");
}

async fn a_secret_that_is_replaced_is_noted_for_all_others(store: &dyn Store) {
    register(store, &[new_device(&name(0), 0)]).await;
    let (one, two) = (begin(store, "one").await, begin(store, "two").await);
    let mut tx = store.begin().await.unwrap();
    let device: DeviceId = name(0).parse().unwrap();
    tx.note_secret(Some(one), &device).await.unwrap();
    tx.note_secret(Some(one), &"nobody".parse().unwrap())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(notes(store, two).await, [(Word::Secret, name(0))]);
    assert_eq!(notes(store, one).await, []);
}

async fn replicas_share_what_the_first_has_named(store: &dyn Store) {
    let share = async |hex: &str| {
        let mut tx = store.begin().await.unwrap();
        let shared = tx.shared_key("links", hex).await.unwrap();
        tx.commit().await.unwrap();
        shared
    };
    assert_eq!(share("aa").await, "aa");
    assert_eq!(share("bb").await, "aa");
    let mut tx = store.begin().await.unwrap();
    tx.forget_shared_key("links").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(share("bb").await, "bb");
    // The place of a receiver begins behind what there is.
    let mut tx = store.begin().await.unwrap();
    tx.append_events(&[event(1, "x")]).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.begin_place("bus:one").await.unwrap();
    tx.append_events(&[event(2, "y")]).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.begin_place("bus:one").await.unwrap();
    tx.commit().await.unwrap();
    let events = store.events_for("bus:one", 10).await.unwrap();
    assert_eq!(
        events.iter().map(|e| e.entity.as_str()).collect::<Vec<_>>(),
        ["y"]
    );
}
