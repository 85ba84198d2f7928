//! Upkeep: heartbeats are indexed, read for the health of campaigns, and let go, events that everybody has taken and
//! figures by the minute too, what was made for a device in the moment of its deletion ends, and objects that failed uploads
//! could not take back go. In small pieces, each a short transaction, so that reports and requests pass in between.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::ports::StoreError;

/// How often it looks whether there are heartbeats to index.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks at what is too old.
const PRUNE_TICKS: u32 = 60;
/// Ticks between two looks at the days of the history: those to come are made days ahead, and a day that is over has time.
const DAYS_TICKS: u32 = 3_600;
/// Heartbeats that wait longer are indexed even when they are few, so that a small fleet's history ends in time too.
const OVERDUE: SignedDuration = SignedDuration::from_hours(1);
/// Heartbeats that may wait for their index while reports queue: looking through them takes some 80 ms.
const SPARE: u64 = 1_000_000;
/// Reports in the queue from which ingest is busy.
const BUSY: usize = 1_024;
/// How long events stay for receivers that come back.
const EVENTS_KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);
/// After this an event goes even if a receiver has not taken it.
pub(crate) const EVENTS_WAIT: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How far before the look ahead of it each look at deleted devices begins: longer than any transaction lasts.
const DELETED_OVERLAP: SignedDuration = SignedDuration::from_mins(5);
/// Events deleted in one transaction.
const EVENTS_PIECE: u32 = 1_000;

/// Keeps house until `shutdown`.
pub(crate) async fn run(engine: Arc<Engine>, shutdown: CancellationToken) {
    let mut ticks = 0_u32;
    let mut settled = Timestamp::UNIX_EPOCH;
    loop {
        let prunes = ticks.is_multiple_of(PRUNE_TICKS);
        let reads = ticks.is_multiple_of(engine.settings.health_seconds.max(1));
        ticks = ticks.wrapping_add(1);
        // The first time was at the start.
        let turns_days = ticks.is_multiple_of(DAYS_TICKS);
        let work = async {
            report("indexing heartbeats", engine.index_heartbeats().await);
            // It looks through what is not indexed yet: little, but for a time of many reports.
            if reads && engine.uplinks.waiting() < BUSY {
                report("reading health", engine.read_health().await);
            }
            engine.settle_objects().await;
            if prunes {
                report("pruning heartbeats", engine.prune_heartbeats().await);
                report("pruning events", engine.prune_events().await);
                report("pruning figures", engine.prune_figures().await);
                match engine.settle_deleted(settled).await {
                    Ok(looked_at) => settled = looked_at - DELETED_OVERLAP,
                    Err(error) => tracing::debug!(%error, "deleted devices are looked at again"),
                }
            }
            if turns_days {
                engine.keep_heartbeat_days().await;
            }
            tokio::time::sleep(TICK).await;
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = work => {}
        }
    }
}

fn report(task: &'static str, done: Result<(), StoreError>) {
    match done {
        // Another replica did it.
        Ok(()) | Err(StoreError::Conflict(_)) => {}
        Err(error) => tracing::debug!(task, %error, "upkeep waits for the database"),
    }
}

impl Engine {
    /// Indexes what waits; little while reports queue.
    async fn index_heartbeats(&self) -> Result<(), StoreError> {
        let overdue = self.clock.now() - OVERDUE.min(self.settings.heartbeat_retention);
        loop {
            let busy = self.uplinks.waiting() >= BUSY;
            let spare = if busy { SPARE } else { 0 };
            if !self.store.index_heartbeats(overdue, spare).await? {
                return Ok(());
            }
        }
    }

    async fn prune_heartbeats(&self) -> Result<(), StoreError> {
        let (before, now) = (self.heartbeats_kept_from(), self.clock.now());
        while self.store.prune_heartbeats(before, now).await? {}
        Ok(())
    }

    /// Makes room for the heartbeats of today and the days to come, and lets days go that are over.
    pub(crate) async fn keep_heartbeat_days(&self) {
        let (before, now) = (self.heartbeats_kept_from(), self.clock.now());
        if let Err(error) = self.store.keep_heartbeat_days(now, before).await {
            tracing::warn!(%error, "partitions of the history stay as they are; heartbeats are taken all the same");
        }
    }

    /// Lets go what recent figures no longer look at.
    async fn prune_figures(&self) -> Result<(), StoreError> {
        self.store.prune_ends(self.ends_kept_from()).await
    }

    /// Lets events go that all receivers have taken.
    async fn prune_events(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let (before, whatever) = (now - EVENTS_KEPT, now - EVENTS_WAIT);
        let places = self.sinks.iter().map(|sink| self.membership.place(*sink));
        let places: Vec<String> = places.collect();
        let places: Vec<&str> = places.iter().map(String::as_str).collect();
        let mut pruned = u64::from(EVENTS_PIECE);
        while pruned == u64::from(EVENTS_PIECE) {
            pruned = self
                .store
                .prune_events(&places, before, whatever, EVENTS_PIECE)
                .await?;
        }
        Ok(())
    }
}
