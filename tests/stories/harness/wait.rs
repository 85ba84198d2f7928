//! Waiting for something that can be observed, with a deadline that only a defect reaches.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// How long anything may take. Generous: the machine that runs the tests may be busy with others.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// Pause between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(40);

/// Looks until the look succeeds; the `Err` of the last look is in the panic.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        match look().await {
            Ok(seen) => return seen,
            Err(last) if Instant::now() > end => {
                panic!("not within {DEADLINE:?}: {what}; last seen: {last}")
            }
            Err(_) => sleep(BETWEEN_LOOKS).await,
        }
    }
}

/// What comes of a future that must end before the deadline.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// The time so many seconds from now, as the API writes it.
#[expect(
    clippy::disallowed_methods,
    reason = "a story lives in the service's own time"
)]
pub fn in_seconds(seconds: i64) -> String {
    let offset = jiff::SignedDuration::from_secs(seconds);
    jiff::Timestamp::now()
        .checked_add(offset)
        .unwrap()
        .to_string()
}
