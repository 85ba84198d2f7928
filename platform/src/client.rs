//! What the clients of the services around have in common: a time within which a question is answered or not, tries with
//! back-off, a circuit, and what `/health/detailed` says of the service.

use std::error::Error as StdError;
use std::fmt;
use std::mem::discriminant;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use device_ota_engine::ports::Clock;
use jiff::Timestamp;
use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::circuit::{Circuit, LONGEST_PAUSE};

/// Longest that one question takes in all, its tries included; somebody's request waits meanwhile. A little less than the two
/// seconds that callers give it, so that the circuit hears of it first.
const DEADLINE: Duration = Duration::from_millis(1_900);
/// Pauses before a question is asked again that failed in a way that may pass.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(300)];
/// Questions at a time, whoever asks: the service and our sockets bear no more. The others wait for a turn, half of
/// their time at most.
const MAX_QUESTIONS: usize = 64;
/// Most bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// How often it is looked at while nobody asks.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Why a service did not answer, or not in a form that can be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unavailable(pub(crate) String);

/// How a service is, by what was last heard of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceStatus {
    /// It was asked, or looked at.
    pub is_known: bool,
    /// Since when it is so.
    pub since: Timestamp,
    /// What fails.
    pub trouble: Option<Fault>,
}

/// One service, over HTTP.
pub(crate) struct Client {
    name: &'static str,
    http: reqwest::Client,
    base: String,
    turns: Semaphore,
    circuit: Circuit,
    standing: Mutex<Standing>,
    clock: Arc<dyn Clock>,
}

struct Standing {
    is_known: bool,
    since: Timestamp,
    trouble: Option<Fault>,
}

/// What came of a question that has no answer. Each says what happened, in words that health may tell to everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is not there, or says so itself: the same for everybody. It opens the circuit.
    Away(String),
    /// It has too much to do: the same, and asking again would give it more.
    Busy(String),
    /// It failed at this question, and may not the next time. Others may do better, so the circuit stays as it is: nobody shuts
    /// the service for others by a question at which it fails.
    Failed(String),
    /// It said something that cannot be believed, and would say it again.
    Odd(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Away(why) | Self::Busy(why) | Self::Failed(why) | Self::Odd(why)) = self;
        f.write_str(why)
    }
}

/// What was answered, read in whole.
struct Answer {
    status: StatusCode,
    body: Vec<u8>,
}

impl Client {
    /// Of the service at `base`, such as `http://device_service:8205`, with these headers in each request. `name` is how the
    /// log calls it.
    pub(crate) fn new(
        name: &'static str,
        base: &str,
        headers: HeaderMap,
        clock: Arc<dyn Clock>,
    ) -> reqwest::Result<Self> {
        // A redirect would carry what is asked somewhere else, and so would a proxy.
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        let standing = Mutex::new(Standing {
            is_known: false,
            since: clock.now(),
            trouble: None,
        });
        Ok(Self {
            name,
            http,
            base: base.trim_end_matches('/').to_owned(),
            turns: Semaphore::new(MAX_QUESTIONS),
            circuit: Circuit::new(),
            standing,
            clock,
        })
    }

    /// Asks: `request` makes the request out of a client and the service's address, once for each try; `read` makes the answer
    /// out of what was said, or says why it cannot be believed.
    pub(crate) async fn ask<T>(
        &self,
        request: impl Fn(&reqwest::Client, &str) -> RequestBuilder,
        read: impl FnOnce(StatusCode, &[u8]) -> Result<T, String>,
    ) -> Result<T, Unavailable> {
        let read = self.question(request, read).await?;
        self.note(read.as_ref().err().cloned());
        read.map_err(|fault| Unavailable(fault.to_string()))
    }

    /// The same for the first of two questions of which the second shows whether the first was understood: a good answer to this one
    /// says nothing yet of how the service is.
    pub(crate) async fn ask_first<T>(
        &self,
        request: impl Fn(&reqwest::Client, &str) -> RequestBuilder,
        read: impl FnOnce(StatusCode, &[u8]) -> Result<T, String>,
    ) -> Result<T, Unavailable> {
        let read = self.question(request, read).await?;
        read.map_err(|fault| {
            let why = Unavailable(fault.to_string());
            self.note(Some(fault));
            why
        })
    }

    /// One question with its tries; `Unavailable`: it was not asked.
    async fn question<T>(
        &self,
        request: impl Fn(&reqwest::Client, &str) -> RequestBuilder,
        read: impl FnOnce(StatusCode, &[u8]) -> Result<T, String>,
    ) -> Result<Result<T, Fault>, Unavailable> {
        if self.circuit.refuses(Instant::now()) {
            return Err(self.refused());
        }
        let deadline = Instant::now() + DEADLINE;
        // What gets its turn later would have no fair time left, and the service would be blamed for that.
        let Ok(Ok(_turn)) = timeout(DEADLINE / 2, self.turns.acquire()).await else {
            let why = format!("{MAX_QUESTIONS} questions before this one are not answered yet");
            return Err(Unavailable(why));
        };
        let Ok(pass) = self.circuit.admit(Instant::now()) else {
            return Err(self.refused());
        };
        let answered = self.tries(&request, deadline).await;
        match &answered {
            Err(Fault::Away(_) | Fault::Busy(_)) => pass.failed(Instant::now()),
            _ => pass.succeeded(),
        }
        Ok(answered.and_then(|answer| {
            let Answer { status, body } = answer;
            read(status, &body).map_err(Fault::Odd)
        }))
    }

    /// Asks once, whatever is known of the service, and keeps nothing of what comes of it: for what cannot wait until it is back.
    pub(crate) async fn ask_once<T>(
        &self,
        request: impl FnOnce(&reqwest::Client, &str) -> RequestBuilder,
        read: impl FnOnce(StatusCode, &[u8]) -> Result<T, String>,
    ) -> Result<T, Unavailable> {
        let asked = timeout(DEADLINE, send(request(&self.http, &self.base)));
        let answered = asked.await.unwrap_or_else(|_| Err(silent()));
        let Answer { status, body } = answered.map_err(|fault| Unavailable(fault.to_string()))?;
        read(status, &body).map_err(Unavailable)
    }

    /// What is said without a question.
    fn refused(&self) -> Unavailable {
        let seconds = LONGEST_PAUSE.as_secs();
        let trouble = self.standing().trouble.clone();
        let why = trouble.map_or_else(|| "it was away".to_owned(), |fault| fault.to_string());
        Unavailable(format!(
            "{why} (it is not asked again before a pause is over, of {seconds} s at most)"
        ))
    }

    /// Asks until there is an answer, or no use or time for another try. At the deadline, what the last try came to is the answer,
    /// if one came to anything: a service that fails slowly is not away.
    async fn tries(
        &self,
        request: &impl Fn(&reqwest::Client, &str) -> RequestBuilder,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let mut pauses = PAUSES.into_iter();
        let mut last = None;
        loop {
            let tried = timeout_at(deadline, send(request(&self.http, &self.base))).await;
            let fault = match tried {
                Ok(Err(fault @ (Fault::Away(_) | Fault::Failed(_)))) => fault,
                Ok(answered) => return answered,
                Err(_) => return Err(last.unwrap_or_else(silent)),
            };
            match pauses.next() {
                Some(pause) if Instant::now() + pause < deadline => sleep(pause).await,
                _ => return Err(fault),
            }
            last = Some(fault);
        }
    }

    /// Looks after the service until `stop`, so that health tells how it is while nobody asks.
    pub(crate) async fn watch(&self, stop: &CancellationToken) {
        let looks = async {
            loop {
                self.look().await;
                sleep(LOOK_EVERY).await;
            }
        };
        let _: Option<()> = stop.run_until_cancelled(looks).await;
    }

    /// Whether `GET /health` has any answer but that it is away or fails. That it has says nothing of answers that were odd.
    async fn look(&self) {
        let request = self.http.get(format!("{}/health", self.base));
        let looked = timeout(DEADLINE, send(request)).await;
        match looked.unwrap_or_else(|_| Err(silent())) {
            Err(Fault::Odd(_)) | Ok(_) => {
                if !matches!(self.standing().trouble, Some(Fault::Odd(_))) {
                    self.note(None);
                }
            }
            Err(fault) => self.note(Some(fault)),
        }
    }

    /// How it is.
    pub(crate) fn status(&self) -> ServiceStatus {
        let standing = self.standing();
        ServiceStatus {
            is_known: standing.is_known,
            since: standing.since,
            trouble: standing.trouble.clone(),
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down how it is; each turn is logged once, also from one kind of trouble to another.
    fn note(&self, trouble: Option<Fault>) {
        let mut standing = self.standing();
        let kind = |trouble: &Option<Fault>| trouble.as_ref().map(discriminant);
        let is_turn = kind(&standing.trouble) != kind(&trouble);
        if is_turn || !standing.is_known {
            standing.since = self.clock.now();
        }
        standing.is_known = true;
        if is_turn {
            if let Some(trouble) = &trouble {
                tracing::warn!(service = self.name, %trouble, "a service around this one does not answer as it should");
            } else {
                tracing::info!(
                    service = self.name,
                    "a service around this one answers again"
                );
            }
        }
        standing.trouble = trouble;
    }
}

/// Nothing came in time.
fn silent() -> Fault {
    let seconds = DEADLINE.as_secs_f64();
    Fault::Away(format!("it did not answer within {seconds} s"))
}

/// One try.
async fn send(request: RequestBuilder) -> Result<Answer, Fault> {
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    match status {
        StatusCode::TOO_MANY_REQUESTS => Err(Fault::Busy(format!("it answered {status}"))),
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Err(Fault::Away(format!("it answered {status}")))
        }
        status if status.is_server_error() => Err(Fault::Failed(format!("it answered {status}"))),
        status => Ok(Answer {
            status,
            body: read(response).await?,
        }),
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(unreachable)? {
        if bytes.len() + piece.len() > MAX_ANSWER_BYTES {
            return Err(Fault::Odd("its answer is too long".to_owned()));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Without the address, which may hold a password.
fn unreachable(error: reqwest::Error) -> Fault {
    let error = error.without_url();
    Fault::Away(format!("it cannot be reached: {}", root(&error)))
}

/// What is at the bottom of an error.
pub(crate) fn root(error: &reqwest::Error) -> &(dyn StdError + 'static) {
    let mut cause: &(dyn StdError + 'static) = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::watch;
    use tokio::task::JoinSet;

    use super::*;

    /// Each look at it is a second later.
    #[derive(Default)]
    struct Ticking(AtomicUsize);

    impl Clock for Ticking {
        fn now(&self) -> Timestamp {
            let seconds = self.0.fetch_add(1, Ordering::SeqCst);
            Timestamp::from_second(i64::try_from(seconds).unwrap()).unwrap()
        }
    }

    fn client(base: &str) -> Client {
        let clock = Arc::new(Ticking::default());
        Client::new("there", base, HeaderMap::new(), clock).unwrap()
    }

    /// Reads a request.
    async fn asked(stream: &mut TcpStream) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut request).await.unwrap();
        }
    }

    #[tokio::test]
    async fn no_more_than_so_many_are_asked_at_a_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (open, most) = (watch::Sender::new(0_usize), Arc::new(AtomicUsize::new(0)));
        let kept = most.clone();
        let serving = tokio::spawn(async move {
            let mut answering = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (open, most) = (open.clone(), kept.clone());
                answering.spawn(async move {
                    asked(&mut stream).await;
                    open.send_modify(|open| *open += 1);
                    most.fetch_max(*open.borrow(), Ordering::SeqCst);
                    // All at once are held until there are as many as there may be.
                    let enough = |_: &usize| most.load(Ordering::SeqCst) >= MAX_QUESTIONS;
                    open.subscribe().wait_for(enough).await.unwrap();
                    open.send_modify(|open| *open -= 1);
                    let answer =
                        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    stream.write_all(answer.as_bytes()).await.unwrap();
                });
            }
        });
        let client = client(&base);
        let questions = (0..MAX_QUESTIONS * 2).map(|_| {
            client.ask(
                |http, base| http.get(base),
                |status, _| Ok::<_, String>(status),
            )
        });
        for answer in futures_util::future::join_all(questions).await {
            assert_eq!(answer, Ok(StatusCode::OK));
        }
        assert_eq!(most.load(Ordering::SeqCst), MAX_QUESTIONS);
        serving.abort();
    }

    #[test]
    fn another_kind_of_trouble_has_a_time_of_its_own() {
        let client = client("http://h");
        let noted = |trouble: Option<Fault>| {
            client.note(trouble);
            client.status().since
        };
        let why = || "it answered 500".to_owned();
        let well = noted(None);
        assert_eq!(noted(None), well);
        let failed = noted(Some(Fault::Failed(why())));
        assert!(well < failed);
        assert_eq!(
            noted(Some(Fault::Failed("it answered 501".to_owned()))),
            failed
        );
        let away = noted(Some(Fault::Away(why())));
        assert!(failed < away);
        assert!(away < noted(None));
    }

    #[tokio::test]
    async fn a_look_ends_what_failed_and_not_what_was_odd() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                asked(&mut stream).await;
                let answer = "HTTP/1.1 404 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let client = client(&base);
        let why = || "it said so".to_owned();
        let odd = Fault::Odd(why());
        for (trouble, stays) in [
            (Fault::Away(why()), None),
            (Fault::Busy(why()), None),
            (Fault::Failed(why()), None),
            (odd.clone(), Some(odd)),
        ] {
            client.note(Some(trouble));
            client.look().await;
            assert_eq!(client.status().trouble, stays);
        }
        serving.abort();
    }
}
