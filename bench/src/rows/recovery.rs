//! How soon the service works again after the servers around it were started anew: `PostgreSQL`, a broker, NATS. The time begins when
//! the server takes connections again.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use device_ota_store::testing::{Durability, PrivateServer};
use tokio::io::AsyncReadExt as _;

use super::fan_out::image;
use super::runtime;
use crate::Plan;
use crate::fleet::{self, Database};
use crate::http::Admin;
use crate::look::Look;
use crate::mqtt::{self, Connection, PAYLOAD, PUBACK_BYTES, Target};
use crate::nats::{Nats, Ports};
use crate::peers::Mosquitto;
use crate::service::{Beside, Service};
use crate::stats::{Series, Target as Wanted, title};

/// How long each server is away.
const AWAY: Duration = Duration::from_secs(5);
/// How often it is looked whether it is over.
const POLL: Duration = Duration::from_millis(5);
/// How long it may take at most.
const PATIENCE: Duration = Duration::from_mins(1);
/// What the requirements allow, seconds.
const BOUND: f64 = 30.0;

/// Nothing can be chosen.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Options {}

pub(crate) fn run(plan: Plan, Options {}: &Options) -> anyhow::Result<()> {
    title(&format!(
        "recovery after a server was away for {} s",
        AWAY.as_secs()
    ));
    let mut postgres = Series::new("PostgreSQL → a report that waited is acknowledged", "s");
    let mut broker = Series::new("mosquitto → a report through it is committed", "s");
    let mut nats = Series::new("NATS → an event that waited is taken", "s");
    runtime()?.block_on(async {
        for _ in 0..plan.rounds {
            postgres.push(after_postgres().await?.as_secs_f64());
            broker.push(after_broker().await?.as_secs_f64());
            nats.push(after_nats().await?.as_secs_f64());
        }
        anyhow::Ok(())
    })?;
    for series in [&postgres, &broker, &nats] {
        series.print();
        series.judge(Wanted::AtMost(BOUND));
    }
    Ok(())
}

async fn after_postgres() -> anyhow::Result<Duration> {
    let folder = tempfile::tempdir()?;
    let server = PrivateServer::start(Durability::On);
    let database = Database::from_url(server.url());
    Service::make_keys(folder.path(), &database.url())?;
    database.fill(1).await?;
    let service = Service::start(folder.path(), &database.url())?;
    let mut device = device(&Target::of_devices(service.mqtt))?;
    say(&device, 1).await?;
    acknowledged(&mut device).await?;
    server.stop();
    say(&device, 2).await?;
    tokio::time::sleep(AWAY).await;
    server.start_again();
    let began = Instant::now();
    acknowledged(&mut device).await?;
    Ok(began.elapsed())
}

async fn after_broker() -> anyhow::Result<Duration> {
    let folder = tempfile::tempdir()?;
    let database = Database::file_in(folder.path());
    Service::make_keys(folder.path(), &database.url())?;
    database.fill(1).await?;
    let mosquitto = Mosquitto::start(folder.path(), None)?;
    let addr = mosquitto.addr;
    let beside = Beside {
        broker: Some(addr),
        ..Beside::default()
    };
    let _service = Service::start_beside(folder.path(), &database.url(), &beside)?;
    let mut look = Look::into(&database).await?;
    let target = Target::open_to_all(addr);
    heard(&device(&target)?, &mut look).await?;
    drop(mosquitto);
    tokio::time::sleep(AWAY).await;
    let _mosquitto = Mosquitto::start_at(addr, folder.path(), None)?;
    let began = Instant::now();
    heard(&device(&target)?, &mut look).await?;
    Ok(began.elapsed())
}

async fn after_nats() -> anyhow::Result<Duration> {
    let folder = tempfile::tempdir()?;
    let database = Database::file_in(folder.path());
    let ports = Ports::free()?;
    let nats = Nats::start(folder.path(), ports)?;
    let beside = Beside {
        flags: vec![("--nats-url", nats.url.clone())],
        ..Beside::default()
    };
    let service = Service::start_beside(folder.path(), &database.url(), &beside)?;
    drop(nats);
    image(&Admin {
        addr: service.http,
        key: &service.key,
    })?;
    tokio::time::sleep(AWAY).await;
    let _nats = Nats::start(folder.path(), ports)?;
    let began = Instant::now();
    let mut look = Look::into(&database).await?;
    while !look.nats_has_all().await? {
        anyhow::ensure!(began.elapsed() < PATIENCE, "NATS gets no event");
        tokio::time::sleep(POLL).await;
    }
    Ok(began.elapsed())
}

/// The first device of the fleet.
pub(super) fn device(target: &Target) -> anyhow::Result<Connection> {
    let name = fleet::names(1).into_iter().next().context("a name")?;
    Connection::open(target, &name)
}

async fn say(device: &Connection, id: u16) -> anyhow::Result<()> {
    let topic = "ota/v1/bench-000000/up/heartbeat";
    let heartbeat = mqtt::publish(topic, id, PAYLOAD.as_bytes());
    Ok(mqtt::write_whole(&device.stream, &heartbeat).await?)
}

async fn acknowledged(device: &mut Connection) -> anyhow::Result<()> {
    let mut ack = [0; PUBACK_BYTES];
    tokio::time::timeout(PATIENCE, device.stream.read_exact(&mut ack)).await??;
    Ok(())
}

/// Says something again and again until the service has it.
pub(super) async fn heard(device: &Connection, look: &mut Look) -> anyhow::Result<()> {
    let (asked, before) = (Instant::now(), look.heartbeats().await?);
    for id in (1..=u16::MAX).cycle() {
        say(device, id).await?;
        tokio::time::sleep(POLL).await;
        if look.heartbeats().await? > before {
            break;
        }
        anyhow::ensure!(asked.elapsed() < PATIENCE, "the service hears nobody");
    }
    Ok(())
}
