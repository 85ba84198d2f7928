//! Failures: what went wrong, and whether trying again may help.

use serde::{Deserialize, Serialize};

/// Whether trying again may help (PROTOCOL.md, *Error codes*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// At once.
    Now,
    /// After a pause that grows.
    Backoff,
    /// No.
    Never,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A code of the protocol's closed set, or the service's own.
    pub code: String,
    /// For people; may be empty.
    pub message: String,
    /// Whether trying again may help.
    pub retry: Retry,
}

impl Failure {
    /// A failure that the service found by itself.
    pub fn new(code: &str, message: impl Into<String>, retry: Retry) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            retry,
        }
    }
}

/// First pause before a retry, in seconds.
const FIRST_BACK_OFF_SECONDS: u64 = 30;
/// Longest pause before a retry, in seconds: an hour.
const MAX_BACK_OFF_SECONDS: u64 = 3_600;

/// Pause before retry number `retry` (from 1), in seconds: doubles, with up to a quarter more by `spread` (any
/// number, e.g. of the device), so that a fleet that failed together does not return together.
///
/// ```
/// # use device_ota_domain::update::back_off;
/// assert_eq!(back_off(1, 0), 30);
/// assert_eq!(back_off(2, 0), 60);
/// assert_eq!(back_off(60, 0), 3_600);
/// assert!((30..=37).contains(&back_off(1, 123_456)));
/// ```
pub fn back_off(retry: u32, spread: u64) -> u64 {
    let doubled = FIRST_BACK_OFF_SECONDS.saturating_mul(1 << retry.saturating_sub(1).min(20));
    let pause = doubled.min(MAX_BACK_OFF_SECONDS);
    pause + spread % (pause / 4 + 1)
}
