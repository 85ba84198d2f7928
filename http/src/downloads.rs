//! The bytes behind time-limited links: what devices fetch, whole or in ranges, without any header.

use std::net::IpAddr;
use std::sync::Arc;

use device_ota_engine::Download;
use device_ota_engine::ports::ObjectStream;
use futures_util::TryStreamExt as _;
use http::StatusCode;
use http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderValue,
};
use utoipa::OpenApi;
use warp::Filter as _;
use warp::reply::Response;

use crate::errors::ApiError;
use crate::range::{Wanted, wanted};
use crate::request::{Call, Segment, call};
use crate::seats::places::Place;
use crate::shared::{Answer, Routes, Shared, reply, streamed};

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(fetch))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    warp::get()
        .and(warp::path!("objects" / Segment))
        .and(call)
        .then(fetch)
        .map(reply)
        .boxed()
}

/// The bytes behind a link
///
/// There are 512 downloads at once, and half as many of one address as it may have connections (128 unless a setting
/// says otherwise); beyond that the answer is 503 `downloads_busy`, and `Retry-After` says when to come back.
#[utoipa::path(get, path = "/api/v1/ota/objects/{token}", tag = "firmware",
    params(
        ("token" = String, Path, description = "As the link has it"),
        ("Range" = Option<String>, Header, description = "One range of bytes", example = "bytes=0-1023"),
        ("If-Range" = Option<String>, Header, description = "The ETag that the range is of"),
        ("If-Match" = Option<String>, Header, description = "ETags, one of which the image must have"),
        ("If-None-Match" = Option<String>, Header, description = "ETags that the client has already"),
    ),
    responses(
        (status = 200, description = "The whole image", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, description = "The range", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 304, description = "`If-None-Match` names what the link leads to"),
        (status = 403, description = "The link is not one of ours, or has expired"),
        (status = 404, description = "The image is gone"),
        (status = 409, description = "A person asked for the link, and the image was taken out of use since"),
        (status = 412, description = "`If-Match` names something else"),
        (status = 416, description = "No byte of the image lies in the range"),
    ),
)]
async fn fetch(token: Segment, call: Call) -> Answer {
    let download = call.shared.engine.redeem(token.as_str()).await?;
    let (size, etag) = (
        download.firmware.size,
        format!("\"{}\"", download.firmware.sha256),
    );
    let (status, range) = match wanted(&call.headers, size, &etag) {
        // RFC 9110, 14.2: a range is asked for by GET alone.
        Wanted::Part(_) | Wanted::Nothing if call.visit.head => (StatusCode::OK, 0..size),
        Wanted::Whole => (StatusCode::OK, 0..size),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Nothing => return Err(unsatisfiable(size)),
        Wanted::Known => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response.headers_mut().insert(ETAG, ascii(&etag));
            return Ok(response);
        }
        Wanted::Other => return Err(another(&etag)),
    };
    let mut response = if call.visit.head {
        Response::default()
    } else {
        let seat = call.shared.seats.download(call.visit.network)?;
        let engine = &call.shared.engine;
        stream(engine.read_download(&download, range.clone()).await?, seat)
    };
    *response.status_mut() = status;
    let headers = response.headers_mut();
    describe(headers, &download, &etag);
    headers.insert(CONTENT_LENGTH, (range.end - range.start).into());
    if status == StatusCode::PARTIAL_CONTENT {
        let last = range.end.saturating_sub(1);
        headers.insert(
            CONTENT_RANGE,
            ascii(&format!("bytes {}-{last}/{size}", range.start)),
        );
    }
    Ok(response)
}

fn describe(headers: &mut HeaderMap, download: &Download, etag: &str) {
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(ETAG, ascii(etag));
    headers.insert(
        CONTENT_DISPOSITION,
        ascii(&format!("attachment; filename=\"{}\"", download.file_name)),
    );
}

fn unsatisfiable(size: u64) -> ApiError {
    let detail =
        format!("the image has {size} bytes and none of them lies in the range that was asked for");
    ApiError::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "range_not_satisfiable",
        detail,
    )
    .with(CONTENT_RANGE, ascii(&format!("bytes */{size}")))
    .with(ACCEPT_RANGES, HeaderValue::from_static("bytes"))
}

fn another(etag: &str) -> ApiError {
    let detail = format!("the image behind this link is {etag}, and If-Match names another");
    ApiError::new(StatusCode::PRECONDITION_FAILED, "other_content", detail).with(ETAG, ascii(etag))
}

/// A header value of text that is ASCII by construction.
fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// The seat is held until the last byte is on its way, or the client gone.
fn stream(object: ObjectStream, seat: Place<IpAddr>) -> Response {
    // By then the status has been sent, and all that is left is to break the connection off.
    streamed(object.inspect_err(move |error| {
        let _held = &seat;
        tracing::warn!(%error, "a download broke off");
    }))
}
