//! Ingest: from the bounded queue into the database, a batch a transaction, then the acknowledgements.
//!
//! While one batch is being committed the next one gathers, so batches grow with the load and stay small without
//! it. Nothing is acknowledged before its transaction has committed; while the database is away the batch is kept
//! and tried again, and the queue behind it pushes back on the sockets.

mod batch;
mod present;
mod rows;
mod sighting;
mod watched;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use device_ota_domain::device::DeviceKey;
use device_ota_domain::update::{Phase, UpdateState};
use device_ota_domain::{DeviceId, Update, UpdateId};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::inbound::Inbound;
use crate::offers::Due;
use crate::ports::StoreError;
use crate::why::Prospect;
use batch::Batch;
pub(crate) use watched::Watched;

/// Messages in one transaction at most; keeps a transaction below some tens of milliseconds. A whole number of the store's
/// largest statements: what is left over goes in small ones.
const MAX_BATCH: usize = 4_000;
/// How long news that nobody waits for (a device came or went) gathers company: a fleet that connects at once should
/// not cost a transaction each handful.
const UNHURRIED: Duration = Duration::from_millis(10);
/// Room a batch begins with; it grows with the load.
const FIRST_ROOM: usize = 64;
/// First pause before a failed batch is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause before a failed batch is tried again.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Devices whose last word was `rebooting`: their next heartbeat may show that they fell back. A hint only; a
/// check is always compared, and the attempt's deadline ends what nobody noticed.
#[derive(Default)]
pub(crate) struct Rebooting(Mutex<HashSet<DeviceKey>>);

impl Rebooting {
    fn contains(&self, device: DeviceKey) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&device)
    }

    fn is_empty(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    /// All of them.
    pub(crate) fn known(&self) -> HashSet<DeviceKey> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    /// Takes up what the database knows, in place of what was `known` before it was asked.
    pub(crate) fn renew(&self, known: &HashSet<DeviceKey>, devices: Vec<DeviceKey>) {
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        present.retain(|device| !known.contains(device));
        present.extend(devices);
    }

    pub(crate) fn note(&self, update: &Update) {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(
            update.state,
            UpdateState::InFlight {
                phase: Phase::Rebooting,
                ..
            }
        ) {
            devices.insert(update.device);
        } else {
            devices.remove(&update.device);
        }
    }
}

/// What follows from committed batches: at most one reply a device and one word an update, so that a device that
/// asks again and again waits for its turn like any other.
#[derive(Default)]
pub(crate) struct Answers {
    replies: BTreeMap<DeviceKey, Reply>,
    due: BTreeMap<UpdateId, Due>,
}

/// The answer to a device's last check.
struct Reply {
    device: DeviceId,
    nonce: Option<String>,
    /// What the device runs.
    version: String,
    offer: bool,
}

impl Answers {
    /// Both together; of what both speak of, the later.
    fn join(&mut self, more: Self) {
        self.replies.extend(more.replies);
        self.due.extend(more.due);
    }
}

/// Answers that wait to be sent; as many as there are devices at most.
#[derive(Default)]
struct Outbox {
    waiting: Mutex<Answers>,
    bell: Notify,
}

impl Outbox {
    fn put(&self, answers: Answers) {
        self.locked().join(answers);
        self.bell.notify_one();
    }

    fn take(&self) -> Answers {
        std::mem::take(&mut *self.locked())
    }

    fn locked(&self) -> MutexGuard<'_, Answers> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Empties the queue until `shutdown`, then what it still holds. While the service shuts down a database that is
/// away is not waited for: what is not committed is not acknowledged either.
///
/// Three stages, so that neither the processors nor the database wait for each other: while one batch is being
/// committed the next one is gathered and read, and the one before is acknowledged. The transactions follow one
/// another, so each sees what the one before has written.
pub(crate) async fn run(
    engine: Arc<Engine>,
    queue: mpsc::Receiver<Inbound>,
    shutdown: CancellationToken,
) {
    let outbox = Arc::new(Outbox::default());
    let mut answerer = JoinSet::new(); // ends with this function
    answerer.spawn(answer(engine.clone(), outbox.clone()));
    let (ready, batches) = mpsc::channel(1);
    let (done, settled) = mpsc::channel(1);
    let mut stages = JoinSet::new();
    stages.spawn(gather(queue, ready, shutdown.clone()));
    stages.spawn(conclude(engine.clone(), settled, outbox));
    // On a thread of its own: each statement's answer would else wait behind all connections that have something to do.
    let runtime = Handle::current();
    stages.spawn_blocking(move || runtime.block_on(settle_all(engine, batches, done, shutdown)));
    while let Some(ended) = stages.join_next().await {
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Makes batches of what waits, one ahead of the database.
async fn gather(
    mut queue: mpsc::Receiver<Inbound>,
    ready: mpsc::Sender<Batch>,
    shutdown: CancellationToken,
) {
    while let Ok(place) = ready.reserve().await
        && let Some(batch) = next(&mut queue, &shutdown).await
    {
        place.send(batch);
    }
}

/// All that waits, up to a batch. `None` once the queue has closed and is empty.
async fn next(queue: &mut mpsc::Receiver<Inbound>, shutdown: &CancellationToken) -> Option<Batch> {
    let mut messages = Vec::with_capacity(FIRST_ROOM);
    let taken = tokio::select! {
        taken = queue.recv_many(&mut messages, MAX_BATCH) => Some(taken),
        () = shutdown.cancelled(), if !queue.is_closed() => None,
    };
    if taken.is_none() {
        queue.close();
        queue.recv_many(&mut messages, MAX_BATCH).await;
    } else if messages.iter().all(Inbound::is_unhurried) {
        tokio::time::sleep(UNHURRIED).await;
        while messages.len() < MAX_BATCH
            && let Ok(message) = queue.try_recv()
        {
            messages.push(message);
        }
    }
    (!messages.is_empty()).then(|| Batch::new(messages))
}

/// Brings the batches into the database, one after the other.
async fn settle_all(
    engine: Arc<Engine>,
    mut batches: mpsc::Receiver<Batch>,
    done: mpsc::Sender<Settled>,
    shutdown: CancellationToken,
) {
    while let Some(batch) = batches.recv().await {
        if settle(&engine, batch, &done, &shutdown).await.is_none() {
            return;
        }
    }
}

/// A batch that is in the database, or one message that never will be, and what follows.
struct Settled {
    batch: Batch,
    outcome: batch::Outcome,
}

/// Brings a batch into the database and hands it on. A batch that the database refuses is halved until the message
/// that it will never take stands alone: that one is dropped, counted and told, and stops nobody behind it. `None`
/// when told to give up: then nothing more is acknowledged.
async fn settle(
    engine: &Engine,
    batch: Batch,
    done: &mpsc::Sender<Settled>,
    shutdown: &CancellationToken,
) -> Option<()> {
    let mut waiting = vec![batch];
    while let Some(batch) = waiting.pop() {
        let outcome = match until_settled(engine, &batch, shutdown).await? {
            Ok(outcome) if !outcome.stale.is_empty() => {
                engine.end_stale(batch.messages(), &outcome.stale).await;
                waiting.push(batch.without(&outcome.stale));
                continue;
            }
            Ok(outcome) => outcome,
            Err(error) if batch.len() == 1 => {
                engine
                    .metrics
                    .add("reports_ignored", "refused_by_database", 1);
                tracing::error!(device.id = batch.device(), %error, "a report was dropped");
                batch::Outcome::default()
            }
            Err(_) => {
                let (first, second) = batch.halves();
                waiting.extend([second, first]);
                continue;
            }
        };
        done.send(Settled { batch, outcome }).await.ok()?;
    }
    Some(())
}

/// Tells the senders of what is settled, and those whom it concerns.
async fn conclude(engine: Arc<Engine>, mut settled: mpsc::Receiver<Settled>, outbox: Arc<Outbox>) {
    while let Some(Settled { batch, outcome }) = settled.recv().await {
        engine.want_chunks(outcome.chunks);
        batch.acknowledge();
        outbox.put(outcome.answers);
        if outcome.moved {
            engine.wake();
        }
    }
}

/// Tries until the batch is in the database, or is refused by it. `None` when told to give up.
async fn until_settled(
    engine: &Engine,
    batch: &Batch,
    shutdown: &CancellationToken,
) -> Option<Result<batch::Outcome, StoreError>> {
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        match batch.commit(engine).await {
            Ok(outcome) => {
                engine.metrics.committed(batch.len(), began.elapsed());
                return Some(Ok(outcome));
            }
            Err(error @ (StoreError::Refused(_) | StoreError::Corrupt { .. })) => {
                return Some(Err(error));
            }
            Err(error) => report(engine, &error, batch.len()),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(MAX_PAUSE),
            () = shutdown.cancelled() => return None,
        }
    }
}

fn report(engine: &Engine, error: &StoreError, messages: usize) {
    // What it says is not in the database yet, and what is there says that its devices are away.
    engine.missed_something();
    engine.metrics.add("ingest_retries", "database", 1);
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::warn!(%error, cause, batch.messages = messages, "a batch of reports waits for the database");
}

async fn answer(engine: Arc<Engine>, outbox: Arc<Outbox>) {
    loop {
        outbox.bell.notified().await;
        let answers = outbox.take();
        for (key, reply) in answers.replies {
            let (offer, why) = if reply.offer {
                (true, None)
            } else {
                match engine.prospect(key, &reply.version).await {
                    Ok(Prospect::Offer) => (true, None),
                    Ok(Prospect::Nothing(why)) => (false, Some(why)),
                    Err(_) => (false, None), // it asks again
                }
            };
            engine
                .send_reply(&reply.device, reply.nonce, offer, why)
                .await;
        }
        engine.send_due(answers.due.into_values().collect()).await;
    }
}
