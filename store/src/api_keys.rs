//! API keys: found by the hash of their secrets, listed, made, revoked.

use device_ota_domain::api_key::ApiKey;
use device_ota_domain::identity::Roles;
use device_ota_domain::page::Page;
use device_ota_domain::{ApiKeyId, Role};
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, statements};

macro_rules! select_key {
    ($rest:literal) => {
        concat!(
            "SELECT key_id, name, subject, roles, created_at, created_by, expires_at, last_used_at, revoked_at \
             FROM api_keys ",
            $rest
        )
    };
}

statements! {
    KEY_OF_SECRET = select_key!("WHERE secret_sha256 = $1");
    KEY = select_key!("WHERE key_id = $1");
    KEYS = select_key!("ORDER BY number DESC LIMIT $1 OFFSET $2");
    INSERT_KEY = "INSERT INTO api_keys (key_id, secret_sha256, name, subject, roles, created_at, created_by, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    REVOKE_KEY = "UPDATE api_keys SET revoked_at = $2 WHERE key_id = $1 AND revoked_at IS NULL";
    KEY_USED = "UPDATE api_keys SET last_used_at = $2 WHERE key_id = $1 AND (last_used_at IS NULL OR last_used_at < $2)";
}

/// The key whose secret has this SHA-256, in hex.
pub(crate) async fn of_secret<D: Dialect>(
    conn: &mut D::Connection,
    sha256: &str,
) -> Result<Option<ApiKey>, DbError> {
    let args = Args::<D>::new().text(sha256);
    sql::fetch_optional(conn, &KEY_OF_SECRET, args, read_key).await
}

/// One key.
pub(crate) async fn key<D: Dialect>(
    conn: &mut D::Connection,
    id: &ApiKeyId,
) -> Result<Option<ApiKey>, DbError> {
    sql::fetch_optional(conn, &KEY, Args::<D>::new().text(id.as_str()), read_key).await
}

/// Keys, newest first.
pub(crate) async fn list<D: Dialect>(
    conn: &mut D::Connection,
    page: Page,
) -> Result<Vec<ApiKey>, DbError> {
    sql::fetch_all(conn, &KEYS, Args::<D>::new().page(page), read_key).await
}

/// Inserts a key.
pub(crate) async fn insert<D: Dialect>(
    conn: &mut D::Connection,
    key: &ApiKey,
    sha256: &str,
) -> Result<(), DbError> {
    let roles = key.roles.to_string();
    let args = Args::new()
        .text(key.id.as_str())
        .text(sha256)
        .text(key.name.as_str())
        .text(key.subject.as_str())
        .text(roles.as_str())
        .time(key.created_at)
        .text(key.created_by.as_str())
        .time(key.expires_at);
    sql::execute::<D>(conn, &INSERT_KEY, args).await.map(drop)
}

/// Revokes a key; false when there is none that was not revoked before.
pub(crate) async fn revoke<D: Dialect>(
    conn: &mut D::Connection,
    id: &ApiKeyId,
    at: Timestamp,
) -> Result<bool, DbError> {
    let args = Args::new().text(id.as_str()).time(at);
    Ok(sql::execute::<D>(conn, &REVOKE_KEY, args).await? > 0)
}

/// Notes that a key was used.
pub(crate) async fn used<D: Dialect>(
    conn: &mut D::Connection,
    id: &ApiKeyId,
    at: Timestamp,
) -> Result<(), DbError> {
    let args = Args::new().text(id.as_str()).time(at);
    sql::execute::<D>(conn, &KEY_USED, args).await.map(drop)
}

fn read_key<D: Dialect>(row: &Record<'_, D>) -> Result<ApiKey, DbError> {
    let roles = row.text("roles")?.split_ascii_whitespace();
    let roles: Result<Roles, _> = roles.map(str::parse::<Role>).collect();
    Ok(ApiKey {
        id: row.parse("key_id")?,
        name: row.string("name")?,
        subject: row.string("subject")?,
        roles: roles.map_err(|error| DbError::corrupt(format!("roles: {error}")))?,
        created_at: row.time("created_at")?,
        created_by: row.string("created_by")?,
        expires_at: row.time_opt("expires_at")?,
        last_used_at: row.time_opt("last_used_at")?,
        revoked_at: row.time_opt("revoked_at")?,
    })
}
