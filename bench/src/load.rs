//! A stream of reports of devices in an update, half of it progress and half heartbeats: what the service is busy with while
//! something else is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use device_ota_domain::campaign::Group;
use device_ota_domain::page::{MAX_LIMIT, Page};
use device_ota_domain::{CampaignId, Update};
use device_ota_engine::ports::store::UpdateFilter;
use device_ota_protocol::messages::{Phase, Progress};
use tokio::time::MissedTickBehavior;

use crate::fleet::{self, Database};
use crate::http::Admin;
use crate::mqtt::{self, Connection, Target};
use crate::rows::fan_out;
use crate::rows::runtime;
use crate::service::Service;
use crate::stats::real;

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

/// Connects every device, starts a campaign, waits until each has been offered its update, and lets the devices go.
pub(crate) async fn offered(
    service: &Service,
    database: &Database,
    devices: usize,
) -> anyhow::Result<Vec<Update>> {
    let target = Target::of_devices(service.mqtt);
    let connected = mqtt::open_all(&target, fleet::names(devices), OPENING)?;
    let admin = Admin {
        addr: service.http,
        key: &service.key,
    };
    let campaign = fan_out::campaign(&admin, devices)?;
    admin.post(&format!("/api/v1/ota/campaigns/{campaign}/start"), None)?;
    let store = database.open().await?;
    let id: CampaignId = campaign.parse()?;
    let asked = Instant::now();
    while store.counts(&id).await?.in_flight() < devices as u64 {
        anyhow::ensure!(
            asked.elapsed() < OFFER_TIME,
            "not every device was offered its update in time"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The campaign may mean others too, who are not there.
    let filter = UpdateFilter {
        campaign: Some(id),
        group: Some(Group::InFlight),
        ..UpdateFilter::default()
    };
    let mut updates = Vec::new();
    while updates.len() < devices {
        let page = Page {
            limit: MAX_LIMIT,
            offset: u32::try_from(updates.len())?,
        };
        let piece = store.updates(&filter, page).await?;
        anyhow::ensure!(!piece.is_empty(), "updates are missing");
        updates.extend(piece);
    }
    drop(connected);
    Ok(updates)
}

/// The stream of reports, on a thread of its own.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Load {
    pub(crate) fn start(target: Target, updates: Vec<Update>, reports: u64) -> Self {
        let (stop, acknowledged) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, count) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            runtime()?.block_on(async {
                let mut devices = Vec::with_capacity(updates.len());
                for update in updates {
                    let connection = Connection::open(&target, update.device_id.as_str())?;
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

    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many reports have been acknowledged.
    pub(crate) async fn reach(&self, count: u64) -> anyhow::Result<()> {
        let asked = Instant::now();
        while self.acknowledged() < count {
            let gone = self.thread.is_finished() || asked.elapsed() > OFFER_TIME;
            anyhow::ensure!(!gone, "the stream of reports did not begin");
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    pub(crate) fn end(self) -> anyhow::Result<()> {
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
                bytes.extend(mqtt::publish(
                    &heartbeat,
                    packet_id,
                    mqtt::PAYLOAD.as_bytes(),
                ));
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
