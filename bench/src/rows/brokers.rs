//! Heartbeats with `QoS` 1 until they are committed: through the gateway, through mosquitto, and through NATS, each time by the
//! same service.
//!
//! The gateway acknowledges what is committed; brokers do before that, so behind them what the database holds counts. So many are
//! under way at most, on either way.

use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::recovery::{device, heard};
use super::runtime;
use super::stream::{Commits, Side, links};
use crate::Plan;
use crate::fleet::Database;
use crate::look::Look;
use crate::mqtt::Target;
use crate::nats::{Nats, Ports};
use crate::peers::Mosquitto;
use crate::process::Running;
use crate::service::{Beside, Service};
use crate::stats::{Series, Target as Wanted, ratio, real, title};

/// Time in which what a first device has said comes to rest.
const SETTLE: Duration = Duration::from_secs(2);

/// What is sent.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Connected devices.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) connections: u16,
    /// Heartbeats that each of them sends in one piece.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) window: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 500,
            window: 16,
        }
    }
}

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    title(&format!(
        "heartbeats, QoS 1, until they are committed; SQLite, {} connections, {} under way each, {} s a round",
        options.connections,
        options.window,
        plan.length.as_secs()
    ));
    runtime()?.block_on(measure(plan, options))
}

async fn measure(plan: Plan, options: &Options) -> anyhow::Result<()> {
    let mut sides = Vec::new();
    for way in [Way::Gateway, Way::Mosquitto, Way::Nats] {
        let folder = tempfile::tempdir()?;
        let side = open(way, folder.path(), options).await?;
        let name = way.described();
        let rate = Series::new(name, "messages/s");
        let cpu = Series::new(format!("{name}: processor time"), "µs/message");
        sides.push((name, side, rate, cpu, folder));
    }
    for _ in 0..plan.rounds {
        for (_, side, rate, cpu, _) in &mut sides {
            let before = side.cpu_seconds()?;
            let round = side.round(plan.length, options.window).await?;
            rate.push(round.rate());
            cpu.push((side.cpu_seconds()? - before) * 1e6 / real(round.messages));
        }
    }
    for (_, _, rate, cpu, _) in &sides {
        rate.print();
        cpu.print();
    }
    if let [(_, _, gateway, _, _), brokers @ ..] = sides.as_slice() {
        for (name, _, rate, _, _) in brokers {
            ratio(
                &format!("gateway / {name}"),
                gateway,
                rate,
                Wanted::AtLeast(1.0),
            );
        }
    }
    Ok(())
}

/// The way of a report to the service.
#[derive(Debug, Clone, Copy)]
enum Way {
    Gateway,
    Mosquitto,
    Nats,
}

impl Way {
    const fn described(self) -> &'static str {
        match self {
            Self::Gateway => "the gateway",
            Self::Mosquitto => "mosquitto",
            Self::Nats => "NATS",
        }
    }

    /// Starts the broker, if there is one on the way; where devices connect to it.
    fn broker(self, folder: &Path) -> anyhow::Result<Option<(Running, std::net::SocketAddr)>> {
        Ok(match self {
            Self::Gateway => None,
            Self::Mosquitto => {
                let mosquitto = Mosquitto::start(folder, None)?;
                Some((mosquitto.process, mosquitto.addr))
            }
            Self::Nats => {
                let nats = Nats::start(folder, Ports::free()?)?;
                Some((nats.process, nats.mqtt))
            }
        })
    }
}

async fn open(way: Way, folder: &Path, options: &Options) -> anyhow::Result<Side> {
    let database = Database::file_in(folder);
    Service::make_keys(folder, &database.url())?;
    database.fill(options.connections.into()).await?;
    let (processes, broker): (Vec<_>, Vec<_>) = way.broker(folder)?.into_iter().unzip();
    let broker = broker.first().copied();
    let beside = Beside {
        broker,
        ..Beside::default()
    };
    let service = Service::start_beside(folder, &database.url(), &beside)?;
    let (target, commits) = match broker {
        None => (Target::of_devices(service.mqtt), None),
        Some(broker) => {
            let target = Target::open_to_all(broker);
            let mut look = Look::into(&database).await?;
            // The service subscribes before it hears anything.
            heard(&device(&target)?, &mut look).await?;
            tokio::time::sleep(SETTLE).await;
            let room = usize::from(options.connections) * usize::from(options.window);
            let commits = Commits::of(room);
            commits.watch(look).await?;
            (target, Some(commits))
        }
    };
    Ok(Side {
        processes,
        connections: links(&target, options.connections, options.window)?,
        commits,
        service: Some(service),
    })
}
