//! Changes field by field: what is left out stays as it is, `null` clears.

use serde::{Deserialize, Deserializer};

/// A field that is there, `null` or not.
pub(crate) fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    field: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

/// Sets a field to what was given, if anything was.
pub(crate) fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}
