//! Values as settings write them: each is taken, or refused by the setting's name with what would be taken.

use std::net::SocketAddr;

use device_ota_engine::Rate;
use url::Url;

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
    // A parser passes over some of these, and whoever puts a path behind them would not.
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic())
        && !text.contains(['?', '#', '\\'])
        && !rest.starts_with('/');
    let is_url = is_plain && Url::parse(text).is_ok_and(|url| url.has_host());
    is_url.then(|| text.trim_end_matches('/').to_owned())
}

/// Whether an address holds a user or a password.
pub(super) fn has_credentials(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| !url.username().is_empty() || url.password().is_some())
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
