//! Failures: what went wrong, and whether trying again may help.

use serde::{Deserialize, Serialize};

use crate::device::DeviceKey;

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

/// Whether a rollback that failed so may end otherwise the next time, although an update would not be tried again: its device has
/// tried, and stays on what it was to leave. What a device refuses by what the offer says, it refuses again.
pub(super) fn may_pass_going_back(code: &str) -> bool {
    const TRIED: [&str; 5] = [
        "install_failed",
        "boot_failed",
        "health_check_failed",
        "version_mismatch",
        "reverted",
    ];
    TRIED.contains(&code)
}

/// Pauses between attempts, in seconds: each is twice the one before it, up to the longest.
struct Pauses {
    first: u64,
    longest: u64,
}

impl Pauses {
    /// The pause after so many attempts, counted from 1.
    fn after(&self, attempts: u32) -> u64 {
        let doublings = attempts.saturating_sub(1).min(20);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// A line that broke is soon there again.
const OF_A_LINE: Pauses = Pauses {
    first: 15,
    longest: 15 * 60,
};
/// What nobody knows more of.
const USUAL: Pauses = Pauses {
    first: 30,
    longest: 3_600,
};
/// Batteries are charged, storage is tidied up and people make up their minds in the course of a day.
const OF_A_PERSON: Pauses = Pauses {
    first: 15 * 60,
    longest: 4 * 3_600,
};
/// Shortest that a device may put an update off, however soon it asks to be asked again: each time costs a transaction and a signature.
const AT_LEAST: Pauses = Pauses {
    first: 30,
    longest: 4 * 3_600,
};
/// Attempts that cost no retry after which an update is put off no more: two weeks at least, of a device that asks to be asked at once.
pub(super) const MAX_PUT_OFF: u32 = 100;
/// Longest that a device may put an update off, in seconds: a week.
const MAX_DEFER: u64 = 7 * 24 * 3_600;
/// Longest that is added to a pause which the device names, in seconds.
const MAX_DEFER_SPREAD: u64 = 600;

/// Pause before retry number `retry` (from 1) after a failure of this code, in seconds. It doubles, with up to a quarter
/// more that follows from the device and the retry, so that a fleet that failed together does not return together.
///
/// ```
/// # use device_ota_domain::device::DeviceKey;
/// # use device_ota_domain::update::back_off;
/// let device = DeviceKey(7);
/// assert!((15..=18).contains(&back_off("download_failed", 1, device)));
/// assert!((30..=37).contains(&back_off("hash_mismatch", 1, device)));
/// assert!((60..=75).contains(&back_off("hash_mismatch", 2, device)));
/// assert!((3_600..=4_500).contains(&back_off("hash_mismatch", 60, device)));
/// assert!((900..=1_125).contains(&back_off("low_battery", 1, device)));
/// ```
pub fn back_off(code: &str, retry: u32, device: DeviceKey) -> u64 {
    let pauses = match code {
        "download_failed" => OF_A_LINE,
        "low_battery" | "low_storage" | "user_deferred" => OF_A_PERSON,
        _ => USUAL,
    };
    let pause = pauses.after(retry);
    pause + spread(device, retry, pause / 4)
}

/// Pause of an update that its device has put off so many times (from 1), in seconds: what the device asks for, within bounds of
/// which the lower one doubles from time to time, else as [`back_off`] for what passes in the course of a day. No retry is spent on it.
///
/// ```
/// # use device_ota_domain::device::DeviceKey;
/// # use device_ota_domain::update::put_off;
/// let device = DeviceKey(7);
/// assert!((60..=75).contains(&put_off(Some(60), 1, device)));
/// assert!((480..=600).contains(&put_off(Some(60), 5, device)));
/// assert!((86_400..=87_000).contains(&put_off(Some(86_400), 1, device)));
/// assert!((900..=1_125).contains(&put_off(None, 1, device)));
/// assert!((1_800..=2_250).contains(&put_off(None, 2, device)));
/// ```
pub fn put_off(asked: Option<u64>, times: u32, device: DeviceKey) -> u64 {
    match asked {
        Some(asked) => {
            let pause = asked.clamp(AT_LEAST.after(times), MAX_DEFER);
            pause + spread(device, times, (pause / 4).min(MAX_DEFER_SPREAD))
        }
        None => back_off("user_deferred", times, device),
    }
}

/// Up to so many seconds, evenly over devices and, of one device, over its retries; always the same.
fn spread(device: DeviceKey, retry: u32, most: u64) -> u64 {
    let seed = device.0.unsigned_abs().wrapping_add(u64::from(retry) << 40);
    // Fibonacci hashing: the upper half of a product with 2^64 divided by the golden ratio.
    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % (most + 1)
}
