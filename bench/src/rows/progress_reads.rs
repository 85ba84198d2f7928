//! Reads of an update's progress over HTTP connections that are kept, while reports come in over MQTT; beside warp
//! answering a constant to the same requests, under the same stream of reports into the service next to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::runtime;
use crate::Plan;
use crate::fleet::Database;
use crate::http::answer_length;
use crate::load::{Load, offered};
use crate::mqtt::{self, Target};
use crate::peers::start_constant;
use crate::process::Running;
use crate::service::Service;
use crate::stats::{Series, Target as Wanted, ratio, real, title};

/// Of the reports that come in, the share that has to be committed meanwhile.
const COMMITTED_SHARE: f64 = 0.95;
/// Devices that report.
const DEVICES: usize = 1_000;

/// How much.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Connections that read.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(crate) readers: u16,
    /// Reports a second.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1_000..=50_000))]
    pub(crate) reports: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            readers: 32,
            reports: 10_000,
        }
    }
}

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    title(&format!(
        "reads of an update's progress, {} connections, while {} reports a second come in; SQLite",
        options.readers, options.reports
    ));
    runtime()?.block_on(measure(plan, options))
}

async fn measure(plan: Plan, options: &Options) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let database = Database::file_in(folder.path());
    Service::make_keys(folder.path(), &database.url())?;
    database.fill(DEVICES).await?;
    let service = Service::start(folder.path(), &database.url())?;
    let (warp, constant) = start_constant()?;
    let target = Target::of_devices(service.mqtt);
    let updates = offered(&service, &database, DEVICES).await?;
    let paths: Vec<_> = updates
        .iter()
        .map(|update| format!("/api/v1/ota/updates/{}", update.id))
        .collect();
    let requests: Arc<[Vec<u8>]> = paths
        .iter()
        .map(|path| request(path, &service.key))
        .collect();
    let load = Load::start(target, updates, options.reports);
    let mut ours = Side::new("service", service.http);
    let mut theirs = Side::new("warp, a constant", constant);
    load.reach(options.reports).await?;
    for _ in 0..plan.rounds {
        let idle = service.process.cpu_seconds()?;
        theirs
            .take(&warp, &load, &requests, plan.length, options.readers.into())
            .await?;
        theirs.without(0.0);
        // What the reports alone cost the service.
        let reports = service.process.cpu_seconds()? - idle;
        ours.take(
            &service.process,
            &load,
            &requests,
            plan.length,
            options.readers.into(),
        )
        .await?;
        ours.without(reports);
    }
    load.end()?;
    ours.print();
    theirs.print();
    let (reads, constants) = (&ours.reads, &theirs.reads);
    reads.judge(Wanted::AtLeast(10_000.0));
    // Else it was another load than the one that was asked for.
    let reports = COMMITTED_SHARE * real(options.reports);
    ours.reports.judge(Wanted::AtLeast(reports));
    ratio(
        "reads, service / warp",
        reads,
        constants,
        Wanted::AtLeast(0.3),
    );
    Ok(())
}

/// A server that is read from.
struct Side {
    addr: SocketAddr,
    reads: Series,
    reports: Series,
    cpu: Series,
    /// Of the latest round: processor time in seconds, and reads.
    latest: (f64, u64),
}

impl Side {
    fn new(name: &str, addr: SocketAddr) -> Self {
        Self {
            addr,
            reads: Series::new(name, "reads/s"),
            reports: Series::new(format!("{name}: reports committed meanwhile"), "reports/s"),
            cpu: Series::new(format!("{name}: processor time"), "µs/read"),
            latest: (0.0, 0),
        }
    }

    async fn take(
        &mut self,
        process: &Running,
        load: &Load,
        requests: &Arc<[Vec<u8>]>,
        length: Duration,
        readers: usize,
    ) -> anyhow::Result<()> {
        let (began, before, cpu) = (Instant::now(), load.acknowledged(), process.cpu_seconds()?);
        let count = read_for(self.addr, requests, length, readers).await?;
        let took = began.elapsed().as_secs_f64();
        self.reads.push(real(count) / took);
        self.reports.push(real(load.acknowledged() - before) / took);
        self.latest = (process.cpu_seconds()? - cpu, count);
        Ok(())
    }

    /// Notes the processor time of a read, less what was spent on something else.
    fn without(&mut self, other_seconds: f64) {
        let (seconds, count) = self.latest;
        self.cpu.push((seconds - other_seconds) * 1e6 / real(count));
    }

    fn print(&self) {
        self.reads.print();
        self.reports.print();
        self.cpu.print();
    }
}

fn request(path: &str, key: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: bench\r\nX-API-Key: {key}\r\n\r\n").into_bytes()
}

/// Reads for `length` over so many connections; gives back how many answers came.
async fn read_for(
    addr: SocketAddr,
    requests: &Arc<[Vec<u8>]>,
    length: Duration,
    readers: usize,
) -> anyhow::Result<u64> {
    let end = Instant::now() + length;
    let mut reading = JoinSet::new();
    for first in 0..readers {
        let requests = requests.clone();
        reading.spawn(async move {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            let (mut count, mut answer) = (0, Vec::new());
            for request in requests
                .iter()
                .cycle()
                .skip(first * requests.len() / readers)
            {
                if Instant::now() >= end {
                    break;
                }
                mqtt::write_whole(&stream, request).await?;
                read_answer(&stream, &mut answer).await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut all = 0;
    while let Some(count) = reading.join_next().await {
        all += count??;
    }
    Ok(all)
}

async fn read_answer(stream: &TcpStream, answer: &mut Vec<u8>) -> anyhow::Result<()> {
    answer.clear();
    loop {
        stream.readable().await?;
        match stream.try_read_buf(answer) {
            Ok(0) => anyhow::bail!("the server closed a connection"),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        }
        if let Some(length) = answer_length(answer).filter(|length| answer.len() >= *length) {
            let ok = answer.starts_with(b"HTTP/1.1 200") && answer.len() == length;
            anyhow::ensure!(ok, "{}", String::from_utf8_lossy(answer));
            return Ok(());
        }
    }
}
