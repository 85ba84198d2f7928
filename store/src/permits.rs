//! Rollback permits: kept as they were signed, and found for the rollbacks that they permit.

use device_ota_domain::UpdateId;
use device_ota_domain::page::Page;
use device_ota_domain::permit::Permit;
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, statements};

/// Of permits, called `p`, those by which this device goes back from the version that it runs to this image: for it or for the
/// campaign that takes it back, from an image of the version that runs, in force, and not used by it.
macro_rules! permits {
    ($device_id:literal, $device_key:literal, $campaign:literal, $running:literal, $firmware:literal, $now:literal) => {
        concat!(
            "p.to_sha256 = (SELECT t.sha256 FROM firmware t WHERE t.firmware_id = ",
            $firmware,
            ") AND p.expires_at > ",
            $now,
            " AND (p.device_id = ",
            $device_id,
            " OR p.campaign_id = ",
            $campaign,
            ") AND EXISTS (SELECT 1 FROM firmware f WHERE f.sha256 = p.from_sha256 AND f.version = ",
            $running,
            ") AND NOT EXISTS (SELECT 1 FROM device_updates b WHERE b.device_key = ",
            $device_key,
            " AND b.action = 'rollback' AND b.state = 'completed' AND b.firmware_id = ",
            $firmware,
            " AND b.ended_at >= p.created_at)"
        )
    };
}
pub(crate) use permits;

statements! {
    INSERT_PERMIT = "INSERT INTO rollback_permits (permit_id, device_id, campaign_id, from_sha256, to_sha256, expires_at, envelope, \
         created_at, created_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (permit_id) DO NOTHING";
    PERMITS = "SELECT permit_id, device_id, campaign_id, from_sha256, to_sha256, expires_at, envelope, created_at, created_by \
         FROM rollback_permits ORDER BY created_at DESC, permit_id LIMIT $1 OFFSET $2";
    PERMIT_FOR = concat!(
        "SELECT p.envelope FROM device_updates u JOIN device_latest l ON l.device_key = u.device_key, rollback_permits p \
         WHERE u.update_id = $1 AND u.action = 'rollback' AND ",
        permits!("u.device_id", "u.device_key", "u.campaign_id", "l.version", "u.firmware_id", "$2"),
        " ORDER BY p.created_at DESC, p.permit_id LIMIT 1"
    );
}

/// Keeps a permit; false when one of that id is there.
pub(crate) async fn insert<D: Dialect>(
    conn: &mut D::Connection,
    permit: &Permit,
) -> Result<bool, DbError> {
    let args = Args::new()
        .text(permit.id.as_str())
        .text(
            permit
                .device
                .as_ref()
                .map(device_ota_domain::DeviceId::as_str),
        )
        .text(
            permit
                .campaign
                .as_ref()
                .map(device_ota_domain::CampaignId::as_str),
        )
        .text(permit.from_sha256.as_str())
        .text(permit.to_sha256.as_str())
        .time(permit.expires_at)
        .text(permit.envelope.as_str())
        .time(permit.created_at)
        .text(permit.created_by.as_str());
    Ok(sql::execute::<D>(conn, &INSERT_PERMIT, args).await? > 0)
}

/// Permits, newest first.
pub(crate) async fn list<D: Dialect>(
    conn: &mut D::Connection,
    page: Page,
) -> Result<Vec<Permit>, DbError> {
    sql::fetch_all(conn, &PERMITS, Args::<D>::new().page(page), read_permit).await
}

/// The envelope of a permit for this rollback, by what its device runs now.
pub(crate) async fn permit_for<D: Dialect>(
    conn: &mut D::Connection,
    rollback: &UpdateId,
    now: Timestamp,
) -> Result<Option<String>, DbError> {
    let args = Args::<D>::new().text(rollback.as_str()).time(now);
    sql::fetch_optional(conn, &PERMIT_FOR, args, |row| row.string("envelope")).await
}

fn read_permit<D: Dialect>(row: &Record<'_, D>) -> Result<Permit, DbError> {
    Ok(Permit {
        id: row.string("permit_id")?,
        device: row.parse_opt("device_id")?,
        campaign: row.parse_opt("campaign_id")?,
        from_sha256: row.string("from_sha256")?,
        to_sha256: row.string("to_sha256")?,
        expires_at: row.time("expires_at")?,
        envelope: row.string("envelope")?,
        created_at: row.time("created_at")?,
        created_by: row.string("created_by")?,
    })
}
