//! Heartbeats with `QoS` 1, acknowledged after the commit: the service, a broker with a storing consumer, and the
//! database alone.
//!
//! A message counts when it is committed: for the service that is its PUBACK, for the broker (which acknowledges
//! before anything is stored) it is the consumer's commit. Both have the same number of messages under way.

use std::io::{BufRead as _, BufReader};
use std::process::ChildStdout;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use device_ota_engine::ports::Store;
use device_ota_store::{PostgresStore, SqliteStore};
use tokio::io::AsyncReadExt as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::bare;
use super::runtime;
use crate::Plan;
use crate::fleet::{self, Database, Engine};
use crate::mqtt::{self, Connection, PUBACK_BYTES, Target};
use crate::peers::{Mosquitto, start_ingest};
use crate::postgres::Server;
use crate::process::{Running, own_cpu_seconds};
use crate::service::Service;
use crate::stats::{Series, Target as Wanted, ratio, real, title};

/// Connections opened at the same time.
const OPENING: usize = 64;
/// How long what is under way at the end of a round may take to be committed.
const DRAIN_TIME: Duration = Duration::from_mins(1);

/// What is sent.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Database of the service and of its peer.
    #[arg(long, value_enum, default_value_t = Engine::Sqlite)]
    pub(crate) database: Engine,
    /// Connected devices.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=16_000))]
    pub(crate) connections: u16,
    /// Messages under way on each connection.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) window: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            database: Engine::Sqlite,
            connections: 1_000,
            window: 16,
        }
    }
}

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    title(&format!(
        "heartbeats, QoS 1, acknowledged after the commit; {:?}, {} connections, {} under way each, {} s a round",
        options.database,
        options.connections,
        options.window,
        plan.length.as_secs()
    ));
    runtime()?.block_on(measure(plan, options))
}

async fn measure(plan: Plan, options: &Options) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = (options.database == Engine::Postgres).then(Server::start);
    let devices = usize::from(options.connections);
    let mut databases = Vec::new();
    for purpose in ["service", "peer", "alone"] {
        let place = folder.path().join(purpose);
        std::fs::create_dir(&place)?;
        let database = match &mut server {
            Some(server) => server.database(purpose).await?,
            None => Database::file_in(&place),
        };
        if purpose == "service" {
            Service::make_keys(&place, &database.url())?;
        }
        database.fill(devices).await?;
        databases.push(database);
    }
    let [ours, theirs, alone] = databases.as_slice() else {
        anyhow::bail!("three databases")
    };
    let mut service = Side::service(&folder.path().join("service"), ours, options)?;
    let mut peer = Side::peer(&folder.path().join("peer"), theirs, options)?;
    let mut figures = Figures::new();
    for _ in 0..plan.rounds {
        figures.take(&mut service, &mut peer, plan, options).await?;
        match alone {
            Database::Sqlite(path) => {
                figures
                    .alone(&SqliteStore::open_file(path).await?, alone, plan, options)
                    .await?;
            }
            Database::Postgres(url) => {
                figures
                    .alone(
                        &PostgresStore::open_url(url, 2).await?,
                        alone,
                        plan,
                        options,
                    )
                    .await?;
            }
        }
    }
    drop((service, peer));
    figures.print(options.database);
    match server {
        Some(server) => server.clean_up().await,
        None => Ok(()),
    }
}

struct Figures {
    service: Series,
    peer: Series,
    insert: Series,
    store: Series,
    service_cpu: Series,
    peer_cpu: Series,
    generator_cpu: Series,
}

impl Figures {
    fn new() -> Self {
        Self {
            service: Series::new("service", "messages/s"),
            peer: Series::new("mosquitto → rumqttc → same store", "messages/s"),
            insert: Series::new("multi-row insert of the same rows alone", "rows/s"),
            store: Series::new("same, and devices' latest state", "rows/s"),
            service_cpu: Series::new("processor time of the service", "µs/message"),
            peer_cpu: Series::new("processor time of mosquitto and consumer", "µs/message"),
            generator_cpu: Series::new("processor time of the generator (service)", "µs/message"),
        }
    }

    async fn take(
        &mut self,
        service: &mut Side,
        peer: &mut Side,
        plan: Plan,
        options: &Options,
    ) -> anyhow::Result<()> {
        let (own, before) = (own_cpu_seconds()?, service.cpu_seconds()?);
        let round = service.round(plan.length, options).await?;
        self.service.push(round.rate());
        self.service_cpu
            .push((service.cpu_seconds()? - before) * 1e6 / real(round.messages));
        self.generator_cpu
            .push((own_cpu_seconds()? - own) * 1e6 / real(round.messages));
        let before = peer.cpu_seconds()?;
        let round = peer.round(plan.length, options).await?;
        self.peer.push(round.rate());
        self.peer_cpu
            .push((peer.cpu_seconds()? - before) * 1e6 / real(round.messages));
        Ok(())
    }

    async fn alone(
        &mut self,
        store: &dyn Store,
        database: &Database,
        plan: Plan,
        options: &Options,
    ) -> anyhow::Result<()> {
        let devices = i64::from(options.connections);
        self.insert
            .push(bare::insert_rate(database, devices, plan.length).await?);
        self.store
            .push(bare::store_rate(store, devices, plan.length).await?);
        store.close().await;
        Ok(())
    }

    fn print(&self, database: Engine) {
        for series in [
            &self.service,
            &self.peer,
            &self.insert,
            &self.store,
            &self.service_cpu,
            &self.generator_cpu,
            &self.peer_cpu,
        ] {
            series.print();
        }
        let beside = if database == Engine::Sqlite { 1.5 } else { 1.0 };
        ratio(
            "service / mosquitto → rumqttc → same store",
            &self.service,
            &self.peer,
            Wanted::AtLeast(beside),
        );
        ratio(
            "service / insert alone",
            &self.service,
            &self.insert,
            Wanted::AtLeast(0.5),
        );
        ratio(
            "service / insert and latest state alone",
            &self.service,
            &self.store,
            Wanted::AtLeast(0.5),
        );
    }
}

/// A server under load, with its connections.
struct Side {
    processes: Vec<Running>,
    connections: Vec<Link>,
    commits: Option<Commits>,
    service: Option<Service>,
}

/// What a consumer has committed.
struct Commits {
    total: Arc<AtomicU64>,
    /// Room for messages that are not committed.
    room: Arc<Semaphore>,
}

/// One connection and the bytes that it sends over and over.
struct Link {
    connection: Connection,
    packets: Vec<u8>,
}

struct Round {
    messages: u64,
    took: Duration,
}

impl Round {
    fn rate(&self) -> f64 {
        real(self.messages) / self.took.as_secs_f64()
    }
}

impl Side {
    fn service(
        folder: &std::path::Path,
        database: &Database,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let service = Service::start(folder, &database.url())?;
        let target = Target::of_devices(service.mqtt);
        let connections = links(&target, options)?;
        Ok(Self {
            processes: Vec::new(),
            connections,
            commits: None,
            service: Some(service),
        })
    }

    fn peer(
        folder: &std::path::Path,
        database: &Database,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let mosquitto = Mosquitto::start(folder, None)?;
        let mut consumer = start_ingest(mosquitto.addr, database, options.connections.into())?;
        let (_, lines) = consumer.lines_from("ready")?;
        let room = usize::from(options.connections) * usize::from(options.window);
        let commits = Commits {
            total: Arc::default(),
            room: Arc::new(Semaphore::new(room)),
        };
        commits.follow(lines);
        let connections = links(&Target::open_to_all(mosquitto.addr), options)?;
        // In this order they end.
        let processes = vec![consumer, mosquitto.process];
        Ok(Self {
            processes,
            connections,
            commits: Some(commits),
            service: None,
        })
    }

    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let service = self.service.iter().map(|service| &service.process);
        service
            .chain(&self.processes)
            .map(Running::cpu_seconds)
            .sum()
    }

    /// Sends for `length`, then waits until all of it is committed.
    async fn round(&mut self, length: Duration, options: &Options) -> anyhow::Result<Round> {
        let before = self
            .commits
            .as_ref()
            .map_or(0, |commits| commits.total.load(Ordering::Acquire));
        let began = Instant::now();
        let mut sending = JoinSet::new();
        for link in self.connections.drain(..) {
            let room = self.commits.as_ref().map(|commits| commits.room.clone());
            sending.spawn(link.send_until(began + length, options.window, room));
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
                .context("the consumer did not store all that was sent")?;
        }
        Ok(Round {
            messages,
            took: began.elapsed(),
        })
    }
}

fn links(target: &Target, options: &Options) -> anyhow::Result<Vec<Link>> {
    let open = mqtt::open_all(target, fleet::names(options.connections.into()), OPENING)?;
    let packets = |name: &str| {
        let topic = format!("ota/v1/{name}/up/heartbeat");
        (1..=options.window)
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
    /// Counts the consumer's lines on a thread of their own, which ends with the consumer.
    fn follow(&self, lines: BufReader<ChildStdout>) {
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
