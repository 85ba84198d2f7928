//! Devices as they were registered: look-ups, registration and credentials.

use std::collections::HashMap;

use device_ota_domain::DeviceId;
use device_ota_domain::device::{Device, DeviceKey, Latest, Registration};
use device_ota_domain::ring::Ring;
use device_ota_engine::ports::store::{Credentials, NewDevice, Registered};
use jiff::Timestamp;

use crate::combine::Lookup;
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, statements, to_json};

macro_rules! select_device {
    ($($rest:expr),+ $(,)?) => {
        concat!(
            "SELECT d.device_key, d.device_id, d.device_type, d.device_model, d.manufacturer, d.hw_revision, \
             d.firmware_version, d.group_names, d.tags, d.ring, d.bucket, d.revision, d.registered_at, l.online, l.last_seen, \
             l.version, l.slot, l.confirmed, l.battery_percent, l.charging, l.free_storage_bytes, l.security_floor, \
             l.reported_model, l.error_count, l.last_error, l.metrics FROM devices d JOIN device_latest l ON l.device_key = d.device_key ",
            $($rest),+
        )
    };
}
pub(crate) use select_device;

statements! {
    CREDENTIALS = "SELECT device_key, verifier, device_id FROM devices WHERE device_id = $1 AND deleted_at IS NULL";
    MANY_CREDENTIALS = "SELECT device_key, verifier, device_id FROM devices WHERE device_id {any:$1} \
         AND deleted_at IS NULL";
    // A deleted device has none. Not by `deleted_at`: PostgreSQL takes null for rare and would read all devices.
    ALL_CREDENTIALS = "SELECT device_key, verifier, device_id FROM devices WHERE device_id > $1 AND verifier <> '' \
         ORDER BY device_id LIMIT $2";
    DEVICE = select_device!("WHERE d.device_id = $1");
    DEVICES_BY_KEY = select_device!("WHERE d.device_key {any_int:$1}");
    DEVICES_BY_ID = select_device!("WHERE d.device_id {any:$1} ORDER BY d.device_id");
    LOCK_DEVICE = "SELECT device_key FROM devices WHERE device_id = $1 AND deleted_at IS NULL {for_update}";
    KNOWN = "SELECT device_id FROM devices WHERE device_id {any:$1} AND deleted_at IS NULL";
    // A device that was deleted and comes back is a new one under its old number.
    INSERT_DEVICES[Text, Text, Text, Text, Text, Text, Text, Text, Text, Int, Text, Int] =
        "INSERT INTO devices (device_id, device_type, device_model, manufacturer, hw_revision, firmware_version, \
         group_names, tags, ring, bucket, verifier, registered_at) VALUES {rows} \
         ON CONFLICT (device_id) DO UPDATE SET device_type = excluded.device_type, \
         device_model = excluded.device_model, manufacturer = excluded.manufacturer, \
         hw_revision = excluded.hw_revision, firmware_version = excluded.firmware_version, \
         group_names = excluded.group_names, tags = excluded.tags, ring = excluded.ring, \
         verifier = excluded.verifier, secret_at = excluded.registered_at, \
         revision = devices.revision + 1, registered_at = excluded.registered_at, deleted_at = NULL WHERE devices.deleted_at IS NOT NULL \
         RETURNING device_key, device_id";
    INSERT_LATEST[Int] = "INSERT INTO device_latest (device_key) VALUES {rows}";
    INSERT_SEQS[Int] = "INSERT INTO device_seqs (device_key) VALUES {rows} ON CONFLICT DO NOTHING";
    INSERT_GROUPS[Text, Int] =
        "INSERT INTO device_groups (group_name, device_key) VALUES {rows} ON CONFLICT DO NOTHING";
    SET_VERIFIER = "UPDATE devices SET verifier = $2, secret_at = $3 WHERE device_id = $1 AND deleted_at IS NULL";
    SAVE_DEVICE = "UPDATE devices SET device_type = $2, device_model = $3, manufacturer = $4, hw_revision = $5, \
         firmware_version = $6, group_names = $7, tags = $8, ring = $9, revision = revision + 1 \
         WHERE device_id = $1 AND deleted_at IS NULL RETURNING device_key";
    DELETE_DEVICE = "UPDATE devices SET deleted_at = $2, verifier = '' WHERE device_id = $1 AND deleted_at IS NULL \
         RETURNING device_key";
    DELETE_LATEST = "DELETE FROM device_latest WHERE device_key = $1";
    DELETE_GROUPS = "DELETE FROM device_groups WHERE device_key = $1";
}

/// What connecting devices are checked against, by the device's id.
pub(crate) fn credentials_by_id<D: Dialect>() -> Lookup<D, Credentials> {
    Lookup {
        one: &CREDENTIALS,
        many: &MANY_CREDENTIALS,
        key: "device_id",
        read: read_credentials,
    }
}

fn read_credentials<D: Dialect>(row: &Record<'_, D>) -> Result<Credentials, DbError> {
    Ok(Credentials {
        key: DeviceKey(row.int("device_key")?),
        verifier: row.string("verifier")?,
    })
}

/// The same of all devices in id order, after an id.
pub(crate) async fn all_credentials<D: Dialect>(
    conn: &mut D::Connection,
    after: Option<&DeviceId>,
    limit: u32,
) -> Result<Vec<(DeviceId, Credentials)>, DbError> {
    // No id is empty, so the empty text is before all of them.
    let after = after.map_or("", DeviceId::as_str);
    let args = Args::new().text(after).int(i64::from(limit));
    sql::fetch_all::<D, _>(conn, &ALL_CREDENTIALS, args, |row| {
        Ok((row.parse("device_id")?, read_credentials(row)?))
    })
    .await
}

/// One device.
pub(crate) async fn device<D: Dialect>(
    conn: &mut D::Connection,
    device: &DeviceId,
) -> Result<Option<Device>, DbError> {
    sql::fetch_optional(
        conn,
        &DEVICE,
        Args::<D>::new().text(device.as_str()),
        read_device,
    )
    .await
}

/// One device, locked until the transaction ends. What it says is not locked: devices talk all the time.
pub(crate) async fn locked<D: Dialect>(
    conn: &mut D::Connection,
    id: &DeviceId,
) -> Result<Option<Device>, DbError> {
    let args = Args::<D>::new().text(id.as_str());
    let found = sql::fetch_optional(conn, &LOCK_DEVICE, args, |_| Ok(())).await?;
    match found {
        // A statement of its own, so that it sees what was written while the lock was waited for.
        Some(()) => device::<D>(conn, id).await,
        None => Ok(None),
    }
}

/// Devices by their numbers.
pub(crate) async fn by_key<D: Dialect>(
    conn: &mut D::Connection,
    devices: &[DeviceKey],
) -> Result<Vec<Device>, DbError> {
    let keys: Vec<i64> = devices.iter().map(|key| key.0).collect();
    let args = Args::<D>::new().ints(&keys);
    sql::fetch_all(conn, &DEVICES_BY_KEY, args, read_device).await
}

/// The devices of these ids that are registered, in id order.
pub(crate) async fn by_ids<D: Dialect>(
    conn: &mut D::Connection,
    ids: &[&str],
) -> Result<Vec<Device>, DbError> {
    sql::fetch_all(
        conn,
        &DEVICES_BY_ID,
        Args::<D>::new().texts(ids),
        read_device,
    )
    .await
}

/// Reads a row of [`select_device!`].
pub(crate) fn read_device<D: Dialect>(row: &Record<'_, D>) -> Result<Device, DbError> {
    let ring = row.text_opt("ring")?;
    let ring = ring
        .map(|name| sql::present("ring", Ring::from_name(name)))
        .transpose()?;
    Ok(Device {
        key: DeviceKey(row.int("device_key")?),
        registration: Registration {
            device_id: row.parse("device_id")?,
            device_type: row.string_opt("device_type")?,
            device_model: row.string("device_model")?,
            manufacturer: row.string_opt("manufacturer")?,
            hw_revision: row.string_opt("hw_revision")?,
            firmware_version: row.string_opt("firmware_version")?,
            groups: row.json("group_names")?,
            tags: row.json("tags")?,
            ring,
        },
        bucket: row.uint("bucket")?,
        revision: row.int("revision")?,
        registered_at: row.time("registered_at")?,
        latest: Latest {
            online: row.flag("online")?,
            last_seen: row.time_opt("last_seen")?,
            version: row.string_opt("version")?,
            slot: row.string_opt("slot")?,
            confirmed: row.flag_opt("confirmed")?,
            battery_percent: row.real_opt("battery_percent")?,
            charging: row.flag_opt("charging")?,
            free_storage_bytes: row.int_opt("free_storage_bytes")?,
            error_count: row.int("error_count")?,
            last_error: row.json_opt("last_error")?,
            metrics: row.json_opt("metrics")?.unwrap_or_default(),
            security_floor: row.int_opt("security_floor")?,
            reported_model: row.string_opt("reported_model")?,
        },
    })
}

/// Registers devices; one answer for each, in order.
pub(crate) async fn register<D: Dialect>(
    conn: &mut D::Connection,
    devices: &[NewDevice],
) -> Result<Vec<Registered>, DbError> {
    let mut fresh = unknown::<D>(conn, devices).await?;
    let inserted = insert_devices::<D>(conn, &fresh).await?;
    fresh.retain(|new| inserted.contains_key(new.device.registration.device_id.as_str()));
    let keys: Vec<i64> = inserted.values().copied().collect();
    sql::execute_rows::<D, _>(conn, &INSERT_LATEST, &keys, |args, key| args.int(*key)).await?;
    sql::execute_rows::<D, _>(conn, &INSERT_SEQS, &keys, |args, key| args.int(*key)).await?;
    let groups: Vec<(&str, i64)> = fresh
        .iter()
        .filter_map(|new| {
            Some((
                new,
                *inserted.get(new.device.registration.device_id.as_str())?,
            ))
        })
        .flat_map(|(new, key)| {
            let groups = &new.device.registration.groups;
            groups.iter().map(move |group| (group.as_str(), key))
        })
        .collect();
    sql::execute_rows::<D, _>(conn, &INSERT_GROUPS, &groups, |args, (group, key)| {
        args.text(*group).int(*key)
    })
    .await?;
    let mut inserted = inserted;
    Ok(devices
        .iter()
        // Taken out: an id that is named twice is created once.
        .map(|new| inserted.remove(new.registration.device_id.as_str()))
        .map(|key| {
            key.map_or(Registered::Exists, |key| {
                Registered::Created(DeviceKey(key))
            })
        })
        .collect())
}

/// A device to insert and its JSON columns.
struct Fresh<'d> {
    device: &'d NewDevice,
    groups: String,
    tags: String,
}

/// The devices whose ids are not registered, each id once. Asked first so that repeats do not use up device numbers.
async fn unknown<'d, D: Dialect>(
    conn: &mut D::Connection,
    devices: &'d [NewDevice],
) -> Result<Vec<Fresh<'d>>, DbError> {
    let ids: Vec<&str> = devices
        .iter()
        .map(|new| new.registration.device_id.as_str())
        .collect();
    let known = sql::fetch_all::<D, _>(conn, &KNOWN, Args::new().texts(&ids), |row| {
        row.string("device_id")
    });
    let mut seen: std::collections::HashSet<String> = known.await?.into_iter().collect();
    devices
        .iter()
        .filter(|new| seen.insert(new.registration.device_id.as_str().to_owned()))
        .map(|device| {
            Ok(Fresh {
                device,
                groups: to_json(&device.registration.groups)?,
                tags: to_json(&device.registration.tags)?,
            })
        })
        .collect()
}

/// Inserts what nobody else has inserted meanwhile; answers ids and numbers.
async fn insert_devices<D: Dialect>(
    conn: &mut D::Connection,
    fresh: &[Fresh<'_>],
) -> Result<HashMap<String, i64>, DbError> {
    let bind = |args: Args<D>, new: &Fresh<'_>| {
        let said = &new.device.registration;
        args.text(said.device_id.as_str())
            .text(said.device_type.as_deref())
            .text(said.device_model.as_str())
            .text(said.manufacturer.as_deref())
            .text(said.hw_revision.as_deref())
            .text(said.firmware_version.as_deref())
            .text(new.groups.as_str())
            .text(new.tags.as_str())
            .text(said.ring.map(Ring::name))
            .int(i64::from(new.device.bucket))
            .text(new.device.verifier.as_str())
            .time(new.device.at)
    };
    let rows = sql::fetch_rows(conn, &INSERT_DEVICES, fresh, bind, |row| {
        Ok((row.string("device_id")?, row.int("device_key")?))
    });
    Ok(rows.await?.into_iter().collect())
}

/// Replaces a device's verifier; false when there is no such device.
pub(crate) async fn set_verifier<D: Dialect>(
    conn: &mut D::Connection,
    device: &DeviceId,
    verifier: &str,
    at: Timestamp,
) -> Result<bool, DbError> {
    let args = Args::new().text(device.as_str()).text(verifier).time(at);
    Ok(sql::execute::<D>(conn, &SET_VERIFIER, args).await? > 0)
}

/// Writes what is registered of a device; false when there is no such device.
pub(crate) async fn save<D: Dialect>(
    conn: &mut D::Connection,
    said: &Registration,
) -> Result<bool, DbError> {
    let (groups, tags) = (to_json(&said.groups)?, to_json(&said.tags)?);
    let args = Args::<D>::new()
        .text(said.device_id.as_str())
        .text(said.device_type.as_deref())
        .text(said.device_model.as_str())
        .text(said.manufacturer.as_deref())
        .text(said.hw_revision.as_deref())
        .text(said.firmware_version.as_deref())
        .text(groups.as_str())
        .text(tags.as_str())
        .text(said.ring.map(Ring::name));
    let found = sql::fetch_optional(conn, &SAVE_DEVICE, args, |row| row.int("device_key")).await?;
    let Some(key) = found else { return Ok(false) };
    sql::execute::<D>(conn, &DELETE_GROUPS, Args::new().int(key)).await?;
    sql::execute_rows::<D, _>(conn, &INSERT_GROUPS, &said.groups, |args, group| {
        args.text(group.as_str()).int(key)
    })
    .await?;
    Ok(true)
}

/// Deletes a device, but for its number and what was registered.
pub(crate) async fn delete<D: Dialect>(
    conn: &mut D::Connection,
    device: &DeviceId,
    at: Timestamp,
) -> Result<bool, DbError> {
    let args = Args::<D>::new().text(device.as_str()).time(at);
    let found =
        sql::fetch_optional(conn, &DELETE_DEVICE, args, |row| row.int("device_key")).await?;
    let Some(key) = found else { return Ok(false) };
    sql::execute::<D>(conn, &DELETE_LATEST, Args::new().int(key)).await?;
    sql::execute::<D>(conn, &DELETE_GROUPS, Args::new().int(key)).await?;
    Ok(true)
}
