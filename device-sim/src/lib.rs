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

pub mod api;
pub mod board;
pub mod chunks;
pub mod cli;
pub mod device;
pub mod download;
pub mod faults;
pub mod fleet;
mod memory;
pub mod mqtt;
pub mod report;
