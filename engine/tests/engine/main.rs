//! The engine over a real database and a real folder, with a clock of the test's own: what must hold between a report
//! and its acknowledgement, an offer and its lease, a failure and the stop.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod absence;
mod adversity;
mod approval;
mod bandwidth;
mod batches;
mod blue_green;
mod chunks;
mod continuous;
mod credentials;
mod ends;
mod far;
mod feed;
mod fixture;
mod floors;
mod going_back;
mod held;
mod ingest;
mod introduction;
mod late;
mod metrics;
mod permits;
mod regressions;
mod replicas;
mod rivals;
mod rollout;
mod simulation;
mod single;
mod times;
mod upload;
mod vitals;
mod webhooks;
mod windows;
