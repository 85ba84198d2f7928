//! `device-ota-bench`: each command measures one figure of the service beside a limit or a peer in the same run, and
//! prints both, their ratio and the target. Nothing here is a test: a target that is missed is a number, not a failure.
//!
//! The service is the real release binary, a child of this process on a temporary folder and free ports of the
//! loopback interface; so are its peers. Rounds of the service and of the peer take turns, because machines drift.
//! The load generator shares the machine with both, and is kept as small as can be.

mod cores;
mod fleet;
mod http;
mod load;
mod look;
mod mqtt;
mod nats;
mod peers;
mod postgres;
mod process;
mod rows;
mod service;
mod share;
mod stats;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use fleet::Engine;
use rows::{
    brokers, campaign, connections, fan_out, heartbeats, history, images, latencies, named,
    progress_reads, recovery, replicas, start, statistics, stop, upload,
};

/// Measures `device-ota` beside its peers.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Rounds of each side.
    #[arg(long, global = true, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Seconds of a timed round.
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

/// What every row is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Rounds of each side.
    pub(crate) rounds: u32,
    /// Length of a timed round.
    pub(crate) length: Duration,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Heartbeats acknowledged after the commit, beside mosquitto → rumqttc → the same store, and beside the database.
    Heartbeats(heartbeats::Options),
    /// Memory of connected idle devices and connects a second, beside mosquitto.
    #[command(visible_aliases = ["idle-memory", "connects"])]
    Connections(connections::Options),
    /// Offers to a connected fleet, beside mosquitto publishing ready-made bytes.
    FanOut(fan_out::Options),
    /// Creation and start of a campaign of a large fleet, and its offers beside the rate that they are given.
    #[command(visible_alias = "campaign-100k")]
    Campaign(campaign::Options),
    /// Reads of an update's progress while reports come in, beside warp answering a constant.
    ProgressReads(progress_reads::Options),
    /// Times of the requests that the requirements bound, while reports come in.
    Latencies(latencies::Options),
    /// An upload with both hashes, beside hashing alone; and its memory.
    Upload(upload::Options),
    /// Start on a database of many devices, beside mosquitto's.
    Start(start::Options),
    /// An automatic rollback: from the deciding report to the offer of the old version.
    Stop(stop::Options),
    /// A campaign that names each of 100,000 devices, beside one that means them by their model. Not among `all`: it takes a while.
    Named(named::Options),
    /// One device's heartbeats out of ten million, and the overview of the fleet. Not among `all`: it takes a minute to fill.
    History(history::Options),
    /// The figures of everything with a million updates, beside warp answering a constant. Not among `all`: it takes a while to fill.
    #[command(name = "statistics", visible_alias = "stats")]
    Stats(statistics::Options),
    /// Heartbeats until they are committed: through the gateway, mosquitto and NATS.
    Brokers(brokers::Options),
    /// Uploads to a bucket and downloads from it, beside the local folder.
    Images(upload::Options),
    /// How soon it works again after PostgreSQL, a broker or NATS was started anew.
    Recovery(recovery::Options),
    /// Offers by two replicas on one PostgreSQL, beside one.
    Replicas(replicas::Options),
    /// Every figure, one after the other.
    All,
    /// The peer of `heartbeats`: takes them from a broker into a store.
    #[command(hide = true)]
    PeerIngest(peers::IngestOptions),
    /// The peer of `progress-reads`: answers a constant.
    #[command(hide = true)]
    PeerConstant,
    /// The S3 server of `images`.
    #[command(hide = true)]
    PeerBucket,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("device-ota-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let plan = Plan {
        rounds: cli.rounds,
        length: Duration::from_secs(cli.seconds),
    };
    let peers = matches!(
        cli.command,
        Command::PeerIngest(_) | Command::PeerConstant | Command::PeerBucket
    );
    if !peers {
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        println!("{cores} cores, shared by the service or its peer and the load generator");
    }
    match cli.command {
        Command::Heartbeats(options) => heartbeats::run(plan, &options),
        Command::Connections(options) => connections::run(plan, &options),
        Command::FanOut(options) => fan_out::run(plan, &options),
        Command::Campaign(options) => campaign::run(plan, &options),
        Command::ProgressReads(options) => progress_reads::run(plan, &options),
        Command::Latencies(options) => latencies::run(plan, &options),
        Command::Upload(options) => upload::run(plan, &options),
        Command::Start(options) => start::run(plan, &options),
        Command::Stop(options) => stop::run(plan, &options),
        Command::Named(options) => named::run(plan, &options),
        Command::History(options) => history::run(plan, &options),
        Command::Stats(options) => statistics::run(plan, &options),
        Command::Brokers(options) => brokers::run(plan, &options),
        Command::Images(options) => images::run(plan, &options),
        Command::Recovery(options) => recovery::run(plan, &options),
        Command::Replicas(options) => replicas::run(plan, &options),
        Command::All => all(plan),
        Command::PeerIngest(options) => peers::ingest(&options),
        Command::PeerConstant => peers::constant(),
        Command::PeerBucket => peers::bucket(),
    }
}

fn all(plan: Plan) -> anyhow::Result<()> {
    for database in [Engine::Sqlite, Engine::Postgres] {
        heartbeats::run(
            plan,
            &heartbeats::Options {
                database,
                ..heartbeats::Options::default()
            },
        )?;
    }
    connections::run(plan, &connections::Options::default())?;
    fan_out::run(plan, &fan_out::Options::default())?;
    campaign::run(plan, &campaign::Options::default())?;
    progress_reads::run(plan, &progress_reads::Options::default())?;
    latencies::run(plan, &latencies::Options::default())?;
    upload::run(plan, &upload::Options::default())?;
    start::run(plan, &start::Options::default())?;
    stop::run(plan, &stop::Options::default())?;
    brokers::run(plan, &brokers::Options::default())?;
    images::run(plan, &upload::Options::default())?;
    recovery::run(plan, &recovery::Options::default())?;
    replicas::run(plan, &replicas::Options::default())
}
