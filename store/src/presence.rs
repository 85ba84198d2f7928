//! What devices say of themselves: their latest state, their heartbeats, and the `seq` and nonce of their next offer.

use device_ota_domain::device::DeviceKey;
use device_ota_engine::ports::replicas::Here;
use device_ota_engine::ports::store::{Absence, OfferGround, Touch};
use device_ota_engine::ports::telemetry::HeartbeatRow;
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, statements, to_json};
use crate::standing::{self, Standing};

statements! {
    RESET_PRESENCE = "UPDATE device_latest SET online = 0, offline_since = $1, replica_key = NULL WHERE online = 1 \
         AND (replica_key IS NULL OR replica_key NOT IN (SELECT replica_key FROM replicas))";
    TOUCH[Int, Int, Text, Text, Int, Real, Int, Int, Int, Text, Text, Int, Text, Text] =
        "WITH v (device_key, last_seen, version, slot, confirmed, battery, charging, storage, floor, model, nonce, \
         errors, last_error, metrics) \
         AS (VALUES {rows}) UPDATE device_latest SET \
         last_seen = CASE WHEN device_latest.last_seen IS NULL OR v.last_seen > device_latest.last_seen \
             THEN v.last_seen ELSE device_latest.last_seen END, \
         version = COALESCE(v.version, device_latest.version), \
         slot = COALESCE(v.slot, device_latest.slot), \
         confirmed = COALESCE(v.confirmed, device_latest.confirmed), \
         battery_percent = COALESCE(v.battery, device_latest.battery_percent), \
         charging = COALESCE(v.charging, device_latest.charging), \
         free_storage_bytes = COALESCE(v.storage, device_latest.free_storage_bytes), \
         security_floor = COALESCE(v.floor, device_latest.security_floor), \
         reported_model = COALESCE(v.model, device_latest.reported_model), \
         nonce = COALESCE(v.nonce, device_latest.nonce), \
         error_count = COALESCE(v.errors, device_latest.error_count), \
         last_error = COALESCE(v.last_error, device_latest.last_error), \
         metrics = COALESCE(v.metrics, device_latest.metrics) \
         FROM v WHERE device_latest.device_key = v.device_key";
    // Apart from what heartbeats change, so that these leave the index of the connected alone. A session may have come and
    // gone within one batch; a second good-bye is no other absence, whichever session it is said to be of. Whose session another
    // replica holds has not left.
    CONNECTED[Int, Int, Int, Int, Int, Int, Int] =
        "WITH v (device_key, now, online, session, left_at, was_there, replica_key) AS (VALUES {rows}) UPDATE device_latest SET \
         online = v.online, session = v.session, replica_key = CASE WHEN v.online = 1 THEN v.replica_key END, \
         offline_since = CASE WHEN v.online = 1 THEN NULL \
             WHEN device_latest.online = 1 OR v.was_there = 1 \
                 THEN COALESCE(v.left_at, device_latest.last_seen) \
             ELSE device_latest.offline_since END \
         FROM v WHERE device_latest.device_key = v.device_key AND (v.session >= device_latest.session \
             OR (v.online = 1 AND device_latest.session > v.now)) \
         AND (v.online = 1 OR device_latest.replica_key IS NULL OR device_latest.replica_key = v.replica_key)";
    AWAY = "SELECT l.device_key, d.device_id, l.last_seen, l.offline_since FROM device_latest l \
         JOIN devices d ON d.device_key = l.device_key WHERE l.offline_since <= $1 ORDER BY l.offline_since LIMIT $2";
    SETTLE_ABSENCES[Int, Int, Int] =
        "WITH v (k, since, still) AS (VALUES {rows}) UPDATE device_latest SET offline_since = v.still \
         FROM v WHERE device_latest.device_key = v.k AND device_latest.offline_since = v.since RETURNING device_key";
    INSERT_HEARTBEATS[Int, Int, Text] =
        "INSERT INTO device_heartbeats (device_key, received_at, payload) VALUES {rows}";
    DRAW_SEQS = "UPDATE device_seqs SET seq = seq + 1 WHERE device_key {any_int:$1} RETURNING seq, device_key, \
         (SELECT d.device_id FROM devices d WHERE d.device_key = device_seqs.device_key) AS device_id, \
         (SELECT l.nonce FROM device_latest l WHERE l.device_key = device_seqs.device_key) AS nonce";
}

/// Every device is offline that no replica holds.
pub(crate) async fn reset<D: Dialect>(
    conn: &mut D::Connection,
    at: Timestamp,
) -> Result<(), DbError> {
    sql::execute::<D>(conn, &RESET_PRESENCE, Args::new().time(at))
        .await
        .map(drop)
}

/// Devices that have been away since `before` or longer, and of whom that was not told, longest first.
pub(crate) async fn away<D: Dialect>(
    conn: &mut D::Connection,
    before: Timestamp,
    limit: u32,
) -> Result<Vec<Absence>, DbError> {
    let args = Args::<D>::new().time(before).int(i64::from(limit));
    sql::fetch_all(conn, &AWAY, args, |row| {
        Ok(Absence {
            device: DeviceKey(row.int("device_key")?),
            device_id: row.parse("device_id")?,
            last_seen: row.time_opt("last_seen")?,
            since: row.time("offline_since")?,
        })
    })
    .await
}

/// Lets absences begin at another time, or be told; answers which were still as they had been read.
pub(crate) async fn settle<D: Dialect>(
    conn: &mut D::Connection,
    absences: &[(&Absence, Option<Timestamp>)],
) -> Result<Vec<DeviceKey>, DbError> {
    sql::fetch_rows::<D, _, _>(
        conn,
        &SETTLE_ABSENCES,
        absences,
        |args, (absence, still)| args.int(absence.device.0).time(absence.since).time(*still),
        |row| Ok(DeviceKey(row.int("device_key")?)),
    )
    .await
}

/// A touch and its JSON columns.
struct Row<'t> {
    touch: &'t Touch,
    last_error: Option<String>,
    metrics: Option<String>,
}

impl<'t> Row<'t> {
    fn of(touch: &'t Touch) -> Result<Self, DbError> {
        Ok(Self {
            touch,
            last_error: touch.last_error.as_ref().map(to_json).transpose()?,
            metrics: touch.metrics.as_ref().map(to_json).transpose()?,
        })
    }
}

/// Applies what a batch says of devices' present states, and of their sessions `here`.
pub(crate) async fn touch<D: Dialect>(
    conn: &mut D::Connection,
    touches: &[Touch],
    here: Here,
) -> Result<(), DbError> {
    let standing = if touches.iter().any(|touch| touch.online.is_some()) {
        standing::standing::<D>(conn, here.replica).await?
    } else {
        Standing::Alone
    };
    // In key order: neighbours share pages, and batches of several replicas take their row locks in the same order.
    let mut sorted = touches
        .iter()
        .map(Row::of)
        .collect::<Result<Vec<_>, DbError>>()?;
    sorted.sort_unstable_by_key(|row| row.touch.device);
    sql::execute_rows::<D, _>(conn, &TOUCH, &sorted, |args, row| {
        let touch = row.touch;
        args.int(touch.device.0)
            .time(touch.last_seen)
            .text(touch.version.as_deref())
            .text(touch.slot)
            .flag(touch.confirmed)
            .real(touch.battery_percent)
            .flag(touch.charging)
            .int(touch.free_storage_bytes)
            .int(touch.security_floor)
            .text(touch.reported_model.as_deref())
            .text(touch.nonce.as_deref())
            .int(touch.error_count)
            .text(row.last_error.as_deref())
            .text(row.metrics.as_deref())
    })
    .await?;
    if standing == Standing::Ended {
        return Ok(());
    }
    let connected: Vec<(&Touch, (bool, i64))> = sorted
        .into_iter()
        .filter_map(|row| Some((row.touch, row.touch.online?)))
        .collect();
    if standing == Standing::Among {
        let came = connected.iter().filter(|(_, (online, _))| *online);
        let came: Vec<(&Touch, i64)> = came
            .map(|(touch, (_, session))| (*touch, *session))
            .collect();
        standing::take_over::<D>(conn, &came, here).await?;
    }
    sql::execute_rows::<D, _>(
        conn,
        &CONNECTED,
        &connected,
        |args, (touch, (online, session))| {
            args.int(touch.device.0)
                .time(here.now.or(touch.last_seen))
                .flag(*online)
                .int(*session)
                .time(touch.left_at)
                .flag(touch.was_there)
                .int(here.replica.map(|replica| replica.0))
        },
    )
    .await
    .map(drop)
}

/// Appends to the heartbeat history.
pub(crate) async fn insert_heartbeats<D: Dialect>(
    conn: &mut D::Connection,
    rows: &[HeartbeatRow],
) -> Result<(), DbError> {
    if let Some(lock) = D::HISTORY_WRITES
        && !rows.is_empty()
    {
        D::batch(conn, lock.to_owned()).await?;
    }
    sql::execute_rows::<D, _>(conn, &INSERT_HEARTBEATS, rows, |args, row| {
        args.int(row.device.0)
            .time(row.received_at)
            .shared(row.payload.clone())
    })
    .await
    .map(drop)
}

/// Draws the next `seq` for each device, once a device.
pub(crate) async fn draw_seqs<D: Dialect>(
    conn: &mut D::Connection,
    devices: &[DeviceKey],
) -> Result<Vec<OfferGround>, DbError> {
    let keys: Vec<i64> = devices.iter().map(|key| key.0).collect();
    sql::fetch_all::<D, _>(conn, &DRAW_SEQS, Args::new().ints(&keys), |row| {
        Ok(OfferGround {
            device: DeviceKey(row.int("device_key")?),
            device_id: row.parse("device_id")?,
            seq: row.int("seq")?,
            nonce: row.string_opt("nonce")?,
        })
    })
    .await
}
