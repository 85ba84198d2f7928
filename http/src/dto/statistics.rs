//! Statistics (PRD, E5; appendix 4).

use std::collections::BTreeMap;

use device_ota_domain::CampaignId;
use device_ota_domain::campaign::Tally;
use device_ota_engine::{CampaignStatistics, Statistics, Totals};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::round;

/// Statuses of campaigns that are under way.
const ACTIVE: [&str; 3] = ["in_progress", "paused", "rolling_back"];

/// The figures of everything.
#[derive(Serialize, ToSchema)]
#[schema(as = Statistics)]
pub(crate) struct StatisticsDto<'a> {
    /// Not deleted, in any status.
    total_campaigns: u64,
    /// In progress, paused or rolling back.
    active_campaigns: u64,
    completed_campaigns: u64,
    /// Rolled back, whoever asked for it.
    failed_campaigns: u64,
    campaigns_by_status: &'a BTreeMap<&'static str, u64>,
    #[serde(flatten)]
    updates: UpdatesDto<'a>,
    /// Where the last 24 hours begin: with the full minute.
    last_24h_since: Timestamp,
    /// Updates that completed or failed in that time.
    last_24h_updates: u64,
    /// Of these, failed.
    last_24h_failures: u64,
    /// Bytes downloaded by the updates and rollbacks that ended in that time.
    last_24h_data_transferred: u64,
}

/// The figures of one campaign.
#[derive(Serialize, ToSchema)]
#[schema(as = CampaignStatistics)]
pub(crate) struct CampaignStatisticsDto<'a> {
    campaign_id: &'a CampaignId,
    name: &'a str,
    #[schema(schema_with = super::campaign::statuses)]
    status: &'static str,
    #[serde(flatten)]
    updates: UpdatesDto<'a>,
}

/// What updates come to. Each is counted once, however often it was tried; rollbacks are counted apart.
#[derive(Serialize, ToSchema)]
#[schema(as = UpdateFigures)]
pub(crate) struct UpdatesDto<'a> {
    total_updates: u64,
    pending_updates: u64,
    in_progress_updates: u64,
    /// Their devices hold the image and wait for its activation.
    staged_updates: u64,
    completed_updates: u64,
    /// Of the completed ones, those whose devices have not stayed well afterwards.
    regressed_updates: u64,
    failed_updates: u64,
    cancelled_updates: u64,
    /// Completed among those that completed or failed, in percent, whatever became of them later; 0 before the first.
    success_rate: f64,
    /// From the first offer to the completion, in minutes, of completed updates; 0 before the first.
    avg_update_time: f64,
    /// Bytes of images that updates and rollbacks brought to devices, as these told: of each update at most the image, however
    /// many attempts it took; of attempts that have ended.
    total_data_transferred: u64,
    updates_by_device_type: &'a BTreeMap<String, u64>,
    updates_by_firmware_version: &'a BTreeMap<String, u64>,
    /// Failed updates by error code.
    failure_reasons: &'a BTreeMap<String, u64>,
    rollbacks: RollbackFiguresDto,
}

/// Rollbacks by where they stand.
#[derive(Serialize, ToSchema)]
#[schema(as = RollbackFigures)]
struct RollbackFiguresDto {
    total: u64,
    pending: u64,
    in_progress: u64,
    completed: u64,
    failed: u64,
    cancelled: u64,
}

impl From<&Tally> for RollbackFiguresDto {
    fn from(tally: &Tally) -> Self {
        Self {
            total: tally.total(),
            pending: tally.pending,
            in_progress: tally.in_flight,
            completed: tally.completed,
            failed: tally.failed,
            cancelled: tally.cancelled,
        }
    }
}

impl<'a> From<&'a Totals> for UpdatesDto<'a> {
    fn from(totals: &'a Totals) -> Self {
        let updates = &totals.updates;
        Self {
            total_updates: updates.total(),
            pending_updates: updates.pending,
            in_progress_updates: updates.in_flight,
            staged_updates: updates.staged,
            completed_updates: updates.completed,
            regressed_updates: updates.regressed,
            failed_updates: updates.failed,
            cancelled_updates: updates.cancelled,
            success_rate: round(updates.success_percent().unwrap_or(0.0)),
            avg_update_time: round(totals.average_minutes().unwrap_or(0.0)),
            total_data_transferred: totals.bytes,
            updates_by_device_type: &totals.by_device_type,
            updates_by_firmware_version: &totals.by_version,
            failure_reasons: &totals.failures,
            rollbacks: RollbackFiguresDto::from(&totals.rollbacks),
        }
    }
}

impl<'a> From<&'a Statistics> for StatisticsDto<'a> {
    fn from(statistics: &'a Statistics) -> Self {
        let recent = &statistics.recent;
        Self {
            total_campaigns: statistics.campaigns.values().sum(),
            active_campaigns: statistics.campaigns_in(&ACTIVE),
            completed_campaigns: statistics.campaigns_in(&["completed"]),
            failed_campaigns: statistics.campaigns_in(&["rolled_back"]),
            campaigns_by_status: &statistics.campaigns,
            updates: UpdatesDto::from(&statistics.totals),
            last_24h_since: recent.since,
            last_24h_updates: recent.updates,
            last_24h_failures: recent.failures,
            last_24h_data_transferred: recent.bytes,
        }
    }
}

impl<'a> From<&'a CampaignStatistics> for CampaignStatisticsDto<'a> {
    fn from(statistics: &'a CampaignStatistics) -> Self {
        let campaign = &statistics.campaign;
        Self {
            campaign_id: &campaign.id,
            name: &campaign.spec.name,
            status: campaign.state.status(),
            updates: UpdatesDto::from(&statistics.totals),
        }
    }
}
