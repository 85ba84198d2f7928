//! Figures equal a `GROUP BY`, whatever happens.

use device_ota_domain::campaign::{Campaign, Group};
use device_ota_domain::page::Page;
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::statistics::{Standing, minute_of};
use device_ota_domain::update::{
    Action, Expiry, Failure, Outcome, Phase, Report, Reported, Retry, Update,
};
use device_ota_engine::ports::store::{ClaimQuery, Store, Tx, UpdateFilter};
use jiff::SignedDuration;
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::fixture::*;

crate::stories!(
    figures_equal_the_rows_after_anything,
    figures_are_told_by_version_kind_and_reason,
    minutes_are_forgotten,
);

/// Random steps of each campaign in the story.
const STEPS: i64 = 120;
const LEASE: SignedDuration = SignedDuration::from_secs(60);
const KINDS: [Option<&str>; 3] = [Some("frame"), Some("hub"), None];
const CODES: [&str; 3] = ["install_failed", "download_failed", "internal"];

/// Two campaigns over devices of several kinds, all online.
async fn campaigns(store: &dyn Store) -> [Campaign; 2] {
    let (old, new) = (image("frame", "1.0.0", 1), image("frame", "2.0.0", 2));
    upload(store, &old).await;
    upload(store, &new).await;
    let devices: Vec<_> = (0..60_u16)
        .map(|n| {
            let mut device = new_device(&name(n.into()), n * 100);
            device.registration.device_type = KINDS[usize::from(n) % 3].map(str::to_owned);
            device
        })
        .collect();
    let keys = register(store, &devices).await;
    online(store, &keys).await;
    let second = r#""stages":[{"percent":1},{"percent":60}],"max_retries":1"#;
    [
        start(store, campaign(1, &new, ""), &new).await,
        start(store, campaign(2, &new, second), &new).await,
    ]
}

async fn figures_equal_the_rows_after_anything(store: &dyn Store) {
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let campaigns = campaigns(store).await;
    let mut seen = std::collections::BTreeSet::new();
    for step in 0..STEPS {
        for campaign in &campaigns {
            happens(store, campaign, step, random.next_u32()).await;
            let kept = store.ledger().await.unwrap();
            assert_eq!(kept, store.ledger_by_rows().await.unwrap(), "step {step}");
            seen.extend(kept.shares.into_keys().map(|s| (s.action, s.group)));
        }
    }
    assert_eq!(seen.len(), 11, "every group was there: {seen:?}");
    let figures = store.figures(None).await.unwrap();
    let updates = figures.iter().filter(|f| f.action == Action::Update);
    let total: i64 = updates.map(|f| f.amount.updates).sum();
    assert_eq!(total, 120);
    let downloaded: i64 = figures.iter().map(|f| f.amount.bytes).sum();
    assert!(downloaded > 0, "somebody downloaded something");
}

/// One random thing that happens to a campaign, at a time that goes on.
async fn happens(store: &dyn Store, campaign: &Campaign, step: i64, random: u32) {
    let mut tx = store.begin().await.unwrap();
    let (now, limit) = (at(step * 17), random / 16 % 9 + 1);
    let action = if random.is_multiple_of(2) {
        Action::Update
    } else {
        Action::Rollback
    };
    match random % 16 {
        0..5 => {
            let query = ClaimQuery {
                limit,
                action,
                hold: action == Action::Update && random.is_multiple_of(3),
                ..all_due(campaign, now)
            };
            claim_in(tx.as_mut(), &query).await;
        }
        5..11 => {
            let flying = tx
                .cancellable(&campaign.id, action, None, limit)
                .await
                .unwrap();
            let moved = flying.into_iter().map(|update| report(update, now, random));
            save(tx.as_mut(), &moved.collect::<Vec<_>>()).await;
        }
        11 => {
            let flying = tx
                .cancellable(&campaign.id, action, None, limit)
                .await
                .unwrap();
            let expiry = Expiry {
                now: at(step * 17 + 600),
                last_seen: None,
                lease: LEASE,
                kept_waiting: false,
            };
            let moved = flying.into_iter().filter_map(|update| {
                let before = update.standing();
                Some((before, update.expire(&expiry)?))
            });
            save(tx.as_mut(), &moved.collect::<Vec<_>>()).await;
        }
        12 => {
            let terms = rollback_terms(RollbackTrigger::Manual, "", step * 17);
            tx.make_rollbacks(campaign, &terms).await.unwrap();
        }
        13 => retry(store, tx.as_mut(), campaign, now).await,
        14 => late(store, tx.as_mut(), campaign, now).await,
        _ if random.is_multiple_of(3) => {
            tx.cancel_pending(&campaign.id, action, now).await.unwrap();
        }
        _ => {
            tx.revive_rollbacks(&campaign.id, now, at(99_999))
                .await
                .unwrap();
        }
    }
    if random.is_multiple_of(11) {
        return; // dropped: leaves nothing
    }
    tx.commit().await.unwrap();
}

/// A device says how far it is, or how it ended.
fn report(update: Update, now: jiff::Timestamp, random: u32) -> (Standing, Update) {
    let before = update.standing();
    let failure = |retry| Failure::new(CODES[random as usize / 7 % 3], "", retry);
    let said = match random / 64 % 8 {
        0 => Reported::In(Phase::Downloading),
        1 | 2 => Reported::Completed,
        3 => Reported::Failed(failure(Retry::Never)),
        4 => Reported::Failed(failure(Retry::Now)),
        5 | 6 => Reported::In(Phase::Staged),
        _ => Reported::Cancelled,
    };
    let update = match said {
        Reported::Cancelled => update.cancel(now).unwrap(), // it was asked to
        _ => update,
    };
    let report = said_of(&update, said, u64::from(random) * 3);
    (before, update.report(&report, now, LEASE).into_update())
}

fn said_of(update: &Update, said: Reported, bytes: u64) -> Report {
    Report {
        attempt: update.attempt,
        seq: update.last_seq + 1,
        version: Some(update.to_version.clone()),
        percent: None,
        bytes_done: Some(bytes),
        speed_bps: None,
        said,
    }
}

async fn of_group(store: &dyn Store, campaign: &Campaign, group: Group) -> Vec<Update> {
    let filter = UpdateFilter {
        campaign: Some(campaign.id.clone()),
        group: Some(group),
        ..UpdateFilter::default()
    };
    store.updates(&filter, Page::default()).await.unwrap()
}

/// An admin tries failed ones again.
async fn retry(store: &dyn Store, tx: &mut dyn Tx, campaign: &Campaign, now: jiff::Timestamp) {
    let failed = of_group(store, campaign, Group::Failed).await;
    let moved = failed.into_iter().filter(|u| u.firmware.is_some());
    let moved = moved.map(|u| (u.standing(), u.retry(now, None).unwrap()));
    save(tx, &moved.collect::<Vec<_>>()).await;
}

/// Devices whose attempts were given up say that they completed after all.
async fn late(store: &dyn Store, tx: &mut dyn Tx, campaign: &Campaign, now: jiff::Timestamp) {
    let mut ended = of_group(store, campaign, Group::Failed).await;
    ended.extend(of_group(store, campaign, Group::Cancelled).await);
    let moved = ended.into_iter().filter_map(|update| {
        let (before, report) = (update.standing(), said_of(&update, Reported::Completed, 0));
        match update.report(&report, now, LEASE) {
            Outcome::Changed(update) => Some((before, *update)),
            Outcome::Ignored(..) => None,
        }
    });
    save(tx, &moved.collect::<Vec<_>>()).await;
}

async fn figures_are_told_by_version_kind_and_reason(store: &dyn Store) {
    let [first, second] = campaigns(store).await;
    let claimed = claim(
        store,
        &ClaimQuery {
            limit: 3,
            ..all_due(&first, at(60))
        },
    )
    .await;
    let mut tx = store.begin().await.unwrap();
    let moved: Vec<_> = claimed
        .into_iter()
        .map(|update| {
            let before = update.standing();
            let downloading = said_of(&update, Reported::In(Phase::Downloading), u64::MAX);
            let update = update.report(&downloading, at(90), LEASE).into_update();
            let failure = Failure::new("install_failed", "", Retry::Never);
            let said = match update.device.0 {
                1 => Reported::Failed(failure),
                _ => Reported::Completed,
            };
            let report = said_of(&update, said, 0);
            (before, update.report(&report, at(180), LEASE).into_update())
        })
        .collect();
    save(tx.as_mut(), &moved).await;
    tx.commit().await.unwrap();

    let size = i64::try_from(image("frame", "2.0.0", 2).size).unwrap();
    let figures = store.figures(Some(&first.id)).await.unwrap();
    let told: Vec<_> = figures
        .iter()
        .filter(|f| f.amount.updates > 0)
        .map(|f| {
            let kind = f.device_type.as_deref();
            let (group, amount) = (f.group, f.amount);
            (kind, group, amount.updates, amount.micros, amount.bytes)
        })
        .collect();
    let two_minutes = 120_000_000;
    assert_eq!(
        told,
        [
            (None, Group::Completed, 1, two_minutes, size),
            (None, Group::Pending, 19, 0, 0),
            (Some("frame"), Group::Failed, 1, 0, size),
            (Some("frame"), Group::Pending, 19, 0, 0),
            (Some("hub"), Group::Completed, 1, two_minutes, size),
            (Some("hub"), Group::Pending, 19, 0, 0),
        ]
    );
    let reasons: Vec<_> = figures
        .iter()
        .filter_map(|f| f.failure.as_deref())
        .collect();
    assert_eq!(reasons, ["install_failed"]);
    assert!(
        figures
            .iter()
            .all(|f| f.version.as_deref() == Some("2.0.0"))
    );
    let others = store.figures(Some(&second.id)).await.unwrap();
    assert_eq!(others.iter().map(|f| f.amount.updates).sum::<i64>(), 60);

    let firmware = store.firmware(&first.spec.firmware_id).await.unwrap();
    let results = firmware.unwrap().results;
    assert_eq!((results.completed, results.failed), (2, 1));
    let statuses = store.campaigns_by_status().await.unwrap();
    assert_eq!(statuses, [("in_progress".to_owned(), 2)]);
}

async fn minutes_are_forgotten(store: &dyn Store) {
    let [campaign, _] = campaigns(store).await;
    for minute in [1, 2] {
        let query = ClaimQuery {
            limit: 1,
            ..all_due(&campaign, at(5))
        };
        let mut update = claim(store, &query).await.remove(0);
        let before = update.standing();
        update.state = device_ota_domain::UpdateState::Completed {
            at: at(minute * 60),
        };
        let mut tx = store.begin().await.unwrap();
        save(tx.as_mut(), &[(before, update)]).await;
        tx.commit().await.unwrap();
    }
    let since = async |minute: i64| {
        let ends = store.ends_since(minute_of(at(minute * 60))).await.unwrap();
        ends.iter()
            .map(|(_, _, amount)| amount.updates)
            .sum::<i64>()
    };
    assert_eq!((since(1).await, since(2).await, since(3).await), (2, 1, 0));
    store.prune_ends(minute_of(at(120))).await.unwrap();
    assert_eq!((since(0).await, since(2).await), (1, 1));
}
