//! Start on a database of many devices: from the start of the process to an answer over HTTP and a CONNACK, beside
//! mosquitto's to a CONNACK with the same devices in its password file.

use std::time::Instant;

use clap::Args;

use super::runtime;
use crate::Plan;
use crate::fleet::Database;
use crate::http;
use crate::mqtt::{Connection, Target};
use crate::peers::{Mosquitto, password_file};
use crate::service::Service;
use crate::stats::{Series, Target as Wanted, title};

/// How many.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Registered devices.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) devices: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { devices: 100_000 }
    }
}

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    title(&format!(
        "start with {} registered devices; SQLite",
        options.devices
    ));
    runtime()?.block_on(measure(plan, usize::try_from(options.devices)?))
}

async fn measure(plan: Plan, devices: usize) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let database = Database::file_in(folder.path());
    Service::make_keys(folder.path(), &database.url())?;
    database.fill(devices).await?;
    let passwords = password_file(folder.path(), devices)?;
    let mut ours = Series::new("service: to HTTP answer and CONNACK", "ms");
    let mut theirs = Series::new("mosquitto, same devices: to CONNACK", "ms");
    let mut empty = Series::new("mosquitto, no password file: to CONNACK", "ms");
    for _ in 0..plan.rounds {
        let began = Instant::now();
        let service = Service::start(folder.path(), &database.url())?;
        anyhow::ensure!(
            http::is_ok(service.http, "/health")?,
            "/health did not answer 200"
        );
        connack(&Target::of_devices(service.mqtt))?;
        ours.push(began.elapsed().as_secs_f64() * 1e3);
        drop(service);
        let began = Instant::now();
        let mosquitto = Mosquitto::start(folder.path(), None)?;
        connack(&Target::open_to_all(mosquitto.addr))?;
        empty.push(began.elapsed().as_secs_f64() * 1e3);
        drop(mosquitto);
        let began = Instant::now();
        let mosquitto = Mosquitto::start(folder.path(), Some(&passwords))?;
        connack(&Target::of_devices(mosquitto.addr))?;
        theirs.push(began.elapsed().as_secs_f64() * 1e3);
    }
    for series in [&ours, &theirs, &empty] {
        series.print();
    }
    ours.judge(Wanted::AtMost(150.0));
    Ok(())
}

fn connack(target: &Target) -> anyhow::Result<()> {
    Connection::open(target, "bench-000000").map(drop)
}
