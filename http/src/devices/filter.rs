//! The filters that a list of devices and an overview of the fleet share.

use device_ota_domain::ring::Ring;
use device_ota_engine::ports::telemetry::{DeviceFilter, Presence, TagFilter};
use utoipa::IntoParams;
use utoipa::openapi::Object;

use crate::dto::names;
use crate::errors::ApiError;
use crate::request::Query;

/// What a `status` asks for.
const STATUSES: [(&str, Presence); 3] = [
    ("online", Presence::Online),
    ("offline", Presence::Offline),
    ("never_seen", Presence::NeverSeen),
];

/// Which devices; all that is given must hold.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `filter_of` reads")]
pub(crate) struct FleetQuery {
    /// Of this model.
    device_model: Option<String>,
    /// Of this kind.
    device_type: Option<String>,
    /// Of this maker.
    manufacturer: Option<String>,
    /// Runs this version, by its own last word, else as registered.
    firmware_version: Option<String>,
    /// In this group.
    group: Option<String>,
    /// With this tag: its name, or its name, `=` and its value.
    #[param(pattern = "^[^=]", example = "site=berlin")]
    tag: Option<String>,
    /// Pinned to this ring.
    ring: Option<Ring>,
}

/// Reads a [`FleetQuery`].
pub(crate) fn filter_of(query: &mut Query) -> Result<DeviceFilter, ApiError> {
    Ok(DeviceFilter {
        device_model: query.text("device_model")?,
        device_type: query.text("device_type")?,
        manufacturer: query.text("manufacturer")?,
        firmware_version: query.text("firmware_version")?,
        group: query.text("group")?,
        tag: query.text("tag")?.map(|tag| tag_of(&tag)).transpose()?,
        ring: query.one_of("ring", &Ring::ALL.map(|ring| (ring.name(), ring)))?,
        presence: None,
    })
}

fn tag_of(text: &str) -> Result<TagFilter, ApiError> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, None),
    };
    if key.is_empty() {
        let detail = format!("tag must be a name, or a name, = and a value, not {text:?}");
        return Err(ApiError::invalid("invalid_query", detail));
    }
    let key = key.to_owned();
    Ok(TagFilter { key, value })
}

/// Which devices of a list, by their connection.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `presence_of` reads")]
pub(crate) struct PresenceQuery {
    /// Connected now; not connected, or never; never heard.
    #[param(schema_with = status_names)]
    status: Option<String>,
    /// The same as `status=online` or `status=offline`; not together with it.
    online: Option<bool>,
}

fn status_names() -> Object {
    names(STATUSES.map(|(name, _)| name))
}

/// Reads a [`PresenceQuery`].
pub(crate) fn presence_of(query: &mut Query) -> Result<Option<Presence>, ApiError> {
    let status = query.one_of("status", &STATUSES)?;
    match (status, query.flag("online")?) {
        (status, None) => Ok(status),
        (None, Some(true)) => Ok(Some(Presence::Online)),
        (None, Some(false)) => Ok(Some(Presence::Offline)),
        (Some(_), Some(_)) => {
            let detail = "give status or online, not both";
            Err(ApiError::invalid("invalid_query", detail))
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn presence(text: &str) -> Result<Option<Presence>, String> {
        let mut query = Query::parse(text).unwrap();
        let found = presence_of(&mut query);
        found.map_err(|error| error.detail().to_owned())
    }

    fn tag(text: &str) -> Result<(String, Option<String>), String> {
        let mut query = Query::parse(&format!("tag={text}")).unwrap();
        let filter = filter_of(&mut query).map_err(|error| error.detail().to_owned())?;
        let tag = filter.tag.unwrap();
        Ok((tag.key, tag.value))
    }

    #[test]
    fn a_tag_is_a_name_or_a_name_and_a_value() {
        let site = "site".to_owned();
        assert_eq!(tag("site").unwrap(), (site.clone(), None));
        assert_eq!(tag("site=").unwrap(), (site.clone(), Some(String::new())));
        assert_eq!(tag("site=a=b").unwrap(), (site, Some("a=b".to_owned())));
        assert_eq!(
            tag("=a").unwrap_err(),
            r#"tag must be a name, or a name, = and a value, not "=a""#
        );
    }

    #[test]
    fn a_device_is_there_is_not_or_never_was() {
        assert_eq!(presence("").unwrap(), None);
        assert_eq!(presence("status=online").unwrap(), Some(Presence::Online));
        assert_eq!(presence("online=false").unwrap(), Some(Presence::Offline));
        assert_eq!(
            presence("status=never_seen").unwrap(),
            Some(Presence::NeverSeen)
        );
        assert_eq!(
            presence("status=away").unwrap_err(),
            r#"status must be one of online, offline, never_seen, not "away""#
        );
        assert_eq!(
            presence("status=online&online=true").unwrap_err(),
            "give status or online, not both"
        );
    }
}
