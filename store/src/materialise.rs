//! Whole campaigns at a stroke: making every update or rollback in one `INSERT … SELECT`, and cancelling what waits.

use device_ota_domain::CampaignId;
use device_ota_domain::campaign::{Campaign, Delta, Group};
use device_ota_domain::firmware::Firmware;
use device_ota_domain::update::Action;
use device_ota_engine::ports::store::{Aim, RollbackTerms};
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, Statement, statements};
use crate::targets::{bind_aim, meant, position, verdict};
use crate::{campaigns, counts, rollbacks};

statements! {
    // The id is made of the campaign's number and the device's: unique without randomness, and the same again.
    MAKE_UPDATES = concat!(
        "INSERT INTO device_updates (update_id, device_key, device_id, campaign_id, action, firmware_id, \
         from_version, to_version, stage, priority, max_retries, timeout_seconds, state, due_at, created_at, \
         updated_at) \
         SELECT 'upd_' || {hex:c.number * 4294967296 + d.device_key}, d.device_key, d.device_id, c.campaign_id, \
         'update', c.firmware_id, COALESCE(l.version, d.firmware_version), $2, s.stage, c.priority, $8, $9, \
         'pending', $10, $10, $10 \
         FROM devices d JOIN device_latest l ON l.device_key = d.device_key \
         JOIN update_campaigns c ON c.campaign_id = $7 \
         JOIN campaign_stages s ON s.campaign_id = c.campaign_id AND s.action = 'update' AND s.start_bucket <= ",
        position!(),
        " AND s.end_bucket > ",
        position!(),
        " WHERE {given} AND ",
        verdict!(),
        " = 'target' ORDER BY d.device_key ON CONFLICT (update_id) DO NOTHING"
    );
    LAST_NUMBER = "SELECT MAX(number) AS number FROM device_updates WHERE campaign_id = $1";
    // The image to go back to: of the same model and version, and of the same name, else the newest. A device that was
    // deleted since, even if another has come in its place, has nothing to take back: its rollback is there for the
    // count alone.
    MAKE_ROLLBACKS = "INSERT INTO device_updates (update_id, device_key, device_id, campaign_id, action, firmware_id, \
         from_version, to_version, stage, priority, max_retries, timeout_seconds, state, due_at, give_up_at, check_at, \
         ended_at, failure_code, failure_message, failure_retry, created_at, updated_at) \
         SELECT 'upd_' || {hex:p.number * 4294967296 + 4611686018427387904 + p.device_key}, p.device_key, \
         p.device_id, p.campaign_id, 'rollback', p.previous, p.to_version, COALESCE(p.from_version, ''), p.stage, \
         p.priority, p.max_retries, p.timeout_seconds, \
         p.born, \
         CASE WHEN p.born = 'pending' THEN CAST($2 AS BIGINT) END, CAST($3 AS BIGINT), \
         CASE WHEN p.born = 'pending' THEN CAST($3 AS BIGINT) END, \
         CASE WHEN p.born <> 'pending' THEN CAST($2 AS BIGINT) END, \
         CASE WHEN p.born = 'failed' THEN 'no_previous_firmware' END, \
         CASE WHEN p.born = 'failed' THEN 'the version that ran before is not in the registry' END, \
         CASE WHEN p.born = 'failed' THEN 'never' END, $2, $2 \
         FROM (SELECT q.*, CASE WHEN q.gone = 1 OR (q.running <> q.to_version \
             AND q.running <> COALESCE(q.from_version, '')) THEN 'cancelled' WHEN q.previous IS NULL THEN 'failed' \
             ELSE 'pending' END AS born FROM (SELECT CASE WHEN l.device_key IS NULL OR d.registered_at > u.ended_at THEN 1 ELSE 0 END AS gone, \
             COALESCE(l.version, u.to_version) AS running, c.number, u.device_key, u.device_id, u.campaign_id, u.from_version, u.to_version, u.stage, \
             u.priority, u.max_retries, u.timeout_seconds, \
             COALESCE( \
                 (SELECT f.firmware_id FROM firmware f WHERE f.device_model = now.device_model \
                     AND f.version = u.from_version AND f.name = now.name AND f.deprecated_at IS NULL), \
                 (SELECT f.firmware_id FROM firmware f WHERE f.device_model = now.device_model \
                     AND f.version = u.from_version AND f.deprecated_at IS NULL \
                     ORDER BY f.created_at DESC, f.firmware_id LIMIT 1)) AS previous \
             FROM device_updates u JOIN update_campaigns c ON c.campaign_id = u.campaign_id \
             JOIN devices d ON d.device_key = u.device_key LEFT JOIN device_latest l ON l.device_key = u.device_key JOIN firmware now ON now.firmware_id = c.firmware_id \
             WHERE u.campaign_id = $1 AND u.action = 'update' AND u.state = 'completed' \
             AND NOT EXISTS (SELECT 1 FROM device_updates r WHERE r.device_key = u.device_key \
                 AND r.campaign_id = u.campaign_id AND r.action = 'rollback') \
         ) q) p WHERE 1 = 1 ORDER BY p.device_key ON CONFLICT (update_id) DO NOTHING RETURNING number";
    CANCEL_STAGE = "UPDATE device_updates SET state = 'cancelled', ended_at = $3, updated_at = $3, check_at = NULL \
         WHERE campaign_id = $1 AND action = $4 AND stage = $2 AND state = 'pending' RETURNING number";
    // A rollback that was born cancelled, or whose device has moved on since, has nothing to take back.
    REVIVE_STAGE = "UPDATE device_updates SET state = 'pending', due_at = $3, ended_at = NULL, updated_at = $3, \
         give_up_at = $4, check_at = $4 \
         WHERE campaign_id = $1 AND action = 'rollback' AND stage = $2 AND state = 'cancelled' \
         AND firmware_id IS NOT NULL AND EXISTS (SELECT 1 FROM device_latest l \
             WHERE l.device_key = device_updates.device_key \
             AND COALESCE(l.version, device_updates.from_version) = device_updates.from_version) RETURNING number";
}

/// Makes one pending update for every device that the campaign means, and counts them.
pub(crate) async fn make_updates<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &Campaign,
    firmware: &Firmware,
    at: Timestamp,
) -> Result<u64, DbError> {
    let before = lock_and_last_number::<D>(conn, &campaign.id).await?;
    let aim = Aim {
        spec: &campaign.spec,
        firmware,
        now: at,
    };
    let args = bind_aim::<D>(aim)
        .text(campaign.id.as_str())
        .int(i64::from(campaign.spec.max_retries))
        .uint(campaign.spec.timeout_seconds)
        .time(at);
    let (condition, args) = meant::<D>(conn, aim, args, 10).await?;
    let made = sql::execute_given::<D>(conn, &MAKE_UPDATES, &condition, args).await?;
    count_born::<D>(conn, &campaign.id, before).await?;
    Ok(made)
}

/// Makes one rollback, and its log entry, for every completed update of the campaign that has none; answers their
/// numbers.
pub(crate) async fn make_rollbacks<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &Campaign,
    terms: &RollbackTerms<'_>,
) -> Result<Vec<i64>, DbError> {
    let before = lock_and_last_number::<D>(conn, &campaign.id).await?;
    let args = Args::new()
        .text(campaign.id.as_str())
        .time(terms.at)
        .time(terms.give_up_at);
    let made = sql::fetch_all::<D, _>(conn, &MAKE_ROLLBACKS, args, number).await?;
    let (trigger, reason) = (terms.trigger, terms.reason);
    rollbacks::log_all::<D>(conn, &campaign.id, before, trigger, reason).await?;
    count_born::<D>(conn, &campaign.id, before).await?;
    Ok(made)
}

/// Locks the campaign, so that nobody else makes rows for it, and answers its highest row number so far.
async fn lock_and_last_number<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
) -> Result<i64, DbError> {
    campaigns::locked::<D>(conn, campaign).await?;
    let args = Args::<D>::new().text(campaign.as_str());
    let last = sql::fetch_optional(conn, &LAST_NUMBER, args, |row| row.int_opt("number"));
    Ok(last.await?.flatten().unwrap_or(0))
}

/// Counts the rows made after `before`. Rows that existed are left to the deltas of those who move them.
async fn count_born<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    before: i64,
) -> Result<(), DbError> {
    let born = counts::count_rows::<D>(conn, campaign, before).await?;
    counts::add::<D>(conn, &born).await
}

/// Cancels every pending update, or every pending rollback, of the campaign; answers the rows' numbers.
pub(crate) async fn cancel_pending<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    action: Action,
    at: Timestamp,
) -> Result<Vec<i64>, DbError> {
    let delta = Delta {
        campaign: campaign.clone(),
        action,
        stage: 0,
        from: Some(Group::Pending),
        to: Group::Cancelled,
    };
    stage_by_stage::<D>(conn, &CANCEL_STAGE, &delta, |args| {
        args.time(at).text(action.name())
    })
    .await
}

/// Lets the campaign's cancelled rollbacks wait once more; answers the rows' numbers.
pub(crate) async fn revive_rollbacks<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    at: Timestamp,
    give_up_at: Timestamp,
) -> Result<Vec<i64>, DbError> {
    let delta = Delta {
        campaign: campaign.clone(),
        action: Action::Rollback,
        stage: 0,
        from: Some(Group::Cancelled),
        to: Group::Pending,
    };
    stage_by_stage::<D>(conn, &REVIVE_STAGE, &delta, |args| {
        args.time(at).time(give_up_at)
    })
    .await
}

/// Runs a statement for each stage (`$2`) of a campaign (`$1`) and moves the counters by what it changed: the number of
/// changed rows is then the delta. Answers the rows' numbers.
async fn stage_by_stage<D: Dialect>(
    conn: &mut D::Connection,
    statement: &'static Statement,
    moved: &Delta,
    bind: impl Fn(Args<D>) -> Args<D>,
) -> Result<Vec<i64>, DbError> {
    let campaign = &moved.campaign;
    let stages = counts::counts::<D>(conn, campaign).await?.stages.len();
    let mut deltas = Vec::with_capacity(stages);
    let mut numbers = Vec::new();
    for stage in 0..u16::try_from(stages).unwrap_or(u16::MAX) {
        let args = bind(Args::new().text(campaign.as_str()).int(i64::from(stage)));
        let changed = sql::fetch_all::<D, _>(conn, statement, args, number).await?;
        let delta = Delta {
            stage,
            ..moved.clone()
        };
        deltas.push((delta, changed.len() as u64));
        numbers.extend(changed);
    }
    counts::add::<D>(conn, &deltas).await?;
    Ok(numbers)
}

fn number<D: Dialect>(row: &Record<'_, D>) -> Result<i64, DbError> {
    row.int("number")
}
