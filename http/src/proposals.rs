//! Campaigns before their start (PRD, E2-US1, E2-US6): dry runs, changes, verdicts; and why a device is, or is not, offered
//! what a campaign has for it.

use std::sync::Arc;

use device_ota_domain::campaign::CampaignDraft;
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::{CampaignId, DeviceId, Role};
use device_ota_engine::DryRunQuery;
use serde::Deserialize;
use utoipa::openapi::Object;
use utoipa::{IntoParams, OpenApi, ToSchema};
use warp::Filter as _;

use crate::campaigns::MAX_CAMPAIGN_BYTES;
use crate::dto::campaign::CampaignDto;
use crate::dto::targets::{DryRunDto, ReasonsDto};
use crate::dto::{self, PageQuery};
use crate::errors::ApiError;
use crate::request::body::{Body, body};
use crate::request::json::{json_up_to, no_body, optional_json};
use crate::request::revision::{IfMatch, expected_revision, of_revision};
use crate::request::{Call, Query, Segment, call};
use crate::shared::{Answer, Routes, Shared, reply};

#[derive(OpenApi)]
#[openapi(paths(dry_run, targets, why, edit, delete, approve, reject))]
pub(crate) struct Documented;

/// What an approver says.
#[derive(Clone, Copy)]
enum Verdict {
    Approve,
    Reject,
}

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let dry_run = warp::post()
        .and(warp::path!("campaigns" / "dry-run"))
        .and(call.clone())
        .and(body())
        .then(dry_run);
    let targets = warp::get()
        .and(warp::path!("campaigns" / Segment / "targets"))
        .and(call.clone())
        .then(targets);
    let why = warp::get()
        .and(warp::path!(
            "campaigns" / Segment / "devices" / Segment / "why"
        ))
        .and(call.clone())
        .then(why);
    let edit = warp::put()
        .and(warp::path!("campaigns" / Segment))
        .and(call.clone())
        .and(body())
        .then(edit);
    let delete = warp::delete()
        .and(warp::path!("campaigns" / Segment))
        .and(call.clone())
        .and(body())
        .then(delete);
    let approve = warp::post()
        .and(warp::path!("campaigns" / Segment / "approve"))
        .and(call.clone())
        .and(body())
        .then(approve);
    let reject = warp::post()
        .and(warp::path!("campaigns" / Segment / "reject"))
        .and(call)
        .and(body())
        .then(reject);
    let reads = targets.or(why).unify().or(dry_run).unify().boxed();
    let writes = edit
        .or(delete)
        .unify()
        .or(approve)
        .unify()
        .or(reject)
        .unify()
        .boxed();
    reads.or(writes).unify().map(reply).boxed()
}

/// Why a device that is meant may be left out.
const REASONS: [Exclusion; 6] = [
    Exclusion::UnknownDevice,
    Exclusion::WrongModel,
    Exclusion::WrongHwRevision,
    Exclusion::AlreadyInstalled,
    Exclusion::BelowFloor,
    Exclusion::OutsideRollout,
];

/// Which devices of a dry run are shown.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `shown` reads")]
struct ShownQuery {
    /// Devices of this stage alone
    stage: Option<String>,
    /// Instead of them, those that are meant and left out for this reason
    #[param(schema_with = reasons)]
    left_out: Option<String>,
}

fn reasons() -> Object {
    dto::names(REASONS.map(Exclusion::name))
}

/// `stage`, `left_out`, `limit` and `offset`.
fn shown(mut query: Query) -> Result<(DryRunQuery, dto::Filters), ApiError> {
    let reasons = REASONS.map(|reason| (reason.name(), reason));
    let asked = DryRunQuery {
        stage: query.text("stage")?,
        left_out: query.one_of("left_out", &reasons)?,
        page: query.page()?,
    };
    if asked.stage.is_some() && asked.left_out.is_some() {
        let detail = "devices that are left out have no stage; ask for one of stage and left_out";
        return Err(ApiError::invalid("invalid_query", detail));
    }
    Ok((asked, query.done()?))
}

/// What a campaign would come to
///
/// How many devices and which, stage by stage, and how many of those that are meant are left out, and why. Nothing is created. A
/// campaign created of the same draft means the same devices in the same stages, unless the fleet has changed.
#[utoipa::path(post, path = "/api/v1/ota/campaigns/dry-run", tag = "campaigns", request_body = CampaignDraft,
    params(PageQuery, ShownQuery),
    responses(
        (status = 200, description = "Numbers of the whole, and a page of the devices", body = DryRunDto),
        (status = 404, description = "There is no such image"),
        (status = 409, description = "The image is out of use"),
    ),
)]
async fn dry_run(call: Call, body: Body) -> Answer {
    call.require(Role::Operator)?;
    let (asked, filters) = shown(call.query()?)?;
    let draft: CampaignDraft = json_up_to(MAX_CAMPAIGN_BYTES, &call.headers, body).await?;
    let found = call.shared.engine.dry_run(draft, &asked).await?;
    Ok(dto::ok(&DryRunDto::new(&found, &asked, &filters)))
}

/// What a campaign that has not begun would come to
#[utoipa::path(get, path = "/api/v1/ota/campaigns/{campaign_id}/targets", tag = "campaigns",
    params(PageQuery, ShownQuery),
    responses(
        (status = 200, description = "Numbers of the whole, and a page of the devices", body = DryRunDto),
        (status = 409, description = "It has begun; its devices are at its path with `/devices`"),
    ),
)]
async fn targets(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let id: CampaignId = id.id("campaign")?;
    let (asked, filters) = shown(call.query()?)?;
    let found = call.shared.engine.campaign_targets(&id, &asked).await?;
    Ok(dto::ok(&DryRunDto::new(&found, &asked, &filters)))
}

/// Why a device is, or is not, offered what a campaign has for it
///
/// Every reason, the most decisive first.
#[utoipa::path(get, path = "/api/v1/ota/campaigns/{campaign_id}/devices/{device_id}/why", tag = "campaigns", responses(
    (status = 200, description = "The reasons, at least one", body = ReasonsDto),
    (status = 404, description = "There is no such campaign, or a device of this id is neither registered nor named"),
))]
async fn why(campaign: Segment, device: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    call.no_query()?;
    let campaign: CampaignId = campaign.id("campaign")?;
    let device: DeviceId = device.id("device")?;
    let engine = &call.shared.engine;
    let reasons = engine.why_of_campaign(&campaign, &device).await?;
    Ok(dto::ok(&ReasonsDto::new(&campaign, &device, reasons)))
}

/// Change a campaign before its start
///
/// It is written anew as a whole; its targets are counted again, and a verdict on it is void. An approval that was once
/// asked for stays so.
#[utoipa::path(put, path = "/api/v1/ota/campaigns/{campaign_id}", tag = "campaigns", request_body = CampaignDraft,
    params(IfMatch),
    responses(
        (status = 200, description = "The campaign as it is now", body = CampaignDto,
            headers(("ETag" = String, description = "Its `revision`, for `If-Match`"))),
        (status = 404, description = "There is no such campaign or image"),
        (status = 409, description = "It has begun, was deleted, was changed meanwhile, or the image is out of use"),
    ),
)]
async fn edit(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id: CampaignId = id.id("campaign")?;
    let revision = expected_revision(&call.headers)?;
    let draft: CampaignDraft = json_up_to(MAX_CAMPAIGN_BYTES, &call.headers, body).await?;
    let engine = &call.shared.engine;
    let view = engine.edit_campaign(&id, draft, revision, by).await?;
    let answer = dto::ok(&CampaignDto::from(&view));
    Ok(of_revision(view.campaign.revision, answer))
}

/// Delete a campaign
///
/// It leaves the lists and cannot be changed any more; it can still be read.
#[utoipa::path(delete, path = "/api/v1/ota/campaigns/{campaign_id}", tag = "campaigns",
    params(IfMatch),
    responses(
        (status = 200, description = "The campaign, deleted", body = CampaignDto),
        (status = 409, description = "It is active: cancel it first; or it was deleted or changed before"),
    ),
)]
async fn delete(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Admin)?;
    call.no_query()?;
    let id: CampaignId = id.id("campaign")?;
    let revision = expected_revision(&call.headers)?;
    no_body(&call.headers, body).await?;
    let engine = &call.shared.engine;
    let view = engine.delete_campaign(&id, revision, by).await?;
    Ok(dto::ok(&CampaignDto::from(&view)))
}

/// The body of a verdict; all of it may be left out.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct VerdictRequest {
    /// Why, in the approver's words.
    #[serde(default)]
    #[schema(max_length = 1024)]
    comment: Option<String>,
}

/// Approve a campaign
///
/// By somebody who has neither written nor changed it. A later change voids it. `If-Match` names what the approver has seen;
/// it may be left out as long as the campaign is as it was created.
#[utoipa::path(post, path = "/api/v1/ota/campaigns/{campaign_id}/approve", tag = "campaigns",
    request_body = Option<VerdictRequest>,
    params(IfMatch),
    responses(
        (status = 200, description = "The campaign, approved", body = CampaignDto),
        (status = 403, description = "The caller wrote the campaign, or is no approver"),
        (status = 409, description = "It asks for no approval, has begun, or was changed meanwhile; or `If-Match` is missing for one that was changed or judged before"),
    ),
)]
async fn approve(id: Segment, call: Call, body: Body) -> Answer {
    judge(Verdict::Approve, &id, &call, body).await
}

/// Reject a campaign
///
/// Also after an approval, before its start. It can be approved after all.
#[utoipa::path(post, path = "/api/v1/ota/campaigns/{campaign_id}/reject", tag = "campaigns",
    request_body = Option<VerdictRequest>,
    params(IfMatch),
    responses(
        (status = 200, description = "The campaign, rejected", body = CampaignDto),
        (status = 403, description = "The caller wrote the campaign, or is no approver"),
        (status = 409, description = "It asks for no approval, has begun, or was changed meanwhile"),
    ),
)]
async fn reject(id: Segment, call: Call, body: Body) -> Answer {
    judge(Verdict::Reject, &id, &call, body).await
}

async fn judge(verdict: Verdict, id: &Segment, call: &Call, body: Body) -> Answer {
    let by = call.require(Role::Approver)?;
    call.no_query()?;
    let id: CampaignId = id.id("campaign")?;
    let revision = expected_revision(&call.headers)?;
    let VerdictRequest { comment } = optional_json(&call.headers, body).await?;
    let engine = &call.shared.engine;
    let view = match verdict {
        Verdict::Approve => engine.approve_campaign(&id, comment, revision, by).await?,
        Verdict::Reject => engine.reject_campaign(&id, comment, revision, by).await?,
    };
    Ok(dto::ok(&CampaignDto::from(&view)))
}
