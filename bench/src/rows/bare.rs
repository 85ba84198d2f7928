//! The database alone, in this process, with the same rows in transactions of the same size: what storing costs when
//! nothing has to be received, checked or answered.

use std::time::{Duration, Instant};

use device_ota_domain::DeviceKey;
use device_ota_engine::ports::Store;
use device_ota_engine::ports::store::Touch;
use device_ota_engine::ports::telemetry::HeartbeatRow;
use device_ota_protocol::messages::{Report, parse_report};
use device_ota_protocol::topics::Up;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use crate::fleet::{self, Database};
use crate::mqtt::PAYLOAD;
use crate::peers::touch;
use crate::stats::real;

/// Rows of one transaction: a few more than the service ever commits together.
const BATCH: usize = 4_096;
/// Rows of one `VALUES` list.
const STATEMENT_ROWS: usize = 1_024;

/// Rows a second of multi-row inserts into the history of heartbeats, and nothing else.
pub(crate) async fn insert_rate(
    database: &Database,
    devices: i64,
    length: Duration,
) -> anyhow::Result<f64> {
    match database {
        Database::Sqlite(path) => {
            let options = SqliteConnectOptions::new()
                .filename(path)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full);
            insert_sqlite(options.connect().await?, devices, length).await
        }
        Database::Postgres(url) => {
            insert_postgres(
                url.parse::<PgConnectOptions>()?.connect().await?,
                devices,
                length,
            )
            .await
        }
    }
}

async fn insert_sqlite(
    mut connection: SqliteConnection,
    devices: i64,
    length: Duration,
) -> anyhow::Result<f64> {
    let places = vec!["(?,?,?)"; STATEMENT_ROWS].join(",");
    let sql =
        format!("INSERT INTO device_heartbeats (device_key, received_at, payload) VALUES {places}");
    let (began, mut rows) = (Instant::now(), 0);
    while began.elapsed() < length {
        let mut tx = connection.begin().await?;
        let keys: Vec<_> = keys(devices).take(BATCH).collect();
        for piece in keys.chunks(STATEMENT_ROWS) {
            let mut query = sqlx::query(AssertSqlSafe(sql.as_str()));
            for key in piece {
                query = query.bind(key).bind(rows).bind(PAYLOAD);
            }
            query.execute(&mut *tx).await?;
        }
        tx.commit().await?;
        rows += i64::try_from(BATCH)?;
    }
    let rate = rate(rows, began);
    connection.close().await?;
    rate
}

async fn insert_postgres(
    mut connection: PgConnection,
    devices: i64,
    length: Duration,
) -> anyhow::Result<f64> {
    const SQL: &str = "INSERT INTO device_heartbeats (device_key, received_at, payload) \
                       SELECT * FROM UNNEST($1::BIGINT[], $2::BIGINT[], $3::TEXT[])";
    let (began, mut rows) = (Instant::now(), 0_i64);
    let payloads = vec![PAYLOAD; BATCH];
    let keys: Vec<_> = keys(devices).take(BATCH).collect();
    while began.elapsed() < length {
        let at = vec![rows; BATCH];
        sqlx::query(SQL)
            .bind(&keys)
            .bind(&at)
            .bind(&payloads)
            .execute(&mut connection)
            .await?;
        rows += i64::try_from(BATCH)?;
    }
    let rate = rate(rows, began);
    connection.close().await?;
    rate
}

/// Rows a second of the service's own store, driven in batches: history and latest state.
pub(crate) async fn store_rate(
    store: &dyn Store,
    devices: i64,
    length: Duration,
) -> anyhow::Result<f64> {
    let Report::Heartbeat(heartbeat) = parse_report(Up::Heartbeat, PAYLOAD.as_bytes())? else {
        anyhow::bail!("the payload is no heartbeat")
    };
    let (began, mut rows) = (Instant::now(), 0);
    while began.elapsed() < length {
        let now = fleet::now();
        let row = |key| HeartbeatRow {
            device: DeviceKey(key),
            received_at: now,
            payload: PAYLOAD.into(),
        };
        let batch: Vec<_> = keys(devices).take(BATCH).map(row).collect();
        let touches: Vec<Touch> = (1..=devices)
            .map(|key| touch(DeviceKey(key), now, &heartbeat))
            .collect();
        let mut tx = store.begin().await?;
        tx.touch(&touches).await?;
        tx.insert_heartbeats(&batch).await?;
        tx.commit().await?;
        rows += i64::try_from(BATCH)?;
    }
    rate(rows, began)
}

fn keys(devices: i64) -> impl Iterator<Item = i64> {
    (1..=devices).cycle()
}

fn rate(rows: i64, began: Instant) -> anyhow::Result<f64> {
    Ok(real(u64::try_from(rows)?) / began.elapsed().as_secs_f64())
}
