//! The OpenAPI document, made of what each handler says of its route, and with it the table of what is served.
//!
//! Nothing is said twice: an operation is declared beside its handler with `#[utoipa::path]`, its forms with
//! `#[derive(ToSchema)]`; [`complete`] adds what follows from the path, the method and the access rules. The gate
//! lets no request through to the routes that this document does not know ([`served`]), so what is not documented is
//! not there, and a test calls every operation, so what is documented is (ADR 12).

mod complete;
mod page;

use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use http::{Method, StatusCode};
use matchit::Router;
use sha2::{Digest as _, Sha256};
use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::{InfoBuilder, LicenseBuilder, OpenApiBuilder, Tag};
use warp::Filter as _;
use warp::Reply as _;
use warp::reply::Response;

use crate::request::{Call, call};
use crate::shared::{Answer, Routes, Shared, reply};
use crate::{
    advance, audit, campaigns, devices, downloads, events, firmware, health, keys, metrics,
    permits, proposals, rings, rollbacks, statistics, telemetry, trust, updates, webhooks,
};

/// How long a client may use the document without asking whether it is still the same.
const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=60");
/// What the document is about.
const DESCRIPTION: &str = "Firmware updates for devices that speak MQTT: upload images, roll them out ring by ring, \
    watch, stop and roll back. Every error has the same form: `detail` for people, a stable `code` for programs, and \
    the `request_id` that the log knows. Lists are paged with `limit` and `offset`; unknown query parameters and \
    unknown fields are refused.";
/// The chapters, in their order, with what each is about.
const TAGS: &[(&str, &str)] = &[
    ("firmware", "Images: upload, look up, download"),
    ("campaigns", "Rollouts of an image to many devices"),
    (
        "devices",
        "Devices, their credentials, and updates of single devices",
    ),
    (
        "telemetry",
        "What devices tell of themselves, one by one and all together",
    ),
    ("updates", "How far each update of each device is"),
    (
        "rollbacks",
        "What became of each device that was taken back",
    ),
    ("events", "What happens, told while it happens"),
    ("statistics", "What all updates come to"),
    ("webhooks", "Who is told of events over HTTP"),
    ("keys", "Keys of people and services, and what they may do"),
    ("audit", "Who changed what, and how they were known"),
    ("trust", "The keys that devices are born with"),
    ("health", "Whether the service can do its work"),
    ("service", "This document"),
];

/// The parts of the document, a resource each.
fn parts() -> Vec<utoipa::openapi::OpenApi> {
    vec![
        firmware::Documented::openapi(),
        downloads::Documented::openapi(),
        campaigns::Documented::openapi(),
        proposals::Documented::openapi(),
        advance::Documented::openapi(),
        rings::Documented::openapi(),
        devices::Documented::openapi(),
        telemetry::Documented::openapi(),
        updates::Documented::openapi(),
        rollbacks::Documented::openapi(),
        permits::Documented::openapi(),
        events::Documented::openapi(),
        webhooks::Documented::openapi(),
        statistics::Documented::openapi(),
        keys::Documented::openapi(),
        audit::Documented::openapi(),
        trust::Documented::openapi(),
        health::Documented::openapi(),
        metrics::Documented::openapi(),
        Documented::openapi(),
    ]
}

#[derive(OpenApi)]
#[openapi(paths(json, docs))]
struct Documented;

static DOCUMENT: LazyLock<utoipa::openapi::OpenApi> = LazyLock::new(|| {
    let info = InfoBuilder::new()
        .title("device-ota")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(DESCRIPTION))
        .license(Some(
            LicenseBuilder::new()
                .name("Apache-2.0")
                .identifier(Some("Apache-2.0"))
                .build(),
        ));
    let tag = |(name, description): (&str, &str)| {
        let mut tag = Tag::new(name);
        tag.description = Some(description.to_owned());
        tag
    };
    let empty = OpenApiBuilder::new()
        .info(info.build())
        .tags(Some(TAGS.iter().copied().map(tag).collect::<Vec<_>>()))
        .build();
    let mut document = parts()
        .into_iter()
        .fold(empty, utoipa::openapi::OpenApi::merge_from);
    complete::add_aliases(&mut document);
    complete::complete(&mut document);
    document
});

/// The document as it is sent; the process keeps it until its end.
static JSON: LazyLock<Sent> = LazyLock::new(|| {
    let json = serde_json::to_vec(&*DOCUMENT).expect("a document of strings and numbers is JSON");
    Sent::new("application/json", json.leak())
});

/// The page that shows it.
static PAGE: LazyLock<Sent> =
    LazyLock::new(|| Sent::new("text/html; charset=utf-8", page::HTML.as_bytes()));

/// The methods of each path.
static SERVED: LazyLock<Router<Served>> = LazyLock::new(|| {
    let mut router = Router::new();
    for (path, item) in &DOCUMENT.paths.paths {
        let methods = operations(item).into_iter().map(|(method, _)| method);
        router
            .insert(path.as_str(), Served::new(methods.collect()))
            .expect("no two paths of the document are alike");
    }
    router
});

/// What a path takes.
#[derive(Debug)]
pub(crate) struct Served {
    methods: Vec<Method>,
    allow: HeaderValue,
}

impl Served {
    /// `HEAD` is served wherever `GET` is.
    fn new(mut methods: Vec<Method>) -> Self {
        if let Some(place) = methods.iter().position(|method| method == Method::GET) {
            methods.insert(place + 1, Method::HEAD);
        }
        let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
        Self {
            allow: HeaderValue::from_str(&names.join(", ")).expect("names of methods are ASCII"),
            methods,
        }
    }

    /// Whether the path takes this method.
    pub(crate) fn takes(&self, method: &Method) -> bool {
        self.methods.contains(method)
    }

    /// The `Allow` of a 405.
    pub(crate) fn allow(&self) -> HeaderValue {
        self.allow.clone()
    }
}

/// What this path takes, if it is one of ours.
pub(crate) fn served(path: &str) -> Option<&'static Served> {
    let path = path.strip_suffix('/').unwrap_or(path);
    SERVED.at(path).ok().map(|found| found.value)
}

/// The operations of a path and their methods.
fn operations(item: &PathItem) -> Vec<(Method, &Operation)> {
    [
        (Method::GET, &item.get),
        (Method::POST, &item.post),
        (Method::PUT, &item.put),
        (Method::PATCH, &item.patch),
        (Method::DELETE, &item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
    .collect()
}

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    let call = call(shared);
    let json = warp::get()
        .and(warp::path!("openapi.json"))
        .and(call.clone())
        .then(json);
    let docs = warp::get().and(warp::path!("docs")).and(call).then(docs);
    json.or(docs).unify().map(reply).boxed()
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "service", responses(
    (status = 200, description = "The OpenAPI 3.1 document", body = Object),
    (status = 304, description = "It is the one with the ETag that the client has"),
))]
async fn json(call: Call) -> Answer {
    call.no_query()?;
    Ok(JSON.answer(&call.headers))
}

/// This document, for people
///
/// One page that needs nothing but `/openapi.json`.
#[utoipa::path(get, path = "/docs", tag = "service", responses(
    (status = 200, description = "The page", body = String, content_type = "text/html"),
    (status = 304, description = "It is the one with the ETag that the client has"),
))]
async fn docs(call: Call) -> Answer {
    call.no_query()?;
    let mut response = PAGE.answer(&call.headers);
    page::protect(response.headers_mut());
    Ok(response)
}

/// Bytes that never change while the process runs.
struct Sent {
    kind: &'static str,
    bytes: &'static [u8],
    etag: HeaderValue,
}

impl Sent {
    fn new(kind: &'static str, bytes: &'static [u8]) -> Self {
        let etag = format!("\"{}\"", STANDARD.encode(Sha256::digest(bytes)));
        Self {
            kind,
            bytes,
            etag: HeaderValue::from_str(&etag).expect("Base64 is ASCII"),
        }
    }

    /// The bytes, or 304 when the client has them.
    fn answer(&self, request: &HeaderMap) -> Response {
        let known = request
            .get_all(IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|tag| tag.trim().trim_start_matches("W/").as_bytes() == self.etag.as_bytes());
        let mut response = if known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            self.bytes.into_response()
        };
        let headers = response.headers_mut();
        if known {
            headers.remove(CONTENT_TYPE);
        } else {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        }
        headers.insert(ETAG, self.etag.clone());
        headers.insert(CACHE_CONTROL, CACHE);
        response
    }
}

#[cfg(test)]
pub(crate) mod tests;
