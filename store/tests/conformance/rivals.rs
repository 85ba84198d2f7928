//! Campaigns that want the same devices: the database keeps devices for those for whom the domain keeps them.

use std::collections::{BTreeMap, BTreeSet};

use device_ota_domain::Update;
use device_ota_domain::campaign::{Campaign, Priority, Requires};
use device_ota_domain::device::Device;
use device_ota_domain::firmware::Firmware;
use device_ota_domain::planner::wants;
use device_ota_domain::update::{Action, UpdateState};
use device_ota_domain::why::keeps_device;
use device_ota_engine::ports::store::{Ahead, ClaimQuery, Prior, Store, Touch, UpdateFilter};

use crate::fixture::*;

crate::stories!(
    devices_are_kept_for_those_for_whom_the_domain_keeps_them,
    an_image_that_is_held_is_not_activated_either,
    single_devices_are_kept_for_what_goes_back,
    rivals_are_those_that_may_go_before,
);

const DEVICES: usize = 60;

/// A fleet in which there is everything of everything: batteries and time zones.
async fn mixed(store: &dyn Store) {
    let devices = (0..DEVICES).map(|n| {
        let bucket = u16::try_from(n * 10_000 / DEVICES).unwrap();
        let mut device = new_device(&name(n), bucket);
        if n % 2 == 0 {
            let tags = &mut device.registration.tags;
            tags.insert("time_zone".into(), "Asia/Tokyo".into());
        }
        device
    });
    let keys = register(store, &devices.collect::<Vec<_>>()).await;
    online(store, &keys).await;
    let charges = [None, Some(10.0), Some(90.0)];
    let said = keys.iter().zip(charges.into_iter().cycle());
    let said = said.map(|(device, battery_percent)| Touch {
        device: *device,
        battery_percent,
        ..Touch::default()
    });
    touch(store, &said.collect::<Vec<_>>()).await;
}

async fn rows(store: &dyn Store, campaign: Option<&Campaign>) -> BTreeMap<String, Update> {
    let filter = UpdateFilter {
        campaign: campaign.map(|campaign| campaign.id.clone()),
        ..UpdateFilter::default()
    };
    let page = device_ota_domain::page::Page {
        limit: 1_000,
        offset: 0,
    };
    let rows = store.updates(&filter, page).await.unwrap().into_iter();
    let rows = rows.filter(|row| row.campaign.is_some() == campaign.is_some());
    rows.map(|row| (row.device_id.to_string(), row)).collect()
}

async fn devices(store: &dyn Store, rows: &BTreeMap<String, Update>) -> BTreeMap<String, Device> {
    let keys: Vec<_> = rows.values().map(|row| row.device).collect();
    let devices = store.devices_by_key(&keys).await.unwrap().into_iter();
    let named = devices.map(|d| (d.registration.device_id.to_string(), d));
    named.collect()
}

/// Whose updates a query finds.
async fn found(store: &dyn Store, query: &ClaimQuery) -> BTreeSet<String> {
    let found = claimable(store, query).await;
    let ids = found.iter().map(|f| f.update.device_id.to_string());
    ids.collect()
}

fn prior(campaign: &Campaign, to: &Campaign) -> Prior {
    let wants = wants(at(9), campaign).unwrap();
    Prior {
        campaign: campaign.id.clone(),
        by_age: wants.action == Action::Update && campaign.spec.priority == to.spec.priority,
        wants,
        requires: campaign.spec.requires,
    }
}

/// A campaign whose second stage of three is open, with windows by each device's clock (it is eight in the morning by UTC, and five in the
/// afternoon in Tokyo), of which some updates wait for their next attempt or have ended.
async fn in_the_way(store: &dyn Store, firmware: &Firmware) -> Campaign {
    let draft = r#""deployment_strategy":"staged","stages":[{"percent":30},{"percent":70},{"percent":100}],
        "requires":{"min_battery_percent":20},
        "windows":[{"start":"00:00","duration_minutes":600,"time_zone":"device"}]"#;
    let mut campaign = start(store, campaign(1, firmware, draft), firmware).await;
    campaign.state = campaign.state.open_stage(1, at(3)).unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.save_campaign(&campaign).await.unwrap();
    let changed = rows(store, Some(&campaign)).await.into_values();
    let changed = changed.zip(0..).map(|(row, n)| {
        let before = row.standing();
        let later = UpdateState::Pending {
            due_at: at(if n % 5 == 0 { 10 } else { 9 }),
            lost_at: None,
            last_failure: None,
        };
        let row = match n % 7 {
            0 => row.cancel(at(4)).unwrap(),
            _ => Update {
                state: later,
                ..row
            },
        };
        (before, row)
    });
    save(tx.as_mut(), &changed.collect::<Vec<_>>()).await;
    tx.commit().await.unwrap();
    store.campaign(&campaign.id).await.unwrap().unwrap()
}

async fn devices_are_kept_for_those_for_whom_the_domain_keeps_them(store: &dyn Store) {
    let [one, two] = ["2.0.0", "3.0.0"].map(|version| image("frame", version, 1));
    let mut asking = image("frame", "4.0.0", 1);
    asking.metadata.min_battery_percent = Some(50);
    for image in [&one, &two, &asking] {
        upload(store, image).await;
    }
    mixed(store).await;
    let first = in_the_way(store, &one).await;
    let usual = start(store, campaign(2, &two, ""), &two).await;
    let low = start(store, campaign(3, &two, r#""priority":"low""#), &two).await;
    let firsts = rows(store, Some(&first)).await;
    let devices = devices(store, &firsts).await;
    let singles = firsts.values().zip(0_u8..).filter(|(_, n)| n % 4 == 0);
    let singles = singles.map(|(row, n)| Update {
        firmware: Some(asking.id.clone()),
        priority: Priority::Low,
        ..single(n, row.device, row.device_id.as_str(), "4.0.0")
    });
    let singles: Vec<_> = singles.collect();
    insert(store, &singles).await;
    let requires = Requires {
        min_battery_percent: Some(50),
        ..Requires::default()
    };
    for (rival, by_singles) in [(&usual, false), (&low, false), (&usual, true)] {
        let updates = rows(store, Some(rival)).await;
        let kept = |id: &&String| {
            let (update, device) = (&updates[*id], &devices[*id]);
            let of_campaign = &firsts[*id];
            let keeps = keeps_device(
                of_campaign,
                Some(&first),
                first.spec.requires,
                device,
                at(9),
            );
            let mut singles = singles
                .iter()
                .filter(|single| single.device == update.device);
            let alone = singles.any(|single| {
                let keeps = keeps_device(single, None, requires, device, at(9));
                single.goes_before(update) && keeps
            });
            keeps && of_campaign.goes_before(update) || by_singles && alone
        };
        let kept: BTreeSet<String> = updates.keys().filter(kept).cloned().collect();
        let all: BTreeSet<String> = updates.keys().cloned().collect();
        assert!(kept.len() > 3 && kept.len() < DEVICES / 2, "{kept:?}");
        let mut query = all_due(rival, at(9));
        assert_eq!(found(store, &query).await, all);
        query.ahead = Ahead {
            campaigns: vec![prior(&first, rival)],
            singles: by_singles,
        };
        assert_eq!(found(store, &query).await, &all - &kept);
    }
    // Of the same priority the older one waits for nobody.
    let mut query = ClaimQuery {
        requires: first.spec.requires,
        ..all_due(&first, at(9))
    };
    let free = found(store, &query).await;
    query.ahead.campaigns.push(prior(&usual, &first));
    assert_eq!(found(store, &query).await, free);
}

async fn an_image_that_is_held_is_not_activated_either(store: &dyn Store) {
    let [one, two] = ["2.0.0", "3.0.0"].map(|version| image("frame", version, 1));
    upload(store, &one).await;
    upload(store, &two).await;
    fleet(store, 4).await;
    let holds = start(store, campaign(1, &one, r#""priority":"low""#), &one).await;
    let mut query = ClaimQuery {
        limit: 2,
        hold: true,
        ..all_due(&holds, at(5))
    };
    let claimed = claim(store, &query).await;
    let mut tx = store.begin().await.unwrap();
    let staged = claimed.into_iter().map(|update| {
        let before = update.standing();
        let state = UpdateState::Staged { since: at(6) };
        (before, Update { state, ..update })
    });
    save(tx.as_mut(), &staged.collect::<Vec<_>>()).await;
    tx.commit().await.unwrap();
    let draft = r#""deployment_strategy":"immediate""#;
    let other = start(store, campaign(2, &two, draft), &two).await;
    (query.hold, query.now, query.limit) = (false, at(9), 100);
    assert_eq!(found(store, &query).await.len(), 4);
    query.ahead.campaigns.push(prior(&other, &holds));
    assert!(found(store, &query).await.is_empty());
}

async fn single_devices_are_kept_for_what_goes_back(store: &dyn Store) {
    let [old, new] = ["1.0.0", "2.0.0"].map(|version| image("frame", version, 1));
    upload(store, &old).await;
    upload(store, &new).await;
    let keys = fleet(store, 2).await;
    let mut bad = start(store, campaign(1, &new, ""), &new).await;
    let query = ClaimQuery {
        limit: 1,
        ..all_due(&bad, at(5))
    };
    let claimed = claim(store, &query).await;
    complete(store, &claimed).await;
    let trigger = device_ota_domain::rollback::RollbackTrigger::Manual;
    bad.state = bad.state.roll_back(at(7), trigger, "").unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.save_campaign(&bad).await.unwrap();
    let terms = device_ota_engine::ports::store::RollbackTerms {
        trigger,
        reason: "",
        at: at(7),
        give_up_at: at(700),
    };
    assert_eq!(tx.make_rollbacks(&bad, &terms).await.unwrap(), 1);
    tx.commit().await.unwrap();
    let singles = [0, 1].map(|n: u8| {
        let n_usize = usize::from(n);
        single(n, keys[n_usize], &name(n_usize), "3.0.0")
    });
    insert(store, &singles).await;
    let mut tx = store.begin().await.unwrap();
    let rivals = tx.rivals(None).await.unwrap();
    assert!(!rivals.singles);
    let campaigns: Vec<_> = rivals.campaigns.iter().map(|c| prior(c, c)).collect();
    assert_eq!(campaigns.len(), 1);
    let query = device_ota_engine::ports::store::SingleQuery {
        action: Action::Update,
        now: at(9),
        limit: 10,
        here: None,
        busy: Vec::new(),
        ahead: Ahead {
            campaigns,
            singles: false,
        },
    };
    let found = tx.claimable_singles(&query).await.unwrap();
    let found: Vec<_> = found.iter().map(|found| found.update.device).collect();
    assert_eq!(found, [keys[1]], "the other one goes back first");
}

async fn rivals_are_those_that_may_go_before(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    let mut foreign = image("lamp", "2.0.0", 1);
    foreign.metadata.device_model = "other".into();
    foreign.id = foreign.metadata.firmware_id();
    upload(store, &firmware).await;
    upload(store, &foreign).await;
    let keys = fleet(store, 2).await;
    let mut lamp = new_device("lamp", 7);
    lamp.registration.device_model = "other".into();
    register(store, &[lamp]).await;
    let priority = |name| format!(r#""priority":"{name}""#);
    let mut campaigns = Vec::new();
    for (n, draft) in (1..).zip(["low", "normal", "high", "normal"].map(priority)) {
        campaigns.push(start(store, campaign(n, &firmware, &draft), &firmware).await);
    }
    let draft = priority("critical");
    start(store, campaign(9, &foreign, &draft), &foreign).await;
    let rivals = async |of: &Campaign| {
        let mut tx = store.begin().await.unwrap();
        let rivals = tx.rivals(Some(of)).await.unwrap();
        let place = |rival: &Campaign| campaigns.iter().position(|c| c.id == rival.id).unwrap();
        let places: Vec<_> = rivals.campaigns.iter().map(place).collect();
        (places, rivals.singles)
    };
    assert_eq!(rivals(&campaigns[0]).await, (vec![1, 2, 3], false));
    assert_eq!(rivals(&campaigns[1]).await, (vec![2, 3], false));
    assert_eq!(rivals(&campaigns[2]).await, (vec![], false));
    let mut tx = store.begin().await.unwrap();
    let ended = tx
        .cancel_pending(&campaigns[3].id, Action::Update, at(5))
        .await;
    assert_eq!(ended.unwrap(), 2);
    let mut paused = campaigns[2].clone();
    paused.state = paused.state.pause(at(5), "").unwrap();
    tx.save_campaign(&paused).await.unwrap();
    tx.commit().await.unwrap();
    insert(store, &[single(1, keys[0], &name(0), "3.0.0")]).await;
    assert_eq!(rivals(&campaigns[0]).await, (vec![1], true));
}
