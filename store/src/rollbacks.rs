//! The rollback log: who asked and why, joined with the update that carries the rollback out.

use device_ota_domain::campaign::Group;
use device_ota_domain::page::Page;
use device_ota_domain::rollback::{Rollback, RollbackTrigger};
use device_ota_domain::update::{Update, UpdateState};
use device_ota_domain::{CampaignId, DeviceId, RollbackId, UpdateId};
use device_ota_engine::ports::store::RollbackFilter;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, present, statements};
use crate::updates::{read_update, select_update};

macro_rules! list_rollbacks {
    ($by:literal) => {
        select_update!(
            ", g.trigger_kind, g.reason FROM rollback_logs g JOIN device_updates u ON u.number = g.number WHERE ",
            $by,
            " ORDER BY g.number DESC LIMIT $1 OFFSET $2"
        )
    };
}

statements! {
    ROLLBACKS_OF_DEVICE = list_rollbacks!("g.device_id = $3 AND (CAST($4 AS TEXT) IS NULL OR g.campaign_id = $4)");
    ROLLBACKS_OF_CAMPAIGN = list_rollbacks!("g.campaign_id = $3");
    ALL_ROLLBACKS = list_rollbacks!("1 = 1");
    LOG_ONE = "INSERT INTO rollback_logs (number, campaign_id, device_id, trigger_kind, reason) \
         SELECT number, campaign_id, device_id, $2, $3 FROM device_updates WHERE update_id = $1";
    LOG_ALL = "INSERT INTO rollback_logs (number, campaign_id, device_id, trigger_kind, reason) \
         SELECT number, campaign_id, device_id, $3, $4 FROM device_updates \
         WHERE campaign_id = $1 AND number > $2 AND action = 'rollback'";
}

/// The rollback log, newest first.
pub(crate) async fn list<D: Dialect>(
    conn: &mut D::Connection,
    filter: &RollbackFilter,
    page: Page,
) -> Result<Vec<Rollback>, DbError> {
    let args = Args::<D>::new().page(page);
    let device = filter.device.as_ref().map(DeviceId::as_str);
    let campaign = filter.campaign.as_ref().map(CampaignId::as_str);
    let (statement, args) = match (device, campaign) {
        (Some(device), campaign) => (&ROLLBACKS_OF_DEVICE, args.text(device).text(campaign)),
        (None, Some(campaign)) => (&ROLLBACKS_OF_CAMPAIGN, args.text(campaign)),
        (None, None) => (&ALL_ROLLBACKS, args),
    };
    sql::fetch_all(conn, statement, args, read_rollback).await
}

/// Logs one update as a rollback.
pub(crate) async fn log_one<D: Dialect>(
    conn: &mut D::Connection,
    update: &UpdateId,
    trigger: RollbackTrigger,
    reason: &str,
) -> Result<(), DbError> {
    let args = Args::new()
        .text(update.as_str())
        .text(trigger.name())
        .text(reason);
    sql::execute::<D>(conn, &LOG_ONE, args).await.map(drop)
}

/// Logs the campaign's rollbacks with a number above `after`.
pub(crate) async fn log_all<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    after: i64,
    trigger: RollbackTrigger,
    reason: &str,
) -> Result<(), DbError> {
    let args = Args::new()
        .text(campaign.as_str())
        .int(after)
        .text(trigger.name())
        .text(reason);
    sql::execute::<D>(conn, &LOG_ALL, args).await.map(drop)
}

fn read_rollback<D: Dialect>(row: &Record<'_, D>) -> Result<Rollback, DbError> {
    let update = read_update(row)?;
    let group = update.group();
    Ok(Rollback {
        rollback_id: RollbackId::of(&update.id),
        trigger: present(
            "trigger_kind",
            RollbackTrigger::from_name(row.text("trigger_kind")?),
        )?,
        reason: row.string("reason")?,
        status: status(group),
        started_at: update.created_at,
        completed_at: update.ended_at(),
        success: group == Group::Completed,
        error_message: error_message(&update),
        update_id: update.id,
        campaign_id: update.campaign,
        device_id: update.device_id,
        from_version: update.from_version,
        to_version: update.to_version,
    })
}

const fn status(group: Group) -> &'static str {
    match group {
        Group::Pending => "pending",
        Group::InFlight | Group::Staged => "in_progress",
        Group::Completed => "completed",
        Group::Failed => "failed",
        Group::Cancelled => "cancelled",
    }
}

fn error_message(update: &Update) -> Option<String> {
    match &update.state {
        UpdateState::Failed { failure, .. } if failure.message.is_empty() => {
            Some(failure.code.clone())
        }
        UpdateState::Failed { failure, .. } => Some(failure.message.clone()),
        _ => None,
    }
}
