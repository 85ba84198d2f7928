//! The services around this one, behind ports of the engine.
//!
//! # How to add …
//! * **a service**: a file with its client, which implements a port of the engine. Every call has a deadline and a
//!   bound on what it reads; what cannot be understood counts as not answered.

mod auth;
mod nats;
mod poster;

pub use auth::HttpAuthService;
pub use nats::{Nats, NatsAddress, NatsAddressError, NatsStatus};
pub use poster::HttpPoster;
