//! Webhooks: their places are written when there is something to write.

use std::sync::Arc;

use async_trait::async_trait;
use device_ota_domain::event::{Event, EventType};
use device_ota_domain::webhook::NotTaken;
use device_ota_engine::ports::poster::{Letter, Poster};
use device_ota_engine::{WebhookDraft, Webhooks};
use sqlx::{Connection as _, Executor as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::fixture::{Fixture, tester};

/// A receiver that takes everything.
struct Receiver(mpsc::UnboundedSender<String>);

#[async_trait]
impl Poster for Receiver {
    fn check(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    async fn post(&self, letter: Letter<'_>) -> Result<(), NotTaken> {
        self.0.send(letter.body.to_owned()).ok();
        Ok(())
    }
}

impl Fixture {
    /// As many events of that type.
    async fn happens(&self, event_type: EventType, times: usize) {
        let event = Event {
            event_type,
            entity: "e".into(),
            data: serde_json::json!({}),
            at: self.engine.clock().now(),
        };
        let mut tx = self.store.begin().await.unwrap();
        tx.append_events(&vec![event; times]).await.unwrap();
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn what_is_not_wanted_costs_no_transactions() {
    let fixture = Fixture::new().await;
    let (sender, mut taken) = mpsc::unbounded_channel();
    let webhooks = Webhooks::new(fixture.engine.clone(), Arc::new(Receiver(sender)), 8);
    let draft = WebhookDraft {
        url: "https://hooks.example.com".into(),
        event_types: vec!["firmware.uploaded".parse().unwrap()],
        campaign: None,
        secret: None,
        paused: false,
    };
    let (webhook, _) = webhooks.create(draft, &tester()).await.unwrap();
    let mut counter = sqlx::SqliteConnection::connect(&fixture.database.url())
        .await
        .unwrap();
    for sql in [
        "CREATE TABLE writes (number INTEGER)",
        "CREATE TRIGGER written AFTER UPDATE OF place ON webhooks BEGIN INSERT INTO writes VALUES (NEW.number); END",
    ] {
        counter.execute(sql).await.unwrap();
    }
    fixture.happens(EventType::CampaignStarted, 2_000).await;
    fixture.happens(EventType::FirmwareUploaded, 1).await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(Arc::new(webhooks).run(stop.clone()));
    assert!(taken.recv().await.unwrap().contains("firmware.uploaded"));
    // What came of it is written; nothing else had to be.
    loop {
        let known = fixture.store.webhook(&webhook.id).await.unwrap().unwrap();
        if known.delivered_at.is_some() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let writes: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM writes")
        .fetch_one(&mut counter)
        .await
        .unwrap();
    assert!(writes <= 2, "{writes} for 2,000 events that nobody wanted");
    // After a while it is, so that events need not be kept for it.
    fixture.happens(EventType::CampaignStarted, 1).await;
    let newest = fixture.store.events_kept().await.unwrap().unwrap().newest;
    while fixture
        .store
        .webhook(&webhook.id)
        .await
        .unwrap()
        .unwrap()
        .place
        < newest
    {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    running.await.unwrap();
    fixture.stop().await;
}
