//! Connected idle devices: how fast they come in with their passwords, and what each costs in memory. The generator fills a core, so
//! that in one form the server is held to a part of its own.

use std::time::{Duration, Instant};

use clap::Args;

use super::runtime;
use crate::Plan;
use crate::cores::Cores;
use crate::fleet::{self, Database};
use crate::mqtt::{self, Target};
use crate::peers::{Mosquitto, password_file};
use crate::process::{Running, own_cpu_seconds};
use crate::service::Service;
use crate::share::Share;
use crate::stats::{Series, Target as Wanted, ratio, real, title, verdict};

/// Connections opened at the same time: mosquitto lets 100 wait, and those beyond lose a second.
const OPENING: usize = 64;
/// Percent of its core that a server may have where the generator, which takes as long for a connection as either, shall not be
/// what is measured.
const HELD: u32 = 40;
/// Time after which a server has done what a change of its connections led to.
const SETTLE: Duration = Duration::from_secs(2);

/// How many.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Devices.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(100..=16_000))]
    pub(crate) devices: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self { devices: 10_000 }
    }
}

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let devices = options.devices;
    for (cores, percent) in [
        (Cores::Apart, None),
        (Cores::Shared, None),
        (Cores::Apart, Some(HELD)),
    ] {
        let held = percent.map(|percent| format!(", of which the server may have {percent} %"));
        title(&format!(
            "connections with passwords, {devices} devices, then subscribed and idle; SQLite; {}{}",
            cores.described(),
            held.unwrap_or_default(),
        ));
        if let Some(Err(error)) = percent.map(Share::of) {
            println!("  LEFT OUT: {error:#}");
            continue;
        }
        runtime.block_on(measure(plan, devices.into(), cores, percent))?;
    }
    Ok(())
}

async fn measure(
    plan: Plan,
    devices: usize,
    cores: Cores,
    percent: Option<u32>,
) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let database = Database::file_in(folder.path());
    Service::make_keys(folder.path(), &database.url())?;
    database.fill(devices).await?;
    let passwords = password_file(folder.path(), devices)?;
    let mut ours = Figures::new("service");
    let mut theirs = Figures::new("mosquitto");
    for _ in 0..plan.rounds {
        // A share goes after what runs in it.
        let share = percent.map(Share::of).transpose()?;
        let service = cores.start(|| Service::start(folder.path(), &database.url()))?;
        hold(share.as_ref(), &service.process)?;
        ours.take(&Target::of_devices(service.mqtt), &service.process, devices)
            .await?;
        drop(service);
        let mosquitto = cores.start(|| Mosquitto::start(folder.path(), Some(&passwords)))?;
        hold(share.as_ref(), &mosquitto.process)?;
        theirs
            .take(
                &Target::of_devices(mosquitto.addr),
                &mosquitto.process,
                devices,
            )
            .await?;
    }
    for figures in [&ours, &theirs] {
        figures.connects.print();
        figures.cpu.print();
        figures.own.print();
        figures.memory.print();
        figures.marginal.print();
        figures.base.print();
    }
    ratio(
        "connects a second, service / mosquitto",
        &ours.connects,
        &theirs.connects,
        Wanted::AtLeast(1.0),
    );
    verdict(
        "memory a device, all growth",
        ours.memory.median(),
        "KiB",
        Wanted::AtMost(4.0),
    );
    verdict(
        "memory a device, second half",
        ours.marginal.median(),
        "KiB",
        Wanted::AtMost(4.0),
    );
    Ok(())
}

fn hold(share: Option<&Share>, server: &Running) -> anyhow::Result<()> {
    share.map_or(Ok(()), |share| share.hold(server.id()))
}

struct Figures {
    connects: Series,
    /// Processor time of the server.
    cpu: Series,
    /// Processor time of the generator.
    own: Series,
    memory: Series,
    marginal: Series,
    base: Series,
}

impl Figures {
    fn new(name: &str) -> Self {
        Self {
            connects: Series::new(format!("{name}: connects"), "per second"),
            cpu: Series::new(format!("{name}: processor time"), "µs a connect"),
            own: Series::new(
                format!("{name}: processor time of the generator"),
                "µs a connect",
            ),
            memory: Series::new(format!("{name}: growth / devices"), "KiB a device"),
            marginal: Series::new(format!("{name}: growth of the second half"), "KiB a device"),
            base: Series::new(format!("{name}: resident before"), "KiB"),
        }
    }

    /// Half of the devices, then the other half: the first half also fills the caches of the database.
    async fn take(
        &mut self,
        target: &Target,
        process: &Running,
        devices: usize,
    ) -> anyhow::Result<()> {
        tokio::time::sleep(SETTLE).await;
        let mut resident = vec![process.memory_kib("VmRSS")?];
        let (mut open, mut took) = (Vec::with_capacity(devices), Duration::ZERO);
        let (mut busy, mut own) = (0.0, 0.0);
        let names = fleet::names(devices);
        for half in names.chunks(devices.div_ceil(2)) {
            let (began, before) = (Instant::now(), (process.cpu_seconds()?, own_cpu_seconds()?));
            let opened = mqtt::open_each(target, half.to_vec(), OPENING)?;
            took += began.elapsed();
            busy += process.cpu_seconds()? - before.0;
            own += own_cpu_seconds()? - before.1;
            let opened = mqtt::adopt_all(opened)?;
            open.extend(mqtt::subscribe_all(opened, OPENING).await?);
            tokio::time::sleep(SETTLE).await;
            resident.push(process.memory_kib("VmRSS")?);
        }
        let &[before, half, after] = resident.as_slice() else {
            anyhow::bail!("three readings")
        };
        self.connects
            .push(real(devices as u64) / took.as_secs_f64());
        self.cpu.push(busy * 1e6 / real(devices as u64));
        self.own.push(own * 1e6 / real(devices as u64));
        self.memory
            .push(real(after.saturating_sub(before)) / real(devices as u64));
        self.marginal
            .push(real(after.saturating_sub(half)) / real(devices as u64 / 2));
        self.base.push(real(before));
        Ok(())
    }
}
