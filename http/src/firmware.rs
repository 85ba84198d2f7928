//! Firmware: the registry (PRD, E1-US2 to E1-US4); uploads are in [`crate::upload`].

use std::sync::Arc;

use device_ota_domain::Role;
use device_ota_domain::firmware::FirmwareFilter;
use utoipa::OpenApi;
use warp::Filter as _;

use crate::dto::firmware::{FirmwareDto, GrantDto};
use crate::dto::{self, FirmwareList, List, PageQuery};
use crate::request::body::body;
use crate::request::{Call, Segment, call};
use crate::shared::{Answer, Routes, Shared, reply};
use crate::upload::upload;

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(list, crate::upload::upload, one, link))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let send = warp::post()
        .and(warp::path!("firmware"))
        .and(call.clone())
        .and(body())
        .then(upload);
    let list = warp::get()
        .and(warp::path!("firmware"))
        .and(call.clone())
        .then(list);
    let one = warp::get()
        .and(warp::path!("firmware" / Segment))
        .and(call.clone())
        .then(one);
    let link = warp::get()
        .and(warp::path!("firmware" / Segment / "download"))
        .and(call)
        .then(link);
    send.or(list)
        .unify()
        .or(one)
        .unify()
        .or(link)
        .unify()
        .map(reply)
        .boxed()
}

/// Images, newest first
#[utoipa::path(get, path = "/api/v1/ota/firmware", tag = "firmware",
    params(
        PageQuery,
        ("device_model" = Option<String>, Query, description = "For this model", example = "SF-100"),
        ("manufacturer" = Option<String>, Query, description = "Of this maker", example = "Acme"),
        ("is_beta" = Option<bool>, Query, description = "Beta or not"),
        ("is_security_update" = Option<bool>, Query, description = "Security updates or others"),
    ),
    responses((status = 200, description = "A page of them", body = FirmwareList)),
)]
async fn list(call: Call) -> Answer {
    call.require(Role::Viewer)?;
    let mut query = call.query()?;
    let page = query.page()?;
    let filter = FirmwareFilter {
        device_model: query.text("device_model")?,
        manufacturer: query.text("manufacturer")?,
        is_beta: query.flag("is_beta")?,
        is_security_update: query.flag("is_security_update")?,
    };
    let filters = query.done()?;
    let firmware = call.shared.engine.firmware_list(&filter, page).await?;
    let items = firmware.iter().map(FirmwareDto::from).collect();
    Ok(dto::ok(&List {
        plural: "firmware",
        items,
        page,
        filters,
    }))
}

/// One image
#[utoipa::path(get, path = "/api/v1/ota/firmware/{firmware_id}", tag = "firmware", responses(
    (status = 200, description = "The image", body = FirmwareDto),
))]
async fn one(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    call.no_query()?;
    let firmware = call.shared.engine.firmware(&id.id("firmware")?).await?;
    Ok(dto::ok(&FirmwareDto::from(&firmware)))
}

/// A link to the bytes
///
/// It needs no header, takes ranges, and expires after an hour. A device gets one to the image that it is being offered.
#[utoipa::path(get, path = "/api/v1/ota/firmware/{firmware_id}/download", tag = "firmware",
    security(("bearer" = []), ("api_key" = []), ("device" = [])),
    responses(
        (status = 200, description = "The link, its expiry, and what to check the bytes against", body = GrantDto),
        (status = 403, description = "The credential's roles do not allow this, or the device has no offer of this image"),
    ),
)]
async fn link(id: Segment, call: Call) -> Answer {
    let (id, engine) = (id.id("firmware"), &call.shared.engine);
    let grant = if let Some(device) = call.device() {
        call.no_query()?;
        engine.grant_offered_download(&id?, device).await?
    } else {
        call.require(Role::Viewer)?;
        call.no_query()?;
        engine.grant_download(&id?).await?
    };
    Ok(dto::ok(&GrantDto::from(&grant)))
}
