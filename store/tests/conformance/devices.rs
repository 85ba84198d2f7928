//! Registration, credentials, presence, heartbeats and the drawing of `seq`s.

use device_ota_domain::device::LastError;
use device_ota_domain::page::Page;
use device_ota_domain::ring::Ring;
use device_ota_engine::ports::store::{Absence, Registered, Store, Touch};
use device_ota_engine::ports::telemetry::{DeviceFilter, HeartbeatRow};
use jiff::Timestamp;

use crate::fixture::*;

crate::stories!(
    a_device_is_registered_once,
    a_device_reads_back_as_it_was_registered,
    a_thousand_devices_register_at_once,
    credentials_are_found_and_replaced,
    credentials_come_in_id_order,
    devices_come_in_pages,
    what_is_registered_can_be_changed,
    a_deleted_device_is_gone_and_may_come_back,
    a_touch_changes_only_what_it_says,
    an_older_session_cannot_end_a_newer_one,
    an_absence_is_known_until_it_is_told,
    a_restart_finds_everybody_offline,
    seqs_rise_and_bring_the_nonce,
    many_heartbeats_are_taken_at_once,
    an_unfinished_transaction_leaves_nothing,
);

async fn a_device_is_registered_once(store: &dyn Store) {
    let (a, b) = (new_device("a", 1), new_device("b", 2));
    register(store, std::slice::from_ref(&a)).await;
    let mut tx = store.begin().await.unwrap();
    let answers = tx
        .register(&[b.clone(), a.clone(), b.clone()])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert!(matches!(
        answers[..],
        [
            Registered::Created(_),
            Registered::Exists,
            Registered::Exists
        ]
    ));
    assert_eq!(
        store
            .devices(&DeviceFilter::default(), Page::default())
            .await
            .unwrap()
            .len(),
        2
    );
}

async fn a_device_reads_back_as_it_was_registered(store: &dyn Store) {
    let mut new = new_device("dev:1", 4_711);
    new.registration.groups = vec!["lobby".into(), "beta".into()];
    new.registration
        .tags
        .insert("site".into(), "Köln \"2\"".into());
    new.registration.ring = Some(Ring::Early);
    new.registration.device_type = None;
    let keys = register(store, std::slice::from_ref(&new)).await;
    let device = store
        .device(&new.registration.device_id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(device.revision, 0);
    assert_eq!(device.key, keys[0]);
    assert_eq!(device.registration, new.registration);
    assert_eq!((device.bucket, device.registered_at), (4_711, new.at));
    assert_eq!(device.latest, device_ota_domain::device::Latest::default());
    assert_eq!(store.device(&"other".parse().unwrap()).await.unwrap(), None);
}

async fn a_thousand_devices_register_at_once(store: &dyn Store) {
    let mut keys = fleet(store, 1_003).await;
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 1_003);
}

async fn credentials_are_found_and_replaced(store: &dyn Store) {
    let keys = register(store, &[new_device("a", 0)]).await;
    let id = "a".parse().unwrap();
    let credentials = store.credentials(&id).await.unwrap().unwrap();
    assert_eq!(
        (credentials.key, credentials.verifier.as_str()),
        (keys[0], "$7$1$salt$a")
    );
    let mut tx = store.begin().await.unwrap();
    assert!(tx.set_verifier(&id, "new", at(5)).await.unwrap());
    assert!(
        !tx.set_verifier(&"nobody".parse().unwrap(), "new", at(5))
            .await
            .unwrap()
    );
    tx.commit().await.unwrap();
    assert_eq!(
        store.credentials(&id).await.unwrap().unwrap().verifier,
        "new"
    );
    assert_eq!(
        store.credentials(&"A".parse().unwrap()).await.unwrap(),
        None,
        "ids are case-sensitive"
    );
}

async fn credentials_come_in_id_order(store: &dyn Store) {
    register(
        store,
        &["b", "a", "B", "a.1", "a_1"].map(|id| new_device(id, 0)),
    )
    .await;
    let mut seen: Vec<String> = Vec::new();
    let mut after = None;
    loop {
        let page = store.all_credentials(after.as_ref(), 2).await.unwrap();
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        seen.extend(page.iter().map(|(id, _)| id.to_string()));
    }
    assert_eq!(
        seen,
        ["B", "a", "a.1", "a_1", "b"],
        "bytewise, on both databases"
    );
}

async fn devices_come_in_pages(store: &dyn Store) {
    fleet(store, 5).await;
    let page = store
        .devices(&DeviceFilter::default(), Page::new(2, 3).unwrap())
        .await
        .unwrap();
    let ids: Vec<&str> = page
        .iter()
        .map(|d| d.registration.device_id.as_str())
        .collect();
    assert_eq!(ids, [name(3), name(4)]);
}

async fn what_is_registered_can_be_changed(store: &dyn Store) {
    let mut new = new_device("a", 7);
    new.registration.groups = vec!["old".into()];
    let keys = register(store, std::slice::from_ref(&new)).await;
    touch(store, &[online_touch(keys[0])]).await; // what it says is no change
    let mut said = new.registration.clone();
    said.groups = vec!["new".into(), "newer".into()];
    said.tags.insert("floor".into(), "2".into());
    said.ring = Some(Ring::Early);
    said.device_type = None;
    let mut tx = store.begin().await.unwrap();
    assert!(tx.save_device(&said).await.unwrap());
    let stranger = new_device("b", 0).registration;
    assert!(!tx.save_device(&stranger).await.unwrap());
    tx.commit().await.unwrap();
    let device = store.device(&said.device_id).await.unwrap().unwrap();
    assert_eq!((device.registration, device.bucket), (said, 7));
    assert_eq!(device.revision, 1);
    let in_group = async |group: &str| {
        let filter = DeviceFilter {
            group: Some(group.to_owned()),
            ..DeviceFilter::default()
        };
        store.devices(&filter, Page::default()).await.unwrap().len()
    };
    assert_eq!((in_group("old").await, in_group("newer").await), (0, 1));
}

async fn a_deleted_device_is_gone_and_may_come_back(store: &dyn Store) {
    let (gone, stays) = (new_device("a", 0), new_device("b", 0));
    let keys = register(store, &[gone.clone(), stays]).await;
    insert(
        store,
        &[single(1, keys[0], "a", "2"), single(2, keys[1], "b", "2")],
    )
    .await;
    let id = &gone.registration.device_id;
    let mut tx = store.begin().await.unwrap();
    assert_eq!(tx.draw_seqs(&keys[..1]).await.unwrap()[0].seq, 1);
    assert!(tx.delete_device(id, at(9)).await.unwrap());
    assert!(!tx.delete_device(id, at(9)).await.unwrap());
    let open = tx.open_updates(keys[0]).await.unwrap();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].device, keys[0]);
    assert!(!tx.set_verifier(id, "new", at(5)).await.unwrap());
    assert!(!tx.save_device(&gone.registration).await.unwrap());
    tx.commit().await.unwrap();

    let left = async |since| store.left_behind(at(since), 10).await.unwrap();
    assert_eq!(left(9).await, [open[0].id.clone()]);
    assert!(left(10).await.is_empty());
    assert_eq!(store.device(id).await.unwrap(), None);
    assert_eq!(store.credentials(id).await.unwrap(), None);
    assert_eq!(store.all_credentials(None, 10).await.unwrap().len(), 1);
    let everybody = DeviceFilter::default();
    let listed = store.devices(&everybody, Page::default()).await;
    assert_eq!(listed.unwrap().len(), 1);
    touch(store, &[online_touch(keys[0])]).await; // said before it was deleted

    let back = register(store, std::slice::from_ref(&gone)).await;
    assert_eq!(back, keys[..1]);
    let device = store.device(id).await.unwrap().unwrap();
    assert_eq!(device.latest, device_ota_domain::device::Latest::default());
    assert_eq!(device.revision, 1, "it is another one than before");
    let mut tx = store.begin().await.unwrap();
    assert_eq!(
        tx.draw_seqs(&keys[..1]).await.unwrap()[0].seq,
        2,
        "a `seq` is never drawn twice"
    );
}

async fn a_touch_changes_only_what_it_says(store: &dyn Store) {
    let keys = register(store, &[new_device("a", 0), new_device("b", 0)]).await;
    let full = Touch {
        device: keys[0],
        last_seen: Some(at(10)),
        online: Some((true, 5)),
        left_at: None,
        was_there: false,
        version: Some("1.1.0".into()),
        slot: Some("b"),
        confirmed: Some(true),
        battery_percent: Some(41.5),
        charging: Some(true),
        free_storage_bytes: Some(1 << 40),
        error_count: Some(3),
        last_error: Some(LastError {
            code: "e7".into(),
            message: Some("Köln \"7\"".into()),
            at: at(8),
        }),
        metrics: Some([("fan".to_owned(), 0.5)].into()),
        security_floor: Some(2),
        reported_model: Some(MODEL.into()),
        nonce: Some("n".into()),
    };
    let earlier = Touch {
        device: keys[0],
        last_seen: Some(at(9)),
        confirmed: Some(false),
        ..Touch::default()
    };
    touch(store, &[full]).await;
    touch(store, &[earlier]).await;
    let latest = store
        .device(&"a".parse().unwrap())
        .await
        .unwrap()
        .unwrap()
        .latest;
    assert!(latest.online);
    assert_eq!(latest.last_seen, Some(at(10)), "time does not go back");
    assert_eq!(latest.version.as_deref(), Some("1.1.0"));
    assert_eq!(latest.slot.as_deref(), Some("b"));
    assert_eq!(latest.confirmed, Some(false));
    assert_eq!(latest.battery_percent, Some(41.5));
    assert_eq!(latest.charging, Some(true));
    assert_eq!(latest.free_storage_bytes, Some(1 << 40));
    assert_eq!(latest.error_count, 3);
    let last_error = latest.last_error.unwrap();
    assert_eq!((last_error.code.as_str(), last_error.at), ("e7", at(8)));
    assert_eq!(last_error.message.as_deref(), Some("Köln \"7\""));
    assert_eq!(latest.metrics, [("fan".to_owned(), 0.5)].into());
    assert_eq!(latest.security_floor, Some(2));
    assert_eq!(latest.reported_model.as_deref(), Some(MODEL));
    let other = store
        .device(&"b".parse().unwrap())
        .await
        .unwrap()
        .unwrap()
        .latest;
    assert_eq!(other, device_ota_domain::device::Latest::default());
}

async fn an_absence_is_known_until_it_is_told(store: &dyn Store) {
    let keys = fleet(store, 3).await;
    let leave = |n: usize, session, left_at| Touch {
        device: keys[n],
        online: Some((false, session)),
        left_at: Some(at(left_at)),
        was_there: false,
        ..Touch::default()
    };
    let away = async |before| {
        let away = store.away(at(before), 10).await.unwrap();
        away.into_iter()
            .map(|a| (a.device, a.since))
            .collect::<Vec<_>>()
    };
    let settle = async |absences: &[(&Absence, Option<Timestamp>)]| {
        let mut tx = store.begin().await.unwrap();
        let settled = tx.settle_absences(absences).await.unwrap();
        tx.commit().await.unwrap();
        settled
    };
    assert_eq!(away(1_000).await, [], "all are there");
    touch(store, &[leave(0, 1, 50), leave(1, 1, 40)]).await;
    touch(store, &[leave(0, 1, 60)]).await;
    // An external broker's last will, which comes late and is of no session that we know.
    touch(store, &[leave(0, 9, 61), leave(1, 9, 61)]).await;
    assert_eq!(away(39).await, []);
    assert_eq!(
        away(50).await,
        [(keys[1], at(40)), (keys[0], at(50))],
        "longest first, and since the first good-bye"
    );
    let read = store.away(at(50), 10).await.unwrap();
    let back = Touch {
        online: Some((true, 10)),
        ..online_touch(keys[0])
    };
    touch(store, &[back]).await;
    let settled = settle(&[(&read[0], None), (&read[1], None)]).await;
    assert_eq!(settled, [keys[1]], "the other one came back");
    assert_eq!(away(1_000).await, [], "it was told");
    touch(store, &[leave(1, 11, 69)]).await;
    assert_eq!(away(1_000).await, [], "and not a second time");
    let mut tx = store.begin().await.unwrap();
    tx.reset_presence(at(70)).await.unwrap();
    tx.commit().await.unwrap();
    let read = store.away(at(70), 10).await.unwrap();
    assert_eq!(read.len(), 2, "not who was away before");
    let flash = Touch {
        was_there: true,
        ..leave(1, 12, 65)
    };
    touch(store, &[flash]).await;
    let flash = away(69).await;
    assert_eq!(flash, [(keys[1], at(65))], "it came and went in one batch");
    let later = settle(&[(&read[0], Some(at(80)))]).await;
    assert_eq!(later, [read[0].device]);
    assert_eq!(
        away(75).await,
        [(keys[1], at(65)), (read[1].device, at(70))]
    );
}

async fn an_older_session_cannot_end_a_newer_one(store: &dyn Store) {
    let keys = register(store, &[new_device("a", 0)]).await;
    let session = |online, number| Touch {
        device: keys[0],
        online: Some((online, number)),
        ..Touch::default()
    };
    let online = async || {
        store
            .device(&"a".parse().unwrap())
            .await
            .unwrap()
            .unwrap()
            .latest
            .online
    };
    touch(store, &[session(true, 7)]).await;
    touch(store, &[session(false, 6)]).await;
    assert!(online().await);
    touch(store, &[session(false, 7)]).await;
    assert!(!online().await);
}

async fn a_restart_finds_everybody_offline(store: &dyn Store) {
    let keys = fleet(store, 3).await;
    let mut tx = store.begin().await.unwrap();
    tx.reset_presence(at(9)).await.unwrap();
    tx.commit().await.unwrap();
    let devices = store
        .devices(&DeviceFilter::default(), Page::default())
        .await
        .unwrap();
    assert!(devices.iter().all(|device| !device.latest.online));
    assert_eq!(devices.len(), keys.len());
}

async fn seqs_rise_and_bring_the_nonce(store: &dyn Store) {
    let keys = register(store, &[new_device("a", 0), new_device("b", 0)]).await;
    touch(
        store,
        &[Touch {
            device: keys[1],
            nonce: Some("fresh".into()),
            ..Touch::default()
        }],
    )
    .await;
    let mut tx = store.begin().await.unwrap();
    let first = tx.draw_seqs(&keys[..1]).await.unwrap();
    assert_eq!((first[0].device, first[0].seq), (keys[0], 1));
    let mut both = tx.draw_seqs(&keys).await.unwrap();
    tx.commit().await.unwrap();
    both.sort_by_key(|ground| ground.device);
    assert_eq!([both[0].seq, both[1].seq], [2, 1]);
    assert_eq!(both[1].device_id.as_str(), "b");
    assert_eq!(both[1].nonce.as_deref(), Some("fresh"));
    assert_eq!(both[0].nonce, None);
}

async fn many_heartbeats_are_taken_at_once(store: &dyn Store) {
    let keys = fleet(store, 10).await;
    let rows: Vec<HeartbeatRow> = (0..5_000_u16)
        .map(|n| HeartbeatRow {
            device: keys[usize::from(n) % 10],
            received_at: at(i64::from(n)),
            payload: format!(r#"{{"n":{n}}}"#).into(),
        })
        .collect();
    let mut tx = store.begin().await.unwrap();
    tx.insert_heartbeats(&rows).await.unwrap();
    tx.insert_heartbeats(&[]).await.unwrap();
    tx.commit().await.unwrap();
}

async fn an_unfinished_transaction_leaves_nothing(store: &dyn Store) {
    let mut tx = store.begin().await.unwrap();
    tx.register(&[new_device("a", 0)]).await.unwrap();
    tx.append_events(&[event(1, "a")]).await.unwrap();
    drop(tx);
    assert_eq!(
        store
            .devices(&DeviceFilter::default(), Page::default())
            .await
            .unwrap(),
        []
    );
    assert_eq!(store.events_for("bus", 10).await.unwrap(), []);
    store.ping().await.unwrap();
    register(store, &[new_device("a", 0)]).await;
}
