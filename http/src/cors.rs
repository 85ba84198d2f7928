//! Which web pages may call the API from a browser: none, unless the settings name their origins. Credentials are
//! always sent by the page itself, never by the browser, so there are no cookies to protect.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    HeaderValue, ORIGIN, VARY,
};
use http::{HeaderMap, Method, Request, StatusCode};
use warp::reply::Response;

/// What pages may send beside the simplest headers.
const ALLOWED: HeaderValue = HeaderValue::from_static(
    "Authorization, Content-Type, If-Match, If-None-Match, If-Range, Last-Event-ID, Range, X-API-Key, X-Request-Id",
);
/// What pages may read of an answer beside the simplest headers.
const EXPOSED: HeaderValue =
    HeaderValue::from_static("Content-Range, ETag, Retry-After, X-Request-Id");
/// How long a browser may remember what it was told, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// The origins that may call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cors {
    origins: Vec<String>,
}

/// A text that is no origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no origin such as https://ota.example.com: scheme, host and port, without a path"
)]
pub struct NotAnOrigin(String);

impl Cors {
    /// Exactly these origins, separated by commas. A star is none: whoever may call is named.
    ///
    /// ```
    /// use device_ota_http::Cors;
    ///
    /// assert!(Cors::from_origins("https://ota.example.com, http://localhost:3000").is_ok());
    /// for none in ["*", "ota.example.com", "https://ota.example.com/", "https://", "null"] {
    ///     assert!(Cors::from_origins(none).is_err(), "{none}");
    /// }
    /// ```
    pub fn from_origins(text: &str) -> Result<Self, NotAnOrigin> {
        let origins = text.split(',').map(str::trim).map(|origin| {
            let host = origin
                .strip_prefix("https://")
                .or_else(|| origin.strip_prefix("http://"))
                .unwrap_or_default();
            let fits =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:[]".contains(&b);
            if !host.is_empty() && host.bytes().all(fits) {
                Ok(origin.to_owned())
            } else {
                Err(NotAnOrigin(origin.to_owned()))
            }
        });
        Ok(Self {
            origins: origins.collect::<Result<_, _>>()?,
        })
    }

    /// The origin of a request, if it may call.
    pub(crate) fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        let known = self
            .origins
            .iter()
            .any(|known| known.as_bytes() == origin.as_bytes());
        known.then(|| origin.clone())
    }

    /// Tells the browser that the page may read the answer, and caches that answers differ by origin.
    pub(crate) fn mark(&self, headers: &mut HeaderMap, origin: Option<HeaderValue>) {
        if !self.origins.is_empty() {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(origin) = origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
}

/// The answer to a browser's question what a page may do with a path that takes these methods.
pub(crate) fn preflight<B>(request: &Request<B>, methods: HeaderValue) -> Option<Response> {
    let asks = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    asks.then(|| {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED);
        headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        response
    })
}
