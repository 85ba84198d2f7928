//! Campaigns (PRD, E2, E4-US3).

use std::sync::Arc;

use device_ota_domain::campaign::{CampaignDraft, Group, Priority};
use device_ota_domain::{CampaignId, CampaignState, Role};
use device_ota_engine::ports::store::{CampaignFilter, RollbackFilter, UpdateFilter};
use serde::Deserialize;
use warp::Filter as _;

use crate::dto::campaign::CampaignDto;
use crate::dto::{self, List};
use crate::request::body::{Body, body};
use crate::request::json::{json_up_to, no_body, optional_json};
use crate::request::{Call, Segment, call};
use crate::rollbacks::{self, checked_reason};
use crate::shared::{Answer, Routes, Shared, reply};
use crate::updates::{self, GROUPS};

/// Most bytes of a new campaign: 200,000 named devices with ids of usual length.
const MAX_CAMPAIGN_BYTES: usize = 16 * 1024 * 1024;
/// Priorities by name.
const PRIORITIES: [(&str, Priority); 4] = [
    (Priority::Low.name(), Priority::Low),
    (Priority::Normal.name(), Priority::Normal),
    (Priority::High.name(), Priority::High),
    (Priority::Critical.name(), Priority::Critical),
];

/// What an admin can do to a campaign without saying more.
#[derive(Clone, Copy)]
enum Order {
    Start,
    Pause,
    Resume,
    Cancel,
}

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
    let start = warp::path!(Segment / "start").map(|id| (Order::Start, id));
    let pause = warp::path!(Segment / "pause").map(|id| (Order::Pause, id));
    let resume = warp::path!(Segment / "resume").map(|id| (Order::Resume, id));
    let cancel = warp::path!(Segment / "cancel").map(|id| (Order::Cancel, id));
    let order = start
        .or(pause)
        .unify()
        .or(resume)
        .unify()
        .or(cancel)
        .unify();
    let order = post().and(order).and(call).and(body()).then(order_campaign);
    let reads = one
        .or(devices)
        .unify()
        .or(log)
        .unify()
        .or(list)
        .unify()
        .boxed();
    let writes = order.or(roll_back).unify().or(create).unify().boxed();
    reads.or(writes).unify().map(reply).boxed()
}

async fn list(call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let mut query = call.query()?;
    let page = query.page()?;
    let statuses = CampaignState::STATUSES.map(|status| (status, status));
    let filter = CampaignFilter {
        status: query.one_of("status", &statuses)?.map(str::to_owned),
        priority: query.one_of("priority", &PRIORITIES)?,
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

async fn one(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    call.no_query()?;
    let view = call.shared.engine.campaign(&id.id("campaign")?).await?;
    Ok(dto::ok(&CampaignDto::from(&view)))
}

async fn create(call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let draft: CampaignDraft = json_up_to(MAX_CAMPAIGN_BYTES, &call.headers, body).await?;
    let view = call.shared.engine.create_campaign(draft, by).await?;
    Ok(dto::created(&CampaignDto::from(&view)))
}

async fn order_campaign((order, id): (Order, Segment), call: Call, body: Body) -> Answer {
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
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackRequest {
    #[serde(default)]
    reason: Option<String>,
}

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

/// The updates and rollbacks of a campaign's devices, newest first.
async fn devices(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let id: CampaignId = id.id("campaign")?;
    let mut query = call.query()?;
    let page = query.page()?;
    let group: Option<Group> = query.one_of("state", &GROUPS)?;
    let action = query.one_of("action", &updates::ACTIONS)?;
    let filters = query.done()?;
    call.shared.engine.campaign(&id).await?;
    let filter = UpdateFilter {
        campaign: Some(id),
        group,
        action,
        ..UpdateFilter::default()
    };
    updates::answer_list(&call, "devices", &filter, page, filters).await
}

/// What became of each device that the campaign took back.
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
