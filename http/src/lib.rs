//! The HTTP side: what admins and services call, and where devices fetch their images (PRD, *API Surface*).
//!
//! A request passes `server` (connection, deadlines), `gate` (request id, rate limit, who it is), then warp's
//! filters in `routes` find the handler in the file of its resource. Handlers read the `request`, ask the engine
//! and answer with a form from `dto`. Whatever goes wrong becomes one `errors::ApiError`, which the gate renders.
//!
//! # How to add …
//! * **a route**: a handler in the file of its resource, which begins with `call.require(role)`, and a line in that
//!   file's `routes`. The role stands in `role_of` of `routes/tests.rs` too, which asks every route of the document
//!   with every role. Above the handler stands `#[utoipa::path(…)]`, and its name is among the `paths(…)` of that
//!   file's `Documented`. What is not documented is not served: the gate asks the document first, 404 and 405 come
//!   from there. The first line of the handler's doc comment is the operation's summary (no full stop), what follows
//!   a blank line its description:
//!
//!   ```text
//!   /// Cancel an update
//!   ///
//!   /// Before it installs; afterwards 409.
//!   #[utoipa::path(post, path = "/api/v1/ota/updates/{update_id}/cancel", tag = "updates", responses(
//!       (status = 200, description = "The update as it is now", body = UpdateDto),
//!       (status = 409, description = "It installs, or has ended"),
//!   ))]
//!   async fn cancel(id: Segment, call: Call, body: Body) -> Answer { … }
//!   ```
//!
//!   Say the success, the refusals that are special to it (their body is the common error), `request_body = …`,
//!   and query parameters: `params(PageQuery, ("state" = Option<String>, Query, description = "…"))`. Path
//!   parameters, credentials, and 400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503 are added
//!   by `openapi::complete`. A new resource: a line in `openapi::parts`, a chapter in `openapi::TAGS`.
//! * **a form**: `#[derive(ToSchema)]` beside serde's derive, here or in `domain`; `&'static str` fields with few
//!   values say them with `schema_with` (`dto::names`); a list has its line in `dto::lists!`.
//! * **a field**: in the resource's file under `dto/`; its snapshot shows the change.
//! * **a route that devices may call too**: `call.device()` before `call.require(role)`; a device may do only what
//!   concerns itself. It stands in `DEVICES_TOO` of `routes/tests.rs`.
//! * **a way to sign in**: a variant in `access`; routes need a principal unless `access::is_open` names them.

mod access;
mod advance;
mod audit;
mod campaigns;
mod cors;
mod devices;
mod downloads;
mod dto;
mod errors;
mod events;
mod firmware;
mod gate;
mod health;
mod keys;
mod limits;
mod metrics;
mod openapi;
mod permits;
mod proposals;
mod range;
mod request;
mod rings;
mod rollbacks;
mod routes;
mod seats;
mod server;
mod shared;
mod statistics;
mod telemetry;
mod trust;
mod updates;
mod upload;
mod webhooks;

use std::sync::Arc;

use device_ota_engine::{Engine, Webhooks};

pub use access::{Access, MIN_SECRET_BYTES, TokenRules, TokenRulesError};
pub use cors::Cors;
pub use limits::RateLimits;
pub use seats::{CONNECTIONS_OF_ADDRESS, MAX_CONNECTIONS, Seats};
pub use server::{Http, TlsConfigs};
pub use shared::Component;

/// What the routes work with.
#[derive(Clone)]
pub struct Api {
    /// The use cases.
    pub engine: Arc<Engine>,
    /// The use cases around webhooks.
    pub webhooks: Arc<Webhooks>,
    /// Who may come in.
    pub access: Access,
    /// How often they may.
    pub limits: RateLimits,
    /// How much may be under way at once.
    pub seats: Seats,
    /// Which web pages may call it from a browser.
    pub cors: Cors,
    /// The service's version, as health shows it.
    pub version: &'static str,
    /// A text that no other start of the service has; request ids made here begin with it.
    pub run_id: String,
    /// Parts of the service beside the engine, for `/health/detailed`: asked at each request, so it must be quick.
    pub components: Arc<dyn Fn() -> Vec<Component> + Send + Sync>,
}
