//! Updates: progress, cancel, retry (PRD, E3-US2 to E3-US4). Reading one is the most frequent request of all.

pub(crate) mod filter;

use std::sync::Arc;

use device_ota_domain::Role;
use device_ota_domain::page::Page;
use device_ota_domain::update::Update;
use device_ota_domain::{CampaignId, DeviceId};
use device_ota_engine::UpdateView;
use device_ota_engine::ports::store::UpdateFilter;
use serde_json::{Map, Value};
use utoipa::OpenApi;
use warp::Filter as _;

use self::filter::{UpdatesQuery, filter_of};
use crate::dto::firmware::FirmwareRef;
use crate::dto::update::UpdateDto;
use crate::dto::{self, History, List, PageQuery, UpdateList};
use crate::errors::ApiError;
use crate::request::body::{Body, body};
use crate::request::json::no_body;
use crate::request::{Call, Segment, call};
use crate::shared::{Answer, Routes, Shared, reply};

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(list, one, cancel, retry))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let one = warp::get()
        .and(warp::path!("updates" / Segment))
        .and(call.clone())
        .then(one);
    let list = warp::get()
        .and(warp::path!("updates"))
        .and(call.clone())
        .then(list);
    let cancel = warp::post()
        .and(warp::path!("updates" / Segment / "cancel"))
        .and(call.clone())
        .and(body())
        .then(cancel);
    let retry = warp::post()
        .and(warp::path!("updates" / Segment / "retry"))
        .and(call)
        .and(body())
        .then(retry);
    one.or(list)
        .unify()
        .or(cancel)
        .unify()
        .or(retry)
        .unify()
        .map(reply)
        .boxed()
}

/// One update, and how far it is
#[utoipa::path(get, path = "/api/v1/ota/updates/{update_id}", tag = "updates", responses(
    (status = 200, description = "The update", body = UpdateDto),
))]
async fn one(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    call.no_query()?;
    let view = call.shared.engine.update(&id.id("update")?).await?;
    answer_one(&call, &view, false).await
}

/// Updates and rollbacks, newest first
#[utoipa::path(get, path = "/api/v1/ota/updates", tag = "updates",
    params(
        PageQuery,
        ("campaign_id" = Option<CampaignId>, Query, description = "Of this campaign"),
        ("device_id" = Option<DeviceId>, Query, description = "Of this device"),
        UpdatesQuery,
    ),
    responses((status = 200, description = "A page of them", body = UpdateList)),
)]
async fn list(call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let mut query = call.query()?;
    let page = query.page()?;
    let filter = UpdateFilter {
        campaign: query.id("campaign_id")?,
        device: query.id("device_id")?,
        ..filter_of(&mut query)?
    };
    let filters = query.done()?;
    answer_list(&call, "updates", &filter, page, filters).await
}

/// Cancel an update
///
/// What waits ends at once; a device that downloads is asked to stop.
#[utoipa::path(post, path = "/api/v1/ota/updates/{update_id}/cancel", tag = "updates", responses(
    (status = 200, description = "The update as it is now", body = UpdateDto),
    (status = 409, description = "It installs already, or has ended"),
))]
async fn cancel(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id = id.id("update")?;
    no_body(&call.headers, body).await?;
    let view = call.shared.engine.cancel_update(&id, by).await?;
    answer_one(&call, &view, false).await
}

/// Try a failed update again
#[utoipa::path(post, path = "/api/v1/ota/updates/{update_id}/retry", tag = "updates", responses(
    (status = 200, description = "The update, scheduled again", body = UpdateDto),
    (status = 409, description = "It has not failed"),
))]
async fn retry(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id = id.id("update")?;
    no_body(&call.headers, body).await?;
    let view = call.shared.engine.retry_update(&id, by).await?;
    answer_one(&call, &view, false).await
}

/// Answers with one update: 201 when it is `new`, else 200.
pub(crate) async fn answer_one(call: &Call, view: &UpdateView, new: bool) -> Answer {
    let firmware = firmware_of(call, &view.update).await?;
    let body = UpdateDto::new(&view.update, firmware.as_deref(), view.why.clone());
    Ok(if new {
        dto::created(&body)
    } else {
        dto::ok(&body)
    })
}

/// Answers with a page of updates.
pub(crate) async fn answer_list(
    call: &Call,
    plural: &'static str,
    filter: &UpdateFilter,
    page: Page,
    filters: Map<String, Value>,
) -> Answer {
    answer_history(call, plural, filter, page, filters, None).await
}

/// Answers with a page of updates, and with a success rate beside it when there is one.
pub(crate) async fn answer_history(
    call: &Call,
    plural: &'static str,
    filter: &UpdateFilter,
    page: Page,
    filters: Map<String, Value>,
    success_rate: Option<f64>,
) -> Answer {
    let updates = call.shared.engine.updates(filter, page).await?;
    let mut firmware = Vec::with_capacity(updates.len());
    for view in &updates {
        firmware.push(firmware_of(call, &view.update).await?);
    }
    let named = updates.iter().zip(&firmware);
    let items = named
        .map(|(view, firmware)| UpdateDto::new(&view.update, firmware.as_deref(), view.why.clone()))
        .collect();
    let list = List {
        plural,
        items,
        page,
        filters,
    };
    Ok(match success_rate {
        Some(success_rate) => dto::ok(&History { list, success_rate }),
        None => dto::ok(&list),
    })
}

async fn firmware_of(call: &Call, update: &Update) -> Result<Option<Arc<FirmwareRef>>, ApiError> {
    match &update.firmware {
        Some(id) => Ok(call.shared.firmware_ref(id).await?),
        None => Ok(None),
    }
}
