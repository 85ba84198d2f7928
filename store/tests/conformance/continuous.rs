//! Continuous campaigns: what has come apart from whom they mean is what the domain says, and is put right once.

use std::collections::{BTreeMap, BTreeSet};

use device_ota_domain::campaign::{Campaign, Group};
use device_ota_domain::device::Device;
use device_ota_domain::page::Page;
use device_ota_domain::ring::Ring;
use device_ota_domain::targeting::{Exclusion, Stages, cuts_after_start, judge};
use device_ota_domain::update::{Update, UpdateState};
use device_ota_domain::{Firmware, UpdateId};
use device_ota_engine::ports::store::{Aim, Drift, NewDevice, Store, Touch, UpdateFilter};
use device_ota_engine::ports::telemetry::DeviceFilter;

use crate::fixture::*;

crate::stories!(
    a_fleet_that_changes_is_followed,
    whoever_is_taken_in_is_counted_once,
    a_stage_of_a_number_has_had_its_devices,
);

/// Devices that there may be.
const FLEET: usize = 60;
const ROUNDS: usize = 8;
const NOW: i64 = 100;

/// A small number that looks like any other.
fn any(n: usize, round: usize, of: usize) -> usize {
    (n * 7_919 + round * 104_729 + n * n * round * 31 + n * round * 613) / 7 % of
}

/// A device as it is registered in a round.
fn device(n: usize, round: usize) -> NewDevice {
    let mut new = new_device(&name(n), u16::try_from(n * 163 % 10_000).unwrap());
    let said = &mut new.registration;
    said.groups = ["home", "shop", "lab"][any(n, round, 3)..][..1]
        .iter()
        .map(|g| (*g).to_owned())
        .collect();
    said.tags = BTreeMap::from([(
        "site".to_owned(),
        ["a", "b"][any(n, round + 3, 2)].to_owned(),
    )]);
    said.ring = [None, None, Some(Ring::Canary), Some(Ring::Production)][any(n, round + 5, 4)];
    if any(n, round, 11) == 0 {
        said.device_model = "other".into();
    }
    new
}

/// Something happens to every third device: it comes, changes, goes, or says what it runs.
async fn change(store: &dyn Store, round: usize) {
    let mut tx = store.begin().await.unwrap();
    for n in (0..FLEET).filter(|n| any(*n, round + 1, 3) == 0) {
        let new = device(n, round);
        let id = &new.registration.device_id;
        match (tx.device(id).await.unwrap(), any(n, round, 4)) {
            (None, _) => drop(tx.register(&[new]).await.unwrap()),
            (Some(_), 0) => drop(tx.delete_device(id, at(NOW)).await.unwrap()),
            (Some(known), 1) => {
                let said = Touch {
                    device: known.key,
                    version: Some(["1.0.0", "2.0.0"][any(n, round + 2, 2)].to_owned()),
                    ..Touch::default()
                };
                tx.touch(&[said]).await.unwrap();
            }
            (Some(_), _) => drop(tx.save_device(&new.registration).await.unwrap()),
        }
    }
    tx.commit().await.unwrap();
}

async fn devices(store: &dyn Store) -> Vec<Device> {
    let page = Page::new(200, 0).unwrap();
    let found = store.devices(&DeviceFilter::default(), page).await;
    found.unwrap()
}

pub(crate) async fn updates(store: &dyn Store, campaign: &Campaign) -> Vec<Update> {
    let filter = UpdateFilter {
        campaign: Some(campaign.id.clone()),
        ..UpdateFilter::default()
    };
    store
        .updates(&filter, Page::new(200, 0).unwrap())
        .await
        .unwrap()
}

/// What the domain says has come apart.
async fn expected(store: &dyn Store, campaign: &Campaign, firmware: &Firmware) -> Drift {
    let spec = &campaign.spec;
    let cuts = cuts_after_start(spec);
    let named = store.named(campaign).await.unwrap();
    let stages = Stages::new(spec, &named, &cuts);
    let fleet = devices(store).await;
    let fleet: BTreeMap<i64, &Device> = fleet.iter().map(|d| (d.key.0, d)).collect();
    let place = |key: i64| {
        let device = fleet.get(&key).ok_or(Exclusion::UnknownDevice)?;
        judge(spec, &named, &firmware.metadata, device, at(NOW))?;
        Ok(stages.stage_of(device, at(NOW)).unwrap())
    };
    let mut drift = Drift::default();
    let mut updates = updates(store, campaign).await;
    updates.reverse();
    let owned: BTreeSet<i64> = updates.iter().map(|u| u.device.0).collect();
    for (key, device) in &fleet {
        if !owned.contains(key) && place(*key).is_ok() {
            drift.newcomers.push(device.key);
        }
    }
    for update in updates {
        let settled = matches!(
            update.state,
            UpdateState::Cancelled {
                because: Some(_),
                ..
            }
        );
        let waits = update.group() == Group::Pending && update.attempt == 0;
        match place(update.device.0) {
            Err(because) if waits => drift.leaves.push((update.id, because)),
            Ok(stage) if waits && stage != update.stage => drift.moves.push((update.id, stage)),
            Ok(stage) if settled => drift.returns.push((update.id, stage)),
            _ => {}
        }
    }
    drift
}

async fn drift(store: &dyn Store, campaign: &Campaign, firmware: &Firmware, limit: u32) -> Drift {
    let named = store.named(campaign).await.unwrap();
    let aim = Aim {
        spec: &campaign.spec,
        named: &named,
        firmware,
        now: at(NOW),
    };
    store.drift(&campaign.id, aim, limit).await.unwrap()
}

/// Puts right what has come apart.
async fn follow(store: &dyn Store, campaign: &Campaign, firmware: &Firmware, drift: &Drift) {
    let mut tx = store.begin().await.unwrap();
    tx.take_in(campaign, firmware, at(NOW), &drift.newcomers)
        .await
        .unwrap();
    let mut changed = Vec::new();
    for (id, because) in &drift.leaves {
        let update = tx
            .updates(std::slice::from_ref(id))
            .await
            .unwrap()
            .remove(0);
        let before = update.standing();
        changed.push((before, update.settle(*because, at(NOW)).unwrap()));
    }
    for (id, _) in &drift.returns {
        let update = tx
            .updates(std::slice::from_ref(id))
            .await
            .unwrap()
            .remove(0);
        let before = update.standing();
        changed.push((before, update.rejoin(at(NOW)).unwrap()));
    }
    save(tx.as_mut(), &changed).await;
    let moves: Vec<(UpdateId, u16)> = [drift.moves.clone(), drift.returns.clone()].concat();
    tx.restage(&campaign.id, &moves, at(NOW)).await.unwrap();
    tx.commit().await.unwrap();
}

async fn books_are_kept(store: &dyn Store, campaign: &Campaign) {
    let kept = store.counts(&campaign.id).await.unwrap();
    assert_eq!(kept, store.counts_by_rows(&campaign.id).await.unwrap());
    let read = store.campaign(&campaign.id).await.unwrap().unwrap();
    assert_eq!(read.target_count, kept.updates().total());
}

async fn a_fleet_that_changes_is_followed(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    change(store, 0).await;
    let drafts = [
        r#""continuous":true,"deployment_strategy":"immediate""#,
        r#""continuous":true,"target_groups":["home"],"rollout_percentage":60"#,
        r#""continuous":true,"deployment_strategy":"canary","target_filters":{"field":"tags.site","op":"eq","value":"a"},
           "stages":[{"filter":{"field":"groups","op":"eq","value":"lab"}},{"count":5},{"percent":50}]"#,
    ];
    let mut campaigns = Vec::new();
    for (n, draft) in (1..).zip(drafts) {
        campaigns.push(start(store, campaign(n, &firmware, draft), &firmware).await);
    }
    let mut seen = [0; 4];
    for round in 1..ROUNDS {
        change(store, round).await;
        for campaign in &campaigns {
            let counted: Vec<u16> = cuts_after_start(&campaign.spec).into_keys().collect();
            let mut expected = expected(store, campaign, &firmware).await;
            // Whoever came to a stage of a number stays there.
            let of = updates(store, campaign).await;
            let stage_of = |id: &UpdateId| of.iter().find(|u| u.id == *id).unwrap().stage;
            expected
                .moves
                .retain(|(id, _)| !counted.contains(&stage_of(id)));
            for (id, stage) in &mut expected.returns {
                if counted.contains(&stage_of(id)) {
                    *stage = stage_of(id);
                }
            }
            let found = drift(store, campaign, &firmware, 1_000).await;
            assert_eq!(found, expected, "round {round}, {}", campaign.spec.name);
            for (seen, many) in seen.iter_mut().zip([
                found.newcomers.len(),
                found.leaves.len(),
                found.returns.len(),
                found.moves.len(),
            ]) {
                *seen += many;
            }
            let few = drift(store, campaign, &firmware, 1).await;
            assert!(few.newcomers.len() <= 1 && few.len() <= 1, "{few:?}");
            follow(store, campaign, &firmware, &found).await;
            books_are_kept(store, campaign).await;
            let again = drift(store, campaign, &firmware, 1_000).await;
            assert_eq!(again, Drift::default(), "round {round}");
        }
    }
    assert!(seen.iter().all(|many| *many > 3), "{seen:?}");
    // What is read of an update says why it ended.
    let all = updates(store, &campaigns[1]).await;
    let settled = all.iter().find(|u| u.group() == Group::Cancelled).unwrap();
    assert!(matches!(
        settled.state,
        UpdateState::Cancelled {
            because: Some(_),
            ..
        }
    ));
}

async fn whoever_is_taken_in_is_counted_once(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 3).await;
    let draft = r#""continuous":true,"deployment_strategy":"immediate""#;
    let begun = start(store, campaign(1, &firmware, draft), &firmware).await;
    let keys = register(store, &[new_device("late-1", 1), new_device("late-2", 2)]).await;
    for expected in [2, 0] {
        let mut tx = store.begin().await.unwrap();
        let taken = tx.take_in(&begun, &firmware, at(NOW), &keys).await.unwrap();
        assert_eq!(taken, expected);
        tx.commit().await.unwrap();
        books_are_kept(store, &begun).await;
    }
    assert_eq!(updates(store, &begun).await.len(), 5);
    online(store, &keys).await;
    let claimed = claim(store, &all_due(&begun, at(NOW))).await;
    assert_eq!(claimed.len(), 5);
    // What was offered is left alone, whatever becomes of its device.
    let mut tx = store.begin().await.unwrap();
    let mut other = new_device("late-1", 1).registration;
    other.device_model = "other".into();
    tx.save_device(&other).await.unwrap();
    assert_eq!(
        tx.restage(&begun.id, &[(claimed[0].id.clone(), 0)], at(NOW))
            .await
            .unwrap(),
        0
    );
    tx.commit().await.unwrap();
    assert_eq!(drift(store, &begun, &firmware, 10).await, Drift::default());
}

async fn a_stage_of_a_number_has_had_its_devices(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 10).await;
    let draft = r#""continuous":true,"deployment_strategy":"canary","stages":[{"count":3}]"#;
    let begun = start(store, campaign(1, &firmware, draft), &firmware).await;
    // On the wheel it comes before all others, and yet to the stage behind.
    register(store, &[new_device("first", 0)]).await;
    let found = drift(store, &begun, &firmware, 10).await;
    assert_eq!((found.newcomers.len(), found.len()), (1, 1));
    follow(store, &begun, &firmware, &found).await;
    let counts = store.counts(&begun.id).await.unwrap();
    let pending: Vec<u64> = counts.stages.iter().map(|stage| stage.pending).collect();
    assert_eq!(pending, [3, 8]);
    books_are_kept(store, &begun).await;
}
