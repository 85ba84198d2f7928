//! Campaigns (PRD, E2, E4-US3).

use std::sync::Arc;

use device_ota_domain::campaign::{CampaignDraft, Priority};
use device_ota_domain::{CampaignId, CampaignState, FirmwareId, Role};
use device_ota_engine::ports::store::{CampaignFilter, RollbackFilter, UpdateFilter};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi, ToSchema};
use warp::Filter as _;

use crate::dto::campaign::{self, CampaignDto};
use crate::dto::{self, CampaignDeviceList, CampaignList, List, PageQuery, RollbackList};
use crate::request::body::{Body, body};
use crate::request::json::{json_up_to, no_body, optional_json};
use crate::request::revision::of_revision;
use crate::request::{Call, Segment, call};
use crate::rollbacks::{self, checked_reason};
use crate::shared::{Answer, Routes, Shared, reply};
use crate::updates;
use crate::updates::filter::{PRIORITIES, UpdatesQuery, filter_of};

/// Most bytes of a new campaign: 200,000 named devices with ids of usual length.
pub(crate) const MAX_CAMPAIGN_BYTES: usize = 16 * 1024 * 1024;

/// What an admin can do to a campaign without saying more.
#[derive(Clone, Copy)]
enum Order {
    Start,
    Pause,
    Resume,
    Cancel,
}

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(
    list,
    create,
    one,
    start,
    pause,
    resume,
    cancel,
    roll_back,
    devices,
    rollback_log
))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let get = || warp::get().and(warp::path("campaigns"));
    let post = || warp::post().and(warp::path("campaigns"));
    let list = get().and(warp::path::end()).and(call.clone()).then(list);
    let one = get().and(warp::path!(Segment)).and(call.clone()).then(one);
    let devices = get()
        .and(warp::path!(Segment / "devices"))
        .and(call.clone())
        .then(devices);
    let log = get()
        .and(warp::path!(Segment / "rollbacks"))
        .and(call.clone())
        .then(rollback_log);
    let create = post()
        .and(warp::path::end())
        .and(call.clone())
        .and(body())
        .then(create);
    let roll_back = post()
        .and(warp::path!(Segment / "rollback"))
        .and(call.clone())
        .and(body())
        .then(roll_back);
    let start = post()
        .and(warp::path!(Segment / "start"))
        .and(call.clone())
        .and(body())
        .then(start);
    let pause = post()
        .and(warp::path!(Segment / "pause"))
        .and(call.clone())
        .and(body())
        .then(pause);
    let resume = post()
        .and(warp::path!(Segment / "resume"))
        .and(call.clone())
        .and(body())
        .then(resume);
    let cancel = post()
        .and(warp::path!(Segment / "cancel"))
        .and(call)
        .and(body())
        .then(cancel);
    let reads = one
        .or(devices)
        .unify()
        .or(log)
        .unify()
        .or(list)
        .unify()
        .boxed();
    let orders = start
        .or(pause)
        .unify()
        .or(resume)
        .unify()
        .or(cancel)
        .unify();
    let writes = orders.or(roll_back).unify().or(create).unify().boxed();
    reads.or(writes).unify().map(reply).boxed()
}

/// Which campaigns (PRD, FR-18).
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `list` reads")]
struct CampaignsQuery {
    /// In this status.
    #[param(schema_with = campaign::statuses)]
    status: Option<String>,
    /// Of this priority.
    priority: Option<Priority>,
    /// Of this image.
    firmware_id: Option<FirmwareId>,
}

/// Campaigns, newest first
#[utoipa::path(get, path = "/api/v1/ota/campaigns", tag = "campaigns",
    params(
        PageQuery,
        CampaignsQuery,
    ),
    responses((status = 200, description = "A page of them", body = CampaignList)),
)]
async fn list(call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let mut query = call.query()?;
    let page = query.page()?;
    let statuses = CampaignState::STATUSES.map(|status| (status, status));
    let filter = CampaignFilter {
        status: query.one_of("status", &statuses)?.map(str::to_owned),
        priority: query.one_of("priority", &PRIORITIES)?,
        firmware: query.id("firmware_id")?,
    };
    let filters = query.done()?;
    let campaigns = call.shared.engine.campaigns(&filter, page).await?;
    let items = campaigns.iter().map(CampaignDto::from).collect();
    Ok(dto::ok(&List {
        plural: "campaigns",
        items,
        page,
        filters,
    }))
}

/// One campaign, and how far it is
///
/// Its `draft` is what `PUT` takes, whole: who changes a field of it and sends it back changes nothing else.
#[utoipa::path(get, path = "/api/v1/ota/campaigns/{campaign_id}", tag = "campaigns", responses(
    (status = 200, description = "The campaign", body = CampaignDto,
        headers(("ETag" = String, description = "Its `revision`, for `If-Match`"))),
))]
async fn one(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    call.no_query()?;
    let view = call.shared.engine.campaign(&id.id("campaign")?).await?;
    let named = call.shared.engine.named(&view.campaign).await?;
    let answer = dto::ok(&CampaignDto::with_draft(&view, &named));
    Ok(of_revision(view.campaign.revision, answer))
}

/// Create a campaign
///
/// It means the named devices, the named groups and whom the filter takes, or, without any of them, every device of
/// the image's model. Nothing is offered before it is started.
#[utoipa::path(post, path = "/api/v1/ota/campaigns", tag = "campaigns", request_body = CampaignDraft, responses(
    (status = 201, description = "The new campaign", body = CampaignDto),
    (status = 404, description = "There is no such image"),
    (status = 409, description = "The image is out of use"),
))]
async fn create(call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let draft: CampaignDraft = json_up_to(MAX_CAMPAIGN_BYTES, &call.headers, body).await?;
    let view = call.shared.engine.create_campaign(draft, by).await?;
    Ok(dto::created(&CampaignDto::from(&view)))
}

/// Start a campaign
#[utoipa::path(post, path = "/api/v1/ota/campaigns/{campaign_id}/start", tag = "campaigns", responses(
    (status = 200, description = "The campaign, in progress", body = CampaignDto),
    (status = 409, description = "It has been started before, has ended, needs an approval first, or its image is out of use"),
))]
async fn start(id: Segment, call: Call, body: Body) -> Answer {
    order(Order::Start, &id, &call, body).await
}

/// Pause a campaign
///
/// Nothing new is offered; what is in flight goes on.
#[utoipa::path(post, path = "/api/v1/ota/campaigns/{campaign_id}/pause", tag = "campaigns", responses(
    (status = 200, description = "The campaign, paused", body = CampaignDto),
    (status = 409, description = "It is not in progress"),
))]
async fn pause(id: Segment, call: Call, body: Body) -> Answer {
    order(Order::Pause, &id, &call, body).await
}

/// Go on with a paused campaign
#[utoipa::path(post, path = "/api/v1/ota/campaigns/{campaign_id}/resume", tag = "campaigns", responses(
    (status = 200, description = "The campaign, in progress", body = CampaignDto),
    (status = 409, description = "It is not paused"),
))]
async fn resume(id: Segment, call: Call, body: Body) -> Answer {
    order(Order::Resume, &id, &call, body).await
}

/// Cancel a campaign
///
/// What waits is cancelled, what downloads is asked to stop, what installs ends first.
#[utoipa::path(post, path = "/api/v1/ota/campaigns/{campaign_id}/cancel", tag = "campaigns", responses(
    (status = 200, description = "The campaign, cancelled", body = CampaignDto),
    (status = 409, description = "It has ended, or rolls back"),
))]
async fn cancel(id: Segment, call: Call, body: Body) -> Answer {
    order(Order::Cancel, &id, &call, body).await
}

async fn order(order: Order, id: &Segment, call: &Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id: CampaignId = id.id("campaign")?;
    no_body(&call.headers, body).await?;
    let engine = &call.shared.engine;
    let view = match order {
        Order::Start => engine.start_campaign(&id, by).await?,
        Order::Pause => engine.pause_campaign(&id, by).await?,
        Order::Resume => engine.resume_campaign(&id, by).await?,
        Order::Cancel => engine.cancel_campaign(&id, by).await?,
    };
    Ok(dto::ok(&CampaignDto::from(&view)))
}

/// The body of a rollback of a campaign; all of it may be left out.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CampaignRollbackRequest)]
struct RollbackRequest {
    #[schema(max_length = 1024)]
    #[serde(default)]
    reason: Option<String>,
}

/// Roll back a campaign
///
/// Every device that it updated goes back to what it ran before, within the same limits.
#[utoipa::path(post, path = "/api/v1/ota/campaigns/{campaign_id}/rollback", tag = "campaigns",
    request_body(content = Option<RollbackRequest>),
    responses(
        (status = 200, description = "The campaign, rolling back", body = CampaignDto),
        (status = 409, description = "It has not been started, or rolls back already"),
    ),
)]
async fn roll_back(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id: CampaignId = id.id("campaign")?;
    let request: RollbackRequest = optional_json(&call.headers, body).await?;
    let reason = checked_reason(request.reason)?;
    let view = call
        .shared
        .engine
        .roll_back_campaign(&id, &reason, by)
        .await?;
    Ok(dto::ok(&CampaignDto::from(&view)))
}

/// The updates and rollbacks of a campaign's devices, newest first
#[utoipa::path(get, path = "/api/v1/ota/campaigns/{campaign_id}/devices", tag = "campaigns",
    params(
        PageQuery,
        UpdatesQuery,
    ),
    responses((status = 200, description = "A page of them", body = CampaignDeviceList)),
)]
async fn devices(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let id: CampaignId = id.id("campaign")?;
    let mut query = call.query()?;
    let page = query.page()?;
    let filter = filter_of(&mut query)?;
    let filters = query.done()?;
    call.shared.engine.campaign(&id).await?;
    let filter = UpdateFilter {
        campaign: Some(id),
        ..filter
    };
    updates::answer_list(&call, "devices", &filter, page, filters).await
}

/// What became of each device that the campaign took back
#[utoipa::path(get, path = "/api/v1/ota/campaigns/{campaign_id}/rollbacks", tag = "campaigns",
    params(PageQuery),
    responses((status = 200, description = "A page of the log", body = RollbackList)),
)]
async fn rollback_log(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let id: CampaignId = id.id("campaign")?;
    let mut query = call.query()?;
    let page = query.page()?;
    let filters = query.done()?;
    call.shared.engine.campaign(&id).await?;
    let filter = RollbackFilter {
        campaign: Some(id),
        ..RollbackFilter::default()
    };
    rollbacks::answer_list(&call, &filter, page, filters).await
}
