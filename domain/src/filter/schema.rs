//! How the API's document describes a filter.

use serde_json::json;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    AdditionalProperties, ArrayBuilder, ObjectBuilder, OneOfBuilder, Ref, Schema, SchemaType, Type,
};
use utoipa::{PartialSchema, ToSchema};

use super::Filter;

/// Every operator; which of them fit depends on the field.
const OPS: [&str; 10] = [
    "eq", "ne", "in", "lt", "le", "gt", "ge", "semver", "exists", "prefix",
];

const DESCRIPTION: &str = "Which devices: `all`, `any`, `not`, or a test of one field. Fields: device_id, device_type, device_model, \
    manufacturer, hw_revision, firmware_version (what the device last said, else as registered; compared as semantic versions; \
    `semver` takes a range), groups, tags.<key>, ring (as pinned), last_seen (RFC 3339, or an age such as -1h), battery_percent, \
    free_storage_bytes, online, metrics.<name>. What a device does not have passes no test but `exists` with false. At most 8 \
    levels and 100 tests.";

impl PartialSchema for Filter {
    fn schema() -> RefOr<Schema> {
        let part = || Ref::from_schema_name(Self::name());
        let parts = || ArrayBuilder::new().items(part());
        let of = |name: &str, schema: RefOr<Schema>| {
            closed().property(name, schema).required(name).build()
        };
        let op = ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(OPS));
        let anything = ObjectBuilder::new().schema_type(SchemaType::AnyValue);
        let test = closed()
            .property("field", ObjectBuilder::new().schema_type(Type::String))
            .required("field")
            .property("op", op)
            .required("op")
            .property("value", anything)
            .build();
        let filter = OneOfBuilder::new()
            .item(Schema::Object(of("all", RefOr::T(parts().into()))))
            .item(Schema::Object(of("any", RefOr::T(parts().into()))))
            .item(Schema::Object(of("not", RefOr::Ref(part()))))
            .item(Schema::Object(test))
            .description(Some(DESCRIPTION))
            .examples([json!({"all": [
                {"field": "firmware_version", "op": "semver", "value": ">=1.2, <2"},
                {"not": {"field": "tags.site", "op": "in", "value": ["lab", "showroom"]}},
            ]})]);
        RefOr::T(filter.into())
    }
}

impl ToSchema for Filter {}

/// An object without unknown members.
fn closed() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)))
}
