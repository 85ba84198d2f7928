//! What a device says about one of its updates, free of the wire's form.

use super::failure::Failure;
use super::phase::Phase;

/// One report.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Attempt it is about.
    pub attempt: u32,
    /// Rises from 1 within the attempt.
    pub seq: u64,
    /// Version that runs now.
    pub version: Option<String>,
    /// Percent of the phase.
    pub percent: Option<f64>,
    /// Bytes of the image so far.
    pub bytes_done: Option<u64>,
    /// Bytes a second.
    pub speed_bps: Option<u64>,
    /// What it says.
    pub said: Reported,
}

/// What the report says.
#[derive(Debug, Clone, PartialEq)]
pub enum Reported {
    /// It is in this phase.
    In(Phase),
    /// It runs the offered version.
    Completed,
    /// Not now.
    Deferred {
        /// Why.
        failure: Failure,
        /// When it wants to be asked again, in seconds.
        retry_after_seconds: Option<u64>,
    },
    /// It ended without success; never for a rejection.
    Failed(Failure),
    /// It took a cancel command.
    Cancelled,
}
