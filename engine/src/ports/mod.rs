//! The ports: what the engine needs of the world, as traits that adapters implement.

pub mod audit;
pub mod auth;
pub mod bandwidth;
pub mod clock;
pub mod device_service;
pub mod downlink;
pub mod error;
pub mod events;
pub mod figures;
pub mod objects;
pub mod outbox;
pub mod poster;
pub mod replicas;
pub mod store;
pub mod telemetry;
pub mod webhooks;

pub use audit::AuditLog;
pub use clock::{Clock, Entropy};
pub use device_service::DeviceService;
pub use downlink::{Delivery, Downlink};
pub use error::StoreError;
pub use events::{EventSink, SinkError};
pub use figures::Figures;
pub use objects::{ObjectError, ObjectStream, ObjectWriter, Objects};
pub use outbox::Outbox;
pub use replicas::ReplicaKey;
pub use store::{Store, Tx};
pub use telemetry::Telemetry;
