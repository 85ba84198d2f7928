//! Firmware: the registry's rows.

use device_ota_domain::FirmwareId;
use device_ota_domain::firmware::{Firmware, FirmwareFilter, Format, Results};
use device_ota_domain::page::Page;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, statements, to_json};

macro_rules! select_firmware {
    ($rest:literal) => {
        concat!(
            "SELECT firmware_id, metadata, format, size, sha256, md5, release_envelope, release_sha256, \
             download_count, deprecated_at, created_at, updated_at, created_by, ",
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
    FIRMWARE_LIST = select_firmware!(
        "WHERE deprecated_at IS NULL \
         AND (CAST($3 AS TEXT) IS NULL OR device_model = $3) \
         AND (CAST($4 AS TEXT) IS NULL OR manufacturer = $4) \
         AND (CAST($5 AS BIGINT) IS NULL OR is_beta = $5) \
         AND (CAST($6 AS BIGINT) IS NULL OR is_security_update = $6) \
         ORDER BY created_at DESC, firmware_id LIMIT $1 OFFSET $2"
    );
    FIRMWARE_OF_VERSION = select_firmware!(
        "WHERE device_model = $1 AND version = $2 ORDER BY created_at DESC, firmware_id LIMIT 1"
    );
    OBJECT_IS_USED = "SELECT firmware_id FROM firmware WHERE sha256 = $1 LIMIT 1";
    INSERT_FIRMWARE = "INSERT INTO firmware (firmware_id, name, version, device_model, manufacturer, is_beta, \
         is_security_update, metadata, format, size, sha256, md5, release_envelope, release_sha256, download_count, \
         deprecated_at, created_at, updated_at, created_by) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)";
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

/// Firmware that is not deprecated, newest first.
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
        .flag(filter.is_security_update);
    sql::fetch_all(conn, &FIRMWARE_LIST, args, read_firmware).await
}

/// The newest firmware of that model and version, deprecated or not.
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
        .text(firmware.created_by.as_str());
    sql::execute::<D>(conn, &INSERT_FIRMWARE, args)
        .await
        .map(drop)
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
            completed: row.uint("completed")?,
            failed: row.uint("failed")?,
        },
        deprecated_at: row.time_opt("deprecated_at")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        created_by: row.string("created_by")?,
    })
}
