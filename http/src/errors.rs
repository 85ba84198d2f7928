//! Errors on the way out: one type, one body (`{"detail", "code", "request_id"}`), whoever found the fault.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt::Write as _;

use device_ota_engine::Error;
use device_ota_engine::ports::ObjectError;
use http::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;
use warp::reply::Response;
use warp::{Rejection, Reply};

/// When a client may come back after 503, in seconds: long enough for a database to fail over a connection.
const RETRY_AFTER_SECONDS: u64 = 2;

/// An answer that is not the one that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What the log says beside the detail; never shown to the client.
    cause: Option<String>,
}

/// The body of every error.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct ErrorBody<'a> {
    /// For people: what is wrong.
    detail: &'a str,
    /// For programs: stable.
    #[schema(examples("unauthorized"))]
    code: &'static str,
    /// The request, as the log knows it and `X-Request-Id` says.
    request_id: &'a str,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            headers: Vec::new(),
            cause: None,
        }
    }

    /// 404 for a path that is none of ours.
    pub(crate) fn unknown_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "unknown_path",
            "there is nothing at this path",
        )
    }

    /// 405, with the methods that the path takes.
    pub(crate) fn method_not_allowed(allow: HeaderValue) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this path does not take this method",
        )
        .with(ALLOW, allow)
    }

    /// 400.
    pub(crate) fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 401, with the ways to sign in.
    pub(crate) fn unauthorized(detail: &'static str) -> Self {
        let challenge = HeaderValue::from_static("Bearer realm=\"device-ota\"");
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
            .with(WWW_AUTHENTICATE, challenge)
    }

    /// 404 for an id that cannot be one.
    pub(crate) fn not_found(what: &'static str, id: &str) -> Self {
        let shown: String = id
            .chars()
            .take(device_ota_domain::ids::MAX_ID_BYTES)
            .collect();
        Error::NotFound { what, id: shown }.into()
    }

    /// 408: the client stopped sending, or sends too slowly.
    pub(crate) fn too_slow(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail)
    }

    /// 413.
    pub(crate) fn too_large(limit: usize) -> Self {
        let detail = format!("the body is larger than {limit} bytes, the most that is taken here");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    }

    /// 415.
    pub(crate) fn unsupported_media(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            detail,
        )
    }

    /// 429, with the time to wait.
    pub(crate) fn too_many(seconds: u64) -> Self {
        let detail = format!("too many requests; try again in {seconds} s");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
            .with(RETRY_AFTER, seconds.into())
    }

    /// 503 for what another service should have said, with the time to wait.
    pub(crate) fn unavailable(code: &'static str, detail: &'static str, cause: String) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
            .with(RETRY_AFTER, RETRY_AFTER_SECONDS.into())
            .because(cause)
    }

    /// With a cause for the log.
    pub(crate) fn because(mut self, cause: String) -> Self {
        self.cause = Some(cause);
        self
    }

    /// Adds a header to the answer.
    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Whether nobody, or nobody that is known, has asked.
    pub(crate) fn is_unauthorized(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    /// The text for people.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// The stable code.
    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    /// What the log says beside the detail.
    pub(crate) fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// The answer with its body, which only the gate can write: it knows the request's id.
    pub(crate) fn render(self, request_id: &str) -> Response {
        let body = ErrorBody {
            detail: &self.detail,
            code: self.code,
            request_id,
        };
        let mut response = warp::reply::json(&body).into_response();
        *response.status_mut() = self.status;
        let headers: &mut HeaderMap = response.headers_mut();
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}

impl Reply for ApiError {
    /// An empty answer that carries the error to the gate.
    fn into_response(self) -> Response {
        let mut response = Response::default();
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Invalid { .. } => StatusCode::BAD_REQUEST,
            Error::Forbidden { .. } => StatusCode::FORBIDDEN,
            Error::NotFound { .. } | Error::NoSuchDevice(_) => StatusCode::NOT_FOUND,
            Error::Conflict { .. } => StatusCode::CONFLICT,
            Error::Unprocessable { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            // Not for whoever waits: it does not come back by itself.
            Error::Objects(ObjectError::Missing(_)) | Error::Internal(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Error::Store(_)
            | Error::Objects(_)
            | Error::DeviceService { .. }
            | Error::DevicesUntold { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        let mut answer = Self::new(status, error.code(), error.to_string());
        if status == StatusCode::SERVICE_UNAVAILABLE {
            answer = answer.with(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
        answer.cause = status.is_server_error().then(|| {
            let causes = sources(&error);
            if causes.is_empty() {
                error.to_string()
            } else {
                causes
            }
        });
        answer
    }
}

/// The causes of an error, outermost first, on one line.
fn sources(error: &dyn StdError) -> String {
    let mut text = String::new();
    let mut source = error.source();
    while let Some(cause) = source {
        let separator = if text.is_empty() { "" } else { ": " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{cause}");
        source = cause.source();
    }
    text
}

/// What warp's filters say when none of them takes the request, which the gate had found to be one of ours.
pub(crate) async fn recover(rejection: Rejection) -> Result<Response, Infallible> {
    let error = if rejection.is_not_found() {
        ApiError::unknown_path()
    } else {
        let mut error = ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "internal error",
        );
        error.cause = Some(format!("{rejection:?}"));
        error
    };
    Ok(error.into_response())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn text(response: Response) -> String {
        String::from_utf8(
            response
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .to_vec(),
        )
        .unwrap()
    }

    #[tokio::test]
    async fn an_error_shows_its_detail_code_and_request_but_never_its_cause() {
        let cause = std::io::Error::other("password=hunter2");
        let error = Error::Store(device_ota_engine::ports::StoreError::Unavailable(Box::new(
            cause,
        )));
        let error = ApiError::from(error);
        assert!(
            error.cause().unwrap().contains("hunter2"),
            "the log is told"
        );
        let response = error.render("r-1");
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        insta::assert_snapshot!(
            text(response).await,
            @r#"{"detail":"the database is unavailable","code":"database_unavailable","request_id":"r-1"}"#
        );
    }

    #[test]
    fn each_refusal_of_the_engine_has_its_status() {
        let status = |error: Error| ApiError::from(error).into_response().status().as_u16();
        assert_eq!(status(Error::invalid("c", "d")), 400);
        assert_eq!(status(Error::forbidden("c", "d")), 403);
        assert_eq!(
            status(Error::NotFound {
                what: "device",
                id: "x".into()
            }),
            404
        );
        assert_eq!(status(Error::conflict("c", "d")), 409);
        assert_eq!(status(Error::unprocessable("c", "d")), 422);
        assert_eq!(status(Error::Internal("x".into())), 500);
    }

    #[test]
    fn whoever_could_not_be_asked_says_when_to_come_back() {
        let error = ApiError::unavailable("auth_unavailable", "nobody answers", "refused".into());
        let response = error.render("r");
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
    }

    #[test]
    fn an_unsigned_request_is_told_how_to_sign_in() {
        let response = ApiError::unauthorized("who are you").render("r");
        assert_eq!(response.status(), 401);
        assert_eq!(
            response.headers()[WWW_AUTHENTICATE],
            "Bearer realm=\"device-ota\""
        );
    }
}
