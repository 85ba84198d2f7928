//! What the clients of the services around have in common: a time within which a question is answered or not, tries with
//! back-off, a circuit, and what `/health/detailed` says of the service.

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use device_ota_engine::ports::Clock;
use jiff::Timestamp;
use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, Response, StatusCode};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::circuit::{Circuit, LONGEST_PAUSE};

/// Longest that one question takes in all, its tries included; somebody's request waits meanwhile. A little less than the two
/// seconds that callers give it, so that the circuit hears of it first.
const DEADLINE: Duration = Duration::from_millis(1_900);
/// Pauses before a question is asked again that failed in a way that may pass.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(300)];
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
    pub trouble: Option<String>,
}

/// One service, over HTTP.
pub(crate) struct Client {
    name: &'static str,
    http: reqwest::Client,
    base: String,
    circuit: Circuit,
    standing: Mutex<Standing>,
    clock: Arc<dyn Clock>,
}

struct Standing {
    is_known: bool,
    since: Timestamp,
    trouble: Option<Fault>,
}

/// What came of a try.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    /// It is not there, or has no time: the same for everybody. It opens the circuit.
    Away(String),
    /// It failed at this question, and may not the next time. Others may do better, so the circuit stays as it is: nobody shuts
    /// the service for others by a question that it cannot bear.
    Failed(String),
    /// It said something that cannot be believed, and would say it again.
    Odd(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Away(why) | Self::Failed(why) | Self::Odd(why)) = self;
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
        let Ok(pass) = self.circuit.admit(Instant::now()) else {
            return Err(self.refused());
        };
        let answered = within_deadline(self.tries(&request)).await;
        match &answered {
            Err(Fault::Away(_)) => pass.failed(Instant::now()),
            _ => pass.succeeded(),
        }
        let read = answered.and_then(|answer| {
            let Answer { status, body } = answer;
            read(status, &body).map_err(Fault::Odd)
        });
        self.note(read.as_ref().err().cloned());
        read.map_err(|fault| Unavailable(fault.to_string()))
    }

    /// What is said without a question.
    fn refused(&self) -> Unavailable {
        let seconds = LONGEST_PAUSE.as_secs();
        let trouble = self.standing().trouble.clone();
        let why = trouble.map_or_else(|| "it was away".to_owned(), |fault| fault.to_string());
        Unavailable(format!(
            "{why} (it is asked again within {seconds} s, and not before)"
        ))
    }

    async fn tries(
        &self,
        request: &impl Fn(&reqwest::Client, &str) -> RequestBuilder,
    ) -> Result<Answer, Fault> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let fault = match send(request(&self.http, &self.base)).await {
                Err(fault @ (Fault::Away(_) | Fault::Failed(_))) => fault,
                answered => return answered,
            };
            match pauses.next() {
                Some(pause) => sleep(pause).await,
                None => return Err(fault),
            }
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

    /// Whether `GET /health` has any answer but that it is away. That it has says nothing of answers that were odd.
    async fn look(&self) {
        let request = self.http.get(format!("{}/health", self.base));
        match within_deadline(send(request)).await {
            Err(Fault::Odd(_)) | Ok(_) => {
                let is_odd = matches!(
                    self.standing().trouble,
                    Some(Fault::Odd(_) | Fault::Failed(_))
                );
                if !is_odd {
                    self.note(None);
                }
            }
            Err(Fault::Away(why) | Fault::Failed(why)) => self.note(Some(Fault::Away(why))),
        }
    }

    /// How it is.
    pub(crate) fn status(&self) -> ServiceStatus {
        let standing = self.standing();
        ServiceStatus {
            is_known: standing.is_known,
            since: standing.since,
            trouble: standing.trouble.as_ref().map(ToString::to_string),
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down how it is; each turn is logged once.
    fn note(&self, trouble: Option<Fault>) {
        let mut standing = self.standing();
        let is_turn = standing.trouble.is_some() != trouble.is_some();
        if is_turn || !standing.is_known {
            standing.since = self.clock.now();
        }
        standing.is_known = true;
        if is_turn {
            if let Some(trouble) = &trouble {
                tracing::warn!(service = self.name, %trouble, "a service around this one is away");
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

async fn within_deadline<T>(question: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let answered = timeout(DEADLINE, question).await;
    answered.unwrap_or_else(|_| {
        let seconds = DEADLINE.as_secs_f64();
        Err(Fault::Away(format!("it did not answer within {seconds} s")))
    })
}

/// One try.
async fn send(request: RequestBuilder) -> Result<Answer, Fault> {
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Err(Fault::Away(format!("it answered {status}"))),
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
