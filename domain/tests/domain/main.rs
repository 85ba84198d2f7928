//! The domain from outside: every transition and its refusals, the planner's properties, and a seeded model fleet.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect shall fail loudly"
)]

mod aftermath;
mod audit;
mod bandwidth;
mod campaign_state;
mod continuous;
mod draft;
mod events;
mod filter;
mod fleet;
mod gates;
mod pace;
mod planner;
mod rivals;
mod sample;
mod staged;
mod update_state;
mod update_time;
mod values;
mod vitals;
mod webhook;
mod why;
mod windows;
