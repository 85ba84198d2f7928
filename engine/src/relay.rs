//! The relay: events from the outbox to their receivers, in order and at least once, each receiver at its own pace.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::ports::{EventSink, StoreError};

/// Events read at once.
const PIECE: u32 = 256;
/// Pause when there is nothing to relay.
const IDLE: Duration = Duration::from_millis(500);
/// Longest pause after a receiver failed.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Serves one receiver until `shutdown`.
pub(crate) async fn run(
    engine: Arc<Engine>,
    sink: Arc<dyn EventSink>,
    shutdown: CancellationToken,
) {
    let mut pause = IDLE;
    let mut is_failing = false;
    loop {
        // What all replicas share, one of them serves.
        if sink.is_shared() && !engine.membership.leads() {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(IDLE) => continue,
            }
        }
        let relayed = relay(&engine, sink.as_ref(), &shutdown).await;
        if relayed.is_ok() && std::mem::take(&mut is_failing) {
            tracing::info!(sink = sink.name(), "events are delivered again");
        }
        match relayed {
            Ok(0) => pause = IDLE,
            // What is left comes with the next start.
            Ok(_) if shutdown.is_cancelled() => return,
            Ok(_) => {
                pause = IDLE;
                continue;
            }
            Err(error) => {
                engine.metrics.add("events_delayed", sink.name(), 1);
                // Told once, however long it lasts.
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(sink = sink.name(), %error, "events wait for their receiver");
                }
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            rested = rest(sink.as_ref(), pause) => pause = rested,
        }
    }
}

/// Rests for `pause`, or until the receiver is there again; answers the pause that the next one grows from.
async fn rest(sink: &dyn EventSink, pause: Duration) -> Duration {
    tokio::select! {
        () = sink.is_back() => IDLE,
        () = tokio::time::sleep(pause) => pause,
    }
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("the database did not answer")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Sink(#[from] crate::ports::SinkError),
}

async fn relay(
    engine: &Engine,
    sink: &dyn EventSink,
    shutdown: &CancellationToken,
) -> Result<usize, RelayError> {
    let place = engine.membership.place((sink.name(), sink.is_shared()));
    let events = engine.store.events_for(&place, PIECE).await?;
    let mut delivered = None;
    let mut failed = None;
    for event in &events {
        let began = Instant::now();
        let Some(taken) = shutdown.run_until_cancelled(sink.deliver(event)).await else {
            break;
        };
        engine.metrics.delivered(sink.name(), began.elapsed());
        match taken {
            Ok(()) => delivered = Some(event.id),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if let Some(up_to) = delivered {
        let mut tx = engine.store.begin().await?;
        tx.events_delivered(&place, up_to).await?;
        engine.commit(tx).await?;
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(events.len()),
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use device_ota_domain::event::StoredEvent;
    use tokio::sync::Notify;

    use super::*;
    use crate::ports::SinkError;

    #[derive(Default)]
    struct Receiver(Notify);

    #[async_trait]
    impl EventSink for Receiver {
        fn name(&self) -> &'static str {
            "receiver"
        }

        async fn deliver(&self, _event: &StoredEvent) -> Result<(), SinkError> {
            Ok(())
        }

        async fn is_back(&self) {
            self.0.notified().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_is_back_ends_the_pause_once() {
        let receiver = Receiver::default();
        let began = Instant::now();
        receiver.0.notify_one();
        assert_eq!(rest(&receiver, MAX_PAUSE).await, IDLE);
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(rest(&receiver, MAX_PAUSE).await, MAX_PAUSE);
        assert_eq!(began.elapsed(), MAX_PAUSE);
    }
}
