//! What is wrong with a value, in the words of whoever sent it: what was given, and what is taken; never a type of the code.

use std::fmt::Display;

use serde::de::{Error, Expected, Unexpected};

/// Longest piece of a refused text that an error repeats, in characters.
const SHOWN: usize = 64;

/// What jiff calls a time, of which it tells more than anybody wants to know.
pub(super) const TIME: &str = "a timestamp string";

/// What is wrong with a value.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Fault(String);

impl Fault {
    /// It is none of these names.
    pub(super) fn one_of(names: &[&str]) -> Self {
        Self(format!("must be {}", any_of(names)))
    }
}

impl Error for Fault {
    fn custom<T: Display>(text: T) -> Self {
        Self(text.to_string())
    }

    fn invalid_type(given: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        let (wanted, given) = (in_words(&wanted.to_string()), shown(given));
        Self(format!("must be {wanted}, not {given}"))
    }

    fn invalid_value(given: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::invalid_type(given, wanted)
    }

    fn invalid_length(length: usize, wanted: &dyn Expected) -> Self {
        let wanted = in_words(&wanted.to_string());
        Self(format!("must be {wanted}, not {length} values"))
    }

    fn unknown_variant(given: &str, names: &'static [&'static str]) -> Self {
        let given = shown(Unexpected::Str(given));
        Self(format!("must be {}, not {given}", any_of(names)))
    }
}

fn any_of(names: &[&str]) -> String {
    match names {
        [only] => format!("{only:?}"),
        names => format!("one of {}", names.join(", ")),
    }
}

/// What a reader of serde's or of a library expects, without the names of its types.
fn in_words(wanted: &str) -> String {
    fn whole<T: Display>(least: T, most: T) -> String {
        format!("a whole number from {least} to {most}")
    }
    match wanted {
        "u8" => whole(u8::MIN, u8::MAX),
        "u16" => whole(u16::MIN, u16::MAX),
        "u32" => whole(u32::MIN, u32::MAX),
        "u64" | "usize" => whole(u64::MIN, u64::MAX),
        "i8" => whole(i8::MIN, i8::MAX),
        "i16" => whole(i16::MIN, i16::MAX),
        "i32" => whole(i32::MIN, i32::MAX),
        "i64" | "isize" => whole(i64::MIN, i64::MAX),
        TIME => "a time such as 2026-01-02T03:04:05Z (of the years -9999 to 9999)".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" | "a borrowed string" | "variant identifier" | "field identifier" => {
            "a text".to_owned()
        }
        "a sequence" => "a list".to_owned(),
        "unit" => "null".to_owned(),
        "a map" => "an object".to_owned(),
        other if other.starts_with("struct ") || other.contains("tagged enum") => {
            "an object".to_owned()
        }
        other => other.to_owned(),
    }
}

fn shown(given: Unexpected<'_>) -> String {
    match given {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(number) => number.to_string(),
        Unexpected::Signed(number) => number.to_string(),
        // Beyond that a float's digits say nothing, and may be hundreds.
        Unexpected::Float(number) if number.abs() >= 1e21 => format!("{number:e}"),
        Unexpected::Float(number) => number.to_string(),
        Unexpected::Str(text) => format!("{:?}", text.chars().take(SHOWN).collect::<String>()),
        Unexpected::Unit | Unexpected::Option => "null".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "an object".to_owned(),
        other => other.to_string(),
    }
}
