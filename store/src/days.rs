//! The days of the history, where it lies in partitions by day: made ahead, and dropped when they are over.
//!
//! A statement that changes partitions waits for whoever reads or writes the history, and others wait behind it. So none waits long:
//! what cannot be had within [`LOCK_TIMEOUT`] is tried again next time, and until then the default partition takes what has no day.

use jiff::Timestamp;

use crate::SqlStore;
use crate::dialect::{Dialect, safe};
use crate::error::DbError;
use crate::sql::Args;

/// Microseconds of a day.
pub(crate) const DAY: i64 = 86_400_000_000;
/// Days after the present one that have a partition already: so many are there to try it in.
const AHEAD: i64 = 3;
/// The longest that reports may wait behind a change of partitions: far more than any transaction of theirs takes.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '500ms'";
/// The partitions that there are, each with its bounds in PostgreSQL's words.
const PARTITIONS: &str = "SELECT CAST(CAST(c.oid AS REGCLASS) AS TEXT) AS name, \
    pg_get_expr(c.relpartbound, c.oid) AS bounds FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
    WHERE i.inhparent = CAST('device_heartbeats' AS REGCLASS)";
/// A row of a day that has no partition.
const STRAY: &str = "SELECT number FROM device_heartbeats_default WHERE received_at >= $1 AND received_at < $2 LIMIT 1";
/// The server's codes for what another time may go well: a lock was not to be had, a row of that day came into the default partition.
const PASSING: [&str; 2] = ["55P03", "23514"];

/// A partition of a span of time, in microseconds: from the first up to before the second.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Partition {
    /// Quoted where need be.
    name: String,
    from: i64,
    to: i64,
}

impl Partition {
    /// The day, by its number since the epoch; `None` beyond the calendar.
    fn of_day(day: i64) -> Option<Self> {
        let from = day.checked_mul(DAY)?;
        let date = Timestamp::from_microsecond(from).ok()?;
        Some(Self {
            name: date.strftime("device_heartbeats_%Y%m%d").to_string(),
            from,
            to: from.checked_add(DAY)?,
        })
    }

    /// Reads `FOR VALUES FROM (…) TO (…)`; `None` of the default partition, which has no bounds.
    fn parse(name: &str, bounds: &str) -> Result<Option<Self>, DbError> {
        if bounds == "DEFAULT" {
            return Ok(None);
        }
        let unknown = || DbError::corrupt(format!("partition {name} is {bounds}"));
        let (from, to) = bounds
            .strip_prefix("FOR VALUES FROM (")
            .and_then(|bounds| bounds.strip_suffix(')'))
            .and_then(|bounds| bounds.split_once(") TO ("))
            .ok_or_else(unknown)?;
        let bound = |text: &str| match text {
            "MINVALUE" => Ok(i64::MIN),
            "MAXVALUE" => Ok(i64::MAX),
            number => number.trim_matches('\'').parse().map_err(|_| unknown()),
        };
        Ok(Some(Self {
            name: name.to_owned(),
            from: bound(from)?,
            to: bound(to)?,
        }))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.from < other.to && other.from < self.to
    }

    /// Locks the history against other changes of its partitions and, for as long as the default partition is looked
    /// through, that one; who writes goes on.
    fn make(&self) -> String {
        let Self { name, from, to } = self;
        format!(
            "CREATE TABLE {name} (LIKE device_heartbeats, PRIMARY KEY (number)); \
             ALTER TABLE device_heartbeats ATTACH PARTITION {name} FOR VALUES FROM ({from}) TO ({to})"
        )
    }

    /// Locks the history for as long as its catalogue is changed; the files go afterwards.
    fn drop(&self) -> String {
        format!("DROP TABLE IF EXISTS {}", self.name)
    }
}

/// Makes partitions for the day of `now` and the days after it, and drops those of which all is from before `before`.
pub(crate) async fn keep<D: Dialect>(
    store: &SqlStore<D>,
    now: Timestamp,
    before: Timestamp,
) -> Result<(), DbError> {
    let Some(lock) = D::HISTORY_DAYS else {
        return Ok(());
    };
    let mut conn = store.reader.acquire().await?;
    let there = partitions::<D>(&mut conn).await?;
    drop(conn);
    let today = now.as_microsecond().div_euclid(DAY);
    let days = (today..=today + AHEAD).filter_map(Partition::of_day);
    for day in days.filter(|day| !there.iter().any(|other| other.overlaps(day))) {
        let is_late = day.from <= now.as_microsecond();
        if !went(&day, "made", is_late, make(store, lock, &day).await)? {
            break; // what is over is another matter
        }
    }
    // Never a day that goes on.
    let over = before.min(now).as_microsecond();
    for old in there.iter().filter(|partition| partition.to <= over) {
        let is_late = old.to.saturating_add(DAY) <= over;
        if !went(old, "dropped", is_late, let_go(store, lock, old).await)? {
            break;
        }
    }
    Ok(())
}

/// Whether a change came through. That it did not is no error when another time may do; it is told when it is late.
fn went(
    partition: &Partition,
    change: &'static str,
    is_late: bool,
    done: Result<(), DbError>,
) -> Result<bool, DbError> {
    match done {
        Ok(()) => Ok(true),
        Err(DbError::Sql(sqlx::Error::Database(error)))
            if error.code().is_some_and(|code| PASSING.contains(&&*code)) =>
        {
            let partition = partition.name.as_str();
            if is_late {
                tracing::warn!(
                    partition,
                    change,
                    %error,
                    "a day of the history waits to be made or dropped: who holds its table for so long (pg_stat_activity)?"
                );
            } else {
                tracing::debug!(partition, change, %error, "the history's partitions wait for another time");
            }
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

async fn make<D: Dialect>(store: &SqlStore<D>, lock: &str, day: &Partition) -> Result<(), DbError> {
    let mut tx = store.writer.begin_with(D::BEGIN_WRITE).await?;
    D::batch(&mut *tx, format!("{LOCK_TIMEOUT}; {lock}")).await?;
    // Another replica may have been first. What the default partition has of the day stays there, and the rest of it comes to it.
    let there = partitions::<D>(&mut tx).await?;
    let args = Args::<D>::new().int(day.from).int(day.to).finish()?;
    let strays = D::fetch_all(&mut *tx, safe(STRAY.into()), args).await?;
    if strays.is_empty() && !there.iter().any(|other| other.overlaps(day)) {
        D::batch(&mut *tx, day.make()).await?;
    }
    Ok(tx.commit().await?)
}

async fn let_go<D: Dialect>(
    store: &SqlStore<D>,
    lock: &str,
    old: &Partition,
) -> Result<(), DbError> {
    let mut tx = store.writer.begin_with(D::BEGIN_WRITE).await?;
    D::batch(&mut *tx, format!("{LOCK_TIMEOUT}; {lock}")).await?;
    D::batch(&mut *tx, old.drop()).await?;
    tx.commit().await?;
    tracing::info!(
        partition = old.name,
        "heartbeats that are too old are let go"
    );
    Ok(())
}

/// Those with bounds.
async fn partitions<D: Dialect>(conn: &mut D::Connection) -> Result<Vec<Partition>, DbError> {
    let args = Args::<D>::new().finish()?;
    let rows = D::fetch_all(conn, safe(PARTITIONS.into()), args).await?;
    let mut partitions = Vec::with_capacity(rows.len());
    for row in &rows {
        let name = D::text(row, "name")?.unwrap_or_default();
        let bounds = D::text(row, "bounds")?.unwrap_or_default();
        partitions.extend(Partition::parse(name, bounds)?);
    }
    Ok(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_as_the_server_writes_them() {
        let read = |bounds| {
            let partition = Partition::parse("p", bounds).expect("is read")?;
            Some((partition.from, partition.to))
        };
        assert_eq!(read("DEFAULT"), None);
        assert_eq!(
            read("FOR VALUES FROM ('1795910400000000') TO ('1795996800000000')"),
            Some((1_795_910_400_000_000, 1_795_996_800_000_000))
        );
        assert_eq!(
            read("FOR VALUES FROM (MINVALUE) TO ('-86400000000')"),
            Some((i64::MIN, -DAY))
        );
        assert_eq!(
            read("FOR VALUES FROM (0) TO (MAXVALUE)"),
            Some((0, i64::MAX))
        );
        assert!(Partition::parse("p", "FOR VALUES IN (1)").is_err());
    }

    #[test]
    fn a_day_is_one_of_utc() {
        let day = Partition::of_day(20_786).expect("a day");
        assert_eq!(day.name, "device_heartbeats_20261129");
        assert_eq!(day.to - day.from, DAY);
        assert_eq!(Partition::of_day(i64::MAX), None);
        assert_eq!(Partition::of_day(3_000_000), None, "beyond the calendar");
    }

    #[test]
    fn neighbours_do_not_overlap() {
        let [day, next] = [7, 8].map(|n| Partition::of_day(n).expect("a day"));
        assert!(day.overlaps(&day));
        assert!(!day.overlaps(&next) && !next.overlaps(&day));
        let initial = Partition {
            name: String::new(),
            from: i64::MIN,
            to: next.from,
        };
        assert!(initial.overlaps(&day) && !initial.overlaps(&next));
    }
}
