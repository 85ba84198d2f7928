//! Firmware: the registry (PRD, E1-US2 to E1-US5; the rings-and-heartbeat service's *Firmware Updates*); uploads are in
//! [`crate::upload`].

use std::sync::Arc;

use device_ota_domain::firmware::{FirmwareChange, FirmwareFilter};
use device_ota_domain::ring::Ring;
use device_ota_domain::{FirmwareId, Role};
use device_ota_engine::Deployed;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::{OpenApi, ToSchema};
use warp::Filter as _;

use crate::dto::campaign::CampaignDto;
use crate::dto::firmware::{FirmwareDto, GrantDto};
use crate::dto::{self, FirmwareList, List, PageQuery};
use crate::errors::ApiError;
use crate::request::body::{Body, body};
use crate::request::json::{from_value, json, no_body};
use crate::request::{Call, Segment, call};
use crate::shared::{Answer, Routes, Shared, reply};
use crate::upload::upload;

/// Fields of an image that are told to devices with a signature, or follow from its bytes.
const SIGNED: [&str; 13] = [
    "firmware_id",
    "name",
    "version",
    "device_model",
    "manufacturer",
    "hw_revisions",
    "security_version",
    "is_security_update",
    "format",
    "file_size",
    "checksum_md5",
    "checksum_sha256",
    "file_url",
];

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(list, crate::upload::upload, one, change, deprecate, link, deploy))]
pub(crate) struct Documented;

/// Routes below `/api/v1/ota` and, as the rings-and-heartbeat service has them, below `/api/v1`.
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
    let change = warp::put()
        .and(warp::path!("firmware" / Segment))
        .and(call.clone())
        .and(body())
        .then(change);
    let deprecate = warp::delete()
        .and(warp::path!("firmware" / Segment))
        .and(call.clone())
        .and(body())
        .then(deprecate);
    let link = warp::get()
        .and(warp::path!("firmware" / Segment / "download"))
        .and(call.clone())
        .then(link);
    let deploy = warp::post()
        .and(warp::path!("firmware" / Segment / "deploy"))
        .and(call)
        .and(body())
        .then(deploy);
    let reads = list.or(one).unify().or(link).unify().boxed();
    let writes = send
        .or(change)
        .unify()
        .or(deprecate)
        .unify()
        .or(deploy)
        .unify()
        .boxed();
    reads.or(writes).unify().map(reply).boxed()
}

/// Images, newest first
#[utoipa::path(get, path = "/api/v1/ota/firmware", tag = "firmware",
    params(
        PageQuery,
        ("device_model" = Option<String>, Query, description = "For this model", example = "SF-100"),
        ("manufacturer" = Option<String>, Query, description = "Of this maker", example = "Acme"),
        ("is_beta" = Option<bool>, Query, description = "Beta or not"),
        ("is_security_update" = Option<bool>, Query, description = "Security updates or others"),
        ("include_deprecated" = Option<bool>, Query, description = "Those that are out of use, too"),
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
        include_deprecated: query.flag("include_deprecated")?.unwrap_or_default(),
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
///
/// Also one that is out of use.
#[utoipa::path(get, path = "/api/v1/ota/firmware/{firmware_id}", tag = "firmware", responses(
    (status = 200, description = "The image", body = FirmwareDto),
))]
async fn one(id: Segment, call: Call) -> Answer {
    call.require(Role::Viewer)?;
    call.no_query()?;
    let firmware = call.shared.engine.firmware(&id.id("firmware")?).await?;
    Ok(dto::ok(&FirmwareDto::from(&firmware)))
}

/// Change an image
///
/// What is not signed: fields that are left out stay as they are, `null` clears. Campaigns that were created before keep what
/// they ask of devices.
#[utoipa::path(put, path = "/api/v1/ota/firmware/{firmware_id}", tag = "firmware", request_body = FirmwareChange, responses(
    (status = 200, description = "The image as it is now", body = FirmwareDto),
    (status = 409, description = "It is out of use"),
    (status = 422, description = "The field is part of what is signed; upload a new version"),
))]
async fn change(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Uploader)?;
    call.no_query()?;
    let id: FirmwareId = id.id("firmware")?;
    let fields: Map<String, Value> = json(&call.headers, body).await?;
    if let Some(field) = SIGNED.iter().find(|field| fields.contains_key(**field)) {
        let detail = format!(
            "{field} is part of the signed release and cannot be changed; upload the image as a new version"
        );
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "signed_field",
            detail,
        ));
    }
    let change: FirmwareChange = from_value(Value::Object(fields), "the body")?;
    let firmware = call.shared.engine.change_firmware(&id, change, by).await?;
    Ok(dto::ok(&FirmwareDto::from(&firmware)))
}

/// Take an image out of use
///
/// It leaves the lists, is offered to nobody as an update any more, and can still be read. Devices that ran it can still go back to
/// it.
#[utoipa::path(delete, path = "/api/v1/ota/firmware/{firmware_id}", tag = "firmware", params(
    ("force" = Option<bool>, Query, description = "Cancel the campaigns and the updates of single devices that would offer it; for admins"),
), responses(
    (status = 200, description = "The image, out of use", body = FirmwareDto),
    (status = 403, description = "The credential's roles do not allow this, or not with `force`"),
    (status = 409, description = "Campaigns or updates would still offer it, or it was out of use before"),
))]
async fn deprecate(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Uploader)?;
    let mut query = call.query()?;
    let force = query.flag("force")?.unwrap_or_default();
    query.done()?;
    if force {
        call.require(Role::Admin)?;
    }
    let id: FirmwareId = id.id("firmware")?;
    no_body(&call.headers, body).await?;
    let firmware = call
        .shared
        .engine
        .deprecate_firmware(&id, force, by)
        .await?;
    Ok(dto::ok(&FirmwareDto::from(&firmware)))
}

/// Where to.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DeployRequest {
    /// The last ring that may have the image by now.
    ring: Ring,
}

/// Deploy an image to a ring
///
/// The first time, a campaign for every device of the image's model is created and started, and goes no further than this
/// ring. Later the same campaign is promoted: it goes on to this ring, from ring to ring when the gate between them holds.
#[utoipa::path(post, path = "/api/v1/ota/firmware/{firmware_id}/deploy", tag = "firmware", request_body = DeployRequest,
    responses(
        (status = 200, description = "The image's campaign, promoted", body = CampaignDto),
        (status = 201, description = "The image's campaign, started", body = CampaignDto),
        (status = 409, description = "The image is out of use, or its campaign is paused, was rolled back or is further already"),
    ),
)]
async fn deploy(id: Segment, call: Call, body: Body) -> Answer {
    let by = call.require(Role::Operator)?;
    call.no_query()?;
    let id: FirmwareId = id.id("firmware")?;
    let DeployRequest { ring } = json(&call.headers, body).await?;
    let Deployed { campaign, is_new } = call.shared.engine.deploy(&id, ring, by).await?;
    let campaign = CampaignDto::from(&campaign);
    Ok(if is_new {
        dto::created(&campaign)
    } else {
        dto::ok(&campaign)
    })
}

/// A link to the bytes
///
/// It needs no header, takes ranges, and expires after an hour. A device gets one to the image that it is being offered. Each
/// link counts as a download when it is given out, and not once more when it is followed. It leads to the service, or, where
/// images lie in a bucket that clients reach, to that: then it is for GET alone.
#[utoipa::path(get, path = "/api/v1/ota/firmware/{firmware_id}/download", tag = "firmware",
    security(("bearer" = []), ("api_key" = []), ("device" = [])),
    responses(
        (status = 200, description = "The link, its expiry, and what to check the bytes against", body = GrantDto),
        (status = 403, description = "The credential's roles do not allow this, or the device has no offer of this image"),
        (status = 409, description = "It is out of use"),
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
    if !call.visit.head {
        engine.count_grant(&grant);
    }
    Ok(dto::ok(&GrantDto::from(&grant)))
}
