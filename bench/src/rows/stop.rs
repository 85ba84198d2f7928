//! An automatic rollback: from the report that decides it to the offer of the old version, for the device that had completed.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::runtime;
use crate::Plan;
use crate::fleet::{self, Database, MODEL};
use crate::http::{Admin, Image};
use crate::mqtt::{self, Connection, PAYLOAD, Target};
use crate::service::Service;
use crate::stats::{Series, Target as Wanted, title};

/// The one that completes, and is taken back, and the one whose failure decides.
const DEVICES: usize = 2;
/// How long the service may take to offer anything.
const PATIENCE: Duration = Duration::from_mins(1);
/// Most milliseconds on an idle machine.
const BOUND: f64 = 1_000.0;

/// Nothing can be chosen.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Options {}

pub(crate) fn run(plan: Plan, Options {}: &Options) -> anyhow::Result<()> {
    title("automatic rollback: the deciding report → the offer of the old version; SQLite");
    runtime()?.block_on(async {
        let mut took = Series::new("report → offer", "ms");
        for _ in 0..plan.rounds {
            took.push(round().await?.as_secs_f64() * 1e3);
        }
        took.print();
        took.judge(Wanted::AtMost(BOUND));
        Ok(())
    })
}

async fn round() -> anyhow::Result<Duration> {
    let folder = tempfile::tempdir()?;
    let database = Database::file_in(folder.path());
    Service::make_keys(folder.path(), &database.url())?;
    database.fill(DEVICES).await?;
    let service = Service::start(folder.path(), &database.url())?;
    let admin = Admin {
        addr: service.http,
        key: &service.key,
    };
    let old = image(&admin, "1.0.0")?;
    let new = image(&admin, "2.0.0")?;
    anyhow::ensure!(old != new, "two images are one");
    let target = Target::of_devices(service.mqtt);
    let mut devices = Vec::with_capacity(DEVICES);
    for name in fleet::names(DEVICES) {
        devices.push(Device::connect(&target, name).await?);
    }
    let [good, bad] = devices.as_mut_slice() else {
        anyhow::bail!("two devices")
    };
    let campaign = admin.post(
        "/api/v1/ota/campaigns",
        Some(&json!({
            "name": "bench", "firmware_id": new, "deployment_strategy": "immediate", "max_concurrent_updates": DEVICES,
            "batch_size": DEVICES, "auto_rollback": true, "failure_threshold_percent": 10, "failure_min_samples": DEVICES,
        })),
    )?;
    let campaign = text(&campaign, "campaign_id")?;
    admin.post(&format!("/api/v1/ota/campaigns/{campaign}/start"), None)?;
    for device in [&mut *good, &mut *bad] {
        device.offer().await?;
    }
    let updates = admin.get(&format!("/api/v1/ota/campaigns/{campaign}/devices"))?;
    let update_of = |device: &Device| -> anyhow::Result<String> {
        let mut rows = updates
            .get("devices")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let row =
            rows.find(|row| row.get("device_id").and_then(Value::as_str) == Some(&device.name));
        text(row.context("no update")?, "update_id")
    };
    let completed = json!({
        "update_id": update_of(good)?, "attempt": 1, "seq": 1, "phase": "completed", "version": "2.0.0",
    });
    let failed = json!({
        "update_id": update_of(bad)?, "attempt": 1, "seq": 1, "phase": "failed", "version": "1.0.0",
        "error": {"code": "signature_invalid"},
    });
    good.say("progress", &completed.to_string()).await?;
    let path = format!("/api/v1/ota/campaigns/{campaign}");
    let asked = Instant::now();
    while admin.get(&path)?.get("completed_devices") != Some(&json!(1)) {
        anyhow::ensure!(asked.elapsed() < PATIENCE, "nothing completes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let began = Instant::now();
    bad.say("progress", &failed.to_string()).await?;
    good.offer().await?;
    Ok(began.elapsed())
}

fn image(admin: &Admin<'_>, version: &str) -> anyhow::Result<String> {
    let image = Image {
        name: "Bench",
        version,
        model: MODEL,
        size: 4_096,
        piece: &[0x5a; 64],
    };
    text(&admin.upload(&image)?, "firmware_id")
}

fn text(value: &Value, name: &'static str) -> anyhow::Result<String> {
    let found = value.get(name).and_then(Value::as_str);
    found.map(str::to_owned).context(name)
}

/// A connected device.
struct Device {
    name: String,
    stream: std::sync::Arc<tokio::net::TcpStream>,
    offers: mpsc::UnboundedReceiver<()>,
    said: u16,
}

impl Device {
    /// Connects, listens, and tells what it runs.
    async fn connect(target: &Target, name: String) -> anyhow::Result<Self> {
        let mut connection = Connection::open(target, &name)?;
        connection
            .subscribe(&format!("ota/v1/{name}/down/offer"))
            .await?;
        let stream = std::sync::Arc::new(connection.stream);
        let (tell, offers) = mpsc::unbounded_channel();
        let reading = stream.clone();
        tokio::spawn(async move {
            mqtt::receive(&reading, |_| tell.send(()).unwrap_or_default()).await
        });
        let mut device = Self {
            name,
            stream,
            offers,
            said: 0,
        };
        device.say("heartbeat", PAYLOAD).await?;
        Ok(device)
    }

    async fn say(&mut self, what: &str, payload: &str) -> anyhow::Result<()> {
        self.said += 1;
        let topic = format!("ota/v1/{}/up/{what}", self.name);
        let packet = mqtt::publish(&topic, self.said, payload.as_bytes());
        Ok(mqtt::write_whole(&self.stream, &packet).await?)
    }

    /// The next offer.
    async fn offer(&mut self) -> anyhow::Result<()> {
        let next = tokio::time::timeout(PATIENCE, self.offers.recv()).await;
        next.context("no offer in time")?
            .context("the connection ended")
    }
}
