//! Which names an object may have.

/// Digits of a SHA-256 in hex.
const NAME_DIGITS: usize = 64;

/// Whether it is a SHA-256 in lower-case hex, so that no name leads anywhere else.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() == NAME_DIGITS && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
