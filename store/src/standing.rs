//! How a replica stands among those on its database, as transactions of others ask: whether it may still speak of sessions, and whom
//! it takes them over from.

use device_ota_engine::ports::replicas::{Here, ReplicaKey};
use device_ota_engine::ports::store::Touch;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, statements};

statements! {
    // Locked against its end until the transaction's own.
    STANDING = "SELECT (SELECT COUNT(*) FROM replicas) AS replicas FROM replicas WHERE replica_key = $1 {for_key_share}";
    NOTE_TAKEN_OVER[Int, Int, Int, Int] =
        "WITH v (device_key, now, session, replica_key) AS (VALUES {rows}) \
         INSERT INTO replica_notes (replica_key, what, device_key, device_id, session) \
         SELECT l.replica_key, 'taken_over', d.device_key, d.device_id, l.session \
         FROM v JOIN device_latest l ON l.device_key = v.device_key JOIN devices d ON d.device_key = v.device_key \
         WHERE l.replica_key <> v.replica_key AND (v.session >= l.session OR l.session > v.now)";
}

/// What a replica may say of sessions at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It was taken for dead and does not know yet: nothing, until it says so of all of them.
    Ended,
    /// Nobody else holds any, or nobody holds those that it speaks of.
    Alone,
    /// There are others.
    Among,
}

/// How the replica stands, until the transaction ends. To be asked before devices are locked, as whoever ends a replica does.
pub(crate) async fn standing<D: Dialect>(
    conn: &mut D::Connection,
    replica: Option<ReplicaKey>,
) -> Result<Standing, DbError> {
    let Some(replica) = replica else {
        return Ok(Standing::Alone);
    };
    let args = Args::<D>::new().int(replica.0);
    let found = sql::fetch_optional(conn, &STANDING, args, |row| row.int("replicas"));
    Ok(match found.await? {
        None => Standing::Ended,
        Some(1) => Standing::Alone,
        Some(_) => Standing::Among,
    })
}

/// Leaves notes for those that hold what `here` takes over from them. The devices are locked by what was written of them before.
pub(crate) async fn take_over<D: Dialect>(
    conn: &mut D::Connection,
    came: &[(&Touch, i64)],
    here: Here,
) -> Result<(), DbError> {
    let Some(replica) = here.replica else {
        return Ok(());
    };
    sql::execute_rows::<D, _>(conn, &NOTE_TAKEN_OVER, came, |args, (touch, session)| {
        args.int(touch.device.0)
            .time(here.now.or(touch.last_seen))
            .int(*session)
            .int(replica.0)
    })
    .await
    .map(drop)
}

/// Who is meant by "nobody but this replica": numbers begin at 1.
pub(crate) fn number(replica: Option<ReplicaKey>) -> i64 {
    replica.map_or(0, |replica| replica.0)
}
