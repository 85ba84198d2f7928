//! Point reads, combined: callers that ask for single rows at the same time share one statement.
//!
//! What a small read costs is not the row but the way to the connection and back. So callers queue their keys, and a few
//! workers each take what has queued up, look all of it up with one statement and hand every caller its row. A lone
//! request is looked up at once; under load the statements grow instead of the queue. A statement starts after its
//! requests were made, so a caller sees all that was committed before it asked, as it would by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Pool;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, Statement};

/// Requests that one statement answers: a multiple of what a busy machine has at a time, and still a fast statement.
const BATCH: usize = 64;
/// Requests that wait for a worker; a caller beyond them waits to be queued.
const QUEUE: usize = 1024;
/// Statements of one kind at a time: while one is with the database, the next is made ready or its rows handed out.
const WORKERS: usize = 2;
/// How long a caller waits in all: some batches before its own may each wait for a connection in vain.
const PATIENCE: Duration = Duration::from_secs(10);

/// How rows are looked up by a text key that is unique.
pub(crate) struct Lookup<D: Dialect, V> {
    /// Selects the rows whose key is in the list bound at `$1`.
    pub(crate) statement: &'static Statement,
    /// The column of the key.
    pub(crate) key: &'static str,
    /// Reads a row.
    pub(crate) read: fn(&Record<'_, D>) -> Result<V, DbError>,
}

/// What each waiter of a key is told.
type Answer<V> = Result<Option<V>, Arc<DbError>>;

/// One caller's wish.
struct Request<V> {
    key: String,
    reply: oneshot::Sender<Answer<V>>,
}

/// Takes requests for rows of one kind; its workers end with the last clone of it.
#[derive(Debug, Clone)]
pub(crate) struct Combiner<V> {
    requests: mpsc::Sender<Request<V>>,
}

impl<V: Clone + Send + 'static> Combiner<V> {
    /// Starts the workers, which read with connections of `pool`.
    pub(crate) fn start<D: Dialect>(pool: Pool<D>, lookup: Lookup<D, V>) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        let desk = Arc::new(Desk {
            pool,
            lookup,
            queue: Mutex::new(queue),
        });
        for _ in 0..WORKERS {
            tokio::spawn(Arc::clone(&desk).work());
        }
        Self { requests }
    }

    /// The row of `key`, as of some moment after this was called.
    pub(crate) async fn get(&self, key: &str) -> Answer<V> {
        let asked = async {
            let (reply, answer) = oneshot::channel();
            let key = key.to_owned();
            let queued = self.requests.send(Request { key, reply }).await;
            queued.map_err(|_| sqlx::Error::WorkerCrashed)?;
            answer.await.map_err(|_| sqlx::Error::WorkerCrashed)
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(Arc::new(error.into())),
            Err(_) => Err(Arc::new(sqlx::Error::PoolTimedOut.into())),
        }
    }
}

/// What the workers share.
struct Desk<D: Dialect, V> {
    pool: Pool<D>,
    lookup: Lookup<D, V>,
    /// Held by the worker that waits for requests.
    queue: Mutex<mpsc::Receiver<Request<V>>>,
}

impl<D: Dialect, V: Clone + Send + 'static> Desk<D, V> {
    /// Answers batch after batch until nobody can ask any more.
    async fn work(self: Arc<Self>) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.queue.lock().await.recv_many(&mut batch, BATCH).await > 0 {
            let waiters = by_key(batch.drain(..));
            if !waiters.is_empty() {
                self.answer(waiters).await;
            }
        }
    }

    async fn answer(&self, mut waiters: Waiters<V>) {
        let keys: Vec<&str> = waiters.keys().map(String::as_str).collect();
        let rest = match self.look_up(&keys).await {
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
    async fn look_up(&self, keys: &[&str]) -> Result<Vec<(String, Result<V, DbError>)>, DbError> {
        let Lookup {
            statement,
            key,
            read,
        } = self.lookup;
        let mut conn = self.pool.acquire().await?;
        sql::fetch_all::<D, _>(&mut *conn, statement, Args::new().texts(keys), |row| {
            let value = read(row).map_err(|error| error.read_by(statement.name));
            Ok((row.string(key)?, value))
        })
        .await
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
        let desk = Desk {
            pool: store.reader.clone(),
            lookup: devices::credentials_by_id::<sqlx::Sqlite>(),
            queue: Mutex::new(mpsc::channel(1).1),
        };
        let keys = ["a", "c", "none", "a"];
        let mut answers = Vec::new();
        let requests = keys.map(|key| {
            let (reply, answer) = oneshot::channel();
            answers.push(answer);
            let key = key.to_owned();
            Request { key, reply }
        });
        desk.answer(by_key(requests.into_iter())).await;
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
            statement: &devices::CREDENTIALS,
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
        for answer in [b, again] {
            let error = answer.expect_err("does not read");
            assert_eq!(error.to_string(), "CREDENTIALS: it is b");
        }
        store.close().await;
    }

    #[tokio::test]
    async fn workers_end_with_the_last_who_can_ask() {
        let database = SqliteDatabase::new();
        let store = database.open().await;
        let tasks = || {
            tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks()
        };
        let before = tasks();
        let lookup = devices::credentials_by_id::<sqlx::Sqlite>();
        let combiner = Combiner::start(store.reader.clone(), lookup);
        let clone = combiner.clone();
        drop(combiner);
        assert!(clone.get("none").await.expect("reads").is_none());
        assert_eq!(tasks(), before + WORKERS);
        drop(clone);
        let ended = async {
            while tasks() > before {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, ended)
            .await
            .expect("the workers end");
        store.close().await;
    }
}
