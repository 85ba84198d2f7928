//! The contract between the service and every device: topics, messages, signed objects, and the
//! device's own logic. Pure by rule: no clock, no randomness, no I/O and no runtime of its own, so
//! that a device, the service and a simulator can all depend on it.
//!
//! | to … | look in |
//! |---|---|
//! | name a device | [`ids::DeviceId`] |
//! | build, parse or guard a topic | [`topics::Prefix`] |
//! | read a device's report, or write what a device reads | [`messages`] |
//! | sign or verify one envelope | [`dsse`], with keys from [`keys`] |
//! | seal or open a release, an assignment, a command … | [`objects::seal`], [`objects::open`] |
//! | be a device | [`agent::Agent`] |
#![deny(missing_docs)]

mod wire;

pub mod agent;
pub mod digest;
pub mod dsse;
pub mod ids;
pub mod keys;
pub mod messages;
pub mod objects;
pub mod topics;

pub use wire::{MAX_INTEGER, Slot};
