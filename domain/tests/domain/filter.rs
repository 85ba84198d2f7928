//! Target filters: what is taken, and the place and text of each refusal.

use device_ota_domain::filter::{Filter, MAX_DEPTH, MAX_TESTS};
use serde_json::{Value, json};

use crate::sample::draft;

fn refused(filter: &Value, text: &str) {
    let draft = draft(&json!({ "target_filters": filter }));
    let error = draft
        .into_spec(20.0, 0, device_ota_domain::ring::Shares::default())
        .unwrap_err()
        .to_string();
    assert_eq!(error, text, "{filter}");
}

fn test(field: &str, op: &str, value: &Value) -> Value {
    json!({ "field": field, "op": op, "value": value })
}

#[test]
fn what_was_given_is_what_is_shown() {
    let given = json!({"any": [
        test("device_id", "prefix", &json!("frame-")),
        test("firmware_version", "semver", &json!(">=1.2, <2")),
        test("firmware_version", "lt", &json!("2.1.0")),
        test("groups", "in", &json!(["lobby", "beta"])),
        test("tags.site", "ne", &json!("lab")),
        test("ring", "eq", &json!("canary")),
        test("battery_percent", "ge", &json!(20)),
        test("metrics.co2 ppm", "in", &json!([0.5, 1])),
        test("last_seen", "ge", &json!("-36h")),
        test("last_seen", "lt", &json!("2025-12-18T10:00:00Z")),
        test("online", "eq", &json!(false)),
        {"not": {"all": [test("hw_revision", "exists", &json!(true))]}},
    ]});
    let filter = Filter::parse(&given).unwrap();
    assert_eq!(filter.to_json(), given);
    assert_eq!(filter.tests().len(), 12);
    let stored = serde_json::to_string(&filter).unwrap();
    assert_eq!(serde_json::from_str::<Filter>(&stored).unwrap(), filter);
    let spec = draft(&json!({ "target_filters": given }))
        .into_spec(20.0, 0, device_ota_domain::ring::Shares::default())
        .unwrap();
    assert_eq!(spec.targets.filter, Some(filter));
}

#[test]
fn a_refusal_names_the_place() {
    let form =
        "must be {\"all\": […]}, {\"any\": […]}, {\"not\": …} or {\"field\", \"op\", \"value\"}";
    refused(&json!(5), "target_filters: must be an object");
    refused(&json!({}), &format!("target_filters: {form}"));
    refused(
        &json!({"all": {}}),
        "target_filters.all: must be a list of filters",
    );
    refused(
        &json!({"all": [], "any": []}),
        &format!("target_filters: \"all\" has no place here; it {form}"),
    );
    refused(
        &json!({"all": [test("online", "eq", &json!(true)), {"not": test("ring", "prefix", &json!("c"))}]}),
        "target_filters.all[1].not.op: ring takes eq, ne, in, exists, not \"prefix\"",
    );
    refused(
        &test("colour", "eq", &json!("red")),
        "target_filters.field: \"colour\" is no field; the fields are device_id, device_type, device_model, manufacturer, \
         hw_revision, firmware_version, groups, tags.<key>, ring, last_seen, battery_percent, free_storage_bytes, online \
         and metrics.<name>",
    );
    refused(
        &test("tags.", "eq", &json!("x")),
        "target_filters.field: a name of 1 to 128 bytes must follow the dot",
    );
}

#[test]
fn a_value_must_fit_the_field_and_the_op() {
    for (field, op, value, text) in [
        (
            "device_model",
            "eq",
            json!(5),
            "device_model eq needs text of at most 128 bytes",
        ),
        (
            "device_model",
            "in",
            json!("x"),
            "device_model in needs a list of 1 to 100 values",
        ),
        (
            "groups",
            "in",
            json!([]),
            "groups in needs a list of 1 to 100 values",
        ),
        (
            "firmware_version",
            "lt",
            json!("two"),
            "firmware_version lt needs a semantic version such as 2.1.0",
        ),
        (
            "firmware_version",
            "semver",
            json!("new"),
            "firmware_version semver needs a range of versions such as \">=1.2, <2\"",
        ),
        (
            "ring",
            "eq",
            json!("first"),
            "ring eq needs canary, early, broad or production",
        ),
        (
            "battery_percent",
            "ge",
            json!("20"),
            "battery_percent ge needs numbers",
        ),
        (
            "metrics.x",
            "in",
            json!([1, null]),
            "metrics.x in needs numbers",
        ),
        (
            "last_seen",
            "ge",
            json!("1h"),
            "last_seen ge needs a time such as 2025-12-18T10:00:00Z, or an age such as -90s, -15m, -1h, -7d",
        ),
        (
            "online",
            "eq",
            json!("yes"),
            "online eq needs true or false",
        ),
        (
            "tags.site",
            "exists",
            json!("yes"),
            "tags.site exists needs true or false",
        ),
    ] {
        refused(
            &test(field, op, &value),
            &format!("target_filters.value: {text}"),
        );
    }
}

#[test]
fn depth_and_size_are_bounded() {
    let leaf = test("online", "eq", &json!(true));
    let deep = |levels: usize| (1..levels).fold(leaf.clone(), |part, _| json!({ "not": part }));
    assert!(Filter::parse(&deep(MAX_DEPTH)).is_ok());
    refused(
        &deep(MAX_DEPTH + 1),
        "target_filters.not.not.not.not.not.not.not.not: a filter has at most 8 levels",
    );
    let wide = |tests: usize| json!({ "any": vec![leaf.clone(); tests] });
    assert!(Filter::parse(&wide(MAX_TESTS)).is_ok());
    refused(
        &wide(MAX_TESTS + 1),
        "target_filters.any[100]: a filter has at most 100 tests",
    );
}
