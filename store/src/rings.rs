//! The rings: a row each, with its share.

use device_ota_domain::ring::{Ring, RingSettings, Shares};

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Statement, statements};

statements! {
    RINGS = "SELECT ring, end_bucket, revision, updated_at, updated_by FROM deployment_rings ORDER BY end_bucket";
    RINGS_LOCKED = "SELECT ring, end_bucket, revision, updated_at, updated_by FROM deployment_rings ORDER BY end_bucket \
         {for_update}";
    SAVE_RINGS[Text, Int, Int, Int, Text] = "INSERT INTO deployment_rings (ring, end_bucket, revision, updated_at, updated_by) \
         VALUES {rows} ON CONFLICT (ring) DO UPDATE SET end_bucket = excluded.end_bucket, revision = excluded.revision, \
         updated_at = excluded.updated_at, updated_by = excluded.updated_by";
}

/// The shares that new campaigns get.
pub(crate) async fn rings<D: Dialect>(conn: &mut D::Connection) -> Result<RingSettings, DbError> {
    read::<D>(conn, &RINGS).await
}

/// The same, locked until the transaction ends.
pub(crate) async fn locked<D: Dialect>(conn: &mut D::Connection) -> Result<RingSettings, DbError> {
    read::<D>(conn, &RINGS_LOCKED).await
}

async fn read<D: Dialect>(
    conn: &mut D::Connection,
    statement: &Statement,
) -> Result<RingSettings, DbError> {
    let rows = sql::fetch_all::<D, _>(conn, statement, Args::new(), |row| {
        let ring = sql::present("ring", Ring::from_name(row.text("ring")?))?;
        let end: u16 = row.uint("end_bucket")?;
        Ok((
            ring,
            end,
            row.int("revision")?,
            row.time_opt("updated_at")?,
            row.string_opt("updated_by")?,
        ))
    });
    let rows = rows.await?;
    let named: Vec<Ring> = rows.iter().map(|(ring, ..)| *ring).collect();
    let ends: Vec<u16> = rows.iter().map(|(_, end, ..)| *end).collect();
    let shares = <[u16; 4]>::try_from(ends).ok().map(Shares::of_buckets);
    let Some(Ok(shares)) = shares.filter(|_| named == Ring::ALL) else {
        return Err(DbError::corrupt("the rings do not rise to everything"));
    };
    let newest = rows.into_iter().next();
    let (_, _, revision, updated_at, updated_by) = sql::present("deployment_rings", newest)?;
    Ok(RingSettings {
        shares,
        revision,
        updated_at,
        updated_by,
    })
}

/// Writes them, all at once.
pub(crate) async fn save<D: Dialect>(
    conn: &mut D::Connection,
    settings: &RingSettings,
) -> Result<(), DbError> {
    sql::execute_rows::<D, _>(conn, &SAVE_RINGS, &Ring::ALL, |args, ring| {
        args.text(ring.name())
            .int(i64::from(settings.shares.end_bucket(*ring)))
            .int(settings.revision)
            .time(settings.updated_at)
            .text(settings.updated_by.as_deref())
    })
    .await
    .map(drop)
}
