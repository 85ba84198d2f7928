//! The database's side of webhooks: what is asked of it, and what is written within a transaction.

use async_trait::async_trait;
use device_ota_domain::WebhookId;
use device_ota_domain::event::StoredEvent;
use device_ota_domain::page::Page;
use device_ota_domain::webhook::{DeadLetter, Webhook};
use jiff::Timestamp;

use super::error::Result;

/// A webhook and what its requests are signed with. Not printable: it holds a secret.
#[derive(Clone)]
pub struct Served {
    /// The webhook.
    pub webhook: Webhook,
    /// Its secret, as it was shown once.
    pub secret: String,
}

/// An event that was laid aside, with its number among all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct LaidAside {
    /// Its number.
    pub number: i64,
    /// Why, and when.
    pub letter: DeadLetter,
    /// The event itself, which the outbox may no longer have.
    pub event: StoredEvent,
}

/// Reads of webhooks. Each is one statement of its own.
#[async_trait]
pub trait Webhooks: Send + Sync + 'static {
    /// One webhook.
    async fn webhook(&self, webhook: &WebhookId) -> Result<Option<Webhook>>;
    /// One webhook, to send to it.
    async fn served_webhook(&self, webhook: &WebhookId) -> Result<Option<Served>>;
    /// Webhooks, newest first.
    async fn webhooks(&self, page: Page) -> Result<Vec<Webhook>>;
    /// Active webhooks behind whose place there are events, and whose next try is due.
    async fn due_webhooks(&self, now: Timestamp, limit: u32) -> Result<Vec<Served>>;
    /// Active webhooks that have not taken an event from before this.
    async fn late_webhooks(&self, before: Timestamp, limit: u32) -> Result<Vec<Webhook>>;
    /// Events that were laid aside, newest first.
    async fn dead_letters(&self, webhook: &WebhookId, page: Page) -> Result<Vec<LaidAside>>;
    /// One of them.
    async fn dead_letter(&self, webhook: &WebhookId, number: i64) -> Result<Option<LaidAside>>;
}

/// Changes of webhooks within a transaction.
#[async_trait]
pub trait WebhookChanges: Send {
    /// One webhook, locked until the transaction ends.
    async fn webhook(&mut self, webhook: &WebhookId) -> Result<Option<Webhook>>;
    /// Inserts a webhook, unless there are as many as `most`; false then.
    async fn insert_webhook(&mut self, webhook: &Webhook, secret: &str, most: u32) -> Result<bool>;
    /// Writes what an admin may change of it, and its secret when one is given; false when it is gone.
    async fn save_webhook(&mut self, webhook: &Webhook, secret: Option<&str>) -> Result<bool>;
    /// Writes how far it has come, and that it was disabled, if so. False when it is no longer active, or was changed
    /// since it was read: then nothing is written.
    async fn webhook_moved(&mut self, webhook: &Webhook) -> Result<bool>;
    /// Deletes a webhook and what was laid aside for it; false when it is gone.
    async fn delete_webhook(&mut self, webhook: &WebhookId) -> Result<bool>;
    /// Lays an event aside. Answers how many are.
    async fn lay_aside(
        &mut self,
        webhook: &WebhookId,
        letter: &DeadLetter,
        event: &StoredEvent,
    ) -> Result<u64>;
    /// Forgets an event that was laid aside; false when it is gone.
    async fn delete_dead_letter(&mut self, webhook: &WebhookId, number: i64) -> Result<bool>;
}
