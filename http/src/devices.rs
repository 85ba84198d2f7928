//! Devices: registration and credentials (DESIGN.md, *HTTP*), and updates of single devices (PRD, E3, E4-US2).

mod change;
pub(crate) mod filter;
mod register;
mod rollback;
mod update;

use std::sync::Arc;

use device_ota_domain::{DeviceId, Role};
use device_ota_engine::ports::store::UpdateFilter;
use utoipa::OpenApi;
use warp::Filter as _;

use self::filter::{FleetQuery, PresenceQuery, filter_of, presence_of};
use crate::dto::device::DeviceDto;
use crate::dto::{self, DeviceHistory, DeviceList, List, PageQuery};
use crate::request::body::body;
use crate::request::revision::of_revision;
use crate::request::{Call, Segment, call};
use crate::shared::{Answer, Routes, Shared, reply};
use crate::updates::{self, filter::UpdatesQuery};

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(
    list,
    register::register,
    update::bulk_update,
    one,
    change::change,
    change::delete,
    register::renew,
    update::update,
    rollback::roll_back,
    rollback::bulk_roll_back,
    history
))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let get = || warp::get().and(warp::path("devices"));
    let post = || warp::post().and(warp::path("devices"));
    let list = get().and(warp::path::end()).and(call.clone()).then(list);
    let one = get().and(warp::path!(Segment)).and(call.clone()).then(one);
    let history = get()
        .and(warp::path!(Segment / "updates"))
        .and(call.clone())
        .then(history);
    let register = post()
        .and(warp::path::end())
        .and(call.clone())
        .and(body())
        .then(register::register);
    let bulk = post()
        .and(warp::path!("bulk" / "update"))
        .and(call.clone())
        .and(body())
        .then(update::bulk_update);
    let renew = post()
        .and(warp::path!(Segment / "credentials"))
        .and(call.clone())
        .and(body())
        .then(register::renew);
    let update = post()
        .and(warp::path!(Segment / "update"))
        .and(call.clone())
        .and(body())
        .then(update::update);
    let roll_back = post()
        .and(warp::path!(Segment / "rollback"))
        .and(call.clone())
        .and(body())
        .then(rollback::roll_back);
    let bulk_roll_back = post()
        .and(warp::path!("bulk" / "rollback"))
        .and(call.clone())
        .and(body())
        .then(rollback::bulk_roll_back);
    let change = warp::put()
        .and(warp::path!("devices" / Segment))
        .and(call.clone())
        .and(body())
        .then(change::change);
    let delete = warp::delete()
        .and(warp::path!("devices" / Segment))
        .and(call.clone())
        .and(body())
        .then(change::delete);
    let reads = one.or(history).unify().or(list).unify().boxed();
    let writes = bulk
        .or(bulk_roll_back)
        .unify()
        .or(register)
        .unify()
        .or(renew)
        .unify()
        .or(update)
        .unify()
        .or(roll_back)
        .unify()
        .or(change)
        .unify()
        .or(delete)
        .unify()
        .boxed();
    reads.or(writes).unify().map(reply).boxed()
}

/// Devices
#[utoipa::path(get, path = "/api/v1/ota/devices", tag = "devices", params(
    PageQuery,
    FleetQuery,
    PresenceQuery,
), responses(
    (status = 200, description = "A page of them", body = DeviceList),
))]
async fn list(call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let mut query = call.query()?;
    let page = query.page()?;
    let mut filter = filter_of(&mut query)?;
    filter.presence = presence_of(&mut query)?;
    let filters = query.done()?;
    let devices = call.shared.engine.devices(&filter, page).await?;
    let items = devices.iter().map(DeviceDto::from).collect();
    Ok(dto::ok(&List {
        plural: "devices",
        items,
        page,
        filters,
    }))
}

/// One device: as it was registered, and as it was last heard
#[utoipa::path(get, path = "/api/v1/ota/devices/{device_id}", tag = "devices", responses(
    (status = 200, description = "The device", body = DeviceDto,
        headers(("ETag" = String, description = "Its `revision`, for `If-Match`"))),
))]
async fn one(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    call.no_query()?;
    let device = call.shared.engine.device(&id.id("device")?).await?;
    let answer = dto::ok(&DeviceDto::from(&device));
    Ok(of_revision(device.revision, answer))
}

/// Every update and rollback of one device, newest first
#[utoipa::path(get, path = "/api/v1/ota/devices/{device_id}/updates", tag = "devices", params(PageQuery, UpdatesQuery), responses(
    (status = 200, description = "A page of them, and the device's success rate, whatever is filtered", body = DeviceHistory),
))]
async fn history(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let id: DeviceId = id.id("device")?;
    let mut query = call.query()?;
    let page = query.page()?;
    let filter = updates::filter::filter_of(&mut query)?;
    let filters = query.done()?;
    call.shared.engine.device(&id).await?;
    let results = call.shared.engine.results_of(&id).await?;
    let filter = UpdateFilter {
        device: Some(id),
        ..filter
    };
    let rate = dto::round(results.success_percent());
    updates::answer_history(&call, "updates", &filter, page, filters, Some(rate)).await
}
