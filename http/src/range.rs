//! What of an object is sent: nothing that is known already (RFC 9110, section 13), one range of bytes, or the whole (section 14).

use std::ops::Range;

use http::HeaderMap;
use http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE};

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// 200.
    Whole,
    /// 206.
    Part(Range<u64>),
    /// 416.
    Nothing,
    /// 304: the client has it.
    Known,
    /// 412: the client means another object.
    Other,
}

/// Reads the range of a request for an object of `size` bytes whose strong entity tag is `etag`. What is not one
/// well-formed range of bytes, and a range of another version of the object, is passed over: the whole is sent.
pub(crate) fn wanted(headers: &HeaderMap, size: u64, etag: &str) -> Wanted {
    if names(headers, &IF_MATCH, etag, "") == Some(false) {
        return Wanted::Other;
    }
    if names(headers, &IF_NONE_MATCH, etag, "W/") == Some(true) {
        return Wanted::Known;
    }
    let same = headers
        .get(IF_RANGE)
        .is_none_or(|tag| tag.as_bytes() == etag.as_bytes());
    let mut ranges = headers.get_all(RANGE).iter();
    match (ranges.next(), ranges.next()) {
        (Some(range), None) if same => range
            .to_str()
            .map_or(Wanted::Whole, |text| parse(text, size)),
        _ => Wanted::Whole,
    }
}

/// Whether a condition names this entity tag, also behind a prefix; `None` when there is no such condition.
fn names(headers: &HeaderMap, condition: &HeaderName, etag: &str, prefix: &str) -> Option<bool> {
    let values = headers.get_all(condition).iter();
    let mut tags = values
        .flat_map(|value| value.to_str().unwrap_or_default().split(','))
        .map(str::trim)
        .peekable();
    tags.peek()?;
    Some(tags.any(|tag| tag == "*" || tag.strip_prefix(prefix).unwrap_or(tag) == etag))
}

fn parse(text: &str, size: u64) -> Wanted {
    let bounds = text
        .split_once('=')
        .filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"));
    let Some((first, last)) = bounds.and_then(|(_, set)| set.trim().split_once('-')) else {
        return Wanted::Whole;
    };
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => part(first, last.saturating_add(1), size),
        (Some(first), None) if last.is_empty() => part(first, size, size),
        (None, Some(tail)) if first.is_empty() => part(size.saturating_sub(tail), size, size),
        _ => Wanted::Whole,
    }
}

fn part(first: u64, end: u64, size: u64) -> Wanted {
    let end = end.min(size);
    if first < end {
        Wanted::Part(first..end)
    } else {
        Wanted::Nothing
    }
}

/// Digits only: `u64::from_str` would take a sign. A number beyond the largest is as good as the largest.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_served_and_what_lies_outside_is_not() {
        let cases = [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=0-", Wanted::Part(0..10)),
            ("bytes=9-9", Wanted::Part(9..10)),
            ("bytes=9-100", Wanted::Part(9..10)),
            ("bytes=2-18446744073709551615", Wanted::Part(2..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-99", Wanted::Part(0..10)),
            ("Bytes= 3-4", Wanted::Part(3..5)),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=99999999999999999999-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text, 10), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_single_range_of_bytes_is_passed_over() {
        let odd = [
            "bytes=5-3",
            "bytes=0-1,4-5",
            "items=0-1",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1-x",
            "bytes=+1-2",
            "bytes=0--",
            "0-1",
        ];
        for text in odd {
            assert_eq!(parse(text, 10), Wanted::Whole, "{text}");
        }
    }

    #[test]
    fn what_the_client_has_is_not_sent_and_what_it_does_not_mean_is_refused() {
        let wanted_with = |name: HeaderName, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, "bytes=5-".parse().unwrap());
            headers.insert(name, value.parse().unwrap());
            wanted(&headers, 10, "\"abc\"")
        };
        for known in ["\"abc\"", "W/\"abc\"", "\"x\", \"abc\"", "*"] {
            assert_eq!(wanted_with(IF_NONE_MATCH, known), Wanted::Known, "{known}");
        }
        assert_eq!(wanted_with(IF_NONE_MATCH, "\"x\""), Wanted::Part(5..10));
        for meant in ["\"abc\"", "\"x\",\"abc\"", "*"] {
            assert_eq!(wanted_with(IF_MATCH, meant), Wanted::Part(5..10), "{meant}");
        }
        for other in ["\"x\"", "W/\"abc\"", ""] {
            assert_eq!(wanted_with(IF_MATCH, other), Wanted::Other, "{other}");
        }
    }

    #[test]
    fn a_range_of_another_version_is_not_mixed_into_this_one() {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, "bytes=5-".parse().unwrap());
        assert_eq!(wanted(&headers, 10, "\"abc\""), Wanted::Part(5..10));
        headers.insert(IF_RANGE, "\"abc\"".parse().unwrap());
        assert_eq!(wanted(&headers, 10, "\"abc\""), Wanted::Part(5..10));
        for other in ["\"abd\"", "W/\"abc\"", "Tue, 15 Nov 1994 12:45:26 GMT"] {
            headers.insert(IF_RANGE, other.parse().unwrap());
            assert_eq!(wanted(&headers, 10, "\"abc\""), Wanted::Whole, "{other}");
        }
        headers.remove(IF_RANGE);
        headers.append(RANGE, "bytes=7-".parse().unwrap());
        assert_eq!(
            wanted(&headers, 10, "\"abc\""),
            Wanted::Whole,
            "two Range headers"
        );
    }
}
