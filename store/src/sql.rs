//! Statements: named templates that become one text a database, their arguments, and the rows that come back.
//!
//! A template is ordinary SQL with `$n` parameters and a few markers in braces where the databases differ:
//!
//! | marker | becomes |
//! |---|---|
//! | `{skip_locked}`, `{for_update}`, `{for_key_share}` | the [`Dialect`]'s words |
//! | `{any:$3}`, `{any_int:$3}` | "is one of the list bound at `$3`" |
//! | `{within:$3}` | the same, hashed |
//! | `{hex:expression}` | sixteen hex digits |
//! | `{of_segment}` | heartbeats, fit to be looked up by the number of the row `i` of the index of the segment `s` |
//! | `{undated}` | the table of heartbeats that no partition takes with it |
//! | `{json_object}` | the function that makes a JSON object of names and values |
//! | `{each:$3}` | a table `e` with the list bound at `$3` in its column `value` |
//! | `{given}` | a condition that is made at run time, with parameters behind the template's own |
//! | `{stage}` | an expression that is made likewise: the number of a device's stage |
//! | `{rows}` | as many `(…)` as there are rows in a chunk, for statements that carry many rows |

use std::fmt::{Display, Write as _};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use device_ota_domain::page::Page;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{Arguments as _, SqlStr};

use crate::dialect::{Dialect, safe};
use crate::error::DbError;

/// Databases that a statement's text is kept for.
const DIALECTS: usize = 2;

/// Rows in one statement of a batch, largest first. The sizes are fixed so that the prepared statements are found again;
/// 500 is where both databases stop gaining, and keeps 60 columns below SQLite's 32,766 parameters.
pub(crate) const CHUNKS: [usize; 4] = [500, 100, 10, 1];

/// What is made at run time for a statement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'g> {
    /// For `{given}`.
    pub(crate) condition: &'g str,
    /// For `{stage}`.
    pub(crate) stage: &'g str,
}

impl<'g> From<&'g String> for Given<'g> {
    fn from(condition: &'g String) -> Self {
        Self {
            condition,
            ..NOTHING
        }
    }
}

/// What stands for what nobody gave.
const NOTHING: Given<'_> = Given {
    condition: "1 = 1",
    stage: "0",
};

/// The type of one value in a row of a many-row statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    /// 64-bit integer, time or boolean.
    Int,
    /// Text or JSON.
    Text,
    /// Double-precision number.
    Real,
}

impl Column {
    fn sql(self) -> &'static str {
        match self {
            Self::Int => "BIGINT",
            Self::Text => "TEXT",
            Self::Real => "DOUBLE PRECISION",
        }
    }
}

/// One SQL statement: its template, and its finished text for each database and chunk size.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) name: &'static str,
    template: &'static str,
    columns: &'static [Column],
    texts: [[OnceLock<Arc<str>>; CHUNKS.len()]; DIALECTS],
}

impl Statement {
    /// A statement that carries many rows of `columns` at its `{rows}` marker, or none when there are no columns.
    pub(crate) const fn new(
        name: &'static str,
        columns: &'static [Column],
        template: &'static str,
    ) -> Self {
        Self {
            name,
            template,
            columns,
            texts: [const { [const { OnceLock::new() }; CHUNKS.len()] }; DIALECTS],
        }
    }

    /// The finished text for a statement without rows.
    pub(crate) fn text<D: Dialect>(&self) -> SqlStr {
        self.text_for::<D>(CHUNKS.len() - 1)
    }

    /// The finished text with what is made at run time. It is made anew each time: conditions differ.
    pub(crate) fn text_given<D: Dialect>(&self, given: Given<'_>) -> SqlStr {
        safe(self.build::<D>(CHUNKS.len() - 1, given).into())
    }

    /// The finished text for a chunk of `CHUNKS[chunk]` rows.
    pub(crate) fn text_for<D: Dialect>(&self, chunk: usize) -> SqlStr {
        let slot = self.texts.get(D::SLOT).and_then(|sizes| sizes.get(chunk));
        let text = match slot {
            Some(cell) => cell
                .get_or_init(|| self.build::<D>(chunk, NOTHING).into())
                .clone(),
            None => self.build::<D>(chunk, NOTHING).into(),
        };
        safe(text)
    }

    fn build<D: Dialect>(&self, chunk: usize, given: Given<'_>) -> String {
        let rows = CHUNKS.get(chunk).copied().unwrap_or(1);
        let mut out = String::with_capacity(self.template.len() + rows * self.columns.len() * 6);
        let mut rest = self.template;
        while let Some((before, after)) = rest.split_once('{') {
            out.push_str(before);
            let (marker, tail) = after.split_once('}').unwrap_or((after, ""));
            match marker {
                "given" => out.push_str(given.condition),
                "stage" => out.push_str(given.stage),
                _ => self.expand::<D>(marker, rows, &mut out),
            }
            rest = tail;
        }
        out.push_str(rest);
        out
    }

    fn expand<D: Dialect>(&self, marker: &str, rows: usize, out: &mut String) {
        match marker.split_once(':').unwrap_or((marker, "")) {
            ("any", parameter) => out.push_str(&D::any_of(parameter)),
            ("any_int", parameter) => out.push_str(&D::any_int(parameter)),
            ("within", parameter) => out.push_str(&D::within(parameter)),
            ("each", parameter) => out.push_str(&D::each(parameter)),
            ("hex", expression) => out.push_str(&D::hex(expression)),
            ("of_segment", _) => out.push_str(D::HISTORY_OF_SEGMENT),
            ("undated", _) => out.push_str(D::HISTORY_UNDATED),
            ("json_object", _) => out.push_str(D::JSON_OBJECT),
            ("skip_locked", _) => out.push_str(D::SKIP_LOCKED),
            ("for_update", _) => out.push_str(D::FOR_UPDATE),
            ("for_key_share", _) => out.push_str(D::FOR_KEY_SHARE),
            ("rows", _) => self.expand_rows::<D>(rows, out),
            (other, _) => unreachable!("{}: unknown marker {other}", self.name),
        }
    }

    fn expand_rows<D: Dialect>(&self, rows: usize, out: &mut String) {
        let mut parameter = 0;
        for row in 0..rows {
            out.push_str(if row == 0 { "(" } else { ", (" });
            for (index, column) in self.columns.iter().enumerate() {
                parameter += 1;
                if index > 0 {
                    out.push_str(", ");
                }
                // The first row tells the types of all. Writing to a `String` cannot fail.
                let _ = match (row, D::NUMBERED_ROWS) {
                    (0, true) => write!(out, "CAST(${parameter} AS {})", column.sql()),
                    (0, false) => write!(out, "CAST(? AS {})", column.sql()),
                    (_, true) => write!(out, "${parameter}"),
                    (_, false) => write!(out, "?"),
                };
            }
            out.push(')');
        }
    }
}

/// Declares the statements of a file, and the file's list of all of them, from which the test takes them that prepares
/// every statement against every database.
macro_rules! statements {
    ($($(#[$meta:meta])* $name:ident $([$($column:ident),+ $(,)?])? = $text:expr;)+) => {
        $(
            $(#[$meta])*
            pub(crate) static $name: $crate::sql::Statement = $crate::sql::Statement::new(
                stringify!($name),
                &[$($($crate::sql::Column::$column),+)?],
                $text,
            );
        )+
        /// All statements of this file.
        #[cfg(test)]
        pub(crate) static STATEMENTS: &[&$crate::sql::Statement] = &[$(&$name),+];
    };
}
pub(crate) use statements;

/// Values for a statement, in the order of its parameters.
pub(crate) struct Args<D: Dialect> {
    values: D::Arguments,
    failed: Option<sqlx::error::BoxDynError>,
}

impl<D: Dialect> Default for Args<D> {
    fn default() -> Self {
        Self {
            values: D::Arguments::default(),
            failed: None,
        }
    }
}

impl<D: Dialect> Args<D> {
    /// No values yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The values of these rows.
    fn of_rows<T>(rows: &[T], columns: usize, bind: impl Fn(Self, &T) -> Self) -> Self {
        let mut args = Self::new();
        let values = rows.len() * columns;
        args.values.reserve(values, values * size_of::<i64>());
        rows.iter().fold(args, bind)
    }

    fn note(mut self, result: Result<(), sqlx::error::BoxDynError>) -> Self {
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
        self
    }

    /// Adds an integer.
    pub(crate) fn int(mut self, value: impl Into<Option<i64>>) -> Self {
        let result = D::bind_int(&mut self.values, value.into());
        self.note(result)
    }

    /// Adds a boolean.
    pub(crate) fn flag(self, value: impl Into<Option<bool>>) -> Self {
        self.int(value.into().map(i64::from))
    }

    /// Adds a floating-point number.
    pub(crate) fn real(mut self, value: impl Into<Option<f64>>) -> Self {
        let result = D::bind_real(&mut self.values, value.into());
        self.note(result)
    }

    /// Adds a text.
    pub(crate) fn text<'v>(mut self, value: impl Into<Option<&'v str>>) -> Self {
        let result = D::bind_text(&mut self.values, value.into());
        self.note(result)
    }

    /// Adds a text that is shared.
    pub(crate) fn shared(mut self, value: Arc<str>) -> Self {
        let result = D::bind_shared(&mut self.values, value);
        self.note(result)
    }

    /// Adds a time.
    pub(crate) fn time(self, value: impl Into<Option<Timestamp>>) -> Self {
        self.int(value.into().map(Timestamp::as_microsecond))
    }

    /// Adds a count; what is beyond 63 bits is held there.
    pub(crate) fn uint(self, value: u64) -> Self {
        self.int(i64::try_from(value).unwrap_or(i64::MAX))
    }

    /// Adds a page: its limit, then its offset.
    pub(crate) fn page(self, page: Page) -> Self {
        self.int(i64::from(page.limit)).int(i64::from(page.offset))
    }

    /// Adds a list of texts, for `{any:…}` and `{within:…}`.
    pub(crate) fn texts(mut self, values: &[&str]) -> Self {
        let result = D::bind_texts(&mut self.values, values);
        self.note(result)
    }

    /// Adds a list of integers, for `{any_int:…}`.
    pub(crate) fn ints(mut self, values: &[i64]) -> Self {
        let result = D::bind_ints(&mut self.values, values);
        self.note(result)
    }

    /// The finished arguments.
    pub(crate) fn finish(self) -> Result<D::Arguments, DbError> {
        match self.failed {
            None => Ok(self.values),
            Some(error) => Err(sqlx::Error::Encode(error).into()),
        }
    }
}

/// Runs a statement and returns how many rows it changed.
pub(crate) async fn execute<D: Dialect>(
    conn: &mut D::Connection,
    statement: &Statement,
    args: Args<D>,
) -> Result<u64, DbError> {
    Ok(D::execute(conn, statement.text::<D>(), args.finish()?).await?)
}

/// Runs a statement and returns its rows, each turned into a `T`.
pub(crate) async fn fetch_all<D: Dialect, T>(
    conn: &mut D::Connection,
    statement: &Statement,
    args: Args<D>,
    read: impl Fn(&Record<'_, D>) -> Result<T, DbError>,
) -> Result<Vec<T>, DbError> {
    let rows = D::fetch_all(conn, statement.text::<D>(), args.finish()?).await?;
    rows.iter()
        .map(|row| read(&Record(row)).map_err(|e| e.read_by(statement.name)))
        .collect()
}

/// Runs a statement and returns its first row, if any.
pub(crate) async fn fetch_optional<D: Dialect, T>(
    conn: &mut D::Connection,
    statement: &Statement,
    args: Args<D>,
    read: impl Fn(&Record<'_, D>) -> Result<T, DbError>,
) -> Result<Option<T>, DbError> {
    let rows = fetch_all(conn, statement, args, read).await?;
    Ok(rows.into_iter().next())
}

/// As [`execute`], for a statement with what is made at run time.
pub(crate) async fn execute_given<D: Dialect>(
    conn: &mut D::Connection,
    statement: &Statement,
    given: impl Into<Given<'_>>,
    args: Args<D>,
) -> Result<u64, DbError> {
    let text = statement.text_given::<D>(given.into());
    Ok(D::execute(conn, text, args.finish()?).await?)
}

/// As [`fetch_all`], for a statement with what is made at run time.
pub(crate) async fn fetch_given<D: Dialect, T>(
    conn: &mut D::Connection,
    statement: &Statement,
    given: impl Into<Given<'_>>,
    args: Args<D>,
    read: impl Fn(&Record<'_, D>) -> Result<T, DbError>,
) -> Result<Vec<T>, DbError> {
    let text = statement.text_given::<D>(given.into());
    let rows = D::fetch_all(conn, text, args.finish()?).await?;
    rows.iter()
        .map(|row| read(&Record(row)).map_err(|e| e.read_by(statement.name)))
        .collect()
}

/// Splits rows into the fixed chunk sizes, largest first: `(index into CHUNKS, rows)`.
fn chunks<T>(mut rows: &[T]) -> impl Iterator<Item = (usize, &[T])> {
    std::iter::from_fn(move || {
        let (index, size) = CHUNKS
            .iter()
            .copied()
            .enumerate()
            .find(|(_, size)| *size <= rows.len())?;
        let (chunk, rest) = rows.split_at_checked(size)?;
        rows = rest;
        Some((index, chunk))
    })
}

/// Runs a many-row statement over all rows, chunk by chunk, and returns how many rows it changed.
pub(crate) async fn execute_rows<D: Dialect, T: Sync>(
    conn: &mut D::Connection,
    statement: &Statement,
    rows: &[T],
    bind: impl Fn(Args<D>, &T) -> Args<D> + Send + Sync,
) -> Result<u64, DbError> {
    let mut changed = 0;
    for (index, chunk) in chunks(rows) {
        let args = Args::of_rows(chunk, statement.columns.len(), &bind).finish()?;
        changed += D::execute(conn, statement.text_for::<D>(index), args).await?;
    }
    Ok(changed)
}

/// Runs a many-row statement over all rows, chunk by chunk, and returns what its `RETURNING` said.
pub(crate) async fn fetch_rows<D: Dialect, T: Sync, R: Send>(
    conn: &mut D::Connection,
    statement: &Statement,
    rows: &[T],
    bind: impl Fn(Args<D>, &T) -> Args<D> + Send + Sync,
    read: impl Fn(&Record<'_, D>) -> Result<R, DbError> + Send + Sync,
) -> Result<Vec<R>, DbError> {
    let mut out = Vec::with_capacity(rows.len());
    for (index, chunk) in chunks(rows) {
        let args = Args::of_rows(chunk, statement.columns.len(), &bind).finish()?;
        for row in D::fetch_all(conn, statement.text_for::<D>(index), args).await? {
            out.push(read(&Record(&row)).map_err(|e| e.read_by(statement.name))?);
        }
    }
    Ok(out)
}

/// One row, read by column name.
pub(crate) struct Record<'r, D: Dialect>(&'r D::Row);

impl<D: Dialect> Record<'_, D> {
    /// A nullable integer.
    pub(crate) fn int_opt(&self, column: &str) -> Result<Option<i64>, DbError> {
        Ok(D::int(self.0, column)?)
    }

    /// An integer.
    pub(crate) fn int(&self, column: &str) -> Result<i64, DbError> {
        present(column, self.int_opt(column)?)
    }

    /// An integer of a smaller or unsigned type; what does not fit reads as an error.
    pub(crate) fn uint<U: TryFrom<i64>>(&self, column: &str) -> Result<U, DbError> {
        let value = self.int(column)?;
        U::try_from(value).map_err(|_| DbError::corrupt(format!("{column} is {value}")))
    }

    /// A boolean.
    pub(crate) fn flag(&self, column: &str) -> Result<bool, DbError> {
        Ok(self.int(column)? != 0)
    }

    /// A nullable boolean.
    pub(crate) fn flag_opt(&self, column: &str) -> Result<Option<bool>, DbError> {
        Ok(self.int_opt(column)?.map(|value| value != 0))
    }

    /// A nullable floating-point number.
    pub(crate) fn real_opt(&self, column: &str) -> Result<Option<f64>, DbError> {
        Ok(D::real(self.0, column)?)
    }

    /// A floating-point number.
    pub(crate) fn real(&self, column: &str) -> Result<f64, DbError> {
        present(column, self.real_opt(column)?)
    }

    /// A nullable text.
    pub(crate) fn text_opt(&self, column: &str) -> Result<Option<&str>, DbError> {
        Ok(D::text(self.0, column)?)
    }

    /// A text.
    pub(crate) fn text(&self, column: &str) -> Result<&str, DbError> {
        present(column, self.text_opt(column)?)
    }

    /// A nullable text of one's own.
    pub(crate) fn string_opt(&self, column: &str) -> Result<Option<String>, DbError> {
        Ok(self.text_opt(column)?.map(str::to_owned))
    }

    /// A text of one's own.
    pub(crate) fn string(&self, column: &str) -> Result<String, DbError> {
        Ok(self.text(column)?.to_owned())
    }

    /// A nullable time.
    pub(crate) fn time_opt(&self, column: &str) -> Result<Option<Timestamp>, DbError> {
        let micros = self.int_opt(column)?;
        let time = micros.map(Timestamp::from_microsecond).transpose();
        time.map_err(|error| DbError::corrupt(format!("{column}: {error}")))
    }

    /// A time.
    pub(crate) fn time(&self, column: &str) -> Result<Timestamp, DbError> {
        present(column, self.time_opt(column)?)
    }

    /// A text that is an id or a number of some kind.
    pub(crate) fn parse<T>(&self, column: &str) -> Result<T, DbError>
    where
        T: FromStr<Err: Display>,
    {
        present(column, self.parse_opt(column)?)
    }

    /// A nullable text that is an id or a number of some kind.
    pub(crate) fn parse_opt<T>(&self, column: &str) -> Result<Option<T>, DbError>
    where
        T: FromStr<Err: Display>,
    {
        let parsed = self.text_opt(column)?.map(str::parse).transpose();
        parsed.map_err(|error| DbError::corrupt(format!("{column}: {error}")))
    }

    /// A text that is JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, DbError> {
        present(column, self.json_opt(column)?)
    }

    /// A nullable text that is JSON.
    pub(crate) fn json_opt<T: DeserializeOwned>(&self, column: &str) -> Result<Option<T>, DbError> {
        let read = self.text_opt(column)?.map(serde_json::from_str).transpose();
        read.map_err(|error| DbError::corrupt(format!("{column}: {error}")))
    }
}

/// A value that must be there.
pub(crate) fn present<T>(column: &str, value: Option<T>) -> Result<T, DbError> {
    value.ok_or_else(|| DbError::corrupt(format!("{column} is null or unknown")))
}

/// JSON text of a value of the domain.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String, DbError> {
    serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(error.into()).into())
}
