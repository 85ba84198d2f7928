//! Statistics (PRD, E5-US1, E5-US2).

use std::sync::Arc;

use device_ota_domain::Role;
use utoipa::OpenApi;
use warp::Filter as _;

use crate::dto;
use crate::dto::statistics::{CampaignStatisticsDto, StatisticsDto};
use crate::request::{Call, Segment, call};
use crate::shared::{Answer, Routes, Shared, reply};

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(all, of_campaign))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let all = warp::get()
        .and(warp::path!("stats"))
        .and(call.clone())
        .then(all);
    let of_campaign = warp::get()
        .and(warp::path!("stats" / "campaigns" / Segment))
        .and(call)
        .then(of_campaign);
    all.or(of_campaign).unify().map(reply).boxed()
}

/// The figures of everything
///
/// They are kept with the updates that they count, and exact at every moment.
#[utoipa::path(get, path = "/api/v1/ota/stats", tag = "statistics", responses(
    (status = 200, description = "Campaigns and updates by where they stand, and what they took", body = StatisticsDto),
))]
async fn all(call: Call) -> Answer {
    call.require(Role::Viewer)?;
    call.no_query()?;
    let statistics = call.shared.engine.statistics().await?;
    Ok(dto::ok(&StatisticsDto::from(&statistics)))
}

/// The figures of one campaign
///
/// Of its updates and rollbacks, which it has from its start on.
#[utoipa::path(get, path = "/api/v1/ota/stats/campaigns/{campaign_id}", tag = "statistics", responses(
    (status = 200, description = "Updates by where they stand, why they failed, and what they took", body = CampaignStatisticsDto),
))]
async fn of_campaign(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    call.no_query()?;
    let id = id.id("campaign")?;
    let statistics = call.shared.engine.campaign_statistics(&id).await?;
    Ok(dto::ok(&CampaignStatisticsDto::from(&statistics)))
}
