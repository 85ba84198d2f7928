//! Rollback permits: brought by admins, signed by the release role, and listed.

use std::sync::Arc;

use device_ota_domain::Role;
use utoipa::OpenApi;
use warp::Filter as _;

use crate::dto::permit::PermitDto;
use crate::dto::{self, List, PageQuery, PermitList};
use crate::request::body::{Body, body};
use crate::request::json::json;
use crate::request::{Call, call};
use crate::shared::{Answer, Routes, Shared, reply};
use crate::trust::EnvelopeSchema;

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(list_permits, add_permit))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let list = warp::get()
        .and(warp::path!("permits"))
        .and(call.clone())
        .then(list_permits);
    let create = warp::post()
        .and(warp::path!("permits"))
        .and(call)
        .and(body())
        .then(add_permit);
    list.or(create).unify().map(reply).boxed()
}

/// Rollback permits, newest first
///
/// Those that are spent or have expired with them.
#[utoipa::path(get, path = "/api/v1/ota/permits", tag = "rollbacks", params(PageQuery), responses(
    (status = 200, description = "A page of them", body = PermitList),
))]
async fn list_permits(call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let mut query = call.query()?;
    let page = query.page()?;
    let filters = query.done()?;
    let permits = call.shared.engine.permits(page).await?;
    Ok(dto::ok(&List {
        plural: "permits",
        items: permits.iter().map(PermitDto::from).collect(),
        page,
        filters,
    }))
}

/// Bring a rollback permit
///
/// The one way below a device's `security_floor`: a DSSE envelope of the type `rollback-permit`, signed by the release role. From then on a
/// rollback of its device, or of its campaign, from its one image to its other is taken, and carries the permit to the device, which
/// uses it once.
#[utoipa::path(post, path = "/api/v1/ota/permits", tag = "rollbacks", request_body = EnvelopeSchema, responses(
    (status = 201, description = "The permit", body = PermitDto),
    (status = 404, description = "There is no such device or campaign"),
    (status = 409, description = "A permit of that id was taken before"),
    (status = 422, description = "The release role has not signed it, it has expired, or there is no such image"),
))]
async fn add_permit(call: Call, body: Body) -> Answer {
    let by = call.require(Role::Admin)?;
    call.no_query()?;
    let envelope: EnvelopeSchema = json(&call.headers, body).await?;
    let text = envelope.to_json();
    let permit = call.shared.engine.add_permit(&text, by).await?;
    Ok(dto::created(&PermitDto::from(&permit)))
}
