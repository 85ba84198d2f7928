//! Webhooks: made, changed and deleted by admins, and served by a loop of their own ([`deliver`]). Requests are signed as
//! the Standard Webhooks specification says (ADR 8).

mod deliver;
mod sign;

use std::sync::Arc;

use device_ota_domain::audit::Act;
use device_ota_domain::event::EventSelector;
use device_ota_domain::page::Page;
use device_ota_domain::webhook::{MAX_EVENT_TYPES, MAX_URL_BYTES, Webhook, WebhookStatus};
use device_ota_domain::{CampaignId, WebhookId};
use serde_json::json;

use crate::audit::facts;
use crate::ports::clock::random;
use crate::ports::poster::Poster;
use crate::ports::store::Tx;
use crate::ports::webhooks::LaidAside;
use crate::revision::is_of;
use crate::{Caller, Engine, Error, Result};
use sign::Secret;

/// Webhooks at most: each that is busy holds a connection.
pub const MAX_WEBHOOKS: u32 = 64;

/// A webhook as somebody wants it. Not printable: it may hold a secret.
#[derive(Clone)]
pub struct WebhookDraft {
    /// Where events go.
    pub url: String,
    /// Which types; all when there is none.
    pub event_types: Vec<EventSelector>,
    /// Of this campaign alone.
    pub campaign: Option<CampaignId>,
    /// `whsec_` and Base64 of 24 to 64 bytes; `None`: made here, or kept as it was.
    pub secret: Option<String>,
    /// It waits until it is made active.
    pub paused: bool,
}

/// The use cases around webhooks.
pub struct Webhooks {
    engine: Arc<Engine>,
    poster: Arc<dyn Poster>,
    /// Refusals of an event before it is laid aside.
    tries: u32,
}

impl Webhooks {
    /// Sent by this poster; an event that was refused so many times is laid aside.
    pub fn new(engine: Arc<Engine>, poster: Arc<dyn Poster>, tries: u32) -> Self {
        Self {
            engine,
            poster,
            tries,
        }
    }

    /// Makes a webhook, which gets what happens from now on. The second value is its secret, which is shown this once.
    pub async fn create(&self, draft: WebhookDraft, by: &Caller) -> Result<(Webhook, String)> {
        let secret = self.check(&draft).await?;
        let engine = &self.engine;
        let secret = secret.unwrap_or_else(|| Secret::of(&random::<32>(&*engine.entropy)));
        let now = engine.clock.now();
        let newest = engine.store.events_kept().await?;
        let webhook = Webhook {
            id: WebhookId::from_entropy(random(&*engine.entropy)),
            status: status(draft.paused),
            url: draft.url,
            event_types: draft.event_types,
            campaign: draft.campaign,
            place: newest.map_or(0, |kept| kept.newest),
            trouble: None,
            delivered_at: None,
            created_at: now,
            created_by: by.subject().to_owned(),
            revision: 0,
            updated_at: now,
        };
        let mut tx = engine.store.begin().await?;
        if !tx
            .insert_webhook(&webhook, secret.as_str(), MAX_WEBHOOKS)
            .await?
        {
            return Err(Error::conflict(
                "too_many_webhooks",
                format!("there are {MAX_WEBHOOKS} webhooks already; delete one first"),
            ));
        }
        let states = (None, Some(facts::webhook(&webhook)));
        tx.append_audit(by.did(Act::WebhookCreated, now, &webhook.id, states))
            .await?;
        self.engine.commit(tx).await?;
        tracing::info!(webhook.id = %webhook.id, by = by.subject(), "webhook made");
        Ok((webhook, secret.into()))
    }

    /// Webhooks, newest first.
    pub async fn list(&self, page: Page) -> Result<Vec<Webhook>> {
        Ok(self.engine.store.webhooks(page).await?)
    }

    /// One webhook.
    pub async fn get(&self, id: &WebhookId) -> Result<Webhook> {
        let found = self.engine.store.webhook(id).await?;
        found.ok_or_else(|| Error::not_found("webhook", id))
    }

    /// Replaces what is wanted of a webhook. It goes on from its place, and its failures so far are forgotten. 409 when it is no
    /// longer of the revision `expected`.
    pub async fn change(
        &self,
        id: &WebhookId,
        draft: WebhookDraft,
        expected: Option<i64>,
        by: &Caller,
    ) -> Result<Webhook> {
        let secret = self.check(&draft).await?;
        let now = self.engine.clock.now();
        let mut tx = self.engine.store.begin().await?;
        let before = locked(tx.as_mut(), id).await?;
        is_of(expected, "the webhook", before.revision)?;
        let known = facts::webhook(&before);
        let after = Webhook {
            url: draft.url,
            event_types: draft.event_types,
            campaign: draft.campaign,
            status: status(draft.paused),
            trouble: None,
            revision: before.revision + 1,
            updated_at: now,
            ..before
        };
        let secret = secret.as_ref().map(Secret::as_str);
        tx.save_webhook(&after, secret).await?;
        let mut changed = facts::webhook(&after);
        if let (Some(_), Some(changed)) = (secret, changed.as_object_mut()) {
            changed.insert("secret".to_owned(), "replaced".into());
        }
        let states = (Some(known), Some(changed));
        tx.append_audit(by.did(Act::WebhookChanged, now, id, states))
            .await?;
        self.engine.commit(tx).await?;
        tracing::info!(webhook.id = %id, by = by.subject(), "webhook changed");
        Ok(after)
    }

    /// Deletes a webhook and what was laid aside for it. 409 when it is no longer of the revision `expected`.
    pub async fn delete(
        &self,
        id: &WebhookId,
        expected: Option<i64>,
        by: &Caller,
    ) -> Result<Webhook> {
        let mut tx = self.engine.store.begin().await?;
        let webhook = locked(tx.as_mut(), id).await?;
        is_of(expected, "the webhook", webhook.revision)?;
        tx.delete_webhook(id).await?;
        let states = (Some(facts::webhook(&webhook)), None);
        let now = self.engine.clock.now();
        tx.append_audit(by.did(Act::WebhookDeleted, now, id, states))
            .await?;
        self.engine.commit(tx).await?;
        tracing::info!(webhook.id = %id, by = by.subject(), "webhook deleted");
        Ok(webhook)
    }

    /// Events that were laid aside, newest first.
    pub async fn dead_letters(&self, id: &WebhookId, page: Page) -> Result<Vec<LaidAside>> {
        let webhook = self.get(id).await?;
        Ok(self.engine.store.dead_letters(&webhook.id, page).await?)
    }

    /// Sends an event that was laid aside once more, now. It is forgotten when it was taken, and stays when not: 409.
    pub async fn retry(&self, id: &WebhookId, number: i64, by: &Caller) -> Result<LaidAside> {
        let found = self.engine.store.served_webhook(id).await?;
        let served = found.ok_or_else(|| Error::not_found("webhook", id))?;
        let letter = self.dead_letter(id, number).await?;
        self.send(&served, &letter.event).await.map_err(|error| {
            Error::conflict(
                "not_delivered",
                format!("the receiver has not taken it: {error}"),
            )
        })?;
        self.forget(id, letter, Act::WebhookRetried, by).await
    }

    /// Forgets an event that was laid aside.
    pub async fn discard(&self, id: &WebhookId, number: i64, by: &Caller) -> Result<LaidAside> {
        let letter = self.dead_letter(id, number).await?;
        self.forget(id, letter, Act::WebhookDiscarded, by).await
    }

    async fn dead_letter(&self, id: &WebhookId, number: i64) -> Result<LaidAside> {
        let found = self.engine.store.dead_letter(id, number).await?;
        found.ok_or_else(|| Error::not_found("dead letter", &number))
    }

    async fn forget(
        &self,
        id: &WebhookId,
        letter: LaidAside,
        act: Act,
        by: &Caller,
    ) -> Result<LaidAside> {
        let mut tx = self.engine.store.begin().await?;
        if tx.delete_dead_letter(id, letter.number).await? {
            let states = (Some(json!({ "event_id": letter.letter.event })), None);
            let now = self.engine.clock.now();
            tx.append_audit(by.did(act, now, id, states)).await?;
            self.engine.commit(tx).await?;
        }
        tracing::info!(webhook.id = %id, event.id = letter.letter.event, by = by.subject(), "dead letter gone");
        Ok(letter)
    }

    /// What is wrong with a draft; its secret when all is well.
    async fn check(&self, draft: &WebhookDraft) -> Result<Option<Secret>> {
        let wrong = |detail: String| Error::invalid("invalid_webhook", detail);
        if draft.url.len() > MAX_URL_BYTES {
            return Err(wrong(format!(
                "url: at most {MAX_URL_BYTES} bytes are taken"
            )));
        }
        self.poster
            .check(&draft.url)
            .map_err(|why| wrong(format!("url: {why}")))?;
        if draft.event_types.len() > MAX_EVENT_TYPES {
            return Err(wrong(format!(
                "event_types: at most {MAX_EVENT_TYPES} are taken"
            )));
        }
        let secret = draft
            .secret
            .as_deref()
            .map(str::parse::<Secret>)
            .transpose();
        let secret = secret.map_err(|error| wrong(format!("secret: {error}")))?;
        if let Some(campaign) = &draft.campaign {
            let found = self.engine.store.campaign(campaign).await?;
            found.ok_or_else(|| Error::not_found("campaign", campaign))?;
        }
        Ok(secret)
    }
}

/// The webhook to change, locked.
async fn locked(tx: &mut dyn Tx, id: &WebhookId) -> Result<Webhook> {
    let found = tx.webhook(id).await?;
    found.ok_or_else(|| Error::not_found("webhook", id))
}

fn status(paused: bool) -> WebhookStatus {
    if paused {
        WebhookStatus::Paused
    } else {
        WebhookStatus::Active
    }
}
