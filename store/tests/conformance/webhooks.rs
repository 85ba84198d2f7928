//! Webhooks: who has something due, what is written of them, and what waits for them.

use device_ota_domain::WebhookId;
use device_ota_domain::page::Page;
use device_ota_domain::webhook::{DeadLetter, Trouble, Webhook, WebhookStatus};
use device_ota_engine::ports::store::Store;
use jiff::Timestamp;

use crate::fixture::*;

crate::stories!(
    a_webhook_reads_back_as_it_was_written,
    who_has_something_due_is_found,
    what_was_changed_is_not_overwritten,
    what_is_laid_aside_is_kept_with_its_webhook,
    events_wait_for_webhooks_that_are_active,
);

fn webhook(number: u8) -> Webhook {
    Webhook {
        id: WebhookId::from_entropy([number; 8]),
        url: format!("https://example.com/{number}"),
        event_types: vec!["campaign.*".parse().unwrap()],
        campaign: None,
        status: WebhookStatus::Active,
        place: 0,
        trouble: None,
        delivered_at: None,
        created_at: at(0),
        created_by: "admin".into(),
        revision: 0,
        updated_at: at(0),
    }
}

async fn insert(store: &dyn Store, webhook: &Webhook) -> bool {
    let mut tx = store.begin().await.unwrap();
    let inserted = tx.insert_webhook(webhook, "whsec_x", 2).await.unwrap();
    tx.commit().await.unwrap();
    inserted
}

async fn moved(store: &dyn Store, webhook: &Webhook) -> bool {
    let mut tx = store.begin().await.unwrap();
    let moved = tx.webhook_moved(webhook).await.unwrap();
    tx.commit().await.unwrap();
    moved
}

async fn events(store: &dyn Store, count: i64) {
    let mut tx = store.begin().await.unwrap();
    let events: Vec<_> = (1..=count).map(|n| event(n, "a")).collect();
    tx.append_events(&events).await.unwrap();
    tx.commit().await.unwrap();
}

async fn a_webhook_reads_back_as_it_was_written(store: &dyn Store) {
    let first = webhook(1);
    let troubled = Webhook {
        trouble: Some(Trouble {
            tries: 2,
            since: at(1),
            due_at: at(5),
            error: "it answered 500".into(),
        }),
        place: 7,
        delivered_at: Some(at(1)),
        status: WebhookStatus::Disabled {
            reason: "gone".into(),
        },
        ..webhook(2)
    };
    assert!(insert(store, &first).await && insert(store, &webhook(2)).await);
    assert!(
        !insert(store, &webhook(3)).await,
        "there are as many as may be"
    );
    assert!(moved(store, &troubled).await);
    assert_eq!(
        store.webhooks(Page::default()).await.unwrap(),
        [troubled.clone(), first.clone()],
        "newest first"
    );
    assert_eq!(
        store.webhook(&first.id).await.unwrap().as_ref(),
        Some(&first)
    );
    let served = store.served_webhook(&troubled.id).await.unwrap().unwrap();
    assert_eq!(
        (served.webhook, served.secret.as_str()),
        (troubled, "whsec_x")
    );
    assert_eq!(store.webhook(&webhook(3).id).await.unwrap(), None);
}

async fn who_has_something_due_is_found(store: &dyn Store) {
    let due = async |now| {
        let due = store.due_webhooks(at(now), 10).await.unwrap();
        due.into_iter()
            .map(|served| served.webhook.id)
            .collect::<Vec<_>>()
    };
    let hook = webhook(1);
    insert(store, &hook).await;
    assert_eq!(due(0).await, [], "nothing has happened");
    events(store, 2).await;
    assert_eq!(due(0).await, std::slice::from_ref(&hook.id));
    let waits = Webhook {
        trouble: Some(Trouble {
            tries: 1,
            since: at(1),
            due_at: at(5),
            error: "no".into(),
        }),
        ..hook.clone()
    };
    assert!(moved(store, &waits).await);
    assert_eq!((due(4).await.len(), due(5).await.len()), (0, 1));
    let newest = store.events_kept().await.unwrap().unwrap().newest;
    assert!(moved(store, &hook.clone().delivered(newest, at(6))).await);
    assert_eq!(due(9).await, [], "it has taken all");
}

async fn what_was_changed_is_not_overwritten(store: &dyn Store) {
    let hook = webhook(1);
    insert(store, &hook).await;
    let mut tx = store.begin().await.unwrap();
    assert_eq!(tx.webhook(&hook.id).await.unwrap().as_ref(), Some(&hook));
    assert_eq!(tx.webhook(&webhook(2).id).await.unwrap(), None);
    let paused = Webhook {
        url: "https://example.com/new".into(),
        status: WebhookStatus::Paused,
        revision: 1,
        updated_at: at(9),
        ..hook.clone()
    };
    assert!(tx.save_webhook(&paused, Some("whsec_y")).await.unwrap());
    assert!(
        !tx.save_webhook(&webhook(2), None).await.unwrap(),
        "there is none"
    );
    tx.commit().await.unwrap();
    assert!(
        !moved(store, &hook.clone().passed_over(5)).await,
        "as it was"
    );
    let served = store.served_webhook(&hook.id).await.unwrap().unwrap();
    assert_eq!(
        (served.webhook, served.secret.as_str()),
        (paused, "whsec_y")
    );
}

async fn what_is_laid_aside_is_kept_with_its_webhook(store: &dyn Store) {
    let (first, second) = (webhook(1), webhook(2));
    insert(store, &first).await;
    insert(store, &second).await;
    events(store, 2).await;
    let told = store.events_after(0, 10).await.unwrap();
    let letter = |event| DeadLetter {
        event,
        tries: 8,
        error: "no".into(),
        at: at(1),
    };
    let mut tx = store.begin().await.unwrap();
    for (hook, event, count) in [(&first, 0, 1), (&second, 0, 1), (&first, 1, 2)] {
        let letter = letter(told[event].id);
        let letters = tx.lay_aside(&hook.id, &letter, &told[event]).await.unwrap();
        assert_eq!(letters, count);
    }
    tx.commit().await.unwrap();
    let page = Page::default();
    let aside = store.dead_letters(&first.id, page).await.unwrap();
    let said: Vec<_> = aside.iter().map(|a| (&a.letter, &a.event)).collect();
    let expected = [letter(told[1].id), letter(told[0].id)];
    assert_eq!(said, [(&expected[0], &told[1]), (&expected[1], &told[0])]);
    let number = aside[0].number;
    let found = store.dead_letter(&first.id, number).await.unwrap();
    assert_eq!(found.as_ref(), Some(&aside[0]));
    assert_eq!(store.dead_letter(&second.id, number).await.unwrap(), None);
    let mut tx = store.begin().await.unwrap();
    assert!(!tx.delete_dead_letter(&second.id, number).await.unwrap());
    assert!(tx.delete_dead_letter(&first.id, number).await.unwrap());
    assert!(tx.delete_webhook(&second.id).await.unwrap());
    assert!(!tx.delete_webhook(&second.id).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(
        store.dead_letters(&first.id, page).await.unwrap(),
        aside[1..]
    );
    assert_eq!(store.dead_letters(&second.id, page).await.unwrap(), []);
}

async fn events_wait_for_webhooks_that_are_active(store: &dyn Store) {
    events(store, 10).await;
    let told = store.events_after(0, 10).await.unwrap();
    let hook = webhook(1).passed_over(told[2].id);
    insert(store, &hook).await;
    let prune = async |whatever| {
        store
            .prune_events(&[], Timestamp::MAX, whatever, 100)
            .await
            .unwrap()
    };
    assert_eq!(prune(Timestamp::MIN).await, 3, "what it has taken");
    assert_eq!(store.late_webhooks(told[3].at, 10).await.unwrap(), []);
    let late = store.late_webhooks(told[4].at, 10).await.unwrap();
    assert_eq!(late, std::slice::from_ref(&hook));
    assert!(moved(store, &hook.disabled("late".into())).await);
    assert_eq!(
        prune(Timestamp::MIN).await,
        6,
        "nobody waits; the newest stays"
    );
}
