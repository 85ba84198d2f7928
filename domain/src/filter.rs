//! Target filters: which devices a campaign means, as a small typed language in JSON.
//!
//! A node is `{"all": […]}`, `{"any": […]}`, `{"not": …}`, or a test `{"field", "op", "value"}`. It is read once, by
//! [`Filter::parse`], into a tree in which every test fits its field. A value that a device does not have passes no test
//! but `exists` with `false`; `not` turns a result round, whatever it came from.
//!
//! # How to add a field
//! A variant in the field type of its kind ([`TextField`], [`NumberField`]) with its name, its value in `facts`, and its
//! column in the store; or, for a new kind, a variant of [`Test`]. The property tests find out when the two ends differ.

mod facts;
mod parse;
mod schema;
mod value;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use parse::{FilterError, MAX_DEPTH, MAX_TESTS, MAX_VALUES};
pub use value::{Moment, VersionTest};

use crate::ring::Ring;

/// A filter, or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// Every part passes; without parts: everybody.
    All(Vec<Self>),
    /// At least one part passes; without parts: nobody.
    Any(Vec<Self>),
    /// The part does not pass.
    Not(Box<Self>),
    /// One value of the device is tested.
    Test(Test),
}

/// A test of one value; each kind of field has the tests that make sense for it.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// A plain text, compared byte by byte.
    Text(TextField, TextTest),
    /// The running version: what the device last said, else as registered. Compared as semantic versions.
    Version(VersionTest),
    /// The groups: a test passes when one of them does (`ne`: when none is it).
    Groups(TextTest),
    /// The ring that the device is pinned to.
    Ring(RingTest),
    /// A number.
    Number(NumberField, NumberTest),
    /// When the device was last heard.
    LastSeen(TimeTest),
    /// Whether it is connected.
    Online(bool),
}

/// Fields that are plain text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextField {
    /// `device_id`
    DeviceId,
    /// `device_type`
    DeviceType,
    /// `device_model`
    DeviceModel,
    /// `manufacturer`
    Manufacturer,
    /// `hw_revision`
    HwRevision,
    /// `tags.<key>`
    Tag(String),
}

/// Fields that are numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NumberField {
    /// `battery_percent`, as last said.
    BatteryPercent,
    /// `free_storage_bytes`, as last said.
    FreeStorageBytes,
    /// `metrics.<name>` of the last heartbeat that had metrics.
    Metric(String),
}

/// How a text is tested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextTest {
    /// It is this.
    Eq(String),
    /// It is there and is not this.
    Ne(String),
    /// It is one of these.
    In(Vec<String>),
    /// It begins with this.
    Prefix(String),
    /// It is there, or it is not.
    Exists(bool),
}

/// How a pinned ring is tested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RingTest {
    /// It is one of these.
    In(Vec<Ring>),
    /// It is there and is not this.
    Ne(Ring),
    /// It is pinned, or it is not.
    Exists(bool),
}

/// How a number is tested.
#[derive(Debug, Clone, PartialEq)]
pub enum NumberTest {
    /// It is there and compares so with this.
    Is(Comparison, f64),
    /// It is one of these.
    In(Vec<f64>),
    /// It is there, or it is not.
    Exists(bool),
}

/// How a time is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeTest {
    /// It is there and compares so with this moment.
    Is(Comparison, Moment),
    /// It is there, or it is not.
    Exists(bool),
}

/// How two values of one kind compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `eq`
    Eq,
    /// `ne`
    Ne,
    /// `lt`
    Lt,
    /// `le`
    Le,
    /// `gt`
    Gt,
    /// `ge`
    Ge,
}

impl Comparison {
    /// All, by name.
    pub const ALL: [Self; 6] = [Self::Eq, Self::Ne, Self::Lt, Self::Le, Self::Gt, Self::Ge];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Ne => "ne",
            Self::Lt => "lt",
            Self::Le => "le",
            Self::Gt => "gt",
            Self::Ge => "ge",
        }
    }

    /// The comparison of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// Whether two values that stand in this order to each other compare so.
    pub fn holds(self, order: std::cmp::Ordering) -> bool {
        match self {
            Self::Eq => order.is_eq(),
            Self::Ne => order.is_ne(),
            Self::Lt => order.is_lt(),
            Self::Le => order.is_le(),
            Self::Gt => order.is_gt(),
            Self::Ge => order.is_ge(),
        }
    }
}

impl Filter {
    /// Every test of the filter, in reading order.
    pub fn tests(&self) -> Vec<&Test> {
        match self {
            Self::All(parts) | Self::Any(parts) => parts.iter().flat_map(Self::tests).collect(),
            Self::Not(part) => part.tests(),
            Self::Test(test) => vec![test],
        }
    }
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = serde_json::Value::deserialize(deserializer)?;
        Self::parse(&json).map_err(serde::de::Error::custom)
    }
}
