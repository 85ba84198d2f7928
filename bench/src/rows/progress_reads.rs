//! Reads of an update's progress over HTTP connections that are kept, while reports come in over MQTT; beside warp
//! answering a constant to the same requests, under the same stream of reports into the service next to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use device_ota_domain::page::{MAX_LIMIT, Page};
use device_ota_domain::{CampaignId, Update};
use device_ota_engine::ports::store::UpdateFilter;
use device_ota_protocol::messages::{Phase, Progress};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::fan_out;
use super::heartbeats::PAYLOAD;
use super::runtime;
use crate::Plan;
use crate::fleet::{self, Database};
use crate::http::{Admin, answer_length};
use crate::mqtt::{self, Connection, Target};
use crate::peers::start_constant;
use crate::process::Running;
use crate::service::Service;
use crate::stats::{Series, Target as Wanted, ratio, real, title};

/// Devices that report.
const DEVICES: usize = 1_000;
/// Connections opened at the same time.
const OPENING: usize = 64;
/// Between two bursts of reports.
const TICK: Duration = Duration::from_millis(10);
/// Reports that one device sends at a time: half of them progress, half heartbeats.
const BURST: u64 = 10;
/// How long the service may take to offer the update to everybody.
const OFFER_TIME: Duration = Duration::from_mins(1);
/// Size of the image as the reports have it; progress never reaches it.
const IMAGE_BYTES: u64 = 1_000_000_000;

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
    database.fill(DEVICES).await?;
    let service = Service::start(folder.path(), &database.url())?;
    let (warp, constant) = start_constant()?;
    let target = Target::of_devices(service.mqtt);
    let devices = mqtt::open_all(&target, fleet::names(DEVICES), OPENING).await?;
    let updates = offered(&service, &database).await?;
    let paths: Vec<_> = updates
        .iter()
        .map(|update| format!("/api/v1/ota/updates/{}", update.id))
        .collect();
    let requests: Arc<[Vec<u8>]> = paths
        .iter()
        .map(|path| request(path, &service.key))
        .collect();
    drop(devices);
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

/// Starts a campaign and waits until every device has been offered its update.
async fn offered(service: &Service, database: &Database) -> anyhow::Result<Vec<Update>> {
    let admin = Admin {
        addr: service.http,
        key: &service.key,
    };
    let campaign = fan_out::campaign(&admin, DEVICES)?;
    admin.post(&format!("/api/v1/ota/campaigns/{campaign}/start"), None)?;
    let store = database.open().await?;
    let id: CampaignId = campaign.parse()?;
    let asked = Instant::now();
    while store.counts(&id).await?.in_flight() < DEVICES as u64 {
        anyhow::ensure!(
            asked.elapsed() < OFFER_TIME,
            "not every device was offered its update in time"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let filter = UpdateFilter {
        campaign: Some(id),
        ..UpdateFilter::default()
    };
    let mut updates = Vec::new();
    while updates.len() < DEVICES {
        let page = Page {
            limit: MAX_LIMIT,
            offset: u32::try_from(updates.len())?,
        };
        let piece = store.updates(&filter, page).await?;
        anyhow::ensure!(!piece.is_empty(), "updates are missing");
        updates.extend(piece);
    }
    Ok(updates)
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

/// The stream of reports, on a thread of its own.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Load {
    fn start(target: Target, updates: Vec<Update>, reports: u64) -> Self {
        let (stop, acknowledged) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, count) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            runtime()?.block_on(async {
                let mut devices = Vec::with_capacity(updates.len());
                for update in updates {
                    let connection = Connection::open(&target, update.device_id.as_str()).await?;
                    devices.push(Device {
                        connection,
                        update,
                        seq: 0,
                        carried: 0,
                    });
                }
                report(&mut devices, reports, &stopped, &count).await
            })
        });
        Self {
            stop,
            acknowledged,
            thread,
        }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many reports have been acknowledged.
    async fn reach(&self, count: u64) -> anyhow::Result<()> {
        let asked = Instant::now();
        while self.acknowledged() < count {
            let gone = self.thread.is_finished() || asked.elapsed() > OFFER_TIME;
            anyhow::ensure!(!gone, "the stream of reports did not begin");
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    fn end(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .ok()
            .context("the stream of reports failed")?
    }
}

struct Device {
    connection: Connection,
    update: Update,
    seq: u64,
    carried: usize,
}

/// Every tick the next few devices send a burst each, so that the whole is an even stream.
async fn report(
    devices: &mut [Device],
    reports: u64,
    stop: &AtomicBool,
    acknowledged: &AtomicU64,
) -> anyhow::Result<()> {
    let ticks_a_second = u64::try_from(Duration::from_secs(1).as_millis() / TICK.as_millis())?;
    let a_tick = usize::try_from(reports / BURST / ticks_a_second)?.max(1);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        for at in next..next + a_tick {
            let count = devices.len();
            let Some(device) = devices.get_mut(at % count) else {
                continue;
            };
            let acks = mqtt::take_acks(&device.connection.stream, &mut device.carried)?;
            acknowledged.fetch_add(acks, Ordering::Relaxed);
            let bytes = device.burst();
            mqtt::write_whole(&device.connection.stream, &bytes).await?;
        }
        next = (next + a_tick) % devices.len();
    }
    Ok(())
}

impl Device {
    fn burst(&mut self) -> Vec<u8> {
        let id = self.update.device_id.as_str();
        let (progress, heartbeat) = (
            format!("ota/v1/{id}/up/progress"),
            format!("ota/v1/{id}/up/heartbeat"),
        );
        let mut bytes = Vec::new();
        for packet_id in (1..).take(usize::try_from(BURST).unwrap_or_default()) {
            if packet_id % 2 == 0 {
                bytes.extend(mqtt::publish(&heartbeat, packet_id, PAYLOAD.as_bytes()));
            } else {
                bytes.extend(mqtt::publish(&progress, packet_id, &self.progress()));
            }
        }
        bytes
    }

    fn progress(&mut self) -> Vec<u8> {
        self.seq += 1;
        let phase = if self.seq == 1 {
            Phase::Accepted
        } else {
            Phase::Downloading
        };
        let mut report = Progress::new(
            self.update.id.as_str(),
            self.update.attempt,
            self.seq,
            phase,
        );
        if phase == Phase::Downloading {
            report.bytes_done = Some((self.seq * 1_000).min(IMAGE_BYTES));
            report.bytes_total = Some(IMAGE_BYTES);
            report.percent = Some(100.0 * real(self.seq * 1_000) / real(IMAGE_BYTES));
            report.speed_bps = Some(5_000);
        }
        report.to_bytes()
    }
}
