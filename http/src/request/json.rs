//! JSON bodies: the right content type, a bound on their size, and errors that name the field and the line.

mod strict;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;

use self::strict::Strict;
use super::body::{Body, read_whole};
use crate::errors::ApiError;

/// Most bytes of a usual JSON body.
pub(crate) const MAX_JSON_BYTES: usize = 64 * 1024;

/// A JSON body of at most [`MAX_JSON_BYTES`].
pub(crate) async fn json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    json_up_to(MAX_JSON_BYTES, headers, body).await
}

/// A JSON body of at most `limit` bytes.
pub(crate) async fn json_up_to<T: DeserializeOwned>(
    limit: usize,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    check_type(headers)?;
    let bytes = read_whole(headers, body, limit).await?;
    parse(&bytes, "the body")
}

/// A JSON body that may be left out.
pub(crate) async fn optional_json<T: DeserializeOwned + Default>(
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    let bytes = read_whole(headers, body, MAX_JSON_BYTES).await?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    check_type(headers)?;
    parse(&bytes, "the body")
}

/// For paths that take no body: whatever comes is not looked at, but an object without fields is all it may be.
pub(crate) async fn no_body(headers: &HeaderMap, body: Body) -> Result<(), ApiError> {
    #[derive(Default, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    optional_json::<Nothing>(headers, body).await.map(drop)
}

/// Reads JSON; `what` names it in the error, which names the field, the line and the column.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value =
        serde_path_to_error::deserialize(&mut reader).map_err(|error| explain(what, &error))?;
    reader
        .end()
        .map_err(|error| invalid(format!("{what} goes on after its JSON: {error}")))?;
    // The first reading tells lines and columns; the second refuses lists where objects are meant.
    let again = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    from_value::<T>(again, what)?;
    Ok(value)
}

/// Reads a value that was JSON already.
pub(crate) fn from_value<T: DeserializeOwned>(
    value: serde_json::Value,
    what: &str,
) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(Strict(value)).map_err(|error| explain(what, &error))
}

fn explain(what: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let path = error.path().to_string();
    let inner = error.inner();
    match (inner.classify(), path.as_str()) {
        (serde_json::error::Category::Data, "." | "?") => {
            invalid(format!("{what} is not as it should be: {inner}"))
        }
        (serde_json::error::Category::Data, path) => invalid(format!("{what}: {path}: {inner}")),
        _ => invalid(format!("{what} is not valid JSON: {inner}")),
    }
}

fn invalid(detail: String) -> ApiError {
    ApiError::invalid("invalid_json", detail)
}

/// The bytes of a JSON body of at most `limit`, unread.
pub(crate) async fn json_bytes(
    limit: usize,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, ApiError> {
    check_type(headers)?;
    read_whole(headers, body, limit).await
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = given
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
    {
        Ok(())
    } else {
        Err(ApiError::unsupported_media(
            "send the body as Content-Type: application/json",
        ))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use device_ota_domain::campaign::CampaignDraft;

    use super::*;

    fn complaint(text: &str) -> String {
        parse::<CampaignDraft>(text.as_bytes(), "the body")
            .unwrap_err()
            .detail()
            .to_owned()
    }

    #[test]
    fn an_error_names_the_field_and_where_it_is() {
        insta::assert_snapshot!(
            complaint("{\n\"name\": 5}"),
            @"the body: name: invalid type: integer `5`, expected a string at line 2 column 9"
        );
        insta::assert_snapshot!(
            complaint(r#"{"name": "x"}"#),
            @"the body is not as it should be: missing field `firmware_id` at line 1 column 13"
        );
        insta::assert_snapshot!(
            complaint(r#"{"stages": [{"ring": "canary"}, {"gate": {"min_samples": -1}}]}"#),
            @"the body: stages[1].gate.min_samples: invalid value: integer `-1`, expected u64 at line 1 column 59"
        );
        insta::assert_snapshot!(complaint(r#"{"nam": 1}"#).split(", expected").next().unwrap(), @"the body: nam: unknown field `nam`");
        insta::assert_snapshot!(
            complaint("{\n oops"),
            @"the body is not valid JSON: key must be a string at line 2 column 2"
        );
        insta::assert_snapshot!(complaint(""), @"the body is not valid JSON: EOF while parsing a value at line 1 column 0");
    }

    #[test]
    fn a_list_of_values_is_no_object() {
        let firmware = r#""firmware_id": "770987aca3a746dfa5bef4f8b0e59f22""#;
        let complaint = complaint(&format!(
            r#"{{"name": "n", {firmware}, "requires": [null, null]}}"#
        ));
        assert_eq!(
            complaint,
            "the body: requires: invalid type: sequence, expected an object (Requires)"
        );
        let draft = format!(
            r#"{{"name": "n", {firmware}, "stages": [{{"ring": "canary", "gate": {{"min_success_percent": 90}}}}]}}"#
        );
        assert!(parse::<CampaignDraft>(draft.as_bytes(), "the body").is_ok());
    }

    #[test]
    fn what_follows_the_value_is_an_error() {
        assert!(
            parse::<u8>(b"1 2", "x")
                .unwrap_err()
                .detail()
                .starts_with("x goes on after its JSON")
        );
    }

    #[test]
    fn only_json_is_taken_for_json() {
        let ok = |kind: &str| {
            check_type(&HeaderMap::from_iter([(
                CONTENT_TYPE,
                kind.parse().unwrap(),
            )]))
            .is_ok()
        };
        assert!(
            ok("application/json")
                && ok("Application/JSON; charset=utf-8")
                && ok("application/x+json")
        );
        assert!(!ok("text/plain") && !ok("application/x-www-form-urlencoded") && !ok(""));
        assert!(check_type(&HeaderMap::new()).is_err());
    }
}
