//! Firmware bytes: adapters of the engine's [`Objects`](device_ota_engine::ports::Objects) port.
//!
//! An object is named by the SHA-256 of its bytes, so it never changes once it is there. There are two adapters:
//! [`LocalFolder`], and [`S3Store`], a bucket with a local folder before it.
//!
//! # How to add …
//! * **an adapter**: a module that implements `Objects` and `ObjectWriter`, held to the stories in `tests/conformance.rs`.

mod local;
mod name;
mod s3;
#[cfg(feature = "testing")]
pub mod testing;

pub use local::LocalFolder;
pub use s3::{OpenError, S3Error, S3Settings, S3Store};
