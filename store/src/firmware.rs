//! Firmware: the registry's rows.

use device_ota_domain::firmware::{Firmware, FirmwareFilter, Format, Results, Storage};
use device_ota_domain::page::Page;
use device_ota_domain::{FirmwareId, Update, UpdateId};

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, statements, to_json};
use crate::updates::{read_update, select_update};

macro_rules! select_firmware {
    ($rest:literal) => {
        concat!(
            "SELECT firmware_id, metadata, format, size, sha256, md5, release_envelope, release_sha256, \
             download_count, storage, deprecated_at, created_at, updated_at, created_by, ",
            results!("completed"),
            ", ",
            results!("failed"),
            " FROM firmware ",
            $rest
        )
    };
}

/// Updates to the image that ended in this state.
macro_rules! results {
    ($state:literal) => {
        concat!(
            "COALESCE((SELECT CAST(SUM(s.updates) AS BIGINT) FROM update_figures s \
             WHERE s.firmware_id = firmware.firmware_id AND s.action = 'update' AND s.state = '",
            $state,
            "'), 0) AS ",
            $state
        )
    };
}

statements! {
    FIRMWARE = select_firmware!("WHERE firmware_id = $1");
    FIRMWARE_LOCKED = select_firmware!("WHERE firmware_id = $1 {for_update}");
    FIRMWARE_HELD = select_firmware!("WHERE firmware_id = $1 {for_key_share}");
    FIRMWARE_LIST = select_firmware!(
        "WHERE (deprecated_at IS NULL OR $7 = 1) \
         AND (CAST($3 AS TEXT) IS NULL OR device_model = $3) \
         AND (CAST($4 AS TEXT) IS NULL OR manufacturer = $4) \
         AND (CAST($5 AS BIGINT) IS NULL OR is_beta = $5) \
         AND (CAST($6 AS BIGINT) IS NULL OR is_security_update = $6) \
         ORDER BY created_at DESC, firmware_id LIMIT $1 OFFSET $2"
    );
    FIRMWARE_OF_VERSION = select_firmware!(
        "WHERE device_model = $1 AND version = $2 \
         ORDER BY CASE WHEN deprecated_at IS NULL THEN 0 ELSE 1 END, created_at DESC, firmware_id LIMIT 1"
    );
    OBJECT_IS_USED = "SELECT firmware_id FROM firmware WHERE sha256 = $1 LIMIT 1";
    STORAGE_IS_USED = "SELECT firmware_id FROM firmware WHERE storage = $1 LIMIT 1";
    SET_STORAGE = "UPDATE firmware SET storage = $2 WHERE sha256 = $1";
    INSERT_FIRMWARE = "INSERT INTO firmware (firmware_id, name, version, device_model, manufacturer, is_beta, \
         is_security_update, metadata, format, size, sha256, md5, release_envelope, release_sha256, download_count, \
         deprecated_at, created_at, updated_at, created_by, min_battery_percent, min_free_storage_bytes, storage, \
         security_version) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23)";
    SAVE_FIRMWARE = "UPDATE firmware SET metadata = $2, is_beta = $3, deprecated_at = $4, updated_at = $5, \
         min_battery_percent = $6, min_free_storage_bytes = $7 WHERE firmware_id = $1";
    // Among the open updates outside of campaigns, which are few; the image's index leads to all of its campaigns' updates too,
    // and is not for an expression.
    OPEN_SINGLES = "SELECT update_id FROM device_updates WHERE campaign_id IS NULL AND action = 'update' \
         AND state = 'pending' AND firmware_id || '' = $1 UNION ALL \
         SELECT update_id FROM device_updates WHERE campaign_id IS NULL AND action = 'update' \
         AND state = 'in_flight' AND firmware_id || '' = $1 LIMIT $2";
    PENDING_SINGLES = select_update!(
        " FROM device_updates u WHERE u.campaign_id IS NULL AND u.action = 'update' AND u.state = 'pending' \
         AND u.firmware_id || '' = $1 ORDER BY u.device_key, u.number LIMIT $2 {for_update}"
    );
    CANCELLABLE_SINGLES = select_update!(
        " FROM device_updates u WHERE u.campaign_id IS NULL AND u.action = 'update' AND u.state = 'in_flight' \
         AND u.cancel_requested = 0 AND u.phase IN ('offered', 'accepted', 'downloading', 'verifying', 'staged') \
         AND u.firmware_id || '' = $1 ORDER BY u.device_key, u.number LIMIT $2 {for_update}"
    );
    COUNT_DOWNLOADS = "UPDATE firmware SET download_count = download_count + $2 WHERE firmware_id = $1";
}

/// One firmware.
pub(crate) async fn firmware<D: Dialect>(
    conn: &mut D::Connection,
    id: &FirmwareId,
) -> Result<Option<Firmware>, DbError> {
    sql::fetch_optional(
        conn,
        &FIRMWARE,
        Args::<D>::new().text(id.as_str()),
        read_firmware,
    )
    .await
}

/// Firmware, newest first.
pub(crate) async fn list<D: Dialect>(
    conn: &mut D::Connection,
    filter: &FirmwareFilter,
    page: Page,
) -> Result<Vec<Firmware>, DbError> {
    let args = Args::<D>::new()
        .page(page)
        .text(filter.device_model.as_deref())
        .text(filter.manufacturer.as_deref())
        .flag(filter.is_beta)
        .flag(filter.is_security_update)
        .flag(filter.include_deprecated);
    sql::fetch_all(conn, &FIRMWARE_LIST, args, read_firmware).await
}

/// The newest firmware of that model and version; a deprecated one only when there is no other.
pub(crate) async fn of_version<D: Dialect>(
    conn: &mut D::Connection,
    device_model: &str,
    version: &str,
) -> Result<Option<Firmware>, DbError> {
    let args = Args::<D>::new().text(device_model).text(version);
    sql::fetch_optional(conn, &FIRMWARE_OF_VERSION, args, read_firmware).await
}

/// Whether any firmware has these bytes.
pub(crate) async fn object_is_used<D: Dialect>(
    conn: &mut D::Connection,
    sha256: &str,
) -> Result<bool, DbError> {
    let found =
        sql::fetch_optional::<D, _>(conn, &OBJECT_IS_USED, Args::new().text(sha256), |_| Ok(()));
    Ok(found.await?.is_some())
}

/// Whether bytes of any firmware lie there.
pub(crate) async fn storage_is_used<D: Dialect>(
    conn: &mut D::Connection,
    storage: Storage,
) -> Result<bool, DbError> {
    let args = Args::new().text(storage.name());
    let found = sql::fetch_optional::<D, _>(conn, &STORAGE_IS_USED, args, |_| Ok(()));
    Ok(found.await?.is_some())
}

/// Writes where these bytes lie, of every firmware that has them.
pub(crate) async fn set_storage<D: Dialect>(
    conn: &mut D::Connection,
    sha256: &str,
    storage: Storage,
) -> Result<(), DbError> {
    let args = Args::new().text(sha256).text(storage.name());
    sql::execute::<D>(conn, &SET_STORAGE, args).await.map(drop)
}

/// Inserts a firmware.
pub(crate) async fn insert<D: Dialect>(
    conn: &mut D::Connection,
    firmware: &Firmware,
) -> Result<(), DbError> {
    let said = &firmware.metadata;
    let metadata = to_json(said)?;
    let args = Args::new()
        .text(firmware.id.as_str())
        .text(said.name.as_str())
        .text(said.version.as_str())
        .text(said.device_model.as_str())
        .text(said.manufacturer.as_str())
        .flag(said.is_beta)
        .flag(said.is_security_update)
        .text(metadata.as_str())
        .text(firmware.format.name())
        .uint(firmware.size)
        .text(firmware.sha256.as_str())
        .text(firmware.md5.as_str())
        .text(firmware.release.as_str())
        .text(firmware.release_sha256.as_str())
        .uint(firmware.download_count)
        .time(firmware.deprecated_at)
        .time(firmware.created_at)
        .time(firmware.updated_at)
        .text(firmware.created_by.as_str())
        .int(said.min_battery_percent.map(i64::from))
        .int(said.min_free_storage_bytes)
        .text(firmware.storage.name())
        .int(i64::from(said.security_version));
    sql::execute::<D>(conn, &INSERT_FIRMWARE, args)
        .await
        .map(drop)
}

/// One firmware, locked for change, or held as it is by one of several.
pub(crate) async fn locked<D: Dialect>(
    conn: &mut D::Connection,
    id: &FirmwareId,
    lock: Lock,
) -> Result<Option<Firmware>, DbError> {
    let statement = match lock {
        Lock::Change => &FIRMWARE_LOCKED,
        Lock::Hold => &FIRMWARE_HELD,
    };
    let args = Args::<D>::new().text(id.as_str());
    sql::fetch_optional(conn, statement, args, read_firmware).await
}

/// How a firmware is locked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lock {
    /// By one alone.
    Change,
    /// By several that want it to stay as it is.
    Hold,
}

/// Writes what may change of a firmware.
pub(crate) async fn save<D: Dialect>(
    conn: &mut D::Connection,
    firmware: &Firmware,
) -> Result<(), DbError> {
    let said = &firmware.metadata;
    let metadata = to_json(said)?;
    let args = Args::new()
        .text(firmware.id.as_str())
        .text(metadata.as_str())
        .flag(said.is_beta)
        .time(firmware.deprecated_at)
        .time(firmware.updated_at)
        .int(said.min_battery_percent.map(i64::from))
        .int(said.min_free_storage_bytes);
    sql::execute::<D>(conn, &SAVE_FIRMWARE, args)
        .await
        .map(drop)
}

/// Updates to the firmware outside of campaigns that have not ended.
pub(crate) async fn open_singles<D: Dialect>(
    conn: &mut D::Connection,
    id: &FirmwareId,
    limit: u32,
) -> Result<Vec<UpdateId>, DbError> {
    let args = Args::new().text(id.as_str()).int(i64::from(limit));
    sql::fetch_all::<D, _>(conn, &OPEN_SINGLES, args, |row| row.parse("update_id")).await
}

/// Those of them that can still be cancelled, locked: what waits, then what is in flight.
pub(crate) async fn cancellable_singles<D: Dialect>(
    conn: &mut D::Connection,
    id: &FirmwareId,
    limit: u32,
) -> Result<Vec<Update>, DbError> {
    let args = |limit: usize| {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        Args::<D>::new().text(id.as_str()).int(limit)
    };
    let limit = limit as usize;
    let mut found = sql::fetch_all(conn, &PENDING_SINGLES, args(limit), read_update).await?;
    let rest = args(limit.saturating_sub(found.len()));
    found.extend(sql::fetch_all(conn, &CANCELLABLE_SINGLES, rest, read_update).await?);
    Ok(found)
}

/// Adds downloads to a firmware's count.
pub(crate) async fn count_downloads<D: Dialect>(
    conn: &mut D::Connection,
    id: &FirmwareId,
    downloads: u64,
) -> Result<(), DbError> {
    let args = Args::new().text(id.as_str()).uint(downloads);
    sql::execute::<D>(conn, &COUNT_DOWNLOADS, args)
        .await
        .map(drop)
}

fn read_firmware<D: Dialect>(row: &Record<'_, D>) -> Result<Firmware, DbError> {
    Ok(Firmware {
        id: row.parse("firmware_id")?,
        metadata: row.json("metadata")?,
        format: sql::present("format", Format::from_name(row.text("format")?))?,
        size: row.uint("size")?,
        sha256: row.string("sha256")?,
        md5: row.string("md5")?,
        release: row.string("release_envelope")?,
        release_sha256: row.string("release_sha256")?,
        download_count: row.uint("download_count")?,
        results: Results {
            // A figure that has drifted must not keep the image from being read.
            completed: row.int("completed")?.max(0).unsigned_abs(),
            failed: row.int("failed")?.max(0).unsigned_abs(),
        },
        storage: sql::present("storage", Storage::from_name(row.text("storage")?))?,
        deprecated_at: row.time_opt("deprecated_at")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        created_by: row.string("created_by")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SqlStore;
    use crate::sql::Statement;
    use crate::testing::{PostgresDatabase, SqliteDatabase};

    const IMAGES: &str = r#"INSERT INTO firmware (firmware_id, name, version, device_model, manufacturer, is_beta,
        is_security_update, metadata, format, size, sha256, md5, release_envelope, release_sha256, created_at, updated_at,
        created_by) VALUES
        ('1', 'n', '1', 'm', '', 0, 0, '{"min_battery_percent":30,"min_free_storage_bytes":null}', '', 1, '', '', '', '', 0, 0, ''),
        ('2', 'n', '2', 'm', '', 0, 0, '{"min_free_storage_bytes":5000000000}', '', 1, '', '', '', '', 0, 0, '')"#;

    static ASKS: Statement = Statement::new(
        "ASKS",
        &[],
        "SELECT min_battery_percent, min_free_storage_bytes FROM firmware ORDER BY firmware_id",
    );

    /// The migration's own statement takes out of the metadata what images ask for.
    async fn taken_out<D: Dialect>(store: &SqlStore<D>, migration: &str) {
        let statements = migration.split(';');
        let mut statements = statements.filter(|sql| sql.trim().starts_with("UPDATE firmware"));
        let take_out = statements.next().expect("the statement is there");
        let mut conn = store.writer.acquire().await.expect("a connection");
        for sql in [IMAGES, take_out] {
            D::batch(&mut conn, sql.to_owned()).await.expect("runs");
        }
        let asks = sql::fetch_all::<D, _>(&mut conn, &ASKS, Args::new(), |row| {
            Ok((
                row.int_opt("min_battery_percent")?,
                row.int_opt("min_free_storage_bytes")?,
            ))
        });
        let asks = asks.await.expect("reads");
        assert_eq!(asks, [(Some(30), None), (None, Some(5_000_000_000))]);
    }

    static SECURITY: Statement = Statement::new(
        "SECURITY",
        &[],
        "SELECT security_version FROM firmware ORDER BY firmware_id",
    );

    /// Another one's takes out their security versions.
    async fn security_versions<D: Dialect>(store: &SqlStore<D>, migration: &str) {
        let take_out = migration.split(';').nth(1).expect("the statement is there");
        let images = IMAGES.replacen('{', r#"{"security_version":7,"#, 1);
        let mut conn = store.writer.acquire().await.expect("a connection");
        for sql in [&images, take_out] {
            D::batch(&mut conn, sql.to_owned()).await.expect("runs");
        }
        let found = sql::fetch_all::<D, _>(&mut conn, &SECURITY, Args::new(), |row| {
            row.int("security_version")
        });
        assert_eq!(found.await.expect("reads"), [7, 0]);
    }

    #[tokio::test]
    async fn the_migration_knows_security_versions_on_sqlite() {
        let database = SqliteDatabase::new();
        let store = database.open().await;
        let migration = include_str!("../../migrations/sqlite/0036_security_version.sql");
        security_versions(&store, migration).await;
        store.close().await;
    }

    #[tokio::test]
    async fn the_migration_knows_security_versions_on_postgres() {
        let database = PostgresDatabase::create().await;
        let store = database.open().await;
        let migration = include_str!("../../migrations/postgres/0036_security_version.sql");
        security_versions(&store, migration).await;
        store.close().await;
    }

    #[tokio::test]
    async fn the_migration_knows_what_images_ask_for_on_sqlite() {
        let database = SqliteDatabase::new();
        let store = database.open().await;
        let migration = include_str!("../../migrations/sqlite/0020_single_claims.sql");
        taken_out(&store, migration).await;
        store.close().await;
    }

    #[tokio::test]
    async fn the_migration_knows_what_images_ask_for_on_postgres() {
        let database = PostgresDatabase::create().await;
        let store = database.open().await;
        let migration = include_str!("../../migrations/postgres/0020_single_claims.sql");
        taken_out(&store, migration).await;
        store.close().await;
    }
}
