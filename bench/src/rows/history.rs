//! Reading one device's heartbeats out of a long history, the fleet at a glance, and letting the history go; through the
//! service's own store.

use std::time::Instant;

use clap::Args;
use device_ota_domain::device::DeviceKey;
use device_ota_domain::page::Page;
use device_ota_engine::ports::Store;
use device_ota_engine::ports::telemetry::HeartbeatQuery;
use device_ota_engine::ports::telemetry::{DeviceFilter, HeartbeatRow};
use jiff::Timestamp;

use super::runtime;
use crate::Plan;
use crate::fleet::{Database, Engine};
use crate::mqtt::PAYLOAD;
use crate::postgres::Server;
use crate::stats::{Series, Target as Wanted, real, title, verdict};

/// Heartbeats of one transaction.
const BATCH: u64 = 4_096;
/// Reads of a round.
const READS: u64 = 200;
/// A prime: steps through all devices, none next to the one before.
const STRIDE: u64 = 7_919;

/// How much.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Database.
    #[arg(long, value_enum, default_value_t = Engine::Sqlite)]
    pub(crate) database: Engine,
    /// Heartbeats in the history.
    #[arg(long, default_value_t = 10_000_000)]
    pub(crate) heartbeats: u64,
    /// Registered devices, all of which speak but for the first.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub(crate) devices: u32,
}

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    title(&format!(
        "history of {} heartbeats of {} devices; {:?}",
        options.heartbeats, options.devices, options.database
    ));
    runtime()?.block_on(measure(plan, options))
}

async fn measure(plan: Plan, options: &Options) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = (options.database == Engine::Postgres).then(Server::start);
    let database = match &mut server {
        Some(server) => server.database("history").await?,
        None => Database::file_in(folder.path()),
    };
    database.fill(usize::try_from(options.devices)?).await?;
    let store = database.open().await?;
    let insert = fill(store.as_ref(), options).await?;
    let mut page = Series::new("the newest 50 of one device", "ms");
    let mut none = Series::new("of a device that has none", "ms");
    let mut fleet = Series::new("overview of all devices", "ms");
    for round in 0..u64::from(plan.rounds) {
        for read in 0..READS {
            let device = 2 + (round * READS + read) * STRIDE % u64::from(options.devices - 1);
            let (rows, took) = read_page(store.as_ref(), device).await?;
            anyhow::ensure!(rows > 0, "device {device} has no heartbeats");
            page.push(took);
        }
        none.push(read_page(store.as_ref(), 1).await?.1);
        let began = Instant::now();
        store.fleet(&DeviceFilter::default(), 20.0).await?;
        fleet.push(began.elapsed().as_secs_f64() * 1e3);
    }
    for series in [&page, &none, &fleet] {
        series.print();
    }
    page.judge(Wanted::AtMost(100.0));
    none.judge(Wanted::AtMost(100.0));
    fleet.judge(Wanted::AtMost(200.0));
    let prune = let_go(store.as_ref(), options).await?;
    verdict(
        "let go / inserted",
        prune / insert,
        "",
        Wanted::AtLeast(1.0),
    );
    drop(store);
    match server {
        Some(server) => server.clean_up().await,
        None => Ok(()),
    }
}

/// Writes the history as ingest does, and indexes it as upkeep does; answers the rows inserted a second.
async fn fill(store: &dyn Store, options: &Options) -> anyhow::Result<f64> {
    let (mut insert, mut index) = (0.0, 0.0);
    let (mut written, mut segments) = (0_u64, 0_u64);
    while written < options.heartbeats {
        let rows: Vec<HeartbeatRow> = (written..written + BATCH)
            .map(|n| beat(n, u64::from(options.devices)))
            .collect::<anyhow::Result<_>>()?;
        let began = Instant::now();
        let mut tx = store.begin().await?;
        tx.insert_heartbeats(&rows).await?;
        tx.commit().await?;
        insert += began.elapsed().as_secs_f64();
        written += BATCH;
        let began = Instant::now();
        while store.index_heartbeats(Timestamp::UNIX_EPOCH, 0).await? {
            segments += 1;
        }
        index += began.elapsed().as_secs_f64();
    }
    println!(
        "  inserted at {:.0} rows/s, indexed at {:.0} rows/s in {segments} segments",
        real(written) / insert,
        real(written) / index,
    );
    Ok(real(written) / insert)
}

/// Deletes all of it as upkeep does when it is too old; answers the rows a second.
async fn let_go(store: &dyn Store, options: &Options) -> anyhow::Result<f64> {
    let (began, mut segments) = (Instant::now(), 0_u64);
    while store
        .prune_heartbeats(Timestamp::MAX, Timestamp::MAX)
        .await?
    {
        segments += 1;
    }
    let rate = real(options.heartbeats) / began.elapsed().as_secs_f64();
    println!("  let go at {rate:.0} rows/s in {segments} segments");
    Ok(rate)
}

fn beat(n: u64, devices: u64) -> anyhow::Result<HeartbeatRow> {
    Ok(HeartbeatRow {
        device: DeviceKey(i64::try_from(2 + n * STRIDE % (devices - 1))?),
        received_at: Timestamp::from_millisecond(i64::try_from(1_700_000_000_000 + n)?)?,
        payload: PAYLOAD.into(),
    })
}

/// How many came, and in how many milliseconds.
async fn read_page(store: &dyn Store, device: u64) -> anyhow::Result<(usize, f64)> {
    let query = HeartbeatQuery {
        device: DeviceKey(i64::try_from(device)?),
        from: None,
        to: None,
    };
    let began = Instant::now();
    let rows = store.heartbeats(&query, Page::default()).await?;
    Ok((rows.len(), began.elapsed().as_secs_f64() * 1e3))
}
