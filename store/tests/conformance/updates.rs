//! Updates: what is written comes back, what falls due is found, lists are filtered.

use device_ota_domain::campaign::Group;
use device_ota_domain::page::Page;
use device_ota_domain::update::{
    Action, Aftermath, Failure, Phase, Progress, Regression, Retry, Times, Update, UpdateState,
};
use device_ota_engine::ports::store::{NewDevice, Store, Touch, UpdateFilter};

use crate::fixture::*;

crate::stories!(
    every_state_reads_back_as_it_was_saved,
    a_large_batch_is_saved_whole,
    time_that_ran_out_is_found,
    unanswered_offers_and_cancels_are_found,
    updates_are_locked_by_name_and_by_device,
    only_updates_that_can_still_stop_are_cancellable,
    lists_are_filtered_and_newest_first,
    what_a_device_ran_is_found_however_long_ago,
);

fn in_flight(phase: Phase) -> UpdateState {
    UpdateState::InFlight {
        phase,
        since: at(10),
        lease_until: at(70),
        deadline: at(600),
        part_until: None,
        cancel_requested: false,
        hold: false,
    }
}

fn failure() -> Failure {
    Failure::new("hash_mismatch", "got 1, \"wanted\" 2", Retry::Backoff)
}

async fn every_state_reads_back_as_it_was_saved(store: &dyn Store) {
    let keys = fleet(store, 1).await;
    let mut update = Update {
        times: Times {
            download_seconds: Some(60),
            install_seconds: None,
            give_up_after_seconds: Some(7_200),
        },
        ..single(1, keys[0], &name(0), "2.0.0")
    };
    insert(store, std::slice::from_ref(&update)).await;
    assert_eq!(
        store.update(&update.id).await.unwrap().as_ref(),
        Some(&update)
    );
    let mut states = vec![
        UpdateState::Pending {
            due_at: at(3),
            lost_at: Some(at(9)),
            last_failure: Some(failure()),
        },
        UpdateState::Completed { at: at(20) },
        UpdateState::Failed {
            at: at(21),
            failure: Failure::new("lost", "", Retry::Now),
        },
        UpdateState::Cancelled {
            at: at(22),
            because: None,
        },
        UpdateState::Staged { since: at(23) },
        UpdateState::InFlight {
            phase: Phase::Downloading,
            since: at(10),
            lease_until: at(70),
            deadline: at(600),
            part_until: Some(at(300)),
            cancel_requested: false,
            hold: true,
        },
        UpdateState::Pending {
            due_at: at(3),
            lost_at: None,
            last_failure: None,
        },
    ];
    states.extend(Phase::ALL.map(in_flight));
    for (n, state) in (1..).zip(states) {
        update = Update {
            state,
            attempt: n,
            last_seq: u64::from(n) * 7,
            retries: n,
            max_retries: n + 1,
            give_up_at: (n % 3 == 0).then(|| at(99)),
            from_version: (n % 2 == 0).then(|| "1.2.3".into()),
            progress: Progress {
                percent: 12.5,
                bytes_done: 5,
                bytes_total: 1 << 40,
                bytes_earlier: u64::from(n) * 3,
                speed_bps: 9,
            },
            started_at: Some(at(4)),
            updated_at: at(i64::from(n)),
            ..update
        };
        let mut tx = store.begin().await.unwrap();
        tx.save_updates(std::slice::from_ref(&update))
            .await
            .unwrap();
        tx.commit().await.unwrap();
        assert_eq!(
            store.update(&update.id).await.unwrap().as_ref(),
            Some(&update)
        );
    }
}

async fn a_large_batch_is_saved_whole(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 1_237).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    let claimed = claim(store, &all_due(&campaign, at(5))).await;
    assert_eq!(claimed.len(), 1_237);
    let mut tx = store.begin().await.unwrap();
    let ids: Vec<_> = claimed.iter().map(|u| u.id.clone()).collect();
    let mut found = tx.updates(&ids).await.unwrap();
    let mut expected = claimed;
    found.sort_by(|a, b| a.id.as_str().cmp(b.id.as_str()));
    expected.sort_by(|a, b| a.id.as_str().cmp(b.id.as_str()));
    assert_eq!(found, expected);
}

async fn time_that_ran_out_is_found(store: &dyn Store) {
    let keys = fleet(store, 5).await;
    let update = |n: u8, state| Update {
        state,
        ..single(n, keys[usize::from(n)], &name(usize::from(n)), "2.0.0")
    };
    let lost = UpdateState::Pending {
        due_at: at(3),
        lost_at: Some(at(65)),
        last_failure: None,
    };
    let waits = UpdateState::Pending {
        due_at: at(3),
        lost_at: None,
        last_failure: None,
    };
    let long_lease = UpdateState::InFlight {
        phase: Phase::Accepted,
        since: at(3),
        lease_until: at(500),
        deadline: at(60),
        part_until: None,
        cancel_requested: false,
        hold: false,
    };
    let slow = UpdateState::InFlight {
        phase: Phase::Downloading,
        since: at(3),
        lease_until: at(500),
        deadline: at(600),
        part_until: Some(at(80)),
        cancel_requested: false,
        hold: false,
    };
    insert(
        store,
        &[
            update(0, in_flight(Phase::Accepted)),
            update(1, lost),
            update(2, waits),
            update(3, long_lease),
            update(4, slow),
        ],
    )
    .await;
    let expired = async |now| {
        let found = store.expired(at(now), None, 10).await.unwrap();
        found
            .into_iter()
            .map(|f| (f.update.device, f.last_seen))
            .collect::<Vec<_>>()
    };
    assert_eq!(expired(59).await, []);
    let (a, b, d) = (
        (keys[0], Some(at(1))),
        (keys[1], Some(at(1))),
        (keys[3], Some(at(1))),
    );
    assert_eq!(expired(60).await, [d], "its deadline");
    assert_eq!(expired(65).await, [d, b], "and the loss");
    assert_eq!(expired(70).await, [d, b, a], "and the lease");
    let e = (keys[4], Some(at(1)));
    assert_eq!(expired(80).await, [d, b, a, e], "and a part's time");
    assert_eq!(store.expired(at(70), None, 2).await.unwrap().len(), 2);
}

async fn unanswered_offers_and_cancels_are_found(store: &dyn Store) {
    let keys = fleet(store, 6).await;
    let cancelling = |phase| match in_flight(phase) {
        UpdateState::InFlight {
            phase,
            since,
            lease_until,
            deadline,
            ..
        } => UpdateState::InFlight {
            phase,
            since,
            lease_until,
            deadline,
            part_until: None,
            cancel_requested: true,
            hold: false,
        },
        other => other,
    };
    let update = |n: u8, state, seconds| Update {
        state,
        updated_at: at(seconds),
        ..single(n, keys[usize::from(n)], &name(usize::from(n)), "2.0.0")
    };
    insert(
        store,
        &[
            update(0, in_flight(Phase::Offered), 12),
            update(1, in_flight(Phase::Downloading), 10),
            update(2, cancelling(Phase::Downloading), 11),
            update(3, in_flight(Phase::Offered), 30),
            update(4, in_flight(Phase::Offered), 10),
            update(5, in_flight(Phase::Staged), 9),
        ],
    )
    .await;
    touch(
        store,
        &[Touch {
            device: keys[4],
            online: Some((false, 9)),
            ..Touch::default()
        }],
    )
    .await;
    let found = store.unanswered(at(20), at(50), None, 10).await.unwrap();
    assert_eq!(
        found.iter().map(|u| u.device).collect::<Vec<_>>(),
        [keys[5], keys[2], keys[0]],
        "oldest first"
    );
    let one = store.unanswered(at(20), at(50), None, 1).await.unwrap();
    assert_eq!(one.len(), 1);
    let set_back = store.unanswered(at(-90), at(-60), None, 10).await.unwrap();
    assert!(set_back.len() >= 2, "the clock was set back: {set_back:?}");
}

async fn updates_are_locked_by_name_and_by_device(store: &dyn Store) {
    let keys = fleet(store, 3).await;
    let flying = Update {
        state: in_flight(Phase::Accepted),
        ..single(1, keys[0], &name(0), "2.0.0")
    };
    let waiting = single(2, keys[1], &name(1), "2.0.0");
    insert(store, &[flying.clone(), waiting.clone()]).await;
    let mut tx = store.begin().await.unwrap();
    assert_eq!(
        tx.in_flight(&keys).await.unwrap(),
        std::slice::from_ref(&flying)
    );
    let unknown = device_ota_domain::UpdateId::from_entropy([9; 8]);
    let found = tx
        .updates(&[waiting.id.clone(), unknown, flying.id.clone()])
        .await
        .unwrap();
    assert_eq!(found, [flying.clone(), waiting]);
    assert_eq!(tx.updates(&[]).await.unwrap(), []);
    drop(tx);
    let later = [3, 4].map(|n| single(n, keys[0], &name(0), &format!("{n}.0.0")));
    insert(store, &later).await;
    let [first, second] = later;
    let newest = async |limit| store.newest_open(keys[0], limit).await.unwrap();
    assert_eq!(newest(2).await, [flying.clone(), second.clone()]);
    assert_eq!(newest(9).await, [flying, second, first]);
    assert_eq!(store.newest_open(keys[2], 9).await.unwrap(), []);
}

async fn only_updates_that_can_still_stop_are_cancellable(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 8).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    let mut claimed = claim(store, &all_due(&campaign, at(5))).await;
    for (update, phase) in claimed.iter_mut().zip(Phase::ALL) {
        update.state = in_flight(phase);
    }
    let asked = claimed.last_mut().unwrap();
    *asked = asked.clone().cancel(at(6)).unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.save_updates(&claimed).await.unwrap();
    let found = tx
        .cancellable(&campaign.id, Action::Update, None, 10)
        .await
        .unwrap();
    let expected: Vec<_> = claimed
        .iter()
        .filter(|u| matches!(u.state, UpdateState::InFlight { phase, cancel_requested: false, .. } if phase.can_cancel()))
        .cloned()
        .collect();
    assert_eq!(found, expected);
    assert_eq!(
        tx.cancellable(&campaign.id, Action::Update, None, 2)
            .await
            .unwrap()
            .len(),
        2
    );
}

async fn lists_are_filtered_and_newest_first(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let keys = fleet(store, 3).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    insert(store, &[single(1, keys[0], &name(0), "3.0.0")]).await;
    let list = async |filter: UpdateFilter, page: Page| {
        let found = store.updates(&filter, page).await.unwrap();
        found
            .into_iter()
            .map(|u| (u.device_id.to_string(), u.to_version))
            .collect::<Vec<_>>()
    };
    let row = |n: usize, version: &str| (name(n), version.to_owned());
    let all = UpdateFilter::default();
    let of_device = UpdateFilter {
        device: Some(name(0).parse().unwrap()),
        ..all.clone()
    };
    let of_campaign = UpdateFilter {
        campaign: Some(campaign.id.clone()),
        ..all.clone()
    };
    let of_both = UpdateFilter {
        campaign: Some(campaign.id.clone()),
        ..of_device.clone()
    };
    let failed = UpdateFilter {
        group: Some(Group::Failed),
        ..all.clone()
    };
    let rollbacks = UpdateFilter {
        action: Some(Action::Rollback),
        ..of_campaign.clone()
    };
    let four = [
        row(0, "3.0.0"),
        row(2, "2.0.0"),
        row(1, "2.0.0"),
        row(0, "2.0.0"),
    ];
    assert_eq!(list(all.clone(), Page::default()).await, four);
    assert_eq!(list(all, Page::new(2, 1).unwrap()).await, four[1..3]);
    assert_eq!(
        list(of_device, Page::default()).await,
        [row(0, "3.0.0"), row(0, "2.0.0")]
    );
    assert_eq!(list(of_campaign, Page::default()).await, four[1..]);
    assert_eq!(list(of_both, Page::default()).await, four[3..]);
    assert!(list(failed, Page::default()).await.is_empty());
    assert!(list(rollbacks, Page::default()).await.is_empty());
}

async fn what_a_device_ran_is_found_however_long_ago(store: &dyn Store) {
    let keys = fleet(store, 1).await;
    let id = name(0);
    let mut first = single(1, keys[0], &id, "2.0.0");
    first.state = UpdateState::Completed { at: at(3) };
    let mut again = single(2, keys[0], &id, "2.0.0");
    again.state = first.state.clone();
    let mut rows = vec![first, again];
    // More than any page holds has come since, and brought nothing.
    for n in 0..250_i64 {
        let mut failed = single(3, keys[0], &id, "3.0.0");
        failed.id = format!("upd_{n:016x}").parse().unwrap();
        failed.state = UpdateState::Failed {
            at: at(4),
            failure: failure(),
        };
        rows.push(failed);
    }
    insert(store, &rows).await;
    let device = store.device(&id.parse().unwrap()).await.unwrap().unwrap();
    let ran = async |version: &str| store.ran(&device, version).await.unwrap();
    let newest = Some(rows[1].clone());
    assert_eq!(ran("2.0.0").await, newest, "the newest that brought it");
    assert_eq!(ran("1.0.0").await, newest, "what it came from");
    assert_eq!(ran("3.0.0").await, None, "it never arrived there");

    // What it completed and did not stay with, it has not run; what it came from, it has.
    let mut tx = store.begin().await.unwrap();
    for row in &mut rows[..2] {
        row.aftermath = Aftermath::Regressed(Regression {
            at: at(6),
            failure: failure(),
        });
    }
    tx.save_updates(&rows[..2]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(ran("2.0.0").await, None);
    assert_eq!(ran("1.0.0").await.as_ref(), Some(&rows[1]));

    // Another device under the old id has run nothing yet.
    let device_id: device_ota_domain::DeviceId = id.parse().unwrap();
    let mut tx = store.begin().await.unwrap();
    assert_eq!(tx.device(&device_id).await.unwrap().as_ref(), Some(&device));
    assert_eq!(tx.peek_open(device.key).await.unwrap(), []);
    assert!(tx.delete_device(&device_id, at(50)).await.unwrap());
    assert_eq!(tx.device(&device_id).await.unwrap(), None);
    let successor = NewDevice {
        at: at(55),
        ..new_device(&id, 7)
    };
    tx.register(&[successor]).await.unwrap();
    tx.commit().await.unwrap();
    let device = store.device(&id.parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(store.ran(&device, "2.0.0").await.unwrap(), None);
}
