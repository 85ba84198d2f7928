//! How devices do after their update, and before it: read from the history of heartbeats now and then, of a sample, for the campaigns
//! that ask for it. The planner decides what follows.

use device_ota_domain::Campaign;
use device_ota_domain::CampaignState;
use device_ota_domain::campaign::{Beat, SAMPLE, Sides, read_vitals};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::page::Page;
use device_ota_protocol::messages::Heartbeat;
use jiff::{SignedDuration, Timestamp};

use crate::Engine;
use crate::dispatch::earlier;
use crate::ports::StoreError;
use crate::ports::telemetry::{HeartbeatQuery, HeartbeatRow};

/// How far each side of an update looks.
const WINDOW: SignedDuration = SignedDuration::from_hours(24);
/// Heartbeats of one device and side: an hour of one a minute.
const BEATS: Page = Page {
    limit: 60,
    offset: 0,
};

impl Engine {
    /// Reads the figures of every campaign that has criteria and is in progress, is paused, or has completed and is watched.
    pub async fn read_health(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut campaigns = self.store.campaigns_to_plan(now).await?;
        campaigns.retain(|campaign| campaign.state.status() != "completed");
        campaigns.extend(self.store.campaigns_watched().await?);
        for campaign in campaigns {
            if campaign.spec.health.criteria.is_empty() {
                continue;
            }
            // What a resume has accepted is not looked at again.
            let since = match &campaign.state {
                CampaignState::InProgress(running) | CampaignState::Paused { running, .. } => {
                    running.accepted.at
                }
                CampaignState::Completed { accepted, .. } => accepted.at,
                _ => continue,
            };
            self.read_health_of(&campaign, since, now).await?;
            // One that has completed is planned for this alone; the dispatcher gives out the slots.
            if matches!(campaign.state, CampaignState::Completed { .. }) {
                let decided = std::slice::from_ref(&campaign);
                self.dispatch_each(decided, &mut Some(0)).await;
            }
            self.wake();
        }
        Ok(())
    }

    async fn read_health_of(
        &self,
        campaign: &Campaign,
        since: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let since = since.unwrap_or(Timestamp::MIN);
        let sample = self
            .store
            .health_sample(&campaign.id, since, SAMPLE)
            .await?;
        let mut completed = Vec::with_capacity(sample.completed.len());
        for device in sample.completed {
            let begun = device.started_at;
            completed.push(Sides {
                before: self
                    .beats(device.device, earlier(begun, WINDOW), begun)
                    .await?,
                after: self.beats(device.device, device.completed_at, now).await?,
            });
        }
        let mut control = Vec::with_capacity(sample.waiting.len());
        for device in sample.waiting {
            control.push(self.beats(device, earlier(now, WINDOW), now).await?);
        }
        let criteria = &campaign.spec.health.criteria;
        let readings = read_vitals(criteria, &completed, &control, now);
        let mut tx = self.store.begin().await?;
        tx.save_readings(&campaign.id, &readings).await?;
        self.commit(tx).await?;
        Ok(())
    }

    /// The latest heartbeats of a time, oldest first.
    async fn beats(
        &self,
        device: DeviceKey,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Beat>, StoreError> {
        let query = HeartbeatQuery {
            device,
            from: Some(from),
            to: Some(to),
        };
        let rows = self.store.heartbeats(&query, BEATS).await?;
        Ok(rows.iter().rev().filter_map(beat).collect())
    }
}

/// What a heartbeat tells; `None`: it was taken in another form than today's.
fn beat(row: &HeartbeatRow) -> Option<Beat> {
    let heartbeat = Heartbeat::parse(row.payload.as_bytes()).ok()?;
    let counts = heartbeat.errors.iter().map(|e| e.count.unwrap_or(1));
    let battery = heartbeat
        .battery
        .filter(|battery| battery.charging != Some(true));
    Some(Beat {
        at: row.received_at,
        errors: counts.fold(0, u64::saturating_add),
        uptime_seconds: heartbeat.uptime_s,
        boot_id: heartbeat.boot_id,
        battery_percent: battery.map(|battery| battery.percent),
        metrics: heartbeat.metrics,
    })
}
