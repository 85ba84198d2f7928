//! Which devices the criteria of a campaign's health look at, and what they have found.

use device_ota_domain::CampaignId;
use device_ota_domain::campaign::Reading;
use device_ota_domain::device::DeviceKey;
use device_ota_engine::ports::telemetry::{HealthSample, SampledDevice};
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, statements, to_json};

statements! {
    // In an order that has nothing to do with when they completed: the first are the fastest, and the last have told of nothing yet.
    COMPLETED_SAMPLE = "SELECT u.device_key, u.started_at, u.ended_at FROM device_updates u \
         WHERE u.campaign_id = $1 AND (u.watch_until IS NOT NULL OR u.regressed_at IS NOT NULL) AND u.ended_at > $2 \
         AND u.started_at IS NOT NULL ORDER BY (u.number * 7919) % 10007, u.number LIMIT $3";
    // Whoever has been offered it and waits once more is no device as the others were.
    WAITING_SAMPLE = "SELECT u.device_key FROM device_updates u JOIN device_latest l ON l.device_key = u.device_key \
         WHERE u.campaign_id = $1 AND u.action = 'update' AND u.state = 'pending' AND u.attempt = 0 AND l.online = 1 \
         ORDER BY u.stage, u.due_at LIMIT $2";
    SAVE_READINGS = "UPDATE update_campaigns SET readings = $2 WHERE campaign_id = $1";
}

/// Devices that have completed since then and are watched, or have regressed, and devices that wait for their first offer.
pub(crate) async fn sample<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    since: Timestamp,
    limit: u32,
) -> Result<HealthSample, DbError> {
    let limit = i64::from(limit);
    let args = Args::<D>::new()
        .text(campaign.as_str())
        .time(since)
        .int(limit);
    let completed = sql::fetch_all(conn, &COMPLETED_SAMPLE, args, |row| {
        Ok(SampledDevice {
            device: DeviceKey(row.int("device_key")?),
            started_at: row.time("started_at")?,
            completed_at: row.time("ended_at")?,
        })
    })
    .await?;
    let args = Args::<D>::new().text(campaign.as_str()).int(limit);
    let waiting = sql::fetch_all(conn, &WAITING_SAMPLE, args, |row| {
        Ok(DeviceKey(row.int("device_key")?))
    })
    .await?;
    Ok(HealthSample { completed, waiting })
}

/// Writes what was found.
pub(crate) async fn save<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    readings: &[Reading],
) -> Result<(), DbError> {
    let args = Args::<D>::new()
        .text(campaign.as_str())
        .text(to_json(&readings)?.as_str());
    sql::execute(conn, &SAVE_READINGS, args).await.map(drop)
}
