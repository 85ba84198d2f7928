//! Offers to a connected fleet by two replicas on one `PostgreSQL`, each with half of the devices at its gateway, beside one replica
//! with all of them: from the start of the campaign to the last receipt. Once with all of it sharing the machine, and once with
//! each replica held to a part of a processor, as if on a small machine of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use clap::Args;

use super::fan_out::{Receivers, SETTLE, campaign};
use super::runtime;
use crate::Plan;
use crate::fleet;
use crate::http::Admin;
use crate::mqtt::Target;
use crate::peers::start_bucket;
use crate::postgres::Server;
use crate::service::{Beside, Service};
use crate::share::Share;
use crate::stats::{Series, Target as Wanted, ratio, real, title};

/// What of a data folder all replicas share.
const SHARED: [&str; 2] = ["keys", "trust"];

/// How many.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Connected devices; each round offers once to each.
    #[arg(long, default_value_t = 16_000, value_parser = clap::value_parser!(u16).range(100..=17_000))]
    pub(crate) devices: u16,
    /// Percent of one processor that each replica may have in the second form; 0 leaves that out. Needs root.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) percent: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            devices: 16_000,
            percent: 20,
        }
    }
}

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    let held = Some(options.percent).filter(|percent| *percent > 0);
    for percent in [None].into_iter().chain(held.map(Some)) {
        let described = match percent {
            None => "all on one machine".to_owned(),
            Some(percent) => format!("each replica held to {percent} % of one processor"),
        };
        title(&format!(
            "offers to {} devices by one replica and by two; PostgreSQL; {described}",
            options.devices
        ));
        if let Some(Err(error)) = percent.map(Share::of) {
            println!("  LEFT OUT: {error:#}");
            continue;
        }
        runtime()?.block_on(measure(plan, options.devices.into(), percent))?;
    }
    Ok(())
}

async fn measure(plan: Plan, devices: usize, percent: Option<u32>) -> anyhow::Result<()> {
    let mut server = Server::start();
    let mut one = Series::new("one replica", "offers/s");
    let mut two = Series::new("two replicas", "offers/s");
    for round in 0..plan.rounds {
        for (replicas, rate) in [(1, &mut one), (2, &mut two)] {
            let purpose = format!("replicas_{round}_{replicas}");
            let round = Round {
                replicas,
                devices,
                percent,
            };
            rate.push(round.offers_a_second(&mut server, &purpose).await?);
        }
    }
    one.print();
    two.print();
    ratio("two replicas / one", &two, &one, Wanted::AtLeast(1.4));
    server.clean_up().await
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Round {
    replicas: usize,
    devices: usize,
    /// Of one processor, for each replica.
    percent: Option<u32>,
}

impl Round {
    async fn offers_a_second(self, server: &mut Server, purpose: &str) -> anyhow::Result<f64> {
        let Self {
            replicas,
            devices,
            percent,
        } = self;
        let database = server.database(purpose).await?;
        let folder = tempfile::tempdir()?;
        let (_bucket, flags) = start_bucket(folder.path())?;
        let beside = Beside {
            flags,
            ..Beside::default()
        };
        let first = folder.path().join("0");
        fs::create_dir(&first)?;
        Service::make_keys(&first, &database.url())?;
        database.fill(devices).await?;
        let names = fleet::names(devices);
        // Shares go after what runs in them.
        let mut shares = Vec::new();
        let (mut services, mut fleets) = (Vec::new(), Vec::new());
        for (number, names) in names.chunks(devices.div_ceil(replicas)).enumerate() {
            let own = folder.path().join(number.to_string());
            if number > 0 {
                share(&first, &own)?;
            }
            let service = Service::start_beside(&own, &database.url(), &beside)?;
            let target = Target::of_devices(service.mqtt);
            fleets.push(Receivers::connect(&target, names.to_vec()).await?);
            services.push(service);
        }
        let Some(service) = services.first() else {
            anyhow::bail!("no replica")
        };
        let (addr, key) = (service.http, service.key.clone());
        let campaign = campaign(&Admin { addr, key: &key }, devices)?;
        for service in &services {
            if let Some(percent) = percent {
                let share = Share::of(percent)?;
                share.hold(service.process.id())?;
                shares.push(share);
            }
        }
        tokio::time::sleep(SETTLE).await;
        let began = Instant::now();
        // On a thread of its own: this one has offers to take.
        let start = tokio::task::spawn_blocking(move || {
            let path = format!("/api/v1/ota/campaigns/{campaign}/start");
            Admin { addr, key: &key }.post(&path, None)
        });
        for fleet in fleets {
            fleet.all(began).await?;
        }
        let took = began.elapsed();
        start.await??;
        Ok(real(devices as u64) / took.as_secs_f64())
    }
}

/// A data folder for another replica, with the keys of the first.
fn share(first: &Path, own: &Path) -> anyhow::Result<()> {
    for part in SHARED {
        let (from, to) = (first.join(part), own.join(part));
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    for folder in [own.to_owned(), own.join("keys")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}
