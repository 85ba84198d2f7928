//! Everything in which SQLite and PostgreSQL differ, behind one trait.
//!
//! The rest of the crate is written once against [`Dialect`]: how a value is bound or read, how a statement is run, and
//! the few words of SQL that the two databases spell differently. A third database would be one more `dialect!` block
//! and one more folder of migrations.

use std::future::Future;
use std::sync::Arc;

use sqlx::error::BoxDynError;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{
    Arguments, AssertSqlSafe, Database, Executor, Postgres, Row, SqlSafeStr, SqlStr, Sqlite,
};

/// What the store needs to know of a database.
///
/// Integers, times (microseconds since the epoch) and booleans (0 or 1) are 64-bit integers on both databases, JSON is
/// text: so one statement text and one row reader serve both.
pub trait Dialect: Database {
    /// Which of the per-database caches of a statement's text is this database's.
    const SLOT: usize;
    /// Starts a transaction that will write. SQLite takes the write lock at once: a read that is upgraded later could
    /// only fail.
    const BEGIN_WRITE: &'static str;
    /// Ends a `SELECT` that claims rows of the table it calls `u`: other claimants pass over them.
    const SKIP_LOCKED: &'static str;
    /// Ends a `SELECT` whose row is about to be changed: other writers wait.
    const FOR_UPDATE: &'static str;
    /// Ends a `SELECT` whose row must stay as it is: others may read it so too, and whoever would change it waits. Counts
    /// that are added to it do not.
    const FOR_KEY_SHARE: &'static str;
    /// Whether several rows' values are numbered (`$1`) or counted (`?`). SQLite looks a numbered parameter up by
    /// walking a list, which makes large statements quadratic.
    const NUMBERED_ROWS: bool;
    /// There is one connection that writes, beside a pool of those that read.
    const ONE_WRITER: bool;

    /// The function that makes a JSON object of names and values, each by turns.
    const JSON_OBJECT: &'static str;

    /// Makes the commits of transactions that hold this statement's lock follow each other; `None` where they do anyway.
    const COMMIT_ORDER: Option<&'static str>;

    /// Lets one transaction at a time give out slots of the whole service; `None` where one writes at a time.
    const HOLD_SLOTS: Option<&'static str>;

    /// Lets one transaction at a time say which replicas there are; `None` where one writes at a time.
    const HOLD_REPLICAS: Option<&'static str>;

    /// Says that the transaction writes heartbeats; several may at the same time. `None` where one writes at a time.
    const HISTORY_WRITES: Option<&'static str>;
    /// Waits for all transactions that do, and holds those up that would begin to: while this is held, the numbers of
    /// heartbeats up to the newest are all committed. `None` where one writes at a time.
    const HISTORY_SETTLED: Option<&'static str>;
    /// Lets one transaction at a time change the partitions by day in which heartbeats lie; `None` where they lie in one table.
    const HISTORY_DAYS: Option<&'static str>;
    /// The heartbeats among which a read looks for the number of the row `i` of the index of the segment `s`: where they lie in partitions,
    /// only those of the segment's time.
    const HISTORY_OF_SEGMENT: &'static str;
    /// The table in which heartbeats lie that no partition takes with it when its day is over.
    const HISTORY_UNDATED: &'static str;

    /// The comparison "is one of the texts bound at `parameter`", to stand after an expression; fit for an index.
    fn any_of(parameter: &str) -> String;
    /// The same for integers.
    fn any_int(parameter: &str) -> String;
    /// The same for texts, hashed: fit for many texts beside an `OR`.
    fn within(parameter: &str) -> String;
    /// A table `e` with the texts bound at `parameter` in its column `value`.
    fn each(parameter: &str) -> String;
    /// The text of a member, named by the text `name`, of the JSON object in `column`; null when it is not there.
    fn member_text(column: &str, name: &str) -> String;
    /// The same for a member that is a number.
    fn member_real(column: &str, name: &str) -> String;
    /// Sixteen hex digits of an integer expression.
    fn hex(expression: &str) -> String;

    /// Binds an integer.
    fn bind_int(args: &mut Self::Arguments, value: Option<i64>) -> Result<(), BoxDynError>;
    /// Binds a floating-point number.
    fn bind_real(args: &mut Self::Arguments, value: Option<f64>) -> Result<(), BoxDynError>;
    /// Binds a text.
    fn bind_text(args: &mut Self::Arguments, value: Option<&str>) -> Result<(), BoxDynError>;
    /// Binds a text that is shared, without a copy where the database's driver keeps values apart.
    fn bind_shared(args: &mut Self::Arguments, value: Arc<str>) -> Result<(), BoxDynError>;
    /// Binds a list of texts for [`Dialect::any_of`] and [`Dialect::within`].
    fn bind_texts(args: &mut Self::Arguments, values: &[&str]) -> Result<(), BoxDynError>;
    /// Binds a list of integers for [`Dialect::any_int`].
    fn bind_ints(args: &mut Self::Arguments, values: &[i64]) -> Result<(), BoxDynError>;

    /// Reads an integer column.
    fn int(row: &Self::Row, column: &str) -> Result<Option<i64>, sqlx::Error>;
    /// Reads a floating-point column.
    fn real(row: &Self::Row, column: &str) -> Result<Option<f64>, sqlx::Error>;
    /// Reads a text column.
    fn text<'r>(row: &'r Self::Row, column: &str) -> Result<Option<&'r str>, sqlx::Error>;

    /// Runs a statement and returns how many rows it changed.
    fn execute(
        conn: &mut Self::Connection,
        sql: SqlStr,
        args: Self::Arguments,
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;
    /// Runs a statement and returns its rows.
    fn fetch_all(
        conn: &mut Self::Connection,
        sql: SqlStr,
        args: Self::Arguments,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;
    /// Prepares a statement without running it; the error says what the database dislikes.
    fn prepare(
        conn: &mut Self::Connection,
        sql: SqlStr,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Runs statements that take no values, several at once if need be.
    fn batch(
        conn: &mut Self::Connection,
        sql: String,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Brings the schema up to date.
    fn migrate(
        conn: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), MigrateError>> + Send;
    /// The migrations of this database, oldest first.
    fn migrator() -> Migrator;
}

/// Implements the parts of [`Dialect`] whose Rust text is the same for every database, but for its types.
macro_rules! shared {
    () => {
        fn bind_int(args: &mut Self::Arguments, value: Option<i64>) -> Result<(), BoxDynError> {
            args.add(value)
        }
        fn bind_real(args: &mut Self::Arguments, value: Option<f64>) -> Result<(), BoxDynError> {
            args.add(value)
        }
        fn bind_text(args: &mut Self::Arguments, value: Option<&str>) -> Result<(), BoxDynError> {
            args.add(value)
        }
        fn bind_shared(args: &mut Self::Arguments, value: Arc<str>) -> Result<(), BoxDynError> {
            args.add(value)
        }
        fn int(row: &Self::Row, column: &str) -> Result<Option<i64>, sqlx::Error> {
            row.try_get(column)
        }
        fn real(row: &Self::Row, column: &str) -> Result<Option<f64>, sqlx::Error> {
            row.try_get(column)
        }
        fn text<'r>(row: &'r Self::Row, column: &str) -> Result<Option<&'r str>, sqlx::Error> {
            row.try_get(column)
        }
        async fn execute(
            conn: &mut Self::Connection,
            sql: SqlStr,
            args: Self::Arguments,
        ) -> Result<u64, sqlx::Error> {
            let done = conn.execute(sqlx::query_with::<Self, _>(sql, args)).await?;
            Ok(done.rows_affected())
        }
        async fn fetch_all(
            conn: &mut Self::Connection,
            sql: SqlStr,
            args: Self::Arguments,
        ) -> Result<Vec<Self::Row>, sqlx::Error> {
            conn.fetch_all(sqlx::query_with::<Self, _>(sql, args)).await
        }
        async fn prepare(conn: &mut Self::Connection, sql: SqlStr) -> Result<(), sqlx::Error> {
            Executor::prepare(conn, sql).await.map(drop)
        }
        async fn batch(conn: &mut Self::Connection, sql: String) -> Result<(), sqlx::Error> {
            conn.execute(sqlx::raw_sql(AssertSqlSafe(sql)))
                .await
                .map(drop)
        }
        async fn migrate(conn: &mut Self::Connection) -> Result<(), MigrateError> {
            // Not `run`: its bound on `Acquire` is not general enough for a future that must be `Send`.
            Self::migrator().run_direct(None, conn, false).await
        }
    };
}

impl Dialect for Sqlite {
    const SLOT: usize = 0;
    const BEGIN_WRITE: &'static str = "BEGIN IMMEDIATE";
    // One writer at a time: there is nobody to pass over or to wait for.
    const SKIP_LOCKED: &'static str = "";
    const FOR_UPDATE: &'static str = "";
    const FOR_KEY_SHARE: &'static str = "";
    const NUMBERED_ROWS: bool = false;
    const ONE_WRITER: bool = true;
    const JSON_OBJECT: &'static str = "json_object";
    const COMMIT_ORDER: Option<&'static str> = None;
    const HISTORY_WRITES: Option<&'static str> = None;
    const HOLD_SLOTS: Option<&'static str> = None;
    const HOLD_REPLICAS: Option<&'static str> = None;
    const HISTORY_SETTLED: Option<&'static str> = None;
    const HISTORY_DAYS: Option<&'static str> = None;
    const HISTORY_OF_SEGMENT: &'static str = "device_heartbeats";
    const HISTORY_UNDATED: &'static str = "device_heartbeats";

    fn any_of(parameter: &str) -> String {
        format!("IN (SELECT value FROM json_each({parameter}))")
    }

    fn any_int(parameter: &str) -> String {
        Self::any_of(parameter)
    }

    fn within(parameter: &str) -> String {
        Self::any_of(parameter)
    }

    fn each(parameter: &str) -> String {
        format!("json_each({parameter}) AS e")
    }

    fn member_text(column: &str, name: &str) -> String {
        format!("(SELECT j.value FROM json_each({column}) j WHERE j.key = {name})")
    }

    fn member_real(column: &str, name: &str) -> String {
        format!("CAST({} AS REAL)", Self::member_text(column, name))
    }

    fn hex(expression: &str) -> String {
        format!("printf('%016x', {expression})")
    }

    fn bind_texts(args: &mut Self::Arguments, values: &[&str]) -> Result<(), BoxDynError> {
        args.add(serde_json::to_string(values)?)
    }

    fn bind_ints(args: &mut Self::Arguments, values: &[i64]) -> Result<(), BoxDynError> {
        args.add(serde_json::to_string(values)?)
    }

    fn migrator() -> Migrator {
        crate::migrations::sqlite()
    }

    shared!();
}

impl Dialect for Postgres {
    const SLOT: usize = 1;
    const BEGIN_WRITE: &'static str = "BEGIN";
    const SKIP_LOCKED: &'static str = "FOR UPDATE OF u SKIP LOCKED";
    const FOR_UPDATE: &'static str = "FOR UPDATE";
    const FOR_KEY_SHARE: &'static str = "FOR KEY SHARE";
    const NUMBERED_ROWS: bool = true;
    const ONE_WRITER: bool = false;
    const JSON_OBJECT: &'static str = "json_build_object";
    // The number is arbitrary; it names this lock alone.
    const COMMIT_ORDER: Option<&'static str> =
        Some("SELECT pg_advisory_xact_lock(7306085894296925282)");
    const HISTORY_WRITES: Option<&'static str> =
        Some("SELECT pg_advisory_xact_lock_shared(7306085894296925283)");
    const HOLD_SLOTS: Option<&'static str> =
        Some("SELECT pg_advisory_xact_lock(7306085894296925284)");
    const HOLD_REPLICAS: Option<&'static str> =
        Some("SELECT pg_advisory_xact_lock(7306085894296925285)");
    const HISTORY_SETTLED: Option<&'static str> =
        Some("SELECT pg_advisory_xact_lock(7306085894296925283)");
    const HISTORY_DAYS: Option<&'static str> =
        Some("SELECT pg_advisory_xact_lock(7306085894296925286)");
    // `OFFSET 0` keeps it apart: merged into the join, the times of `s` would filter rows of all partitions instead of choosing among these.
    const HISTORY_OF_SEGMENT: &'static str = "LATERAL (SELECT d.number, d.received_at, d.payload \
         FROM device_heartbeats d WHERE d.number = i.number AND d.received_at >= s.first_at \
         AND d.received_at <= s.last_at OFFSET 0)";
    const HISTORY_UNDATED: &'static str = "device_heartbeats_default";

    fn any_of(parameter: &str) -> String {
        format!("= ANY(CAST({parameter} AS TEXT[]))")
    }

    fn any_int(parameter: &str) -> String {
        format!("= ANY(CAST({parameter} AS BIGINT[]))")
    }

    fn within(parameter: &str) -> String {
        format!("IN (SELECT UNNEST(CAST({parameter} AS TEXT[])))")
    }

    fn each(parameter: &str) -> String {
        format!("UNNEST(CAST({parameter} AS TEXT[])) AS e(value)")
    }

    fn member_text(column: &str, name: &str) -> String {
        format!("(CAST({column} AS JSONB) ->> CAST({name} AS TEXT))")
    }

    fn member_real(column: &str, name: &str) -> String {
        format!(
            "CAST({} AS DOUBLE PRECISION)",
            Self::member_text(column, name)
        )
    }

    fn hex(expression: &str) -> String {
        format!("LPAD(TO_HEX({expression}), 16, '0')")
    }

    fn bind_texts(args: &mut Self::Arguments, values: &[&str]) -> Result<(), BoxDynError> {
        args.add(values)
    }

    fn bind_ints(args: &mut Self::Arguments, values: &[i64]) -> Result<(), BoxDynError> {
        args.add(values)
    }

    fn migrator() -> Migrator {
        crate::migrations::postgres()
    }

    shared!();
}

/// The text of a statement as sqlx wants it.
pub(crate) fn safe(text: Arc<str>) -> SqlStr {
    // Statement texts are made from constants of this crate alone; values are always bound.
    AssertSqlSafe(text).into_sql_str()
}
