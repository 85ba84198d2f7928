//! The HTTP side: what admins and services call, and where devices fetch their images (PRD, *API Surface*).
//!
//! A request passes `server` (connection, deadlines), `gate` (request id, rate limit, who it is), then warp's
//! filters in `routes` find the handler in the file of its resource. Handlers read the `request`, ask the engine
//! and answer with a form from `dto`. Whatever goes wrong becomes one `errors::ApiError`, which the gate renders.
//!
//! # How to add …
//! * **a route**: a handler in the file of its resource, which begins with `call.require(role)`, a line in that
//!   file's `routes` and one in `routes::METHODS`, from which 405 answers say what is allowed. The role stands in
//!   `role_of` of `routes/tests.rs` too, which asks every route of the table with every role.
//! * **a field**: in the resource's file under `dto/`; its snapshot shows the change.
//! * **a way to sign in**: a variant in `access`; routes need a principal unless `access::is_open` names them.

mod access;
mod campaigns;
mod devices;
mod downloads;
mod dto;
mod errors;
mod firmware;
mod gate;
mod health;
mod limits;
mod range;
mod request;
mod rollbacks;
mod routes;
mod server;
mod shared;
mod trust;
mod updates;
mod upload;

use std::sync::Arc;

use device_ota_engine::Engine;

pub use access::Access;
pub use limits::RateLimits;
pub use server::Http;
pub use shared::Component;

/// What the routes work with.
pub struct Api {
    /// The use cases.
    pub engine: Arc<Engine>,
    /// Who may come in.
    pub access: Access,
    /// How often they may.
    pub limits: RateLimits,
    /// The service's version, as health shows it.
    pub version: &'static str,
    /// A text that no other start of the service has; request ids made here begin with it.
    pub run_id: String,
    /// Parts of the service beside the engine, for `/health/detailed`: asked at each request, so it must be quick.
    pub components: Arc<dyn Fn() -> Vec<Component> + Send + Sync>,
}
