//! Figures: a row for each share of the updates, moved only by amounts with the commit of the rows that they count; and the
//! same counted from the rows.

use device_ota_domain::CampaignId;
use device_ota_domain::campaign::Group;
use device_ota_domain::statistics::{Amount, End, Ledger, Share};
use device_ota_domain::update::Action;
use device_ota_engine::ports::figures::Figure;

use crate::SqlStore;
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, statements};

/// Counts updates (`device_updates`; a completed one has the code of its regression) by share, stage and the minute in which they ended.
macro_rules! counted {
    ($condition:literal) => {
        concat!(
            "SELECT campaign_id, action, firmware_id, device_type, state, \
             CASE WHEN state IN ('failed', 'completed') THEN failure_code END AS failure_code, stage, ended_at / 60000000 AS minute, \
             COUNT(*) AS updates, CAST(SUM(CASE WHEN state = 'completed' \
             AND ended_at - started_at BETWEEN 0 AND 31622400000000 THEN ended_at - started_at ELSE 0 END) AS BIGINT) AS micros, CAST(SUM(CASE WHEN state = 'in_flight' OR bytes_earlier > bytes_done \
             THEN bytes_earlier ELSE bytes_done END) AS BIGINT) AS bytes FROM device_updates ",
            $condition,
            " GROUP BY campaign_id, action, firmware_id, device_type, state, \
             CASE WHEN state IN ('failed', 'completed') THEN failure_code END, stage, ended_at / 60000000"
        )
    };
}
pub(crate) use counted;

/// The kept figures, with the version of each image.
macro_rules! figures {
    ($condition:literal) => {
        concat!(
            "SELECT s.action, f.version, s.device_type, s.state, s.failure_code, \
             CAST(SUM(s.updates) AS BIGINT) AS updates, CAST(SUM(s.micros) AS BIGINT) AS micros, \
             CAST(SUM(s.bytes) AS BIGINT) AS bytes FROM update_figures s \
             LEFT JOIN firmware f ON f.firmware_id = s.firmware_id ",
            $condition,
            " GROUP BY s.action, f.version, s.device_type, s.state, s.failure_code \
             ORDER BY s.action, f.version, s.device_type, s.state, s.failure_code"
        )
    };
}

statements! {
    ADD_FIGURES[Text, Text, Text, Text, Text, Text, Int, Int, Int] =
        "INSERT INTO update_figures (campaign_id, action, firmware_id, device_type, state, failure_code, updates, \
         micros, bytes) VALUES {rows} \
         ON CONFLICT (campaign_id, action, firmware_id, device_type, state, failure_code) DO UPDATE \
         SET updates = update_figures.updates + excluded.updates, micros = update_figures.micros + excluded.micros, \
         bytes = update_figures.bytes + excluded.bytes";
    ADD_ENDS[Int, Text, Text, Int, Int, Int] =
        "INSERT INTO update_ends (minute, action, state, updates, micros, bytes) VALUES {rows} \
         ON CONFLICT (minute, action, state) DO UPDATE \
         SET updates = update_ends.updates + excluded.updates, micros = update_ends.micros + excluded.micros, \
         bytes = update_ends.bytes + excluded.bytes";
    FIGURES = figures!("");
    FIGURES_OF_CAMPAIGN = figures!("WHERE s.campaign_id = $1");
    ENDS_SINCE = "SELECT action, state, CAST(SUM(updates) AS BIGINT) AS updates, CAST(SUM(micros) AS BIGINT) AS micros, \
         CAST(SUM(bytes) AS BIGINT) AS bytes FROM update_ends WHERE minute >= $1 GROUP BY action, state";
    OLDEST_END = "SELECT MIN(minute) AS minute FROM update_ends";
    PRUNE_ENDS = "DELETE FROM update_ends WHERE minute < $1";
    CAMPAIGNS_BY_STATUS = "SELECT status, COUNT(*) AS campaigns FROM update_campaigns WHERE deleted_at IS NULL \
         GROUP BY status";
    ALL_FIGURES = "SELECT campaign_id, action, firmware_id, device_type, state, failure_code, updates, micros, bytes \
         FROM update_figures";
    ALL_ENDS = "SELECT minute, action, state, updates, micros, bytes FROM update_ends";
    COUNTED = counted!("");
}

/// Writes all changes, in key order: the same order of locks in every transaction. To be called when all other locks but
/// that of the outbox are taken.
pub(crate) async fn write<D: Dialect>(
    conn: &mut D::Connection,
    ledger: &Ledger,
) -> Result<(), DbError> {
    let shares: Vec<_> = changed(&ledger.shares).collect();
    sql::execute_rows::<D, _>(conn, &ADD_FIGURES, &shares, |args, (share, amount)| {
        let args = args
            .text(share.campaign.as_ref().map_or("", |id| id.as_str()))
            .text(share.action.name())
            .text(share.firmware.as_ref().map_or("", |id| id.as_str()))
            .text(share.device_type.as_deref().unwrap_or_default())
            .text(share.group.name())
            .text(share.failure.as_deref().unwrap_or_default());
        bind_amount(args, **amount)
    })
    .await?;
    let ends: Vec<_> = changed(&ledger.ends).collect();
    sql::execute_rows::<D, _>(conn, &ADD_ENDS, &ends, |args, (end, amount)| {
        let args = args
            .int(end.minute)
            .text(end.action.name())
            .text(end.group.name());
        bind_amount(args, **amount)
    })
    .await
    .map(drop)
}

fn changed<K>(
    amounts: &std::collections::BTreeMap<K, Amount>,
) -> impl Iterator<Item = (&K, &Amount)> {
    amounts.iter().filter(|(_, amount)| !amount.is_zero())
}

fn bind_amount<D: Dialect>(args: Args<D>, amount: Amount) -> Args<D> {
    args.int(amount.updates)
        .int(amount.micros)
        .int(amount.bytes)
}

/// The figures of all updates, or of one campaign's.
pub(crate) async fn figures<D: Dialect>(
    conn: &mut D::Connection,
    campaign: Option<&CampaignId>,
) -> Result<Vec<Figure>, DbError> {
    let (statement, args) = match campaign {
        Some(campaign) => (
            &FIGURES_OF_CAMPAIGN,
            Args::<D>::new().text(campaign.as_str()),
        ),
        None => (&FIGURES, Args::new()),
    };
    sql::fetch_all(conn, statement, args, |row| {
        Ok(Figure {
            action: read_action(row)?,
            version: row.string_opt("version")?,
            device_type: named(row, "device_type")?,
            group: read_group(row)?,
            failure: named(row, "failure_code")?,
            amount: read_amount(row)?,
        })
    })
    .await
}

/// What ended in this minute or later.
pub(crate) async fn ends_since<D: Dialect>(
    conn: &mut D::Connection,
    minute: i64,
) -> Result<Vec<(Action, Group, Amount)>, DbError> {
    let args = Args::<D>::new().int(minute);
    sql::fetch_all(conn, &ENDS_SINCE, args, |row| {
        Ok((read_action(row)?, read_group(row)?, read_amount(row)?))
    })
    .await
}

/// Forgets the minutes before this one, without a word to the writer when there are none.
pub(crate) async fn prune_ends<D: Dialect>(
    store: &SqlStore<D>,
    minute: i64,
) -> Result<(), DbError> {
    let mut conn = store.reader.acquire().await?;
    let oldest = sql::fetch_optional::<D, _>(&mut conn, &OLDEST_END, Args::new(), |row| {
        row.int_opt("minute")
    });
    let oldest = oldest.await?.flatten();
    drop(conn);
    if oldest.is_none_or(|oldest| oldest >= minute) {
        return Ok(());
    }
    let mut conn = store.writer.acquire().await?;
    sql::execute::<D>(&mut conn, &PRUNE_ENDS, Args::new().int(minute))
        .await
        .map(drop)
}

/// Campaigns in each status.
pub(crate) async fn campaigns_by_status<D: Dialect>(
    conn: &mut D::Connection,
) -> Result<Vec<(String, u64)>, DbError> {
    sql::fetch_all::<D, _>(conn, &CAMPAIGNS_BY_STATUS, Args::new(), |row| {
        Ok((row.string("status")?, row.uint("campaigns")?))
    })
    .await
}

/// Everything that is kept.
pub(crate) async fn ledger<D: Dialect>(conn: &mut D::Connection) -> Result<Ledger, DbError> {
    let shares = sql::fetch_all::<D, _>(conn, &ALL_FIGURES, Args::new(), |row| {
        Ok((read_share(row)?, read_amount(row)?))
    });
    let shares = shares.await?.into_iter();
    let ends = sql::fetch_all::<D, _>(conn, &ALL_ENDS, Args::new(), |row| {
        let end = End {
            minute: row.int("minute")?,
            action: read_action(row)?,
            group: read_group(row)?,
        };
        Ok((end, read_amount(row)?))
    });
    let ends = ends.await?.into_iter();
    Ok(Ledger {
        shares: shares.filter(|(_, amount)| !amount.is_zero()).collect(),
        ends: ends.filter(|(_, amount)| !amount.is_zero()).collect(),
        took: Vec::new(),
    })
}

/// The same counted from the rows.
pub(crate) async fn ledger_by_rows<D: Dialect>(
    conn: &mut D::Connection,
) -> Result<Ledger, DbError> {
    let mut ledger = Ledger::default();
    for counted in sql::fetch_all::<D, _>(conn, &COUNTED, Args::new(), read_counted).await? {
        ledger.add(counted.share, counted.minute, counted.amount);
    }
    Ok(ledger)
}

/// Updates that are alike and of one stage.
pub(crate) struct Counted {
    pub(crate) share: Share,
    pub(crate) stage: u16,
    pub(crate) minute: Option<i64>,
    pub(crate) amount: Amount,
}

impl Counted {
    /// How many.
    pub(crate) fn devices(&self) -> u64 {
        self.amount.updates.unsigned_abs()
    }
}

/// Reads a row of [`counted!`].
pub(crate) fn read_counted<D: Dialect>(row: &Record<'_, D>) -> Result<Counted, DbError> {
    Ok(Counted {
        share: read_share(row)?,
        stage: row.uint("stage")?,
        minute: row.int_opt("minute")?,
        amount: read_amount(row)?,
    })
}

fn read_share<D: Dialect>(row: &Record<'_, D>) -> Result<Share, DbError> {
    Ok(Share {
        campaign: id(row, "campaign_id")?,
        action: read_action(row)?,
        firmware: id(row, "firmware_id")?,
        device_type: named(row, "device_type")?,
        group: read_group(row)?,
        failure: named(row, "failure_code")?,
    })
}

fn read_action<D: Dialect>(row: &Record<'_, D>) -> Result<Action, DbError> {
    sql::present("action", Action::from_name(row.text("action")?))
}

fn read_group<D: Dialect>(row: &Record<'_, D>) -> Result<Group, DbError> {
    sql::present("state", Group::from_name(row.text("state")?))
}

fn read_amount<D: Dialect>(row: &Record<'_, D>) -> Result<Amount, DbError> {
    Ok(Amount {
        updates: row.int("updates")?,
        micros: row.int("micros")?,
        bytes: row.int("bytes")?,
    })
}

/// A key's text; the empty one stands for none.
fn named<D: Dialect>(row: &Record<'_, D>, column: &str) -> Result<Option<String>, DbError> {
    Ok(row.string_opt(column)?.filter(|text| !text.is_empty()))
}

/// A key that is an id.
fn id<D: Dialect, T>(row: &Record<'_, D>, column: &str) -> Result<Option<T>, DbError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    match row.text_opt(column)? {
        None | Some("") => Ok(None),
        Some(_) => row.parse_opt(column),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PostgresDatabase, SqliteDatabase};

    /// Updates in every state, of two campaigns and of none.
    const UPDATES: &str = "INSERT INTO device_updates (update_id, device_key, device_id, device_type, campaign_id, \
         action, firmware_id, to_version, stage, priority, max_retries, timeout_seconds, state, started_at, ended_at, \
         failure_code, bytes_done, bytes_total, created_at, updated_at) \
         SELECT 'upd_' || n, n, 'd' || n, CASE WHEN n % 3 > 0 THEN 'type' || (n % 3) END, \
         CASE WHEN n % 5 > 0 THEN 'camp_000000000000000' || (n % 2) END, \
         CASE WHEN n % 4 = 0 THEN 'rollback' ELSE 'update' END, \
         CASE WHEN n % 16 > 0 THEN '0000000000000000000000000000000' || (n % 2) END, '2', 0, 1, 0, 60, s.state, n * 7, \
         CASE WHEN s.ends = 1 THEN CAST(n AS BIGINT) * 50000000 END, CASE WHEN s.state = 'failed' THEN 'code' || (n % 2) END, \
         n * 11, n * 11, 0, 0 \
         FROM {numbers} JOIN (SELECT 0 AS k, 'pending' AS state, 0 AS ends UNION ALL SELECT 1, 'in_flight', 0 \
         UNION ALL SELECT 2, 'completed', 1 UNION ALL SELECT 3, 'failed', 1 UNION ALL SELECT 4, 'cancelled', 1) s \
         ON s.k = n / 4 % 5";

    /// What versions of old may have left: attempts added up, and figures that say so.
    const DRIFTED: &str = "UPDATE device_updates SET bytes_earlier = number * 17; \
         INSERT INTO update_figures VALUES ('', 'update', '', '', 'failed', '', 1, 2, 3); \
         INSERT INTO update_ends VALUES (7777, 'update', 'failed', 1, 2, 3)";

    /// The migration's own statements, from this one on, make the figures those of the rows that were there before it.
    async fn filled<D: Dialect>(store: &SqlStore<D>, before: String, migration: &str, from: &str) {
        let (_, fill) = migration.split_once(from).expect("the statement is there");
        let mut conn = store.writer.acquire().await.expect("a connection");
        for sql in [before, format!("{from}{fill}")] {
            D::batch(&mut conn, sql).await.expect("runs");
        }
        let kept = ledger::<D>(&mut conn).await.expect("reads");
        assert_eq!(kept, ledger_by_rows::<D>(&mut conn).await.expect("counts"));
        let updates: i64 = kept.shares.values().map(|amount| amount.updates).sum();
        assert_eq!(updates, 200);
    }

    macro_rules! migrations {
        ($store:expr, $database:literal, $numbers:expr) => {
            let rows = UPDATES.replace("{numbers}", $numbers);
            let statistics = include_str!(concat!(
                "../../migrations/",
                $database,
                "/0015_statistics.sql"
            ));
            filled($store, rows, statistics, "INSERT INTO update_figures").await;
            let claims = include_str!(concat!(
                "../../migrations/",
                $database,
                "/0020_single_claims.sql"
            ));
            filled(
                $store,
                DRIFTED.to_owned(),
                claims,
                "UPDATE device_updates SET bytes_earlier",
            )
            .await;
        };
    }

    #[tokio::test]
    async fn the_migrations_count_what_is_there_on_sqlite() {
        let database = SqliteDatabase::new();
        let store = database.open().await;
        let numbers = "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 200) SELECT n FROM s) g";
        migrations!(&store, "sqlite", numbers);
        store.close().await;
    }

    #[tokio::test]
    async fn the_migrations_count_what_is_there_on_postgres() {
        let database = PostgresDatabase::create().await;
        let store = database.open().await;
        migrations!(&store, "postgres", "generate_series(1, 200) AS g(n)");
        store.close().await;
    }
}
