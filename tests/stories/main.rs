//! Black-box stories: the real binary with a real database and a real MQTT end, driven through its ports as
//! administrators, devices and strangers drive it, and judged by the requirement documents alone.
//!
//! # How to add a story
//! A file beside this one with an `async fn` that takes [`harness::Options`], and a line of `matrix!` that says over
//! which databases and MQTT ends it runs. Wait with [`harness::eventually`] or for a message, never for time.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a story that cannot go on has failed, and a panic says where"
)]
#![expect(
    unreachable_pub,
    reason = "the harness is public to the stories, and there is nobody else"
)]

#[macro_use]
mod harness;

mod aborts;
mod approval;
mod audit;
mod bandwidth;
mod blue_green;
mod bus;
mod by_hand;
mod catalogue;
mod check_config;
mod consul;
mod continuous;
mod crowded;
mod database_away;
mod database_tls;
mod deployment;
mod device_service;
mod disk_full;
mod events;
mod external;
mod firmware;
mod first_start;
mod fleet;
mod formats;
mod gates;
mod gateway_hostile;
mod gateway_rules;
mod health;
mod identity;
mod kill;
mod limits;
mod lists;
mod lost_keys;
mod metrics;
mod nats;
mod open_files;
mod pace;
mod permits;
mod readme;
mod refusals;
mod registration;
mod replicas;
mod requests;
mod restore;
mod rings;
mod rivals;
mod rollback;
mod s3;
mod scenarios;
mod schedule;
mod sim_binary;
mod single;
mod statistics;
mod targeting;
mod telemetry;
mod tls;
mod tokens;
mod two_admins;
mod upload;
mod webhooks;
mod windows;
