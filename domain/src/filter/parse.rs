//! From JSON to a filter and back; a refusal names the place, such as `all[1].op`.

use serde_json::{Map, Value, json};

use super::{
    Comparison, Filter, Moment, NumberField, NumberTest, RingTest, Test, TextField, TextTest,
    TimeTest, VersionTest,
};
use crate::device::MAX_TEXT_BYTES;
use crate::ring::Ring;

/// Most levels of a filter, counted from the outermost node.
pub const MAX_DEPTH: usize = 8;
/// Most tests in one filter.
pub const MAX_TESTS: usize = 100;
/// Most values of one `in`.
pub const MAX_VALUES: usize = 100;

/// Why something is no filter, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{problem}", .place, if .place.is_empty() { "" } else { ": " })]
pub struct FilterError {
    /// The node or member, from the outermost node on; empty: that node itself.
    pub place: String,
    /// What is wrong there.
    pub problem: String,
}

impl FilterError {
    /// The same, seen from the body of which the filter is the member `name`.
    #[must_use]
    pub fn within(mut self, name: &str) -> Self {
        let dot = if self.place.is_empty() { "" } else { "." };
        self.place = format!("{name}{dot}{}", self.place);
        self
    }
}

type Parsed<T> = Result<T, FilterError>;

fn wrong<T>(place: &str, problem: impl Into<String>) -> Parsed<T> {
    Err(FilterError {
        place: place.trim_start_matches('.').to_owned(),
        problem: problem.into(),
    })
}

impl Filter {
    /// Reads a filter.
    ///
    /// ```
    /// # use device_ota_domain::filter::Filter;
    /// let json = serde_json::json!({"all": [
    ///     {"field": "firmware_version", "op": "semver", "value": ">=1.2, <2"},
    ///     {"not": {"field": "tags.site", "op": "in", "value": ["lab", "showroom"]}},
    ///     {"field": "last_seen", "op": "ge", "value": "-1h"},
    /// ]});
    /// assert_eq!(Filter::parse(&json).unwrap().to_json(), json);
    /// let wrong = serde_json::json!({"all": [{"field": "online", "op": "prefix", "value": "t"}]});
    /// assert_eq!(
    ///     Filter::parse(&wrong).unwrap_err().to_string(),
    ///     "all[0].op: online takes eq, ne, not \"prefix\""
    /// );
    /// ```
    pub fn parse(json: &Value) -> Parsed<Self> {
        let mut tests = 0;
        node(json, "", 1, &mut tests)
    }

    /// The filter as JSON, as it was given.
    pub fn to_json(&self) -> Value {
        let all = |parts: &[Self]| parts.iter().map(Self::to_json).collect::<Value>();
        match self {
            Self::All(parts) => json!({ "all": all(parts) }),
            Self::Any(parts) => json!({ "any": all(parts) }),
            Self::Not(part) => json!({ "not": part.to_json() }),
            Self::Test(test) => {
                let (field, (op, value)) = shown(test);
                json!({ "field": field, "op": op, "value": value })
            }
        }
    }
}

fn node(json: &Value, place: &str, depth: usize, tests: &mut usize) -> Parsed<Filter> {
    if depth > MAX_DEPTH {
        return wrong(place, format!("a filter has at most {MAX_DEPTH} levels"));
    }
    let Value::Object(members) = json else {
        return wrong(place, "must be an object");
    };
    let mut parts = |name: &str, list: &Value| {
        let place = format!("{place}.{name}");
        let Value::Array(list) = list else {
            return wrong(&place, "must be a list of filters");
        };
        list.iter()
            .enumerate()
            .map(|(index, part)| node(part, &format!("{place}[{index}]"), depth + 1, tests))
            .collect()
    };
    let single = match members.iter().next() {
        Some(only) if members.len() == 1 => Some((only.0.as_str(), only.1)),
        _ => None,
    };
    match single {
        Some(("all", list)) => parts("all", list).map(Filter::All),
        Some(("any", list)) => parts("any", list).map(Filter::Any),
        Some(("not", part)) => {
            let part = node(part, &format!("{place}.not"), depth + 1, tests)?;
            Ok(Filter::Not(Box::new(part)))
        }
        _ => {
            *tests += 1;
            if *tests > MAX_TESTS {
                return wrong(place, format!("a filter has at most {MAX_TESTS} tests"));
            }
            test(members, place).map(Filter::Test)
        }
    }
}

/// One test's members, and where it stands.
struct Given<'j> {
    field: &'j str,
    op: &'j str,
    value: &'j Value,
    place: &'j str,
}

fn test(members: &Map<String, Value>, place: &str) -> Parsed<Test> {
    const FORM: &str =
        "must be {\"all\": […]}, {\"any\": […]}, {\"not\": …} or {\"field\", \"op\", \"value\"}";
    if let Some(unknown) = members
        .keys()
        .find(|name| !["field", "op", "value"].contains(&name.as_str()))
    {
        return wrong(place, format!("{unknown:?} has no place here; it {FORM}"));
    }
    let text = |name: &str| match members.get(name) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => wrong(&format!("{place}.{name}"), "must be a text"),
        None => wrong(place, FORM),
    };
    let given = Given {
        field: text("field")?,
        op: text("op")?,
        value: members.get("value").unwrap_or(&Value::Null),
        place,
    };
    given.test()
}

impl Given<'_> {
    fn test(&self) -> Parsed<Test> {
        if let Some(key) = self.field.strip_prefix("tags.") {
            let field = TextField::Tag(self.member(key)?);
            return Ok(Test::Text(field, self.text_test()?));
        }
        if let Some(name) = self.field.strip_prefix("metrics.") {
            let field = NumberField::Metric(self.member(name)?);
            return Ok(Test::Number(field, self.number_test()?));
        }
        Ok(match self.field {
            "device_id" => Test::Text(TextField::DeviceId, self.text_test()?),
            "device_type" => Test::Text(TextField::DeviceType, self.text_test()?),
            "device_model" => Test::Text(TextField::DeviceModel, self.text_test()?),
            "manufacturer" => Test::Text(TextField::Manufacturer, self.text_test()?),
            "hw_revision" => Test::Text(TextField::HwRevision, self.text_test()?),
            "firmware_version" => Test::Version(self.version_test()?),
            "groups" => Test::Groups(self.text_test()?),
            "ring" => Test::Ring(self.ring_test()?),
            "battery_percent" => Test::Number(NumberField::BatteryPercent, self.number_test()?),
            "free_storage_bytes" => {
                Test::Number(NumberField::FreeStorageBytes, self.number_test()?)
            }
            "last_seen" => Test::LastSeen(self.time_test()?),
            "online" => Test::Online(self.online()?),
            other => {
                return wrong(
                    &format!("{}.field", self.place),
                    format!(
                        "{other:?} is no field; the fields are device_id, device_type, device_model, manufacturer, \
                         hw_revision, firmware_version, groups, tags.<key>, ring, last_seen, battery_percent, \
                         free_storage_bytes, online and metrics.<name>"
                    ),
                );
            }
        })
    }

    fn no_op<T>(&self, ops: &str) -> Parsed<T> {
        let problem = format!("{} takes {ops}, not {:?}", self.field, self.op);
        wrong(&format!("{}.op", self.place), problem)
    }

    fn no_value<T>(&self, wanted: &str) -> Parsed<T> {
        let problem = format!("{} {} needs {wanted}", self.field, self.op);
        wrong(&format!("{}.value", self.place), problem)
    }

    /// The part of a field's name behind its dot.
    fn member(&self, name: &str) -> Parsed<String> {
        if name.is_empty() || name.len() > MAX_TEXT_BYTES || name.chars().any(char::is_control) {
            let problem = format!("a name of 1 to {MAX_TEXT_BYTES} bytes must follow the dot");
            return wrong(&format!("{}.field", self.place), problem);
        }
        Ok(name.to_owned())
    }

    fn text(&self, value: &Value) -> Parsed<String> {
        match value {
            Value::String(text) if text.len() <= MAX_TEXT_BYTES && !text.contains('\0') => {
                Ok(text.clone())
            }
            _ => self.no_value(&format!("text of at most {MAX_TEXT_BYTES} bytes")),
        }
    }

    fn number(&self, value: &Value) -> Parsed<f64> {
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(number),
            _ => self.no_value("numbers"),
        }
    }

    fn ring(&self, value: &Value) -> Parsed<Ring> {
        match value.as_str().and_then(Ring::from_name) {
            Some(ring) => Ok(ring),
            None => self.no_value("canary, early, broad or production"),
        }
    }

    fn list<T>(&self, read: impl Fn(&Value) -> Parsed<T>) -> Parsed<Vec<T>> {
        match self.value {
            Value::Array(values) if (1..=MAX_VALUES).contains(&values.len()) => {
                values.iter().map(read).collect()
            }
            _ => self.no_value(&format!("a list of 1 to {MAX_VALUES} values")),
        }
    }

    /// `exists` is true when no value says otherwise.
    fn exists(&self) -> Parsed<bool> {
        match self.value {
            Value::Null => Ok(true),
            Value::Bool(wanted) => Ok(*wanted),
            _ => self.no_value("true or false"),
        }
    }

    fn text_test(&self) -> Parsed<TextTest> {
        Ok(match self.op {
            "eq" => TextTest::Eq(self.text(self.value)?),
            "ne" => TextTest::Ne(self.text(self.value)?),
            "in" => TextTest::In(self.list(|value| self.text(value))?),
            "prefix" => TextTest::Prefix(self.text(self.value)?),
            "exists" => TextTest::Exists(self.exists()?),
            _ => return self.no_op("eq, ne, in, prefix, exists"),
        })
    }

    fn version_test(&self) -> Parsed<VersionTest> {
        if let Some(comparison) = Comparison::from_name(self.op) {
            let value = self.text(self.value)?;
            let by_order = !matches!(comparison, Comparison::Eq | Comparison::Ne);
            if by_order && semver::Version::parse(&value).is_err() {
                return self.no_value("a semantic version such as 2.1.0");
            }
            return Ok(VersionTest::Is(comparison, value));
        }
        Ok(match self.op {
            "in" => VersionTest::In(self.list(|value| self.text(value))?),
            "prefix" => VersionTest::Prefix(self.text(self.value)?),
            "exists" => VersionTest::Exists(self.exists()?),
            "semver" => match self.text(self.value)?.parse() {
                Ok(range) => VersionTest::Range(range),
                Err(_) => return self.no_value("a range of versions such as \">=1.2, <2\""),
            },
            _ => return self.no_op("eq, ne, in, lt, le, gt, ge, semver, prefix, exists"),
        })
    }

    fn ring_test(&self) -> Parsed<RingTest> {
        Ok(match self.op {
            "eq" => RingTest::In(vec![self.ring(self.value)?]),
            "ne" => RingTest::Ne(self.ring(self.value)?),
            "in" => RingTest::In(self.list(|value| self.ring(value))?),
            "exists" => RingTest::Exists(self.exists()?),
            _ => return self.no_op("eq, ne, in, exists"),
        })
    }

    fn number_test(&self) -> Parsed<NumberTest> {
        if let Some(comparison) = Comparison::from_name(self.op) {
            return Ok(NumberTest::Is(comparison, self.number(self.value)?));
        }
        Ok(match self.op {
            "in" => NumberTest::In(self.list(|value| self.number(value))?),
            "exists" => NumberTest::Exists(self.exists()?),
            _ => return self.no_op("eq, ne, in, lt, le, gt, ge, exists"),
        })
    }

    fn time_test(&self) -> Parsed<TimeTest> {
        match Comparison::from_name(self.op) {
            Some(comparison) if !matches!(comparison, Comparison::Eq | Comparison::Ne) => match self
                .value
                .as_str()
                .and_then(Moment::parse)
            {
                Some(moment) => Ok(TimeTest::Is(comparison, moment)),
                None => self.no_value(
                    "a time such as 2025-12-18T10:00:00Z, or an age such as -90s, -15m, -1h, -7d",
                ),
            },
            None if self.op == "exists" => Ok(TimeTest::Exists(self.exists()?)),
            _ => self.no_op("lt, le, gt, ge, exists"),
        }
    }

    fn online(&self) -> Parsed<bool> {
        let wanted = match self.op {
            "eq" => true,
            "ne" => false,
            _ => return self.no_op("eq, ne"),
        };
        match self.value {
            Value::Bool(value) => Ok(*value == wanted),
            _ => self.no_value("true or false"),
        }
    }
}

/// A test's op and value.
type Shown = (&'static str, Value);

/// A test's field, op and value.
fn shown(test: &Test) -> (String, Shown) {
    match test {
        Test::Text(field, test) => (field.name(), text_shown(test)),
        Test::Version(test) => ("firmware_version".to_owned(), version_shown(test)),
        Test::Groups(test) => ("groups".to_owned(), text_shown(test)),
        Test::Ring(test) => ("ring".to_owned(), ring_shown(test)),
        Test::Number(field, test) => (field.name(), number_shown(test)),
        Test::LastSeen(TimeTest::Is(comparison, moment)) => (
            "last_seen".to_owned(),
            (comparison.name(), json!(moment.to_string())),
        ),
        Test::LastSeen(TimeTest::Exists(wanted)) => {
            ("last_seen".to_owned(), ("exists", json!(wanted)))
        }
        Test::Online(wanted) => ("online".to_owned(), ("eq", json!(wanted))),
    }
}

impl TextField {
    /// The name on the wire.
    pub fn name(&self) -> String {
        match self {
            Self::DeviceId => "device_id".to_owned(),
            Self::DeviceType => "device_type".to_owned(),
            Self::DeviceModel => "device_model".to_owned(),
            Self::Manufacturer => "manufacturer".to_owned(),
            Self::HwRevision => "hw_revision".to_owned(),
            Self::Tag(key) => format!("tags.{key}"),
        }
    }
}

impl NumberField {
    /// The name on the wire.
    pub fn name(&self) -> String {
        match self {
            Self::BatteryPercent => "battery_percent".to_owned(),
            Self::FreeStorageBytes => "free_storage_bytes".to_owned(),
            Self::Metric(name) => format!("metrics.{name}"),
        }
    }
}

fn text_shown(test: &TextTest) -> Shown {
    match test {
        TextTest::Eq(value) => ("eq", json!(value)),
        TextTest::Ne(value) => ("ne", json!(value)),
        TextTest::In(values) => ("in", json!(values)),
        TextTest::Prefix(value) => ("prefix", json!(value)),
        TextTest::Exists(wanted) => ("exists", json!(wanted)),
    }
}

fn version_shown(test: &VersionTest) -> Shown {
    match test {
        VersionTest::Is(comparison, value) => (comparison.name(), json!(value)),
        VersionTest::In(values) => ("in", json!(values)),
        VersionTest::Range(range) => ("semver", json!(range.to_string())),
        VersionTest::Prefix(value) => ("prefix", json!(value)),
        VersionTest::Exists(wanted) => ("exists", json!(wanted)),
    }
}

fn ring_shown(test: &RingTest) -> Shown {
    match test {
        RingTest::In(rings) => match rings.as_slice() {
            [ring] => ("eq", json!(ring)),
            rings => ("in", json!(rings)),
        },
        RingTest::Ne(ring) => ("ne", json!(ring)),
        RingTest::Exists(wanted) => ("exists", json!(wanted)),
    }
}

fn number_shown(test: &NumberTest) -> Shown {
    match test {
        NumberTest::Is(comparison, value) => (comparison.name(), plain(*value)),
        NumberTest::In(values) => {
            let values: Vec<Value> = values.iter().copied().map(plain).collect();
            ("in", json!(values))
        }
        NumberTest::Exists(wanted) => ("exists", json!(wanted)),
    }
}

/// A whole number without a point.
fn plain(value: f64) -> Value {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "checked to be whole and below 2^53"
    )]
    if value.fract() == 0.0 && value.abs() < 9e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}
