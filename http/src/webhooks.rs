//! Webhooks: made, changed, deleted, and what was laid aside for them, by admins alone.

use std::sync::Arc;

use device_ota_domain::event::EventSelector;
use device_ota_domain::{CampaignId, Role, WebhookId};
use device_ota_engine::WebhookDraft;
use serde::Deserialize;
use utoipa::{OpenApi, ToSchema};
use warp::Filter as _;

use crate::dto::webhook::{DeadLetterDto, NewWebhookDto, WebhookDto};
use crate::dto::{self, DeadLetterList, List, PageQuery, WebhookList};
use crate::errors::ApiError;
use crate::request::body::{Body, body};
use crate::request::json::{json, no_body};
use crate::request::revision::{IfMatch, expected_revision, of_revision};
use crate::request::{Call, Segment, call};
use crate::shared::{Answer, Routes, Shared, reply};

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(list, create, get, change, delete, dead_letters, retry, discard))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let list = warp::get()
        .and(warp::path!("webhooks"))
        .and(call.clone())
        .then(list);
    let create = warp::post()
        .and(warp::path!("webhooks"))
        .and(call.clone())
        .and(body())
        .then(create);
    let get = warp::get()
        .and(warp::path!("webhooks" / Segment))
        .and(call.clone())
        .then(get);
    let change = warp::put()
        .and(warp::path!("webhooks" / Segment))
        .and(call.clone())
        .and(body())
        .then(change);
    let delete = warp::delete()
        .and(warp::path!("webhooks" / Segment))
        .and(call.clone())
        .and(body())
        .then(delete);
    let dead_letters = warp::get()
        .and(warp::path!("webhooks" / Segment / "dead-letters"))
        .and(call.clone())
        .then(dead_letters);
    let retry = warp::post()
        .and(warp::path!(
            "webhooks" / Segment / "dead-letters" / Segment / "retry"
        ))
        .and(call.clone())
        .and(body())
        .then(retry);
    let discard = warp::delete()
        .and(warp::path!("webhooks" / Segment / "dead-letters" / Segment))
        .and(call)
        .and(body())
        .then(discard);
    list.or(create)
        .unify()
        .or(get)
        .unify()
        .or(change)
        .unify()
        .or(delete)
        .unify()
        .or(dead_letters)
        .unify()
        .or(retry)
        .unify()
        .or(discard)
        .unify()
        .map(reply)
        .boxed()
}

/// What is wanted of a webhook.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WebhookRequest {
    /// Where events are posted to: `https://…`, or `http://…` on a network that is trusted.
    #[schema(
        min_length = 1,
        max_length = 2_048,
        examples("https://hooks.example.com/ota")
    )]
    url: String,
    /// Types and families such as `campaign.*`; left out or empty, all.
    #[serde(default)]
    #[schema(value_type = Vec<String>, max_items = 32)]
    event_types: Vec<EventSelector>,
    /// Of this campaign, its updates and its rollbacks alone.
    #[serde(default)]
    campaign_id: Option<CampaignId>,
    /// What requests are signed with: `whsec_` and the Base64 of 24 to 64 bytes. Left out, one is made, or stays as it was.
    #[serde(default)]
    secret: Option<String>,
    #[serde(default)]
    status: WantedStatus,
}

/// Whether it gets its events. One that is disabled gets them again once it is made active.
#[derive(Deserialize, ToSchema, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum WantedStatus {
    #[default]
    Active,
    Paused,
}

impl From<WebhookRequest> for WebhookDraft {
    fn from(request: WebhookRequest) -> Self {
        Self {
            url: request.url,
            event_types: request.event_types,
            campaign: request.campaign_id,
            secret: request.secret,
            paused: request.status == WantedStatus::Paused,
        }
    }
}

/// Webhooks, newest first
///
/// Without their secrets.
#[utoipa::path(get, path = "/api/v1/ota/webhooks", tag = "webhooks", params(PageQuery), responses(
    (status = 200, description = "A page of them", body = WebhookList),
))]
async fn list(call: Call) -> Answer {
    call.require(Role::Admin)?;
    let mut query = call.query()?;
    let page = query.page()?;
    let filters = query.done()?;
    let webhooks = call.shared.webhooks.list(page).await?;
    Ok(dto::ok(&List {
        plural: "webhooks",
        items: webhooks.iter().map(WebhookDto::from).collect(),
        page,
        filters,
    }))
}

/// Make a webhook
///
/// It gets what happens from now on, in order and at least once, signed as the Standard Webhooks specification says.
#[utoipa::path(post, path = "/api/v1/ota/webhooks", tag = "webhooks", request_body = WebhookRequest, responses(
    (status = 201, description = "The webhook, with its secret, which is shown this once", body = NewWebhookDto,
        headers(("ETag" = String, description = "Its `revision`, for `If-Match`"))),
    (status = 404, description = "There is no such campaign"),
    (status = 409, description = "There are as many webhooks as there may be"),
))]
async fn create(call: Call, body: Body) -> Answer {
    let by = call.require(Role::Admin)?;
    call.no_query()?;
    let request: WebhookRequest = json(&call.headers, body).await?;
    let (webhook, secret) = call.shared.webhooks.create(request.into(), by).await?;
    let answer = dto::created(&NewWebhookDto {
        webhook: WebhookDto::from(&webhook),
        secret: &secret,
    });
    Ok(of_revision(webhook.revision, answer))
}

/// One webhook
#[utoipa::path(get, path = "/api/v1/ota/webhooks/{webhook_id}", tag = "webhooks", responses(
    (status = 200, description = "The webhook, without its secret", body = WebhookDto,
        headers(("ETag" = String, description = "Its `revision`, for `If-Match`"))),
))]
async fn get(id: Segment, call: Call) -> Answer {
    call.require(Role::Admin)?;
    call.no_query()?;
    let id: WebhookId = id.id("webhook")?;
    let webhook = call.shared.webhooks.get(&id).await?;
    let answer = dto::ok(&WebhookDto::from(&webhook));
    Ok(of_revision(webhook.revision, answer))
}

/// Replace what is wanted of a webhook
///
/// It goes on from its place with what it has not taken; failures so far are forgotten.
#[utoipa::path(put, path = "/api/v1/ota/webhooks/{webhook_id}", tag = "webhooks", request_body = WebhookRequest,
    params(IfMatch),
    responses(
        (status = 200, description = "The webhook as it is now", body = WebhookDto,
            headers(("ETag" = String, description = "Its `revision`, for `If-Match`"))),
        (status = 404, description = "There is no such webhook or campaign"),
    ),
)]
async fn change(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Admin)?;
    call.no_query()?;
    let id: WebhookId = id.id("webhook")?;
    let revision = expected_revision(&call.headers)?;
    let request: WebhookRequest = json(&call.headers, body).await?;
    let webhooks = &call.shared.webhooks;
    let webhook = webhooks.change(&id, request.into(), revision, by).await?;
    let answer = dto::ok(&WebhookDto::from(&webhook));
    Ok(of_revision(webhook.revision, answer))
}

/// Delete a webhook
///
/// With what was laid aside for it.
#[utoipa::path(delete, path = "/api/v1/ota/webhooks/{webhook_id}", tag = "webhooks",
    params(IfMatch),
    responses((status = 200, description = "The webhook as it was", body = WebhookDto)),
)]
async fn delete(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Admin)?;
    call.no_query()?;
    let id: WebhookId = id.id("webhook")?;
    let revision = expected_revision(&call.headers)?;
    no_body(&call.headers, body).await?;
    let webhook = call.shared.webhooks.delete(&id, revision, by).await?;
    Ok(dto::ok(&WebhookDto::from(&webhook)))
}

/// Events that were laid aside
///
/// Those that the receiver has not taken in all their tries, newest first.
#[utoipa::path(get, path = "/api/v1/ota/webhooks/{webhook_id}/dead-letters", tag = "webhooks", params(PageQuery), responses(
    (status = 200, description = "A page of them", body = DeadLetterList),
))]
async fn dead_letters(id: Segment, call: Call) -> Answer {
    call.require(Role::Admin)?;
    let id: WebhookId = id.id("webhook")?;
    let mut query = call.query()?;
    let page = query.page()?;
    let filters = query.done()?;
    let letters = call.shared.webhooks.dead_letters(&id, page).await?;
    Ok(dto::ok(&List {
        plural: "dead_letters",
        items: letters.iter().map(DeadLetterDto::from).collect(),
        page,
        filters,
    }))
}

/// Send an event that was laid aside once more
///
/// At once, whether or not the webhook is active.
#[utoipa::path(post, path = "/api/v1/ota/webhooks/{webhook_id}/dead-letters/{number}/retry", tag = "webhooks", responses(
    (status = 200, description = "It was taken, and is no longer laid aside", body = DeadLetterDto),
    (status = 409, description = "The receiver has not taken it; it stays"),
))]
async fn retry(id: Segment, number: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Admin)?;
    call.no_query()?;
    let (id, number) = (id.id("webhook")?, letter_number(&number)?);
    no_body(&call.headers, body).await?;
    let letter = call.shared.webhooks.retry(&id, number, by).await?;
    Ok(dto::ok(&DeadLetterDto::from(&letter)))
}

/// Forget an event that was laid aside
#[utoipa::path(delete, path = "/api/v1/ota/webhooks/{webhook_id}/dead-letters/{number}", tag = "webhooks", responses(
    (status = 200, description = "The event as it was laid aside", body = DeadLetterDto),
))]
async fn discard(id: Segment, number: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Admin)?;
    call.no_query()?;
    let (id, number) = (id.id("webhook")?, letter_number(&number)?);
    no_body(&call.headers, body).await?;
    let letter = call.shared.webhooks.discard(&id, number, by).await?;
    Ok(dto::ok(&DeadLetterDto::from(&letter)))
}

fn letter_number(number: &Segment) -> Result<i64, ApiError> {
    number.id("dead letter")
}
