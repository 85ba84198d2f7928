//! The MQTT ends, from single bytes to whole connections against a real database.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets what it does not expect should panic"
)]

mod bus;
mod codec;
mod gateway;
mod link;
mod repeated;
mod service;
mod session;
mod shared;
mod wire;
