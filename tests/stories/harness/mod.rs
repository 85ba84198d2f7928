//! What every story stands on: the service as a child process, its database and broker, and clients for its ports.

mod admin;
mod authority;
mod balancer;
mod broker;
mod database;
mod device;
mod disk;
mod documents;
mod dsse;
mod external;
mod link;
mod log;
mod nats;
mod nats_mqtt;
mod neighbour;
pub mod raw;
mod service;
mod wait;

pub use admin::{Admin, Answer, Credentials, device_json, image, image_metadata};
pub use authority::{Authority, Certified};
pub use balancer::Balancer;
pub use database::DatabaseKind;
pub use device::{Device, Offer};
pub use disk::SmallDisk;
pub use documents::shell_blocks;
pub use dsse::Trust;
pub use link::{Event, Link, MqttVersion};
pub use nats::NatsServer;
pub use neighbour::{Asked, Neighbour, Says};
pub use service::{BINARY, MqttEnd, Options, Service};
pub use wait::{eventually, in_seconds, within};

/// Runs a story once for each named pair of database and MQTT end, each as a test of its own.
///
/// `matrix!(story)` is all four; `matrix!(story: sqlite_gateway, postgres_mosquitto)` only those named.
macro_rules! matrix {
    ($story:ident) => {
        matrix!($story: sqlite_gateway, postgres_gateway, sqlite_mosquitto, postgres_mosquitto);
    };
    ($story:ident: $($case:ident),+ $(,)?) => {
        mod $story {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$story($crate::harness::Options::$case()).await;
                }
            )+
        }
    };
}
