//! MQTT: the way of reports from devices to the engine, of offers back to them, and of events to in-house subscribers.
//!
//! - [`gateway`]: devices connect to us, by MQTT 3.1.1 or 5. It authenticates them, keeps them to their own topics, and
//!   acknowledges a report once it is committed.
//! - [`link`]: devices connect to an external broker, and we are one of its clients.
//! - [`bus`]: a broker on loopback where in-house services subscribe to events.
//!
//! [`codec`] and [`session`] do no input or output: bytes to packets, and packets to what is to be done about them.

pub mod bus;
pub mod codec;
pub mod gateway;
pub mod limits;
pub mod link;
pub mod session;

pub use bus::Bus;
pub use gateway::{Gateway, Sessions, TlsConfigs};
pub use limits::Limits;
pub use link::{ClientTls, Group, Link, LinkOptions, Sharing};
