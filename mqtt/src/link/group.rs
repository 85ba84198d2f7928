//! How reports are subscribed to: all of them, or those that fall to one member of a group, by shared subscriptions
//! (`$share/…`, ADR 21).
//!
//! The broker keeps a member's session while it is away, and may queue its share there. What waited so has been overtaken by
//! what other members have taken since, so it must be told apart: after it has subscribed, a member sends itself a marker, which
//! the broker hands over behind all that waits. The marker comes by a shared subscription, too: a broker that has none, and
//! takes such a filter for an ordinary one, is found out by it.

use std::time::Duration;

use device_ota_protocol::topics::{Prefix, Up};
use rumqttc::{AsyncClient, Publish, QoS};
use tokio::time::Instant;

/// How long nothing at all may come before the marker does. A report that comes shows that sharing works.
const MARKER_PATIENCE: Duration = Duration::from_secs(10);
/// Longest name of a group, bytes.
const MAX_NAME: usize = 64;
/// The level in place of a device's id below which members send themselves markers: no device can be called so.
const SERVICE_LEVEL: &str = "$service";

/// Name of a group of replicas: letters, digits, `-` and `_`, 64 bytes at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group(String);

/// A text that is no group's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be letters, digits, - and _, 64 of them at most")]
pub struct InvalidGroup;

impl std::str::FromStr for Group {
    type Err = InvalidGroup;

    fn from_str(text: &str) -> Result<Self, InvalidGroup> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let is_name = !text.is_empty() && text.len() <= MAX_NAME && text.chars().all(is_plain);
        is_name.then(|| Self(text.to_owned())).ok_or(InvalidGroup)
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// With whom reports are shared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sharing {
    /// The group of which this replica is a member; `None`: every report comes to it.
    pub group: Option<Group>,
    /// Groups of which it was a member before: the session that the broker keeps still subscribes for them.
    pub left: Vec<Group>,
}

impl Sharing {
    /// Filters of the reports that shall come.
    pub(super) fn wanted(&self, prefix: &Prefix) -> Vec<String> {
        filters(prefix, self.group.as_ref()).collect()
    }

    /// Filters that the session may still have from other settings.
    pub(super) fn unwanted(&self, prefix: &Prefix) -> Vec<String> {
        let all = self.group.is_some().then(|| filters(prefix, None));
        let left = self
            .left
            .iter()
            .filter(|left| Some(*left) != self.group.as_ref());
        let left = left.flat_map(|left| filters(prefix, Some(left)));
        all.into_iter().flatten().chain(left).collect()
    }
}

fn filters(prefix: &Prefix, group: Option<&Group>) -> impl Iterator<Item = String> {
    let share = group.map_or_else(String::new, |group| format!("$share/{group}/"));
    Up::ALL
        .iter()
        .map(move |up| format!("{share}{}", prefix.any_up(*up)))
}

/// What a member sends itself on one connection.
pub(super) struct Marker {
    /// By which it comes back: a shared subscription of a group of one.
    pub(super) filter: String,
    topic: String,
    /// Of this connection: one of an earlier connection may come before it.
    payload: String,
    is_awaited: bool,
    /// The broker may hand over what waited.
    session_was_kept: bool,
    deadline: Instant,
}

impl Marker {
    pub(super) fn new(prefix: &Prefix, group: &Group, client_id: &str, number: i64) -> Self {
        let topic = format!("{prefix}/{SERVICE_LEVEL}/{client_id}/here");
        Self {
            filter: format!("$share/{group}-{client_id}/{topic}"),
            topic,
            payload: number.to_string(),
            is_awaited: true,
            session_was_kept: true,
            deadline: Instant::now() + MARKER_PATIENCE,
        }
    }

    /// The broker has kept nothing for us.
    pub(super) const fn nothing_waits(&mut self) {
        self.session_was_kept = false;
    }

    /// Sends it; what is subscribed to by now and waits, comes before it.
    pub(super) fn send(&mut self, client: &AsyncClient) {
        // The queue of a new client has room.
        let _ = client.try_publish(
            &self.topic,
            QoS::AtLeastOnce,
            false,
            self.payload.as_bytes(),
        );
        self.deadline = Instant::now() + MARKER_PATIENCE;
    }

    /// Whether a message is a marker of ours; this one or another one.
    pub(super) fn is(&mut self, publish: &Publish) -> bool {
        if publish.topic != self.topic {
            // A report: sharing works, and the marker is behind it.
            self.deadline = Instant::now() + MARKER_PATIENCE;
            return false;
        }
        if publish.payload == self.payload.as_bytes() {
            self.is_awaited = false;
        }
        true
    }

    /// Whether what comes now may have waited for us while others took what came after it.
    pub(super) const fn may_have_waited(&self) -> bool {
        self.is_awaited && self.session_was_kept
    }

    /// Ends when it should long have come.
    pub(super) async fn is_overdue(marker: Option<&Self>) {
        match marker {
            Some(marker) if marker.is_awaited => tokio::time::sleep_until(marker.deadline).await,
            _ => std::future::pending().await,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_named_in_plain_letters() {
        assert_eq!("ota_1-a".parse::<Group>().unwrap().to_string(), "ota_1-a");
        for wrong in ["", "a/b", "a+", "#", "ä", &"a".repeat(65)] {
            assert!(wrong.parse::<Group>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn whoever_changes_the_group_leaves_the_one_before() {
        let prefix = Prefix::default();
        let [old, new] = ["old", "new"].map(|name| name.parse::<Group>().unwrap());
        let alone = Sharing {
            group: None,
            left: vec![old.clone()],
        };
        assert_eq!(alone.wanted(&prefix)[0], "ota/v1/+/up/heartbeat");
        assert_eq!(
            alone.unwanted(&prefix)[0],
            "$share/old/ota/v1/+/up/heartbeat"
        );
        let sharing = Sharing {
            group: Some(new.clone()),
            left: vec![old, new],
        };
        assert_eq!(
            sharing.wanted(&prefix)[0],
            "$share/new/ota/v1/+/up/heartbeat"
        );
        let unwanted = sharing.unwanted(&prefix);
        assert!(unwanted.contains(&"ota/v1/+/up/heartbeat".to_owned()));
        assert!(unwanted.contains(&"$share/old/ota/v1/+/up/heartbeat".to_owned()));
        assert!(!unwanted.iter().any(|filter| filter.contains("new")));
    }
}
