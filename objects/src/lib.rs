//! Firmware bytes: adapters of the engine's [`Objects`](device_ota_engine::ports::Objects) port.
//!
//! An object is named by the SHA-256 of its bytes, so it never changes once it is there. Today there is one adapter,
//! [`LocalFolder`].
//!
//! # How to add …
//! * **an adapter**: a module that implements `Objects` and `ObjectWriter`, held to the stories in `tests/`.

mod local;

pub use local::LocalFolder;
