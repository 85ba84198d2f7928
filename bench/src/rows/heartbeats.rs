//! Heartbeats with `QoS` 1, acknowledged after the commit: the service, a broker with a storing consumer, and the
//! database alone.
//!
//! A message counts when it is committed: for the service that is its PUBACK, for the broker (which acknowledges
//! before anything is stored) it is the consumer's commit. Both have the same number of messages under way.

use clap::Args;
use device_ota_engine::ports::Store;
use device_ota_store::{PostgresStore, SqliteStore};

use super::stream::{Commits, Side, links};
use super::{bare, runtime};
use crate::Plan;
use crate::fleet::{Database, Engine};
use crate::mqtt::Target;
use crate::peers::{Mosquitto, start_ingest};
use crate::postgres::Server;
use crate::process::own_cpu_seconds;
use crate::service::Service;
use crate::stats::{Series, Target as Wanted, ratio, real, title};

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
    let mut service = service_side(&folder.path().join("service"), ours, options)?;
    let mut peer = peer_side(&folder.path().join("peer"), theirs, options)?;
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
        let round = service.round(plan.length, options.window).await?;
        self.service.push(round.rate());
        self.service_cpu
            .push((service.cpu_seconds()? - before) * 1e6 / real(round.messages));
        self.generator_cpu
            .push((own_cpu_seconds()? - own) * 1e6 / real(round.messages));
        let before = peer.cpu_seconds()?;
        let round = peer.round(plan.length, options.window).await?;
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

fn service_side(
    folder: &std::path::Path,
    database: &Database,
    options: &Options,
) -> anyhow::Result<Side> {
    let service = Service::start(folder, &database.url())?;
    let target = Target::of_devices(service.mqtt);
    let connections = links(&target, options.connections, options.window)?;
    Ok(Side {
        processes: Vec::new(),
        connections,
        commits: None,
        service: Some(service),
    })
}

fn peer_side(
    folder: &std::path::Path,
    database: &Database,
    options: &Options,
) -> anyhow::Result<Side> {
    let mosquitto = Mosquitto::start(folder, None)?;
    let mut consumer = start_ingest(mosquitto.addr, database, options.connections.into())?;
    let (_, lines) = consumer.lines_from("ready")?;
    let room = usize::from(options.connections) * usize::from(options.window);
    let commits = Commits::of(room);
    commits.follow(lines);
    let connections = links(
        &Target::open_to_all(mosquitto.addr),
        options.connections,
        options.window,
    )?;
    // In this order they end.
    let processes = vec![consumer, mosquitto.process];
    Ok(Side {
        processes,
        connections,
        commits: Some(commits),
        service: None,
    })
}
