//! The rollback log (PRD, E4).

use std::sync::Arc;

use device_ota_domain::Role;
use device_ota_domain::page::Page;
use device_ota_domain::{CampaignId, DeviceId};
use device_ota_engine::ports::store::RollbackFilter;
use serde_json::{Map, Value};
use utoipa::OpenApi;
use warp::Filter as _;

use crate::dto::rollback::RollbackDto;
use crate::dto::{self, List, PageQuery, RollbackList};
use crate::errors::ApiError;
use crate::request::{Call, call};
use crate::shared::{Answer, Routes, Shared, reply};

/// Longest reason of a rollback, in bytes.
const MAX_REASON_BYTES: usize = 1_024;
/// The reason of a rollback that names none.
const NO_REASON: &str = "asked for by an admin";

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(list))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    warp::get()
        .and(warp::path!("rollbacks"))
        .and(call(shared))
        .then(list)
        .map(reply)
        .boxed()
}

/// The rollback log, newest first
#[utoipa::path(get, path = "/api/v1/ota/rollbacks", tag = "rollbacks",
    params(
        PageQuery,
        ("campaign_id" = Option<CampaignId>, Query, description = "Of this campaign"),
        ("device_id" = Option<DeviceId>, Query, description = "Of this device"),
    ),
    responses((status = 200, description = "A page of it", body = RollbackList)),
)]
async fn list(call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let mut query = call.query()?;
    let page = query.page()?;
    let filter = RollbackFilter {
        campaign: query.id("campaign_id")?,
        device: query.id("device_id")?,
    };
    let filters = query.done()?;
    answer_list(&call, &filter, page, filters).await
}

/// Answers with a page of the log.
pub(crate) async fn answer_list(
    call: &Call,
    filter: &RollbackFilter,
    page: Page,
    filters: Map<String, Value>,
) -> Answer {
    let rollbacks = call.shared.engine.rollbacks(filter, page).await?;
    let items = rollbacks.iter().map(RollbackDto::from).collect();
    Ok(dto::ok(&List {
        plural: "rollbacks",
        items,
        page,
        filters,
    }))
}

/// The reason as given, within its bound, or one that says that none was given.
pub(crate) fn checked_reason(given: Option<String>) -> Result<String, ApiError> {
    match given {
        Some(reason)
            if reason.len() > MAX_REASON_BYTES
                || reason.chars().any(|c| c.is_control() && c != '\n') =>
        {
            let detail = format!(
                "reason must be at most {MAX_REASON_BYTES} bytes without control characters"
            );
            Err(ApiError::invalid("invalid_reason", detail))
        }
        Some(reason) if !reason.trim().is_empty() => Ok(reason),
        _ => Ok(NO_REASON.to_owned()),
    }
}
