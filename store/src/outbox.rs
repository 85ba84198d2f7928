//! The outbox: events in the order of commits, and how far each receiver has come.

use device_ota_domain::event::{Event, StoredEvent};

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, statements, to_json};

statements! {
    APPEND_EVENTS[Text, Text, Text, Int] = "INSERT INTO outbox (event_type, entity, data, at) VALUES {rows}";
    EVENTS_FOR = "SELECT id, event_type, entity, data, at FROM outbox \
         WHERE id > COALESCE((SELECT place FROM outbox_places WHERE sink = $1), 0) ORDER BY id LIMIT $2";
    EVENTS_DELIVERED = "INSERT INTO outbox_places (sink, place) VALUES ($1, $2) ON CONFLICT (sink) DO UPDATE \
         SET place = excluded.place WHERE outbox_places.place < excluded.place";
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
        args.text(event.event_type)
            .text(event.entity.as_str())
            .text(data.as_str())
            .time(event.at)
    })
    .await
    .map(drop)
}

/// Events behind the sink's place, in order.
pub(crate) async fn events_for<D: Dialect>(
    conn: &mut D::Connection,
    sink: &str,
    limit: u32,
) -> Result<Vec<StoredEvent>, DbError> {
    let args = Args::<D>::new().text(sink).int(i64::from(limit));
    sql::fetch_all(conn, &EVENTS_FOR, args, |row| {
        Ok(StoredEvent {
            id: row.int("id")?,
            event_type: row.string("event_type")?,
            entity: row.string("entity")?,
            data: row.json("data")?,
            at: row.time("at")?,
        })
    })
    .await
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
