//! The roots that devices are born with; open to everybody, as public keys are.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderValue};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};
use warp::Filter as _;
use warp::Reply as _;

use crate::errors::ApiError;
use crate::request::{Call, Segment, call};
use crate::shared::{Answer, Routes, Shared, reply};

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(newest, one))]
pub(crate) struct Documented;

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

/// The newest root of trust
///
/// A signed envelope (DSSE) that names the keys; its public part is all that a device has to be born with.
#[utoipa::path(get, path = "/api/v1/ota/trust/root", tag = "trust", responses(
    (status = 200, description = "The envelope", body = EnvelopeSchema),
    (status = 404, description = "There is none"),
))]
async fn newest(call: Call) -> Answer {
    call.no_query()?;
    envelope(&call, None).ok_or_else(|| ApiError::not_found("root", "newest"))
}

/// One root of the chain, by its version
#[utoipa::path(get, path = "/api/v1/ota/trust/roots/{version}", tag = "trust",
    params(("version" = u32, Path, description = "1 is the first")),
    responses((status = 200, description = "The envelope", body = EnvelopeSchema)),
)]
async fn one(version: Segment, call: Call) -> Answer {
    call.no_query()?;
    let number: u32 = version.id("root")?;
    envelope(&call, Some(number)).ok_or_else(|| ApiError::not_found("root", version.as_str()))
}

/// A DSSE envelope as `protocol` reads and writes it.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Envelope)]
pub(crate) struct EnvelopeSchema {
    /// What the payload is.
    #[serde(rename = "payloadType")]
    payload_type: String,
    /// Base64 of the signed bytes.
    payload: String,
    signatures: Vec<SignatureSchema>,
}

impl EnvelopeSchema {
    /// As the engine reads it.
    pub(crate) fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

/// One signature of an envelope.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Signature)]
struct SignatureSchema {
    /// Hex SHA-256 of the public key.
    keyid: String,
    /// Base64 of the Ed25519 signature.
    sig: String,
}

fn envelope(call: &Call, version: Option<u32>) -> Option<warp::reply::Response> {
    let envelope = call.shared.engine.trust_root(version)?;
    let mut response = envelope.into_response();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Some(response)
}
