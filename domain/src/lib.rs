//! What is true about firmware, devices, rings, campaigns, updates and rollbacks, whoever stores or transports it.
//!
//! Everything here is a value or a pure function: no clock, no randomness, no I/O. A transition consumes a state
//! and returns the next one or a typed error; the [`planner`] turns a campaign and its counts into actions and
//! leaves the execution no choices.
//!
//! # How to add …
//! * **a reason why a device waits**: a variant in [`why::Why`], its text beside it, and the place that finds it.
//! * **a campaign action**: a variant in [`planner::Action`], the rule in [`planner::plan`], its execution in the
//!   engine's `dispatch` module; nothing is decided there.
#![deny(missing_docs)]

pub mod api_key;
pub mod audit;
pub mod bandwidth;
pub mod campaign;
mod change;
pub mod device;
pub mod event;
mod exclusion;
pub mod filter;
pub mod firmware;
pub mod identity;
pub mod ids;
pub mod page;
pub mod permit;
pub mod planner;
pub mod ring;
pub mod rollback;
pub mod statistics;
pub mod targeting;
pub mod text;
pub mod update;
pub mod webhook;
pub mod why;

pub use api_key::ApiKey;
pub use campaign::{Campaign, CampaignSpec, CampaignState};
pub use device::{Device, DeviceKey};
pub use firmware::Firmware;
pub use identity::{Role, Roles};
pub use ids::{
    ApiKeyId, CampaignId, DeviceId, FirmwareId, IdError, RollbackId, UpdateId, WebhookId,
};
pub use rollback::RollbackTrigger;
pub use update::{Update, UpdateState};
