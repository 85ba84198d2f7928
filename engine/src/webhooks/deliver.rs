//! Serves webhooks: each that has something due gets its events one after the other, side by side with the others, so that
//! one that is slow delays itself alone. What came of each event is in the database before the next is sent.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use device_ota_domain::WebhookId;
use device_ota_domain::event::{Event, StoredEvent};
use device_ota_domain::webhook::{Failed, Patience, Webhook, WebhookStatus};
use jiff::SignedDuration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::sign::Secret;
use super::{MAX_WEBHOOKS, Webhooks};
use crate::ports::StoreError;
use crate::ports::clock::random;
use crate::ports::poster::{Letter, PostError};
use crate::ports::webhooks::Served;
use crate::upkeep::EVENTS_WAIT;

/// Events read at once.
const PAGE: u32 = 64;
/// Pause between two looks for who has something due.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks between two looks for who is hopelessly late.
const LOOKS: u32 = 600;
/// Events that may lie aside for one webhook before it is disabled; some 600 KiB.
const MAX_DEAD_LETTERS: u64 = 1_000;

impl Webhooks {
    /// Serves all webhooks until `shutdown`. What is under way then is sent again after the next start.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut busy: HashSet<WebhookId> = HashSet::new();
        let mut serving: JoinSet<WebhookId> = JoinSet::new();
        let mut looks = 0_u32;
        loop {
            let late = looks.is_multiple_of(LOOKS);
            looks = looks.wrapping_add(1);
            let look = self.look(late, &mut busy, &mut serving);
            if shutdown.run_until_cancelled(look).await.is_none() {
                return;
            }
        }
    }

    /// One look, and a pause in which those who are done leave.
    async fn look(
        self: &Arc<Self>,
        late: bool,
        busy: &mut HashSet<WebhookId>,
        serving: &mut JoinSet<WebhookId>,
    ) {
        if late && let Err(error) = self.disable_late().await {
            tracing::debug!(%error, "webhooks that are late wait for the database");
        }
        match self
            .engine
            .store
            .due_webhooks(self.engine.clock.now(), MAX_WEBHOOKS)
            .await
        {
            Ok(due) => {
                for served in due {
                    if busy.insert(served.webhook.id.clone()) {
                        let this = Arc::clone(self);
                        serving.spawn(async move { this.serve(served).await });
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "webhooks wait for the database"),
        }
        let pause = tokio::time::sleep(LOOK_EVERY);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                Some(done) = serving.join_next() => match done {
                    Ok(id) => {
                        busy.remove(&id);
                    }
                    // Whose task it was is not known: all that runs no more may be served again.
                    Err(error) => {
                        tracing::error!(%error, "a webhook's task panicked");
                        busy.clear();
                        serving.shutdown().await;
                    }
                },
            }
        }
    }

    /// Sends what there is, until there is nothing more or somebody has to wait.
    async fn serve(&self, served: Served) -> WebhookId {
        let id = served.webhook.id.clone();
        if let Err(error) = self.send_all(served).await {
            tracing::debug!(webhook.id = %id, %error, "a webhook waits for the database");
        }
        id
    }

    async fn send_all(&self, mut served: Served) -> Result<(), StoreError> {
        let filter = served.webhook.filter();
        loop {
            let place = served.webhook.place;
            let events = self.engine.store.events_after(place, PAGE).await?;
            for event in &events {
                if !filter.matches(event) {
                    served.webhook = served.webhook.passed_over(event.id);
                    continue;
                }
                let began = Instant::now();
                let sent = self.send(&served, event).await;
                self.engine.metrics.delivered("webhook", began.elapsed());
                let webhook = served.webhook.clone();
                let goes_on = match sent {
                    Ok(()) => {
                        let webhook = webhook.delivered(event.id, self.engine.clock.now());
                        self.moved(&webhook).await?.then_some(webhook)
                    }
                    Err(error) => self.failed(webhook, event, &error).await?,
                };
                // Somebody changed it meanwhile, or it has to wait.
                let Some(webhook) = goes_on else {
                    return Ok(());
                };
                served.webhook = webhook;
            }
            // What was passed over behind the last one that was sent.
            if served.webhook.place > place && !self.moved(&served.webhook).await? {
                return Ok(());
            }
            if events.len() < PAGE as usize {
                return Ok(());
            }
        }
    }

    /// Sends one event, signed.
    pub(super) async fn send(&self, served: &Served, event: &StoredEvent) -> Result<(), PostError> {
        let secret: Secret = served
            .secret
            .parse()
            .map_err(|_| PostError::Failed("its secret cannot be read".to_owned()))?;
        let (id, at) = (format!("evt_{}", event.id), self.engine.clock.now());
        let body = event.envelope().to_string();
        let signature = secret.sign(&id, at, &body);
        let letter = Letter {
            url: &served.webhook.url,
            id: &id,
            timestamp: at.as_second(),
            signature: &signature,
            body: &body,
        };
        self.poster.post(letter).await
    }

    /// Writes down how far it has come; false when it was changed meanwhile.
    async fn moved(&self, webhook: &Webhook) -> Result<bool, StoreError> {
        let mut tx = self.engine.store.begin().await?;
        let moved = tx.webhook_moved(webhook).await?;
        tx.commit().await?;
        Ok(moved)
    }

    /// Writes down a failure; the webhook, when the next event has its turn at once.
    async fn failed(
        &self,
        webhook: Webhook,
        event: &StoredEvent,
        error: &PostError,
    ) -> Result<Option<Webhook>, StoreError> {
        let engine = &self.engine;
        engine.metrics.add("events_delayed", "webhook", 1);
        if *error == PostError::Gone {
            self.disable(webhook.disabled(error.to_string())).await?;
            return Ok(None);
        }
        let patience = Patience {
            tries: self.tries,
            spread: f64::from(u16::from_le_bytes(random(&*engine.entropy))) / f64::from(u16::MAX),
        };
        let now = engine.clock.now();
        match webhook.failed(event.id, &error.to_string(), now, patience) {
            Failed::Later(webhook) => {
                self.moved(&webhook).await?;
                Ok(None)
            }
            Failed::Disabled(webhook) => {
                self.disable(webhook).await?;
                Ok(None)
            }
            Failed::Dead(webhook, letter) => {
                let mut tx = engine.store.begin().await?;
                if !tx.webhook_moved(&webhook).await? {
                    return Ok(None);
                }
                let letters = tx.lay_aside(&webhook.id, &letter, event).await?;
                tx.commit().await?;
                engine.metrics.add("webhook_dead_letters", "laid_aside", 1);
                tracing::warn!(
                    webhook.id = %webhook.id, event.id = event.id, error = letter.error,
                    "an event was laid aside: its webhook has not taken it"
                );
                if letters < MAX_DEAD_LETTERS {
                    return Ok(Some(webhook));
                }
                let reason = format!("{letters} events lie aside; retry or delete them");
                self.disable(webhook.disabled(reason)).await?;
                Ok(None)
            }
        }
    }

    /// Ends the service of a webhook, and tells of it.
    async fn disable(&self, webhook: Webhook) -> Result<(), StoreError> {
        let WebhookStatus::Disabled { reason } = &webhook.status else {
            return Ok(());
        };
        let engine = &self.engine;
        let event = Event::webhook_disabled(webhook.id.as_str(), reason, engine.clock.now());
        let mut tx = engine.store.begin().await?;
        if tx.webhook_moved(&webhook).await? {
            tx.append_events(&[event]).await?;
            tx.commit().await?;
            tracing::warn!(webhook.id = %webhook.id, reason, "a webhook was disabled");
        }
        Ok(())
    }

    /// Disables those for whom events would have to be kept for ever.
    async fn disable_late(&self) -> Result<(), StoreError> {
        // A day before the events go, so that none does that an active webhook has not taken.
        let before = self.engine.clock.now() - (EVENTS_WAIT - SignedDuration::from_hours(24));
        for webhook in self
            .engine
            .store
            .late_webhooks(before, MAX_WEBHOOKS)
            .await?
        {
            let reason = "it is a month behind, and events are not kept for longer".to_owned();
            self.disable(webhook.disabled(reason)).await?;
        }
        Ok(())
    }
}
