//! A stream of heartbeats of many devices, as fast as they are acknowledged and committed.

use std::io::{BufRead as _, BufReader};
use std::process::ChildStdout;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::fleet;
use crate::look::Look;
use crate::mqtt::{self, Connection, PUBACK_BYTES, Target};
use crate::process::Running;
use crate::service::Service;
use crate::stats::real;

/// Connections opened at the same time.
const OPENING: usize = 64;
/// How long what is under way at the end of a round may take to be committed.
const DRAIN_TIME: Duration = Duration::from_mins(1);
/// How often the database is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A server under load, with its connections.
pub(super) struct Side {
    pub(super) processes: Vec<Running>,
    pub(super) connections: Vec<Link>,
    /// What is committed, where acknowledgements do not say it.
    pub(super) commits: Option<Commits>,
    pub(super) service: Option<Service>,
}

/// What has been committed.
pub(super) struct Commits {
    total: Arc<AtomicU64>,
    /// Room for messages that are not committed.
    room: Arc<Semaphore>,
}

/// One connection and the bytes that it sends over and over.
pub(super) struct Link {
    connection: Connection,
    packets: Vec<u8>,
}

/// What came of a round.
pub(super) struct Round {
    pub(super) messages: u64,
    took: Duration,
}

impl Round {
    pub(super) fn rate(&self) -> f64 {
        real(self.messages) / self.took.as_secs_f64()
    }
}

impl Side {
    pub(super) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let service = self.service.iter().map(|service| &service.process);
        service
            .chain(&self.processes)
            .map(Running::cpu_seconds)
            .sum()
    }

    /// Sends for `length`, then waits until all of it is committed.
    pub(super) async fn round(&mut self, length: Duration, window: u16) -> anyhow::Result<Round> {
        let before = self
            .commits
            .as_ref()
            .map_or(0, |commits| commits.total.load(Ordering::Acquire));
        let began = Instant::now();
        let mut sending = JoinSet::new();
        for link in self.connections.drain(..) {
            let room = self.commits.as_ref().map(|commits| commits.room.clone());
            sending.spawn(link.send_until(began + length, window, room));
        }
        let mut messages = 0;
        while let Some(sent) = sending.join_next().await {
            let (link, count) = sent??;
            messages += count;
            self.connections.push(link);
        }
        if let Some(commits) = &self.commits {
            tokio::time::timeout(DRAIN_TIME, commits.reach(before + messages))
                .await
                .context("not all that was sent was committed in time")?;
        }
        Ok(Round {
            messages,
            took: began.elapsed(),
        })
    }
}

/// So many connected devices, each of which sends so many heartbeats at a time.
pub(super) fn links(target: &Target, connections: u16, window: u16) -> anyhow::Result<Vec<Link>> {
    let open = mqtt::open_all(target, fleet::names(connections.into()), OPENING)?;
    let packets = |name: &str| {
        let topic = format!("ota/v1/{name}/up/heartbeat");
        (1..=window)
            .flat_map(|id| mqtt::publish(&topic, id, mqtt::PAYLOAD.as_bytes()))
            .collect()
    };
    Ok(open
        .into_iter()
        .map(|(name, connection)| Link {
            packets: packets(&name),
            connection,
        })
        .collect())
}

impl Link {
    /// Sends a window of messages, waits for its acknowledgements, and again until `end`.
    async fn send_until(
        mut self,
        end: Instant,
        window: u16,
        room: Option<Arc<Semaphore>>,
    ) -> anyhow::Result<(Self, u64)> {
        let mut acks = vec![0; usize::from(window) * PUBACK_BYTES];
        let mut sent = 0;
        while Instant::now() < end {
            if let Some(room) = &room {
                room.acquire_many(window.into()).await?.forget();
            }
            mqtt::write_whole(&self.connection.stream, &self.packets).await?;
            self.connection.stream.read_exact(&mut acks).await?;
            let all = acks
                .chunks_exact(PUBACK_BYTES)
                .all(|ack| ack.starts_with(&[0x40, 2]));
            anyhow::ensure!(all, "something other than a PUBACK came");
            sent += u64::from(window);
        }
        Ok((self, sent))
    }
}

impl Commits {
    /// None yet, and room for so many messages that are not committed.
    pub(super) fn of(room: usize) -> Self {
        Self {
            total: Arc::default(),
            room: Arc::new(Semaphore::new(room)),
        }
    }

    /// Counts what the database holds beyond what it held before, as long as the runtime lives.
    pub(super) async fn watch(&self, mut look: Look) -> anyhow::Result<()> {
        let mut last = look.heartbeats().await?;
        let (total, room) = (self.total.clone(), self.room.clone());
        tokio::spawn(async move {
            while let Ok(now) = look.heartbeats().await {
                total.fetch_add(now - last, Ordering::Release);
                room.add_permits(usize::try_from(now - last).unwrap_or(0));
                last = now;
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        Ok(())
    }

    /// Counts the consumer's lines on a thread of their own, which ends with the consumer.
    pub(super) fn follow(&self, lines: BufReader<ChildStdout>) {
        let (total, room) = (self.total.clone(), self.room.clone());
        std::thread::spawn(move || {
            for count in lines
                .lines()
                .map_while(Result::ok)
                .filter_map(|line| line.parse::<u32>().ok())
            {
                total.fetch_add(count.into(), Ordering::Release);
                room.add_permits(usize::try_from(count).unwrap_or(0));
            }
        });
    }

    async fn reach(&self, count: u64) {
        while self.total.load(Ordering::Acquire) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
