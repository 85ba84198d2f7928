//! When the time of updates begins that are given up in the end, and what becomes of them then.

use std::collections::BTreeMap;

use device_ota_domain::campaign::{Campaign, Named};
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::update::{Update, UpdateState};
use device_ota_engine::ports::store::{Aim, ClaimQuery, Store};

use crate::continuous::updates;
use crate::fixture::*;

crate::stories!(
    the_time_of_an_update_begins_with_its_stage_and_of_what_is_held_with_the_last,
    without_an_end_no_time_begins,
    a_campaign_does_not_take_up_again_whom_it_has_given_up,
);

const TIMES: &str =
    r#""give_up_after_hours":2,"timeouts":{"download_minutes":5,"install_minutes":4}"#;

/// How many updates are given up when, by stage.
async fn ends(store: &dyn Store, campaign: &Campaign) -> BTreeMap<(u16, Option<i64>), usize> {
    let mut ends = BTreeMap::new();
    for update in updates(store, campaign).await {
        let end = update
            .give_up_at
            .map(|end| end.as_second() - at(0).as_second());
        *ends.entry((update.stage, end)).or_default() += 1;
    }
    ends
}

async fn begin(store: &dyn Store, campaign: &Campaign, stage: u16, now: i64) {
    let mut tx = store.begin().await.unwrap();
    tx.begin_time(&campaign.id, stage, at(now)).await.unwrap();
    tx.commit().await.unwrap();
}

async fn timeless(store: &dyn Store, campaign: &Campaign) -> Option<u16> {
    store.counts(&campaign.id).await.unwrap().timeless
}

async fn the_time_of_an_update_begins_with_its_stage_and_of_what_is_held_with_the_last(
    store: &dyn Store,
) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 10).await;
    let draft =
        format!(r#"{TIMES},"deployment_strategy":"blue_green","stages":[{{"percent":50}}]"#);
    let campaign = start(store, campaign(1, &firmware, &draft), &firmware).await;
    let all = updates(store, &campaign).await;
    let times = all[0].times;
    assert!(all.iter().all(|update| update.times == times));
    assert_eq!(
        (
            times.download_seconds,
            times.install_seconds,
            times.give_up_after_seconds
        ),
        (Some(300), Some(240), Some(7_200))
    );
    assert_eq!(timeless(store, &campaign).await, Some(0));
    begin(store, &campaign, 0, 10).await;
    begin(store, &campaign, 0, 20).await; // once
    let one_begun = BTreeMap::from([((0, Some(7_210)), 5), ((1, None), 5)]);
    assert_eq!(ends(store, &campaign).await, one_begun);
    assert_eq!(timeless(store, &campaign).await, Some(1));
    assert_eq!(store.expired(at(7_209), None, 100).await.unwrap().len(), 0);
    assert_eq!(store.expired(at(7_210), None, 100).await.unwrap().len(), 5);

    // Two of them hold it, and have until they are told to flip.
    let query = ClaimQuery {
        limit: 2,
        hold: true,
        ..all_due(&campaign, at(30))
    };
    let claimed = claim(
        store,
        &ClaimQuery {
            up_to_stage: 0,
            ..query
        },
    )
    .await;
    let mut tx = store.begin().await.unwrap();
    let held = claimed.into_iter().map(|update| {
        let before = update.standing();
        let state = UpdateState::Staged { since: at(40) };
        let give_up_at = None;
        (
            before,
            Update {
                state,
                give_up_at,
                ..update
            },
        )
    });
    save(tx.as_mut(), &held.collect::<Vec<_>>()).await;
    tx.commit().await.unwrap();
    begin(store, &campaign, 1, 50).await;
    assert_eq!(timeless(store, &campaign).await, Some(2), "the activation");
    let mut begun = BTreeMap::from([((0, Some(7_210)), 3), ((0, None), 2), ((1, Some(7_250)), 5)]);
    assert_eq!(ends(store, &campaign).await, begun);
    begin(store, &campaign, 2, 60).await;
    begun.remove(&(0, None));
    begun.insert((0, Some(7_260)), 2);
    assert_eq!(ends(store, &campaign).await, begun);
    assert_eq!(timeless(store, &campaign).await, None);
}

async fn without_an_end_no_time_begins(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 3).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    assert_eq!(timeless(store, &campaign).await, None);
    begin(store, &campaign, 3, 10).await;
    let all = updates(store, &campaign).await;
    assert!(all.iter().all(|update| update.give_up_at.is_none()));
}

async fn a_campaign_does_not_take_up_again_whom_it_has_given_up(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 2).await;
    let draft = format!(r#"{TIMES},"continuous":true,"deployment_strategy":"immediate""#);
    let campaign = start(store, campaign(1, &firmware, &draft), &firmware).await;
    let all = updates(store, &campaign).await;
    let because = [Exclusion::OutOfTime, Exclusion::NotMeant];
    let ended = all.iter().zip(because).map(|(update, because)| {
        let state = UpdateState::Cancelled {
            at: at(9),
            because: Some(because),
        };
        (
            update.standing(),
            Update {
                state,
                ..update.clone()
            },
        )
    });
    let ended: Vec<_> = ended.collect();
    let mut tx = store.begin().await.unwrap();
    save(tx.as_mut(), &ended).await;
    tx.commit().await.unwrap();
    let named = Named::default();
    let aim = Aim {
        spec: &campaign.spec,
        named: &named,
        firmware: &firmware,
        now: at(10),
    };
    let found = store.drift(&campaign.id, aim, 100).await.unwrap();
    assert_eq!(found.returns, [(all[1].id.clone(), 0)]);
    assert_eq!(found.len(), 1);
}
