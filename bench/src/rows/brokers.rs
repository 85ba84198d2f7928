//! Heartbeats with `QoS` 1 until they are committed: through the gateway, through mosquitto, and through NATS, each time by the
//! same service.
//!
//! What counts is what the database holds: brokers acknowledge before that. So many are under way at most, on either way.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::runtime;
use crate::Plan;
use crate::fleet::{self, Database};
use crate::look::Look;
use crate::mqtt::{self, Connection, Target, take_acks};
use crate::nats::{Nats, Ports};
use crate::peers::Mosquitto;
use crate::process::Running;
use crate::service::{Beside, Service};
use crate::stats::{Series, Target as Wanted, ratio, real, title};

/// Connections opened at the same time.
const OPENING: usize = 64;
/// How often the database is asked how far it is.
const POLL: Duration = Duration::from_millis(2);
/// How long what is under way may take to be committed.
const PATIENCE: Duration = Duration::from_mins(1);

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
        let side = Side::open(way, folder.path(), options).await?;
        let (rate, cpu) = (
            Series::new(way.described(), "messages/s"),
            Series::new(format!("{}: processor time", way.described()), "µs/message"),
        );
        sides.push((side, folder, rate, cpu));
    }
    for _ in 0..plan.rounds {
        for (side, _, rate, cpu) in &mut sides {
            let before = side.cpu_seconds()?;
            let (messages, took) = side.round(plan.length, options).await?;
            rate.push(real(messages) / took.as_secs_f64());
            cpu.push((side.cpu_seconds()? - before) * 1e6 / real(messages));
        }
    }
    for (_, _, rate, cpu) in &sides {
        rate.print();
        cpu.print();
    }
    if let [(_, _, gateway, _), brokers @ ..] = sides.as_slice() {
        for (side, _, rate, _) in brokers {
            let what = format!("gateway / {}", side.way.described());
            ratio(&what, gateway, rate, Wanted::AtLeast(1.0));
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
}

/// A service, the broker before it, its devices, and a look into its database. The fields end in this order.
struct Side {
    way: Way,
    links: Vec<Link>,
    history: Look,
    service: Service,
    mosquitto: Option<Mosquitto>,
    nats: Option<Nats>,
}

/// One device and the bytes that it sends over and over.
struct Link {
    connection: Connection,
    packets: Vec<u8>,
    carried: usize,
}

impl Side {
    async fn open(way: Way, folder: &Path, options: &Options) -> anyhow::Result<Self> {
        let database = Database::file_in(folder);
        Service::make_keys(folder, &database.url())?;
        database.fill(options.connections.into()).await?;
        let (mut mosquitto, mut nats) = (None, None);
        let broker = match way {
            Way::Gateway => None,
            Way::Mosquitto => Some(mosquitto.insert(Mosquitto::start(folder, None)?).addr),
            Way::Nats => Some(nats.insert(Nats::start(folder, Ports::free()?)?).mqtt),
        };
        let beside = Beside {
            broker,
            ..Beside::default()
        };
        let service = Service::start_beside(folder, &database.url(), &beside)?;
        let target = match broker {
            Some(_) => Target::open_to_all(service.mqtt),
            None => Target::of_devices(service.mqtt),
        };
        let open = mqtt::open_all(&target, fleet::names(options.connections.into()), OPENING)?;
        let links = open.into_iter().map(|(name, connection)| {
            let topic = format!("ota/v1/{name}/up/heartbeat");
            let packets = (1..=options.window)
                .flat_map(|id| mqtt::publish(&topic, id, mqtt::PAYLOAD.as_bytes()))
                .collect();
            Link {
                connection,
                packets,
                carried: 0,
            }
        });
        let mut side = Self {
            way,
            links: links.collect(),
            history: Look::into(&database).await?,
            service,
            mosquitto,
            nats,
        };
        side.heard().await?;
        Ok(side)
    }

    /// Waits until the service takes what devices say: behind a broker, a subscription comes first.
    async fn heard(&mut self) -> anyhow::Result<()> {
        let (asked, before) = (Instant::now(), self.history.heartbeats().await?);
        while self.history.heartbeats().await? == before {
            anyhow::ensure!(asked.elapsed() < PATIENCE, "the service hears nobody");
            let first = self.links.first().context("no device")?;
            let one = mqtt::publish(
                "ota/v1/bench-000000/up/heartbeat",
                1,
                mqtt::PAYLOAD.as_bytes(),
            );
            mqtt::write_whole(&first.connection.stream, &one).await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for link in &mut self.links {
            take_acks(&link.connection.stream, &mut link.carried)?;
        }
        Ok(())
    }

    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let mosquitto = self.mosquitto.as_ref().map(|mosquitto| &mosquitto.process);
        let servers = std::iter::once(&self.service.process).chain(mosquitto);
        let nats = self.nats.as_ref().map_or(Ok(0.0), Nats::cpu_seconds)?;
        let servers: f64 = servers
            .map(Running::cpu_seconds)
            .sum::<anyhow::Result<_>>()?;
        Ok(servers + nats)
    }

    /// Sends for `length`, then waits until all of it is committed. Answers how many that were, and the time.
    async fn round(
        &mut self,
        length: Duration,
        options: &Options,
    ) -> anyhow::Result<(u64, Duration)> {
        let window = u64::from(options.window);
        let before = self.history.heartbeats().await?;
        let room = Arc::new(Semaphore::new(self.links.len()));
        let began = Instant::now();
        let mut sending = JoinSet::new();
        for link in self.links.drain(..) {
            sending.spawn(link.send_until(began + length, options.window, room.clone()));
        }
        let (mut sent, mut freed) = (0, 0);
        loop {
            let done = (self.history.heartbeats().await? - before) / window;
            room.add_permits(usize::try_from(done - freed)?);
            freed = done;
            while let Some(link) = sending.try_join_next() {
                let (link, bursts) = link??;
                self.links.push(link);
                sent += bursts;
            }
            if sending.is_empty() && freed >= sent {
                return Ok((sent * window, began.elapsed()));
            }
            anyhow::ensure!(
                began.elapsed() < length + PATIENCE,
                "{} of {} were committed in time",
                freed * window,
                sent * window
            );
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Link {
    /// Sends a burst whenever the last one is acknowledged and there is room for one more, until `end`; answers how many.
    async fn send_until(
        mut self,
        end: Instant,
        window: u16,
        room: Arc<Semaphore>,
    ) -> anyhow::Result<(Self, u64)> {
        let mut bursts = 0;
        while Instant::now() < end {
            let Ok(permit) = tokio::time::timeout_at(end.into(), room.acquire()).await else {
                break;
            };
            permit?.forget();
            mqtt::write_whole(&self.connection.stream, &self.packets).await?;
            let mut acknowledged = 0;
            while acknowledged < u64::from(window) {
                self.connection.stream.readable().await?;
                acknowledged += take_acks(&self.connection.stream, &mut self.carried)?;
            }
            bursts += 1;
        }
        Ok((self, bursts))
    }
}
