//! A campaign of a large fleet, of which some are connected: how long its creation and its start take, and whether its offers go
//! out at the rate that it is given.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use super::fan_out::{Receivers, SETTLE, image};
use super::runtime;
use crate::Plan;
use crate::fleet::{self, Database, Engine};
use crate::http::Admin;
use crate::mqtt::Target;
use crate::postgres::Server;
use crate::service::Service;
use crate::stats::{Series, Target as Wanted, real, title};

/// How many.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Registered devices: all are the campaign's.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub(crate) devices: u32,
    /// Connected ones, spread evenly over the others.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=17_000))]
    pub(crate) connected: u32,
    /// Offers a minute that the campaign may make.
    #[arg(long, default_value_t = 60_000, value_parser = clap::value_parser!(u32).range(60..=1_000_000))]
    pub(crate) per_minute: u32,
    /// In which database.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) database: Engine,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            devices: 100_000,
            connected: 10_000,
            per_minute: 60_000,
            database: Engine::default(),
        }
    }
}

/// What one round took.
struct Round {
    create: Duration,
    start: Duration,
    /// From the first offer that arrived to the last.
    offers: Duration,
}

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    title(&format!(
        "a campaign of {} devices, {} of them connected, {} offers a minute; {:?}",
        options.devices, options.connected, options.per_minute, options.database
    ));
    runtime()?.block_on(measure(plan, options))
}

async fn measure(plan: Plan, options: &Options) -> anyhow::Result<()> {
    let mut create = Series::new("creation: request → answer", "ms");
    let mut start = Series::new("start: request → answer", "ms");
    let mut pace = Series::new("offers a second / the rate", "");
    let mut server = (options.database == Engine::Postgres).then(Server::start);
    for number in 0..plan.rounds {
        let folder = tempfile::tempdir()?;
        let database = match &mut server {
            Some(server) => server.database(&format!("campaign_{number}")).await?,
            None => Database::file_in(folder.path()),
        };
        let took = round(folder.path(), &database, options).await?;
        create.push(took.create.as_secs_f64() * 1e3);
        start.push(took.start.as_secs_f64() * 1e3);
        // The first offer opens the time in which the others go.
        let offers = real(options.connected.saturating_sub(1).into());
        let rate = f64::from(options.per_minute) / 60.0;
        pace.push(offers / took.offers.as_secs_f64() / rate);
    }
    if let Some(server) = server {
        server.clean_up().await?;
    }
    for series in [&create, &start, &pace] {
        series.print();
    }
    create.judge(Wanted::AtMost(100.0));
    start.judge(Wanted::AtMost(1_000.0));
    // Two seconds of the rate may go at once, and the last offers of a fleet do not fill a tick.
    pace.judge(Wanted::AtLeast(0.9));
    let most = 1.0 + 2.0 * f64::from(options.per_minute) / 60.0 / f64::from(options.connected);
    pace.judge(Wanted::AtMost(most + 0.05));
    Ok(())
}

async fn round(folder: &Path, database: &Database, options: &Options) -> anyhow::Result<Round> {
    let devices = usize::try_from(options.devices)?;
    let connected = usize::try_from(options.connected)?;
    anyhow::ensure!(connected <= devices, "more are connected than there are");
    Service::make_keys(folder, &database.url())?;
    database.fill(devices).await?;
    let service = Service::start(folder, &database.url())?;
    let every = devices / connected;
    let names = fleet::names(devices).into_iter().step_by(every);
    let names: Vec<String> = names.take(connected).collect();
    let receivers = Receivers::connect(&Target::of_devices(service.mqtt), names).await?;
    let admin = Admin {
        addr: service.http,
        key: &service.key,
    };
    let firmware = image(&admin)?;
    tokio::time::sleep(SETTLE).await;
    let began = Instant::now();
    let campaign = admin.post(
        "/api/v1/ota/campaigns",
        Some(&json!({
            "name": "bench", "firmware_id": firmware, "deployment_strategy": "immediate", "auto_rollback": false,
            "max_concurrent_updates": devices, "batch_size": devices, "rate": {"per_minute": options.per_minute},
        })),
    )?;
    let create = began.elapsed();
    let id = campaign.get("campaign_id").and_then(Value::as_str);
    let path = format!(
        "/api/v1/ota/campaigns/{}/start",
        id.context("no campaign_id")?
    );
    let began = Instant::now();
    // On a thread of its own: this one has offers to take.
    let (addr, key) = (service.http, service.key.clone());
    let start = tokio::task::spawn_blocking(move || {
        Admin { addr, key: &key }.post(&path, None)?;
        anyhow::Ok(began.elapsed())
    });
    let took = receivers.all(began).await?;
    Ok(Round {
        create,
        start: start.await??,
        offers: took.spread,
    })
}
