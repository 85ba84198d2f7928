//! A fleet of simulated devices: thousands in one process, each with its own MQTT connection, its
//! own honest [`Agent`](device_ota_protocol::agent::Agent) and perhaps something wrong with it.
//! They register, connect, verify, download real bytes, restart into their other slot and report,
//! and hold the service to its promises meanwhile.
//!
//! | to … | look in |
//! |---|---|
//! | run a fleet from a test or a bench | [`fleet::Fleet::run`] |
//! | speak MQTT as a light client | [`mqtt::Client`] |
//! | say what is wrong with whom | [`faults::FaultPlan`] |
//! | use the service as an administrator | [`api::Api`] |
//! | play a story from a file, with its end | [`scenario::Scenario`] |
//!
//! A test runs a fleet like this:
//!
//! ```no_run
//! use device_sim::faults::{FaultPlan, Share};
//! use device_sim::fleet::{Fleet, FleetConfig, Until, Unwatched, Verdict};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn story() -> Result<(), Box<dyn std::error::Error>> {
//! let config = FleetConfig {
//!     devices: 50,
//!     faults: FaultPlan { boot_loop: Share::Count(3), ..FaultPlan::default() },
//!     until: Until::Version("1.1.0".to_owned()),
//!     ..FleetConfig::new("http://127.0.0.1:8216", "127.0.0.1:1883", "the admin key")
//! };
//! let summary = Fleet::run(config, &mut Unwatched, CancellationToken::new()).await?;
//! assert_eq!(summary.verdict, Verdict::Good);
//! # Ok(())
//! # }
//! ```

pub mod api;
pub mod board;
pub mod chunks;
pub mod cli;
pub mod device;
pub mod download;
pub mod faults;
pub mod fleet;
pub mod habits;
mod memory;
pub mod mqtt;
pub mod report;
pub mod scenario;
pub mod time;
pub mod trust;
