//! What all wire types share: enumerations that are plain strings, the largest integer, and
//! encoding to JSON.

use std::fmt;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::{Error, Visitor};

/// The largest integer on the wire: 2^53 − 1, beyond which JSON readers disagree.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// JSON bytes of a message.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("wire types are structs and maps with string keys")
}

/// Deserialises by parsing a string without an intermediate allocation.
pub(crate) struct StrVisitor<T, F> {
    expecting: &'static str,
    parse: F,
    of: PhantomData<T>,
}

impl<T, F: FnOnce(&str) -> Option<T>> StrVisitor<T, F> {
    pub(crate) fn new(expecting: &'static str, parse: F) -> Self {
        Self {
            expecting,
            parse,
            of: PhantomData,
        }
    }
}

impl<T, F: FnOnce(&str) -> Option<T>> Visitor<'_> for StrVisitor<T, F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text)
            .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self.expecting))
    }
}

/// An enumeration whose wire form is one lower-case word a variant. With `else Variant` an unknown
/// word becomes that variant, so that newer peers stay readable; without, it is an error.
macro_rules! wire_enum {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident $(else $fallback:ident)? {
            $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// Every variant, in the order of the protocol.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The variant of a word, or `None` for a word this version does not know.
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_str($crate::wire::StrVisitor::new(
                    concat!("one of: ", $($text, " ",)+),
                    |word| Self::parse(word)$(.or(Some(Self::$fallback)))?,
                ))
            }
        }
    };
}
pub(crate) use wire_enum;

wire_enum! {
    /// One of a device's two places for an image.
    pub enum Slot {
        /// Slot A.
        A = "a",
        /// Slot B.
        B = "b",
    }
}

impl Slot {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}
