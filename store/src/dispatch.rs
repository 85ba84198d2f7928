//! The look-ups that the dispatcher and the reaper live on: what may be offered, what is in flight, what ran out of time.

use std::collections::{HashMap, HashSet};

use device_ota_domain::bandwidth::Line;
use device_ota_domain::campaign::{Campaign, OpenFor};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::update::{Action, Update};
use device_ota_domain::{CampaignId, UpdateId};
use device_ota_engine::ports::replicas::ReplicaKey;
use device_ota_engine::ports::store::{ClaimQuery, Claimable, InFlight, Rivals, SingleQuery};
use jiff::Timestamp;

use crate::campaigns;
use crate::conditions::{Conditions, fits_image};
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::permits::permits;
use crate::sql::{self, Args, Statement, statements};
use crate::standing::number;
use crate::updates::{read_update, select_update};

/// An update that waits, called `u`, with what its device, called `l`, runs when last heard, and whether it would refuse the image at a
/// time: it is below the floor, and no permit is there.
macro_rules! waiting {
    ($now:literal, $($rest:expr),+ $(,)?) => {
        select_update!(
            ", COALESCE(l.version, (SELECT d.firmware_version FROM devices d WHERE d.device_key = u.device_key)) \
             AS running, CAST(CASE WHEN l.security_floor > (SELECT f.security_version FROM firmware f \
                 WHERE f.firmware_id = u.firmware_id) AND (u.action = 'update' OR NOT EXISTS \
                 (SELECT 1 FROM rollback_permits p WHERE ",
            permits!("u.device_id", "u.device_key", "u.campaign_id", "l.version", "u.firmware_id", $now),
            ")) THEN 1 ELSE 0 END AS BIGINT) AS below_floor \
             FROM device_updates u JOIN device_latest l ON l.device_key = u.device_key WHERE ",
            $($rest),+
        )
    };
}

/// What a device must be for any offer: there, with the replica that asks or with none, of the model that it is registered as, and
/// without another update in flight.
macro_rules! takes_offers {
    ($here:literal) => {
        concat!(
            "l.online = 1 AND (l.replica_key IS NULL OR l.replica_key = ",
            $here,
            ") AND (l.reported_model IS NULL OR l.reported_model = \
                 (SELECT d.device_model FROM devices d WHERE d.device_key = u.device_key)) \
             AND NOT EXISTS (SELECT 1 FROM device_updates o WHERE o.device_key = u.device_key AND o.state = 'in_flight')"
        )
    };
}

/// A campaign's updates, or rollbacks, that may be offered, in an order of stages. Of devices that hold the image of another update,
/// only those that give way (`Update::gives_way_to`).
macro_rules! claimable {
    ($order:literal) => {
        waiting!(
            "$4",
            "u.state = 'pending' AND u.campaign_id = $1 AND u.action = $2 AND u.stage <= $3 AND u.due_at <= $4 \
             AND (l.battery_percent IS NULL OR l.battery_percent >= $5) \
             AND (l.free_storage_bytes IS NULL OR l.free_storage_bytes >= $6) AND ",
            takes_offers!("$8"),
            " AND NOT EXISTS (SELECT 1 FROM device_updates h WHERE h.device_key = u.device_key \
                 AND h.state = 'staged' AND u.action = 'update' AND (h.priority > u.priority OR (h.priority = u.priority \
                 AND (h.created_at < u.created_at OR (h.created_at = u.created_at AND h.update_id < u.update_id))))) \
             AND {given} ORDER BY ",
            $order,
            " LIMIT $7 {skip_locked}"
        )
    };
}

statements! {
    CLAIMABLE = claimable!("u.stage, u.due_at, u.number");
    // The last stage first, and the canaries last: backwards through the same index, so that none of them are sorted.
    CLAIMABLE_BACK = claimable!("u.stage DESC, u.due_at DESC, u.number DESC");
    CLAIMABLE_STAGED = waiting!(
        "$4",
        "u.state = 'staged' AND u.campaign_id = $1 AND u.action = $2 AND u.stage <= $3 AND u.since <= $4 \
         AND (l.battery_percent IS NULL OR l.battery_percent >= $5) \
         AND (l.free_storage_bytes IS NULL OR l.free_storage_bytes >= $6) AND ",
        takes_offers!("$8"),
        " AND {given} ORDER BY u.stage, u.since, u.number LIMIT $7 {skip_locked}"
    );
    HELD_LOCKED = select_update!(
        " FROM device_updates u WHERE u.device_key {any_int:$1} AND u.state = 'staged' \
         ORDER BY u.device_key, u.number {for_update}"
    );
    CLAIMABLE_SINGLE = waiting!(
        "$2",
        "u.state = 'pending' AND u.campaign_id IS NULL AND u.action = $1 AND u.due_at <= $2 AND ",
        takes_offers!("$4"),
        " AND ",
        fits_image!("u"),
        " AND {given} ORDER BY u.priority DESC, u.due_at, u.number LIMIT $3 {skip_locked}"
    );
    DUE_SINGLE = concat!(
        "SELECT u.number FROM device_updates u JOIN device_latest l ON l.device_key = u.device_key \
         WHERE u.state = 'pending' AND u.campaign_id IS NULL AND u.action IN ('update', 'rollback') AND u.due_at <= $1 AND ",
        takes_offers!("$2"),
        " AND ",
        fits_image!("u"),
        " LIMIT 1"
    );
    // In the order of their index, so that nobody looks for one elsewhere.
    ANY_SINGLE = "SELECT u.number FROM device_updates u WHERE u.state = 'pending' AND u.campaign_id IS NULL \
         ORDER BY u.action, u.priority DESC, u.due_at, u.number LIMIT 1";
    WAITING = select_update!(" FROM device_updates u WHERE u.device_key {any_int:$1} AND u.state = 'pending'");
    ALL_IN_FLIGHT = "SELECT COUNT(*) AS updates FROM device_updates u WHERE u.state = 'in_flight'";
    IN_FLIGHT = select_update!(" FROM device_updates u WHERE u.device_key = $1 AND u.state = 'in_flight'");
    // Two statements' worth of one look at each index.
    BUSY_WITH = select_update!(
        " FROM device_updates u WHERE u.number IN (SELECT i.number FROM device_updates i \
             WHERE i.device_key {any_int:$1} AND i.state = 'in_flight' UNION ALL SELECT h.number FROM device_updates h \
             WHERE h.device_key {any_int:$1} AND h.state = 'staged')"
    );
    IN_FLIGHT_LOCKED = select_update!(
        " FROM device_updates u WHERE u.device_key {any_int:$1} AND u.state = 'in_flight' \
         ORDER BY u.device_key, u.number {for_update}"
    );
    OPEN = select_update!(
        " FROM device_updates u WHERE u.device_key = $1 AND u.state IN ('pending', 'in_flight', 'staged') ORDER BY u.number"
    );
    NEWEST_OPEN = select_update!(
        " FROM device_updates u WHERE u.device_key = $1 AND u.state IN ('pending', 'in_flight', 'staged') \
         ORDER BY u.state, u.number DESC LIMIT $2"
    );
    OPEN_LOCKED = select_update!(
        " FROM device_updates u WHERE u.device_key = $1 AND u.state IN ('pending', 'in_flight', 'staged') \
         ORDER BY u.number {for_update}"
    );
    CANCELLABLE = select_update!(
        " FROM device_updates u WHERE u.campaign_id = $1 AND u.state = 'in_flight' AND u.action = $3 \
         AND u.cancel_requested = 0 AND u.phase IN ('offered', 'accepted', 'downloading', 'verifying', 'staged') \
         AND NOT EXISTS (SELECT 1 FROM device_latest l WHERE l.device_key = u.device_key AND l.replica_key <> $4) \
         ORDER BY u.number LIMIT $2 {skip_locked}"
    );
    UNANSWERED = select_update!(
        " FROM device_updates u JOIN device_latest l ON l.device_key = u.device_key \
         WHERE u.nudge_at IS NOT NULL AND (u.nudge_at < $1 OR u.nudge_at > $3) AND l.online = 1 \
         AND (l.replica_key IS NULL OR l.replica_key = $4) \
         ORDER BY u.nudge_at, u.number LIMIT $2"
    );
    WATCHED = "SELECT u.device_key, u.to_version FROM device_updates u WHERE u.watch_until IS NOT NULL";
    WATCHED_LOCKED = select_update!(
        " FROM device_updates u WHERE u.device_key {any_int:$1} AND u.watch_until IS NOT NULL \
         ORDER BY u.device_key, u.number {for_update}"
    );
    // Counted, so that each row looks at its own device whatever the planner thinks of the table.
    SUPERSEDED = "SELECT u.update_id FROM device_updates u WHERE u.update_id {any:$1} AND \
         (SELECT COUNT(*) FROM device_updates o WHERE o.device_key = u.device_key AND o.number <> u.number \
             AND (o.state IN ('in_flight', 'staged') OR (o.state = 'completed' AND o.ended_at >= u.started_at))) > 0";
    END_WATCHES = "UPDATE device_updates SET watch_until = NULL, check_at = NULL \
         WHERE device_key {any_int:$1} AND watch_until IS NOT NULL";
    REBOOTING = "SELECT u.device_key FROM device_updates u WHERE u.state = 'in_flight' AND u.phase = 'rebooting'";
    LEFT_BEHIND = "SELECT u.update_id FROM devices d JOIN device_updates u ON u.device_key = d.device_key \
         WHERE d.deleted_at >= $1 AND u.state IN ('pending', 'in_flight', 'staged') ORDER BY d.deleted_at LIMIT $2";
    // Counted, so that each row looks at its own device whatever the planner thinks of the table.
    EXPIRED = select_update!(
        ", l.last_seen, l.online, l.version AS running FROM device_updates u \
         JOIN device_latest l ON l.device_key = u.device_key \
         WHERE u.check_at <= $1 AND (SELECT COUNT(*) FROM device_latest h \
             WHERE h.device_key = u.device_key AND h.replica_key <> $3) = 0 ORDER BY u.check_at, u.number LIMIT $2"
    );
}

/// Devices with an update in flight that is restarting them.
pub(crate) async fn rebooting<D: Dialect>(
    conn: &mut D::Connection,
) -> Result<Vec<DeviceKey>, DbError> {
    let read = |row: &sql::Record<'_, D>| Ok(DeviceKey(row.int("device_key")?));
    sql::fetch_all(conn, &REBOOTING, Args::new(), read).await
}

/// Devices that are watched, and the version that each has to show.
pub(crate) async fn watched<D: Dialect>(
    conn: &mut D::Connection,
) -> Result<Vec<(DeviceKey, String)>, DbError> {
    let read = |row: &sql::Record<'_, D>| {
        Ok((DeviceKey(row.int("device_key")?), row.string("to_version")?))
    };
    sql::fetch_all(conn, &WATCHED, Args::new(), read).await
}

/// The updates of these devices that are watched, locked.
pub(crate) async fn watched_locked<D: Dialect>(
    conn: &mut D::Connection,
    devices: &[DeviceKey],
) -> Result<Vec<Update>, DbError> {
    let keys: Vec<i64> = devices.iter().map(|key| key.0).collect();
    let args = Args::<D>::new().ints(&keys);
    sql::fetch_all(conn, &WATCHED_LOCKED, args, read_update).await
}

/// Of these updates, those whose device was given to another one since.
pub(crate) async fn superseded<D: Dialect>(
    conn: &mut D::Connection,
    updates: &[UpdateId],
) -> Result<Vec<UpdateId>, DbError> {
    let ids: Vec<&str> = updates.iter().map(UpdateId::as_str).collect();
    let args = Args::<D>::new().texts(&ids);
    sql::fetch_all(conn, &SUPERSEDED, args, |row| row.parse("update_id")).await
}

/// Nobody watches these devices any more.
pub(crate) async fn end_watches<D: Dialect>(
    conn: &mut D::Connection,
    devices: &[DeviceKey],
) -> Result<(), DbError> {
    let keys: Vec<i64> = devices.iter().map(|key| key.0).collect();
    let args = Args::<D>::new().ints(&keys);
    sql::execute(conn, &END_WATCHES, args).await.map(drop)
}

/// Updates of a campaign that may be offered or activated, locked.
pub(crate) async fn claimable<D: Dialect>(
    conn: &mut D::Connection,
    query: &ClaimQuery,
) -> Result<Vec<Claimable>, DbError> {
    let mut staged = Vec::new();
    if !query.hold && query.action == Action::Update {
        staged = found::<D>(conn, &CLAIMABLE_STAGED, query, &[]).await?;
    }
    let taken = u32::try_from(staged.len()).unwrap_or(u32::MAX);
    let rest = ClaimQuery {
        limit: query.limit.saturating_sub(taken),
        ..query.clone()
    };
    if rest.offers && rest.limit > 0 {
        let statement = match query.action {
            Action::Update => &CLAIMABLE,
            Action::Rollback => &CLAIMABLE_BACK,
        };
        let rows = found::<D>(conn, statement, &rest, &rest.busy).await?;
        staged.extend(displacing::<D>(conn, rows).await?);
    }
    Ok(staged)
}

/// What a statement finds of devices whose maintenance window is open, that are behind no line that is busy, and kept for nobody.
async fn found<D: Dialect>(
    conn: &mut D::Connection,
    statement: &'static Statement,
    query: &ClaimQuery,
    busy: &[Line],
) -> Result<Vec<Claimable>, DbError> {
    if query.open_for == OpenFor::All && busy.is_empty() && query.ahead.is_empty() {
        let args = bind_claim::<D>(query);
        return sql::fetch_all(conn, statement, args, read_claimable).await;
    }
    let (condition, args) = conditions::<D>(query, busy);
    sql::fetch_given(conn, statement, &condition, args, read_claimable).await
}

/// What else a claim of a campaign's updates asks for, and all its values.
pub(crate) fn conditions<D: Dialect>(query: &ClaimQuery, busy: &[Line]) -> (String, Args<D>) {
    let mut conditions = Conditions::new(bind_claim::<D>(query), 8);
    conditions.behind_none(busy);
    conditions.is_open(&query.open_for);
    conditions.behind_nothing(&query.ahead, query.now);
    conditions.finish()
}

/// The same, each with the update whose image its device holds, locked.
async fn displacing<D: Dialect>(
    conn: &mut D::Connection,
    mut rows: Vec<Claimable>,
) -> Result<Vec<Claimable>, DbError> {
    let keys: Vec<i64> = rows.iter().map(|row| row.update.device.0).collect();
    let args = Args::<D>::new().ints(&keys);
    let held = sql::fetch_all(conn, &HELD_LOCKED, args, read_update).await?;
    let mut held: HashMap<DeviceKey, Update> = held.into_iter().map(|u| (u.device, u)).collect();
    for row in &mut rows {
        row.displaces = held.remove(&row.update.device);
    }
    Ok(rows)
}

/// Those of single devices, at most one a device.
pub(crate) async fn claimable_singles<D: Dialect>(
    conn: &mut D::Connection,
    query: &SingleQuery,
) -> Result<Vec<Claimable>, DbError> {
    let args = bind_single_claim::<D>(query.action, query.now, query.limit, query.here);
    let mut rows = if query.busy.is_empty() && query.ahead.is_empty() {
        sql::fetch_all(conn, &CLAIMABLE_SINGLE, args, read_claimable).await?
    } else {
        let mut conditions = Conditions::new(args, 4);
        conditions.behind_none(&query.busy);
        conditions.behind_nothing(&query.ahead, query.now);
        let (condition, args) = conditions.finish();
        sql::fetch_given(conn, &CLAIMABLE_SINGLE, &condition, args, read_claimable).await?
    };
    // A device may have several updates that wait; only the first may take its one place in flight.
    let mut devices = HashSet::with_capacity(rows.len());
    rows.retain(|row| devices.insert(row.update.device));
    displacing::<D>(conn, rows).await
}

fn read_claimable<D: Dialect>(row: &sql::Record<'_, D>) -> Result<Claimable, DbError> {
    Ok(Claimable {
        update: read_update(row)?,
        running: row.string_opt("running")?,
        displaces: None,
        below_floor: row.flag("below_floor")?,
    })
}

/// Binds a claim of a campaign's updates.
pub(crate) fn bind_claim<D: Dialect>(query: &ClaimQuery) -> Args<D> {
    Args::new()
        .text(query.campaign.as_str())
        .text(query.action.name())
        .int(i64::from(query.up_to_stage))
        .time(query.now)
        .real(query.requires.min_battery_percent.map_or(0.0, f64::from))
        .int(query.requires.min_free_storage_bytes.unwrap_or(0))
        .int(i64::from(query.limit))
        .int(number(query.here))
}

/// Binds a claim of updates of single devices.
pub(crate) fn bind_single_claim<D: Dialect>(
    action: Action,
    now: Timestamp,
    limit: u32,
    here: Option<ReplicaKey>,
) -> Args<D> {
    Args::new()
        .text(action.name())
        .time(now)
        .int(i64::from(limit))
        .int(number(here))
}

/// What the device has open.
pub(crate) async fn open<D: Dialect>(
    conn: &mut D::Connection,
    device: DeviceKey,
) -> Result<Vec<Update>, DbError> {
    let args = Args::<D>::new().int(device.0);
    sql::fetch_all(conn, &OPEN, args, read_update).await
}

/// What the device has open: first what is in flight, then what waits, newest first.
pub(crate) async fn newest_open<D: Dialect>(
    conn: &mut D::Connection,
    device: DeviceKey,
    limit: u32,
) -> Result<Vec<Update>, DbError> {
    let args = Args::<D>::new().int(device.0).int(i64::from(limit));
    sql::fetch_all(conn, &NEWEST_OPEN, args, read_update).await
}

/// What the device has open, locked.
pub(crate) async fn open_locked<D: Dialect>(
    conn: &mut D::Connection,
    device: DeviceKey,
) -> Result<Vec<Update>, DbError> {
    let args = Args::<D>::new().int(device.0);
    sql::fetch_all(conn, &OPEN_LOCKED, args, read_update).await
}

/// Whether a single device's update is due, of one that no other replica holds.
pub(crate) async fn has_due_singles<D: Dialect>(
    conn: &mut D::Connection,
    now: Timestamp,
    here: Option<ReplicaKey>,
) -> Result<bool, DbError> {
    let args = Args::<D>::new().time(now).int(number(here));
    let due = sql::fetch_optional(conn, &DUE_SINGLE, args, |_| Ok(())).await?;
    Ok(due.is_some())
}

/// What else waits for devices of the campaign, or of any, and may go before it.
pub(crate) async fn rivals<D: Dialect>(
    conn: &mut D::Connection,
    campaign: Option<&Campaign>,
) -> Result<Rivals, DbError> {
    let campaigns = campaigns::rivals::<D>(conn, campaign).await?;
    let singles = match campaign {
        Some(_) => sql::fetch_optional(conn, &ANY_SINGLE, Args::<D>::new(), |_| Ok(())).await?,
        None => None,
    };
    Ok(Rivals {
        campaigns,
        singles: singles.is_some(),
    })
}

/// How many updates and rollbacks are in flight.
pub(crate) async fn all_in_flight<D: Dialect>(conn: &mut D::Connection) -> Result<u64, DbError> {
    let read = |row: &sql::Record<'_, D>| row.uint("updates");
    let found = sql::fetch_optional(conn, &ALL_IN_FLIGHT, Args::new(), read);
    Ok(found.await?.unwrap_or_default())
}

/// The same, and nobody else gets an answer before the transaction ends.
pub(crate) async fn hold_slots<D: Dialect>(conn: &mut D::Connection) -> Result<u64, DbError> {
    if let Some(lock) = D::HOLD_SLOTS {
        D::batch(conn, lock.to_owned()).await?;
    }
    all_in_flight::<D>(conn).await
}

/// The device's update in flight.
pub(crate) async fn in_flight<D: Dialect>(
    conn: &mut D::Connection,
    device: DeviceKey,
) -> Result<Option<Update>, DbError> {
    sql::fetch_optional(
        conn,
        &IN_FLIGHT,
        Args::<D>::new().int(device.0),
        read_update,
    )
    .await
}

/// The updates that these devices are given to.
pub(crate) async fn busy_with<D: Dialect>(
    conn: &mut D::Connection,
    devices: &[DeviceKey],
) -> Result<Vec<Update>, DbError> {
    let keys: Vec<i64> = devices.iter().map(|key| key.0).collect();
    let args = Args::<D>::new().ints(&keys);
    sql::fetch_all(conn, &BUSY_WITH, args, read_update).await
}

/// What waits for an offer, of these devices.
pub(crate) async fn waiting<D: Dialect>(
    conn: &mut D::Connection,
    devices: &[DeviceKey],
) -> Result<Vec<Update>, DbError> {
    let keys: Vec<i64> = devices.iter().map(|key| key.0).collect();
    let args = Args::<D>::new().ints(&keys);
    sql::fetch_all(conn, &WAITING, args, read_update).await
}

/// The updates in flight of these devices, locked.
pub(crate) async fn in_flight_locked<D: Dialect>(
    conn: &mut D::Connection,
    devices: &[DeviceKey],
) -> Result<Vec<Update>, DbError> {
    let keys: Vec<i64> = devices.iter().map(|key| key.0).collect();
    sql::fetch_all(
        conn,
        &IN_FLIGHT_LOCKED,
        Args::<D>::new().ints(&keys),
        read_update,
    )
    .await
}

/// Updates, or rollbacks, of the campaign in flight that a cancel would still help, of devices that no other replica holds; locked.
pub(crate) async fn cancellable<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    action: Action,
    here: Option<ReplicaKey>,
    limit: u32,
) -> Result<Vec<Update>, DbError> {
    let args = Args::<D>::new()
        .text(campaign.as_str())
        .int(i64::from(limit))
        .text(action.name())
        .int(number(here));
    sql::fetch_all(conn, &CANCELLABLE, args, read_update).await
}

/// Offers and cancels that devices have not answered which are online, and that no other replica holds.
pub(crate) async fn unanswered<D: Dialect>(
    conn: &mut D::Connection,
    before: Timestamp,
    now: Timestamp,
    here: Option<ReplicaKey>,
    limit: u32,
) -> Result<Vec<Update>, DbError> {
    let args = Args::<D>::new().time(before).int(i64::from(limit));
    let args = args.time(now).int(number(here));
    sql::fetch_all(conn, &UNANSWERED, args, read_update).await
}

/// Updates whose lease, deadline or loss has come due.
pub(crate) async fn expired<D: Dialect>(
    conn: &mut D::Connection,
    now: Timestamp,
    here: Option<ReplicaKey>,
    limit: u32,
) -> Result<Vec<InFlight>, DbError> {
    let args = Args::<D>::new().time(now).int(i64::from(limit));
    let args = args.int(number(here));
    sql::fetch_all(conn, &EXPIRED, args, |row| {
        Ok(InFlight {
            update: read_update(row)?,
            last_seen: row.time_opt("last_seen")?,
            online: row.flag("online")?,
            running: row.string_opt("running")?,
        })
    })
    .await
}

/// What is open of devices that were deleted.
pub(crate) async fn left_behind<D: Dialect>(
    conn: &mut D::Connection,
    since: Timestamp,
    limit: u32,
) -> Result<Vec<UpdateId>, DbError> {
    let args = Args::<D>::new().time(since).int(i64::from(limit));
    sql::fetch_all(conn, &LEFT_BEHIND, args, |row| row.parse("update_id")).await
}
