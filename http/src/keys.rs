//! API keys: made, listed, revoked, by admins alone.

use std::sync::Arc;

use device_ota_domain::api_key::KeyDraft;
use device_ota_domain::{ApiKeyId, Role, Roles};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::{OpenApi, ToSchema};
use warp::Filter as _;

use crate::dto::key::{KeyDto, NewKeyDto};
use crate::dto::{self, KeyList, List, PageQuery};
use crate::request::body::{Body, body};
use crate::request::json::{json, no_body};
use crate::request::{Call, Segment, call};
use crate::shared::{Answer, Routes, Shared, reply};

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(list, create, revoke))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let list = warp::get()
        .and(warp::path!("keys"))
        .and(call.clone())
        .then(list);
    let create = warp::post()
        .and(warp::path!("keys"))
        .and(call.clone())
        .and(body())
        .then(create);
    let revoke = warp::delete()
        .and(warp::path!("keys" / Segment))
        .and(call)
        .and(body())
        .then(revoke);
    list.or(create)
        .unify()
        .or(revoke)
        .unify()
        .map(reply)
        .boxed()
}

/// The body of a new key.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct KeyRequest {
    /// For people: what it is for.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// Who uses it, as records show it; left out, the name.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255)]
    subject: Option<String>,
    #[schema(value_type = Vec<Role>, min_items = 1)]
    roles: Roles,
    /// Left out: when it is revoked.
    #[serde(default)]
    expires_at: Option<Timestamp>,
}

/// API keys, newest first
///
/// Revoked and expired ones too; secrets are nowhere.
#[utoipa::path(get, path = "/api/v1/ota/keys", tag = "keys", params(PageQuery), responses(
    (status = 200, description = "A page of them", body = KeyList),
))]
async fn list(call: Call) -> Answer {
    call.require(Role::Admin)?;
    let mut query = call.query()?;
    let page = query.page()?;
    let filters = query.done()?;
    let keys = call.shared.engine.api_keys().list(page).await?;
    let items = keys.iter().map(KeyDto::from).collect();
    Ok(dto::ok(&List {
        plural: "keys",
        items,
        page,
        filters,
    }))
}

/// Make an API key
#[utoipa::path(post, path = "/api/v1/ota/keys", tag = "keys", request_body = KeyRequest, responses(
    (status = 201, description = "The key, with its secret, which is shown this once", body = NewKeyDto),
))]
async fn create(call: Call, body: Body) -> Answer {
    let by = call.require(Role::Admin)?;
    call.no_query()?;
    let request: KeyRequest = json(&call.headers, body).await?;
    let draft = KeyDraft {
        subject: request.subject.unwrap_or_else(|| request.name.clone()),
        name: request.name,
        roles: request.roles,
        expires_at: request.expires_at,
    };
    let (key, secret) = call.shared.engine.api_keys().create(draft, by).await?;
    Ok(dto::created(&NewKeyDto {
        key: KeyDto::from(&key),
        secret: &secret,
    }))
}

/// Revoke an API key
///
/// At once in this process, within seconds in others. A second time changes nothing.
#[utoipa::path(delete, path = "/api/v1/ota/keys/{key_id}", tag = "keys", responses(
    (status = 200, description = "The key as it is now", body = KeyDto),
))]
async fn revoke(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Admin)?;
    call.no_query()?;
    let id: ApiKeyId = id.id("key")?;
    no_body(&call.headers, body).await?;
    let key = call.shared.engine.api_keys().revoke(&id, by).await?;
    Ok(dto::ok(&KeyDto::from(&key)))
}
