//! The roots that devices are born with; open to everybody, as public keys are.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderValue};
use warp::Filter as _;
use warp::Reply as _;

use crate::errors::ApiError;
use crate::request::{Call, Segment, call};
use crate::shared::{Answer, Routes, Shared, reply};

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let newest = warp::get()
        .and(warp::path!("trust" / "root"))
        .and(call.clone())
        .then(newest);
    let one = warp::get()
        .and(warp::path!("trust" / "roots" / Segment))
        .and(call)
        .then(one);
    newest.or(one).unify().map(reply).boxed()
}

async fn newest(call: Call) -> Answer {
    call.no_query()?;
    envelope(&call, None).ok_or_else(|| ApiError::not_found("root", "newest"))
}

async fn one(version: Segment, call: Call) -> Answer {
    call.no_query()?;
    let number: u32 = version.id("root")?;
    envelope(&call, Some(number)).ok_or_else(|| ApiError::not_found("root", version.as_str()))
}

fn envelope(call: &Call, version: Option<u32>) -> Option<warp::reply::Response> {
    let envelope = call.shared.engine.trust_root(version)?;
    let mut response = envelope.into_response();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Some(response)
}
