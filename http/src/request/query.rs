//! Query parameters: each is known, given once, and of its form, or the answer is 400 and names it.

use std::ops::RangeInclusive;
use std::str::FromStr;

use device_ota_domain::page::{DEFAULT_LIMIT, MAX_LIMIT, Page};
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::errors::ApiError;

/// Most parameters of one request.
const MAX_PARAMETERS: usize = 32;
/// Longest piece of a refused text that an error repeats, in characters.
const MAX_SHOWN: usize = 64;

/// Parameters that nobody has asked for yet, and those that were taken as filters.
#[derive(Debug)]
pub(crate) struct Query {
    left: Vec<(String, String)>,
    filters: Map<String, Value>,
}

impl Query {
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        let left: Vec<(String, String)> = form_urlencoded::parse(text.as_bytes())
            .into_owned()
            .take(MAX_PARAMETERS + 1)
            .collect();
        if left.len() > MAX_PARAMETERS {
            return Err(wrong(format!(
                "at most {MAX_PARAMETERS} query parameters are taken"
            )));
        }
        Ok(Self {
            left,
            filters: Map::new(),
        })
    }

    /// `limit` (1 to 200) and `offset`.
    pub(crate) fn page(&mut self) -> Result<Page, ApiError> {
        let limit = self.number("limit", 1..=MAX_LIMIT)?;
        let offset = self.number("offset", 0..=u32::MAX)?;
        Page::new(limit.unwrap_or(DEFAULT_LIMIT), offset.unwrap_or(0))
            .ok_or_else(|| wrong(format!("limit must be 1 to {MAX_LIMIT}")))
    }

    /// A filter that is any text without control characters, which nothing is called by and no database has to take.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        let text = self.take(name)?;
        if text
            .as_deref()
            .is_some_and(|text| text.contains(char::is_control))
        {
            return Err(wrong(format!("{name} must hold no control characters")));
        }
        if let Some(text) = &text {
            self.filters
                .insert(name.to_owned(), Value::String(text.clone()));
        }
        Ok(text)
    }

    /// A filter that is `true` or `false`.
    pub(crate) fn flag(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        let Some(text) = self.take(name)? else {
            return Ok(None);
        };
        let flag = text
            .parse()
            .map_err(|_| wrong(format!("{name} must be true or false, not {text:?}")))?;
        self.filters.insert(name.to_owned(), Value::Bool(flag));
        Ok(Some(flag))
    }

    /// A filter that is an id.
    pub(crate) fn id<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, ApiError> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|error: T::Err| wrong(error.to_string()))
    }

    /// A filter that is a time, RFC 3339.
    pub(crate) fn time(&mut self, name: &'static str) -> Result<Option<Timestamp>, ApiError> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            wrong(format!(
                "{name} must be a time such as 2026-01-02T03:04:05Z, not {text:?}"
            ))
        })
    }

    /// A whole number of percent.
    pub(crate) fn percent(&mut self, name: &'static str) -> Result<Option<u32>, ApiError> {
        self.number(name, 0..=100)
    }

    /// A filter that is one of a few names.
    pub(crate) fn one_of<T: Copy>(
        &mut self,
        name: &'static str,
        values: &[(&str, T)],
    ) -> Result<Option<T>, ApiError> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let found = values
            .iter()
            .find(|(known, _)| *known == text)
            .map(|(_, value)| *value);
        found.map(Some).ok_or_else(|| {
            let known: Vec<&str> = values.iter().map(|(known, _)| *known).collect();
            wrong(format!(
                "{name} must be one of {}, not {text:?}",
                known.join(", ")
            ))
        })
    }

    /// Nothing may be left over. Answers the filters, as lists show them.
    pub(crate) fn done(self) -> Result<Map<String, Value>, ApiError> {
        match self.left.first() {
            Some((name, _)) => Err(wrong(format!(
                "{name:?} is not a query parameter of this path"
            ))),
            None => Ok(self.filters),
        }
    }

    fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, ApiError> {
        let Some(text) = self.take(name)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let (least, most) = range.into_inner();
                let shown: String = text.chars().take(MAX_SHOWN).collect();
                Err(wrong(format!(
                    "{name} must be a whole number from {least} to {most}, not {shown:?}"
                )))
            }
        }
    }

    fn take(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        let Some(place) = self.left.iter().position(|(given, _)| given == name) else {
            return Ok(None);
        };
        let (_, value) = self.left.swap_remove(place);
        if self.left.iter().any(|(given, _)| given == name) {
            return Err(wrong(format!("{name} is given more than once")));
        }
        Ok(Some(value))
    }
}

fn wrong(detail: String) -> ApiError {
    ApiError::invalid("invalid_query", detail)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn page(text: &str) -> Result<Page, String> {
        let mut query = Query::parse(text).unwrap();
        let page = query.page().and_then(|page| query.done().map(|_| page));
        page.map_err(|error| error.detail().to_owned())
    }

    #[test]
    fn a_text_holds_no_control_characters() {
        let text = |query| Query::parse(query).unwrap().text("group");
        assert_eq!(text("group=a%20b").unwrap().as_deref(), Some("a b"));
        for query in ["group=%00", "group=a%0Ab"] {
            let error = text(query).unwrap_err();
            assert_eq!(error.detail(), "group must hold no control characters");
        }
    }

    #[test]
    fn a_page_has_its_bounds() {
        assert_eq!(
            page("").unwrap(),
            Page {
                limit: 50,
                offset: 0
            }
        );
        assert_eq!(
            page("limit=200&offset=7").unwrap(),
            Page {
                limit: 200,
                offset: 7
            }
        );
        assert_eq!(
            page("limit=0").unwrap_err(),
            "limit must be a whole number from 1 to 200, not \"0\""
        );
        assert_eq!(
            page("limit=201").unwrap_err(),
            "limit must be a whole number from 1 to 200, not \"201\""
        );
        assert_eq!(
            page("offset=-1").unwrap_err(),
            "offset must be a whole number from 0 to 4294967295, not \"-1\""
        );
        assert_eq!(
            page("limit=1&limit=2").unwrap_err(),
            "limit is given more than once"
        );
    }

    #[test]
    fn an_unknown_parameter_is_named() {
        assert_eq!(
            page("limit=1&colour=red").unwrap_err(),
            "\"colour\" is not a query parameter of this path"
        );
    }

    #[test]
    fn filters_are_echoed_in_their_own_type() {
        let mut query = Query::parse("device_model=SF%20100&is_beta=false&state=failed").unwrap();
        assert_eq!(query.text("device_model").unwrap().unwrap(), "SF 100");
        assert_eq!(query.flag("is_beta").unwrap(), Some(false));
        assert_eq!(
            query
                .one_of("state", &[("pending", 1), ("failed", 2)])
                .unwrap(),
            Some(2)
        );
        let filters = serde_json::to_string(&query.done().unwrap()).unwrap();
        insta::assert_snapshot!(filters, @r#"{"device_model":"SF 100","is_beta":false,"state":"failed"}"#);
    }

    #[test]
    fn a_value_of_the_wrong_form_is_told_what_is_right() {
        let mut query = Query::parse("is_beta=yes&state=odd&from=noon&low=101").unwrap();
        assert_eq!(
            query.time("from").unwrap_err().detail(),
            "from must be a time such as 2026-01-02T03:04:05Z, not \"noon\""
        );
        assert_eq!(
            query.percent("low").unwrap_err().detail(),
            "low must be a whole number from 0 to 100, not \"101\""
        );
        assert_eq!(
            query.flag("is_beta").unwrap_err().detail(),
            "is_beta must be true or false, not \"yes\""
        );
        let error = query
            .one_of("state", &[("pending", 1), ("failed", 2)])
            .unwrap_err();
        assert_eq!(
            error.detail(),
            "state must be one of pending, failed, not \"odd\""
        );
    }
}
