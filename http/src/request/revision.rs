//! Revisions, as `ETag` and `If-Match` carry them (RFC 9110).

use http::HeaderMap;
use http::header::{ETAG, HeaderValue, IF_MATCH};
use utoipa::IntoParams;
use warp::reply::Response;

use crate::errors::ApiError;

/// The header of a change that shall not undo somebody else's.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes what `expected_revision` reads")]
pub(crate) struct IfMatch {
    /// The `revision` that was read; 409 when it is another by now
    #[param(rename = "If-Match", example = "\"3\"")]
    if_match: Option<String>,
}

/// The revision that `If-Match` names, quoted or not; `*` is any.
pub(crate) fn expected_revision(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let Some(value) = headers.get(IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim().trim_matches('"');
    if text == "*" {
        return Ok(None);
    }
    let invalid = || {
        let detail = "If-Match must be the revision that was read, such as \"3\"";
        ApiError::invalid("invalid_header", detail)
    };
    text.parse().map(Some).map_err(|_| invalid())
}

/// The answer, which shows something of this revision.
pub(crate) fn of_revision(revision: i64, mut answer: Response) -> Response {
    let tag = HeaderValue::from_str(&format!("\"{revision}\"")).expect("digits are ASCII");
    answer.headers_mut().insert(ETAG, tag);
    answer
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_a_number_or_nothing() {
        let revision = |value: &'static str| {
            let headers = HeaderMap::from_iter([(IF_MATCH, value.parse().unwrap())]);
            expected_revision(&headers).map_err(|error| error.code())
        };
        assert_eq!(expected_revision(&HeaderMap::new()).unwrap(), None);
        assert_eq!(revision("\"3\""), Ok(Some(3)));
        assert_eq!(revision("3"), Ok(Some(3)));
        assert_eq!(revision("*"), Ok(None));
        assert_eq!(revision("\"abc\""), Err("invalid_header"));
    }

    #[test]
    fn what_an_answer_is_tagged_with_is_expected_back() {
        let answer = of_revision(17, Response::default());
        let headers = HeaderMap::from_iter([(IF_MATCH, answer.headers()[ETAG].clone())]);
        assert_eq!(expected_revision(&headers).unwrap(), Some(17));
    }
}
