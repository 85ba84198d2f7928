//! Webhooks, how far each has come, and the events that were laid aside.

use async_trait::async_trait;
use device_ota_domain::event::StoredEvent;
use device_ota_domain::page::Page;
use device_ota_domain::webhook::{DeadLetter, Trouble, Webhook, WebhookStatus};
use device_ota_domain::{CampaignId, WebhookId};
use device_ota_engine::ports::store as port;
use device_ota_engine::ports::webhooks::{LaidAside, Served, WebhookChanges, Webhooks};
use jiff::Timestamp;

use crate::SqlStore;
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, statements, to_json};
use crate::tx::SqlTx;
use crate::writes::seen;

macro_rules! select_webhook {
    ($rest:literal) => {
        concat!(
            "SELECT w.webhook_id, w.url, w.secret, w.event_types, w.campaign_id, w.status, w.reason, w.place, w.tries, \
             w.failing_since, w.due_at, w.error, w.delivered_at, w.created_at, w.created_by, w.revision, w.updated_at \
             FROM webhooks w ",
            $rest
        )
    };
}

macro_rules! select_dead_letter {
    ($rest:literal) => {
        concat!(
            "SELECT number, event_id, tries, error, at, event FROM webhook_dead_letters WHERE webhook_id = $1 ",
            $rest
        )
    };
}

statements! {
    WEBHOOK = select_webhook!("WHERE w.webhook_id = $1");
    WEBHOOK_LOCKED = select_webhook!("WHERE w.webhook_id = $1 {for_update}");
    WEBHOOKS = select_webhook!("ORDER BY w.number DESC LIMIT $1 OFFSET $2");
    DUE_WEBHOOKS = select_webhook!(
        "WHERE w.status = 'active' AND (w.due_at IS NULL OR w.due_at <= $1) \
         AND w.place < (SELECT MAX(id) FROM outbox) ORDER BY w.number LIMIT $2"
    );
    LATE_WEBHOOKS = select_webhook!(
        "WHERE w.status = 'active' \
         AND (SELECT o.at FROM outbox o WHERE o.id > w.place ORDER BY o.id LIMIT 1) < $1 ORDER BY w.number LIMIT $2"
    );
    INSERT_WEBHOOK = "INSERT INTO webhooks (webhook_id, url, secret, event_types, campaign_id, status, place, created_at, \
         created_by, updated_at) SELECT CAST($1 AS TEXT), CAST($2 AS TEXT), CAST($3 AS TEXT), CAST($4 AS TEXT), \
         CAST($5 AS TEXT), CAST($6 AS TEXT), CAST($7 AS BIGINT), CAST($8 AS BIGINT), CAST($9 AS TEXT), CAST($10 AS BIGINT) \
         WHERE (SELECT COUNT(*) FROM webhooks) < $11";
    SAVE_WEBHOOK = "UPDATE webhooks SET url = $2, event_types = $3, campaign_id = $4, status = $5, reason = NULL, \
         secret = COALESCE($6, secret), tries = 0, failing_since = NULL, due_at = NULL, error = NULL, \
         revision = revision + 1, updated_at = $7 WHERE webhook_id = $1";
    WEBHOOK_MOVED = "UPDATE webhooks SET place = $2, tries = $3, failing_since = $4, due_at = $5, error = $6, \
         delivered_at = $7, status = $8, reason = $9 WHERE webhook_id = $1 AND status = 'active' AND updated_at = $10 \
         AND place <= $2";
    DELETE_WEBHOOK = "DELETE FROM webhooks WHERE webhook_id = $1";
    DELETE_DEAD_LETTERS = "DELETE FROM webhook_dead_letters WHERE webhook_id = $1";
    LAY_ASIDE = "INSERT INTO webhook_dead_letters (webhook_id, event_id, tries, error, at, event) \
         VALUES ($1, $2, $3, $4, $5, $6)";
    LAID_ASIDE = "SELECT COUNT(*) AS letters FROM webhook_dead_letters WHERE webhook_id = $1";
    DEAD_LETTERS = select_dead_letter!("ORDER BY number DESC LIMIT $2 OFFSET $3");
    DEAD_LETTER = select_dead_letter!("AND number = $2");
    DELETE_DEAD_LETTER = "DELETE FROM webhook_dead_letters WHERE webhook_id = $1 AND number = $2";
}

fn read_served<D: Dialect>(row: &Record<'_, D>) -> Result<Served, DbError> {
    let status = match row.text("status")? {
        "active" => WebhookStatus::Active,
        "paused" => WebhookStatus::Paused,
        "disabled" => WebhookStatus::Disabled {
            reason: row.string("reason")?,
        },
        other => return Err(DbError::corrupt(format!("status is {other}"))),
    };
    let trouble = match row.time_opt("failing_since")? {
        Some(since) => Some(Trouble {
            tries: row.uint("tries")?,
            since,
            due_at: row.time("due_at")?,
            error: row.string("error")?,
        }),
        None => None,
    };
    let webhook = Webhook {
        id: row.parse("webhook_id")?,
        url: row.string("url")?,
        event_types: row.json("event_types")?,
        campaign: row.parse_opt("campaign_id")?,
        status,
        place: row.int("place")?,
        trouble,
        delivered_at: row.time_opt("delivered_at")?,
        created_at: row.time("created_at")?,
        created_by: row.string("created_by")?,
        revision: row.int("revision")?,
        updated_at: row.time("updated_at")?,
    };
    Ok(Served {
        webhook,
        secret: row.string("secret")?,
    })
}

fn read_webhook<D: Dialect>(row: &Record<'_, D>) -> Result<Webhook, DbError> {
    Ok(read_served(row)?.webhook)
}

fn read_letter<D: Dialect>(row: &Record<'_, D>) -> Result<LaidAside, DbError> {
    Ok(LaidAside {
        number: row.int("number")?,
        letter: DeadLetter {
            event: row.int("event_id")?,
            tries: row.uint("tries")?,
            error: row.string("error")?,
            at: row.time("at")?,
        },
        event: row.json("event")?,
    })
}

#[async_trait]
impl<D: Dialect> Webhooks for SqlStore<D> {
    async fn webhook(&self, webhook: &WebhookId) -> port::Result<Option<Webhook>> {
        Ok(self
            .served_webhook(webhook)
            .await?
            .map(|served| served.webhook))
    }
    async fn served_webhook(&self, webhook: &WebhookId) -> port::Result<Option<Served>> {
        let args = Args::<D>::new().text(webhook.as_str());
        Ok(sql::fetch_optional(&mut *self.read().await?, &WEBHOOK, args, read_served).await?)
    }
    async fn webhooks(&self, page: Page) -> port::Result<Vec<Webhook>> {
        let args = Args::<D>::new().page(page);
        Ok(sql::fetch_all(&mut *self.read().await?, &WEBHOOKS, args, read_webhook).await?)
    }
    async fn due_webhooks(&self, now: Timestamp, limit: u32) -> port::Result<Vec<Served>> {
        let args = Args::<D>::new().time(now).int(i64::from(limit));
        Ok(sql::fetch_all(&mut *self.read().await?, &DUE_WEBHOOKS, args, read_served).await?)
    }
    async fn late_webhooks(&self, before: Timestamp, limit: u32) -> port::Result<Vec<Webhook>> {
        let args = Args::<D>::new().time(before).int(i64::from(limit));
        Ok(sql::fetch_all(&mut *self.read().await?, &LATE_WEBHOOKS, args, read_webhook).await?)
    }
    async fn dead_letters(&self, webhook: &WebhookId, page: Page) -> port::Result<Vec<LaidAside>> {
        let args = Args::<D>::new().text(webhook.as_str()).page(page);
        Ok(sql::fetch_all(&mut *self.read().await?, &DEAD_LETTERS, args, read_letter).await?)
    }
    async fn dead_letter(
        &self,
        webhook: &WebhookId,
        number: i64,
    ) -> port::Result<Option<LaidAside>> {
        let args = Args::<D>::new().text(webhook.as_str()).int(number);
        Ok(sql::fetch_optional(&mut *self.read().await?, &DEAD_LETTER, args, read_letter).await?)
    }
}

#[async_trait]
impl<D: Dialect> WebhookChanges for SqlTx<D> {
    async fn webhook(&mut self, webhook: &WebhookId) -> port::Result<Option<Webhook>> {
        let args = Args::<D>::new().text(webhook.as_str());
        let found = sql::fetch_optional(self.connection(), &WEBHOOK_LOCKED, args, read_webhook);
        seen(found.await, &self.writes)
    }
    async fn insert_webhook(
        &mut self,
        webhook: &Webhook,
        secret: &str,
        most: u32,
    ) -> port::Result<bool> {
        let types = to_json(&webhook.event_types)?;
        let args = Args::<D>::new()
            .text(webhook.id.as_str())
            .text(webhook.url.as_str())
            .text(secret)
            .text(types.as_str())
            .text(webhook.campaign.as_ref().map(CampaignId::as_str))
            .text(webhook.status.name())
            .int(webhook.place)
            .time(webhook.created_at)
            .text(webhook.created_by.as_str())
            .time(webhook.updated_at)
            .int(i64::from(most));
        let changed = sql::execute(self.connection(), &INSERT_WEBHOOK, args).await;
        Ok(seen(changed, &self.writes)? > 0)
    }
    async fn save_webhook(
        &mut self,
        webhook: &Webhook,
        secret: Option<&str>,
    ) -> port::Result<bool> {
        let types = to_json(&webhook.event_types)?;
        let args = Args::<D>::new()
            .text(webhook.id.as_str())
            .text(webhook.url.as_str())
            .text(types.as_str())
            .text(webhook.campaign.as_ref().map(CampaignId::as_str))
            .text(webhook.status.name())
            .text(secret)
            .time(webhook.updated_at);
        let changed = sql::execute(self.connection(), &SAVE_WEBHOOK, args).await;
        Ok(seen(changed, &self.writes)? > 0)
    }
    async fn webhook_moved(&mut self, webhook: &Webhook) -> port::Result<bool> {
        let trouble = webhook.trouble.as_ref();
        let reason = match &webhook.status {
            WebhookStatus::Disabled { reason } => Some(reason.as_str()),
            WebhookStatus::Active | WebhookStatus::Paused => None,
        };
        let args = Args::<D>::new()
            .text(webhook.id.as_str())
            .int(webhook.place)
            .int(trouble.map_or(0, |t| i64::from(t.tries)))
            .time(trouble.map(|t| t.since))
            .time(trouble.map(|t| t.due_at))
            .text(trouble.map(|t| t.error.as_str()))
            .time(webhook.delivered_at)
            .text(webhook.status.name())
            .text(reason)
            .time(webhook.updated_at);
        let changed = sql::execute(self.connection(), &WEBHOOK_MOVED, args).await;
        Ok(seen(changed, &self.writes)? > 0)
    }
    async fn delete_webhook(&mut self, webhook: &WebhookId) -> port::Result<bool> {
        let args = || Args::<D>::new().text(webhook.as_str());
        // Its row first: whoever is laying an event aside holds it, so what they laid aside is there to be deleted.
        let deleted = sql::execute(self.connection(), &DELETE_WEBHOOK, args()).await;
        let deleted = seen(deleted, &self.writes)? > 0;
        let letters = sql::execute(self.connection(), &DELETE_DEAD_LETTERS, args()).await;
        seen(letters, &self.writes)?;
        Ok(deleted)
    }
    async fn lay_aside(
        &mut self,
        webhook: &WebhookId,
        letter: &DeadLetter,
        event: &StoredEvent,
    ) -> port::Result<u64> {
        let event = to_json(event)?;
        let args = Args::<D>::new()
            .text(webhook.as_str())
            .int(letter.event)
            .int(i64::from(letter.tries))
            .text(letter.error.as_str())
            .time(letter.at)
            .text(event.as_str());
        let laid = sql::execute(self.connection(), &LAY_ASIDE, args).await;
        seen(laid, &self.writes)?;
        let args = Args::<D>::new().text(webhook.as_str());
        let count = sql::fetch_optional(self.connection(), &LAID_ASIDE, args, |row| {
            row.uint::<u64>("letters")
        });
        Ok(seen(count.await, &self.writes)?.unwrap_or_default())
    }
    async fn delete_dead_letter(&mut self, webhook: &WebhookId, number: i64) -> port::Result<bool> {
        let args = Args::<D>::new().text(webhook.as_str()).int(number);
        let changed = sql::execute(self.connection(), &DELETE_DEAD_LETTER, args).await;
        Ok(seen(changed, &self.writes)? > 0)
    }
}
