//! The rings as settings (rings-and-heartbeat service, *Deployment Rings*).

use std::sync::Arc;

use device_ota_domain::Role;
use device_ota_domain::ring::{Ring, RingSettings, Shares};
use device_ota_engine::Error;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};
use warp::Filter as _;

use crate::dto;
use crate::request::body::{Body, body};
use crate::request::json::json;
use crate::request::revision::{IfMatch, expected_revision, of_revision};
use crate::request::{Call, call};
use crate::shared::{Answer, Routes, Shared, reply};

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(read, set))]
pub(crate) struct Documented;

/// Routes below `/api/v1`.
pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let read = warp::get()
        .and(warp::path!("rings"))
        .and(call.clone())
        .then(read);
    let set = warp::put()
        .and(warp::path!("rings"))
        .and(call)
        .and(body())
        .then(set);
    read.or(set).unify().map(reply).boxed()
}

/// The share of each ring and those before it, in percent.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RingShares)]
struct SharesDto {
    #[schema(exclusive_minimum = 0, maximum = 100, examples(5))]
    canary: f64,
    #[schema(exclusive_minimum = 0, maximum = 100, examples(25))]
    early: f64,
    #[schema(exclusive_minimum = 0, maximum = 100, examples(75))]
    broad: f64,
    /// Always 100.
    #[schema(minimum = 100, maximum = 100, examples(100))]
    production: f64,
}

/// The rings.
#[derive(Serialize, ToSchema)]
#[schema(as = Rings)]
struct RingsDto<'a> {
    rings: SharesDto,
    /// Null: never, they are the defaults.
    updated_at: Option<Timestamp>,
    updated_by: Option<&'a str>,
    /// Rises with each change.
    revision: i64,
}

impl<'a> From<&'a RingSettings> for RingsDto<'a> {
    fn from(settings: &'a RingSettings) -> Self {
        let percent = |ring| settings.shares.percent(ring);
        Self {
            rings: SharesDto {
                canary: percent(Ring::Canary),
                early: percent(Ring::Early),
                broad: percent(Ring::Broad),
                production: percent(Ring::Production),
            },
            updated_at: settings.updated_at,
            updated_by: settings.updated_by.as_deref(),
            revision: settings.revision,
        }
    }
}

/// What to set.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetRings {
    rings: SharesDto,
}

/// The rings
#[utoipa::path(get, path = "/api/v1/rings", tag = "campaigns", responses(
    (status = 200, description = "The share of each ring and those before it, of new campaigns", body = RingsDto,
        headers(("ETag" = String, description = "Its `revision`, for `If-Match`"))),
))]
async fn read(call: Call) -> Answer {
    call.require(Role::Viewer)?;
    call.no_query()?;
    let settings = call.shared.engine.rings().await?;
    let answer = dto::ok(&RingsDto::from(&settings));
    Ok(of_revision(settings.revision, answer))
}

/// Change the rings
///
/// For campaigns that are created from now on: those that there are keep the shares that they were made with. Shares rise, to
/// 100.
#[utoipa::path(put, path = "/api/v1/rings", tag = "campaigns", request_body = SetRings,
    params(IfMatch),
    responses(
        (status = 200, description = "The rings as they are now", body = RingsDto,
            headers(("ETag" = String, description = "Its `revision`, for `If-Match`"))),
    ),
)]
async fn set(call: Call, body: Body) -> Answer {
    let by = call.require(Role::Admin)?;
    call.no_query()?;
    let revision = expected_revision(&call.headers)?;
    let SetRings { rings } = json(&call.headers, body).await?;
    let percents = [rings.canary, rings.early, rings.broad, rings.production];
    let shares = Shares::of_percents(percents).map_err(Error::from)?;
    let engine = &call.shared.engine;
    let settings = engine.set_rings(shares, revision, by).await?;
    let answer = dto::ok(&RingsDto::from(&settings));
    Ok(of_revision(settings.revision, answer))
}
