//! The forms that go out, field by field as the PRD names them. They borrow from the domain and decide nothing.

pub(crate) mod audit;
pub(crate) mod campaign;
pub(crate) mod device;
pub(crate) mod firmware;
pub(crate) mod health;
pub(crate) mod heartbeat;
pub(crate) mod key;
pub(crate) mod permit;
pub(crate) mod rollback;
pub(crate) mod statistics;
pub(crate) mod targets;
pub(crate) mod update;
pub(crate) mod webhook;

use device_ota_domain::page::Page;
use http::StatusCode;
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::{Map, Value};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, Object, ObjectBuilder, Ref, Schema, Type};
use utoipa::{IntoParams, ToSchema};
use warp::Reply as _;
use warp::reply::Response;

use self::audit::AuditDto;
use self::campaign::CampaignDto;
use self::device::DeviceDto;
use self::firmware::FirmwareDto;
use self::heartbeat::HeartbeatDto;
use self::key::KeyDto;
use self::permit::PermitDto;
use self::rollback::RollbackDto;
use self::update::UpdateDto;
use self::webhook::{DeadLetterDto, WebhookDto};

/// The filters that a list was asked for, echoed.
pub(crate) type Filters = Map<String, Value>;

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

/// The updates of one device, and how they ended (PRD, E5-US3).
#[derive(Serialize)]
pub(crate) struct History<T: Serialize> {
    #[serde(flatten)]
    pub(crate) list: List<T>,
    pub(crate) success_rate: f64,
}

/// Describes a [`History`].
pub(crate) struct DeviceHistory;

impl utoipa::PartialSchema for DeviceHistory {
    fn schema() -> RefOr<Schema> {
        let mut schema = page("updates", &UpdateDto::name());
        if let RefOr::T(Schema::Object(object)) = &mut schema {
            let text = "Completed updates among those that completed or failed, in percent, all pages counted; 0 before the first";
            let rate = ObjectBuilder::new()
                .schema_type(Type::Number)
                .minimum(Some(0))
                .maximum(Some(100))
                .description(Some(text));
            object
                .properties
                .insert("success_rate".to_owned(), rate.build().into());
            object.required.push("success_rate".to_owned());
        }
        schema
    }
}

impl ToSchema for DeviceHistory {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        UpdateList::schemas(schemas);
    }
}

/// The query parameters of every list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `Query::page` reads")]
pub(crate) struct PageQuery {
    /// Entries at most; default 50.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// Entries passed over first; default 0.
    #[param(maximum = 4_294_967_295_u32)]
    offset: Option<u32>,
}

/// Describes the pages of lists, which name their items at run time.
macro_rules! lists {
    ($($name:ident: $plural:literal of $item:ty;)*) => {$(
        #[doc = concat!("A page of ", $plural, ".")]
        pub(crate) struct $name;

        impl utoipa::PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                page($plural, &<$item as ToSchema>::name())
            }
        }

        impl ToSchema for $name {
            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                let item = <$item as utoipa::PartialSchema>::schema();
                schemas.push((<$item as ToSchema>::name().into_owned(), item));
                <$item as ToSchema>::schemas(schemas);
            }
        }
    )*};
}

lists! {
    FirmwareList: "firmware" of FirmwareDto;
    CampaignList: "campaigns" of CampaignDto;
    CampaignDeviceList: "devices" of UpdateDto;
    DeviceList: "devices" of DeviceDto;
    HeartbeatList: "heartbeats" of HeartbeatDto;
    UpdateList: "updates" of UpdateDto;
    RollbackList: "rollbacks" of RollbackDto;
    KeyList: "keys" of KeyDto;
    PermitList: "permits" of PermitDto;
    WebhookList: "webhooks" of WebhookDto;
    DeadLetterList: "dead_letters" of DeadLetterDto;
    AuditList: "audit" of AuditDto;
}

fn page(plural: &str, item: &str) -> RefOr<Schema> {
    let items = ArrayBuilder::new().items(Ref::from_schema_name(item));
    let number = |text| {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(0))
            .description(Some(text))
    };
    let filters = ObjectBuilder::new().description(Some("The filters as they were taken"));
    let fields = [plural, "count", "limit", "offset", "filters"];
    let object = ObjectBuilder::new()
        .property(plural, items)
        .property("count", number("Entries on this page"))
        .property("limit", number("As asked for"))
        .property("offset", number("As asked for"))
        .property("filters", filters);
    let object = fields.into_iter().fold(object, ObjectBuilder::required);
    RefOr::T(Schema::Object(object.build()))
}

/// To hundredths, so that 33.3… stays readable.
pub(crate) fn round(percent: f64) -> f64 {
    (percent * 100.0).round() / 100.0
}

/// A text that is one of these names.
pub(crate) fn names(names: impl IntoIterator<Item = &'static str>) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(names))
        .build()
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
