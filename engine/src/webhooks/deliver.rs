//! Serves webhooks: each that has something due gets its events one after the other, side by side with the others, so that
//! one that is slow delays itself alone. What came of each event is in the database before the next is sent.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use device_ota_domain::WebhookId;
use device_ota_domain::audit::Act;
use device_ota_domain::event::{Event, StoredEvent};
use device_ota_domain::webhook::{Failed, NotTaken, Patience, Webhook, WebhookStatus};
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::sign::Secret;
use super::{MAX_WEBHOOKS, Webhooks};
use crate::Caller;
use crate::audit::facts;
use crate::ports::StoreError;
use crate::ports::clock::random;
use crate::ports::poster::Letter;
use crate::ports::webhooks::Served;
use crate::upkeep::EVENTS_WAIT;

/// Events read at once.
const PAGE: u32 = 64;
/// Pause between two looks for who has something due.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks between two looks for who is hopelessly late.
const LOOKS: u32 = 600;
/// Longest that a place is in memory alone that has moved over nothing but what is not wanted: a webhook that seldom wants
/// something shall not cost a transaction for each page, and a restart looks through no more than that once more.
const WRITE_PLACES_EVERY: Duration = Duration::from_secs(5);
/// Events that may lie aside for one webhook before it is disabled; some 600 KiB.
const MAX_DEAD_LETTERS: u64 = 1_000;

/// How far a webhook has come over events that it does not want, while that is not written.
struct Passed {
    place: i64,
    /// Of what was wanted then: somebody who wants something else wants it from the place that is written.
    updated_at: Timestamp,
    /// When the first of them was passed over.
    since: Instant,
}

/// Who is served at the moment, and how far the others are beyond their places.
#[derive(Default)]
struct Rounds {
    busy: HashSet<WebhookId>,
    passed: HashMap<WebhookId, Passed>,
    serving: JoinSet<(WebhookId, Option<Passed>)>,
}

impl Rounds {
    /// Takes in those who are done, until the next look.
    async fn pause(&mut self) {
        let pause = tokio::time::sleep(LOOK_EVERY);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                Some(done) = self.serving.join_next() => match done {
                    Ok((id, passed)) => {
                        self.busy.remove(&id);
                        self.passed.extend(passed.map(|passed| (id, passed)));
                    }
                    // Whose task it was is not known: all that runs no more may be served again.
                    Err(error) => {
                        tracing::error!(%error, "a webhook's task panicked");
                        self.busy.clear();
                        self.serving.shutdown().await;
                    }
                },
            }
        }
    }
}

impl Webhooks {
    /// Serves all webhooks until `shutdown`. What is under way then is sent again after the next start.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut rounds = Rounds::default();
        let mut looks = 0_u32;
        loop {
            let late = looks.is_multiple_of(LOOKS);
            looks = looks.wrapping_add(1);
            let look = async {
                self.look(late, &mut rounds).await;
                rounds.pause().await;
            };
            if shutdown.run_until_cancelled(look).await.is_none() {
                return;
            }
        }
    }

    /// Begins to serve those who have something due.
    async fn look(self: &Arc<Self>, late: bool, rounds: &mut Rounds) {
        if !self.engine.membership.leads() {
            rounds.passed.clear();
            return;
        }
        if late && let Err(error) = self.disable_late().await {
            tracing::debug!(%error, "webhooks that are late wait for the database");
        }
        let now = self.engine.clock.now();
        let due = match self.engine.store.due_webhooks(now, MAX_WEBHOOKS).await {
            Ok(due) => due,
            Err(error) => {
                return tracing::debug!(%error, "webhooks wait for the database");
            }
        };
        // Who is beyond its place is due, unless somebody paused, changed or deleted it.
        let mut passed = std::mem::take(&mut rounds.passed);
        for served in due {
            let id = &served.webhook.id;
            if rounds.busy.insert(id.clone()) {
                let (this, passed) = (Arc::clone(self), passed.remove(id));
                let serving = async move { this.serve(served, passed).await };
                rounds.serving.spawn(serving);
            }
        }
    }

    /// Sends what there is, until there is nothing more or somebody has to wait.
    async fn serve(&self, served: Served, passed: Option<Passed>) -> (WebhookId, Option<Passed>) {
        let id = served.webhook.id.clone();
        let sent = self.send_all(served, passed).await;
        let passed = sent.unwrap_or_else(|error| {
            tracing::debug!(webhook.id = %id, %error, "a webhook waits for the database");
            None
        });
        (id, passed)
    }

    async fn send_all(
        &self,
        mut served: Served,
        passed: Option<Passed>,
    ) -> Result<Option<Passed>, StoreError> {
        let filter = served.webhook.filter();
        let updated_at = served.webhook.updated_at;
        let mut since = None;
        if let Some(passed) = passed.filter(|passed| passed.updated_at == updated_at) {
            served.webhook.place = served.webhook.place.max(passed.place);
            since = Some(passed.since);
        }
        loop {
            let place = served.webhook.place;
            let events = self.engine.store.events_after(place, PAGE).await?;
            for event in &events {
                if !filter.matches(event) {
                    served.webhook = served.webhook.passed_over(event.id);
                    since.get_or_insert_with(Instant::now);
                    continue;
                }
                let began = Instant::now();
                let sent = self.send(&served, event).await;
                self.engine.metrics.delivered("webhook", began.elapsed());
                if let Err(why) = sent {
                    self.failed(served.webhook, event, &why).await?;
                    return Ok(None);
                }
                let now = self.engine.clock.now();
                let was_failing = served.webhook.trouble.is_some();
                served.webhook = served.webhook.delivered(event.id, now);
                if !self.moved(&served.webhook).await? {
                    return Ok(None); // somebody changed it meanwhile
                }
                if was_failing {
                    tracing::info!(webhook.id = %served.webhook.id, "a webhook takes events again");
                }
                since = None;
            }
            if since.is_some_and(|since| since.elapsed() >= WRITE_PLACES_EVERY) {
                if !self.moved(&served.webhook).await? {
                    return Ok(None);
                }
                since = None;
            }
            if events.len() < PAGE as usize {
                let place = served.webhook.place;
                return Ok(since.map(|since| Passed {
                    place,
                    updated_at,
                    since,
                }));
            }
        }
    }

    /// Sends one event, signed.
    pub(super) async fn send(&self, served: &Served, event: &StoredEvent) -> Result<(), NotTaken> {
        let secret: Secret = served
            .secret
            .parse()
            .map_err(|_| NotTaken::Refused("its secret cannot be read".to_owned()))?;
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
        self.engine.commit(tx).await?;
        Ok(moved)
    }

    /// Writes down a failure: it has to wait, or gets nothing any more.
    async fn failed(
        &self,
        webhook: Webhook,
        event: &StoredEvent,
        why: &NotTaken,
    ) -> Result<(), StoreError> {
        let engine = &self.engine;
        engine.metrics.add("events_delayed", "webhook", 1);
        // Told once; what comes of it is told when the event is laid aside, when something is taken, or when it ends.
        if webhook.trouble.is_none() {
            tracing::warn!(
                webhook.id = %webhook.id, event.id = event.id, error = %why,
                "an event waits for its webhook"
            );
        }
        let patience = Patience {
            tries: self.tries,
            spread: f64::from(u16::from_le_bytes(random(&*engine.entropy))) / f64::from(u16::MAX),
        };
        match webhook.failed(event.id, why, engine.clock.now(), patience) {
            Failed::Later(webhook) => self.moved(&webhook).await.map(drop),
            Failed::Disabled(webhook) => self.disable(webhook).await,
            Failed::Dead(webhook, letter) => {
                let mut tx = engine.store.begin().await?;
                if !tx.webhook_moved(&webhook).await? {
                    return Ok(());
                }
                let letters = tx.lay_aside(&webhook.id, &letter, event).await?;
                self.engine.commit(tx).await?;
                engine.metrics.add("webhook_dead_letters", "laid_aside", 1);
                tracing::warn!(
                    webhook.id = %webhook.id, event.id = event.id, error = letter.error,
                    "an event was laid aside: its webhook has not taken it"
                );
                if letters < MAX_DEAD_LETTERS {
                    return Ok(());
                }
                let reason = format!("{letters} events lie aside; retry or delete them");
                self.disable(webhook.disabled(reason)).await
            }
        }
    }

    /// Ends the service of a webhook, and tells of it.
    async fn disable(&self, webhook: Webhook) -> Result<(), StoreError> {
        let WebhookStatus::Disabled { reason } = &webhook.status else {
            return Ok(());
        };
        let (id, now) = (&webhook.id, self.engine.clock.now());
        let mut tx = self.engine.store.begin().await?;
        if !tx.webhook_moved(&webhook).await? {
            return Ok(()); // somebody changed it meanwhile
        }
        let before = facts::webhook(&Webhook {
            status: WebhookStatus::Active,
            ..webhook.clone()
        });
        let mut after = facts::webhook(&webhook);
        if let Some(after) = after.as_object_mut() {
            after.insert("reason".to_owned(), reason.as_str().into());
        }
        let states = (Some(before), Some(after));
        tx.append_audit(Caller::service().did(Act::WebhookDisabled, now, id, states))
            .await?;
        tx.append_events(&[Event::webhook_disabled(id.as_str(), reason, now)])
            .await?;
        self.engine.commit(tx).await?;
        tracing::warn!(webhook.id = %id, reason, "a webhook was disabled");
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
