//! The outbox: events in the order of commits, and how far each receiver has come.

use async_trait::async_trait;
use device_ota_domain::event::{Event, SOURCE, StoredEvent};
use device_ota_engine::ports::outbox::{Kept, Outbox};
use device_ota_engine::ports::store as port;
use jiff::Timestamp;

use crate::SqlStore;
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, statements, to_json};

/// An event of each update among the numbers bound at `$1`; the payload begins as [`Event::ended`] and [`Event::asked`] make it.
macro_rules! tell {
    ($event_type:literal, $more:literal, $from:literal) => {
        concat!(
            "INSERT INTO outbox (event_type, entity, data, at) SELECT ",
            $event_type,
            ", u.device_id, CAST({json_object}('update_id', u.update_id, 'device_id', u.device_id, \
             'campaign_id', u.campaign_id, 'from_version', u.from_version, 'to_version', u.to_version, ",
            $more,
            ", 'timestamp', CAST($2 AS TEXT)) AS TEXT), $3 FROM device_updates u ",
            $from,
            " ORDER BY u.number"
        )
    };
}

statements! {
    TELL_INITIATED = tell!(
        "'rollback.initiated'",
        "'trigger', l.trigger_kind, 'reason', l.reason, 'by', CAST($4 AS TEXT)",
        "JOIN rollback_logs l ON l.number = u.number WHERE u.number {any_int:$1} AND u.action = 'rollback' \
         AND u.state IN ('pending', 'in_flight')"
    );
    TELL_FAILED = tell!(
        "u.action || '.failed'",
        "'error', {json_object}('code', u.failure_code, 'message', u.failure_message)",
        "WHERE u.number {any_int:$1} AND u.state = 'failed'"
    );
    TELL_CANCELLED = tell!(
        "u.action || '.cancelled'",
        "'error', NULL",
        "WHERE u.number {any_int:$1} AND u.state = 'cancelled'"
    );
    APPEND_EVENTS[Text, Text, Text, Int] = "INSERT INTO outbox (event_type, entity, data, at) VALUES {rows}";
    EVENTS_FOR = "SELECT id, event_type, entity, data, at FROM outbox \
         WHERE id > COALESCE((SELECT place FROM outbox_places WHERE sink = $1), 0) ORDER BY id LIMIT $2";
    EVENTS_AFTER = "SELECT id, event_type, entity, data, at FROM outbox WHERE id > $1 ORDER BY id LIMIT $2";
    // Two statements' worth of one look at each end of the index.
    EVENTS_KEPT = "SELECT (SELECT MIN(id) FROM outbox) AS oldest, (SELECT MAX(id) FROM outbox) AS newest";
    EVENTS_DELIVERED = "INSERT INTO outbox_places (sink, place) VALUES ($1, $2) ON CONFLICT (sink) DO UPDATE \
         SET place = excluded.place WHERE outbox_places.place < excluded.place";
    TAKEN_BY_ALL = "SELECT COUNT(*) AS sinks, COALESCE(MIN(place), 0) AS place FROM outbox_places WHERE sink {any:$1}";
    TAKEN_BY_WEBHOOKS = "SELECT MIN(place) AS place FROM webhooks WHERE status = 'active'";
    OLDEST_EVENT = "SELECT at FROM outbox ORDER BY id LIMIT 1";
    // The oldest first and only those: what is young is never looked at. The newest stays, so that readers who come
    // back can be told whether they have missed any.
    PRUNE_EVENTS = "DELETE FROM outbox WHERE id IN (SELECT o.id FROM \
         (SELECT id, at FROM outbox ORDER BY id LIMIT $4) o WHERE (o.id <= $1 AND o.at < $2) OR o.at < $3) \
         AND id < (SELECT MAX(id) FROM outbox)";
}

/// Appends events. To be called last in a transaction: from here to its commit, others that append wait, so that no id
/// becomes visible before a lower one.
pub(crate) async fn append<D: Dialect>(
    conn: &mut D::Connection,
    events: &[Event],
) -> Result<(), DbError> {
    if events.is_empty() {
        return Ok(());
    }
    if let Some(lock) = D::COMMIT_ORDER {
        D::batch(conn, lock.to_owned()).await?;
    }
    let rows = events
        .iter()
        .map(|event| Ok((event, to_json(&event.data)?)));
    let rows: Vec<(&Event, String)> = rows.collect::<Result<_, DbError>>()?;
    sql::execute_rows::<D, _>(conn, &APPEND_EVENTS, &rows, |args, (event, data)| {
        args.text(event.event_type.name())
            .text(event.entity.as_str())
            .text(data.as_str())
            .time(event.at)
    })
    .await
    .map(drop)
}

/// Updates that were made or ended at a stroke: each is worth an event, written by the database itself, because they may
/// be all devices of a fleet.
#[derive(Debug)]
pub(crate) struct Stroke {
    /// Their numbers.
    pub(crate) numbers: Vec<i64>,
    /// When.
    pub(crate) at: Timestamp,
}

/// Updates told of in one statement.
const STROKE: usize = 10_000;

/// Tells of updates that were made or ended at a stroke. The rule of [`append`] holds here, too.
pub(crate) async fn tell<D: Dialect>(
    conn: &mut D::Connection,
    stroke: &Stroke,
) -> Result<(), DbError> {
    if stroke.numbers.is_empty() {
        return Ok(());
    }
    if let Some(lock) = D::COMMIT_ORDER {
        D::batch(conn, lock.to_owned()).await?;
    }
    let shown = stroke.at.to_string();
    for numbers in stroke.numbers.chunks(STROKE) {
        let args = || {
            Args::new()
                .ints(numbers)
                .text(shown.as_str())
                .time(stroke.at)
        };
        sql::execute::<D>(conn, &TELL_INITIATED, args().text(SOURCE)).await?;
        sql::execute::<D>(conn, &TELL_FAILED, args()).await?;
        sql::execute::<D>(conn, &TELL_CANCELLED, args()).await?;
    }
    Ok(())
}

/// Events behind the sink's place, in order.
pub(crate) async fn events_for<D: Dialect>(
    conn: &mut D::Connection,
    sink: &str,
    limit: u32,
) -> Result<Vec<StoredEvent>, DbError> {
    let args = Args::<D>::new().text(sink).int(i64::from(limit));
    sql::fetch_all(conn, &EVENTS_FOR, args, read_event).await
}

fn read_event<D: Dialect>(row: &Record<'_, D>) -> Result<StoredEvent, DbError> {
    Ok(StoredEvent {
        id: row.int("id")?,
        event_type: row.string("event_type")?,
        entity: row.string("entity")?,
        data: row.json("data")?,
        at: row.time("at")?,
    })
}

/// Events behind this one, in order.
async fn events_after<D: Dialect>(
    conn: &mut D::Connection,
    after: i64,
    limit: u32,
) -> Result<Vec<StoredEvent>, DbError> {
    let args = Args::<D>::new().int(after).int(i64::from(limit));
    sql::fetch_all(conn, &EVENTS_AFTER, args, read_event).await
}

/// Which events there are.
pub(crate) async fn kept<D: Dialect>(conn: &mut D::Connection) -> Result<Option<Kept>, DbError> {
    let kept = sql::fetch_optional::<D, _>(conn, &EVENTS_KEPT, Args::new(), |row| {
        Ok(row.int_opt("oldest")?.zip(row.int_opt("newest")?))
    });
    let kept = kept.await?.flatten();
    Ok(kept.map(|(oldest, newest)| Kept { oldest, newest }))
}

#[async_trait]
impl<D: Dialect> Outbox for SqlStore<D> {
    async fn events_after(&self, after: i64, limit: u32) -> port::Result<Vec<StoredEvent>> {
        Ok(events_after::<D>(&mut *self.read().await?, after, limit).await?)
    }
    async fn events_kept(&self) -> port::Result<Option<Kept>> {
        Ok(kept::<D>(&mut *self.read().await?).await?)
    }
}

/// Moves the sink's place forward, never back.
pub(crate) async fn delivered<D: Dialect>(
    conn: &mut D::Connection,
    sink: &str,
    up_to: i64,
) -> Result<(), DbError> {
    sql::execute::<D>(conn, &EVENTS_DELIVERED, Args::new().text(sink).int(up_to))
        .await
        .map(drop)
}

/// Deletes up to `limit` of the oldest events: those from before `before` that all of `sinks` and all active webhooks have taken, and those from
/// before `whatever`, which a receiver that is gone shall not keep for ever.
pub(crate) async fn prune<D: Dialect>(
    store: &SqlStore<D>,
    sinks: &[&str],
    before: Timestamp,
    whatever: Timestamp,
    limit: u32,
) -> Result<u64, DbError> {
    let mut conn = store.reader.acquire().await?;
    let oldest =
        sql::fetch_optional::<D, _>(&mut conn, &OLDEST_EVENT, Args::new(), |row| row.time("at"));
    if oldest.await?.is_none_or(|at| at >= before) {
        return Ok(0); // without a word to the writer
    }
    let args = Args::<D>::new().texts(sinks);
    let places = sql::fetch_optional::<D, _>(&mut conn, &TAKEN_BY_ALL, args, |row| {
        Ok((row.uint::<usize>("sinks")?, row.int("place")?))
    });
    let taken = match places.await? {
        _ if sinks.is_empty() => i64::MAX,
        Some((known, place)) if known == sinks.len() => place,
        _ => 0, // one of them has not taken any
    };
    let webhooks = sql::fetch_optional::<D, _>(&mut conn, &TAKEN_BY_WEBHOOKS, Args::new(), |row| {
        row.int_opt("place")
    });
    let webhooks = webhooks.await?.flatten().unwrap_or(i64::MAX);
    let args = Args::<D>::new()
        .int(taken.min(webhooks))
        .time(before)
        .time(whatever)
        .int(i64::from(limit));
    drop(conn);
    let mut conn = store.writer.acquire().await?;
    sql::execute::<D>(&mut conn, &PRUNE_EVENTS, args).await
}
