//! Settings of the services around: where they are.

use super::raw::RawConfig;
use super::values::{Checked, base_url, has_credentials};
use super::{ConfigError, ConsulSettings, Secret};

/// The Auth Service.
pub(super) fn auth(raw: &RawConfig) -> Checked<Option<Secret>> {
    url("AUTH_SERVICE_URL", raw.auth_service_url.as_deref())
}

/// The Device Service.
pub(super) fn devices(raw: &RawConfig) -> Checked<Option<Secret>> {
    url("DEVICE_SERVICE_URL", raw.device_service_url.as_deref())
}

/// Consul.
pub(super) fn consul(raw: &RawConfig) -> Checked<Option<ConsulSettings>> {
    let advertise_url = advertised(raw)?;
    let Some(url) = url("CONSUL_URL", raw.consul_url.as_deref())? else {
        let beside = [
            ("CONSUL_TOKEN", raw.consul_token.is_some()),
            ("CONSUL_ADVERTISE_URL", advertise_url.is_some()),
        ];
        return match beside.into_iter().find(|(_, is_set)| *is_set) {
            Some((name, _)) => Err(ConfigError::new(name, "needs CONSUL_URL beside it")),
            None => Ok(None),
        };
    };
    Ok(Some(ConsulSettings {
        url,
        token: token(raw)?,
        advertise_url,
    }))
}

/// What everybody is told of must not open anything.
fn advertised(raw: &RawConfig) -> Checked<Option<String>> {
    let name = "CONSUL_ADVERTISE_URL";
    let advertised = url(name, raw.consul_advertise_url.as_deref())?;
    match advertised {
        Some(Secret(url)) if has_credentials(&url) => Err(ConfigError::new(
            name,
            "must name no user and no password: everybody is told of it",
        )),
        advertised => Ok(advertised.map(|Secret(url)| url)),
    }
}

/// It goes into a header. Nothing is cut off it: what was not meant to be there is told instead.
fn token(raw: &RawConfig) -> Checked<Option<Secret>> {
    let Some(token) = &raw.consul_token else {
        return Ok(None);
    };
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ConfigError::new(
            "CONSUL_TOKEN",
            "must be visible ASCII characters alone, without a space or a newline at its end",
        ));
    }
    Ok(Some(Secret(token.clone())))
}

/// What of it is a password is nobody's business.
fn url(name: &str, text: Option<&str>) -> Checked<Option<Secret>> {
    let checked = text.map(|text| {
        base_url(text).map(Secret).ok_or_else(|| {
            ConfigError::new(
                name,
                "must be an address such as http://host:port, or https://…",
            )
        })
    });
    checked.transpose()
}
