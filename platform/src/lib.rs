//! The services around this one, behind ports of the engine.
//!
//! # How to add …
//! * **a service**: a file with its client, which implements a port of the engine, over `client::Client`. Every call has a
//!   deadline and a bound on what it reads; what cannot be understood counts as not answered.

mod auth;
mod circuit;
mod client;
mod consul;
mod device_service;
mod nats;
mod poster;

pub use auth::HttpAuthService;
pub use client::{Fault, ServiceStatus};
pub use consul::{Consul, ConsulError, Instance};
pub use device_service::HttpDeviceService;
pub use nats::{Nats, NatsAddress, NatsAddressError, NatsStatus};
pub use poster::HttpPoster;
