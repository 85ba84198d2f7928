//! Replicas: which there are, the sessions that they hold, and the notes that they leave for each other.

use std::collections::HashMap;

use async_trait::async_trait;
use device_ota_domain::DeviceId;
use device_ota_domain::device::DeviceKey;
use device_ota_engine::ports::replicas::{
    Away, Here, NewReplica, Note, Replica, ReplicaChanges, ReplicaKey, Replicas, Word,
};
use device_ota_engine::ports::{error as port, store::Touch};
use jiff::Timestamp;

use crate::SqlStore;
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::presence;
use crate::sql::{self, Args, Record, statements, to_json};
use crate::standing::{Standing, number, standing};
use crate::tx::SqlTx;
use crate::writes::seen;

/// The names of what notes say.
const OWED: &str = "owed";
const TAKEN_OVER: &str = "taken_over";
const SECRET: &str = "secret";

/// A session that began no longer than this after its device's secret was replaced, in microseconds, may have been opened by the one
/// before: by a replica that had not heard of it, or whose clock is ahead.
const DOUBT: i64 = 60_000_000;

statements! {
    REPLICAS = "SELECT replica_key, name, trust, shares_images, alive_until FROM replicas ORDER BY replica_key";
    INSERT_REPLICA = "INSERT INTO replicas (name, trust, shares_images, started_at, alive_until) VALUES ($1, $2, $3, $4, $5) \
         RETURNING replica_key";
    RENEW_REPLICA = "UPDATE replicas SET alive_until = $2 WHERE replica_key = $1";
    END_REPLICA = "DELETE FROM replicas WHERE replica_key = $1 AND alive_until <= $2";
    // In the order in which batches of reports lock them.
    LEAVE_DEVICES = "UPDATE device_latest SET online = 0, offline_since = $2, replica_key = NULL WHERE device_key IN \
         (SELECT device_key FROM device_latest WHERE online = 1 AND replica_key = $1 ORDER BY device_key {for_update})";
    FORGET_NOTES_OF = "DELETE FROM replica_notes WHERE replica_key = $1";
    NOTE_OWED = "INSERT INTO replica_notes (replica_key, what, device_key, device_id) \
         SELECT l.replica_key, 'owed', d.device_key, d.device_id \
         FROM device_latest l JOIN devices d ON d.device_key = l.device_key \
         WHERE l.device_key {any_int:$1} AND l.replica_key <> $2 RETURNING device_key";
    NOTE_SECRET = "INSERT INTO replica_notes (replica_key, what, device_key, device_id) \
         SELECT r.replica_key, 'secret', d.device_key, d.device_id FROM replicas r, devices d \
         WHERE d.device_id = $1 AND d.deleted_at IS NULL AND r.replica_key <> $2";
    NOTES = "SELECT note_id, what, device_key, device_id, session FROM replica_notes WHERE replica_key = $1 \
         ORDER BY note_id LIMIT $2";
    FORGET_NOTES = "DELETE FROM replica_notes WHERE note_id {any_int:$1}";
    ANNOUNCED = "SELECT device_key, device_id, secret_at FROM devices WHERE device_id {any:$1} AND deleted_at IS NULL";
    HELD = "SELECT d.device_id FROM device_latest l JOIN devices d ON d.device_key = l.device_key \
         WHERE l.device_key {any_int:$1} AND l.replica_key = $2";
    AWAY = "SELECT device_key, session FROM device_latest WHERE device_key {any_int:$1} \
         AND (replica_key IS NULL OR replica_key <> $2)";
    BEGIN_PLACE = "INSERT INTO outbox_places (sink, place) VALUES ($1, COALESCE((SELECT MAX(id) FROM outbox), 0)) \
         ON CONFLICT (sink) DO NOTHING";
    SHARE_KEY = "INSERT INTO shared_keys (name, hex) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
    FORGET_SHARED_KEY = "DELETE FROM shared_keys WHERE name = $1";
    SHARED_KEY = "SELECT hex FROM shared_keys WHERE name = $1";
}

async fn all<D: Dialect>(conn: &mut D::Connection) -> Result<Vec<Replica>, DbError> {
    sql::fetch_all::<D, _>(conn, &REPLICAS, Args::new(), |row| {
        Ok(Replica {
            key: ReplicaKey(row.int("replica_key")?),
            name: row.string("name")?,
            trust: row.json("trust")?,
            shares_images: row.flag("shares_images")?,
            alive_until: row.time("alive_until")?,
        })
    })
    .await
}

fn read_note<D: Dialect>(row: &Record<'_, D>) -> Result<Note, DbError> {
    Ok(Note {
        number: row.int("note_id")?,
        word: match row.text("what")? {
            OWED => Word::Owed,
            TAKEN_OVER => Word::TakenOver(row.int("session")?),
            SECRET => Word::Secret,
            what => return Err(DbError::corrupt(format!("what is {what}"))),
        },
        device: DeviceKey(row.int("device_key")?),
        device_id: row.parse("device_id")?,
    })
}

async fn hold<D: Dialect>(conn: &mut D::Connection) -> Result<(), DbError> {
    match D::HOLD_REPLICAS {
        Some(lock) => Ok(D::batch(conn, lock.to_owned()).await?),
        None => Ok(()),
    }
}

async fn insert<D: Dialect>(
    conn: &mut D::Connection,
    replica: &NewReplica<'_>,
) -> Result<ReplicaKey, DbError> {
    let trust = to_json(&replica.trust)?;
    let args = Args::<D>::new()
        .text(replica.name)
        .text(trust.as_str())
        .flag(replica.shares_images)
        .time(replica.started_at)
        .time(replica.alive_until);
    let key = sql::fetch_optional(conn, &INSERT_REPLICA, args, |row| row.int("replica_key"));
    Ok(ReplicaKey(sql::present("replica_key", key.await?)?))
}

async fn end<D: Dialect>(
    conn: &mut D::Connection,
    replica: ReplicaKey,
    by: Timestamp,
    at: Timestamp,
) -> Result<bool, DbError> {
    let args = Args::<D>::new().int(replica.0).time(by);
    if sql::execute(conn, &END_REPLICA, args).await? == 0 {
        return Ok(false);
    }
    let args = Args::<D>::new().int(replica.0).time(at);
    sql::execute(conn, &LEAVE_DEVICES, args).await?;
    let args = Args::<D>::new().int(replica.0);
    sql::execute(conn, &FORGET_NOTES_OF, args).await?;
    Ok(true)
}

async fn announce<D: Dialect>(
    conn: &mut D::Connection,
    replica: ReplicaKey,
    sessions: &[(DeviceId, i64)],
) -> Result<Vec<DeviceId>, DbError> {
    let numbers: HashMap<&str, i64> = sessions.iter().map(|(id, n)| (id.as_str(), *n)).collect();
    let ids: Vec<&str> = numbers.keys().copied().collect();
    let known = sql::fetch_all(conn, &ANNOUNCED, Args::<D>::new().texts(&ids), |row| {
        let (key, secret_at) = (row.int("device_key")?, row.int_opt("secret_at")?);
        let session = numbers.get(row.text("device_id")?).copied();
        let session = session.filter(|session| secret_at.is_none_or(|at| at + DOUBT < *session));
        Ok(session.map(|session| (key, session)))
    });
    let touches = known
        .await?
        .into_iter()
        .flatten()
        .map(|(key, session)| Touch {
            device: DeviceKey(key),
            online: Some((true, session)),
            ..Touch::default()
        });
    let touches: Vec<Touch> = touches.collect();
    // No clock was set back: the higher number wins.
    let here = Here {
        replica: Some(replica),
        now: Some(Timestamp::MAX),
    };
    presence::touch::<D>(conn, &touches, here).await?;
    let keys: Vec<i64> = touches.iter().map(|touch| touch.device.0).collect();
    let args = Args::<D>::new().ints(&keys).int(replica.0);
    sql::fetch_all(conn, &HELD, args, |row| row.parse("device_id")).await
}

async fn away_from<D: Dialect>(
    conn: &mut D::Connection,
    here: ReplicaKey,
    devices: &[DeviceKey],
) -> Result<Option<Vec<Away>>, DbError> {
    match standing::<D>(conn, Some(here)).await? {
        Standing::Ended => return Ok(None),
        Standing::Alone => return Ok(Some(Vec::new())),
        Standing::Among => {}
    }
    let keys: Vec<i64> = devices.iter().map(|key| key.0).collect();
    let args = Args::<D>::new().ints(&keys).int(here.0);
    let away = sql::fetch_all(conn, &AWAY, args, |row| {
        Ok(Away {
            device: DeviceKey(row.int("device_key")?),
            session: row.int("session")?,
        })
    });
    Ok(Some(away.await?))
}

async fn note_owed<D: Dialect>(
    conn: &mut D::Connection,
    here: Option<ReplicaKey>,
    devices: &[DeviceKey],
) -> Result<Vec<DeviceKey>, DbError> {
    let keys: Vec<i64> = devices.iter().map(|key| key.0).collect();
    let args = Args::<D>::new().ints(&keys).int(number(here));
    sql::fetch_all(conn, &NOTE_OWED, args, |row| {
        Ok(DeviceKey(row.int("device_key")?))
    })
    .await
}

async fn note_secret<D: Dialect>(
    conn: &mut D::Connection,
    here: Option<ReplicaKey>,
    device: &DeviceId,
) -> Result<(), DbError> {
    // Whoever begins meanwhile would read the old one and not the note.
    hold::<D>(conn).await?;
    let args = Args::<D>::new().text(device.as_str()).int(number(here));
    sql::execute(conn, &NOTE_SECRET, args).await.map(drop)
}

async fn shared_key<D: Dialect>(
    conn: &mut D::Connection,
    name: &str,
    hex: &str,
) -> Result<String, DbError> {
    let args = Args::<D>::new().text(name).text(hex);
    sql::execute(conn, &SHARE_KEY, args).await?;
    let args = Args::<D>::new().text(name);
    let found = sql::fetch_optional(conn, &SHARED_KEY, args, |row| row.string("hex"));
    sql::present("hex", found.await?)
}

#[async_trait]
impl<D: Dialect> Replicas for SqlStore<D> {
    async fn replicas(&self) -> port::Result<Vec<Replica>> {
        Ok(all::<D>(&mut *self.read().await?).await?)
    }
    async fn notes(&self, replica: ReplicaKey, limit: u32) -> port::Result<Vec<Note>> {
        let args = Args::<D>::new().int(replica.0).int(i64::from(limit));
        let notes = sql::fetch_all(&mut *self.read().await?, &NOTES, args, read_note).await;
        Ok(notes?)
    }
}

#[async_trait]
impl<D: Dialect> ReplicaChanges for SqlTx<D> {
    async fn hold_replicas(&mut self) -> port::Result<Vec<Replica>> {
        hold::<D>(self.connection()).await?;
        Ok(all::<D>(self.connection()).await?)
    }
    async fn insert_replica(&mut self, replica: &NewReplica<'_>) -> port::Result<ReplicaKey> {
        let inserted = insert::<D>(self.connection(), replica).await;
        seen(inserted, &self.writes)
    }
    async fn renew_replica(
        &mut self,
        replica: ReplicaKey,
        alive_until: Timestamp,
    ) -> port::Result<bool> {
        let args = Args::<D>::new().int(replica.0).time(alive_until);
        let renewed = sql::execute(self.connection(), &RENEW_REPLICA, args).await;
        Ok(seen(renewed, &self.writes)? > 0)
    }
    async fn end_replica(
        &mut self,
        replica: ReplicaKey,
        by: Timestamp,
        at: Timestamp,
    ) -> port::Result<bool> {
        let ended = end::<D>(self.connection(), replica, by, at).await;
        seen(ended, &self.writes)
    }
    async fn announce(
        &mut self,
        replica: ReplicaKey,
        sessions: &[(DeviceId, i64)],
    ) -> port::Result<Vec<DeviceId>> {
        let announced = announce::<D>(self.connection(), replica, sessions).await;
        seen(announced, &self.writes)
    }
    async fn away_from(
        &mut self,
        here: ReplicaKey,
        devices: &[DeviceKey],
    ) -> port::Result<Option<Vec<Away>>> {
        let away = away_from::<D>(self.connection(), here, devices).await;
        seen(away, &self.writes)
    }
    async fn note_owed(
        &mut self,
        here: Option<ReplicaKey>,
        devices: &[DeviceKey],
    ) -> port::Result<Vec<DeviceKey>> {
        let noted = note_owed::<D>(self.connection(), here, devices).await;
        seen(noted, &self.writes)
    }
    async fn note_secret(
        &mut self,
        here: Option<ReplicaKey>,
        device: &DeviceId,
    ) -> port::Result<()> {
        let noted = note_secret::<D>(self.connection(), here, device).await;
        seen(noted, &self.writes)
    }
    async fn forget_notes(&mut self, numbers: &[i64]) -> port::Result<()> {
        let args = Args::<D>::new().ints(numbers);
        let forgotten = sql::execute(self.connection(), &FORGET_NOTES, args).await;
        seen(forgotten.map(drop), &self.writes)
    }
    async fn begin_place(&mut self, sink: &str) -> port::Result<()> {
        let args = Args::<D>::new().text(sink);
        let begun = sql::execute(self.connection(), &BEGIN_PLACE, args).await;
        seen(begun.map(drop), &self.writes)
    }
    async fn shared_key(&mut self, name: &str, hex: &str) -> port::Result<String> {
        let shared = shared_key::<D>(self.connection(), name, hex).await;
        seen(shared, &self.writes)
    }
    async fn forget_shared_key(&mut self, name: &str) -> port::Result<()> {
        let args = Args::<D>::new().text(name);
        let forgotten = sql::execute(self.connection(), &FORGET_SHARED_KEY, args).await;
        seen(forgotten.map(drop), &self.writes)
    }
}
