//! What metrics show of the database: counters that are kept anyway, and the ends of indexes.

use device_ota_engine::ports::telemetry::Snapshot;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::outbox;
use crate::sql::{self, Args, statements};

statements! {
    CAMPAIGNS_NOW = "SELECT status, COUNT(*) AS campaigns FROM update_campaigns \
         WHERE status IN ('created', 'in_progress', 'paused', 'rolling_back') AND deleted_at IS NULL \
         GROUP BY status ORDER BY status";
    UPDATES_NOW = "SELECT s.action, CAST(SUM(s.pending) AS BIGINT) AS pending, \
         CAST(SUM(s.in_flight) AS BIGINT) AS in_flight, CAST(SUM(s.completed) AS BIGINT) AS completed, \
         CAST(SUM(s.failed) AS BIGINT) AS failed, CAST(SUM(s.cancelled) AS BIGINT) AS cancelled \
         FROM update_campaigns c JOIN campaign_stages s ON s.campaign_id = c.campaign_id \
         WHERE c.status IN ('in_progress', 'paused', 'rolling_back') GROUP BY s.action ORDER BY s.action";
    PLACES = "SELECT sink, place FROM outbox_places ORDER BY sink";
}

/// The groups of a campaign's counters, as columns are named.
const STATES: [&str; 5] = ["pending", "in_flight", "completed", "failed", "cancelled"];

/// Reads all of it.
pub(crate) async fn read<D: Dialect>(conn: &mut D::Connection) -> Result<Snapshot, DbError> {
    let campaigns = sql::fetch_all::<D, _>(conn, &CAMPAIGNS_NOW, Args::new(), |row| {
        Ok((row.string("status")?, row.uint("campaigns")?))
    })
    .await?;
    let updates = sql::fetch_all::<D, _>(conn, &UPDATES_NOW, Args::new(), |row| {
        let action = row.string("action")?;
        let count = |state| Ok((action.clone(), state, row.uint(state)?));
        STATES
            .map(count)
            .into_iter()
            .collect::<Result<Vec<_>, DbError>>()
    })
    .await?;
    let kept = outbox::kept::<D>(conn).await?;
    let (oldest, newest) = kept.map_or((1, 0), |kept| (kept.oldest, kept.newest));
    let waiting = sql::fetch_all::<D, _>(conn, &PLACES, Args::new(), |row| {
        Ok((row.string("sink")?, difference(newest, row.int("place")?)))
    })
    .await?;
    Ok(Snapshot {
        campaigns,
        updates: updates.into_iter().flatten().collect(),
        events_kept: difference(newest, oldest - 1),
        waiting,
    })
}

fn difference(newest: i64, place: i64) -> u64 {
    u64::try_from(newest - place).unwrap_or_default()
}
