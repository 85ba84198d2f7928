//! Ending: on SIGINT or SIGTERM, in order, and never later than the grace allows.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// Longest that an orderly end may take.
pub(crate) const GRACE: Duration = Duration::from_secs(4);

/// Waits for a signal that asks to end; answers its name.
pub(crate) async fn asked() -> anyhow::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    })
}
