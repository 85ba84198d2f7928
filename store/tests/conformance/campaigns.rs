//! Campaigns: rows, revisions, and whom they mean.

use device_ota_domain::campaign::{Approval, Campaign, Named, Priority};
use device_ota_domain::page::Page;
use device_ota_domain::ring::Ring;
use device_ota_domain::update::{Action, UpdateState};
use device_ota_engine::ports::StoreError;
use device_ota_engine::ports::store::{CampaignFilter, Store, UpdateFilter};

use crate::fixture::*;

crate::stories!(
    a_campaign_reads_back_as_it_was_stored,
    a_stale_revision_is_turned_away,
    campaigns_are_listed_newest_first_and_filtered,
    a_campaign_is_written_anew_and_deleted,
    the_planner_sees_what_may_still_move,
    a_campaign_means_every_device_of_the_model,
    named_devices_and_groups_are_united,
    devices_that_have_it_or_cannot_run_it_are_left_out,
    rings_divide_the_wheel_and_pins_win,
    a_rollout_share_leaves_the_rest_out,
    cancelling_ends_what_waits,
);

async fn store_campaign(store: &dyn Store, campaign: &Campaign) {
    let mut tx = store.begin().await.unwrap();
    tx.insert_campaign(campaign).await.unwrap();
    tx.commit().await.unwrap();
}

async fn a_campaign_reads_back_as_it_was_stored(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let campaign = campaign(
        1,
        &firmware,
        r#""priority":"critical","target_groups":["ü"]"#,
    );
    store_campaign(store, &campaign).await;
    assert_eq!(
        store.campaign(&campaign.id).await.unwrap(),
        Some(campaign.clone())
    );
    let counts = store.counts(&campaign.id).await.unwrap();
    assert_eq!(
        counts.stages,
        [device_ota_domain::campaign::Tally::default(); 4]
    );
    let mut tx = store.begin().await.unwrap();
    assert_eq!(tx.campaign(&campaign.id).await.unwrap(), Some(campaign));
}

async fn a_stale_revision_is_turned_away(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let campaign = campaign(1, &firmware, "");
    store_campaign(store, &campaign).await;
    let mut next = campaign.clone();
    next.state = next.state.start(at(5), at(5)).unwrap();
    next.updated_at = at(5);
    let mut tx = store.begin().await.unwrap();
    tx.save_campaign(&next).await.unwrap();
    let refused = tx.save_campaign(&next).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict("the campaign"))),
        "{refused:?}"
    );
    tx.commit().await.unwrap();
    next.revision = 1;
    assert_eq!(store.campaign(&campaign.id).await.unwrap(), Some(next));
}

async fn campaigns_are_listed_newest_first_and_filtered(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    store_campaign(store, &campaign(1, &firmware, r#""priority":"low""#)).await;
    let started = start(
        store,
        campaign(2, &firmware, r#""priority":"high""#),
        &firmware,
    )
    .await;
    store_campaign(store, &campaign(3, &firmware, "")).await;
    let list = async |filter: CampaignFilter, page: Page| {
        let found = store.campaigns(&filter, page).await.unwrap();
        found.into_iter().map(|c| c.spec.name).collect::<Vec<_>>()
    };
    assert_eq!(
        list(CampaignFilter::default(), Page::default()).await,
        ["c3", "c2", "c1"]
    );
    assert_eq!(
        list(CampaignFilter::default(), Page::new(1, 2).unwrap()).await,
        ["c1"]
    );
    let running = CampaignFilter {
        status: Some("in_progress".into()),
        ..CampaignFilter::default()
    };
    assert_eq!(list(running, Page::default()).await, [started.spec.name]);
    let low = CampaignFilter {
        priority: Some(Priority::Low),
        ..CampaignFilter::default()
    };
    assert_eq!(list(low, Page::default()).await, ["c1"]);
}

async fn a_campaign_is_written_anew_and_deleted(store: &dyn Store) {
    let (old, new) = (image("frame", "2.0.0", 1), image("frame", "2.1.0", 2));
    upload(store, &old).await;
    upload(store, &new).await;
    fleet(store, 10).await;
    let before = campaign(1, &old, "");
    store_campaign(store, &before).await;
    let mut after = campaign(
        1,
        &new,
        r#""priority":"high","deployment_strategy":"immediate","target_filters":{"any":[]}"#,
    );
    after.approval = Approval::of_new(true, "someone");
    let mut tx = store.begin().await.unwrap();
    tx.replace_spec(&after).await.unwrap();
    tx.save_campaign(&after).await.unwrap();
    tx.commit().await.unwrap();
    after.revision = 1;
    assert_eq!(
        store.campaign(&after.id).await.unwrap(),
        Some(after.clone())
    );
    assert_eq!(store.counts(&after.id).await.unwrap().stages.len(), 1);
    let of = async |firmware: &device_ota_domain::Firmware| {
        let filter = CampaignFilter {
            firmware: Some(firmware.id.clone()),
            priority: Some(Priority::High),
            status: None,
        };
        store
            .campaigns(&filter, Page::default())
            .await
            .unwrap()
            .len()
    };
    assert_eq!((of(&old).await, of(&new).await), (0, 1));
    after.deleted_at = Some(at(9));
    let mut tx = store.begin().await.unwrap();
    tx.save_campaign(&after).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(of(&new).await, 0);
    after.revision = 2;
    assert_eq!(store.campaign(&after.id).await.unwrap(), Some(after));
}

async fn the_planner_sees_what_may_still_move(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 4).await;
    store_campaign(store, &campaign(1, &firmware, "")).await;
    start(store, campaign(2, &firmware, ""), &firmware).await;
    let mut cancelled = start(
        store,
        campaign(3, &firmware, r#""priority":"high""#),
        &firmware,
    )
    .await;
    let to_plan = async || {
        let found = store.campaigns_to_plan(at(0)).await.unwrap();
        found.into_iter().map(|c| c.spec.name).collect::<Vec<_>>()
    };
    assert_eq!(to_plan().await, ["c3", "c2"], "highest priority first");
    cancelled.state = cancelled.state.cancel(at(9)).unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.save_campaign(&cancelled).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(to_plan().await, ["c3", "c2"], "it still has updates open");
    let mut tx = store.begin().await.unwrap();
    assert_eq!(
        tx.cancel_pending(&cancelled.id, Action::Update, at(9))
            .await
            .unwrap(),
        4
    );
    tx.commit().await.unwrap();
    assert_eq!(to_plan().await, ["c2"]);
}

async fn a_campaign_means_every_device_of_the_model(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 20).await;
    let mut other = new_device("other", 0);
    other.registration.device_model = "X".into();
    register(store, &[other]).await;
    let campaign = campaign(1, &firmware, "");
    assert_eq!(count_targets(store, &campaign, &firmware).await, 20);
    let campaign = start(store, campaign, &firmware).await;
    assert_eq!(campaign.target_count, 20);
    let filter = UpdateFilter {
        campaign: Some(campaign.id.clone()),
        ..UpdateFilter::default()
    };
    let updates = store.updates(&filter, Page::default()).await.unwrap();
    let newest = &updates[0];
    assert_eq!(updates.len(), 20);
    assert_eq!(newest.device_id.as_str(), name(19));
    assert_eq!(
        (newest.attempt, newest.max_retries, newest.timeout_seconds),
        (0, 3, 3_600)
    );
    assert_eq!(
        (newest.from_version.as_deref(), newest.to_version.as_str()),
        (Some("1.0.0"), "2.0.0")
    );
    assert_eq!(
        newest.state,
        UpdateState::Pending {
            due_at: at(2),
            lost_at: None,
            last_failure: None
        }
    );
    assert_eq!(newest.firmware.as_ref(), Some(&firmware.id));
    // The same again makes nothing.
    let mut tx = store.begin().await.unwrap();
    assert_eq!(
        tx.make_updates(&campaign, &firmware, at(3)).await.unwrap(),
        0
    );
    tx.commit().await.unwrap();
    let counts = store.counts(&campaign.id).await.unwrap();
    assert_eq!(counts, store.counts_by_rows(&campaign.id).await.unwrap());
    assert_eq!(counts.updates().pending, 20);
}

async fn named_devices_and_groups_are_united(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let mut devices: Vec<_> = (0..6).map(|n| new_device(&name(n), 0)).collect();
    devices[1].registration.groups = vec!["lobby".into(), "beta".into()];
    devices[2].registration.groups = vec!["beta".into()];
    register(store, &devices).await;
    let draft = format!(
        r#""target_devices":["{}","{}","unknown"],"target_groups":["beta"]"#,
        name(0),
        name(1)
    );
    let (campaign, named) = campaign_naming(1, &firmware, &draft);
    let started = start_naming(store, (campaign, named.clone()), &firmware).await;
    assert_eq!(started.target_count, 3);
    assert_eq!(store.named(&started).await.unwrap(), named);
    let mut tx = store.begin().await.unwrap();
    let nobody = Named::default();
    tx.save_named(&started.id, &nobody).await.unwrap();
    tx.commit().await.unwrap();
    let lost = store.named(&started).await;
    assert!(lost.is_err(), "nobody is taken for everybody: {lost:?}");
}

async fn devices_that_have_it_or_cannot_run_it_are_left_out(store: &dyn Store) {
    let mut firmware = image("frame", "2.0.0", 1);
    firmware.metadata.hw_revisions = vec!["A".into(), "B".into()];
    upload(store, &firmware).await;
    let mut devices: Vec<_> = (0..5).map(|n| new_device(&name(n), 0)).collect();
    devices[0].registration.firmware_version = Some("2.0.0".into());
    devices[1].registration.firmware_version = None;
    devices[2].registration.hw_revision = Some("C".into());
    devices[3].registration.hw_revision = None;
    let keys = register(store, &devices).await;
    let campaign = campaign(1, &firmware, "");
    assert_eq!(
        count_targets(store, &campaign, &firmware).await,
        2,
        "devices 1 and 4"
    );
    let runs_it = device_ota_engine::ports::store::Touch {
        device: keys[4],
        version: Some("2.0.0".into()),
        ..device_ota_engine::ports::store::Touch::default()
    };
    touch(store, &[runs_it]).await;
    assert_eq!(
        count_targets(store, &campaign, &firmware).await,
        1,
        "its own word counts"
    );
}

async fn rings_divide_the_wheel_and_pins_win(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let mut devices: Vec<_> = (0..100)
        .map(|n| new_device(&name(usize::from(n)), n * 100))
        .collect();
    devices[99].registration.ring = Some(Ring::Canary);
    devices[0].registration.ring = Some(Ring::Production);
    register(store, &devices).await;
    let mut turned = campaign(2, &firmware, "");
    turned.spec.bucket_offset = 9_000;
    let plain = start(store, campaign(1, &firmware, ""), &firmware).await;
    let turned = start(store, turned, &firmware).await;
    let stages = async |campaign: &Campaign| {
        let counts = store.counts(&campaign.id).await.unwrap();
        assert_eq!(counts, store.counts_by_rows(&campaign.id).await.unwrap());
        counts
            .stages
            .iter()
            .map(|tally| tally.pending)
            .collect::<Vec<_>>()
    };
    assert_eq!(stages(&plain).await, [5, 20, 50, 25]);
    // Turned, buckets 1000 to 1499 are the canaries beside the pinned one.
    assert_eq!(stages(&turned).await, [6, 20, 50, 24]);
}

async fn a_rollout_share_leaves_the_rest_out(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 100).await;
    let campaign = start(
        store,
        campaign(1, &firmware, r#""rollout_percentage":30"#),
        &firmware,
    )
    .await;
    assert_eq!(campaign.target_count, 30);
}

async fn cancelling_ends_what_waits(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    fleet(store, 10).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    let mut query = all_due(&campaign, at(5));
    query.limit = 3;
    claim(store, &query).await;
    let mut tx = store.begin().await.unwrap();
    assert_eq!(
        tx.cancel_pending(&campaign.id, Action::Update, at(6))
            .await
            .unwrap(),
        7
    );
    assert_eq!(
        tx.cancel_pending(&campaign.id, Action::Update, at(6))
            .await
            .unwrap(),
        0
    );
    tx.commit().await.unwrap();
    let counts = store.counts(&campaign.id).await.unwrap();
    assert_eq!(
        (counts.updates().cancelled, counts.updates().in_flight),
        (7, 3)
    );
    assert_eq!(counts, store.counts_by_rows(&campaign.id).await.unwrap());
}
