//! Lines whose bandwidth has a budget: when each carries the next offer.

use async_trait::async_trait;
use device_ota_domain::bandwidth::Lines;
use device_ota_domain::device::DeviceKey;
use device_ota_engine::ports::bandwidth::{Bandwidth, BandwidthChanges, Labels};
use device_ota_engine::ports::error as port;
use jiff::Timestamp;

use crate::SqlStore;
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, statements, to_json};
use crate::tx::SqlTx;
use crate::writes::seen;

statements! {
    LINES = "SELECT line, next_at FROM bandwidth_lines WHERE next_at > $1 ORDER BY line";
    FORGET_LINES = "DELETE FROM bandwidth_lines WHERE next_at <= $1";
    TAKE_LINES[Text, Int] = "INSERT INTO bandwidth_lines (line, next_at) VALUES {rows} \
         ON CONFLICT (line) DO UPDATE SET next_at = excluded.next_at";
    LABELS = "SELECT d.device_key, d.group_names, d.tags FROM devices d WHERE d.device_key {any_int:$1}";
}

async fn lines<D: Dialect>(conn: &mut D::Connection, now: Timestamp) -> Result<Lines, DbError> {
    let args = Args::<D>::new().time(Lines::forgotten(now));
    let read = |row: &Record<'_, D>| Ok((row.json("line")?, row.time("next_at")?));
    let known = sql::fetch_all(conn, &LINES, args, read).await?;
    Ok(known.into_iter().collect())
}

async fn write<D: Dialect>(
    conn: &mut D::Connection,
    lines: &Lines,
    now: Timestamp,
) -> Result<(), DbError> {
    let mut rows = Vec::new();
    for (line, next) in lines.changes() {
        rows.push((to_json(line)?, next));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let args = Args::<D>::new().time(Lines::forgotten(now));
    sql::execute::<D>(conn, &FORGET_LINES, args).await?;
    let bind =
        |args: Args<D>, (line, next): &(String, Timestamp)| args.text(line.as_str()).time(*next);
    sql::execute_rows::<D, _>(conn, &TAKE_LINES, &rows, bind)
        .await
        .map(drop)
}

#[async_trait]
impl<D: Dialect> Bandwidth for SqlStore<D> {
    async fn lines(&self, now: Timestamp) -> port::Result<Lines> {
        Ok(lines::<D>(&mut *self.read().await?, now).await?)
    }
}

#[async_trait]
impl<D: Dialect> BandwidthChanges for SqlTx<D> {
    async fn hold_lines(&mut self, now: Timestamp) -> port::Result<Lines> {
        if let Some(lock) = D::HOLD_SLOTS {
            let held = D::batch(self.connection(), lock.to_owned()).await;
            held.map_err(DbError::from)?;
        }
        Ok(lines::<D>(self.connection(), now).await?)
    }

    async fn take_lines(&mut self, lines: &Lines, now: Timestamp) -> port::Result<()> {
        let written = write::<D>(self.connection(), lines, now).await;
        seen(written, &self.writes)
    }

    async fn labels(&mut self, devices: &[DeviceKey]) -> port::Result<Vec<Labels>> {
        let keys: Vec<i64> = devices.iter().map(|key| key.0).collect();
        let args = Args::<D>::new().ints(&keys);
        let found = sql::fetch_all(self.connection(), &LABELS, args, |row| {
            Ok(Labels {
                device: DeviceKey(row.int("device_key")?),
                groups: row.json("group_names")?,
                tags: row.json("tags")?,
            })
        });
        Ok(found.await?)
    }
}
