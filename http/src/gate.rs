//! What every request passes before and after routing: its id, the rate limit, who it is, whether there is anything
//! at its path; then the headers that every answer has, the body of errors, and the line in the log.

use std::convert::Infallible;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use device_ota_domain::audit::Actor;
use device_ota_engine::Caller;
use device_ota_engine::metrics::Metrics;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::header::{CACHE_CONTROL, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::Service;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use warp::Reply as _;
use warp::reply::Response;

use crate::access::{self, Access, Presented, Principal};
use crate::cors::{self, Cors};
use crate::errors::ApiError;
use crate::limits::{Class, LINKS, Limiter, RateLimits, is_counted, network};
use crate::openapi;
use crate::request::linger::Lingering;
use crate::request::{Visit, Visitor};

/// Taken from the request or made here; always answered.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;
/// Lines a second about requests that were refused: strangers must not fill the log. The metrics know of all.
const REFUSALS_LOGGED_A_SECOND: NonZeroU32 = NonZeroU32::new(20).unwrap();

/// The gate before the routes, which are a service made of warp's filters.
pub(crate) struct Gate<S> {
    routes: S,
    access: Access,
    limiter: Limiter,
    cors: Cors,
    metrics: Arc<Metrics>,
    run_id: String,
    made: AtomicU64,
    refusals: DefaultDirectRateLimiter,
}

/// A request as the log shows it.
struct Line {
    id: String,
    peer: IpAddr,
    method: Method,
    path: String,
    began: Instant,
}

impl<S> Gate<S>
where
    S: Service<Request<Lingering>, Response = Response, Error = Infallible>,
{
    pub(crate) fn new(
        routes: S,
        access: Access,
        limits: RateLimits,
        cors: Cors,
        metrics: Arc<Metrics>,
        run_id: String,
    ) -> Self {
        Self {
            routes,
            access,
            limiter: Limiter::new(limits),
            cors,
            metrics,
            run_id,
            made: AtomicU64::new(0),
            refusals: RateLimiter::direct(Quota::per_second(REFUSALS_LOGGED_A_SECOND)),
        }
    }

    /// Answers one request of this address.
    pub(crate) async fn answer(&self, peer: IpAddr, request: Request<Incoming>) -> Response {
        let line = Line {
            id: self.request_id(&request),
            peer,
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            began: Instant::now(),
        };
        let (head, body) = request.into_parts();
        // Made in any case: a body that nobody reads must be emptied.
        let body = Lingering::new(&head.headers, body);
        let mut request = Request::from_parts(head, body);
        let origin = self.cors.origin(request.headers());
        let preflight = origin
            .as_ref()
            .and_then(|_| cors::preflight(&request, openapi::served(&line.path)?.allow()));
        let entered = match preflight {
            Some(answer) => self.limiter.check(line.peer).map(|()| Some(answer)),
            None => self.enter(&line, &mut request).await.map(|()| None),
        };
        let answered = match entered {
            Ok(Some(answer)) => answer,
            Ok(None) => self
                .routes
                .call(request)
                .await
                .unwrap_or_else(|never| match never {}),
            Err(refused) => refused.into_response(),
        };
        let class = Class::of(&line.method, &line.path).name();
        let status = status_class(answered.status());
        self.metrics.answered(class, status, line.began.elapsed());
        let mut answer = self.finish(answered, &line);
        self.cors.mark(answer.headers_mut(), origin);
        answer
    }

    /// Lets a request in, or says why not. A `HEAD` goes the way of `GET`: the connection leaves the body out.
    async fn enter(&self, line: &Line, request: &mut Request<Lingering>) -> Result<(), ApiError> {
        let path = request.uri().path();
        if is_counted(path) {
            self.limiter.check(line.peer)?;
        }
        let visitor = if access::is_open(path) {
            Visitor::Nobody
        } else {
            self.visitor(line, request.headers()).await?
        };
        let served = openapi::served(path).ok_or_else(ApiError::unknown_path)?;
        if !served.takes(request.method()) {
            return Err(ApiError::method_not_allowed(served.allow()));
        }
        let head = request.method() == Method::HEAD;
        if head {
            *request.method_mut() = Method::GET;
        }
        let network = network(line.peer);
        request.extensions_mut().insert(Visit {
            visitor,
            network,
            head,
        });
        Ok(())
    }

    /// Who it is, once for each of their limits.
    async fn visitor(&self, line: &Line, headers: &HeaderMap) -> Result<Visitor, ApiError> {
        let guesses = &self.limiter.guesses;
        // What cannot be read cannot be right: it is refused unseen, and guesses nothing.
        let shown = match access::presented(headers)? {
            Presented::Nothing => None,
            credential => Some(guesses.shown(&credential)),
        };
        if let Some(shown) = shown {
            guesses.may_sign_in(line.peer, shown)?;
        }
        let principal = self
            .access
            .authenticate(&line.method, &line.path, headers)
            .await;
        let principal = principal.inspect_err(|error| {
            if let Some(shown) = shown
                && error.is_unauthorized()
            {
                guesses.failed(line.peer, shown);
            }
        })?;
        let class = Class::of(&line.method, &line.path);
        let visitor = match principal {
            Principal::Person {
                subject,
                roles,
                authentication,
            } => {
                self.limiter.check_subject(&subject, class)?;
                Visitor::Person(Caller::new(Actor {
                    subject,
                    roles,
                    authentication,
                    request_id: line.id.as_str().into(),
                    peer: Some(line.peer.to_canonical()),
                }))
            }
            Principal::Device(device) => {
                // No subject begins so: a control character is in none.
                let subject = format!("\n{}", device.id);
                self.limiter.check_subject(&subject, class)?;
                Visitor::Device(device)
            }
        };
        // Not before the limit of its subject: one who is over it fills no memory with credentials.
        if let Some(shown) = shown {
            guesses.proved(shown);
        }
        Ok(visitor)
    }

    /// Writes the error's body, sets the headers that every answer has, and logs.
    fn finish(&self, mut response: Response, line: &Line) -> Response {
        let error = response.extensions_mut().remove::<ApiError>();
        let status = response.status();
        let worth = Worth::of(status, &line.method);
        if worth != Worth::Refusal || self.refusals.check().is_ok() {
            log(worth, status, error.as_ref(), line);
        }
        if let Some(error) = error {
            response = error.render(&line.id);
        }
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers
            .entry(CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
        if let Ok(id) = HeaderValue::from_str(&line.id) {
            headers.insert(REQUEST_ID, id);
        }
        response
    }

    /// The client's own id when it is fit for a log, else one that no other request has.
    fn request_id(&self, request: &Request<Incoming>) -> String {
        let given = request
            .headers()
            .get(REQUEST_ID)
            .and_then(|value| value.to_str().ok());
        given.filter(|id| is_request_id(id)).map_or_else(
            || {
                format!(
                    "{}-{:x}",
                    self.run_id,
                    self.made.fetch_add(1, Ordering::Relaxed)
                )
            },
            ToOwned::to_owned,
        )
    }
}

/// The class of a status, as metrics name it.
fn status_class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

fn is_request_id(text: &str) -> bool {
    (1..=MAX_REQUEST_ID_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// How much a request is worth to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// The service failed.
    Failure,
    /// Somebody was refused something.
    Refusal,
    /// Something was changed.
    Change,
    /// Something was read: of interest when somebody looks.
    Read,
}

impl Worth {
    fn of(status: StatusCode, method: &Method) -> Self {
        if status.is_server_error() {
            Self::Failure
        } else if status.is_client_error() {
            Self::Refusal
        } else if method.is_safe() {
            Self::Read
        } else {
            Self::Change
        }
    }
}

fn log(worth: Worth, status: StatusCode, error: Option<&ApiError>, line: &Line) {
    let path = if line.path.starts_with(LINKS) {
        LINKS
    } else {
        &line.path
    };
    let code = error.map(ApiError::code);
    let elapsed_ms = line.began.elapsed().as_secs_f64() * 1e3;
    macro_rules! say {
        ($level:ident $(, $more:ident = $value:expr)?) => {
            $level!(
                http.method = %line.method, http.path = path, http.status = status.as_u16(), elapsed_ms,
                request.id = line.id, client.address = %line.peer, error.code = code, $($more = $value,)?
                "request"
            )
        };
    }
    match worth {
        Worth::Failure => say!(warn, cause = error.and_then(ApiError::cause)),
        Worth::Refusal | Worth::Change => say!(info),
        Worth::Read => say!(debug),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_taken_only_when_it_is_fit_for_a_log() {
        assert!(is_request_id("a-1_b.C:9/~"));
        assert!(is_request_id(&"x".repeat(128)));
        for unfit in ["", "a b", "a\tb", "é", &"x".repeat(129)] {
            assert!(!is_request_id(unfit), "{unfit}");
        }
    }

    #[test]
    fn what_was_refused_and_what_was_changed_is_told_unasked() {
        let worth = |status, method| Worth::of(status, &method);
        for status in [400, 401, 404, 409, 429] {
            let status = StatusCode::from_u16(status).unwrap_or_default();
            assert_eq!(worth(status, Method::GET), Worth::Refusal);
            assert_eq!(worth(status, Method::POST), Worth::Refusal);
        }
        assert_eq!(worth(StatusCode::CREATED, Method::POST), Worth::Change);
        assert_eq!(worth(StatusCode::OK, Method::DELETE), Worth::Change);
        assert_eq!(worth(StatusCode::OK, Method::GET), Worth::Read);
        assert_eq!(worth(StatusCode::NO_CONTENT, Method::OPTIONS), Worth::Read);
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(worth(unavailable, Method::GET), Worth::Failure);
    }
}
