//! A person opens the next stage of a campaign.

use std::sync::Arc;

use device_ota_domain::planner::Advance;
use device_ota_domain::{CampaignId, Role};
use serde::Deserialize;
use utoipa::{OpenApi, ToSchema};
use warp::Filter as _;

use crate::dto;
use crate::dto::campaign::CampaignDto;
use crate::request::body::{Body, body};
use crate::request::json::optional_json;
use crate::request::revision::{IfMatch, expected_revision};
use crate::request::{Call, Segment, call};
use crate::shared::{Answer, Routes, Shared, reply};

#[derive(OpenApi)]
#[openapi(paths(advance))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    warp::post()
        .and(warp::path!("campaigns" / Segment / "advance"))
        .and(call(shared))
        .and(body())
        .then(advance)
        .map(reply)
        .boxed()
}

/// Which stage; all of it may be left out.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AdvanceRequest {
    /// The stage that shall open, by its name; 409 when it is open already, or another one comes first.
    #[serde(default)]
    stage: Option<String>,
    /// Open it although its gate does not hold. It must be named then.
    #[serde(default)]
    force: bool,
}

/// Open the next stage of a campaign
///
/// When its gate is `manual` and holds in everything else. Of several who ask at once, one opens the stage and the others are told:
/// name the stage, or say in `If-Match` what you have seen.
#[utoipa::path(post, path = "/api/v1/ota/campaigns/{campaign_id}/advance", tag = "campaigns",
    request_body(content = Option<AdvanceRequest>),
    params(IfMatch),
    responses(
        (status = 200, description = "The campaign, with one stage more open", body = CampaignDto),
        (status = 409, description = "Nothing waits for a person, the stage is open already or not the next, the campaign is not in progress, or was changed meanwhile"),
    ),
)]
async fn advance(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id: CampaignId = id.id("campaign")?;
    let revision = expected_revision(&call.headers)?;
    let AdvanceRequest { stage, force } = optional_json(&call.headers, body).await?;
    let asked = Advance {
        stage: stage.as_deref(),
        force,
    };
    let engine = &call.shared.engine;
    let view = engine.advance_campaign(&id, asked, revision, by).await?;
    Ok(dto::ok(&CampaignDto::from(&view)))
}
