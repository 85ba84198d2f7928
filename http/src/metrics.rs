//! Figures for Prometheus, in its text format.

use std::sync::Arc;

use device_ota_domain::Role;
use http::header::{CONTENT_TYPE, HeaderValue};
use utoipa::OpenApi;
use warp::Filter as _;
use warp::Reply as _;

use crate::request::{Call, call};
use crate::shared::{Answer, Routes, Shared, reply};

/// The text format's version 0.0.4, which every scraper takes.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(metrics))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    warp::get()
        .and(warp::path!("metrics"))
        .and(call(shared))
        .then(metrics)
        .map(reply)
        .boxed()
}

/// Figures for Prometheus
///
/// Of this process, and of the campaigns and events in the database. Labels never name a device, a campaign or a person.
#[utoipa::path(get, path = "/metrics", tag = "health", responses(
    (status = 200, description = "The text format of Prometheus, version 0.0.4", body = String, content_type = "text/plain"),
))]
async fn metrics(call: Call) -> Answer {
    call.require(Role::Viewer)?;
    call.no_query()?;
    let mut response = call.shared.engine.exposition().await.into_response();
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    Ok(response)
}
