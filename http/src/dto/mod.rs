//! The forms that go out, field by field as the PRD names them. They borrow from the domain and decide nothing.

pub(crate) mod campaign;
pub(crate) mod device;
pub(crate) mod firmware;
pub(crate) mod rollback;
pub(crate) mod update;

use device_ota_domain::page::Page;
use http::StatusCode;
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::{Map, Value};
use warp::Reply as _;
use warp::reply::Response;

/// 200 with a body.
pub(crate) fn ok(body: &impl Serialize) -> Response {
    warp::reply::json(body).into_response()
}

/// 201 with a body.
pub(crate) fn created(body: &impl Serialize) -> Response {
    let mut response = ok(body);
    *response.status_mut() = StatusCode::CREATED;
    response
}

/// A page of a list: `{"<plural>": […], "count", "limit", "offset", "filters"}` (PRD, *Pagination Response*).
pub(crate) struct List<T> {
    pub(crate) plural: &'static str,
    pub(crate) items: Vec<T>,
    pub(crate) page: Page,
    pub(crate) filters: Map<String, Value>,
}

impl<T: Serialize> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(5))?;
        map.serialize_entry(self.plural, &self.items)?;
        map.serialize_entry("count", &self.items.len())?;
        map.serialize_entry("limit", &self.page.limit)?;
        map.serialize_entry("offset", &self.page.offset)?;
        map.serialize_entry("filters", &self.filters)?;
        map.end()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_what_part_of_it_this_is() {
        let filters = Map::from_iter([("is_beta".to_owned(), Value::Bool(false))]);
        let list = List {
            plural: "firmware",
            items: vec![1, 2],
            page: Page {
                limit: 2,
                offset: 4,
            },
            filters,
        };
        insta::assert_snapshot!(
            serde_json::to_string(&list).unwrap(),
            @r#"{"firmware":[1,2],"count":2,"limit":2,"offset":4,"filters":{"is_beta":false}}"#
        );
    }
}
