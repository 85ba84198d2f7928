//! Offers to a connected fleet: from the start of a campaign (its targets, claims and signatures included) and from
//! the first offer that arrives, to the last; beside mosquitto passing on ready-made bytes of the same size.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::runtime;
use crate::Plan;
use crate::fleet::{self, Database, MODEL};
use crate::http::{Admin, Image};
use crate::mqtt::{self, Connection, PUBACK_BYTES, Target};
use crate::peers::Mosquitto;
use crate::service::Service;
use crate::stats::{Series, Target as Wanted, ratio, real, title, verdict};

/// Connections opened at the same time: mosquitto lets 100 wait, and those beyond lose a second.
const OPENING: usize = 64;
/// Time in which the service writes down who is connected.
pub(super) const SETTLE: Duration = Duration::from_secs(3);
/// How long a whole fan-out may take.
const PATIENCE: Duration = Duration::from_mins(2);
/// Bytes of the image that is offered; nobody fetches it here.
const IMAGE_BYTES: u64 = 64 * 1024;
/// Allowed growth of the time an offer takes, from the smallest fleet to the largest, when it is linear but for noise.
const LINEAR: f64 = 1.3;

/// How many.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Sizes of the fleet.
    #[arg(long, value_delimiter = ',', default_values_t = [4_000, 8_000, 16_000], value_parser = clap::value_parser!(u16).range(100..=17_000))]
    pub(crate) devices: Vec<u16>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            devices: vec![4_000, 8_000, 16_000],
        }
    }
}

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    let mut each = Vec::new();
    for &devices in &options.devices {
        title(&format!("offers to {devices} connected devices; SQLite"));
        each.push(runtime()?.block_on(measure(plan, devices.into()))?);
    }
    if let [first, .., last] = each.as_slice() {
        title("offers: growth with the fleet");
        verdict(
            "time an offer, largest fleet / smallest",
            last / first,
            "",
            Wanted::AtMost(LINEAR),
        );
    }
    Ok(())
}

/// The median time of an offer from the campaign's start, in seconds.
async fn measure(plan: Plan, devices: usize) -> anyhow::Result<f64> {
    let mut from_start = Series::new("service: campaign start → last receipt", "s");
    let mut from_first = Series::new("service: first receipt → last receipt", "s");
    let mut answer = Series::new("service: the start request's answer", "s");
    let mut theirs = Series::new("mosquitto: first publish → last receipt", "s");
    for _ in 0..plan.rounds {
        let folder = tempfile::tempdir()?;
        let (ours, answered) = service_round(folder.path(), devices).await?;
        from_start.push(ours.total.as_secs_f64());
        from_first.push(ours.spread.as_secs_f64());
        answer.push(answered.as_secs_f64());
        let mosquitto = mosquitto_round(folder.path(), devices, ours.size).await?;
        theirs.push(mosquitto.total.as_secs_f64());
    }
    for series in [&from_start, &from_first, &answer, &theirs] {
        series.print();
    }
    ratio(
        "first receipt → last, service / mosquitto",
        &from_first,
        &theirs,
        Wanted::AtMost(4.0),
    );
    ratio(
        "campaign start → last, service / mosquitto",
        &from_start,
        &theirs,
        Wanted::AtMost(4.0),
    );
    Ok(from_start.median() / real(devices as u64))
}

async fn service_round(folder: &Path, devices: usize) -> anyhow::Result<(Took, Duration)> {
    let database = Database::file_in(folder);
    Service::make_keys(folder, &database.url())?;
    database.fill(devices).await?;
    let service = Service::start(folder, &database.url())?;
    let names = fleet::names(devices);
    let receivers = Receivers::connect(&Target::of_devices(service.mqtt), names).await?;
    let admin = Admin {
        addr: service.http,
        key: &service.key,
    };
    let campaign = campaign(&admin, devices)?;
    tokio::time::sleep(SETTLE).await;
    let path = format!("/api/v1/ota/campaigns/{campaign}/start");
    let began = Instant::now();
    // On a thread of its own: this one has offers to take.
    let (addr, key) = (service.http, service.key.clone());
    let start = tokio::task::spawn_blocking(move || {
        Admin { addr, key: &key }.post(&path, None)?;
        anyhow::Ok(began.elapsed())
    });
    let took = receivers.all(began).await?;
    Ok((took, start.await??))
}

/// Uploads an image; gives back its id.
pub(super) fn image(admin: &Admin<'_>) -> anyhow::Result<String> {
    let piece = vec![0x5a; 4_096];
    let image = Image {
        name: "Bench",
        version: "2.0.0",
        model: MODEL,
        size: IMAGE_BYTES,
        piece: &piece,
    };
    let firmware = admin.upload(&image)?;
    let id = firmware.get("firmware_id").and_then(Value::as_str);
    id.map(str::to_owned).context("no firmware_id")
}

/// Uploads an image and creates a campaign of every device; gives back the campaign's id.
pub(crate) fn campaign(admin: &Admin<'_>, devices: usize) -> anyhow::Result<String> {
    let firmware = image(admin)?;
    let id = |value: &Value, name| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let campaign = admin.post(
        "/api/v1/ota/campaigns",
        Some(&json!({
            "name": "bench",
            "firmware_id": firmware,
            "deployment_strategy": "immediate",
            "max_concurrent_updates": devices,
            "batch_size": devices,
            "auto_rollback": false,
        })),
    )?;
    id(&campaign, "campaign_id").context("no campaign_id")
}

async fn mosquitto_round(folder: &Path, devices: usize, size: usize) -> anyhow::Result<Took> {
    let mosquitto = Mosquitto::start(folder, None)?;
    let target = Target::open_to_all(mosquitto.addr);
    let receivers = Receivers::connect(&target, fleet::names(devices)).await?;
    let publisher = Connection::open(&target, "bench-publisher")?;
    let payload = vec![b'x'; size];
    let mut bytes = Vec::new();
    for (id, name) in (1..=u16::MAX).cycle().zip(fleet::names(devices)) {
        bytes.extend(mqtt::publish(
            &format!("ota/v1/{name}/down/offer"),
            id,
            &payload,
        ));
    }
    tokio::time::sleep(SETTLE).await;
    let began = Instant::now();
    let publishing = tokio::spawn(async move {
        let (mut read, mut write) = publisher.stream.into_split();
        let mut acks = vec![0; devices * PUBACK_BYTES];
        let sent = async { tokio::io::AsyncWriteExt::write_all(&mut write, &bytes).await };
        let (sent, read) = tokio::join!(sent, read.read_exact(&mut acks));
        sent.and(read.map(drop))
    });
    let took = receivers.all(began).await?;
    publishing.await??;
    Ok(took)
}

/// What a fan-out took.
pub(super) struct Took {
    /// From its beginning to the last receipt.
    total: Duration,
    /// From the first receipt to the last.
    pub(super) spread: Duration,
    /// Bytes of a message.
    size: usize,
}

/// Subscribed devices that acknowledge what they get.
pub(super) struct Receivers {
    taken: Arc<Mutex<Taken>>,
    all: Arc<Notify>,
    // Ends them when this is dropped.
    tasks: JoinSet<std::io::Result<()>>,
}

#[derive(Default)]
struct Taken {
    missing: usize,
    size: usize,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Receivers {
    pub(super) async fn connect(target: &Target, names: Vec<String>) -> anyhow::Result<Self> {
        let open = mqtt::open_all(target, names, OPENING)?;
        let open = mqtt::subscribe_all(open, OPENING).await?;
        let taken = Arc::new(Mutex::new(Taken {
            missing: open.len(),
            ..Taken::default()
        }));
        let all = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        for (_, connection) in open {
            let (taken, all) = (taken.clone(), all.clone());
            tasks.spawn(async move {
                mqtt::receive(&connection.stream, |payload| {
                    let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
                    if taken.take(payload.len()) {
                        all.notify_one();
                    }
                })
                .await
            });
        }
        Ok(Self { taken, all, tasks })
    }

    /// Waits until every device has got its message.
    pub(super) async fn all(mut self, began: Instant) -> anyhow::Result<Took> {
        let waited = tokio::time::timeout(PATIENCE, self.all.notified()).await;
        self.tasks.abort_all();
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        anyhow::ensure!(
            waited.is_ok(),
            "{} devices got nothing in time",
            taken.missing
        );
        let (first, last) = taken
            .first
            .zip(taken.last)
            .context("nothing was received")?;
        Ok(Took {
            total: last - began,
            spread: last - first,
            size: taken.size,
        })
    }
}

impl Taken {
    /// True when this was the last one.
    fn take(&mut self, size: usize) -> bool {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.size = size;
        self.missing = self.missing.saturating_sub(1);
        self.missing == 0
    }
}
