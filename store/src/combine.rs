//! Point reads, combined: callers that ask for single rows at the same time share one statement.
//!
//! What a small read costs is not the row but the way to the connection and back. So callers queue their keys, and a
//! worker takes what has queued up, looks all of it up with one statement and hands every caller its row. Under load
//! the statements grow instead of the queue, and a second worker would only make them smaller; a caller who is alone reads
//! for itself. A statement starts after its requests were made, so a caller sees all that was committed before it asked,
//! as it would by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::Pool;
use tokio::sync::{mpsc, oneshot};

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, Statement};

/// Requests that one statement answers: a multiple of what a busy machine has at a time, and still a fast statement.
const BATCH: usize = 64;
/// Requests that wait for the worker; a caller beyond them waits to be queued.
const QUEUE: usize = 1024;
/// How long a caller waits in all: some batches before its own may each wait for a connection in vain.
const PATIENCE: Duration = Duration::from_secs(10);

/// How rows are looked up by a text key that is unique.
#[derive(Debug)]
pub(crate) struct Lookup<D: Dialect, V> {
    /// Selects the row whose key is bound at `$1`.
    pub(crate) one: &'static Statement,
    /// Selects the rows whose key is in the list bound at `$1`.
    pub(crate) many: &'static Statement,
    /// The column of the key.
    pub(crate) key: &'static str,
    /// Reads a row.
    pub(crate) read: fn(&Record<'_, D>) -> Result<V, DbError>,
}

/// What each waiter of a key is told.
type Answer<V> = Result<Option<V>, Arc<DbError>>;

/// One caller's wish.
#[derive(Debug)]
struct Request<V> {
    key: String,
    reply: oneshot::Sender<Answer<V>>,
}

/// Takes requests for rows of one kind; its worker ends with it.
#[derive(Debug)]
pub(crate) struct Combiner<D: Dialect, V> {
    requests: mpsc::Sender<Request<V>>,
    rows: Arc<Rows<D, V>>,
    /// Callers that have no answer yet.
    asking: AtomicUsize,
}

impl<D: Dialect, V: Clone + Send + 'static> Combiner<D, V> {
    /// Starts the worker, which reads with connections of `pool`.
    pub(crate) fn start(pool: Pool<D>, lookup: Lookup<D, V>) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        let rows = Arc::new(Rows { pool, lookup });
        tokio::spawn(work(queue, Arc::clone(&rows)));
        Self {
            requests,
            rows,
            asking: AtomicUsize::new(0),
        }
    }

    /// The row of `key`, as of some moment after this was called.
    pub(crate) async fn get(&self, key: &str) -> Answer<V> {
        let (alone, _asking) = Asking::begin(&self.asking);
        if alone {
            return self.rows.one(key).await.map_err(Arc::new);
        }
        match tokio::time::timeout(PATIENCE, self.ask(key)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(Arc::new(error.into())),
            Err(_) => Err(Arc::new(sqlx::Error::PoolTimedOut.into())),
        }
    }

    /// Queues a request and waits for what a worker says.
    async fn ask(&self, key: &str) -> Result<Answer<V>, sqlx::Error> {
        let (reply, answer) = oneshot::channel();
        let key = key.to_owned();
        let queued = self.requests.send(Request { key, reply }).await;
        queued.map_err(|_| sqlx::Error::WorkerCrashed)?;
        answer.await.map_err(|_| sqlx::Error::WorkerCrashed)
    }
}

/// A caller is counted for as long as this lives.
struct Asking<'c>(&'c AtomicUsize);

impl<'c> Asking<'c> {
    /// Counts a caller, and tells whether there is no other.
    fn begin(count: &'c AtomicUsize) -> (bool, Self) {
        (count.fetch_add(1, Ordering::Relaxed) == 0, Self(count))
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers batch after batch until nobody can ask any more.
async fn work<D: Dialect, V: Clone + Send + 'static>(
    mut queue: mpsc::Receiver<Request<V>>,
    rows: Arc<Rows<D, V>>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let waiters = by_key(batch.drain(..));
        if !waiters.is_empty() {
            rows.answer(waiters).await;
        }
    }
}

/// Where the rows are, and how they are found there.
#[derive(Debug)]
struct Rows<D: Dialect, V> {
    pool: Pool<D>,
    lookup: Lookup<D, V>,
}

impl<D: Dialect, V: Clone + Send + 'static> Rows<D, V> {
    async fn answer(&self, mut waiters: Waiters<V>) {
        let keys: Vec<&str> = waiters.keys().map(String::as_str).collect();
        let rest = match self.many(&keys).await {
            Ok(rows) => {
                for (key, row) in rows {
                    let found = waiters.remove(&key).unwrap_or_default();
                    hand_out(found, row.map(Some).map_err(Arc::new));
                }
                Ok(None)
            }
            Err(error) => Err(Arc::new(error)),
        };
        for missing in waiters.into_values() {
            hand_out(missing, rest.clone());
        }
    }

    /// The rows of keys, those that do not read among them: they are no concern of the others' callers.
    async fn many(&self, keys: &[&str]) -> Result<Vec<(String, Result<V, DbError>)>, DbError> {
        let Lookup {
            many, key, read, ..
        } = self.lookup;
        let mut conn = self.pool.acquire().await?;
        sql::fetch_all::<D, _>(&mut *conn, many, Args::new().texts(keys), |row| {
            let value = read(row).map_err(|error| error.read_by(many.name));
            Ok((row.string(key)?, value))
        })
        .await
    }

    /// The row of one key.
    async fn one(&self, key: &str) -> Result<Option<V>, DbError> {
        let Lookup { one, read, .. } = self.lookup;
        let mut conn = self.pool.acquire().await?;
        sql::fetch_optional::<D, _>(&mut *conn, one, Args::new().text(key), read).await
    }
}

/// Everybody who still waits for a key.
type Waiters<V> = HashMap<String, Vec<oneshot::Sender<Answer<V>>>>;

/// Sorts requests by key; those whose caller has gone away are left out.
fn by_key<V>(batch: impl Iterator<Item = Request<V>>) -> Waiters<V> {
    let mut waiters = Waiters::new();
    for Request { key, reply } in batch.filter(|request| !request.reply.is_closed()) {
        waiters.entry(key).or_default().push(reply);
    }
    waiters
}

fn hand_out<V: Clone>(waiters: Vec<oneshot::Sender<Answer<V>>>, answer: Answer<V>) {
    let answers = std::iter::repeat_n(answer, waiters.len());
    for (waiter, answer) in waiters.into_iter().zip(answers) {
        // Who went away meanwhile does not want it.
        let _ = waiter.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SqliteStore;
    use crate::devices;
    use crate::testing::SqliteDatabase;

    /// A store with the devices `a`, `b` and `c`.
    async fn with_devices(database: &SqliteDatabase) -> SqliteStore {
        let store = database.open().await;
        let sql = "INSERT INTO devices (device_id, device_model, group_names, tags, bucket, verifier, registered_at) \
                   SELECT value, 'm', '[]', '{}', 0, 'verifier of ' || value, 0 FROM json_each('[\"a\", \"b\", \"c\"]')";
        let mut conn = store.writer.acquire().await.expect("a connection");
        sqlx::Sqlite::batch(&mut conn, sql.to_owned())
            .await
            .expect("devices are made");
        drop(conn);
        store
    }

    fn request(key: &str) -> (Request<u8>, oneshot::Receiver<Answer<u8>>) {
        let (reply, answer) = oneshot::channel();
        let key = key.to_owned();
        (Request { key, reply }, answer)
    }

    #[test]
    fn callers_of_one_key_wait_together_and_who_left_is_forgotten() {
        let (first, _first) = request("a");
        let (second, _second) = request("a");
        let (other, _other) = request("b");
        let (gone, answer) = request("c");
        drop(answer);
        let waiters = by_key([first, gone, other, second].into_iter());
        let mut counts: Vec<_> = waiters.iter().map(|(k, w)| (k.as_str(), w.len())).collect();
        counts.sort_unstable();
        assert_eq!(counts, [("a", 2), ("b", 1)]);
    }

    #[tokio::test]
    async fn one_statement_answers_all_who_wait() {
        let database = SqliteDatabase::new();
        let store = with_devices(&database).await;
        let rows = Rows {
            pool: store.reader.clone(),
            lookup: devices::credentials_by_id::<sqlx::Sqlite>(),
        };
        let keys = ["a", "c", "none", "a"];
        let mut answers = Vec::new();
        let requests = keys.map(|key| {
            let (reply, answer) = oneshot::channel();
            answers.push(answer);
            let key = key.to_owned();
            Request { key, reply }
        });
        rows.answer(by_key(requests.into_iter())).await;
        let mut verifiers = Vec::new();
        for answer in answers {
            let found = answer.await.expect("an answer").expect("a read");
            verifiers.push(found.map(|credentials| credentials.verifier));
        }
        let of = |id: &str| Some(format!("verifier of {id}"));
        assert_eq!(verifiers, [of("a"), of("c"), None, of("a")]);
        store.close().await;
    }

    #[tokio::test]
    async fn a_row_that_does_not_read_fails_its_own_callers_alone() {
        let database = SqliteDatabase::new();
        let store = with_devices(&database).await;
        let lookup = Lookup::<sqlx::Sqlite, String> {
            one: &devices::CREDENTIALS,
            many: &devices::MANY_CREDENTIALS,
            key: "device_id",
            read: |row| match row.text("device_id")? {
                "b" => Err(DbError::corrupt("it is b")),
                other => Ok(other.to_owned()),
            },
        };
        let combiner = Combiner::start(store.reader.clone(), lookup);
        let (a, b, again, c) = tokio::join!(
            combiner.get("a"),
            combiner.get("b"),
            combiner.get("b"),
            combiner.get("c")
        );
        assert_eq!(a.expect("reads").as_deref(), Some("a"));
        assert_eq!(c.expect("reads").as_deref(), Some("c"));
        for answer in [b, again, combiner.get("b").await] {
            let error = answer.expect_err("does not read").to_string();
            assert!(error.ends_with("CREDENTIALS: it is b"), "{error}");
        }
        store.close().await;
    }

    #[tokio::test]
    async fn who_leaves_is_not_waited_for() {
        let database = SqliteDatabase::new();
        let store = database.open().await;
        let lookup = devices::credentials_by_id::<sqlx::Sqlite>();
        let combiner = Combiner::start(store.reader.clone(), lookup);
        // Two begin to ask and leave: one for itself, one in the queue.
        tokio::select! {
            biased;
            _ = async { tokio::join!(combiner.get("a"), combiner.get("b")) } => panic!("answered at once"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(combiner.asking.load(Ordering::Relaxed), 0);
        assert!(combiner.get("none").await.expect("reads").is_none());
        store.close().await;
    }
}
