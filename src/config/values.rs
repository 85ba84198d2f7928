//! Values as settings write them: each is taken, or refused by the setting's name with what would be taken.

use std::net::SocketAddr;

use device_ota_engine::Rate;

use super::ConfigError;

/// A setting that was looked at.
pub(super) type Checked<T> = Result<T, ConfigError>;

pub(super) fn addr(name: &str, text: &str) -> Checked<SocketAddr> {
    text.parse().map_err(|_| {
        ConfigError::new(
            name,
            format!("{text:?} is no address and port such as 127.0.0.1:8216"),
        )
    })
}

/// An address that paths are put behind, without a slash at its end; `None` when it is none.
pub(super) fn base_url(text: &str) -> Option<String> {
    let http = text.strip_prefix("http://");
    let rest = http.or_else(|| text.strip_prefix("https://"))?;
    let is_url =
        !rest.trim_matches('/').is_empty() && text.is_ascii() && !text.contains([' ', '?', '#']);
    is_url.then(|| text.trim_end_matches('/').to_owned())
}

pub(super) fn number<T>(
    name: &str,
    text: Option<&str>,
    default: T,
    range: std::ops::RangeInclusive<T>,
) -> Checked<T>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let Some(text) = text else { return Ok(default) };
    let (from, to) = (range.start(), range.end());
    let refused = || {
        ConfigError::new(
            name,
            format!("{text:?} is not a number from {from} to {to}"),
        )
    };
    text.parse()
        .ok()
        .filter(|n| range.contains(n))
        .ok_or_else(refused)
}

pub(super) fn flag(name: &str, text: Option<&str>) -> Checked<bool> {
    let Some(text) = text else { return Ok(false) };
    text.parse()
        .map_err(|_| ConfigError::new(name, format!("{text:?} is neither true nor false")))
}

pub(super) fn rate(name: &str, text: Option<&str>, default: &str) -> Checked<Option<Rate>> {
    match text.unwrap_or(default) {
        "off" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            ConfigError::new(
                name,
                format!(
                    "{text:?} is neither `off` nor a rate such as 100/minute, 10/second or 5/hour"
                ),
            )
        }),
    }
}

/// The refusal of a setting that means nothing alone.
pub(super) fn needs(name: &str, other: &str) -> ConfigError {
    ConfigError::new(name, format!("needs {other} beside it"))
}
