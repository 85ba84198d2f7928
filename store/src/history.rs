//! The history of heartbeats: found by device through segments, and let go segment by segment.
//!
//! An index by device and time over the growing table would cost ten times the insert. Instead a run of rows that is
//! complete becomes a *segment*: its numbers are written once, sorted by device, at the end of `heartbeat_index`. A read
//! looks through the rows behind the last segment and then seeks once in each segment, newest first, until it has enough.
//!
//! Where the rows lie in partitions by day (see [`days`](crate::days)), a segment that is let go leaves its rows to the end of
//! their day; and a read looks, for each segment, into the partitions of its time.

use device_ota_domain::page::Page;
use device_ota_engine::ports::telemetry::HeartbeatQuery;
use device_ota_engine::ports::telemetry::HeartbeatRow;
use jiff::Timestamp;

use crate::SqlStore;
use crate::days::DAY;
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, statements};

/// Rows of a segment. Indexing or deleting one holds the writer for some 20 ms; ten million rows are 610 seeks.
pub(crate) const SEGMENT_ROWS: i64 = 16_384;

statements! {
    INDEXED_TO = "SELECT COALESCE(MAX(segment), 0) AS segment, COALESCE(MAX(last_number), 0) AS last_number \
         FROM heartbeat_segments";
    NEWEST = "SELECT COALESCE(MAX(number), 0) AS number FROM device_heartbeats";
    // The outer joins of a `CROSS JOIN` are taken in their order: segments from the newest, then the device in each.
    HEARTBEATS_INDEXED = "SELECT h.number, h.received_at, h.payload FROM heartbeat_segments s \
         CROSS JOIN heartbeat_index i CROSS JOIN {of_segment} h \
         WHERE s.segment <= $1 AND s.last_at >= $3 AND s.first_at < $4 \
         AND i.segment = s.segment AND i.device_key = $2 AND h.number = i.number \
         AND h.received_at >= $3 AND h.received_at < $4 ORDER BY s.segment DESC, i.number DESC LIMIT $5 OFFSET $6";
    HEARTBEATS_BEHIND = "SELECT number, received_at, payload FROM device_heartbeats \
         WHERE number > $1 AND device_key = $2 AND received_at >= $3 AND received_at < $4 \
         ORDER BY number DESC LIMIT $5";
    NEXT_RUN = "SELECT COUNT(*) AS many, MAX(number) AS last_number, MIN(received_at) AS first_at, \
         MAX(received_at) AS last_at FROM (SELECT number, received_at FROM device_heartbeats \
         WHERE number > $1 AND number <= $2 ORDER BY number LIMIT $3) run";
    INSERT_SEGMENT = "INSERT INTO heartbeat_segments (segment, last_number, first_at, last_at) VALUES ($1, $2, $3, $4)";
    INDEX_SEGMENT = "INSERT INTO heartbeat_index (segment, device_key, number) SELECT CAST($1 AS BIGINT), device_key, \
         number FROM device_heartbeats WHERE number > $2 AND number <= $3 AND received_at >= $4 AND received_at <= $5 \
         ORDER BY device_key, number";
    OLDEST_SEGMENT = "SELECT segment, last_number, last_at FROM heartbeat_segments ORDER BY segment LIMIT 1";
    DELETE_SEGMENT = "DELETE FROM heartbeat_segments WHERE segment = $1";
    DELETE_INDEX = "DELETE FROM heartbeat_index WHERE segment = $1";
    DELETE_HEARTBEATS = "DELETE FROM device_heartbeats WHERE number <= $1";
    DELETE_UNDATED = "DELETE FROM {undated} WHERE number <= $1";
}

/// How far the index reaches.
struct Indexed {
    segment: i64,
    last_number: i64,
}

/// Heartbeats of one device, newest first.
pub(crate) async fn heartbeats<D: Dialect>(
    conn: &mut D::Connection,
    query: &HeartbeatQuery,
    page: Page,
) -> Result<Vec<HeartbeatRow>, DbError> {
    // Read first: a segment that is closed meanwhile is beyond it, and its rows are still found behind it.
    let indexed = indexed_to::<D>(conn).await?;
    let (from, to) = (
        query.from.map_or(i64::MIN, Timestamp::as_microsecond),
        query.to.map_or(i64::MAX, Timestamp::as_microsecond),
    );
    let read = |row: &Record<'_, D>| {
        Ok(HeartbeatRow {
            device: query.device,
            received_at: row.time("received_at")?,
            payload: row.text("payload")?.into(),
        })
    };
    let (limit, offset) = (i64::from(page.limit), i64::from(page.offset));
    let args = Args::<D>::new()
        .int(indexed.last_number)
        .int(query.device.0)
        .int(from)
        .int(to)
        .int(limit + offset);
    let behind = sql::fetch_all(conn, &HEARTBEATS_BEHIND, args, read).await?;
    let found = i64::try_from(behind.len()).unwrap_or(i64::MAX);
    let skipped = usize::try_from(page.offset).unwrap_or(usize::MAX);
    let mut rows: Vec<HeartbeatRow> = behind.into_iter().skip(skipped).collect();
    if found < limit + offset {
        let taken = (found - offset).max(0);
        let args = Args::<D>::new()
            .int(indexed.segment)
            .int(query.device.0)
            .int(from)
            .int(to)
            .int(limit - taken)
            .int((offset - found).max(0));
        rows.extend(sql::fetch_all(conn, &HEARTBEATS_INDEXED, args, read).await?);
    }
    Ok(rows)
}

async fn indexed_to<D: Dialect>(conn: &mut D::Connection) -> Result<Indexed, DbError> {
    let found = sql::fetch_optional(conn, &INDEXED_TO, Args::<D>::new(), |row| {
        Ok(Indexed {
            segment: row.int("segment")?,
            last_number: row.int("last_number")?,
        })
    });
    sql::present("heartbeat_segments", found.await?)
}

/// The number up to which every heartbeat is committed: none below it can appear later.
async fn settled<D: Dialect>(store: &SqlStore<D>) -> Result<i64, DbError> {
    let newest = |row: &Record<'_, D>| row.int("number");
    let Some(lock) = D::HISTORY_SETTLED else {
        let mut conn = store.reader.acquire().await?;
        let newest = sql::fetch_optional(&mut *conn, &NEWEST, Args::new(), newest).await?;
        return Ok(newest.unwrap_or(0));
    };
    let mut tx = store.writer.begin_with(D::BEGIN_WRITE).await?;
    D::batch(&mut *tx, lock.to_owned()).await?;
    let newest = sql::fetch_optional(&mut *tx, &NEWEST, Args::new(), newest).await?;
    tx.commit().await?;
    Ok(newest.unwrap_or(0))
}

/// A run of rows that is to become a segment.
struct Run {
    rows: i64,
    last_number: i64,
    first_at: Timestamp,
    last_at: Timestamp,
}

async fn next_run<D: Dialect>(
    conn: &mut D::Connection,
    after: i64,
    up_to: i64,
) -> Result<Option<Run>, DbError> {
    let args = Args::<D>::new().int(after).int(up_to).int(SEGMENT_ROWS);
    let read = |row: &Record<'_, D>| {
        let rows = row.int("many")?;
        if rows == 0 {
            return Ok(None);
        }
        Ok(Some(Run {
            rows,
            last_number: row.int("last_number")?,
            first_at: row.time("first_at")?,
            last_at: row.time("last_at")?,
        }))
    };
    let found = sql::fetch_optional(conn, &NEXT_RUN, args, read).await?;
    Ok(found.flatten())
}

/// Indexes the oldest run that is not indexed, when it is full and more than `spare` wait, or when it is overdue.
pub(crate) async fn index<D: Dialect>(
    store: &SqlStore<D>,
    overdue: Timestamp,
    spare: u64,
) -> Result<bool, DbError> {
    let settled = settled(store).await?;
    let mut conn = store.reader.acquire().await?;
    let indexed = indexed_to::<D>(&mut conn).await?;
    let run = next_run::<D>(&mut conn, indexed.last_number, settled).await?;
    drop(conn);
    let waiting = u64::try_from(settled - indexed.last_number).unwrap_or(0);
    let due = |run: &Run| {
        (run.rows >= SEGMENT_ROWS && waiting > spare)
            || run.first_at.as_microsecond() < overdue.as_microsecond()
    };
    let Some(run) = run.filter(due) else {
        return Ok(false);
    };
    let segment = indexed.segment + 1;
    let mut tx = store.writer.begin_with(D::BEGIN_WRITE).await?;
    // First, so that another replica that does the same waits here, and then finds the number taken.
    let args = Args::<D>::new()
        .int(segment)
        .int(run.last_number)
        .time(run.first_at)
        .time(run.last_at);
    sql::execute::<D>(&mut tx, &INSERT_SEGMENT, args).await?;
    let args = Args::<D>::new()
        .int(segment)
        .int(indexed.last_number)
        .int(run.last_number)
        .time(run.first_at)
        .time(run.last_at);
    sql::execute::<D>(&mut tx, &INDEX_SEGMENT, args).await?;
    tx.commit().await?;
    Ok(true)
}

/// Deletes the oldest segment when all of its rows are older, and with it those rows that do not go with their day.
pub(crate) async fn prune<D: Dialect>(
    store: &SqlStore<D>,
    before: Timestamp,
    now: Timestamp,
) -> Result<bool, DbError> {
    let mut conn = store.reader.acquire().await?;
    let oldest = sql::fetch_optional::<D, _>(&mut conn, &OLDEST_SEGMENT, Args::new(), |row| {
        Ok((
            row.int("segment")?,
            row.int("last_number")?,
            row.time("last_at")?,
        ))
    });
    let oldest = oldest.await?;
    drop(conn);
    let Some((segment, last_number, _)) = oldest.filter(|(_, _, last_at)| *last_at < before) else {
        return Ok(false);
    };
    let mut tx = store.writer.begin_with(D::BEGIN_WRITE).await?;
    // Another replica may have been first.
    let mine = sql::execute::<D>(&mut tx, &DELETE_SEGMENT, Args::new().int(segment)).await? > 0;
    if mine {
        sql::execute::<D>(&mut tx, &DELETE_INDEX, Args::new().int(segment)).await?;
        // Who keeps less than a day does not wait for its end; and what is left behind the last segment would be indexed anew.
        let kept = now.as_microsecond() - before.as_microsecond();
        let is_last = indexed_to::<D>(&mut tx).await?.segment == 0;
        let rows = if kept < DAY || is_last {
            &DELETE_HEARTBEATS
        } else {
            &DELETE_UNDATED
        };
        sql::execute::<D>(&mut tx, rows, Args::new().int(last_number)).await?;
    }
    tx.commit().await?;
    Ok(mine)
}
