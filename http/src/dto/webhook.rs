//! Webhooks as the API shows them.

use device_ota_domain::event::EventSelector;
use device_ota_domain::webhook::{Webhook, WebhookStatus};
use device_ota_domain::{CampaignId, WebhookId};
use device_ota_engine::ports::webhooks::LaidAside;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::schema::Object;

/// What is known of a webhook.
#[derive(Serialize, ToSchema)]
#[schema(as = Webhook)]
pub(crate) struct WebhookDto<'w> {
    webhook_id: &'w WebhookId,
    url: &'w str,
    #[schema(value_type = Vec<String>)]
    event_types: &'w [EventSelector],
    campaign_id: Option<&'w CampaignId>,
    #[schema(schema_with = statuses)]
    status: &'static str,
    /// Why it is disabled.
    reason: Option<&'w str>,
    /// It has taken, or does not want, every event up to this one.
    last_event_id: i64,
    last_delivered_at: Option<Timestamp>,
    /// Why it gets nothing at the moment.
    failure: Option<FailureDto<'w>>,
    created_at: Timestamp,
    created_by: &'w str,
    updated_at: Timestamp,
    /// Rises with each change of what is wanted of it.
    revision: i64,
}

/// A run of failures.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookFailure)]
struct FailureDto<'w> {
    /// How often the receiver was there and refused the present event, so far.
    tries: u32,
    /// Since when nothing was taken.
    since: Timestamp,
    next_try_at: Timestamp,
    error: &'w str,
}

/// A new webhook, with its secret, which is shown this once.
#[derive(Serialize, ToSchema)]
#[schema(as = NewWebhook)]
pub(crate) struct NewWebhookDto<'w> {
    #[serde(flatten)]
    pub(crate) webhook: WebhookDto<'w>,
    #[schema(examples("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))]
    pub(crate) secret: &'w str,
}

/// An event that was laid aside.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub(crate) struct DeadLetterDto<'l> {
    number: i64,
    tries: u32,
    /// What the last try said.
    error: &'l str,
    /// When it was laid aside.
    at: Timestamp,
    /// As it is sent.
    #[schema(value_type = Object)]
    event: Value,
}

fn statuses() -> Object {
    super::names(WebhookStatus::NAMES)
}

impl<'w> From<&'w Webhook> for WebhookDto<'w> {
    fn from(webhook: &'w Webhook) -> Self {
        Self {
            webhook_id: &webhook.id,
            url: &webhook.url,
            event_types: &webhook.event_types,
            campaign_id: webhook.campaign.as_ref(),
            status: webhook.status.name(),
            reason: match &webhook.status {
                WebhookStatus::Disabled { reason } => Some(reason),
                WebhookStatus::Active | WebhookStatus::Paused => None,
            },
            last_event_id: webhook.place,
            last_delivered_at: webhook.delivered_at,
            failure: webhook.trouble.as_ref().map(|trouble| FailureDto {
                tries: trouble.tries,
                since: trouble.since,
                next_try_at: trouble.due_at,
                error: &trouble.error,
            }),
            created_at: webhook.created_at,
            created_by: &webhook.created_by,
            updated_at: webhook.updated_at,
            revision: webhook.revision,
        }
    }
}

impl<'l> From<&'l LaidAside> for DeadLetterDto<'l> {
    fn from(aside: &'l LaidAside) -> Self {
        Self {
            number: aside.number,
            tries: aside.letter.tries,
            error: &aside.letter.error,
            at: aside.letter.at,
            event: aside.event.envelope(),
        }
    }
}
