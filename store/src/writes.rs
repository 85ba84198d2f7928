//! Whether the database takes what is written: whoever writes notes when it does not, and whoever asks after that tries.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use device_ota_engine::ports::StoreError;
use device_ota_engine::ports::error::Result;
use sqlx::Pool;
use tokio::time::Instant;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, statements};

/// How long a failure speaks for the next write as well: longer than reports that wait pause between two tries, so that what is
/// small enough to fit does not call the database fit for what is not.
const STANDS: Duration = Duration::from_secs(6);
/// Why, when the database does not say.
const UNTOLD: &str = "its log and this service's say why";

statements! {
    // Seen by nobody: both are of one transaction.
    TRY = "INSERT INTO outbox_places (sink, place) VALUES ('a try', 0)";
    TRIED = "DELETE FROM outbox_places WHERE sink = 'a try'";
}

/// The last write that failed, until one is seen to succeed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writes(Arc<Mutex<Option<Failure>>>);

#[derive(Debug, Clone, Copy)]
struct Failure {
    at: Instant,
    why: &'static str,
}

impl Writes {
    fn note(&self, error: &StoreError) {
        let why = match error {
            StoreError::Unwritable(why) => why,
            StoreError::Unavailable(_) => UNTOLD,
            StoreError::Conflict(_) | StoreError::Refused(_) | StoreError::Corrupt { .. } => return,
        };
        let at = Instant::now();
        *self.failure() = Some(Failure { at, why });
    }

    /// Whether the database takes writes, as far as is known. After one that failed, it is tried, and until then nothing is
    /// written to find out.
    ///
    /// # Errors
    /// With the reason of the last failure.
    pub(crate) async fn work<D: Dialect>(&self, writer: &Pool<D>) -> Result<()> {
        let Some(failure) = *self.failure() else {
            return Ok(());
        };
        if failure.at.elapsed() < STANDS {
            return Err(StoreError::Unwritable(failure.why));
        }
        seen(try_one(writer).await, self)?;
        let mut last = self.failure();
        // One that failed beside the try stands.
        if last.is_some_and(|last| last.at == failure.at) {
            *last = None;
        }
        Ok(())
    }

    fn failure(&self) -> MutexGuard<'_, Option<Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a write has come to, for whoever wanted it.
pub(crate) fn seen<T>(result: std::result::Result<T, DbError>, writes: &Writes) -> Result<T> {
    result.map_err(|error| {
        let somebody_came_between = error.is_rollback();
        let error = StoreError::from(error);
        if !somebody_came_between {
            writes.note(&error);
        }
        error
    })
}

/// A write that leaves nothing, as far as the disk.
async fn try_one<D: Dialect>(writer: &Pool<D>) -> std::result::Result<(), DbError> {
    let mut tx = writer.begin_with(D::BEGIN_WRITE).await?;
    sql::execute::<D>(&mut tx, &TRY, Args::new()).await?;
    sql::execute::<D>(&mut tx, &TRIED, Args::new()).await?;
    Ok(tx.commit().await?)
}

#[cfg(test)]
mod tests {
    use device_ota_engine::ports::store::Store as _;

    use super::*;
    use crate::SqlStore;
    use crate::testing::{PostgresDatabase, SqliteDatabase};

    /// Why the database takes no writes, in the words of whoever is asked.
    fn why(answer: Result<()>) -> String {
        answer.expect_err("is not well").to_string()
    }

    async fn write<D: Dialect>(store: &SqlStore<D>) -> Result<()> {
        let mut tx = store.begin().await?;
        tx.events_delivered("somebody", 1).await?;
        tx.commit().await.map(drop)
    }

    /// Refused writes are told of for as long as they are refused and a little longer, and then one is tried.
    async fn tells<D: Dialect>(store: &SqlStore<D>, refuse: &str, take: &str) {
        let set = async |sql: &str| {
            let mut conn = store.writer.acquire().await.expect("a connection");
            let done = D::batch(&mut conn, sql.to_owned()).await;
            done.expect("a setting can be changed");
        };
        let time_passes = || {
            let mut last = store.writes.failure();
            last.as_mut().expect("one has failed").at -= STANDS;
        };
        set(refuse).await;
        store.ping().await.expect("nobody knows of it yet");
        let told = why(write(store).await);
        assert!(
            told.starts_with("the database takes no writes: it may only be read"),
            "{told}"
        );
        assert_eq!(why(store.ping().await), told);
        time_passes();
        assert_eq!(why(store.ping().await), told, "the try is refused, too");
        set(take).await;
        assert_eq!(why(store.ping().await), told, "nothing is tried at once");
        time_passes();
        store.ping().await.expect("the try is taken");
        write(store).await.expect("is taken");
        store.ping().await.expect("is well");
    }

    #[tokio::test]
    async fn a_file_that_is_not_written_is_not_well() {
        let database = SqliteDatabase::new();
        let store = database.open().await;
        tells(&store, "PRAGMA query_only = ON", "PRAGMA query_only = OFF").await;
        store.close().await;
    }

    #[tokio::test]
    async fn a_server_that_takes_no_writes_is_not_well() {
        let database = PostgresDatabase::create().await;
        let store = SqlStore::read_url(database.url()).await.expect("opens");
        let set = |value| format!("SET default_transaction_read_only = {value}");
        tells(&store, &set("on"), &set("off")).await;
        store.close().await;
    }
}
