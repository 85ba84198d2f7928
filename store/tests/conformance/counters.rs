//! Counters equal a `GROUP BY`, whatever happens.

use device_ota_domain::campaign::{Campaign, Delta, Group};
use device_ota_domain::rollback::RollbackTrigger;
use device_ota_domain::statistics::Standing;
use device_ota_domain::update::{
    Action, Aftermath, Failure, Regression, Retry, Update, UpdateState,
};
use device_ota_engine::ports::store::{ClaimQuery, Store};
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::fixture::*;

crate::stories!(
    counters_equal_the_rows_after_anything,
    a_counter_that_is_not_there_is_an_error
);

/// Random steps of each campaign in the story.
const STEPS: usize = 60;

async fn counters_equal_the_rows_after_anything(store: &dyn Store) {
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let (old, new) = (image("frame", "1.0.0", 1), image("frame", "2.0.0", 2));
    upload(store, &old).await;
    upload(store, &new).await;
    fleet(store, 200).await;
    let campaigns = [
        start(store, campaign(1, &new, ""), &new).await,
        start(
            store,
            campaign(2, &new, r#""stages":[{"percent":1},{"percent":60}]"#),
            &new,
        )
        .await,
    ];
    for _ in 0..STEPS {
        for campaign in &campaigns {
            step(store, campaign, random.next_u32()).await;
            let counts = store.counts(&campaign.id).await.unwrap();
            assert_eq!(counts, store.counts_by_rows(&campaign.id).await.unwrap());
            assert_eq!(counts.updates().total(), 200);
        }
    }
}

/// One random thing that happens to a campaign.
async fn step(store: &dyn Store, campaign: &Campaign, random: u32) {
    let mut tx = store.begin().await.unwrap();
    let limit = random / 16 % 20 + 1;
    match random % 16 {
        0..6 => {
            let action = if random.is_multiple_of(2) {
                Action::Update
            } else {
                Action::Rollback
            };
            let query = ClaimQuery {
                limit,
                action,
                hold: action == Action::Update && random.is_multiple_of(3),
                ..all_due(campaign, at(9))
            };
            claim_in(tx.as_mut(), &query).await;
        }
        6..14 => {
            let flying = tx
                .cancellable(&campaign.id, Action::Update, None, limit)
                .await
                .unwrap();
            let moved: Vec<(Standing, Update)> = flying
                .into_iter()
                .map(|update| (update.standing(), moved(update, random)))
                .collect();
            save(tx.as_mut(), &moved).await;
        }
        14 => {
            let back = rollback_terms(RollbackTrigger::Manual, "", 9);
            tx.make_rollbacks(campaign, &back).await.unwrap();
        }
        _ if random.is_multiple_of(3) => {
            for action in [Action::Update, Action::Rollback] {
                tx.cancel_pending(&campaign.id, action, at(9))
                    .await
                    .unwrap();
            }
        }
        _ if random.is_multiple_of(5) => {
            tx.revive_rollbacks(&campaign.id, at(9), at(99))
                .await
                .unwrap();
        }
        _ => {}
    }
    if random.is_multiple_of(11) {
        return; // dropped: leaves nothing
    }
    tx.commit().await.unwrap();
}

/// Where a device in flight goes to.
fn moved(mut update: Update, random: u32) -> Update {
    if random.is_multiple_of(7) {
        let failure = Failure::new("reverted", "", Retry::Never);
        update.aftermath = Aftermath::Regressed(Regression { at: at(8), failure });
        update.state = UpdateState::Completed { at: at(7) };
        return update;
    }
    update.state = match random / 64 % 5 {
        0 => UpdateState::Completed { at: at(7) },
        1 => UpdateState::Failed {
            at: at(7),
            failure: Failure::new("internal", "", Retry::Never),
        },
        2 => UpdateState::Pending {
            due_at: at(5),
            lost_at: None,
            last_failure: None,
        },
        3 => UpdateState::Staged { since: at(7) },
        _ => UpdateState::Cancelled {
            at: at(7),
            because: None,
        },
    };
    update
}

async fn a_counter_that_is_not_there_is_an_error(store: &dyn Store) {
    let firmware = image("frame", "2.0.0", 1);
    upload(store, &firmware).await;
    let campaign = start(store, campaign(1, &firmware, ""), &firmware).await;
    let delta = Delta {
        campaign: campaign.id,
        action: Action::Update,
        stage: 9,
        from: None,
        to: Group::Pending,
        regressed: None,
    };
    let mut tx = store.begin().await.unwrap();
    assert!(tx.add_counts(&[(delta, 1)]).await.is_err());
}
