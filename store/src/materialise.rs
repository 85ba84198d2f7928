//! Whole campaigns at a stroke: making every update or rollback in one `INSERT … SELECT`, and cancelling what waits.

use std::collections::BTreeMap;

use device_ota_domain::campaign::{Campaign, Delta, Group};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::firmware::Firmware;
use device_ota_domain::rollback::MIN_RETRIES;
use device_ota_domain::statistics::{Amount, Ledger, Share, Took, minute_of};
use device_ota_domain::targeting::cuts_after_start;
use device_ota_domain::update::{Action, BELOW_FLOOR};
use device_ota_domain::{CampaignId, FirmwareId};
use device_ota_engine::ports::store::{Aim, RollbackTerms};
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::permits::permits;
use crate::sql::{self, Args, Given, Record, statements};
use crate::targets::{bind_aim, cuts, meant, verdict};
use crate::{campaigns, counts, rollbacks, updates};

/// Updates that are moved in one statement: their rows are read back, and a campaign may have a million.
const PAGE: u32 = 10_000;

/// What is told of updates that are moved at a stroke.
macro_rules! moved {
    () => {
        "number, stage, firmware_id, device_type, started_at, ended_at, \
         CASE WHEN bytes_earlier > bytes_done THEN bytes_earlier ELSE bytes_done END AS bytes"
    };
}

statements! {
    // The id is made of the campaign's number and the device's: unique without randomness, and the same again.
    MAKE_UPDATES = concat!(
        "INSERT INTO device_updates (update_id, device_key, device_id, device_type, campaign_id, action, firmware_id, \
         from_version, to_version, stage, priority, max_retries, timeout_seconds, download_seconds, install_seconds, \
         give_up_after_seconds, state, due_at, created_at, updated_at, bytes_total) \
         SELECT 'upd_' || {hex:c.number * 4294967296 + d.device_key}, d.device_key, d.device_id, d.device_type, \
         c.campaign_id, 'update', c.firmware_id, COALESCE(l.version, d.firmware_version), $2, {stage}, c.priority, $12, \
         $13, CAST($16 AS BIGINT), CAST($17 AS BIGINT), CAST($18 AS BIGINT), 'pending', $14, $14, $14, $15 \
         FROM devices d JOIN device_latest l ON l.device_key = d.device_key \
         JOIN update_campaigns c ON c.campaign_id = $11 WHERE {given} AND ",
        verdict!(),
        " = 'target' ORDER BY d.device_key ON CONFLICT (update_id) DO NOTHING"
    );
    LAST_NUMBER = "SELECT MAX(number) AS number FROM device_updates WHERE campaign_id = $1";
    // The image to go back to: of the same model and version, and of the same name, else the newest; one that is out of use
    // only when there is no other, because the device has run it and what came after it is worse. A device that was
    // deleted since, even if another has come in its place, has nothing to take back: its rollback is there for the
    // count alone.
    MAKE_ROLLBACKS = concat!(
        "INSERT INTO device_updates (update_id, device_key, device_id, device_type, campaign_id, action, \
         firmware_id, from_version, to_version, stage, priority, max_retries, timeout_seconds, download_seconds, install_seconds, \
         bytes_total, state, due_at, \
         give_up_at, check_at, ended_at, failure_code, failure_message, failure_retry, created_at, updated_at) \
         SELECT 'upd_' || {hex:m.number * 4294967296 + 4611686018427387904 + m.device_key}, m.device_key, \
         m.device_id, m.device_type, m.campaign_id, 'rollback', m.previous, m.to_version, \
         COALESCE(m.from_version, ''), m.stage, m.priority, CASE WHEN m.max_retries < $4 THEN $4 ELSE m.max_retries END, m.timeout_seconds, \
         m.download_seconds, m.install_seconds, \
         COALESCE((SELECT f.size FROM firmware f WHERE f.firmware_id = m.previous), 0), \
         CASE WHEN m.born = 'refused' THEN 'failed' ELSE m.born END, \
         CASE WHEN m.born = 'pending' THEN CAST($2 AS BIGINT) END, CAST($3 AS BIGINT), \
         CASE WHEN m.born = 'pending' THEN CAST($3 AS BIGINT) END, \
         CASE WHEN m.born <> 'pending' THEN CAST($2 AS BIGINT) END, \
         CASE m.born WHEN 'failed' THEN 'no_previous_firmware' WHEN 'refused' THEN 'downgrade_refused' END, \
         CASE m.born WHEN 'failed' THEN 'the version that ran before is not in the registry' \
             WHEN 'refused' THEN CAST($5 AS TEXT) END, \
         CASE WHEN m.born IN ('failed', 'refused') THEN 'never' END, $2, $2 \
         FROM (SELECT q.*, CASE WHEN q.gone = 1 OR (q.running <> q.to_version \
             AND q.running <> COALESCE(q.from_version, '')) THEN 'cancelled' WHEN q.previous IS NULL THEN 'failed' \
             WHEN q.security_floor > (SELECT f.security_version FROM firmware f WHERE f.firmware_id = q.previous) \
                 AND NOT EXISTS (SELECT 1 FROM rollback_permits p WHERE ",
        permits!("q.device_id", "q.device_key", "q.campaign_id", "q.running", "q.previous", "$2"),
        ") THEN 'refused' \
             ELSE 'pending' END AS born FROM (SELECT CASE WHEN l.device_key IS NULL OR d.registered_at > u.ended_at THEN 1 ELSE 0 END AS gone, \
             COALESCE(l.version, u.to_version) AS running, l.security_floor, c.number, \
             u.device_key, u.device_id, u.device_type, u.campaign_id, u.from_version, u.to_version, u.stage, u.priority, \
             u.max_retries, u.timeout_seconds, u.download_seconds, u.install_seconds, \
             COALESCE( \
                 (SELECT f.firmware_id FROM firmware f WHERE f.device_model = now.device_model \
                     AND f.version = u.from_version AND f.name = now.name AND f.deprecated_at IS NULL), \
                 (SELECT f.firmware_id FROM firmware f WHERE f.device_model = now.device_model \
                     AND f.version = u.from_version AND f.deprecated_at IS NULL \
                     ORDER BY f.created_at DESC, f.firmware_id LIMIT 1), \
                 (SELECT f.firmware_id FROM firmware f WHERE f.device_model = now.device_model \
                     AND f.version = u.from_version AND f.name = now.name), \
                 (SELECT f.firmware_id FROM firmware f WHERE f.device_model = now.device_model \
                     AND f.version = u.from_version ORDER BY f.created_at DESC, f.firmware_id LIMIT 1)) AS previous \
             FROM device_updates u JOIN update_campaigns c ON c.campaign_id = u.campaign_id \
             JOIN devices d ON d.device_key = u.device_key LEFT JOIN device_latest l ON l.device_key = u.device_key JOIN firmware now ON now.firmware_id = c.firmware_id \
             WHERE u.campaign_id = $1 AND u.action = 'update' AND u.state = 'completed' \
             AND NOT EXISTS (SELECT 1 FROM device_updates r WHERE r.device_key = u.device_key \
                 AND r.campaign_id = u.campaign_id AND r.action = 'rollback') \
         ) q) m WHERE 1 = 1 ORDER BY m.device_key ON CONFLICT (update_id) DO NOTHING RETURNING number"
    );
    CANCEL_PENDING = concat!(
        "UPDATE device_updates SET state = 'cancelled', ended_at = $2, updated_at = $2, check_at = NULL \
         WHERE state = $6 AND number IN (SELECT u.number FROM device_updates u WHERE u.campaign_id = $1 \
             AND u.number > $4 AND u.action = $3 AND u.state = $6 ORDER BY u.number LIMIT $5) RETURNING ",
        moved!()
    );
    BEGIN_TIME = "UPDATE device_updates SET give_up_at = $3 + give_up_after_seconds * 1000000, \
         check_at = CASE WHEN check_at < $3 + give_up_after_seconds * 1000000 THEN check_at \
             ELSE $3 + give_up_after_seconds * 1000000 END \
         WHERE campaign_id = $1 AND give_up_after_seconds IS NOT NULL AND give_up_at IS NULL AND action = 'update' \
         AND ((state = 'pending' AND stage <= $2) OR (state = 'staged' \
             AND (SELECT MAX(s.stage) FROM campaign_stages s WHERE s.campaign_id = $1) <= $2))";
    // A rollback that was born cancelled, or whose device has moved on since, has nothing to take back.
    REVIVABLE = concat!(
        "SELECT ",
        moved!(),
        " FROM device_updates WHERE campaign_id = $1 AND number > $2 AND action = 'rollback' AND state = 'cancelled' \
         AND firmware_id IS NOT NULL AND EXISTS (SELECT 1 FROM device_latest l \
             WHERE l.device_key = device_updates.device_key \
             AND COALESCE(l.version, device_updates.from_version) = device_updates.from_version) \
         ORDER BY number LIMIT $3 {for_update}"
    );
    REVIVE = "UPDATE device_updates SET state = 'pending', due_at = $2, ended_at = NULL, excluded = NULL, updated_at = $2, \
         give_up_at = $3, check_at = $3 WHERE number {any_int:$1}";
}

/// Makes one pending update for every device that the campaign means, or, after the start, for those of these; and counts them.
pub(crate) async fn make_updates<D: Dialect>(
    conn: &mut D::Connection,
    ledger: &mut Ledger,
    (campaign, firmware): (&Campaign, &Firmware),
    at: Timestamp,
    devices: Option<&[DeviceKey]>,
) -> Result<u64, DbError> {
    let before = lock_and_last_number::<D>(conn, &campaign.id).await?;
    let named = campaigns::named::<D>(conn, campaign).await?;
    let aim = Aim {
        spec: &campaign.spec,
        named: &named,
        firmware,
        now: at,
    };
    let args = bind_new::<D>(campaign, aim);
    let (cuts, args, bound, of_these) = match devices {
        None => (cuts::<D>(conn, aim).await?, args, 18, String::new()),
        Some(devices) => {
            let keys: Vec<i64> = devices.iter().map(|key| key.0).collect();
            let of_these = format!("d.device_key {} AND ", D::any_int("$19"));
            (cuts_after_start(aim.spec), args.ints(&keys), 19, of_these)
        }
    };
    let mut meant = meant::<D>(conn, aim, Some(&cuts), args, bound).await?;
    let (given, args) = meant.split();
    let condition = of_these + given.condition;
    let given = Given {
        condition: &condition,
        ..given
    };
    let made = sql::execute_given::<D>(conn, &MAKE_UPDATES, given, args).await?;
    count_born::<D>(conn, ledger, &campaign.id, before).await?;
    Ok(made)
}

/// Binds `$1` to `$18` of [`MAKE_UPDATES`].
fn bind_new<D: Dialect>(campaign: &Campaign, aim: Aim<'_>) -> Args<D> {
    bind_aim::<D>(aim)
        .text(campaign.id.as_str())
        .int(i64::from(campaign.spec.max_retries))
        .uint(campaign.spec.timeout_seconds)
        .time(aim.now)
        .uint(aim.firmware.size)
        .int(updates::seconds(campaign.spec.times.download_seconds))
        .int(updates::seconds(campaign.spec.times.install_seconds))
        .int(updates::seconds(campaign.spec.times.give_up_after_seconds))
}

/// Makes one rollback, and its log entry, for every completed update of the campaign that has none; answers their
/// numbers.
pub(crate) async fn make_rollbacks<D: Dialect>(
    conn: &mut D::Connection,
    ledger: &mut Ledger,
    campaign: &Campaign,
    terms: &RollbackTerms<'_>,
) -> Result<Vec<i64>, DbError> {
    let before = lock_and_last_number::<D>(conn, &campaign.id).await?;
    let args = Args::new()
        .text(campaign.id.as_str())
        .time(terms.at)
        .time(terms.give_up_at)
        .int(i64::from(MIN_RETRIES))
        .text(BELOW_FLOOR);
    let made = sql::fetch_all::<D, _>(conn, &MAKE_ROLLBACKS, args, number).await?;
    let (trigger, reason) = (terms.trigger, terms.reason);
    rollbacks::log_all::<D>(conn, &campaign.id, before, trigger, reason).await?;
    count_born::<D>(conn, ledger, &campaign.id, before).await?;
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
    ledger: &mut Ledger,
    campaign: &CampaignId,
    before: i64,
) -> Result<(), DbError> {
    let mut born = Vec::new();
    for counted in counts::count_rows::<D>(conn, campaign, before).await? {
        let delta = Delta {
            campaign: campaign.clone(),
            action: counted.share.action,
            stage: counted.stage,
            from: None,
            to: counted.share.group,
            regressed: None,
        };
        born.push((delta, counted.devices()));
        ledger.add(counted.share, counted.minute, counted.amount);
    }
    counts::add::<D>(conn, &born).await
}

/// Cancels every pending or staged update, or every pending rollback, of the campaign; answers the rows' numbers.
pub(crate) async fn cancel_pending<D: Dialect>(
    conn: &mut D::Connection,
    ledger: &mut Ledger,
    campaign: &CampaignId,
    action: Action,
    at: Timestamp,
) -> Result<Vec<i64>, DbError> {
    let mut numbers = Vec::new();
    for from in [Group::Pending, Group::Staged] {
        numbers.extend(cancel_all::<D>(conn, ledger, (campaign, action), from, at).await?);
    }
    Ok(numbers)
}

async fn cancel_all<D: Dialect>(
    conn: &mut D::Connection,
    ledger: &mut Ledger,
    (campaign, action): (&CampaignId, Action),
    from: Group,
    at: Timestamp,
) -> Result<Vec<i64>, DbError> {
    let mut stroke = Moves::new(campaign, action, from, Group::Cancelled, at);
    loop {
        let args = Args::<D>::new()
            .text(campaign.as_str())
            .time(at)
            .text(action.name())
            .int(stroke.last)
            .int(i64::from(PAGE))
            .text(from.name());
        let rows = sql::fetch_all(conn, &CANCEL_PENDING, args, read_moved).await?;
        if rows.is_empty() {
            return stroke.finish::<D>(conn).await;
        }
        stroke.take(ledger, &rows);
    }
}

/// Begins the time of the campaign's updates that have an end and no time yet, in the stages up to this one; what devices hold
/// belongs to the last stage.
pub(crate) async fn begin_time<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    up_to_stage: u16,
    at: Timestamp,
) -> Result<(), DbError> {
    let args = Args::<D>::new()
        .text(campaign.as_str())
        .int(i64::from(up_to_stage))
        .time(at);
    sql::execute(conn, &BEGIN_TIME, args).await.map(drop)
}

/// Lets the campaign's cancelled rollbacks wait once more; answers the rows' numbers.
pub(crate) async fn revive_rollbacks<D: Dialect>(
    conn: &mut D::Connection,
    ledger: &mut Ledger,
    campaign: &CampaignId,
    at: Timestamp,
    give_up_at: Timestamp,
) -> Result<Vec<i64>, DbError> {
    let (from, to) = (Group::Cancelled, Group::Pending);
    let mut stroke = Moves::new(campaign, Action::Rollback, from, to, at);
    loop {
        let args = Args::<D>::new()
            .text(campaign.as_str())
            .int(stroke.last)
            .int(i64::from(PAGE));
        let rows = sql::fetch_all(conn, &REVIVABLE, args, read_moved).await?;
        if rows.is_empty() {
            return stroke.finish::<D>(conn).await;
        }
        let numbers: Vec<i64> = rows.iter().map(|row| row.number).collect();
        let args = Args::<D>::new().ints(&numbers).time(at).time(give_up_at);
        sql::execute(conn, &REVIVE, args).await?;
        stroke.take(ledger, &rows);
    }
}

/// An update that is moved at a stroke.
struct Moved {
    number: i64,
    stage: u16,
    firmware: Option<FirmwareId>,
    device_type: Option<String>,
    started_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    bytes: i64,
}

/// Reads a row of [`moved!`].
fn read_moved<D: Dialect>(row: &Record<'_, D>) -> Result<Moved, DbError> {
    Ok(Moved {
        number: row.int("number")?,
        stage: row.uint("stage")?,
        firmware: row.parse_opt("firmware_id")?,
        device_type: row.string_opt("device_type")?,
        started_at: row.time_opt("started_at")?,
        ended_at: row.time_opt("ended_at")?,
        bytes: row.int("bytes")?,
    })
}

/// Rows that are moved at a stroke, page by page.
struct Moves<'m> {
    campaign: &'m CampaignId,
    action: Action,
    from: Group,
    to: Group,
    at: Timestamp,
    numbers: Vec<i64>,
    /// The highest of the numbers.
    last: i64,
    deltas: BTreeMap<Delta, u64>,
}

impl<'m> Moves<'m> {
    fn new(
        campaign: &'m CampaignId,
        action: Action,
        from: Group,
        to: Group,
        at: Timestamp,
    ) -> Self {
        Self {
            campaign,
            action,
            from,
            to,
            at,
            numbers: Vec::new(),
            last: 0,
            deltas: BTreeMap::new(),
        }
    }

    /// Notes a page, and how the figures move with it.
    fn take(&mut self, ledger: &mut Ledger, rows: &[Moved]) {
        for row in rows {
            self.numbers.push(row.number);
            self.last = self.last.max(row.number);
            let delta = Delta {
                campaign: self.campaign.clone(),
                action: self.action,
                stage: row.stage,
                from: Some(self.from),
                to: self.to,
                regressed: None,
            };
            *self.deltas.entry(delta).or_default() += 1;
            let amount = Amount {
                updates: 1,
                micros: 0,
                bytes: row.bytes,
            };
            ledger.add(
                self.share(row, self.from),
                self.minute(row, self.from),
                amount.negated(),
            );
            ledger.add(self.share(row, self.to), self.minute(row, self.to), amount);
            let begun = row.started_at.filter(|_| self.to == Group::Cancelled);
            ledger.took.extend(begun.map(|from| Took {
                action: self.action,
                group: self.to,
                after: self.at.duration_since(from),
            }));
        }
    }

    /// Moves the counters; answers the rows' numbers.
    async fn finish<D: Dialect>(self, conn: &mut D::Connection) -> Result<Vec<i64>, DbError> {
        let deltas: Vec<_> = self.deltas.into_iter().collect();
        counts::add::<D>(conn, &deltas).await?;
        Ok(self.numbers)
    }

    fn share(&self, row: &Moved, group: Group) -> Share {
        Share {
            campaign: Some(self.campaign.clone()),
            action: self.action,
            firmware: row.firmware.clone(),
            device_type: row.device_type.clone(),
            group,
            failure: None,
        }
    }

    /// The minute in which it ended; what is cancelled ends now, what is revived ended when its row says.
    fn minute(&self, row: &Moved, group: Group) -> Option<i64> {
        match group {
            Group::Cancelled if self.to == Group::Cancelled => Some(minute_of(self.at)),
            Group::Cancelled => row.ended_at.map(minute_of),
            _ => None,
        }
    }
}

fn number<D: Dialect>(row: &Record<'_, D>) -> Result<i64, DbError> {
    row.int("number")
}
