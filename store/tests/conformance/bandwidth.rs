//! Lines with a budget of bandwidth: kept until they are free, and devices behind busy ones are not found.

use std::collections::{BTreeMap, BTreeSet};

use device_ota_domain::bandwidth::{Line, Lines};
use device_ota_domain::campaign::{Campaign, OpenFor};
use device_ota_domain::update::Action;
use device_ota_engine::ports::store::{Ahead, ClaimQuery, SingleQuery, Store};

use crate::fixture::*;

crate::stories!(
    lines_are_kept_until_they_are_free,
    devices_behind_busy_lines_are_passed_over,
    single_devices_behind_busy_lines_are_passed_over,
);

fn site(value: &str) -> Line {
    Line::Tag {
        name: "site \"x\"".into(),
        value: value.into(),
    }
}

fn group(name: &str) -> Line {
    Line::Group(name.into())
}

async fn take(store: &dyn Store, second: i64, bytes: u64, lines: &[(Line, u64)]) -> bool {
    let mut tx = store.begin().await.unwrap();
    let mut known = tx.hold_lines(at(second)).await.unwrap();
    let took = known.take(at(second), bytes, lines);
    tx.take_lines(&known, at(second)).await.unwrap();
    tx.commit().await.unwrap();
    took
}

async fn lines_are_kept_until_they_are_free(store: &dyn Store) {
    let (one, two) = ([(Line::Service, 10)], [(site("ü"), 1), (group("a"), 5)]);
    assert_eq!(store.lines(at(0)).await.unwrap(), Lines::default());
    assert!(take(store, 0, 100, &one).await);
    assert!(!take(store, 9, 1, &one).await);
    assert!(take(store, 9, 10, &two).await);
    let known = store.lines(at(9)).await.unwrap();
    assert_eq!(known.free_at(at(9), &one), Some(at(10)));
    assert_eq!(known.free_at(at(9), &two), Some(at(19)));
    assert_eq!(known.busy(at(9)).count(), 3);
    // What was free for two seconds is forgotten: none of it can be made up for.
    assert_eq!(store.lines(at(11)).await.unwrap().busy(at(9)).count(), 3);
    assert_eq!(store.lines(at(13)).await.unwrap().busy(at(9)).count(), 1);
    assert!(take(store, 13, 1, &one).await);
    // Whoever does not commit has taken nothing.
    let mut tx = store.begin().await.unwrap();
    let mut known = tx.hold_lines(at(14)).await.unwrap();
    assert!(known.take(at(14), 1_000, &one));
    tx.take_lines(&known, at(14)).await.unwrap();
    drop(tx);
    let known = store.lines(at(14)).await.unwrap();
    assert_eq!(known.free_at(at(14), &one), None);
}

/// Six devices: of two groups and none, of two sites and none.
async fn fleet_of_sites(store: &dyn Store) {
    let devices: Vec<_> = (0..6_u16)
        .map(|n| {
            let mut new = new_device(&name(n.into()), n);
            let said = &mut new.registration;
            match n {
                0 => said.groups = vec!["a".into()],
                1 => said.groups = vec!["b".into(), "a".into()],
                2 => said.groups = vec!["b".into()],
                _ => {}
            }
            let value = ["x", "y"][usize::from(n % 2)];
            if n != 3 {
                said.tags = BTreeMap::from([("site \"x\"".to_owned(), value.to_owned())]);
            }
            new
        })
        .collect();
    let keys = register(store, &devices).await;
    online(store, &keys).await;
}

async fn found(
    store: &dyn Store,
    campaign: &Campaign,
    busy: &[Line],
    open_for: OpenFor,
) -> BTreeSet<usize> {
    let query = ClaimQuery {
        busy: busy.to_vec(),
        open_for,
        ..all_due(campaign, at(9))
    };
    let found = claimable(store, &query).await;
    let numbers = found.iter().map(|found| {
        let id = found.update.device_id.as_str();
        (0..6).find(|n| name(*n) == id).unwrap()
    });
    numbers.collect()
}

async fn devices_behind_busy_lines_are_passed_over(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet_of_sites(store).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    let set = |numbers: &[usize]| numbers.iter().copied().collect::<BTreeSet<_>>();
    for (busy, left) in [
        (vec![], vec![0, 1, 2, 3, 4, 5]),
        // Those are looked at by whoever asks.
        (
            vec![Line::Service, Line::Campaign(campaign.id.clone())],
            vec![0, 1, 2, 3, 4, 5],
        ),
        (vec![group("a")], vec![2, 3, 4, 5]),
        (vec![group("a"), group("b")], vec![3, 4, 5]),
        (vec![site("x")], vec![1, 3, 5]),
        (vec![site("x"), site("y"), site("z")], vec![3]),
        (vec![site("y"), group("a")], vec![2, 3, 4]),
    ] {
        assert_eq!(
            found(store, &campaign, &busy, OpenFor::All).await,
            set(&left),
            "{busy:?}"
        );
        // Together with a window that is open for everybody, and one that is for nobody.
        let all = OpenFor::AllBut(vec!["Asia/Tokyo".into()]);
        assert_eq!(
            found(store, &campaign, &busy, all).await,
            set(&left),
            "{busy:?}"
        );
        let nobody = OpenFor::Zones(vec!["Asia/Tokyo".into()]);
        assert_eq!(
            found(store, &campaign, &busy, nobody).await,
            set(&[]),
            "{busy:?}"
        );
    }
    let mut tx = store.begin().await.unwrap();
    let query = ClaimQuery {
        offers: false,
        ..all_due(&campaign, at(9))
    };
    assert!(
        tx.claimable(&query).await.unwrap().is_empty(),
        "nobody holds it"
    );
    let keys = [1, 4].map(device_ota_domain::device::DeviceKey);
    let mut labels = tx.labels(&keys).await.unwrap();
    labels.sort_by_key(|labels| labels.device);
    assert_eq!(labels.len(), 2);
    assert_eq!(labels[0].groups, ["a"]);
    assert_eq!(labels[1].tags.get("site \"x\"").map(String::as_str), None);
}

async fn single_devices_behind_busy_lines_are_passed_over(store: &dyn Store) {
    fleet_of_sites(store).await;
    let mut updates = Vec::new();
    for n in 0..3_u8 {
        let device = store
            .device(&name(n.into()).parse().unwrap())
            .await
            .unwrap()
            .unwrap();
        updates.push(single(n + 1, device.key, &name(n.into()), "9.0.0"));
    }
    insert(store, &updates).await;
    for (busy, many) in [
        (vec![], 3),
        (vec![group("a")], 1),
        (vec![site("x")], 1),
        (vec![group("b"), site("x")], 0),
    ] {
        let query = SingleQuery {
            action: Action::Update,
            now: at(9),
            limit: 10,
            here: None,
            busy,
            ahead: Ahead::default(),
        };
        let mut tx = store.begin().await.unwrap();
        assert_eq!(
            tx.claimable_singles(&query).await.unwrap().len(),
            many,
            "{query:?}"
        );
        tx.commit().await.unwrap();
    }
}
