//! JSON bodies: the right content type, a bound on their size, and errors that name the field.

mod fault;
mod strict;
mod whole;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;

use self::strict::Strict;
use self::whole::Whole;
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

/// Reads JSON; `what` names it in the error, which names the field, or where the text is no JSON the line and the column.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let Whole(value) =
        serde_path_to_error::deserialize(&mut reader).map_err(|error| no_json(what, &error))?;
    reader
        .end()
        .map_err(|error| invalid(format!("{what} goes on after its JSON: {error}")))?;
    from_value(value, what)
}

/// Reads a value that was JSON already.
pub(crate) fn from_value<T: DeserializeOwned>(
    value: serde_json::Value,
    what: &str,
) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(Strict(value))
        .map_err(|error| misplaced(what, error.path(), error.inner()))
}

/// What is wrong with the text itself.
fn no_json(what: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let inner = error.inner();
    let text = inner.to_string();
    // Both are JSON; serde_json tells them apart by its words alone.
    let too_much = ["number out of range", "recursion limit exceeded"];
    if inner.is_data() {
        misplaced(what, error.path(), &text)
    } else if text.starts_with(too_much[0]) {
        let told = "a number is too large to be taken: none is above 1.7e308";
        misplaced(what, error.path(), &told)
    } else if text.starts_with(too_much[1]) {
        invalid(format!(
            "{what} is nested too deeply: at most 127 levels are taken"
        ))
    } else {
        invalid(format!("{what} is not valid JSON: {text}"))
    }
}

/// What is wrong at a place.
fn misplaced(
    what: &str,
    path: &serde_path_to_error::Path,
    told: &dyn std::fmt::Display,
) -> ApiError {
    match path.to_string().as_str() {
        "." | "?" => invalid(format!("{what} is not as it should be: {told}")),
        path => invalid(format!("{what}: {path}: {told}")),
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
            @"the body: name: must be a text, not 5"
        );
        insta::assert_snapshot!(
            complaint(r#"{"name": "x"}"#),
            @"the body is not as it should be: missing field `firmware_id`"
        );
        insta::assert_snapshot!(
            complaint(r#"{"stages": [{"ring": "canary"}, {"gate": {"min_samples": -1}}]}"#),
            @"the body: stages[1].gate.min_samples: must be a whole number from 0 to 18446744073709551615, not -1"
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
            "the body: requires: must be an object, not a list"
        );
        let draft = format!(
            r#"{{"name": "n", {firmware}, "stages": [{{"ring": "canary", "gate": {{"min_success_percent": 90}}}}]}}"#
        );
        assert!(parse::<CampaignDraft>(draft.as_bytes(), "the body").is_ok());
    }

    #[test]
    fn an_error_names_what_is_taken_and_no_type_of_the_code() {
        for (text, told) in [
            (
                r#"{"max_retries": 5000000000}"#,
                "max_retries: must be a whole number from 0 to 4294967295, not 5000000000",
            ),
            (
                r#"{"max_retries": 1e30}"#,
                "max_retries: must be a whole number from 0 to 4294967295, not 1e30",
            ),
            (
                r#"{"max_retries": 1.5}"#,
                "max_retries: must be a whole number from 0 to 4294967295, not 1.5",
            ),
            (
                r#"{"max_retries": 1e999}"#,
                "max_retries: a number is too large to be taken: none is above 1.7e308",
            ),
            (r#"{"requires": 7}"#, "requires: must be an object, not 7"),
            (
                r#"{"target_devices": {}}"#,
                "target_devices: must be a list, not an object",
            ),
            (
                r#"{"requires_approval": "yes"}"#,
                "requires_approval: must be true or false, not \"yes\"",
            ),
            (
                r#"{"deployment_strategy": "fast"}"#,
                "deployment_strategy: must be one of immediate, scheduled, staged, canary, blue_green, not \"fast\"",
            ),
            (
                r#"{"deployment_strategy": 1}"#,
                "deployment_strategy: must be one of immediate, scheduled, staged, canary, blue_green",
            ),
            (
                r#"{"schedule": {"start_at": "+999999-01-01T00:00:00Z"}}"#,
                "schedule.start_at: must be a time such as 2026-01-02T03:04:05Z (of the years -9999 to 9999), not \"+999999-01-01T00:00:00Z\"",
            ),
            (
                r#"{"schedule": {"start_at": "soon"}}"#,
                "schedule.start_at: must be a time such as 2026-01-02T03:04:05Z (of the years -9999 to 9999), not \"soon\"",
            ),
            (
                r#"{"schedule": {"start_at": 17}}"#,
                "schedule.start_at: must be a time such as 2026-01-02T03:04:05Z (of the years -9999 to 9999), not 17",
            ),
        ] {
            assert_eq!(complaint(text), format!("the body: {told}"), "{text}");
        }
        let deep = "[".repeat(200);
        let told = "the body is nested too deeply: at most 127 levels are taken";
        assert_eq!(complaint(&deep), told);
        let plain = |text: &str| parse::<u8>(text.as_bytes(), "x").unwrap_err();
        assert_eq!(
            plain("300").detail(),
            "x is not as it should be: must be a whole number from 0 to 255, not 300"
        );
    }

    #[test]
    fn nothing_is_no_object() {
        let map = parse::<serde_json::Map<String, serde_json::Value>>(b"null", "the body");
        assert_eq!(
            map.unwrap_err().detail(),
            "the body is not as it should be: must be an object, not null"
        );
    }

    #[test]
    fn no_name_stands_twice() {
        let twice = r#"{"a": 1, "b": [{"c": 2, "d": 3, "c": 4}]}"#;
        let error = parse::<serde_json::Value>(twice.as_bytes(), "the body").unwrap_err();
        insta::assert_snapshot!(error.detail(), @r#"the body: b[0]: the name "c" stands twice in one object at line 1 column 35"#);
        let twice = r#"{"name": "n", "tags": {}, "name": "m"}"#;
        insta::assert_snapshot!(complaint(twice), @r#"the body is not as it should be: the name "name" stands twice in one object at line 1 column 32"#);
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
