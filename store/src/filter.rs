//! From a target filter to a condition in SQL, with every value bound. A condition is never null: what a device does not
//! have passes no test, so that `NOT` turns results round as the domain's `Filter::matches` does.
//!
//! Versions are compared by the domain alone: each version test becomes the list of those versions, of the few that the
//! fleet runs, which pass it.

use device_ota_domain::filter::{
    Comparison, Filter, NumberField, NumberTest, RingTest, Test, TextField, TextTest, TimeTest,
    VersionTest,
};
use device_ota_domain::ring::Ring;
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::sql::Args;

/// What a device runs: what it last said, else as registered.
macro_rules! running {
    () => {
        "COALESCE(l.version, d.firmware_version)"
    };
}
pub(crate) use running;

/// A condition in the making: values are bound as their places are written.
pub(crate) struct Condition<'v, D: Dialect> {
    args: Args<D>,
    bound: usize,
    versions: &'v [String],
    now: Timestamp,
}

impl<'v, D: Dialect> Condition<'v, D> {
    /// Goes on behind `bound` values in `args`. `versions` are those that the fleet runs.
    pub(crate) fn new(args: Args<D>, bound: usize, versions: &'v [String], now: Timestamp) -> Self {
        Self {
            args,
            bound,
            versions,
            now,
        }
    }

    /// All values, in the order of their places.
    pub(crate) fn into_args(self) -> Args<D> {
        self.args
    }

    fn bind(&mut self, add: impl FnOnce(Args<D>) -> Args<D>) -> String {
        self.args = add(std::mem::take(&mut self.args));
        self.bound += 1;
        format!("${}", self.bound)
    }

    /// "`column` is one of these".
    pub(crate) fn one_of(&mut self, column: &str, values: &[&str]) -> String {
        let list = self.bind(|args| args.texts(values));
        format!("{column} {}", D::within(&list))
    }

    /// The condition of a filter.
    pub(crate) fn of(&mut self, filter: &Filter) -> String {
        match filter {
            Filter::All(parts) => self.joined(parts, " AND ", "1 = 1"),
            Filter::Any(parts) => self.joined(parts, " OR ", "1 = 0"),
            Filter::Not(part) => format!("NOT {}", self.of(part)),
            Filter::Test(test) => format!("COALESCE({}, FALSE)", self.test(test)),
        }
    }

    fn joined(&mut self, parts: &[Filter], by: &str, none: &str) -> String {
        let parts: Vec<String> = parts.iter().map(|part| self.of(part)).collect();
        if parts.is_empty() {
            format!("({none})")
        } else {
            format!("({})", parts.join(by))
        }
    }

    fn test(&mut self, test: &Test) -> String {
        match test {
            Test::Text(field, test) => {
                let column = self.text_column(field);
                self.text_test(&column, test)
            }
            Test::Version(test) => self.version_test(test),
            Test::Groups(test) => self.groups_test(test),
            Test::Ring(RingTest::Exists(wanted)) => there("d.ring", *wanted),
            Test::Ring(RingTest::Ne(ring)) => {
                self.text_test("d.ring", &TextTest::Ne(ring.name().to_owned()))
            }
            Test::Ring(RingTest::In(rings)) => {
                let names: Vec<&str> = rings.iter().copied().map(Ring::name).collect();
                self.one_of("d.ring", &names)
            }
            Test::Number(field, test) => {
                let column = self.number_column(field);
                self.number_test(&column, test)
            }
            Test::LastSeen(TimeTest::Exists(wanted)) => there("l.last_seen", *wanted),
            Test::LastSeen(TimeTest::Is(comparison, moment)) => {
                let at = moment.resolve(self.now);
                let at = self.bind(|args| args.time(at));
                format!("l.last_seen {} {at}", sign(*comparison))
            }
            Test::Online(wanted) => {
                let wanted = self.bind(|args| args.flag(*wanted));
                format!("l.online = {wanted}")
            }
        }
    }

    fn text_column(&mut self, field: &TextField) -> String {
        match field {
            TextField::DeviceId => "d.device_id".to_owned(),
            TextField::DeviceType => "d.device_type".to_owned(),
            TextField::DeviceModel => "d.device_model".to_owned(),
            TextField::Manufacturer => "d.manufacturer".to_owned(),
            TextField::HwRevision => "d.hw_revision".to_owned(),
            TextField::Tag(key) => {
                let key = self.bind(|args| args.text(key.as_str()));
                D::member_text("d.tags", &key)
            }
        }
    }

    fn number_column(&mut self, field: &NumberField) -> String {
        match field {
            NumberField::BatteryPercent => "l.battery_percent".to_owned(),
            NumberField::FreeStorageBytes => {
                "CAST(l.free_storage_bytes AS DOUBLE PRECISION)".to_owned()
            }
            NumberField::Metric(name) => {
                let name = self.bind(|args| args.text(name.as_str()));
                D::member_real("l.metrics", &name)
            }
        }
    }

    fn text_test(&mut self, column: &str, test: &TextTest) -> String {
        match test {
            TextTest::Eq(value) => {
                let value = self.bind(|args| args.text(value.as_str()));
                format!("{column} = {value}")
            }
            TextTest::Ne(value) => {
                let value = self.bind(|args| args.text(value.as_str()));
                format!("{column} <> {value}")
            }
            TextTest::In(values) => {
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                self.one_of(column, &values)
            }
            TextTest::Prefix(prefix) => {
                let prefix = self.bind(|args| args.text(prefix.as_str()));
                format!("SUBSTR({column}, 1, LENGTH({prefix})) = {prefix}")
            }
            TextTest::Exists(wanted) => there(column, *wanted),
        }
    }

    fn groups_test(&mut self, test: &TextTest) -> String {
        let (not, inner) = match test {
            TextTest::Ne(value) => (
                "NOT ",
                self.text_test("g.group_name", &TextTest::Eq(value.clone())),
            ),
            TextTest::Exists(true) => ("", "1 = 1".to_owned()),
            TextTest::Exists(false) => ("NOT ", "1 = 1".to_owned()),
            other => ("", self.text_test("g.group_name", other)),
        };
        // One read of the groups for all devices, not one a device.
        format!("{not}(d.device_key IN (SELECT g.device_key FROM device_groups g WHERE {inner}))")
    }

    fn version_test(&mut self, test: &VersionTest) -> String {
        if let VersionTest::Exists(wanted) = test {
            return there(running!(), *wanted);
        }
        let passing = self.versions.iter().map(String::as_str);
        let passing: Vec<&str> = passing.filter(|v| test.passes(Some(v))).collect();
        self.one_of(running!(), &passing)
    }

    fn number_test(&mut self, column: &str, test: &NumberTest) -> String {
        let mut compare = |comparison: Comparison, value: f64| {
            let value = self.bind(|args| args.real(value));
            format!("{column} {} {value}", sign(comparison))
        };
        match test {
            NumberTest::Is(comparison, value) => compare(*comparison, *value),
            NumberTest::In(values) => {
                let each: Vec<String> = values
                    .iter()
                    .map(|value| compare(Comparison::Eq, *value))
                    .collect();
                format!("({})", each.join(" OR "))
            }
            NumberTest::Exists(wanted) => there(column, *wanted),
        }
    }
}

fn there(column: &str, wanted: bool) -> String {
    format!("{column} IS {}NULL", if wanted { "NOT " } else { "" })
}

const fn sign(comparison: Comparison) -> &'static str {
    match comparison {
        Comparison::Eq => "=",
        Comparison::Ne => "<>",
        Comparison::Lt => "<",
        Comparison::Le => "<=",
        Comparison::Gt => ">",
        Comparison::Ge => ">=",
    }
}
