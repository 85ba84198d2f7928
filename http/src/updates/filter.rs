//! The filters that all lists of updates share.

use device_ota_domain::FirmwareId;
use device_ota_domain::campaign::{Group, Priority};
use device_ota_domain::update::{Action, Phase};
use device_ota_engine::ports::store::UpdateFilter;
use utoipa::IntoParams;
use utoipa::openapi::Object;

use crate::dto::names;
use crate::errors::ApiError;
use crate::request::Query;

/// Groups of updates by name.
const GROUPS: [(&str, Group); 7] = [
    ("pending", Group::Pending),
    ("in_flight", Group::InFlight),
    ("in_progress", Group::InFlight),
    ("staged", Group::Staged),
    ("completed", Group::Completed),
    ("failed", Group::Failed),
    ("cancelled", Group::Cancelled),
];
/// Actions of updates by name.
const ACTIONS: [(&str, Action); 2] = [
    (Action::Update.name(), Action::Update),
    (Action::Rollback.name(), Action::Rollback),
];
/// Priorities by name.
pub(crate) const PRIORITIES: [(&str, Priority); 4] = [
    (Priority::Low.name(), Priority::Low),
    (Priority::Normal.name(), Priority::Normal),
    (Priority::High.name(), Priority::High),
    (Priority::Critical.name(), Priority::Critical),
];

/// What a `status` asks for.
#[derive(Clone, Copy)]
enum Status {
    Group(Group),
    Phase(Phase),
}

/// Which updates.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `filter_of` reads")]
pub(crate) struct UpdatesQuery {
    /// Of this `status`; or `pending` (the same as `scheduled`), or `in_progress`: of any that is neither `scheduled` nor an end.
    #[param(schema_with = status_names)]
    status: Option<String>,
    /// Of this status, as statistics group them; not together with `status`.
    #[param(schema_with = group_names)]
    state: Option<String>,
    /// Forward or back.
    action: Option<Action>,
    /// With this image.
    firmware_id: Option<FirmwareId>,
    /// Of this priority.
    priority: Option<Priority>,
}

/// Every status: those that an update shows first. `staged` is shown of one that is being told to activate its image, too.
fn statuses() -> Vec<(&'static str, Status)> {
    let scheduled = ("scheduled", Status::Group(Group::Pending));
    let phases = Phase::ALL.map(|phase| (phase.name(), Status::Phase(phase)));
    let groups = GROUPS
        .into_iter()
        .filter(|(_, group)| *group != Group::Staged);
    let groups = groups.map(|(name, group)| (name, Status::Group(group)));
    std::iter::once(scheduled)
        .chain(phases)
        .chain(groups)
        .collect()
}

fn status_names() -> Object {
    names(statuses().into_iter().map(|(name, _)| name))
}

fn group_names() -> Object {
    names(GROUPS.map(|(name, _)| name))
}

/// Reads an [`UpdatesQuery`].
pub(crate) fn filter_of(query: &mut Query) -> Result<UpdateFilter, ApiError> {
    let status = query.one_of("status", &statuses())?;
    let state = query.one_of("state", &GROUPS)?;
    let (group, phase) = match (status, state) {
        (None, group) => (group, None),
        (Some(Status::Group(group)), None) => (Some(group), None),
        (Some(Status::Phase(phase)), None) => (None, Some(phase)),
        (Some(_), Some(_)) => {
            let detail = "give status or state, not both";
            return Err(ApiError::invalid("invalid_query", detail));
        }
    };
    Ok(UpdateFilter {
        group,
        phase,
        firmware: query.id("firmware_id")?,
        action: query.one_of("action", &ACTIONS)?,
        priority: query.one_of("priority", &PRIORITIES)?,
        ..UpdateFilter::default()
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn filter(text: &str) -> Result<UpdateFilter, String> {
        let mut query = Query::parse(text).unwrap();
        let filter = filter_of(&mut query).and_then(|filter| query.done().map(|_| filter));
        filter.map_err(|error| error.detail().to_owned())
    }

    #[test]
    fn every_status_that_an_update_shows_is_one_to_ask_for() {
        let asked = |text: &str| {
            let found = filter(text).unwrap();
            (found.group, found.phase)
        };
        assert_eq!(asked(""), (None, None));
        assert_eq!(asked("status=scheduled"), (Some(Group::Pending), None));
        assert_eq!(asked("status=pending"), (Some(Group::Pending), None));
        assert_eq!(asked("status=in_progress"), (Some(Group::InFlight), None));
        assert_eq!(asked("status=failed"), (Some(Group::Failed), None));
        assert_eq!(asked("state=completed"), (Some(Group::Completed), None));
        for phase in Phase::ALL {
            let query = format!("status={}", phase.name());
            assert_eq!(asked(&query), (None, Some(phase)));
        }
    }

    #[test]
    fn what_cannot_be_asked_for_is_told_what_can() {
        insta::assert_snapshot!(filter("status=done").unwrap_err(), @r#"status must be one of scheduled, offered, accepted, downloading, verifying, installing, staged, rebooting, pending, in_flight, in_progress, completed, failed, cancelled, not "done""#);
        insta::assert_snapshot!(filter("state=offered").unwrap_err(), @r#"state must be one of pending, in_flight, in_progress, staged, completed, failed, cancelled, not "offered""#);
        insta::assert_snapshot!(filter("priority=1").unwrap_err(), @r#"priority must be one of low, normal, high, critical, not "1""#);
        insta::assert_snapshot!(filter("action=forward").unwrap_err(), @r#"action must be one of update, rollback, not "forward""#);
        insta::assert_snapshot!(filter("firmware_id=x").unwrap_err(), @r#"firmware_id "x" is not valid: it is 32 lower-case hex digits"#);
        insta::assert_snapshot!(filter("status=failed&state=failed").unwrap_err(), @"give status or state, not both");
    }
}
