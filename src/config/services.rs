//! Settings of the services around: where they are.

use super::raw::RawConfig;
use super::values::{Checked, base_url};
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
    let advertise_url = url("CONSUL_ADVERTISE_URL", raw.consul_advertise_url.as_deref())?;
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
        token: raw.consul_token.clone().map(Secret),
        advertise_url: advertise_url.map(|Secret(url)| url),
    }))
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
